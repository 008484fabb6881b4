from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from choosing import SPOILT, chosen, pretend, refusal
from engine_records import GPU, MACHINE, write_set
from fake_engine import FakeEngine

from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.engines import choose, open_graphs
from fsvit_edge.runtime.engines.files import EngineRecord
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError


class Opened(list[str]):
    """Which plans were deserialized; those whose names start with a key of `refuse` fail with its error."""

    def __init__(self) -> None:
        self.refuse: dict[str, FsvitEdgeError] = {}
        self.closed: list[str] = []


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """A machine with a GPU whose TensorRT only notes what it is given to deserialize."""
    pretend(monkeypatch, MACHINE)
    opened = Opened()

    class Plan(FakeEngine):
        def __init__(self, plan: bytes, record: EngineRecord, api: object, memory: object) -> None:
            assert (len(plan), api, memory) == (record.size_bytes, "api", "memory")
            opened.append(record.file)
            for start, error in opened.refuse.items():
                if record.file.startswith(start):
                    raise error
            super().__init__(record.inputs, record.outputs, lambda _: {})

        def close(self) -> None:
            opened.closed.append("a plan")

    monkeypatch.setattr(open_graphs, "TensorRtEngine", Plan)
    monkeypatch.setattr(open_graphs, "open_tensorrt", lambda _: "api")
    monkeypatch.setattr(open_graphs, "open_device_memory", lambda: "memory")
    return opened


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_that_fits_runs(bundle: Bundle, on_gpu: Opened, backend: str) -> None:
    write_set(bundle.path, backend, "fp16")
    for engine in ("auto", backend):
        on_gpu.clear()
        choice = chosen(bundle, engine)
        assert (choice.engine, choice.precision, choice.notes) == (backend, "fp16", ())
        assert [name.split(".")[0] for name in on_gpu] == ["encoder", "head"]
    assert chosen(bundle, "onnxruntime").engine == "onnxruntime"


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ({"fp32": 9.0, "fp16": 3.0, "int8": 2.0}, "int8"),
        ({"fp32": 9.0, "fp16": 3.0, "int8": 4.0}, "fp16"),
        ({"fp32": 9.0, "fp16": None, "int8": None}, "fp32"),
        ({"fp32": None, "fp16": None, "int8": None}, "fp16"),
        ({"fp32": None, "int8": None}, "fp32"),
    ],
)
def test_the_plan_that_measured_fastest_runs_and_int8_is_not_assumed_faster(
    bundle: Bundle, on_gpu: Opened, times: dict[str, float | None], best: str
) -> None:
    for precision, latency in times.items():
        write_set(bundle.path, "tensorrt", precision, latency_ms=latency)
    assert chosen(bundle).precision == best
    assert len(on_gpu) == 2
    for precision in times:
        assert chosen(bundle, "auto", precision).precision == precision


@pytest.mark.parametrize(("spoil", "reason"), SPOILT)
@pytest.mark.parametrize("graph", ["encoder", "head"])
def test_a_damaged_or_unfit_plan_is_never_deserialized(
    bundle: Bundle, on_gpu: Opened, spoil: Callable[[Path], Any], reason: str, graph: str
) -> None:
    paths = write_set(bundle.path, "tensorrt", "fp16")
    assert chosen(bundle).engine == "tensorrt"
    assert len(on_gpu) == 2  # the control: the recorder records
    on_gpu.clear()
    spoil(paths[graph])
    choice = chosen(bundle)
    assert choice.engine == "onnxruntime"
    assert any(reason.format(graph=graph, bundle=bundle.path) in note for note in choice.notes)
    assert reason.format(graph=graph, bundle=bundle.path) in refusal(ArtifactError, bundle, "tensorrt")
    assert on_gpu == []


def test_plans_for_another_gpu_are_refused_if_named_and_passed_over_by_auto(
    bundle: Bundle, on_gpu: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(bundle.path, "tensorrt", "fp16")
    write_set(bundle.path, "tensorrt-rtx", "fp16", targets=("sm89",))
    pretend(monkeypatch, replace(MACHINE, gpu=replace(GPU, name="NVIDIA L40")))
    choice = chosen(bundle)
    assert (choice.engine, choice.notes) == ("tensorrt-rtx", ())
    assert "was built for NVIDIA L4 and fits no other GPU, but this is NVIDIA L40" in refusal(
        ArtifactError, bundle, "tensorrt"
    )
    assert all(".rtx" in name for name in on_gpu)


@pytest.mark.parametrize(
    "error", [EnvironmentLacksError("No pycuda."), ArtifactError("Refused."), FsvitEdgeError("Full.")]
)
@pytest.mark.parametrize("start", ["encoder", "head"])
def test_a_plan_that_fails_to_open_is_reported_and_closed(
    bundle: Bundle, on_gpu: Opened, error: FsvitEdgeError, start: str
) -> None:
    write_set(bundle.path, "tensorrt", "fp16")
    on_gpu.refuse[start] = error
    choice = chosen(bundle)
    assert (choice.engine, choice.notes) == ("onnxruntime", (str(error),))
    assert refusal(type(error), bundle, "tensorrt") == str(error)
    assert len(on_gpu.closed) == (0 if start == "encoder" else 2)


def test_the_next_best_plan_runs_if_the_best_fails_to_open(bundle: Bundle, on_gpu: Opened) -> None:
    write_set(bundle.path, "tensorrt", "int8", latency_ms=1.0)
    write_set(bundle.path, "tensorrt", "fp16", latency_ms=2.0)
    on_gpu.refuse["encoder.NVIDIA-L4.sm89.trt10.13.0.int8"] = FsvitEdgeError("The GPU's memory is full.")
    choice = chosen(bundle)
    assert (choice.precision, choice.notes) == ("fp16", ("The GPU's memory is full.",))


def test_the_error_for_a_named_engine_has_the_command_that_builds_it(bundle: Bundle, on_gpu: Opened) -> None:
    command = f"build one with: fsvit-edge build-engine {bundle.path} --engine tensorrt"
    text = refusal(ArtifactError, bundle, "tensorrt")
    assert text == f"No engine for TensorRT has been built from cst-nano; {command}."
    text = refusal(ArtifactError, bundle, "tensorrt", "int8")
    assert text == f"No INT8 engine for TensorRT has been built from cst-nano; {command} --precision int8."
    text = refusal(ArtifactError, bundle, "auto", "fp16")
    assert text.endswith(f"build one with: fsvit-edge build-engine {bundle.path} --precision fp16.")
    assert on_gpu == []


def test_the_error_for_a_missing_package_is_that_of_tensorrt(
    bundle: Bundle, on_gpu: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(bundle.path, "tensorrt", "fp16")
    monkeypatch.setattr(choose, "installed_version", lambda _: None)

    def missing(backend: str) -> None:
        raise EnvironmentLacksError(f"{backend} is not installed.")

    monkeypatch.setattr(choose, "open_tensorrt", missing)
    assert refusal(EnvironmentLacksError, bundle, "tensorrt") == "tensorrt is not installed."
    assert on_gpu == []


def test_onnx_runtime_on_cuda_comes_after_plans_and_before_the_cpu(
    bundle: Bundle, on_gpu: Opened, parsed: list[tuple[Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: installed)
    write_set(bundle.path)  # INT8 for the CPU
    choice = chosen(bundle)
    assert (choice.engine, choice.precision) == ("onnxruntime-cuda", "fp32")
    assert choice.description.endswith("on CUDA")
    assert [provider for _, provider in parsed] == ["cuda"] * 3
    assert chosen(bundle, "auto", "int8").engine == "onnxruntime"
    write_set(bundle.path, "tensorrt", "fp16")
    parsed.clear()
    assert chosen(bundle).engine == "tensorrt"
    assert [provider for _, provider in parsed] == ["cpu"]  # enrollment
    assert chosen(bundle, "onnxruntime-cuda").engine == "onnxruntime-cuda"
    assert len(on_gpu) == 2
