"""FP32 graph and calibrated ranges -> INT8 linear layers: which layers, smoothing, INT8 weights, Q/DQ for TensorRT.

TensorRT gets explicit symmetric Q/DQ on both inputs of the linear layers and nowhere else: not on the products of
attention, nor on outputs, biases, norms or residuals. Each of those was measured to be slower or less accurate. (ONNX
Runtime's `quantize_static` puts Q/DQ on some of them, and ignores its own option to quantize only products with
constant weights.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from fsvit_edge.calib.convert_fp16 import FP16_MAX, FP16_MIN_NORMAL
from fsvit_edge.calib.onnx_graph import GEMMS, Graph, as_float16, matches
from fsvit_edge.runtime.errors import ArtifactError, InputError

SMOOTHING = 0.5
"""How much of an outlier moves to the weights: alpha in equation 4 of the SmoothQuant paper, and its default."""

Ranges = Mapping[str, tuple[float, float]]
"""Tensor -> lowest and highest value."""
Matrix = npt.NDArray[np.float32]
_VIEWS = ("Reshape", "Identity")


@dataclass(frozen=True)
class LinearLayer:
    """A product of an activation with a constant weight."""

    node: NodeProto  # MatMul or Gemm
    activation: str  # the input tensor, (..., in)
    weight: str  # the constant, (in, out) or (out, in)
    axis: int  # the weight's axis of outputs: 1 or 0


def linear_layers(graph: Graph) -> list[LinearLayer]:
    """Return the products whose right factor is a constant matrix, in the graph's order."""
    found = []
    for node in graph.nodes:
        if node.op_type not in GEMMS or node.input[0] in graph.constants:
            continue
        weight = graph.constants.get(node.input[1])
        switches = {attribute.name: attribute.i for attribute in node.attribute}
        if weight is not None and weight.ndim == 2 and weight.dtype.kind == "f" and not switches.get("transA"):
            found.append(LinearLayer(node, node.input[0], node.input[1], 0 if switches.get("transB") else 1))
    return found


def chosen_layers(graph: Graph, quantize: Sequence[str], keep_fp32: Sequence[str]) -> list[LinearLayer]:
    """The linear layers that match a pattern of `quantize` (empty: all) and none of `keep_fp32`.

    Raises:
        InputError: A pattern of `quantize` matches no linear layer, or no layer is left.
    """
    layers = linear_layers(graph)
    for pattern in quantize:
        if not any(matches(graph, layer.node, [pattern]) for layer in layers):
            raise InputError(
                f"--quantize {pattern!r} matches no linear layer of the encoder; layers are named after their biases, "
                "for example: --quantize '*blocks.0.attn.qkv*'."
            )
    chosen = [
        layer
        for layer in layers
        if (not quantize or matches(graph, layer.node, quantize)) and not matches(graph, layer.node, keep_fp32)
    ]
    if not chosen:
        raise InputError(
            "No linear layer is left to quantize; build with --precision fp16 or fp32, or keep fewer layers in FP32."
        )
    return chosen


def smooth(
    graph: Graph,
    layers: list[LinearLayer],
    ranges: Ranges,
    channel_max: Mapping[str, Sequence[float]],
    always: bool = False,
) -> dict[str, tuple[float, float]]:
    """Move the scale of outlier channels from activations to weights where that lowers the expected error.

    SmoothQuant (Xiao et al. 2023), section 4: channel j of a LayerNorm's weight and bias is divided by s_j, and row j
    of the linear layers that read it is multiplied by s_j. The graph computes the same function, with activations that
    fit INT8 better.

    Args:
        graph: The graph, changed in place.
        layers: The linear layers that will be quantized.
        ranges: Range of each layer's activation.
        channel_max: Activation -> largest absolute value of each channel.
        always: Smooth wherever it is possible, whatever the expected error.

    Returns:
        The ranges, with new ones for the smoothed activations.
    """
    changed = dict(ranges)
    for activation in dict.fromkeys(layer.activation for layer in layers):
        norm = _norm_before(graph, activation)
        readers = [layer for layer in layers if layer.activation == activation]
        largest = np.asarray(channel_max.get(activation, ()), np.float32)
        if norm is None or len(readers) != len(graph.readers(activation)) or not len(largest):
            continue
        turned = [(graph.constants[layer.weight].astype(np.float32), layer.axis) for layer in readers]
        weights = [weight if axis == 1 else weight.T for weight, axis in turned]  # (in, out) each
        if any(len(weight) != len(largest) for weight in weights):
            continue
        # A clipped range stays clipped by the same ratio.
        low, high = ranges[activation]
        clip = min(1.0, max(abs(low), abs(high)) / max(float(largest.max()), 1e-12))
        scale = _smoothing_scales(largest, np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0))
        before = sum(_expected_error(largest * clip, weight) for weight in weights)
        after = sum(_expected_error(largest / scale * clip, weight * scale[:, None]) for weight in weights)
        if always or after < before:
            _fold(graph, norm, readers, scale)
            bound = float((largest / scale).max()) * clip
            changed[activation] = (-bound, bound)
    return changed


def insert_qdq(graph: Graph, layers: list[LinearLayer], ranges: Ranges) -> None:
    """Quantize both inputs of linear layers: activations per tensor, weights per output, zero points 0.

    Scales are rounded to FP16 before anything is quantized with them, because the engine multiplies by FP16 scales.
    Weights are stored as INT8 with a DequantizeLinear only.
    """
    dequantized: dict[str, str] = {}
    for layer in layers:
        name = layer.activation
        if name not in dequantized:
            low, high = tensor_range(name, ranges)
            scale = graph.add_constant(f"{name}_scale", _as_scale(np.asarray(max(abs(low), abs(high)) / 127)))
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


def tensor_range(name: str, ranges: Ranges) -> tuple[float, float]:
    """A tensor's lowest and highest value.

    Raises:
        ArtifactError: The tensor has no finite range.
    """
    low, high = ranges.get(name, (np.nan, np.nan))
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ArtifactError(
            f"The calibration has no usable range for tensor {name!r}, got {low} to {high}; "
            "calibrate this bundle with: fsvit-edge calib SOURCE --bundle BUNDLE --output FILE."
        )
    return low, high


def quantize_weight(
    weight: npt.NDArray[np.floating], axis: int, largest: int = 127
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round a matrix, (in, out) or (out, in), to INT8, symmetric, with one scale per output.

    Args:
        weight: The matrix.
        axis: Its axis of outputs.
        largest: The integer that stands for an output's largest weight.

    Returns:
        The integers in the weight's shape, and the scales (out,), values that FP16 represents.
    """
    values = weight.astype(np.float32)
    scales = _as_scale(np.abs(values).max(axis=1 - axis) / largest)
    integers = np.rint(values / np.expand_dims(scales, 1 - axis))
    return np.clip(integers, -largest, largest).astype(np.int8), scales


def _as_scale(scale: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Round to FP16; a scale that would underflow becomes FP16's smallest normal number, still fine enough for INT8."""
    return as_float16(np.clip(scale, FP16_MIN_NORMAL, FP16_MAX)).astype(np.float32)


def _smoothing_scales(largest: Matrix, weight_largest: Matrix) -> Matrix:
    """Equation 4 of the paper, limited to what FP16 can represent, with a geometric mean of 1."""
    scale = np.maximum(largest, 1e-5) ** SMOOTHING / np.maximum(weight_largest, 1e-5) ** (1 - SMOOTHING)
    scale /= np.exp(np.log(scale).mean())
    return np.asarray(np.clip(scale, 1 / 64, 64), np.float32)


def _expected_error(largest: Matrix, weight: Matrix) -> float:
    """Expected squared error of the integer product, from the sizes of both quantization steps.

    The activation's step multiplies every weight, and a weight's step multiplies the activation. Only the largest
    value of each activation channel is known; a quarter of it stands for the channel's root mean square (the maximum of
    10,000 normally distributed values is about four standard deviations).
    """
    step = float(largest.max()) / 127
    weight_steps = np.abs(weight).max(axis=0) / 127
    return float(step**2 * (weight**2).sum() + (weight_steps**2).sum() * ((largest / 4) ** 2).sum()) / 12


def _norm_before(graph: Graph, name: str) -> NodeProto | None:
    """The LayerNorm that makes a tensor, if nothing else reads the tensors between them."""
    node = graph.producer.get(name)
    while node is not None and node.op_type in _VIEWS:
        if len(graph.readers(node.input[0])) != 1 or node.input[0] in graph.output_names:
            return None
        node = graph.producer.get(node.input[0])
    is_norm = node is not None and node.op_type == "LayerNormalization" and node.input[1] in graph.constants
    return node if is_norm and name not in graph.output_names else None


def _fold(graph: Graph, norm: NodeProto, layers: list[LinearLayer], scale: Matrix) -> None:
    """Divide a LayerNorm's output by a scale (channels,) and multiply the weights that read it."""
    # New constants, because the exporter stores equal constants once and other nodes may read them.
    for position in range(1, len(norm.input)):
        name = norm.input[position]
        norm.input[position] = graph.add_constant(f"{name}_smooth", graph.constants[name] / scale)
    for layer in layers:
        factor = scale[:, None] if layer.axis == 1 else scale[None, :]
        layer.node.input[1] = graph.add_constant(f"{layer.weight}_smooth", graph.constants[layer.weight] * factor)
