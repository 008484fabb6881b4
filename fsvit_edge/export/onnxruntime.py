"""An ONNX graph -> the graph that ONNX Runtime optimizes it to on this CPU, and a report of its layers."""

import tempfile
import time
from pathlib import Path

import onnx

from fsvit_edge.export.layers import BuiltGraph, report_optimized
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine


def build_for_cpu(graph: bytes, name: str) -> BuiltGraph:
    """Optimize a graph as ONNX Runtime does when it loads one, and keep the result.

    Args:
        graph: The ONNX file.
        name: encoder or head.

    Raises:
        ArtifactError: ONNX Runtime cannot load the graph.
    """
    started = time.monotonic()
    data = _optimized(graph, name, portable=True)
    layers = report_optimized(onnx.load_from_string(_optimized(graph, name, portable=False)))
    with OnnxRuntimeEngine(data, "cpu") as engine:
        return BuiltGraph(data, engine.inputs, engine.outputs, {}, layers, time.monotonic() - started)


def _optimized(graph: bytes, name: str, portable: bool) -> bytes:
    """The graph after ONNX Runtime's optimizer.

    Its last level lays tensors out for this exact CPU core. That graph is what runs, but it must not be stored: the
    portable graph of the level before is, and loading it does the rest in a moment.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if portable else levels.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return path.read_bytes()
