"""From the predictor to TensorRT without a GPU: a fake module computes in a fake memory, which counts copied bytes."""

import math
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_records import MANIFEST
from fake_engine import HostTensor
from fake_memory import FakeMemory
from fake_tensorrt import EngineValidity, FakeTensorRT, api_of, make_plan
from padded_model import padded_model

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, OBJECTNESS
from fsvit_edge.runtime.engines import tensorrt as engine_module
from fsvit_edge.runtime.engines.base import TensorSpec, on_host
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.engines.tensorrt import TensorRtEngine
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.gpu import Gpu

GPU = Gpu("Orin", (8, 7), 14, 8 * 2**30, "12.6")
SIDE, MASK_SIDE = MANIFEST.image_size, MANIFEST.mask_size
HEAD = "head.fake.fp32.engine"


@pytest.fixture(autouse=True)
def pretended_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_module, "find_gpu", lambda: GPU)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Device:
    """A fake GPU with a fake TensorRT."""

    def __init__(self, backend: str = "tensorrt", **memory: Any) -> None:
        self.memory = FakeMemory(**memory)
        self.trt = FakeTensorRT(self.memory)
        self.backend = backend

    def engine(self, graph: str, precision: str = "fp32", limits: dict[str, int] | None = None) -> TensorRtEngine:
        plan, record = make_plan(graph, precision, limits, self.backend)
        return TensorRtEngine(plan, record, api_of(self.trt, self.backend), self.memory)

    def model(self, precision: str = "fp32", limits: dict[str, int] | None = None) -> FewShotModel:
        enroll = OnnxRuntimeEngine(DEFAULT_BUNDLE / "enroll.onnx", "cpu", threads=1)
        head = self.engine("head", precision, limits)
        return FewShotModel(MANIFEST, {"encoder": self.engine("encoder", precision), "enroll": enroll, "head": head})

    def moved(self) -> tuple[int, int]:
        """Bytes up and down since the last call."""
        up, down = self.memory.bytes_up, self.memory.bytes_down
        self.memory.bytes_up = self.memory.bytes_down = 0
        return up, down


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture(scope="module")
def reference() -> Iterator[FewShotModel]:
    """ONNX Runtime with the same supports in one run, as all of this module's models have them."""
    with padded_model() as model:
        enroll(model)
        yield model


def picture(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return small.repeat(height // 6, axis=0).repeat(width // 8, axis=1)


def enroll(model: FewShotModel) -> None:
    mask = np.zeros((96, 128), np.bool_)
    mask[20:70, 30:90] = True
    model.enroll("a", [picture(1), picture(2)], [mask, None])
    model.enroll("b", [picture(3)], [mask])


FRAMES = [picture(seed) for seed in range(10, 14)]


@pytest.fixture(scope="module")
def answers(reference: FewShotModel) -> list[Prediction]:
    """The reference's answer for each of `FRAMES`."""
    return [reference.predict(frame, probabilities=True) for frame in FRAMES]


@pytest.mark.parametrize(
    ("backend", "precision", "score_off", "mask_off"),
    [("tensorrt", "fp32", 0, 0), ("tensorrt-rtx", "fp32", 0, 0), ("tensorrt", "fp16", 2e-3, 2e-2)],
)
def test_it_answers_as_onnx_runtime_does_from_the_first_frame_to_captured_ones(
    backend: str,
    precision: str,
    score_off: float,
    mask_off: float,
    reference: FewShotModel,
    answers: list[Prediction],
) -> None:
    device = Device(backend)
    with device.model(precision) as model:
        enroll(model)
        for frame, wanted in zip(FRAMES, answers, strict=True):
            got = model.predict(frame, probabilities=True)
            np.testing.assert_allclose(got.scores, wanted.scores, rtol=0, atol=score_off)
            np.testing.assert_allclose(got.foreground, wanted.foreground, rtol=0, atol=mask_off)
            assert precision == "fp16" or np.array_equal(got.label_map, wanted.label_map)
        for name in reference.classes:
            for ours, theirs in zip(model.bank.supports(name), reference.bank.supports(name), strict=True):
                np.testing.assert_allclose(ours.kept, theirs.kept, rtol=0, atol=mask_off)
    assert len({answer.scores.tobytes() for answer in answers}) == len(FRAMES)
    assert (device.memory.launches > 0) == (backend == "tensorrt")


IMAGE_BYTES = SIDE * SIDE * 3
ENCODER_BYTES = {spec.name: 4 * math.prod(map(int, spec.shape[1:])) for spec in MANIFEST.graphs["encoder"].outputs}
OBJECTNESS_BYTES = ENCODER_BYTES.get(OBJECTNESS, 0)


def answer_bytes(ways: int) -> int:
    return 4 * (ways + ways * MASK_SIDE * MASK_SIDE) + OBJECTNESS_BYTES


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_frame_copies_only_its_image_up_and_the_answer_down(precision: str) -> None:
    device = Device()
    with device.model(precision) as model:
        enroll(model)
        model.predict(FRAMES[0])
        device.moved()
        for frame in FRAMES:
            model.predict(frame)
            assert device.moved() == (IMAGE_BYTES, answer_bytes(2))
        # The check would notice supports that are uploaded for every frame: they are after a change of the bank.
        model.enroll("c", [picture(4)])
        device.moved()
        model.predict(FRAMES[0])
        up, down = device.moved()
        assert up > 2 * IMAGE_BYTES
        assert down == answer_bytes(3)


def test_supports_are_uploaded_once_after_enrollment(device: Device) -> None:
    with device.model("fp16") as model:
        enroll(model)
        device.moved()
        model.predict(FRAMES[0])
        up, _ = device.moved()
        supports = [support for name in model.classes for support in model.bank.supports(name)]
        longest = max(support.kept.shape[1] for support in supports)
        channels, head_dim = model.bank.identity.num_channels, model.bank.identity.head_dim
        bytes_each = channels * (longest + 9) * head_dim * 2 + (longest + 9 + len(model.classes)) * 4
        assert up == IMAGE_BYTES + len(supports) * bytes_each


def test_an_enrollment_copies_the_image_up_and_the_encoders_outputs_down(device: Device) -> None:
    with device.model() as model:
        model.enroll("a", [picture(1)])
        assert device.moved() == (IMAGE_BYTES, sum(ENCODER_BYTES.values()))


def test_encoder_and_head_become_graphs_at_the_second_run_with_the_same_feed(device: Device) -> None:
    with device.model() as model:
        enroll(model)
        assert device.memory.captures == 1, "the encoder's, by three enrollments"
        launches = device.memory.launches
        for frame in FRAMES:
            model.predict(frame)
        assert device.memory.captures == 2
        assert device.memory.launches - launches == len(FRAMES) + len(FRAMES) - 2


def test_rtx_captures_its_own_graphs_so_we_capture_none() -> None:
    device = Device("tensorrt-rtx")
    with device.model() as model:
        enroll(model)
        for frame in FRAMES:
            model.predict(frame)
    assert device.memory.captures == device.memory.launches == 0
    strategies = {context.how.cuda_graph_strategy for context in device.trt.contexts}
    assert strategies == {device.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE}


def test_a_changed_bank_gets_a_new_graph_and_frees_the_old_supports(device: Device) -> None:
    with device.model() as model:
        enroll(model)
        for frame in FRAMES:
            model.predict(frame)
        captures, allocated = device.memory.captures, device.memory.allocated_bytes
        for _ in range(3):
            model.enroll("c", [picture(5)])
            for frame in FRAMES[:3]:
                model.predict(frame)
            model.remove("c")
            for frame in FRAMES[:3]:
                model.predict(frame)
        assert device.memory.captures > captures
        assert device.memory.allocated_bytes <= allocated + 3 * MASK_SIDE**2 * 4 + 4000
        wanted = model.predict(FRAMES[0])
    with Device().model() as fresh:
        enroll(fresh)
        assert np.array_equal(fresh.predict(FRAMES[0]).scores, wanted.scores)


def head_feed(engine: TensorRtEngine, supports: int, ways: int = 2, seed: int = 0) -> dict[str, Any]:
    sizes = {"supports": supports, "ways": ways, "kept_tokens": 20}
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.random([sizes[n] if isinstance(n, str) else n for n in spec.shape]).astype(spec.dtype)
        for spec in engine.inputs
    }


def resident(engine: TensorRtEngine, feed: dict[str, Any]) -> dict[str, Any]:
    return {name: engine.upload(array) for name, array in feed.items()}


def values(answer: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in answer.items()}


@pytest.fixture(scope="module")
def plain_head() -> Iterator[OnnxRuntimeEngine]:
    with OnnxRuntimeEngine(DEFAULT_BUNDLE / "head.onnx", "cpu") as engine:
        yield engine


def assert_same(engine: TensorRtEngine, feed: dict[str, Any], plain: OnnxRuntimeEngine, host: dict[str, Any]) -> None:
    got, wanted = values(engine.run(feed)), values(plain.run(host))
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, atol=1e-5)


def test_alternating_runs_of_a_bank_each_have_a_graph(device: Device, plain_head: OnnxRuntimeEngine) -> None:
    with device.engine("head") as engine:
        host = [head_feed(engine, supports, seed=supports) for supports in (1, 4, 2, 4)]
        feeds = [resident(engine, feed) for feed in host]
        for _ in range(4):
            for feed, plain in zip(feeds, host, strict=True):
                assert_same(engine, feed, plain_head, plain)
        assert device.memory.captures == 4
        assert device.memory.launches >= 4


def test_the_least_recently_used_graphs_are_dropped(
    device: Device, plain_head: OnnxRuntimeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MAX_GRAPHS", 2)
    with device.engine("head") as engine:
        host = [head_feed(engine, 3, seed=seed) for seed in range(4)]
        feeds = [resident(engine, feed) for feed in host]
        for feed in feeds:
            for _ in range(3):
                engine.run(feed)
        assert device.memory.captures == 4
        assert_same(engine, feeds[3], plain_head, host[3])
        assert device.memory.captures == 4
        for _ in range(3):
            assert_same(engine, feeds[0], plain_head, host[0])
        assert device.memory.captures == 5
        # More than are remembered, in turn: nothing is captured in vain.
        for _ in range(5):
            for feed, plain in zip(feeds, host, strict=True):
                assert_same(engine, feed, plain_head, plain)
        assert device.memory.captures == 5


def test_a_graph_in_use_outlives_an_unused_one(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_GRAPHS", 2)
    with device.engine("head") as engine:
        used, *others = [resident(engine, head_feed(engine, 3, seed=seed)) for seed in range(4)]
        engine.run(used)
        engine.run(used)
        for other in others:
            launches = device.memory.launches
            engine.run(other)
            engine.run(used)
            assert device.memory.launches == launches + 1
        assert device.memory.captures == 1


def test_graphs_are_recorded_again_when_a_run_needs_more_memory(device: Device, plain_head: OnnxRuntimeEngine) -> None:
    with device.engine("head") as engine:
        small, large = head_feed(engine, 2), head_feed(engine, 6)
        on_device = [(resident(engine, feed), feed) for feed in (small, large)]
        for feed, host in (*on_device, on_device[0]):
            for _ in range(4):
                assert_same(engine, feed, plain_head, host)
        assert len(device.trt.contexts) == 1
        assert device.trt.contexts[0].scratch[1] == 6000


def test_a_buffer_that_grows_is_used_at_its_new_address(device: Device, plain_head: OnnxRuntimeEngine) -> None:
    with device.engine("head") as engine:
        small, large = head_feed(engine, 1, 1), head_feed(engine, 9, 7)
        for _ in range(2):
            for feed in (small, small, small, large, large, large, small, small, small):
                assert_same(engine, feed, plain_head, feed)
        assert device.memory.launches >= 4


@pytest.mark.parametrize("why", ["the backend cannot", "TensorRT refuses"])
def test_it_runs_without_graphs_too(why: str, answers: list[Prediction]) -> None:
    device = Device(can_capture=why != "the backend cannot")
    if why == "TensorRT refuses":
        answer = device.trt.answer

        def refuse_captures(method: str, right: Any) -> Any:
            if method == "execute_async_v3" and device.memory.is_capturing:
                device.trt.calls.append("refused")
                return False
            return answer(method, right)

        device.trt.answer = refuse_captures  # type: ignore[method-assign]  # of this one alone
    with device.model() as model:
        enroll(model)
        for frame, wanted in zip(FRAMES, answers, strict=True):
            assert np.array_equal(model.predict(frame).scores, wanted.scores)
    assert device.memory.launches == 0
    assert device.trt.calls.count("refused") == (2 if why == "TensorRT refuses" else 0), "it is tried once for each"


def test_a_tensor_in_other_memory_is_copied_through_the_host(device: Device, plain_head: OnnxRuntimeEngine) -> None:
    with device.engine("head") as engine, Device().engine("head") as other:
        host = head_feed(engine, 2)
        mixed = {**host, "tokens": HostTensor(host["tokens"]), "kept": plain_head.upload(host["kept"])}
        mixed["pooled"] = other.upload(host["pooled"])
        assert_same(engine, mixed, plain_head, host)
        assert_same(engine, resident(engine, host), plain_head, host)


def test_a_view_with_gaps_is_fed_correctly(device: Device, plain_head: OnnxRuntimeEngine) -> None:
    with device.engine("head") as engine:
        host = head_feed(engine, 4)
        host = {**host, "tokens": host["tokens"][:, ::-1], "averaging": host["averaging"][:, ::-1]}
        assert_same(engine, host, plain_head, host)


def test_an_output_cannot_be_read_or_fed_after_a_later_run(device: Device) -> None:
    with device.engine("encoder") as encoder, device.engine("head") as head:
        image = np.zeros((1, SIDE, SIDE, 3), np.uint8)
        tokens = encoder.run({"image": image})["tokens"]
        before = tokens.numpy()
        encoder.run({"image": image + 9})
        with pytest.raises(AssertionError, match="read after a later run"):
            tokens.numpy()
        with pytest.raises(AssertionError, match="fed after a later run"):
            head.run({**head_feed(head, 1), "tokens": tokens})
        assert before.any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kept": np.zeros((2, 6, 20, 192), np.float64)}, "Input 'kept' must be float32 .* got float64"),
        ({"kept": HostTensor(np.zeros((2, 6, 20, 192), np.float16))}, "Input 'kept' must be float32 .* got float16"),
        ({"averaging": np.zeros((2, 3), np.float32)}, "Input 'averaging' has 3 supports, but another input has 2"),
        ({"tokens": np.zeros((1, 6, 255, 192), np.float32)}, "Input 'tokens' must be float32"),
    ],
)
def test_a_wrong_feed_is_refused_before_tensorrt_sees_it(device: Device, change: dict[str, Any], reason: str) -> None:
    with device.engine("head") as engine:
        device.trt.calls.clear()
        feed = {**head_feed(engine, 2), **change}
        with pytest.raises(InputError, match=reason):
            engine.run(feed)
        with pytest.raises(InputError, match=reason):
            engine.run(resident(engine, {name: on_host(value) for name, value in feed.items()}))
        assert "execute_async_v3" not in device.trt.calls


def test_a_size_beyond_the_profile_is_refused_with_the_command_that_rebuilds(device: Device) -> None:
    with device.engine("head", limits={"ways": 3, "supports": 4, "kept_tokens": 30}) as engine:
        assert engine.limits == {"ways": 3, "supports": 4, "kept_tokens": 30}
        engine.run(head_feed(engine, 4, 3))
        for supports, ways, what in ((5, 3, "4 supports, got 5"), (4, 4, "3 ways, got 4")):
            with pytest.raises(ArtifactError) as refused:
                engine.run(head_feed(engine, supports, ways))
            assert str(refused.value) == (
                f"head.fake.fp32.engine was built for at most {what}; build it for more with: "
                "fsvit-edge build-engine --max-ways N --max-shots K."
            )


def test_a_bank_larger_than_the_engine_is_run_in_parts_or_refused(
    answers: list[Prediction], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()
    run = TensorRtEngine.run
    supports: list[int] = []

    def listening(engine: TensorRtEngine, feed: Any) -> Any:
        if "kept" in feed:
            supports.append(feed["kept"].shape[0])
        return run(engine, feed)

    monkeypatch.setattr(TensorRtEngine, "run", listening)
    with device.model(limits={"ways": 2, "supports": 2, "kept_tokens": 145}) as model:
        enroll(model)
        supports.clear()
        for frame, wanted in zip(FRAMES, answers, strict=True):
            np.testing.assert_allclose(model.predict(frame).scores, wanted.scores, atol=1e-5)
        assert supports == [2, 1] * len(FRAMES)
        with pytest.raises(ArtifactError, match="built for at most 2 classes, the bank has 3; rebuild it with"):
            model.enroll("c", [picture(4)])


def test_without_a_gpu_nothing_is_loaded(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "find_gpu", lambda: None)
    monkeypatch.setattr(engine_module, "gpu_missing_reason", lambda: "no NVIDIA driver (libcuda.so.1) is installed")
    with pytest.raises(EnvironmentLacksError) as lacking:
        device.engine("encoder")
    assert lacking.value.exit_code == 3
    assert str(lacking.value) == (
        "encoder.fake.fp32.engine cannot run here: no NVIDIA driver (libcuda.so.1) is installed; "
        "use --engine onnxruntime."
    )
    assert device.trt.calls == []


@pytest.mark.parametrize(
    ("method", "wrong", "log", "reason"),
    [
        ("create_execution_context", None, "it broke", f"cannot prepare {HEAD}: it broke."),
        ("execute_async_v3", False, "it broke", f"failed to run {HEAD}: it broke."),
        ("set_input_shape", False, "it broke", f"refuses 'tokens' of shape (1, 6, 256, 192) for {HEAD}: it broke."),
        ("set_tensor_address", False, "it broke", f"refuses the address of 'tokens' for {HEAD}: it broke."),
        (
            "create_execution_context",
            None,
            "Cuda Runtime (out of memory)",
            f"cannot prepare {HEAD}: Cuda Runtime (out of memory); 1024 of the GPU's 1024 MiB free; close other "
            "programs that use the GPU, or use --engine onnxruntime.",
        ),
    ],
)
def test_a_call_that_tensorrt_refuses_is_one_sentence_with_its_reason_and_what_helps(
    device: Device, method: str, wrong: Any, log: str, reason: str
) -> None:
    device.trt.fail[method], device.trt.log = wrong, log

    def attempt() -> None:
        engine = device.engine("head")
        engine.run(head_feed(engine, 1))

    with pytest.raises(FsvitEdgeError) as failed:
        attempt()
    assert failed.value.exit_code == 1
    assert str(failed.value) == f"TensorRT 10.3.0 {reason}"


def test_a_gpu_lost_during_a_run_is_one_sentence_and_the_model_still_closes(device: Device) -> None:
    with device.model() as model:
        enroll(model)
        model.predict(FRAMES[0])
        device.memory.lost = "unspecified launch failure"
        with pytest.raises(FsvitEdgeError) as failed:
            model.predict(FRAMES[0])
    assert failed.value.exit_code == 1
    assert str(failed.value) == (
        "The GPU failed during cudaStreamSynchronize: unspecified launch failure; restart the program."
    )


@pytest.mark.parametrize(("is_known", "scratch"), [(True, 3000), (False, 50_000)])
def test_scratch_memory_is_for_the_current_sizes_or_if_unknown_for_the_largest(
    device: Device, plain_head: OnnxRuntimeEngine, is_known: bool, scratch: int
) -> None:
    if not is_known:
        device.trt.fail["update_device_memory_size_for_shapes"] = 0
    with device.engine("head") as engine:
        feed = head_feed(engine, 3)
        assert_same(engine, feed, plain_head, feed)
        (context,) = device.trt.contexts
        assert context.scratch[1] == scratch


def test_a_gpu_too_small_for_the_supports_is_an_error_and_fewer_supports_still_work(tmp_path: Path) -> None:
    device = Device()
    with device.model("fp16") as model:
        enroll(model)
        wanted = model.predict(FRAMES[0])
        every = model.bank.supports("a")[0]
        device.memory.total_bytes = device.memory.allocated_bytes + 2**20
        for way in range(8):
            model.bank.add(f"many {way}", [every] * 6)
        model.save_bank(tmp_path / "bank.safetensors")
        model.load_bank(tmp_path / "bank.safetensors")
        with pytest.raises(FsvitEdgeError, match=r"^The GPU's memory is full: \d+ MiB needed, \d+ of the GPU's"):
            model.predict(FRAMES[0])
        for way in range(8):
            model.remove(f"many {way}")
        np.testing.assert_allclose(model.predict(FRAMES[0]).scores, wanted.scores, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "side", "dtype", "reason"),
    [
        ("picture", SIDE, "uint8", "has different inputs or outputs"),
        ("image", SIDE, "float32", rf"has 'image' as uint8 \(1, {SIDE}, {SIDE}, 3\), but its sidecar states float32"),
        ("image", 64, "uint8", rf"\(1, {SIDE}, {SIDE}, 3\), but its sidecar states uint8 \(1, 64, 64, 3\)"),
    ],
)
def test_a_plan_that_differs_from_its_sidecar_is_refused(
    device: Device, name: str, side: int, dtype: str, reason: str
) -> None:
    plan, record = make_plan("encoder")
    stated = replace(record, inputs=(TensorSpec(name, (1, side, side, 3), dtype),))
    with pytest.raises(ArtifactError, match=reason) as refused:
        TensorRtEngine(plan, stated, api_of(device.trt), device.memory)
    assert "fsvit-edge build-engine --engine tensorrt --force" in str(refused.value)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_closing_frees_everything_and_may_be_repeated(backend: str) -> None:
    device = Device(backend)
    head = device.engine("head")
    enrolling = OnnxRuntimeEngine(DEFAULT_BUNDLE / "enroll.onnx", "cpu", threads=1)
    model = FewShotModel(MANIFEST, {"encoder": device.engine("encoder"), "enroll": enrolling, "head": head})
    enroll(model)
    for frame in FRAMES[:4]:
        model.predict(frame)
    assert device.memory.allocated_bytes > 0
    model.close()
    model.close()
    assert device.memory.allocated_bytes == 0


def test_the_memory_closes_with_its_last_user() -> None:
    closed: list[bool] = []

    class Noticing(FakeMemory):
        def _shut_down(self) -> None:
            closed.append(True)

    device = Device()
    device.memory = Noticing()
    device.trt.memory = None  # type: ignore[assignment]  # TensorRT itself does not refer to the memory
    engines = [device.engine("encoder"), device.engine("head")]
    tensor = engines[0].upload(np.zeros(4, np.float32))
    for engine in engines:
        engine.close()
    del device, engines, engine
    assert closed == []
    del tensor
    assert closed == [True]


DIAGNOSTICS = {
    "VERSION_MISMATCH": "it was built by a different version than the installed TensorRT-RTX 1.7.1",
    "UNSUPPORTED_CC": "it was not built for the Orin (compute capability 8.7), or TensorRT-RTX 1.7.1 does not support "
    "that GPU",
    "OLD_CUDA_DRIVER": "the NVIDIA driver (CUDA 12.6) is too old; update it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old; update it with: pip install --upgrade tensorrt-rtx-cu13",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory (8192 MiB)",
    "MALFORMED_ENGINE": "it is damaged or not a plan of TensorRT-RTX 1.7.1",
    "CUDA_ERROR": "the NVIDIA driver or the CUDA runtime is not installed correctly",
    "NEW_IN_NEXT_VERSION": "TensorRT-RTX 1.7.1 reports NEW_IN_NEXT_VERSION",
}


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_each_rtx_diagnostic_has_its_own_sentence_and_nothing_is_deserialized(name: str) -> None:
    device = Device("tensorrt-rtx")
    device.trt.validity = (EngineValidity.INVALID, int(device.trt.EngineInvalidityDiagnostics[name]))
    with pytest.raises(FsvitEdgeError) as refused:
        device.engine("head")
    assert str(refused.value).startswith(f"head.fake.fp32.engine cannot run on this machine: {DIAGNOSTICS[name]}; ")
    is_machine = name in ("OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "INSUFFICIENT_GPU_MEMORY", "CUDA_ERROR")
    assert refused.value.exit_code == (3 if is_machine else 4)
    assert ("build-engine" in str(refused.value)) != is_machine
    assert device.trt.calls == ["get_engine_validity"]


def test_several_diagnostics_are_reported_together_and_so_is_a_missing_one() -> None:
    device = Device("tensorrt-rtx")
    device.trt.validity = (EngineValidity.INVALID, 1 | 4)
    with pytest.raises(ArtifactError) as refused:
        device.engine("head")
    assert DIAGNOSTICS["VERSION_MISMATCH"] in str(refused.value)
    assert DIAGNOSTICS["OLD_CUDA_DRIVER"] in str(refused.value)
    device.trt.validity = (EngineValidity.INVALID, 0)
    with pytest.raises(ArtifactError, match=r"TensorRT-RTX 1\.7\.1 gives no diagnostic: it gave no reason"):
        device.engine("head")
    device.trt.validity = (EngineValidity.SUBOPTIMAL, 0)
    device.engine("head").close()


def test_the_installed_rtx_has_the_diagnostics_and_functions_that_the_fake_has() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    assert trt.EngineInvalidityDiagnostics.__members__.keys() <= DIAGNOSTICS.keys()
    for kind, names in (
        (trt.Runtime, "engine_header_size"),
        (trt.CudaGraphStrategy, "WHOLE_GRAPH_CAPTURE DISABLED"),
        (trt.ExecutionContextAllocationStrategy, "USER_MANAGED"),
        (trt.ICudaEngine, "create_execution_context create_runtime_config num_io_tensors get_tensor_mode"),
        (trt.IExecutionContext, "set_input_shape get_tensor_shape set_device_memory set_tensor_address"),
        (trt.IExecutionContext, "update_device_memory_size_for_shapes execute_async_v3"),
        (trt.IRuntimeConfig, "set_execution_context_allocation_strategy create_runtime_cache"),
        (trt.IRuntimeConfig, "set_runtime_cache cuda_graph_strategy"),
        (trt.IRuntimeCache, "serialize deserialize"),
    ):
        for name in names.split():
            assert hasattr(kind, name), name


def start_rtx(driver: str = "580.1") -> Device:
    device = Device("tensorrt-rtx")
    device.trt.driver = driver
    with device.engine("head") as engine:
        engine.run(head_feed(engine, 1))
    return device


def kernel_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "fsvit-edge" / "kernels").glob("*.cache"))


def test_kernels_are_compiled_once_and_readable_only_by_the_user(tmp_path: Path) -> None:
    assert start_rtx().trt.compiled == 1
    (file,) = kernel_files(tmp_path)
    assert file.name == "head.0123456789abcdef.Orin.rtx1.7.1.cache"
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert start_rtx().trt.compiled == 0
    written = file.stat().st_mtime_ns
    assert start_rtx().trt.compiled == 0
    assert file.stat().st_mtime_ns == written, "what did not change is not written again"


def test_kernels_of_another_driver_are_compiled_again_and_replaced(tmp_path: Path) -> None:
    start_rtx()
    assert start_rtx(driver="590.2").trt.compiled == 1
    (file,) = kernel_files(tmp_path)
    assert file.read_bytes().startswith(b"590.2|")
    assert start_rtx(driver="590.2").trt.compiled == 0


@pytest.mark.parametrize("obstacle", ["a file in the folder's place", "a damaged cache", "no home folder"])
def test_an_unusable_kernel_cache_costs_only_time(
    obstacle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "a file in the folder's place":
        (tmp_path / "cache").write_text("")
    elif obstacle == "a damaged cache":
        start_rtx()
        kernel_files(tmp_path)[0].write_bytes(b"\0" * 10)
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")

        def fail() -> Path:
            raise RuntimeError

        monkeypatch.setattr(Path, "home", fail)
    assert start_rtx().trt.compiled == 1


def test_kernels_that_were_compiled_during_the_run_are_stored_at_the_end(tmp_path: Path) -> None:
    device = Device("tensorrt-rtx")
    with device.engine("head") as engine:
        (file,) = kernel_files(tmp_path)
        before = file.read_bytes()
        device.trt.contexts[0].how.cache.kernels += b" and more"
        engine.run(head_feed(engine, 1))
    assert file.read_bytes() == before + b" and more"


def test_rtx_runs_without_graphs_too() -> None:
    device = Device("tensorrt-rtx")
    answer = device.trt.answer

    tries: list[str] = []

    def refuse_the_first(method: str, right: Any) -> Any:
        is_refused = method == "create_execution_context" and method not in tries
        tries.append(method)
        return None if is_refused else answer(method, right)

    device.trt.answer = refuse_the_first  # type: ignore[method-assign]  # of this one alone
    with device.engine("head") as engine:
        engine.run(head_feed(engine, 1))
    (context,) = device.trt.contexts
    assert context.how.cuda_graph_strategy is device.trt.CudaGraphStrategy.DISABLED
