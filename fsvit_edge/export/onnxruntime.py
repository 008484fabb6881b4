"""An ONNX graph -> the graph that ONNX Runtime makes of it for this CPU, and a report of its layers."""

import os
import time

import onnx

from fsvit_edge.export.built_graph import BuiltGraph, LayerReport
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine, import_onnxruntime
from fsvit_edge.runtime.storage import temporary_folder

_INT8 = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "QAttention")
_FLOAT = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "TransposeMatMul", "FusedMatMulActivation", "Attention")


def build_for_cpu(graph: bytes, name: str) -> BuiltGraph:
    """Optimize a graph (encoder or head) as ONNX Runtime does when it loads one, and keep the result."""
    started = time.monotonic()
    data = _optimized(graph, name, portable=True)
    layers = report_optimized(onnx.load_from_string(_optimized(graph, name, portable=False)))
    with OnnxRuntimeEngine(data, "cpu") as engine:
        return BuiltGraph(data, engine.inputs, engine.outputs, {}, layers, time.monotonic() - started)


def report_optimized(model: onnx.ModelProto) -> LayerReport:
    """Count the nodes of a graph that ONNX Runtime has optimized."""
    kinds = [node.op_type for node in model.graph.node if node.op_type != "Constant"]
    int8 = sum(kind in _INT8 for kind in kinds)
    attention = sum(kind in ("Attention", "MultiHeadAttention", "QAttention") for kind in kinds)
    return LayerReport(len(kinds), attention, int8, 0, sum(kind in _FLOAT for kind in kinds))


def _optimized(graph: bytes, name: str, portable: bool) -> bytes:
    """The graph after ONNX Runtime's optimizer.

    Its last level lays tensors out for this exact CPU core. That graph is what runs, but it must not be stored: the
    portable graph of the level before is, and loading it does the rest in a moment.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if portable else levels.ORT_ENABLE_ALL
    with temporary_folder() as folder:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            # By its descriptor: ONNX Runtime takes no name that is not UTF-8, as that of TMPDIR may be.
            options.optimized_model_filepath = f"/proc/self/fd/{descriptor}/{name}.onnx"
            ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        finally:
            os.close(descriptor)
        return (folder / f"{name}.onnx").read_bytes()
