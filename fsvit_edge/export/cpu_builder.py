"""An ONNX graph -> the graph that ONNX Runtime makes of it on this CPU, with what has become of its layers."""

import tempfile
import time
from pathlib import Path

import onnx

from fsvit_edge.export.layers import report_optimized
from fsvit_edge.export.plan_builder import BuiltGraph
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine


def build_for_cpu(graph: bytes, name: str) -> BuiltGraph:
    """Optimize a graph as ONNX Runtime does when it loads one, and keep the result.

    Args:
        graph: ONNX.
        name: What the graph is called: encoder, head.

    Raises:
        ArtifactError: ONNX Runtime cannot load it.
    """
    started = time.monotonic()
    data = _optimized(graph, name, reloadable=True)
    layers = report_optimized(onnx.load_from_string(_optimized(graph, name, reloadable=False)))
    with OnnxRuntimeEngine(data, "cpu") as engine:
        return BuiltGraph(data, engine.inputs, engine.outputs, {}, layers, time.monotonic() - started)


def _optimized(graph: bytes, name: str, reloadable: bool) -> bytes:
    """What ONNX Runtime's optimizer makes of a graph.

    Its last level lays tensors out for this very core; such a graph is what runs, but is not to be kept: loading it
    again takes what the level before leaves and does the rest in a moment.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if reloadable else levels.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return path.read_bytes()
