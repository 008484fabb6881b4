"""FP32 graph + calibrated ranges -> explicit symmetric Q/DQ on both inputs of the linear layers, and nowhere else.

Not on the products of attention, nor on outputs, biases, norms or residuals: each was measured slower or less exact
(ONNX Runtime's `quantize_static` puts some there, and ignores its own option to take only products with weights).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from fsvit_edge.calib.fp16 import LARGEST, SMALLEST_NORMAL
from fsvit_edge.calib.onnx_graph import GEMMS, Graph, as_float16, matches
from fsvit_edge.runtime.errors import ArtifactError, InputError

Ranges = Mapping[str, tuple[float, float]]
"""Tensor -> lowest and highest value."""


@dataclass(frozen=True)
class LinearLayer:
    """A product of an activation with a weight.

    Attributes:
        node: MatMul or Gemm.
        activation: Name of the tensor that comes in, (..., in).
        weight: Name of the constant.
        axis: Of the weight's outputs.
    """

    node: NodeProto
    activation: str
    weight: str
    axis: int


def linear_layers(graph: Graph) -> list[LinearLayer]:
    """The products whose right factor is a constant matrix, in the graph's order."""
    found = []
    for node in graph.nodes:
        if node.op_type not in GEMMS or node.input[0] in graph.constants:
            continue
        weight = graph.constants.get(node.input[1])
        switches = {attribute.name: attribute.i for attribute in node.attribute}
        if weight is not None and weight.ndim == 2 and weight.dtype.kind == "f" and not switches.get("transA"):
            found.append(LinearLayer(node, node.input[0], node.input[1], 0 if switches.get("transB") else 1))
    return found


def chosen_layers(graph: Graph, quantize: tuple[str, ...], keep_fp32: tuple[str, ...]) -> list[LinearLayer]:
    """The linear layers to quantize: those that a pattern names, or all, without those that are kept in FP32.

    Raises:
        InputError: A pattern names no linear layer, or none is left.
    """
    layers = linear_layers(graph)
    for pattern in quantize:
        if not any(matches(graph, layer.node, [pattern]) for layer in layers):
            raise InputError(
                f"--quantize {pattern!r} matches no linear layer of the encoder; they are called after their biases, "
                "as in --quantize '*blocks.0.attn.qkv*'."
            )
    chosen = [
        layer
        for layer in layers
        if (not quantize or matches(graph, layer.node, quantize)) and not matches(graph, layer.node, keep_fp32)
    ]
    if not chosen:
        raise InputError("No linear layer is left to quantize; build with --precision fp16 or fp32, or name fewer.")
    return chosen


def insert_qdq(graph: Graph, layers: list[LinearLayer], ranges: Ranges) -> None:
    """Quantize both inputs of linear layers: activations per tensor, weights per output, all with zero point 0.

    Scales are rounded to FP16 before anything is quantized with them, because that is what the engine will multiply by.
    The weights are stored as int8 with a DequantizeLinear alone.

    Raises:
        ArtifactError: There is no range for an activation, or it is not finite.
    """
    dequantized: dict[str, str] = {}
    for layer in layers:
        name = layer.activation
        if name not in dequantized:
            scale = graph.add_constant(f"{name}_scale", activation_scale(name, ranges))
            zero = graph.add_constant(f"{name}_zero", np.zeros((), np.int8))
            quantized = graph.add_node("QuantizeLinear", [name, scale, zero], f"{name}_quantized")
            dequantized[name] = graph.add_node("DequantizeLinear", [quantized, scale, zero], f"{name}_dequantized")
        if layer.weight not in dequantized:
            values, scales = quantize_weight(graph.constants[layer.weight], layer.axis)
            stored = graph.add_constant(f"{layer.weight}_int8", values)
            factor = graph.add_constant(f"{layer.weight}_scale", scales)
            name_hint = f"{layer.weight}_dequantized"
            dequantized[layer.weight] = graph.add_node("DequantizeLinear", [stored, factor], name_hint, axis=layer.axis)
        layer.node.input[0] = dequantized[name]
        layer.node.input[1] = dequantized[layer.weight]
    graph.index()


def activation_scale(name: str, ranges: Ranges) -> npt.NDArray[np.float32]:
    """The symmetric scale of a tensor, a number of FP16.

    Raises:
        ArtifactError: The ranges lack it or are not finite.
    """
    low, high = tensor_range(name, ranges)
    return _as_scale(np.asarray(max(abs(low), abs(high)) / 127))


def tensor_range(name: str, ranges: Ranges) -> tuple[float, float]:
    """Look up a range.

    Raises:
        ArtifactError: The ranges lack it or are not finite.
    """
    low, high = ranges.get(name, (np.nan, np.nan))
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ArtifactError(
            f"The calibration has no usable range for tensor {name!r}, got {low} to {high}; "
            "make a calibration of this bundle with: fsvit-edge calib SOURCE --bundle BUNDLE --output FILE."
        )
    return low, high


def quantize_weight(
    weight: npt.NDArray[np.floating], axis: int, largest: int = 127
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round a matrix to int8, symmetric, with a scale for each output.

    Args:
        weight: (in, out) or (out, in).
        axis: Of the outputs.
        largest: Integer that an output's largest weight becomes.

    Returns:
        The integers, and the scales (out,), numbers of FP16.
    """
    values = weight.astype(np.float32)
    scales = _as_scale(np.abs(values).max(axis=1 - axis) / largest)
    integers = np.rint(values / np.expand_dims(scales, 1 - axis))
    return np.clip(integers, -largest, largest).astype(np.int8), scales


def _as_scale(scale: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Round to FP16; what would underflow becomes its smallest normal number, at which int8 is still fine enough."""
    return as_float16(np.clip(scale, SMALLEST_NORMAL, LARGEST)).astype(np.float32)
