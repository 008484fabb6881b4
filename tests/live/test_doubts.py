"""Doubtful frames of a run: how often they are kept, and that they reach the bank's file."""

import shutil
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from blank import blank_frame

from fsvit_edge import FewShotModel, InputError
from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.review import store_verdict, update_review
from fsvit_edge.fewshot.review_items import ReviewItem, with_item, with_verdict
from fsvit_edge.live import doubts as doubts_module
from fsvit_edge.live.doubts import DoubtKeeper
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.run import RunOptions, run_source
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.live.sinks.base import Sink
from fsvit_edge.runtime.pictures import read_image, write_image
from fsvit_edge.runtime.storage import editing

TOOK_S = 0.05


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Notes:
    """Takes 50 ms to keep any frame for the classes that are not skipped, as `Review` does."""

    def __init__(self, clock: Clock, *names: str) -> None:
        self.clock, self.names = clock, names
        self.kept: list[tuple[str, int]] = []

    def note(self, rgb: np.ndarray, *_: object, skip: list[str], **__: object) -> tuple[Any, ...]:
        names = [name for name in self.names if name not in skip]
        self.clock.now_s += TOOK_S if names else 0.0
        self.kept += [(name, int(rgb[0, 0, 0])) for name in names]
        return tuple(SimpleNamespace(name=name) for name in names)


def keep(is_live: bool, fps: float | None, frames: int, *names: str, each_s: float = 0.1) -> list[tuple[str, int]]:
    """Which frames are kept of a source in which all are doubtful."""
    clock = Clock()
    notes = Notes(clock, *names)
    source: Any = SimpleNamespace(is_live=is_live, fps=fps)
    model: Any = SimpleNamespace(review=notes)
    keeper = DoubtKeeper(source, model, Path("none.safetensors"), lambda _: None, clock)
    for index in range(frames):
        clock.now_s += each_s
        keeper.offer(blank_frame(index, value=index % 256), None)  # type: ignore[arg-type]
    return notes.kept


def test_a_camera_gives_a_class_one_frame_in_ten_seconds() -> None:
    kept = keep(True, 30.0, 250, "cat", "dog")
    second, third = kept[2][1], kept[4][1]
    assert kept == [(name, index) for index in (0, second, third) for name in ("cat", "dog")]
    assert 95 <= second <= 101
    assert 95 <= third - second <= 101


def test_slow_keeping_takes_one_percent_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubts_module, "_EVERY_S", 0.0)
    assert len(keep(True, 30.0, 250, "cat")) * TOOK_S <= 0.012 * 25 + TOOK_S
    monkeypatch.setattr(doubts_module, "_IDLE_RATIO", 0.0)
    assert len(keep(True, 30.0, 250, "cat")) == 250  # the control


@pytest.mark.parametrize(("fps", "wanted"), [(10.0, [0, 10, 20]), (None, list(range(30)))])
def test_a_file_is_counted_in_its_own_time_and_a_folder_in_pictures(fps: float | None, wanted: list[int]) -> None:
    assert keep(False, fps, 30, "cat", each_s=0.001) == [("cat", index) for index in wanted]


# ---------------------------------------------------------------------------------------------------- the bank's file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bank and pictures, to copy."""
    folder, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    for index in range(4):
        image = np.kron(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
        write_image(folder / "pictures" / f"{index}.png", image)
    with FewShotModel.load(threads=1) as model:
        model.enroll("thing", [image])
        model.enroll("other", [image[::-1].copy()])
        model.save_bank(folder / "bank.safetensors")
    return folder


@pytest.fixture
def bank(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bank whose class is in doubt in every frame of the folder "pictures"."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fsvit_edge.fewshot.review.doubts", lambda prediction: prediction.classes)
    return Path("bank.safetensors")


def test_a_run_adds_its_doubtful_frames_to_the_file(bank: Path) -> None:
    run_source("pictures", options=RunOptions(threads=1))
    assert SupportBank.load(bank).review == ()  # the control: not unless asked to

    run_source("pictures", options=RunOptions(threads=1, review=True))
    items = SupportBank.load(bank).review
    assert [(one.number, one.name) for one in items] == list(enumerate(["thing", "other"] * 4))
    assert len({one.jpeg for one in items}) == 4

    update_review(bank, lambda loaded: with_verdict(loaded.review, 3, "no"))
    run_source("pictures", options=RunOptions(threads=1, review=True))
    assert [(one.number, one.verdict) for one in SupportBank.load(bank).review][3] == (3, "no")
    assert len(SupportBank.load(bank).review) == 8  # the same pictures again


class Page(Sink):
    """Stands for the page: has the model, and shows nothing."""

    def __init__(self, _: str, model: LiveModel, __: Path) -> None:
        self.model = model

    def write(self, *_: object) -> None:
        pass

    def _finish(self) -> None:
        pass


def kept_with_a_page(source: str, **options: Any) -> tuple[ReviewItem, ...]:
    """The doubtful frames that a run with a page has in memory at its end."""
    pages: list[Page] = []

    def open_page(*given: Any) -> Page:
        pages.append(Page(*given))
        return pages[0]

    run_source(source, ["http://127.0.0.1:0"], RunOptions(threads=1, **options), open_page=open_page)
    return pages[0].model.review


def test_with_a_page_the_demo_keeps_frames_in_memory_and_not_in_the_file(bank: Path) -> None:
    before = bank.read_bytes()
    demo = {"bank": bank, "max_frames": 3}
    assert [one.name for one in kept_with_a_page("demo", **demo)] == ["thing", "other"]
    assert bank.read_bytes() == before
    assert kept_with_a_page("pictures") == ()  # a person looks at a camera, not at a folder
    assert len(kept_with_a_page("demo", **demo, review=True)) == 2
    assert len(SupportBank.load(bank).review) == 2  # the control


def test_a_frame_that_the_page_has_added_with_its_verdict_is_not_added_again(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubts_module, "_WRITE_EVERY_S", 1e9)  # only at the end, but for the first frame
    source: Any = SimpleNamespace(is_live=False, fps=None)
    with FewShotModel.load(threads=1) as model:
        model.load_bank(bank)
        with DoubtKeeper(source, model, bank, print, clock=lambda: 1.0) as keeper:
            for index in range(3):
                image = read_image(Path("pictures") / f"{index}.png")
                keeper.offer(Frame(image, index, "pictures", 0.0, 0.0, 0.0), model.predict(image))
                if keeper._writer is not None:
                    keeper._writer.join()
            assert len(SupportBank.load(bank).review) == 2
            judged = model.review.judge(5, "no")
            assert store_verdict(bank, judged, model.bank.supports(judged.name))
    in_file = SupportBank.load(bank).review
    assert len(in_file) == len(model.bank.review) == 6
    assert [one.verdict for one in in_file if one.is_same(model.bank.review[5])] == ["no"]


def test_changes_of_the_file_during_a_run_stay(bank: Path) -> None:
    def change(frame: Frame, *_: object) -> None:
        if frame.index == 1:
            loaded = SupportBank.load(bank)
            loaded.set_level("thing", 0.125)
            loaded.remove("other")
            loaded.save(bank)

    run_source("pictures", options=RunOptions(threads=1, review=True), on_frame=change)
    loaded = SupportBank.load(bank)
    assert (loaded.classes, loaded.level("thing")) == (("thing",), 0.125)
    assert [one.name for one in loaded.review] == ["thing"] * 4


@pytest.mark.usefixtures("bank")
def test_a_file_that_cannot_be_written_is_said_once_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubts_module, "_WRITE_EVERY_S", 0.0)
    monkeypatch.setattr(doubts_module, "update_review", _refuse)
    said: list[str] = []
    result = run_source("pictures", options=RunOptions(threads=1, review=True), say=said.append)
    assert (result.exit_code, result.statistics.frames) == (0, 4)
    assert said == ["Doubtful frames cannot be kept, which is tried again: full"]


def test_doubtful_frames_are_kept_when_there_is_room_again(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source: Any = SimpleNamespace(is_live=False, fps=None)
    image = read_image(Path("pictures") / "0.png")
    said: list[str] = []
    with FewShotModel.load(threads=1) as model:
        model.load_bank(bank)
        with DoubtKeeper(source, model, bank, said.append, clock=lambda: 1.0) as keeper, monkeypatch.context() as full:
            full.setattr(doubts_module, "update_review", _refuse)
            keeper.offer(Frame(image, 0, "pictures", 0.0, 0.0, 0.0), model.predict(image))
            assert keeper._writer is not None
            keeper._writer.join(60)
            full.undo()
    assert [one.name for one in SupportBank.load(bank).review] == ["thing", "other"]
    assert said == [
        "Doubtful frames cannot be kept, which is tried again: full",
        "Doubtful frames are kept again.",
        waiting_in(bank, 2),
    ]


def test_a_run_ends_although_another_program_keeps_the_bank(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubts_module, "_WRITE_EVERY_S", 0.0)
    said: list[str] = []
    ended = threading.Event()

    def run() -> None:
        run_source("pictures", options=RunOptions(threads=1, review=True), say=said.append)
        ended.set()

    with editing(bank):
        monkeypatch.setattr("fsvit_edge.live.loop.stop_on_signals", lambda _: nullcontext())  # not in the main thread
        running = threading.Thread(target=run, daemon=True)
        running.start()
        assert ended.wait(60)
    assert said == [f"The last doubtful frames are not kept: another program is changing {bank}."]
    assert SupportBank.load(bank).review == ()


def test_frames_for_which_the_bank_was_busy_are_written_later(bank: Path) -> None:
    source: Any = SimpleNamespace(is_live=False, fps=None)
    image = read_image(Path("pictures") / "0.png")
    said: list[str] = []
    with FewShotModel.load(threads=1) as model:
        model.load_bank(bank)
        with DoubtKeeper(source, model, bank, said.append, clock=lambda: 1.0) as keeper:
            with editing(bank):
                keeper.offer(Frame(image, 0, "pictures", 0.0, 0.0, 0.0), model.predict(image))
                assert keeper._writer is not None
                keeper._writer.join(60)
            assert SupportBank.load(bank).review == ()
    assert [one.name for one in SupportBank.load(bank).review] == ["thing", "other"]
    assert said == [waiting_in(bank, 2)]


def test_a_run_tells_how_many_frames_wait_for_a_verdict(bank: Path) -> None:
    said: list[str] = []
    run_source("pictures", options=RunOptions(threads=1, review=True), say=said.append)
    assert said == [waiting_in(bank, len(SupportBank.load(bank).review))]
    said.clear()
    run_source("pictures", options=RunOptions(threads=1), say=said.append)
    assert said == []  # the control: nothing was added


def waiting_in(bank: Path, frames: int) -> str:
    look = f"fsvit-edge bank review {bank} --preview doubtful.png"
    return f"Doubtful frames that wait for a verdict: {frames}; see them with: {look}"


def _refuse(*_: object) -> None:
    raise InputError("full")


@pytest.mark.usefixtures("bank")
def test_a_review_needs_a_bank() -> None:
    with pytest.raises(InputError, match=r"--review keeps frames in the bank, and there is none at bank\.safetensors"):
        run_source("demo", options=RunOptions(review=True))


def add_from_four_threads(bank: Path) -> int:
    """Five items each, one by one; return how many are in the file."""

    def add() -> None:
        for _ in range(5):
            update_review(bank, lambda loaded: with_item(loaded.review, ReviewItem(0, "thing", 0.5, 0.5, 0.0, b"x")))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(SupportBank.load(bank).review)


def test_nothing_is_lost_if_several_write_at_once(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert add_from_four_threads(bank) == 20
    monkeypatch.setattr("fsvit_edge.fewshot.review.editing", lambda *_, **__: nullcontext(lambda: None))
    assert add_from_four_threads(bank) < 40  # the control
