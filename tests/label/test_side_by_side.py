"""Labelers side by side: the same labels in the same order, each labeler for one picture at a time, and all closed."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from label_album import contents
from plain_labeler import PlainLabeler, predict
from sample_files import colors, rectangle
from threadpoolctl import ThreadpoolController

from fsvit_edge import FewShotModel
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.label import job
from fsvit_edge.label.job import LabelResult
from fsvit_edge.label.labeler import Labeler, LabelerOptions, open_side_by_side
from fsvit_edge.runtime.errors import InputError

Run = Callable[..., LabelResult]


class SlowLabeler(PlainLabeler):
    """One of several on a CPU; the first one of them is slow."""

    engine = "onnxruntime"
    opened: list["SlowLabeler"]
    needed = 0.0  # megabytes

    def __init__(self, options: LabelerOptions, say: object) -> None:
        super().__init__(options, say)
        self.threads = options.threads
        self.count, self.most, self.is_closed, self._at_work = 0, 0, False, 0
        SlowLabeler.opened.append(self)

    def twin(self) -> "SlowLabeler":
        return SlowLabeler(LabelerOptions(Path("bank"), threads=self.threads), print)

    def needed_mb(self) -> float:
        return self.needed

    def predict(self, rgb: np.ndarray) -> Prediction:
        self.count += 1
        self._at_work += 1
        self.most = max(self.most, self._at_work)
        self.before()
        time.sleep(0.05 if self is SlowLabeler.opened[0] else 0.001)
        self._at_work -= 1
        return predict(rgb)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> type[SlowLabeler]:
    SlowLabeler.opened = []
    monkeypatch.setattr(job, "Labeler", SlowLabeler)
    monkeypatch.setattr("fsvit_edge.label.labeler.usable_cores", lambda: 3)
    return SlowLabeler


@pytest.mark.usefixtures("album")
def test_labelers_side_by_side_write_what_one_writes(
    run: Run, tmp_path: Path, slow: type[SlowLabeler], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("several", "album", every_s=0.5)
    assert len(slow.opened) == 3
    assert [one.most for one in slow.opened] == [1, 1, 1]  # a model is not thread-safe
    assert slow.opened[0].count < slow.opened[1].count + slow.opened[2].count  # nobody waits for the slow one
    assert all(one.is_closed for one in slow.opened)
    monkeypatch.setattr(slow, "engine", "tensorrt")
    slow.opened.clear()
    run("one", "album", every_s=0.5)
    assert len(slow.opened) == 1
    several, one = contents(tmp_path / "several"), contents(tmp_path / "one")
    assert {name: data.replace(b"onnxruntime", b"tensorrt") for name, data in several.items()} == one


@pytest.mark.usefixtures("album")
@pytest.mark.parametrize("error", [InputError("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_what_one_of_them_raises_ends_all(
    run: Run, slow: type[SlowLabeler], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail() -> None:
        if sum(one.count for one in slow.opened) == 4:
            raise error

    monkeypatch.setattr(slow, "before", staticmethod(fail))
    with pytest.raises(type(error)):
        run("out", "album", every_s=0.5)
    assert all(one.is_closed for one in slow.opened)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("label")]


@pytest.mark.parametrize(
    ("threads", "cores", "expected"),
    [(None, 1, [1]), (None, 2, [1, 1]), (None, 9, [2, 2, 2, 2]), (3, 9, [1, 1, 1]), (1, 9, [1])],
)
def test_the_threads_are_shared_among_the_labelers(
    monkeypatch: pytest.MonkeyPatch, threads: int | None, cores: int, expected: list[int]
) -> None:
    SlowLabeler.opened = []
    monkeypatch.setattr("fsvit_edge.label.labeler.usable_cores", lambda: cores)
    with open_side_by_side(SlowLabeler, LabelerOptions(Path("bank"), threads=threads)) as labelers:
        assert len(labelers) == len(expected)
    assert [one.threads for one in SlowLabeler.opened] == expected


@pytest.mark.parametrize(
    ("free", "expected", "told"),
    [
        (None, [2, 2, 2, 2], None),
        (1900 * 10**6, [2, 2, 2, 2], None),
        (1300 * 10**6, [2, 3, 3, 3], "Note: 3 models label, not 4: each needs 500 MB, and 1300 MB are free."),
        (700 * 10**6, [2, 4, 4], "Note: 2 models label, not 4: each needs 500 MB, and 700 MB are free."),
        (100 * 10**6, [2, 9], "Note: 1 model labels, not 4: each needs 500 MB, and 100 MB are free."),
    ],
)
def test_no_more_models_are_opened_than_the_memory_takes(
    monkeypatch: pytest.MonkeyPatch, free: int | None, expected: list[int], told: str | None
) -> None:
    SlowLabeler.opened = []
    monkeypatch.setattr(SlowLabeler, "needed", 500.0)
    monkeypatch.setattr("fsvit_edge.label.labeler.usable_cores", lambda: 9)
    monkeypatch.setattr("fsvit_edge.label.labeler.free_memory", lambda: free)
    said: list[str] = []
    with open_side_by_side(SlowLabeler, LabelerOptions(Path("bank")), said.append) as labelers:
        assert [one.threads for one in SlowLabeler.opened] == expected
        assert list(labelers) == [one for one in SlowLabeler.opened if not one.is_closed]
        assert len(labelers) == (4 if told is None else len(expected) - 1)  # the first one had too few threads
    assert said == ([] if told is None else [told])
    assert all(one.is_closed for one in SlowLabeler.opened)


def test_a_twin_answers_like_the_first_and_shares_its_supports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = tmp_path / "bank.safetensors"
    with FewShotModel.load(threads=1) as model:
        model.enroll("cat", [colors(1, 120, 160)], [rectangle(120, 160)[..., 0]])
        model.enroll("dog", [colors(2, 120, 160)])
        model.save_bank(bank)
    options = LabelerOptions(bank, threads=2, classes=("cat",), min_score=0.4)
    with open_side_by_side(Labeler, options) as (first, second):
        images = [colors(seed, 120, 160) for seed in (1, 3)]
        for one, other in zip(map(first.predict, images), map(second.predict, images), strict=True):
            assert one.classes == other.classes == ("cat",)
            assert one.scores.tobytes() == other.scores.tobytes()
            assert one.levels.tobytes() == other.levels.tobytes()
            assert one.label_map.tobytes() == other.label_map.tobytes()
        assert first.about == second.about
        monkeypatch.setattr("fsvit_edge.label.labeler.resident_memory_mb", lambda _: first._before_mb + 60)
        assert first.needed_mb() == pytest.approx(60)
        of_first, of_second = (labeler._model.bank for labeler in (first, second))
        assert np.shares_memory(of_first.supports("cat")[0].kept, of_second.supports("cat")[0].kept)


@pytest.mark.usefixtures("album")
def test_blas_has_one_thread_while_they_label(
    run: Run, slow: type[SlowLabeler], monkeypatch: pytest.MonkeyPatch
) -> None:
    blas = ThreadpoolController().select(user_api="blas")
    seen = set[int]()

    def look() -> None:
        seen.update(pool["num_threads"] for pool in blas.info())

    with blas.limit(limits=2):
        look()
        if seen == {1}:
            pytest.skip("this BLAS has one thread")
        seen.clear()
        monkeypatch.setattr(slow, "before", staticmethod(look))
        run("out", "album")
        assert seen == {1}
        look()
        assert seen == {1, 2}
