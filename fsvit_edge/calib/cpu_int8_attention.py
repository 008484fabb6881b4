"""Attention in INT8 for long sequences on a CPU: a block of query tokens at a time, so that its logits stay in cache.

Both products are integer, and everything between them floating point. What made it exact enough:
- the mean key is taken off the keys: a constant added to all logits of a softmax changes nothing;
- the mean value is taken off the values and added to the result: the small probabilities that int8 rounds to 0 then
  count as spread evenly, instead of being lost;
- each row of probabilities has its own scale, its largest is 255; each head's keys and values have theirs.

Scales are computed while it runs, so no calibration is needed. (As Q/DQ on whole matrices it took three times as long
as FP32, because ONNX Runtime passes over a matrix of 6 x 2501 x 2501 five times more.)
"""

from typing import Any

import numpy as np

from fsvit_edge.calib.onnx_graph import ORT_DOMAIN, Graph

QUERIES_AT_ONCE = 128
"""Of all heads; 64 to 256 took the same time within 5 %, 512 took 15 % longer."""


def attend_in_int8(graph: Graph, rows: list[str], shape: list[int], scale: float, name_hint: str) -> str:
    """Add softmax(q k^T scale) v.

    Args:
        graph: The graph.
        rows: Query, key and value, (B, N, heads * d).
        shape: B (or -1), N, heads, d.
        scale: Of the logits.
        name_hint: For the names.

    Returns:
        The result's name, (B, N, heads, d).
    """

    def constant(name: str, value: object, kind: type = np.float32) -> str:
        return graph.add_constant(f"{name_hint}_{name}", np.asarray(value, kind))

    def node(operator: str, *inputs: str, **attributes: Any) -> str:
        return graph.add_node(operator, inputs, f"{name_hint}_{operator}", **attributes)

    heads_shape = constant("heads", shape, np.int64)
    query, key, value = (node("Transpose", node("Reshape", part, heads_shape), perm=[0, 2, 1, 3]) for part in rows)
    one, levels, tiny = constant("one", 1.0), constant("levels", 127.0), constant("tiny", 1e-20)
    middle, zero, unsigned_zero = (
        constant("middle", 128, np.uint8),
        constant("zero", 0, np.int8),
        constant("u0", 0, np.uint8),
    )
    zeros = constant("zeros", np.zeros(shape[2]), np.int8)
    tokens, of_head = constant("tokens", [2], np.int64), constant("of_head", [0, 2, 3], np.int64)
    head_shape = constant("head", [1, shape[2], 1, 1], np.int64)

    def centered(part: str) -> tuple[str, str, str, str]:
        """int8 (B, heads, N, d), its scale (heads,) and (1, heads, 1, 1), and the mean that was taken off."""
        mean = node("ReduceMean", part, tokens)
        rest = node("Sub", part, mean)
        largest = node("Max", node("ReduceMax", node("Abs", rest), of_head, keepdims=0), tiny)
        step = node("Div", largest, levels)
        return node("QuantizeLinear", rest, step, zeros, axis=1), step, node("Reshape", step, head_shape), mean

    keys, _, key_step, _ = centered(key)
    keys = node("Transpose", keys, perm=[0, 1, 3, 2])
    values, _, value_step, value_mean = centered(value)
    query = node("Mul", query, node("Mul", key_step, constant("scale", scale)))
    query_step = node("Div", node("Max", node("ReduceMax", node("Abs", query), keepdims=0), tiny), levels)
    query = node("QuantizeLinear", query, query_step, middle)

    length = shape[1]
    sizes = [min(QUERIES_AT_ONCE, length - start) for start in range(0, length, QUERIES_AT_ONCE)]
    blocks = graph.add_split(query, sizes, 2, f"{name_hint}_block")
    flat_shape, flat = constant("flat", [-1, length], np.int64), constant("row", [-1], np.int64)
    last, byte = constant("last", [3], np.int64), constant("byte", 1 / 255)
    results = []
    for size, block in zip(sizes, blocks, strict=True):
        logits = node("MatMulIntegerToFloat", block, keys, query_step, one, middle, zero, domain=ORT_DOMAIN)
        chances = node("Softmax", logits, axis=-1)
        steps = node("Mul", node("ReduceMax", chances, last), byte)
        integers = node(
            "QuantizeLinear",
            node("Reshape", chances, flat_shape),
            node("Reshape", steps, flat),
            node("Expand", unsigned_zero, node("Shape", node("Reshape", steps, flat))),
            axis=0,
        )
        block_shape = constant("block", [shape[0], shape[2], size, length], np.int64)
        product = node(
            "MatMulIntegerToFloat",
            node("Reshape", integers, block_shape),
            values,
            one,
            one,
            unsigned_zero,
            zero,
            domain=ORT_DOMAIN,
        )
        results.append(node("Mul", product, steps))
    result = node("Concat", *results, axis=2) if len(results) > 1 else results[0]
    result = node("Add", node("Mul", result, value_step), value_mean)
    return node("Transpose", result, perm=[0, 2, 1, 3])
