"""The head's decoder of outlines in INT8, for x86 processors with VNNI.

Each convolution becomes one integer product: the 9 neighbors of a place side by side, in 8 bits, times the weights. The
range of what comes in is taken at run time, so no calibration is needed, and a probability changes by about 1e-3.
ONNX Runtime's QLinearConv takes 0.8 of the time, but it needs the range of what goes out, too.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper, numpy_helper

from fsvit_edge.calib.convert_int8 import quantize_weight
from fsvit_edge.calib.onnx_graph import ORT_DOMAIN

_PLACES = [divmod(number, 3) for number in range(9)]
"""Row and column of each weight of a 3 x 3 kernel."""


def int8_outline_model(outline: ModelProto) -> ModelProto:
    """Return the graph `outline`, made of four convolutions with an enlargement between the second and third, in INT8.

    The last one has two outputs, of which the softmax needs the difference: it stays in FP32, with one.
    """
    builder = _Builder(outline)
    tokens, foreground = outline.graph.input[0], outline.graph.output[0]
    _, num_features, num_tokens = (axis.dim_value for axis in tokens.type.tensor_type.shape.dim)
    side = math.isqrt(num_tokens)
    first, second, third, last = (node for node in outline.graph.node if node.op_type == "Conv")

    rows = builder.add("Transpose", [tokens.name], perm=[0, 2, 1])
    x = builder.reshape(rows, side, side, num_features)
    x = builder.convolution(x, side, first)
    x = builder.convolution(x, side, second)
    x = builder.enlarge(x, side, builder.constants[second.input[1]].shape[0])
    x = builder.convolution(x, 2 * side, third)
    builder.probability(x, 2 * side, last, foreground.name)

    graph = helper.make_graph(builder.nodes, "int8_outline", [tokens], [foreground], builder.initializers)
    opsets = [*outline.opset_import, helper.make_opsetid(ORT_DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=outline.ir_version)


class _Builder:
    """Adds nodes; maps are (rows, columns, features), so that a place's features are side by side."""

    def __init__(self, outline: ModelProto) -> None:
        self.constants = {one.name: numpy_helper.to_array(one) for one in outline.graph.initializer}
        self.nodes: list[NodeProto] = []
        self.initializers: list[Any] = []

    def add(self, op_type: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return its first output, "nK"; the others are "nK_1", "nK_2"."""
        name = f"n{len(self.nodes)}"
        names = [name, *(f"{name}_{number}" for number in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, inputs, names, name, **attributes))
        return name

    def constant(self, value: npt.NDArray[Any]) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def reshape(self, x: str, *shape: int) -> str:
        return self.add("Reshape", [x, self.constant(np.array(shape))])

    def convolution(self, x: str, side: int, node: NodeProto) -> str:
        """A 3 x 3 convolution with padding and its ReLU, in INT8."""
        integers = self.add("DynamicQuantizeLinear", [x], outputs=3)
        scale, zero = f"{integers}_1", f"{integers}_2"
        around = self.constant(np.array([1, 1, 0, 1, 1, 0]))
        padded = self.add("Pad", [integers, around, zero])
        neighbors = [self._window(padded, side, start, axes=(0, 1)) for start in _PLACES]
        weight = self.constants[node.input[1]]  # out, in, 3, 3
        by_row = np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, len(weight)))
        values, scales = quantize_weight(by_row, 1, 127)
        inputs = [
            self.add("Concat", neighbors, axis=2),
            self.constant(values),
            scale,
            self.constant(scales),
            zero,
            self.constant(np.zeros(scales.shape, np.int8)),
            self.constant(self.constants[node.input[2]]),
        ]
        return self.add("Relu", [self.add("MatMulIntegerToFloat", inputs, domain=ORT_DOMAIN)])

    def enlarge(self, x: str, side: int, features: int) -> str:
        """Twice the side, bilinear with align_corners: a product for rows, one for columns."""
        enlarging = self.constant(enlarging_matrix(side))
        rows = self.add("MatMul", [enlarging, self.reshape(x, side, side * features)])
        return self.add("MatMul", [enlarging, self.reshape(rows, 2 * side, side, features)])

    def probability(self, x: str, side: int, node: NodeProto, output: str) -> None:
        """The last convolution and its softmax: what each place adds to its neighbors, then their sums."""
        weight, bias = self.constants[node.input[1]], self.constants[node.input[2]]
        added = self.add("MatMul", [x, self.constant(np.ascontiguousarray((weight[1] - weight[0]).reshape(-1, 9)))])
        maps = self.add("Transpose", [added], perm=[2, 0, 1])
        padded = self.add("Pad", [maps, self.constant(np.array([0, 1, 1, 0, 1, 1]))])
        each = self.add("Split", [padded], outputs=9, axis=0, num_outputs=9)
        own = [each, *(f"{each}_{number}" for number in range(1, 9))]
        parts = [self._window(map_, side, start, axes=(1, 2)) for map_, start in zip(own, _PLACES, strict=True)]
        logits = self.add("Sum", [*parts, self.constant(np.array(bias[1] - bias[0]))])
        self.nodes.append(helper.make_node("Sigmoid", [logits], [output], output))

    def _window(self, padded: str, side: int, start: tuple[int, int], axes: tuple[int, int]) -> str:
        ends = [start[0] + side, start[1] + side]
        return self.add("Slice", [padded, *(self.constant(np.array(one)) for one in (start, ends, axes))])


def enlarging_matrix(side: int) -> npt.NDArray[np.float32]:
    """Return the (2 * side, side) weights of bilinear enlargement to twice the length with align_corners."""
    places = np.arange(2 * side) * (side - 1) / (2 * side - 1)
    before = np.minimum(places.astype(np.int64), max(side - 2, 0))
    share = places - before
    matrix = np.zeros((2 * side, side))
    matrix[np.arange(2 * side), before] = 1 - share
    matrix[np.arange(2 * side), np.minimum(before + 1, side - 1)] += share
    return matrix.astype(np.float32)
