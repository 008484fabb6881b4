import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_engine import FakeEngine, HostTensor

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, GRAPH_NAMES, read_manifest
from fsvit_edge.runtime.engines.base import TensorSpec, check_feed
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine, OrtTensor, installed_providers
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError

INPUTS = (TensorSpec("image", ("batch", 4, 3), "uint8"), TensorSpec("scale", (1,), "float32"))
IMAGE = np.zeros((2, 4, 3), np.uint8)
SCALE = np.ones(1, np.float32)
FEED = {"image": IMAGE, "scale": SCALE}
NEEDS = "The graph needs the inputs ['image', 'scale']"
MUST = "Input 'image' must be uint8 ('batch', 4, 3)"


def open_graph(name: str) -> Iterator[OnnxRuntimeEngine]:
    with OnnxRuntimeEngine(DEFAULT_BUNDLE / f"{name}.onnx", "cpu", threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def encoder() -> Iterator[OnnxRuntimeEngine]:
    yield from open_graph("encoder")


@pytest.fixture(scope="module")
def enroll() -> Iterator[OnnxRuntimeEngine]:
    yield from open_graph("enroll")


@pytest.fixture(scope="module")
def head() -> Iterator[OnnxRuntimeEngine]:
    yield from open_graph("head")


def picture(seed: int = 0) -> np.ndarray:
    side = read_manifest(DEFAULT_BUNDLE).image_size
    return np.random.default_rng(seed).integers(0, 256, (1, side, side, 3), dtype=np.uint8)


def filled(inputs: tuple[TensorSpec, ...], **sizes: int) -> dict[str, np.ndarray]:
    return {
        spec.name: np.ones([sizes[n] if isinstance(n, str) else n for n in spec.shape], spec.dtype) for spec in inputs
    }


@pytest.mark.parametrize(
    ("feed", "reason"),
    [
        ({"image": IMAGE}, f"{NEEDS}, got ['image']."),
        ({**FEED, "mask": SCALE}, f"{NEEDS}, got ['image', 'mask', 'scale']."),
        ({**FEED, "image": IMAGE[:, :3]}, f"{MUST}, got uint8 (2, 3, 3)."),
        ({**FEED, "image": IMAGE[0]}, f"{MUST}, got uint8 (4, 3)."),
        ({**FEED, "image": IMAGE.astype(np.float32)}, f"{MUST}, got float32 (2, 4, 3)."),
        ({**FEED, "scale": np.ones(2, np.float32)}, "Input 'scale' must be float32 (1,), got float32 (2,)."),
        ({**FEED, "image": HostTensor(IMAGE[0])}, f"{MUST}, got (4, 3)."),
    ],
)
def test_a_wrong_feed_is_refused_with_the_name_of_the_input(feed: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(InputError) as refused:
        check_feed(feed, INPUTS)
    assert str(refused.value) == reason


@pytest.mark.parametrize("batch", [1, 7])
def test_a_variable_size_accepts_any_number(batch: int) -> None:
    check_feed({"image": np.zeros((batch, 4, 3), np.uint8), "scale": SCALE}, INPUTS)
    check_feed({"image": HostTensor(np.zeros((batch, 4, 3), np.uint8)), "scale": HostTensor(SCALE)}, INPUTS)


@pytest.mark.parametrize("name", GRAPH_NAMES)
def test_the_bundled_graphs_have_the_inputs_and_outputs_of_the_manifest(name: str) -> None:
    stated = read_manifest(DEFAULT_BUNDLE).graphs[name]
    with OnnxRuntimeEngine((DEFAULT_BUNDLE / stated.file).read_bytes(), "cpu", threads=1) as engine:
        assert engine.inputs == stated.inputs
        assert engine.outputs == stated.outputs
        assert engine.limits == {}


def test_the_bytes_of_a_graph_are_freed_once_it_is_loaded() -> None:
    graph = (DEFAULT_BUNDLE / "enroll.onnx").read_bytes()
    alone = sys.getrefcount(graph)
    engine = OnnxRuntimeEngine(graph)
    assert sys.getrefcount(graph) == alone
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert sys.getrefcount(graph) > alone  # ONNX Runtime by itself keeps them
    del session
    engine.close()


def test_outputs_have_their_stated_shapes_and_types(encoder: OnnxRuntimeEngine) -> None:
    answer = encoder.run({"image": picture()})
    assert list(answer) == [spec.name for spec in encoder.outputs]
    for spec in encoder.outputs:
        values = answer[spec.name].numpy()
        assert values.shape == answer[spec.name].shape == (1, *spec.shape[1:])
        assert values.dtype == spec.dtype


def test_a_later_run_leaves_earlier_outputs_alone(encoder: OnnxRuntimeEngine) -> None:
    first = encoder.run({"image": picture(0)})["tokens"]
    before = first.numpy().copy()
    second = encoder.run({"image": picture(1)})["tokens"].numpy()
    assert not np.array_equal(before, second)
    assert np.array_equal(first.numpy(), before)


def test_an_uploaded_array_is_not_copied_on_the_cpu(encoder: OnnxRuntimeEngine) -> None:
    array = picture()
    tensor = encoder.upload(array)
    assert tensor.value.data_ptr() == array.ctypes.data
    assert np.shares_memory(tensor.numpy(), array)


def test_a_view_with_gaps_is_uploaded_correctly(encoder: OnnxRuntimeEngine) -> None:
    bgr = picture()[..., ::-1]
    assert np.array_equal(encoder.upload(bgr).numpy(), bgr)


def test_a_tensor_goes_from_graph_to_graph_without_a_copy(
    encoder: OnnxRuntimeEngine, enroll: OnnxRuntimeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = encoder.run({"image": picture()})
    side = read_manifest(DEFAULT_BUNDLE).image_size
    mask = enroll.upload(np.ones((1, side, side), np.uint8))
    taken = {spec.name for spec in enroll.inputs}
    encoded = {name: tensor for name, tensor in encoded.items() if name in taken}  # without objectness
    feed = {**encoded, "mask": mask, "has_mask": enroll.upload(np.array([True]))}
    bound: dict[str, object] = {}
    bind = onnxruntime.IOBinding.bind_ortvalue_input

    def remember(self: onnxruntime.IOBinding, name: str, value: object) -> None:
        bound[name] = value
        bind(self, name, value)

    def refuse(*_: object) -> None:
        raise AssertionError("copied through numpy")

    monkeypatch.setattr(onnxruntime.IOBinding, "bind_ortvalue_input", remember)
    monkeypatch.setattr(OrtTensor, "numpy", refuse)
    monkeypatch.setattr(OnnxRuntimeEngine, "upload", refuse)
    enroll.run(feed)
    assert bound.keys() == feed.keys()
    for name, tensor in feed.items():
        assert bound[name] is tensor.value
    with pytest.raises(AssertionError, match="copied"):  # the check can fail
        enroll.run({**feed, "mask": np.ones((1, side, side), np.uint8)})


def test_a_tensor_of_another_engine_is_copied_through_the_host(enroll: OnnxRuntimeEngine) -> None:
    feed = filled(enroll.inputs)
    ours = enroll.run(feed)["support"].numpy()
    theirs = enroll.run({name: HostTensor(array) for name, array in feed.items()})["support"].numpy()
    assert np.array_equal(ours, theirs)


def test_a_wrong_feed_is_refused_before_onnx_runtime_sees_it(encoder: OnnxRuntimeEngine) -> None:
    with pytest.raises(InputError, match="Input 'image' must be uint8"):
        encoder.run({"image": picture().astype(np.float32)})


def test_a_failed_run_is_one_sentence(head: OnnxRuntimeEngine, capfd: pytest.CaptureFixture[str]) -> None:
    feed = filled(head.inputs, supports=2, ways=1, kept_tokens=5)
    head.run(feed)
    with pytest.raises(FsvitEdgeError) as failed:
        head.run({**feed, "kept_mask": np.ones((3, 5), np.float32)})
    assert failed.value.exit_code == 1
    assert str(failed.value).startswith("ONNX Runtime failed to run the graph: ")
    assert "\n" not in str(failed.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (3, 3), (None, 2)])
def test_threads_default_to_one_per_usable_core_and_stop_spinning_after_a_run(
    threads: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    given: list[Any] = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, graph: str, options: Any, **others: Any) -> None:
            given.append(options)
            super().__init__(graph, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    OnnxRuntimeEngine(DEFAULT_BUNDLE / "enroll.onnx", "cpu", threads).close()
    (options,) = given
    assert options.intra_op_num_threads == expected
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [f"{name}ExecutionProvider" for name in names])


def test_the_error_for_a_missing_provider_tells_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "CPU", "Tensorrt", "NvTensorRTRTX")
    assert installed_providers() == ("cpu",)
    with pytest.raises(EnvironmentLacksError) as lacking:
        OnnxRuntimeEngine(DEFAULT_BUNDLE / "enroll.onnx", "cuda")
    assert str(lacking.value) == (
        "--engine onnxruntime-cuda needs ONNX Runtime's CUDAExecutionProvider, which is not installed; "
        "try: pip install onnxruntime-gpu (on a Jetson: NVIDIA's own wheel)."
    )


def test_a_provider_without_a_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class FellBack:
        def __init__(self, *_: object, providers: list[str]) -> None:
            assert providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    install(monkeypatch, "CPU", "CUDA")
    monkeypatch.setattr(onnxruntime, "InferenceSession", FellBack)
    with pytest.raises(EnvironmentLacksError, match="found no device to run on; use --engine onnxruntime"):
        OnnxRuntimeEngine(DEFAULT_BUNDLE / "enroll.onnx", "cuda")


@pytest.mark.parametrize(
    "content", [b"", b"no graph", bytes(range(256)) * 40, b"\x08\x0a"], ids=["empty", "text", "bytes", "cut"]
)
@pytest.mark.parametrize("as_file", [True, False])
def test_a_file_that_is_not_a_graph_is_refused_in_one_sentence(
    content: bytes, as_file: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as refused:
        OnnxRuntimeEngine(path if as_file else content, "cpu")
    assert refused.value.exit_code == 4
    assert str(refused.value).startswith(f"{path if as_file else 'The graph'} cannot be loaded by ONNX Runtime: ")
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.onnx cannot be loaded"):
        OnnxRuntimeEngine(tmp_path / "none.onnx", "cpu")


def test_the_fake_refuses_an_output_that_is_read_after_a_later_run() -> None:
    engine = FakeEngine((), (TensorSpec("one", (1,), "float32"),), lambda _: {"one": SCALE})
    first = engine.run({})["one"]
    assert first.numpy() == 1
    engine.run({})
    with pytest.raises(AssertionError, match="read after a later run"):
        first.numpy()
