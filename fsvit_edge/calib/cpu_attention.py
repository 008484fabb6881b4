"""The exporter's attention -> ONNX Runtime's fused operator, which never holds the whole matrix of attention.

ONNX Runtime's own optimizer does not know the form in which torch's exporter writes it. The linear layer of query, key
and value becomes three, whose outputs are what the operator reads, so that no tensor is transposed or sliced.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from fsvit_edge.calib.cpu_int8_attention import attend_in_int8
from fsvit_edge.calib.onnx_graph import ORT_DOMAIN, Graph
from fsvit_edge.calib.quantize import LinearLayer, linear_layers

INT8_FROM_TOKENS = 500
"""Where attention in INT8 begins to pay: against the fused operator 1.1 times as fast at 257 tokens, 1.4 at 785, 1.7 at
1601 (AMD EPYC, ONNX Runtime 1.32, processor time)."""

_PARTS = ("query", "key", "value")


@dataclass(frozen=True)
class _Attention:
    """One attention as the exporter writes it."""

    packed: str
    """(3, B, heads, N, d): the linear layer's output, unfolded."""
    layer: LinearLayer
    bias: str | None
    unfolded_shape: list[int]
    """B, N, 3, heads, d."""
    scale: float
    softmax: NodeProto
    output: NodeProto
    """The Transpose to (B, N, heads, d)."""


def fuse_attention(graph: Graph, in_int8: Callable[[NodeProto], bool] = lambda _: False) -> dict[str, str]:
    """Replace softmax(q k^T) v wherever it has the exporter's form; what has not is left as it is.

    Args:
        graph: The graph.
        in_int8: Says of an attention, by its Softmax, whether it may be computed in INT8; it is where that is faster.

    Returns:
        The names of the new linear layers, each with the name of the layer of which it is a third.
    """
    found = [_recognize(graph, node) for node in graph.nodes if node.op_type == "Softmax"]
    origin: dict[str, str] = {}
    for attention in found:
        if attention is not None:
            origin |= _fuse(graph, attention, in_int8(attention.softmax))
    if origin:
        use_ort_operators(graph)
        graph.tidy()
    return origin


def use_ort_operators(graph: Graph) -> None:
    """Declare ONNX Runtime's own operators."""
    if all(entry.domain != ORT_DOMAIN for entry in graph.model.opset_import):
        graph.model.opset_import.append(helper.make_opsetid(ORT_DOMAIN, 1))


def _recognize(graph: Graph, softmax: NodeProto) -> _Attention | None:
    scores = graph.producer.get(softmax.input[0])
    context = _only_reader(graph, softmax.output[0], "MatMul")
    output = None if context is None else _only_reader(graph, context.output[0], "Transpose")
    if scores is None or scores.op_type != "MatMul" or context is None or output is None:
        return None
    query, query_scale = _unscaled(graph, scores.input[0])
    key, key_scale = _unscaled(graph, scores.input[1])
    parts = [_part(graph, query), _part(graph, _untransposed(graph, key)), _part(graph, context.input[1])]
    packed = {name for name, _ in parts}
    if [index for _, index in parts] != [0, 1, 2] or len(packed) != 1 or _perm(output) != [0, 2, 1, 3]:
        return None
    unfolded = graph.producer[packed.pop()]
    fold = graph.producer.get(unfolded.input[0])
    if _perm(unfolded) != [2, 0, 3, 1, 4] or fold is None or fold.op_type != "Reshape":
        return None
    shape = graph.constants.get(fold.input[1])
    layer = next((layer for layer in linear_layers(graph) if layer.node.output[0] == fold.input[0]), None)
    others = [node for node in graph.readers(unfolded.output[0]) if _part(graph, node.output[0])[1] is None]
    if shape is None or shape.size != 5 or layer is None or others:
        return None
    bias = layer.node.input[2] if len(layer.node.input) > 2 else None
    scale = query_scale * key_scale
    return _Attention(unfolded.output[0], layer, bias, shape.tolist(), scale, softmax, output)


def _fuse(graph: Graph, attention: _Attention, may_be_int8: bool) -> dict[str, str]:
    batch, length, _, heads, dim = attention.unfolded_shape
    layer = attention.layer
    weights = np.split(graph.constants[layer.weight], 3, axis=layer.axis)
    biases = [None] * 3 if attention.bias is None else np.split(graph.constants[attention.bias], 3)
    rows_shape = graph.add_constant("rows", np.array([batch, length, heads * dim]))
    heads_shape = graph.add_constant("heads", np.array([batch, length, heads, dim]))
    origin, rows = {}, []
    for part, weight, bias in zip(_PARTS, weights, biases, strict=True):
        node = NodeProto()
        node.CopyFrom(layer.node)
        node.name = graph.new_name(f"{layer.node.name}_{part}")
        node.input[1] = graph.add_constant(f"{layer.weight}_{part}", np.ascontiguousarray(weight))
        if bias is not None:
            node.input[2] = graph.add_constant(f"{attention.bias}_{part}", bias)
        node.output[0] = graph.new_name(f"{layer.node.output[0]}_{part}")
        graph.graph.node.append(node)
        origin[node.name] = layer.node.name
        rows.append(graph.add_node("Reshape", [node.output[0], rows_shape], f"{node.output[0]}_rows"))
    result = attention.output.output[0]
    # What others read of query, key and value, is made from the new rows.
    old = [node for node in graph.readers(attention.packed) if node.op_type == "Gather"]
    graph.remove([attention.output, *old])
    if may_be_int8 and length >= INT8_FROM_TOKENS:
        attended = attend_in_int8(graph, rows, [batch, length, heads, dim], attention.scale, result)
        graph.add_node("Identity", [attended], result, output=result)
    else:
        name_hint = f"{result}_rows"
        attended = graph.add_node(
            "MultiHeadAttention", rows, name_hint, domain=ORT_DOMAIN, num_heads=heads, scale=attention.scale
        )
        graph.add_node("Reshape", [attended, heads_shape], result, output=result)
    for node in old:
        index = int(graph.constants[node.input[1]])
        apart = graph.add_node("Reshape", [rows[index], heads_shape], f"{node.output[0]}_heads")
        graph.add_node("Transpose", [apart], node.output[0], output=node.output[0], perm=[0, 2, 1, 3])
    return origin


def _part(graph: Graph, name: str | None) -> tuple[str, int | None]:
    """Which third of which packed tensor a tensor is; None if it is none."""
    node = graph.producer.get(name or "")
    if node is not None and node.op_type == "Squeeze":
        node = graph.producer.get(node.input[0])
    if node is None or node.op_type not in ("Gather", "Slice"):
        return "", None
    constants = [graph.constants.get(position, np.array([])) for position in node.input[1:]]
    numbers = [constant.reshape(-1).tolist() for constant in constants]
    for index in range(3):
        is_gathered = node.op_type == "Gather" and attribute(node, "axis", 0) == 0 and numbers == [[index]]
        is_sliced = node.op_type == "Slice" and numbers[:3] == [[index], [index + 1], [0]]
        if is_gathered or is_sliced:
            return node.input[0], index
    return "", None


def _unscaled(graph: Graph, name: str) -> tuple[str, float]:
    """Look through multiplications with one number."""
    scale = 1.0
    while (node := graph.producer.get(name)) is not None and node.op_type == "Mul":
        factor = graph.constants.get(node.input[1])
        if factor is None or factor.size != 1:
            break
        name, scale = node.input[0], scale * float(factor.reshape(()))
    return name, scale


def _untransposed(graph: Graph, name: str) -> str | None:
    """The (B, heads, N, d) of which a tensor is the (B, heads, d, N)."""
    node = graph.producer.get(name)
    if node is not None and _perm(node) == [0, 1, 3, 2]:
        return str(node.input[0])
    turn = graph.producer.get(node.input[0]) if node is not None and node.op_type == "Reshape" else None
    flat = graph.producer.get(turn.input[0]) if turn is not None and _perm(turn) == [0, 2, 1] else None
    return str(flat.input[0]) if flat is not None and flat.op_type == "Reshape" else None


def _only_reader(graph: Graph, name: str, op_type: str) -> NodeProto | None:
    readers = graph.readers(name)
    return readers[0] if len(readers) == 1 and readers[0].op_type == op_type else None


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute's value."""
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def _perm(node: NodeProto) -> list[int] | None:
    return list(attribute(node, "perm", [])) if node.op_type == "Transpose" else None
