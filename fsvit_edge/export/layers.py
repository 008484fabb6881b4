"""What a builder returns: the built graph, and which of its matrix products and attentions compute in which precision.

TensorRT prints one line per layer, at the end of a verbose build and in its engine inspector alike. For ONNX Runtime
the layers are read from the graph that it has optimized.
"""

import re
from dataclasses import dataclass

import onnx

from fsvit_edge.runtime.engines.base import TensorSpec

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\](?:, |$)(?P<rest>.*)$")
_DTYPE = re.compile(r"Datatype: (\w+)")
_MATRIX_KINDS = ("gemm", "MatrixMultiply", "matrix_multiply")

_ORT_INT8 = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "QAttention")
_ORT_FLOAT = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "TransposeMatMul", "FusedMatMulActivation", "Attention")


@dataclass(frozen=True)
class LayerReport:
    """Number of an engine's layers by kind.

    Attributes:
        layers: All layers that compute.
        attention: Fused attentions: kernels that compute scores, softmax and result without storing the scores.
        int8_gemms: Matrix products of INT8 by INT8.
        fp16_gemms: Matrix products in FP16.
        fp32_gemms: Matrix products in FP32.
    """

    layers: int = 0
    attention: int = 0
    int8_gemms: int = 0
    fp16_gemms: int = 0
    fp32_gemms: int = 0

    @property
    def gemms(self) -> int:
        """All matrix products outside fused attention."""
        return self.int8_gemms + self.fp16_gemms + self.fp32_gemms


@dataclass(frozen=True)
class BuiltGraph:
    """A graph as a backend built it.

    Attributes:
        data: The TensorRT plan, or for a CPU the optimized ONNX graph.
        inputs: Specs of the inputs.
        outputs: Specs of the outputs.
        profile: Input -> "min", "opt" and "max" shape, for inputs with dynamic sizes in a TensorRT plan.
        layers: The layers that the backend made of the graph.
        build_s: Time of the build in seconds.
    """

    data: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: dict[str, dict[str, list[int]]]
    layers: LayerReport
    build_s: float


def report_layers(text: str) -> LayerReport:
    """Count the layers in TensorRT's text, from a build's log or an engine inspector, one layer per line."""
    counts = {"Int8": 0, "Half": 0, "BFloat16": 0, "Float": 0}
    layers = attention = 0
    for line in text.splitlines():
        match = _LAYER.match(line.strip())
        if match is None or match["kind"] in ("wait", "signal"):
            continue
        layers += 1
        name, kind = match["name"], match["kind"]
        if "mha" in name.lower():
            attention += 1
        elif kind in _MATRIX_KINDS or (kind == "runtime_fusion" and "Fc" in name):
            dtype = _DTYPE.search(match["inputs"]) or _DTYPE.search(match["rest"])
            if dtype is not None and dtype[1] in counts:
                counts[dtype[1]] += 1
    return LayerReport(layers, attention, counts["Int8"], counts["Half"] + counts["BFloat16"], counts["Float"])


def report_optimized(model: onnx.ModelProto) -> LayerReport:
    """Count the nodes of a graph that ONNX Runtime has optimized."""
    kinds = [node.op_type for node in model.graph.node if node.op_type != "Constant"]
    int8 = sum(kind in _ORT_INT8 for kind in kinds)
    attention = sum(kind in ("Attention", "MultiHeadAttention", "QAttention") for kind in kinds)
    floats = sum(kind in _ORT_FLOAT for kind in kinds)
    return LayerReport(len(kinds), attention, int8, 0, floats)
