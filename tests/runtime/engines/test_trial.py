import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_records import copy_bundle, write_set
from fake_engine import FakeEngine

from fsvit_edge.fewshot.bank_file import precision_of_bank
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines import choose, open_graphs, trial
from fsvit_edge.runtime.engines.choose import EngineChoice, choose_engines
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.engines.trial import FORMAT_VERSION, Trial, find_trial, known_trial, measure
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError
from fsvit_edge.runtime.machine import Machine

BUNDLE = Bundle.load(DEFAULT_BUNDLE)
VERSION = "2026.4.1"
Timed = dict[str, float]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where OpenVINO is installed, without a GPU."""
    monkeypatch.setattr(trial, "openvino_version", lambda: VERSION)
    monkeypatch.setattr(trial, "processor", lambda: "A CPU")
    here = replace(Machine.here(), gpu=None, cpu="Fast CPU", os="Linux", arch="x86_64")
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: here))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Bundle]:
    """The bundles that were measured, which takes no time: OpenVINO takes 9 ms in FP32 and 5 ms in BF16."""
    done: list[Bundle] = []

    def pretend(bundle: Bundle, _: object) -> Trial:
        done.append(bundle)
        conditions = trial.conditions_of(bundle)
        assert conditions is not None
        return Trial(FORMAT_VERSION, *conditions, 10.0, {"fp32": 9.0, "bf16": 5.0}, {}, None)

    monkeypatch.setattr(trial, "measure", pretend)
    return done


def found(say: Callable[[str], None] = lambda _: None) -> Trial | None:
    return find_trial(BUNDLE, 1, say)


def timing() -> Path:
    """The file that the measurement of these tests is kept in."""
    conditions = trial.conditions_of(BUNDLE)
    assert conditions is not None
    return trial.file_of(*conditions)


# ------------------------------------------------------------------------------------------------------------ the cache


@pytest.mark.usefixtures("measured")
def test_it_is_timed_once_and_said_in_one_line(measured: list[Bundle], own_cache: Path) -> None:
    lines: list[str] = []
    assert known_trial(BUNDLE) is None
    first = found(lines.append)
    assert found(lines.append) == known_trial(BUNDLE) == first
    assert (len(measured), len(lines)) == (1, 1)
    assert lines == ["Timing OpenVINO beside ONNX Runtime, once for this processor, model and versions."]
    file = timing()
    assert file.parent == own_cache / "fsvit-edge" / "speed"
    assert json.loads(file.read_bytes())["processor"] == "A CPU"


def test_without_openvino_nothing_is_timed(measured: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "openvino_version", lambda: None)
    assert found() is None
    assert measured == []


def change_processor(monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(trial, "processor", lambda: "Another CPU")
    return BUNDLE


def change_openvino(monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(trial, "openvino_version", lambda: "2027.0.0")
    return BUNDLE


def change_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(trial, "installed_version", lambda _: "2.0")
    return BUNDLE


def change_graph(graph: str) -> Callable[[pytest.MonkeyPatch], Bundle]:
    def change(_: pytest.MonkeyPatch) -> Bundle:
        graphs = {**BUNDLE.manifest.graphs, graph: replace(BUNDLE.manifest.graphs[graph], sha256="ab" * 32)}
        return replace(BUNDLE, manifest=replace(BUNDLE.manifest, graphs=graphs))

    return change


@pytest.mark.parametrize(
    "change",
    [change_processor, change_openvino, change_onnxruntime, change_graph("encoder"), change_graph("head")],
    ids=["processor", "OpenVINO", "ONNX Runtime", "encoder", "head"],
)
def test_another_processor_model_or_version_is_timed_again(
    change: Callable[[pytest.MonkeyPatch], Bundle], measured: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = found()
    with monkeypatch.context() as patch:
        other = change(patch)
        assert known_trial(other) is None
        assert find_trial(other, 1, lambda _: None) != first
    assert len(measured) == 2
    assert found() == first  # the first one is still known
    assert len(measured) == 2


def edited(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **changes}).encode()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda data: data[: len(data) // 2],
        lambda _: b"[]",
        lambda _: b"\xff\x00",
        edited(format_version=1),
        edited(processor="Another CPU"),
        edited(onnxruntime_ms=0.0),
        edited(openvino_ms={"fp32": -1.0}),
        edited(openvino_ms={"fp32": "fast"}),
        edited(extra=1),
    ],
    ids=["empty", "cut", "a list", "bytes", "version", "processor", "zero", "negative", "a word", "a field more"],
)
def test_a_damaged_file_is_replaced(spoil: Callable[[bytes], bytes], measured: list[Bundle]) -> None:
    first = found()
    file = timing()
    file.write_bytes(spoil(file.read_bytes()))
    assert known_trial(BUNDLE) is None
    assert found() == found() == first
    assert len(measured) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(
    measured: list[Bundle], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(own_cache, ignore_errors=True)
    own_cache.write_text("a file in the folder's place")
    lines: list[str] = []
    assert found(lines.append) == found()
    assert len(measured) == 2
    (line,) = lines
    assert "at each start, because the result cannot be kept: " in line
    assert line.endswith("(Not a directory); name a folder with: export XDG_CACHE_HOME=/path.")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert found() is not None
    assert len(measured) == 3


# ----------------------------------------------------------------------------------------------------------- the choice


class Opened(list[str]):
    """Precisions in which OpenVINO was opened; ONNX Runtime does its work."""

    error: FsvitEdgeError | None = None


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    done = Opened()

    class Listening(OnnxRuntimeEngine):
        def __init__(self, graph: bytes, _: object, precision: str, threads: int | None) -> None:
            if done.error is not None:
                raise done.error
            done.append(precision)
            super().__init__(graph, "cpu", threads)

    monkeypatch.setattr(open_graphs, "OpenVinoEngine", Listening)
    monkeypatch.setattr(choose, "openvino_version", lambda: VERSION)
    return done


def chosen(bundle: Bundle = BUNDLE, precision: str = "auto", made_in: str | None = None) -> EngineChoice:
    engines, choice = choose_engines(bundle, "auto", precision, 1, made_in)
    for engine in engines.values():
        engine.close()
    return choice


def remember(times_ms: Timed, refused: dict[str, str] | None = None, bundle: Bundle = BUNDLE) -> None:
    """Write what was measured into the cache; ONNX Runtime took 10 ms."""
    conditions = trial.conditions_of(bundle)
    assert conditions is not None
    file = trial.file_of(*conditions)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(Trial(FORMAT_VERSION, *conditions, 10.0, times_ms, refused or {}, None))))


@pytest.mark.parametrize(
    ("times_ms", "precision", "taken"),
    [
        ({"fp32": 9.0, "bf16": 5.0}, "auto", "bf16"),
        ({"fp32": 4.0, "bf16": 5.0}, "auto", "fp32"),
        ({"fp32": 4.0}, "auto", "fp32"),
        ({"fp32": 9.0, "bf16": 5.0}, "fp32", "fp32"),
        ({"fp32": 11.0, "bf16": 5.0}, "fp32", None),
        ({"fp32": 11.0, "bf16": 12.0}, "auto", None),
        ({"fp32": 9.6}, "auto", None),  # noise
    ],
)
def test_auto_takes_what_was_timed_fastest(times_ms: Timed, precision: str, taken: str | None, opened: Opened) -> None:
    remember(times_ms)
    choice = chosen(precision=precision)
    if taken is None:
        assert (choice.engine, choice.precision, opened) == ("onnxruntime", "fp32", [])
        assert "its encoder is no faster here: 10.0 ms in ONNX Runtime in FP32; in OpenVINO" in choice.notes[0]
    else:
        assert (choice.engine, choice.precision, choice.notes, opened) == ("openvino", taken, (), [taken])


def test_a_precision_that_differs_from_fp32_is_not_taken_however_fast(opened: Opened) -> None:
    remember({"fp32": 9.0, "bf16": 1.0}, {"bf16": "BF16 is not used: it differs."})
    choice = chosen()
    assert (choice.engine, choice.precision, opened) == ("openvino", "fp32", ["fp32"])
    assert choice.notes == ("BF16 is not used: it differs.",)


def test_auto_keeps_to_the_precision_of_a_bank(opened: Opened) -> None:
    remember({"fp32": 9.0, "bf16": 5.0})
    choice = chosen(made_in="fp32")
    assert (choice.precision, opened) == ("fp32", ["fp32"])
    assert "OpenVINO would be faster in BF16" in choice.notes[0]
    assert choice.notes[0].endswith(
        "but the bank was made in fp32; enroll its classes again with --precision bf16 to use it."
    )
    assert chosen(made_in="int8").engine == "onnxruntime"
    remember({"fp32": 4.0, "bf16": 20.0})
    assert chosen(made_in="bf16").precision == "bf16"  # nothing else can use it
    assert opened == ["fp32", "bf16"]


def test_a_model_asks_its_bank(tmp_path: Path, opened: Opened) -> None:
    remember({"fp32": 9.0, "bf16": 5.0})
    pictures = [np.zeros((64, 64, 3), np.uint8)]
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    for path, precision in ((old, "fp32"), (new, "auto")):
        with FewShotModel.load(engine="auto", precision=precision, threads=1) as model:
            model.enroll("thing", pictures)
            model.save_bank(path)
    assert opened == ["fp32", "bf16"]
    encoder = BUNDLE.manifest.graphs["encoder"].sha256
    assert [precision_of_bank(path, encoder) for path in (old, new, tmp_path / "none")] == ["fp32", "bf16", None]
    assert precision_of_bank(old, "another encoder") is None
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    assert precision_of_bank(tmp_path / "damaged.safetensors", encoder) is None
    for path, precision in ((old, "fp32"), (new, "bf16")):
        with FewShotModel.load(threads=1, bank=path) as model:
            model.load_bank(path)
            assert model.choice.precision == precision


@pytest.mark.parametrize(("bf16_ms", "taken"), [(4.0, "bf16"), (6.0, "int8")])
def test_built_engines_that_are_faster_still_come_first(
    bf16_ms: float, taken: str, tmp_path: Path, opened: Opened
) -> None:
    bundle = Bundle.load(copy_bundle(tmp_path / "bundle"))
    write_set(bundle.path, latency_ms=5.0, fp32_latency_ms=10.0)
    remember({"fp32": 9.0, "bf16": bf16_ms}, bundle=bundle)
    assert chosen(bundle).precision == taken
    assert opened == (["bf16"] if taken == "bf16" else [])


def test_if_openvino_fails_to_open_onnx_runtime_runs_and_the_note_says_why(opened: Opened) -> None:
    remember({"bf16": 5.0})
    opened.error = EnvironmentLacksError("It is gone.")
    choice = chosen()
    assert (choice.engine, choice.notes) == ("onnxruntime", ("It is gone.",))


# ------------------------------------------------------------------------------------------------------ the measurement


def pretend_openvino(monkeypatch: pytest.MonkeyPatch, changed: Callable[[Any], Any]) -> None:
    """OpenVINO that computes as ONNX Runtime does, and then changes the tokens."""

    class Changing(OnnxRuntimeEngine):
        def __init__(self, graph: bytes, _: object, __: str, threads: int | None) -> None:
            super().__init__(graph, "cpu", threads)

        def run(self, feed: Any) -> Any:
            outputs = {name: tensor.numpy() for name, tensor in super().run(feed).items()}
            outputs["tokens"] = changed(outputs["tokens"])
            return FakeEngine((), self.outputs, lambda _: outputs).run({})

    monkeypatch.setattr(trial, "OpenVinoEngine", Changing)
    monkeypatch.setattr(trial, "usable_precisions", lambda: ("fp32",))
    monkeypatch.setattr(trial, "_BUDGET_S", 0.0)


def with_noise(size: float) -> Callable[[Any], Any]:
    def change(tokens: Any) -> Any:
        noise = np.random.default_rng(0).standard_normal(tokens.shape).astype(np.float32)
        return tokens + size * tokens.std() * noise

    return change


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (lambda tokens: tokens, ""),
        (with_noise(0.02), ""),
        (with_noise(0.5), "its tokens differ from those of FP32 (cosine 0.89, at least 0.95)"),
        (lambda tokens: tokens * np.float32("nan"), "its values are not finite"),
        (lambda tokens: np.roll(tokens, 5, axis=2), "its tokens differ from those of FP32"),
    ],
    ids=["same", "a little noise", "noise", "not finite", "moved"],
)
def test_an_encoder_whose_answers_differ_is_refused(
    changed: Callable[[Any], Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_openvino(monkeypatch, changed)
    done = measure(BUNDLE, 1)
    assert done.openvino_ms.keys() == {"fp32"}
    assert (reason in done.refused["fp32"]) if reason else done.refused == {}
    assert (done.ratio("fp32") == float("inf")) == bool(reason)
    assert done.ratio("bf16") == float("inf")


def answer(presence: float, foreground: float) -> dict[str, Any]:
    mask = np.zeros((1, 10, 10), np.float32)
    mask.flat[: round(100 * foreground)] = 1
    return {"tokens": np.ones(3), "presence": np.array([presence]), "foreground": mask}


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        (answer(0.91, 0.50), ""),
        (answer(0.91, 0.51), ""),
        (answer(0.91, 0.52), "only 98.0% of the pixels get the label of FP32, at least 99% must"),
        (answer(0.49, 0.50), "what is present differs from FP32"),
    ],
)
def test_presence_and_labels_must_be_those_of_fp32(got: dict[str, Any], reason: str) -> None:
    assert trial._difference([got], [answer(0.9, 0.5)], 0.5) == reason


def test_a_broken_openvino_is_a_note_and_does_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[str, ...]:
        raise EnvironmentLacksError("A library is missing.")

    monkeypatch.setattr(trial, "usable_precisions", broken)
    choice = chosen()
    assert choice.engine == "onnxruntime"
    assert choice.notes == ("A library is missing.",)
    assert known_trial(BUNDLE) is None  # it may be repaired


def test_openvino_itself_agrees_with_onnx_runtime() -> None:
    pytest.importorskip("openvino._pyopenvino", reason="the extra openvino is not installed", exc_type=ImportError)
    done = measure(BUNDLE, 1)
    assert "fp32" in done.openvino_ms
    assert done.refused == {}
    assert "ms in ONNX Runtime in FP32; in OpenVINO" in str(done)
