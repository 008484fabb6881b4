"""FP32 encoder -> the graph for ONNX Runtime on a CPU: fused attention, linear layers and long attention in INT8.

The linear layers use ONNX Runtime's own integer product, whose output stays floating point, bias included. Q/DQ would
leave it to the optimizer to find those products, and costs a second pass over each output where it finds none.
ONNX Runtime's optimizer does not recognize attention as torch's exporter writes it, so it is fused here.
"""

import platform
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from fsvit_edge.calib.convert_int8 import LinearLayer, Ranges, linear_layers, quantize_weight, tensor_range
from fsvit_edge.calib.onnx_graph import ORT_DOMAIN, Graph
from fsvit_edge.runtime.machine import cpu_flags, has_vnni

INT8_FROM_TOKENS = 500
"""Number of tokens from which INT8 attention pays: against the fused operator it is 1.1 times as fast at 257 tokens,
1.4 at 785, 1.7 at 1601 (AMD EPYC, ONNX Runtime 1.32, processor time)."""
QUERIES_AT_ONCE = 128
"""Query tokens per block of INT8 attention, for all heads; 64 to 256 took the same time within 5 %, 512 took 15 %
longer."""

_PARTS = ("query", "key", "value")


# ------------------------------------------------------------------------------------------------------ linear layers


@dataclass(frozen=True)
class IntegerForm:
    """Which integers a processor multiplies fastest.

    uint8 x int8 on x86 (int8 x int8 took 2.5 times as long as FP32 on an AMD EPYC), int8 x int8 on ARM (not measured).
    """

    signed: bool  # activations are int8 with zero point 0, else uint8 with a zero point from the range
    largest_weight: int  # 127, or 63 where the sum of two products would saturate at 16 bits

    @property
    def is_exact_and_fast(self) -> bool:
        """Whether uint8 x int8 of full range is exact and fast, which INT8 attention and an INT8 stem need."""
        return not self.signed and self.largest_weight == 127


def integer_form(machine: str, flags: Collection[str]) -> IntegerForm:
    """The form for a `platform.machine()` and the instruction sets that its kernel lists (empty: unknown)."""
    if machine.lower() in ("aarch64", "arm64"):
        return IntegerForm(signed=True, largest_weight=127)
    return IntegerForm(signed=False, largest_weight=127 if has_vnni(machine, flags) else 63)


def integer_form_here() -> IntegerForm:
    """The form for the processor that this runs on."""
    return integer_form(platform.machine(), cpu_flags())


def quantize_for_cpu(graph: Graph, layers: list[LinearLayer], ranges: Ranges, form: IntegerForm) -> None:
    """Replace linear layers by integer products."""
    quantized: dict[str, tuple[str, str, str]] = {}
    for layer in layers:
        if layer.activation not in quantized:
            quantized[layer.activation] = _quantize_activation(graph, layer.activation, ranges, form)
        integers, scale, zero = quantized[layer.activation]
        node = layer.node
        values, scales = quantize_weight(graph.constants[layer.weight], layer.axis, form.largest_weight)
        inputs = [
            integers,
            graph.add_constant(f"{layer.weight}_int8", values if layer.axis == 1 else np.ascontiguousarray(values.T)),
            scale,
            graph.add_constant(f"{layer.weight}_scale", scales),
            zero,
            graph.add_constant(f"{layer.weight}_zero", np.zeros(scales.shape, np.int8)),
            *node.input[2:3],
        ]
        graph.remove([node])
        graph.add_node("MatMulIntegerToFloat", inputs, node.name, output=node.output[0], domain=ORT_DOMAIN)
    graph.tidy()


def _quantize_activation(graph: Graph, name: str, ranges: Ranges, form: IntegerForm) -> tuple[str, str, str]:
    """Add a QuantizeLinear; returns the names of its output, scale and zero point."""
    low, high = tensor_range(name, ranges)
    low, high = min(low, 0.0), max(high, 0.0)
    if form.signed:
        scale, zero = max(-low, high, 1e-9) / 127, np.zeros((), np.int8)
    else:
        scale = max(high - low, 1e-9) / 255
        zero = np.asarray(np.clip(round(-low / scale), 0, 255), np.uint8)
    scale_name = graph.add_constant(f"{name}_scale", np.asarray(scale, np.float32))
    zero_name = graph.add_constant(f"{name}_zero", zero)
    return graph.add_node("QuantizeLinear", [name, scale_name, zero_name], f"{name}_quantized"), scale_name, zero_name


# -------------------------------------------------------------------------------------------------- attention, fused


@dataclass(frozen=True)
class _Attention:
    """One attention as torch's exporter writes it."""

    packed: str  # name of the (3, B, heads, N, d) tensor of query, key and value
    layer: LinearLayer  # makes all three
    bias: str | None
    unfolded_shape: list[int]  # B, N, 3, heads, d
    scale: float  # factor of the logits
    softmax: NodeProto
    output: NodeProto  # the Transpose to (B, N, heads, d)


def fuse_attention(graph: Graph, in_int8: Callable[[NodeProto], bool] = lambda _: False) -> dict[str, str]:
    """Replace softmax(q k^T) v by ONNX Runtime's fused operator, which never stores the whole attention matrix.

    The linear layer of query, key and value becomes three, whose outputs the operator reads directly, so that no tensor
    is transposed or sliced. Attention in any other form is left as it is. `in_int8` is called with an attention's
    Softmax node; True allows INT8, which is used where it is faster.

    Returns:
        Name of each new linear layer -> name of the layer that it is a third of.
    """
    origin: dict[str, str] = {}
    for attention in [_recognize(graph, node) for node in graph.nodes if node.op_type == "Softmax"]:
        if attention is not None:
            origin |= _fuse(graph, attention, in_int8(attention.softmax))
    if origin:
        graph.tidy()
    return origin


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
    # Other nodes that read query, key or value get them from the new rows.
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
    """The packed tensor that a tensor is a third of, and which third; None if it is no third."""
    node = graph.producer.get(name or "")
    if node is not None and node.op_type == "Squeeze":
        node = graph.producer.get(node.input[0])
    if node is None or node.op_type not in ("Gather", "Slice"):
        return "", None
    constants = [graph.constants.get(position, np.array([])) for position in node.input[1:]]
    numbers = [constant.reshape(-1).tolist() for constant in constants]
    for index in range(3):
        is_gathered = node.op_type == "Gather" and _attribute(node, "axis", 0) == 0 and numbers == [[index]]
        is_sliced = node.op_type == "Slice" and numbers[:3] == [[index], [index + 1], [0]]
        if is_gathered or is_sliced:
            return node.input[0], index
    return "", None


def _unscaled(graph: Graph, name: str) -> tuple[str, float]:
    """The tensor before multiplications by scalars, and their product."""
    scale = 1.0
    while (node := graph.producer.get(name)) is not None and node.op_type == "Mul":
        factor = graph.constants.get(node.input[1])
        if factor is None or factor.size != 1:
            break
        name, scale = node.input[0], scale * float(factor.reshape(()))
    return name, scale


def _untransposed(graph: Graph, name: str) -> str | None:
    """The (B, heads, N, d) tensor whose transpose (B, heads, d, N) is given."""
    node = graph.producer.get(name)
    if node is not None and _perm(node) == [0, 1, 3, 2]:
        return str(node.input[0])
    turn = graph.producer.get(node.input[0]) if node is not None and node.op_type == "Reshape" else None
    flat = graph.producer.get(turn.input[0]) if turn is not None and _perm(turn) == [0, 2, 1] else None
    return str(flat.input[0]) if flat is not None and flat.op_type == "Reshape" else None


def _only_reader(graph: Graph, name: str, op_type: str) -> NodeProto | None:
    readers = graph.readers(name)
    return readers[0] if len(readers) == 1 and readers[0].op_type == op_type else None


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def _perm(node: NodeProto) -> list[int] | None:
    return list(_attribute(node, "perm", [])) if node.op_type == "Transpose" else None


# ------------------------------------------------------------------------------------------------- attention in INT8


def attend_in_int8(graph: Graph, rows: list[str], shape: list[int], scale: float, name_hint: str) -> str:
    """Add softmax(q k^T scale) v with integer products, one block of query tokens at a time so logits stay in cache.

    Everything between the two products is floating point. Three things make it accurate enough:
    - the mean key is subtracted from the keys: a constant added to all logits of a softmax changes nothing;
    - the mean value is subtracted from the values and added to the result: the small probabilities that INT8 rounds to
      0 then count as evenly spread, instead of being lost;
    - each row of probabilities has its own scale (its largest is 255), and so have each head's keys and values.

    Scales are computed at run time, so no calibration is needed. (As Q/DQ on whole matrices it took three times as long
    as FP32, because ONNX Runtime passes over a matrix of 6 x 2501 x 2501 five times more.)

    Rows are the names of query, key and value, (B, N, heads * d); shape is B (or -1), N, heads, d; scale is a factor of
    the logits. Returns the name of the result, (B, N, heads, d).
    """

    def constant(name: str, value: object, kind: type = np.float32) -> str:
        return graph.add_constant(f"{name_hint}_{name}", np.asarray(value, kind))

    def node(operator: str, *inputs: str, **attributes: Any) -> str:
        return graph.add_node(operator, inputs, f"{name_hint}_{operator}", **attributes)

    heads_shape = constant("heads", shape, np.int64)
    # (B, N, heads * d) -> (B, N, heads, d) -> (B, heads, N, d)
    query, key, value = (node("Transpose", node("Reshape", part, heads_shape), perm=[0, 2, 1, 3]) for part in rows)
    one, levels, tiny = constant("one", 1.0), constant("levels", 127.0), constant("tiny", 1e-20)
    middle, zero = constant("middle", 128, np.uint8), constant("zero", 0, np.int8)
    unsigned_zero = constant("u0", 0, np.uint8)
    zeros = constant("zeros", np.zeros(shape[2]), np.int8)
    tokens, of_head = constant("tokens", [2], np.int64), constant("of_head", [0, 2, 3], np.int64)
    head_shape = constant("head", [1, shape[2], 1, 1], np.int64)

    def centered(part: str) -> tuple[str, str, str]:
        """int8 (B, heads, N, d), its scale (1, heads, 1, 1), and the subtracted mean (B, heads, 1, d)."""
        mean = node("ReduceMean", part, tokens)
        rest = node("Sub", part, mean)
        largest = node("Max", node("ReduceMax", node("Abs", rest), of_head, keepdims=0), tiny)
        step = node("Div", largest, levels)
        return node("QuantizeLinear", rest, step, zeros, axis=1), node("Reshape", step, head_shape), mean

    keys, key_step, _ = centered(key)
    keys = node("Transpose", keys, perm=[0, 1, 3, 2])  # (B, heads, d, N)
    values, value_step, value_mean = centered(value)
    query = node("Mul", query, node("Mul", key_step, constant("scale", scale)))
    query_step = node("Div", node("Max", node("ReduceMax", node("Abs", query), keepdims=0), tiny), levels)
    query = node("QuantizeLinear", query, query_step, middle)

    length = shape[1]
    sizes = [min(QUERIES_AT_ONCE, length - start) for start in range(0, length, QUERIES_AT_ONCE)]
    blocks = [graph.new_name(f"{name_hint}_block") for _ in sizes]  # (B, heads, size, d) each
    lengths = graph.add_constant(f"{name_hint}_block_sizes", np.array(sizes))
    split_name = graph.new_name(f"node_{name_hint}_block")
    graph.graph.node.append(helper.make_node("Split", [query, lengths], blocks, split_name, axis=2))
    flat_shape, flat = constant("flat", [-1, length], np.int64), constant("row", [-1], np.int64)
    last, byte = constant("last", [3], np.int64), constant("byte", 1 / 255)
    results = []
    for size, block in zip(sizes, blocks, strict=True):
        logits = node("MatMulIntegerToFloat", block, keys, query_step, one, middle, zero, domain=ORT_DOMAIN)
        chances = node("Softmax", logits, axis=-1)  # (B, heads, size, N)
        steps = node("Mul", node("ReduceMax", chances, last), byte)  # (B, heads, size, 1)
        integers = node(
            "QuantizeLinear",
            node("Reshape", chances, flat_shape),  # (B * heads * size, N): one scale per row
            node("Reshape", steps, flat),
            node("Expand", unsigned_zero, node("Shape", node("Reshape", steps, flat))),
            axis=0,
        )
        block_shape = constant("block", [shape[0], shape[2], size, length], np.int64)
        integers = node("Reshape", integers, block_shape)  # (B, heads, size, N)
        inputs = (integers, values, one, one, unsigned_zero, zero)
        product = node("MatMulIntegerToFloat", *inputs, domain=ORT_DOMAIN)
        results.append(node("Mul", product, steps))  # (B, heads, size, d)
    result = node("Concat", *results, axis=2) if len(results) > 1 else results[0]
    result = node("Add", node("Mul", result, value_step), value_mean)
    return node("Transpose", result, perm=[0, 2, 1, 3])
