"""A plan of the installed TensorRT, built and run on the GPU of this machine; without a GPU it is only built."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import make_plan

from fsvit_edge.runtime.engines.base import TensorSpec
from fsvit_edge.runtime.engines.cuda_packages import MEMORY_PACKAGES, open_device_memory
from fsvit_edge.runtime.engines.files import EngineRecord
from fsvit_edge.runtime.engines.tensorrt import TensorRtEngine
from fsvit_edge.runtime.engines.tensorrt_api import TensorRT, installed_backends, open_tensorrt

WIDTH, MOST = 8, 6
HERE = "here"


def build(api: TensorRT, target: str) -> tuple[bytes, EngineRecord]:
    """double = 2 * max(source, 0) in FP16, for 1 to MOST rows."""
    trt, log = api.trt, api.log()
    builder = api.builder(log)
    network = api.network(builder, log)
    source = network.add_input("source", trt.float16, (-1, WIDTH))
    positive = network.add_activation(source, trt.ActivationType.RELU).get_output(0)
    double = network.add_elementwise(positive, positive, trt.ElementWiseOperation.SUM).get_output(0)
    double.name = "double"
    network.mark_output(double)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("source", (1, WIDTH), (2, WIDTH), (MOST, WIDTH))
    config.add_optimization_profile(profile)
    if target != HERE:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    plan = api.serialized(builder, network, config, log, "test")
    _, record = make_plan("head")
    rows = {"shape": ("supports", WIDTH), "dtype": "float16"}
    return plan, replace(
        record,
        backend=api.backend,
        inputs=(TensorSpec("source", **rows),),
        outputs=(TensorSpec("double", **rows),),
        limits={"supports": MOST},
        file=f"double.{api.backend}.engine",
    )


def test_the_plan_can_be_built_without_a_gpu() -> None:
    pytest.importorskip("tensorrt_rtx")
    plan, record = build(open_tensorrt("tensorrt-rtx"), "SM86")
    assert len(plan) > 1000
    assert record.limits == {"supports": MOST}


@pytest.mark.requires_cuda
@pytest.mark.parametrize("memory_backend", MEMORY_PACKAGES)
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_runs_on_this_gpu_with_every_shape_and_as_a_graph(
    backend: str, memory_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend not in installed_backends():
        pytest.skip(f"{backend} is not installed")
    pytest.importorskip("pycuda.driver" if memory_backend == "pycuda" else "cuda.bindings.runtime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    api = open_tensorrt(backend)
    plan, record = build(api, HERE)
    memory = open_device_memory(memory_backend)
    rng = np.random.default_rng(0)
    with TensorRtEngine(plan, record, api, memory) as engine:
        for _ in range(2):
            for rows in (1, MOST, 3):
                for _ in range(4):
                    source: Any = rng.standard_normal((rows, WIDTH)).astype(np.float16)
                    for feed in (source, engine.upload(source)):
                        got = engine.run({"source": feed})["double"].numpy()
                        np.testing.assert_array_equal(got, 2 * np.maximum(source, 0))
    memory.close()
