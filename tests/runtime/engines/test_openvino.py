import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import HostTensor

from fsvit_edge.fewshot.heads import SplitHead
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, GRAPH_NAMES, Bundle, GraphInfo
from fsvit_edge.runtime.engines import choose, open_graphs, openvino, trial
from fsvit_edge.runtime.engines.base import TensorSpec
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.engines.openvino import OpenVinoEngine, import_openvino, usable_precisions
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError

BUNDLE = Bundle.load(DEFAULT_BUNDLE)
STATED = BUNDLE.manifest.graphs
FP32_BOUND = 1e-4
"""Largest difference of two engines in FP32, relative to an output's largest value; measured: 1.1e-5."""
BF16_BOUND = 0.1
"""The same in BF16, on a picture of colored blocks."""


@pytest.fixture(autouse=True)
def is_installed() -> None:
    pytest.importorskip("openvino._pyopenvino", reason="the extra openvino is not installed", exc_type=ImportError)


def opened(name: str, precision: str = "fp32") -> OpenVinoEngine:
    return OpenVinoEngine(BUNDLE.graphs[name], STATED[name], precision, threads=1)


@pytest.fixture(scope="module")
def encoder() -> Iterator[OpenVinoEngine]:
    pytest.importorskip("openvino._pyopenvino", reason="the extra openvino is not installed", exc_type=ImportError)
    with opened("encoder") as engine:
        yield engine


@pytest.fixture(scope="module")
def reference() -> Iterator[OnnxRuntimeEngine]:
    with OnnxRuntimeEngine(BUNDLE.graphs["encoder"], "cpu", threads=1) as engine:
        yield engine


def picture(seed: int = 0) -> np.ndarray:
    side = BUNDLE.manifest.image_size
    blocks = np.random.default_rng(seed).integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)[None].copy()


def filled(inputs: tuple[TensorSpec, ...], **sizes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {spec.name: [sizes[n] if isinstance(n, str) else n for n in spec.shape] for spec in inputs}
    return {spec.name: rng.random(shapes[spec.name]).round(2).astype(spec.dtype) for spec in inputs}


def largest_difference(one: Any, other: Any) -> float:
    """The largest difference of two engines' outputs, relative to each output's largest value."""
    assert list(one) == list(other)
    pairs = [(one[name].numpy(), other[name].numpy()) for name in one]
    return max(float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for ours, theirs in pairs)


def needs_bf16() -> None:
    if "bf16" not in usable_precisions():
        pytest.skip("this processor does not multiply BF16")


# --------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("name", GRAPH_NAMES)
def test_the_bundled_graphs_have_the_inputs_and_outputs_of_the_manifest(name: str) -> None:
    with opened(name) as engine:
        assert (engine.inputs, engine.outputs, engine.limits) == (STATED[name].inputs, STATED[name].outputs, {})


@pytest.mark.parametrize(
    "stated",
    [
        GraphInfo("", "", STATED["encoder"].inputs, STATED["encoder"].outputs[1:]),
        GraphInfo("", "", (TensorSpec("image", ("batch", 256, 255, 3), "uint8"),), STATED["encoder"].outputs),
        GraphInfo("", "", (TensorSpec("image", (1, 256, 256, 3), "uint8"),), STATED["encoder"].outputs),
        GraphInfo("", "", (TensorSpec("image", ("batch", 256, 256, 3), "float32"),), STATED["encoder"].outputs),
        GraphInfo("", "", (TensorSpec("photo", ("batch", 256, 256, 3), "uint8"),), STATED["encoder"].outputs),
    ],
    ids=["an output more", "another size", "a variable size", "another type", "another name"],
)
def test_a_graph_that_differs_from_what_is_stated_is_refused(stated: GraphInfo) -> None:
    with pytest.raises(ArtifactError, match=r"has not the stated '(image|photo|norms)'"):
        OpenVinoEngine(BUNDLE.graphs["encoder"], stated, threads=1)


def test_outputs_have_their_stated_shapes_and_types(encoder: OpenVinoEngine) -> None:
    answer = encoder.run({"image": picture()})
    assert list(answer) == [spec.name for spec in encoder.outputs]
    for spec in encoder.outputs:
        values = answer[spec.name].numpy()
        assert values.shape == answer[spec.name].shape == (1, *spec.shape[1:])
        assert values.dtype == spec.dtype


def test_a_later_run_leaves_values_that_were_read_alone_and_stale_outputs_are_not_read(encoder: OpenVinoEngine) -> None:
    first = encoder.run({"image": picture(0)})["tokens"]
    values = first.numpy()
    before = values.copy()
    second = encoder.run({"image": picture(1)})["tokens"].numpy()
    assert not np.array_equal(before, second)
    assert np.array_equal(values, before)
    with pytest.raises(AssertionError, match="read after a later run"):
        first.numpy()


@pytest.mark.parametrize("kind", ["with gaps", "read-only", "of another engine"])
def test_any_array_is_uploaded_correctly(encoder: OpenVinoEngine, kind: str) -> None:
    array = picture()
    expected = encoder.run({"image": array})["tokens"].numpy()
    assert np.shares_memory(encoder.upload(array).numpy(), array)
    if kind == "with gaps":
        given: Any = np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    elif kind == "read-only":
        given = array.copy()
        given.flags.writeable = False
    else:
        given = HostTensor(array)
    assert np.array_equal(encoder.run({"image": given})["tokens"].numpy(), expected)


def test_a_wrong_feed_is_refused_before_openvino_sees_it(encoder: OpenVinoEngine) -> None:
    with pytest.raises(InputError, match="Input 'image' must be uint8"):
        encoder.run({"image": picture().astype(np.float32)})


def test_inputs_of_different_numbers_are_refused_for_openvino_does_not_notice() -> None:
    with opened("head") as head:
        feed = filled(head.inputs, supports=2, ways=1, kept_tokens=5)
        head.run(feed)
        with pytest.raises(InputError, match="Input 'kept_mask' has 3 supports, but another input has 2"):
            head.run({**feed, "kept_mask": np.ones((3, 5), np.float32)})


def test_a_failed_run_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def set_tensor(self, *_: object) -> None:
            pass

        def infer(self) -> None:
            raise RuntimeError("Exception from src/a.cpp:224:\nException from src/b.cpp:1:\nMemory is full.\n\n")

    with opened("enroll") as engine:
        monkeypatch.setattr(engine, "_request", Failing())
        with pytest.raises(FsvitEdgeError) as failed:
            engine.run(filled(engine.inputs))
    assert failed.value.exit_code == 1
    assert str(failed.value) == "OpenVINO failed to run the graph: Memory is full."


@pytest.mark.parametrize(
    "content", [b"", b"no graph", bytes(range(256)) * 40, b"\x08\x0a"], ids=["empty", "text", "bytes", "cut"]
)
def test_bytes_that_are_not_a_graph_are_refused_in_one_sentence(
    content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArtifactError) as refused:
        OpenVinoEngine(content, STATED["encoder"])
    assert str(refused.value).startswith("The graph cannot be loaded by OpenVINO: ")
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (3, 3), (None, 2)])
def test_threads_default_to_one_per_usable_core_and_the_precision_is_fixed(
    threads: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    given: list[dict[str, Any]] = []
    module = import_openvino()
    compile_model = module.Core.compile_model

    def listening(core: Any, model: Any, device: str, settings: dict[str, Any]) -> Any:
        given.append({"device": device, **settings})
        compiled = compile_model(core, model, device, settings)
        assert compiled.get_property("INFERENCE_PRECISION_HINT") == module.Type.f32
        return compiled

    monkeypatch.setattr(module.Core, "compile_model", listening)
    OpenVinoEngine(BUNDLE.graphs["enroll"], STATED["enroll"], threads=threads).close()
    (settings,) = given
    assert settings["device"] == "CPU"
    assert settings["INFERENCE_NUM_THREADS"] == expected
    assert settings["ENABLE_CPU_PINNING"] is False


# ------------------------------------------------------------------------------------------------------- the precisions


def test_fp32_is_fp32_and_the_bound_notices_bf16_and_a_changed_weight(
    encoder: OpenVinoEngine, reference: OnnxRuntimeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = {"image": picture()}
    expected = reference.run(feed)
    assert largest_difference(encoder.run(feed), expected) < FP32_BOUND
    onnx = pytest.importorskip("onnx", reason="changes a weight of the graph")
    model = onnx.load_from_string(BUNDLE.graphs["encoder"])
    weight = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * np.float32(1.01)).tobytes()
    with OpenVinoEngine(model.SerializeToString(), STATED["encoder"], threads=1) as changed:
        assert largest_difference(changed.run(feed), expected) > FP32_BOUND
    needs_bf16()
    monkeypatch.setitem(openvino._HINTS, "fp32", "bf16")
    with opened("encoder") as other:
        assert largest_difference(other.run(feed), expected) > FP32_BOUND


def test_bf16_is_near_and_a_precision_of_its_own(reference: OnnxRuntimeEngine) -> None:
    needs_bf16()
    feed = {"image": picture()}
    expected = reference.run(feed)
    with opened("encoder", "bf16") as engine:
        assert FP32_BOUND < largest_difference(engine.run(feed), expected) < BF16_BOUND


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_head_is_the_same_with_any_number_of_supports_tokens_and_ways(precision: str) -> None:
    if precision == "bf16":
        needs_bf16()
    bound = FP32_BOUND if precision == "fp32" else BF16_BOUND
    with opened("head", precision) as head, OnnxRuntimeEngine(BUNDLE.graphs["head"], "cpu", threads=1) as other:
        for supports, tokens, ways in ((2, 5, 1), (3, 9, 3), (1, 145, 1), (2, 5, 1)):
            feed = filled(head.inputs, supports=supports, kept_tokens=tokens, ways=ways)
            assert largest_difference(head.run(feed), other.run(feed)) < bound


def test_bf16_is_refused_where_the_processor_does_not_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    core = import_openvino().Core
    ask = core.get_property

    def without(self: Any, device: str, name: str) -> Any:
        found = ask(self, device, name)
        return [one for one in found if one != "BF16"] if name == "OPTIMIZATION_CAPABILITIES" else found

    monkeypatch.setattr(core, "get_property", without)
    assert usable_precisions() == ("fp32",)
    with pytest.raises(EnvironmentLacksError) as refused:
        opened("encoder", "bf16")
    name = ask(core(), "CPU", "FULL_DEVICE_NAME")
    assert str(refused.value) == (
        "--precision bf16 needs a processor that multiplies BF16 (AVX512_BF16 or AMX), which OpenVINO does not find in "
        f"this {name}; use --precision fp32."
    )
    opened("enroll").close()


# ----------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_a_model_computes_in_openvino_and_knows_its_precision(precision: str) -> None:
    if precision == "bf16":
        needs_bf16()
    with FewShotModel.load(engine="openvino", precision=precision, threads=1) as model:
        wanted = "bf16" if precision == "bf16" else "fp32"
        assert (model.choice.engine, model.choice.precision, model.bank.identity.precision) == (
            "openvino",
            *[wanted] * 2,
        )
        assert model.choice.description.startswith(f"{wanted.upper()} encoder in OpenVINO 20")
        assert isinstance(model.network.encoder, OpenVinoEngine)
        assert isinstance(model.network.head, SplitHead)
        model.enroll("thing", [picture()[0]])
        assert model.predict(picture()[0]).scores[0] > 0.5


def test_bf16_alone_means_openvino() -> None:
    needs_bf16()
    with FewShotModel.load(precision="bf16", threads=1) as model:
        assert (model.choice.engine, model.choice.precision) == ("openvino", "bf16")


@pytest.mark.parametrize(
    ("engine", "precision", "reason"),
    [
        ("openvino", "int8", "--engine openvino has no INT8: it cannot read the INT8 graphs for ONNX Runtime"),
        ("openvino", "fp16", "computes in FP32 or BF16 on a CPU, not in FP16; use --precision fp32 or bf16."),
        ("onnxruntime", "bf16", "--engine onnxruntime has no BF16; use --precision bf16 with --engine openvino."),
        ("tensorrt", "bf16", "--engine tensorrt has no BF16; use --precision bf16 with --engine openvino."),
    ],
)
def test_what_an_engine_does_not_compute_in_is_refused(engine: str, precision: str, reason: str) -> None:
    with pytest.raises(InputError) as refused:
        choose.choose_engines(BUNDLE, engine, precision)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_other_graphs_are_closed_if_one_fails_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(OpenVinoEngine, "close", lambda _: closed.append("openvino"))

    def refuse(*_: object) -> None:
        raise ArtifactError("Refused.")

    monkeypatch.setattr(open_graphs, "OnnxRuntimeEngine", refuse)
    with pytest.raises(ArtifactError, match="Refused"):
        choose.choose_engines(BUNDLE, "openvino")
    assert closed == ["openvino"]


# ---------------------------------------------------------------------------------------------------------- the package


def test_the_error_for_a_missing_package_tells_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EnvironmentLacksError) as lacking:
        opened("encoder")
    assert str(lacking.value) == (
        "--engine openvino needs the package openvino, which is not installed; try: pip install --upgrade "
        '"fsvit-edge[openvino]".'
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libtbb.so.12: no such file')", "libtbb.so.12: no such file"),
        ("raise RuntimeError('built for another numpy.')", "built for another numpy"),
        ("raise KeyError('x')", "'x'"),
        ("import surely_not_there", "No module named 'surely_not_there'"),
        ("", "module 'openvino' has no attribute 'Core'"),
        ("class Core:\n    def get_property(self, *_): raise RuntimeError('Device CPU is gone')", "Device CPU is gone"),
    ],
)
def test_a_package_that_fails_is_refused_and_auto_does_without(
    code: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "openvino.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    with pytest.raises(EnvironmentLacksError) as lacking:
        usable_precisions()
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    assert f"which cannot be loaded ({reason}); try: " in str(lacking.value)
    monkeypatch.setattr(trial, "openvino_version", lambda: "2026.4.1")  # conftest.py hides it
    assert trial.measure(BUNDLE).openvino_ms == {}


IMPORT = """
import socket, sys
class Refusing(socket.socket):
    def connect(self, *_): raise OSError("no network in this test")
socket.socket = Refusing
{}
print(any(name.startswith("openvino_telemetry") for name in sys.modules))
"""


def loads_telemetry(statement: str, home: object) -> bool:
    # As a user's machine: it sends nothing where it believes to be in a build.
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", IMPORT.format(statement)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip() == "True"


def test_nothing_is_told_to_anybody(tmp_path: Any) -> None:
    assert not loads_telemetry(
        "from fsvit_edge.runtime.engines.openvino import import_openvino; import_openvino().Core()", tmp_path
    )
    assert list(tmp_path.iterdir()) == []


def test_openvino_itself_would_load_its_telemetry(tmp_path: Any) -> None:
    pytest.importorskip("openvino_telemetry", reason="openvino is installed without it")
    assert loads_telemetry("import openvino", tmp_path)
    assert list(tmp_path.iterdir()) != []  # the number by which it recognizes this user


SIGNAL_AFTER_CLEANUP = """
import gc, os, signal, sys, threading
from contextlib import nullcontext
from pathlib import Path
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines import openvino

if "control" in sys.argv:
    openvino._own_signal_stack = nullcontext
bundle = Bundle.load(DEFAULT_BUNDLE)
engines = [openvino.OpenVinoEngine(bundle.graphs["encoder"], bundle.manifest.graphs["encoder"], "fp32", 1)]
cleaner = threading.Thread(target=lambda: (engines.pop().close(), gc.collect()))
cleaner.start()
cleaner.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("control", [False, True])
def test_a_signal_is_handled_after_another_thread_has_freed_the_graph(control: bool) -> None:
    command = [sys.executable, "-c", SIGNAL_AFTER_CLEANUP, *(["control"] if control else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == ((-11, "") if control else (0, "handled\n")), done.stderr
