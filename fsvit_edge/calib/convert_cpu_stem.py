"""A convolutional stem in INT8 for ONNX Runtime on a CPU: chains of integer convolutions, channels last.

ONNX Runtime lays FP32 convolutions out in blocks of channels and integer ones with channels last, so every border costs
passes over a map. Therefore whole chains of inverted residuals are converted. What their activations bound is uint8.
Their narrow ends and the sums of these are few values, which stay floating point: as uint8, sums lose most of all.

The first layers stay in FP32: of few channels on large maps, they are no faster in INT8 and lose the most (cst-nano:
the first three took 1.39 ms in INT8 and 0.88 in FP32, and made 57 % of the squared error of all weights; AMD EPYC, one
thread).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper

from fsvit_edge.calib.convert_int8 import Ranges, tensor_range
from fsvit_edge.calib.onnx_graph import ORT_DOMAIN, Graph, matches

_ACTIVATIONS = ("Clip", "Relu")
_AFFINE = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
_PER_CHANNEL = (*_AFFINE, "Cast", "Transpose")
_PIXEL_TOLERANCE = 1e-3
"""How far, in pixel values, the value that becomes 0 may be from a whole number."""
_BIAS_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class StemLayer:
    """A convolution with its activation, one without that is a product per pixel, or a sum of the latter."""

    node: NodeProto  # Conv or Add
    activation: NodeProto | None  # Clip or Relu

    @property
    def output(self) -> str:
        """The tensor after the activation, (B, C, h, w)."""
        return str((self.activation or self.node).output[0])


@dataclass(frozen=True)
class _Integers:
    """A tensor as uint8, (B, h, w, C)."""

    name: str
    scale: float
    scale_name: str
    zero_name: str

    @property
    def inputs(self) -> tuple[str, str, str]:
        return self.name, self.scale_name, self.zero_name


def stem_layers(graph: Graph, keep_fp32: Sequence[str] = ()) -> list[StemLayer]:
    """The convolutions and sums on the way to the tokens that are converted, in the graph's order.

    A chain begins behind the first convolution without an activation, an inverted residual's narrow end, and each of
    its convolutions passes its result to another one, possibly by a sum. So a ViT's patch embedding is none of them,
    nor is what turns the maps of a stem into tokens.
    """
    upstream = {node.name for node in _makers(graph, "tokens")}
    found: dict[str, StemLayer] = {}
    narrow = set[str]()  # results of convolutions without an activation, and their sums
    for node in graph.nodes:
        if node.name not in upstream or not _reaches_convolution(graph, node):
            continue
        is_kept = matches(graph, node, keep_fp32)
        if node.op_type == "Add" and narrow.issuperset(node.input):
            narrow.add(node.output[0])
            if not is_kept and any(name in found for name in node.input):
                found[node.output[0]] = StemLayer(node, None)
        elif _is_convolution(graph, node):
            layer = StemLayer(node, _activation(graph, node))
            if layer.activation is None and _is_product(graph, node):
                narrow.add(layer.output)
            elif layer.activation is None:
                continue
            if not is_kept and (node.input[0] in found or node.input[0] in narrow):
                found[layer.output] = layer
    return list(found.values())


def stem_tensors(graph: Graph) -> dict[str, bool]:
    """The tensors (B, C, h, w) whose ranges and means `quantize_stem` needs, and whether an activation bounds them."""
    layers = stem_layers(graph)
    bounded = {layer.output for layer in layers if layer.activation is not None}
    return {layer.node.input[0]: layer.node.input[0] in bounded for layer in layers if layer.node.op_type == "Conv"}


def quantize_stem(graph: Graph, layers: list[StemLayer], ranges: Ranges, means: Mapping[str, Sequence[float]]) -> None:
    """Replace the layers by uint8 x int8 convolutions, weights with one scale per output channel.

    Rounding a weight shifts a channel's mean, because what comes out of an activation is never negative; the bias
    takes the expected shift back (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", section 4.2, with means from calibration). On cst-nano it makes the error of all weights 2.8 times
    smaller.
    """
    _shorten_normalization(graph)
    integers: dict[str, _Integers] = {}
    floats: dict[str, str] = {}  # tensor -> the same with channels last

    def as_floats(name: str) -> str:
        if name not in floats:
            if name in integers:
                floats[name] = graph.add_node("DequantizeLinear", integers[name].inputs, f"{name}_floats")
            else:
                floats[name] = graph.add_node("Transpose", [name], f"{name}_last", perm=[0, 2, 3, 1])
        return floats[name]

    for layer in layers:
        node, source = layer.node, layer.node.input[0]
        if node.op_type == "Add":
            floats[layer.output] = graph.add_node("Add", [as_floats(name) for name in node.input], f"{node.name}_last")
            continue
        if source not in integers:
            last, rounded = as_floats(source), _stored(graph, source, ranges)
            graph.add_node("QuantizeLinear", [last, *rounded.inputs[1:]], f"{source}_rounded", output=rounded.name)
            integers[source] = rounded
        weight = _Weight(graph, node, np.asarray(means[source]))
        if layer.activation is None:
            floats[layer.output] = _add_product(graph, node, weight, integers[source])
        else:
            integers[layer.output] = _stored(graph, layer.output, ranges)
            _add_convolution(graph, node, weight, integers[source], integers[layer.output])
    for layer in layers:
        graph.remove([one for one in (layer.node, layer.activation) if one is not None])
        last = as_floats(layer.output)
        graph.add_node("Transpose", [last], layer.output, output=layer.output, perm=[0, 3, 1, 2])
    graph.tidy()  # also removes the conversions that nothing reads


class _Weight:
    """A convolution's weight (out, in / group, h, w) in INT8, and its bias, corrected for the rounding."""

    def __init__(self, graph: Graph, node: NodeProto, means: npt.NDArray[np.float64]) -> None:
        exact = graph.constants[node.input[1]].astype(np.float64)
        self.scales = np.maximum(np.abs(exact).max(axis=(1, 2, 3)) / 127, 1e-9).astype(np.float32)
        self.integers = np.clip(np.rint(exact / self.scales[:, None, None, None]), -127, 127).astype(np.int8)
        added = (self.integers * self.scales.astype(np.float64)[:, None, None, None] - exact).sum(axis=(2, 3))
        of_group = means.reshape(-1, 1, exact.shape[1])  # group, 1, in / group
        shift = (added.reshape(len(of_group), -1, exact.shape[1]) * of_group).sum(axis=2).reshape(-1)
        bias = graph.constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(exact))
        self.bias = bias - shift


def _add_convolution(graph: Graph, node: NodeProto, weight: _Weight, source: _Integers, result: _Integers) -> None:
    whole = np.rint(weight.bias / (weight.scales.astype(np.float64) * source.scale))
    inputs = [
        *source.inputs,
        graph.add_constant(f"{node.input[1]}_int8", weight.integers),
        graph.add_constant(f"{node.input[1]}_scale", weight.scales),
        graph.add_constant(f"{node.input[1]}_zero", np.zeros(len(whole), np.int8)),
        *result.inputs[1:],
        graph.add_constant(f"{node.name}_bias", np.clip(whole, -_BIAS_LIMIT, _BIAS_LIMIT).astype(np.int32)),
    ]
    attributes = _attributes(node)
    kept = {name: attributes[name] for name in ("group", "kernel_shape", "pads", "strides") if name in attributes}
    graph.add_node("QLinearConv", inputs, node.name, output=result.name, domain=ORT_DOMAIN, channels_last=1, **kept)


def _add_product(graph: Graph, node: NodeProto, weight: _Weight, source: _Integers) -> str:
    """A convolution that is a product per pixel, with its result in floating point."""
    inputs = [
        source.name,
        graph.add_constant(f"{node.input[1]}_int8", np.ascontiguousarray(weight.integers[:, :, 0, 0].T)),
        source.scale_name,
        graph.add_constant(f"{node.input[1]}_scale", weight.scales),
        source.zero_name,
        graph.add_constant(f"{node.input[1]}_zero", np.zeros(len(weight.scales), np.int8)),
        graph.add_constant(f"{node.name}_bias", weight.bias.astype(np.float32)),
    ]
    return graph.add_node("MatMulIntegerToFloat", inputs, f"{node.name}_last", domain=ORT_DOMAIN)


def _stored(graph: Graph, name: str, ranges: Ranges) -> _Integers:
    """A new tensor of integers that represents a tensor's range, and 0 exactly, because convolutions pad with it."""
    low, high = tensor_range(name, ranges)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max(high - low, 1e-9) / 255)
    zero = np.uint8(np.clip(round(-low / float(scale)), 0, 255))
    scale_name = graph.add_constant(f"{name}_scale", np.asarray(scale))
    zero_name = graph.add_constant(f"{name}_zero", np.asarray(zero))
    return _Integers(graph.new_name(f"{name}_integers"), float(scale), scale_name, zero_name)


def _shorten_normalization(graph: Graph) -> None:
    """Make one operator of a picture's normalization if it is a multiple of (pixel - whole number).

    That holds for EfficientNet-Lite's, (pixel - 127) / 128. As six operators on floating point, with ImageNet's means
    and deviations put in and taken out again, it took 5 % of cst-nano's FP32 encoder.
    """
    image = graph.graph.input[0]
    for node in graph.nodes:
        line = _normalization(graph, node.input[0], image.name) if node.op_type == "Conv" else None
        if line is None or image.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        scale = graph.add_constant("pixel_scale", np.asarray(line[0], np.float32))
        zero = graph.add_constant("pixel_zero", np.asarray(line[1], np.uint8))
        floats = graph.add_node("DequantizeLinear", [image.name, scale, zero], "pixels")
        node.input[0] = graph.add_node("Transpose", [floats], "picture", perm=[0, 3, 1, 2])
    graph.tidy()


def _normalization(graph: Graph, name: str, image: str) -> tuple[float, int] | None:
    """Scale and zero point with which a tensor (B, C, h, w) is computed from the picture's pixels (B, h, w, C)."""
    chain: list[NodeProto] = []
    while name != image:
        node = graph.producer.get(name)
        factors = [] if node is None else node.input[1:]
        if node is None or node.op_type not in _PER_CHANNEL or any(one not in graph.constants for one in factors):
            return None
        chain.append(node)
        name = node.input[0]
    values: npt.NDArray[np.float64] = np.repeat(np.arange(256.0).reshape(1, 256, 1, 1), 3, axis=3)  # B, h, w, C
    for node in reversed(chain):
        if node.op_type == "Transpose":
            values = values.transpose(helper.get_attribute_value(node.attribute[0]))
        elif node.op_type in _AFFINE:
            values = _AFFINE[node.op_type](values, graph.constants[node.input[1]].astype(np.float64))
    if values.shape != (1, 3, 256, 1):
        return None
    first, last = values[0, :, 0, 0], values[0, :, 255, 0]
    steps = (last - first) / 255
    zeros = -first / steps
    zero = round(float(zeros.mean()))
    is_one_line = np.ptp(steps) <= 1e-5 * steps.mean() and np.abs(zeros - zero).max() <= _PIXEL_TOLERANCE
    return (float(steps.mean()), zero) if is_one_line and 0 <= zero <= 255 else None


def _is_convolution(graph: Graph, node: NodeProto) -> bool:
    attributes = _attributes(node)
    return (
        node.op_type == "Conv"
        and all(name in graph.constants for name in node.input[1:])
        and graph.constants[node.input[1]].ndim == 4
        and set(attributes.get("dilations", [1])) == {1}
        and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
    )


def _is_product(graph: Graph, node: NodeProto) -> bool:
    """Whether a convolution multiplies each pixel's channels by one matrix."""
    attributes = _attributes(node)
    return (
        graph.constants[node.input[1]].shape[2:] == (1, 1)
        and attributes.get("group", 1) == 1
        and set(attributes.get("strides", [1])) == {1}
        and set(attributes.get("pads", [0])) == {0}
    )


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _activation(graph: Graph, node: NodeProto) -> NodeProto | None:
    """The Clip from 0 or Relu that alone reads a convolution: a range of integers that starts at 0 does its work."""
    readers = graph.readers(node.output[0])
    if len(readers) != 1 or readers[0].op_type not in _ACTIVATIONS or node.output[0] in graph.output_names:
        return None
    low = graph.constants.get(readers[0].input[1]) if readers[0].op_type == "Clip" else np.zeros(())
    return readers[0] if low is not None and float(low) == 0 else None


def _reaches_convolution(graph: Graph, node: NodeProto) -> bool:
    """Whether a convolution reads a node's result, at most an activation and sums later."""
    return any(
        reader.op_type == "Conv" or (reader.op_type in ("Add", *_ACTIVATIONS) and _reaches_convolution(graph, reader))
        for reader in graph.readers(node.output[0])
    )


def _makers(graph: Graph, output: str) -> Iterator[NodeProto]:
    """The nodes that a tensor depends on."""
    seen, stack = set[str](), [output]
    while stack:
        node = graph.producer.get(stack.pop())
        if node is not None and node.name not in seen:
            seen.add(node.name)
            stack.extend(node.input)
            yield node
