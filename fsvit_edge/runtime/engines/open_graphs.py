"""Open a bundle's graphs, or the engines that were built from them. A graph that fails to open closes the others."""

from contextlib import ExitStack

from fsvit_edge.runtime.bundle import OBJECTNESS, Bundle
from fsvit_edge.runtime.engines.base import Engine
from fsvit_edge.runtime.engines.memory.choose import open_device_memory
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.engines.store.files import load_engine
from fsvit_edge.runtime.engines.store.sets import EngineSet
from fsvit_edge.runtime.engines.tensorrt import TensorRtEngine
from fsvit_edge.runtime.engines.tensorrt_api import open_tensorrt
from fsvit_edge.runtime.errors import ArtifactError

Engines = dict[str, Engine]
"""Open engines by graph: encoder, enroll, head, and objectness if the bundle has it."""


def open_bundle_graphs(bundle: Bundle, provider: str, threads: int | None) -> Engines:
    """Open the bundle's own FP32 graphs in ONNX Runtime.

    Raises:
        EnvironmentLacksError: The provider is not installed or finds no device.
        ArtifactError: A graph cannot be loaded, or differs from what bundle.json states.
    """
    manifest = bundle.manifest
    engines: Engines = {}
    with ExitStack() as stack:
        for name, info in manifest.graphs.items():
            engine = stack.enter_context(OnnxRuntimeEngine(bundle.graphs[name], provider, threads))
            if (engine.inputs, engine.outputs) != (info.inputs, info.outputs):
                raise ArtifactError(f"The inputs or outputs of {bundle.path / info.file} differ from bundle.json.")
            engines[name] = engine
        stack.pop_all()
    return engines


def open_cpu_engines(bundle: Bundle, engine_set: EngineSet, threads: int | None) -> Engines:
    """Open ONNX graphs that `build-engine` made for the CPU.

    Raises:
        ArtifactError: A graph is damaged, or differs from what its sidecar states.
    """
    files = {
        "encoder": (engine_set.encoder, load_engine(*engine_set.encoder)),
        "head": (engine_set.head, load_engine(*engine_set.head)),
    }
    engines: Engines = {}
    with ExitStack() as stack:
        for name, ((path, record), graph) in files.items():
            engine = stack.enter_context(OnnxRuntimeEngine(graph, "cpu", threads))
            if (engine.inputs, engine.outputs) != (record.inputs, record.outputs):
                raise ArtifactError(f"The inputs or outputs of {path} differ from its sidecar.")
            engines[name] = engine
        engines |= _open_fp32_graphs(bundle, threads, stack)
        stack.pop_all()
    return engines


def open_plans(bundle: Bundle, engine_set: EngineSet, threads: int | None) -> Engines:
    """Open plans of TensorRT or TensorRT-RTX, encoder and head in the same GPU memory.

    Raises:
        EnvironmentLacksError: A package, a GPU or a recent enough driver is missing.
        ArtifactError: A plan is damaged, or made for another TensorRT or GPU.
        FsvitEdgeError: The GPU's memory is full.
    """
    encoder_plan, head_plan = load_engine(*engine_set.encoder), load_engine(*engine_set.head)
    api = open_tensorrt(engine_set.record.backend)
    engines: Engines = {}
    with ExitStack() as stack:
        memory = open_device_memory()  # closes when no engine uses it any more
        engines["encoder"] = stack.enter_context(TensorRtEngine(encoder_plan, engine_set.encoder.record, api, memory))
        engines["head"] = stack.enter_context(TensorRtEngine(head_plan, engine_set.head.record, api, memory))
        engines |= _open_fp32_graphs(bundle, threads, stack)
        stack.pop_all()
    return engines


def _open_fp32_graphs(bundle: Bundle, threads: int | None, stack: ExitStack) -> Engines:
    """The graphs that no engine is built from: they run once per enrollment or per frame, always in FP32 on the CPU."""
    return {
        name: stack.enter_context(OnnxRuntimeEngine(bundle.graphs[name], "cpu", threads))
        for name in ("enroll", OBJECTNESS)
        if name in bundle.graphs
    }
