"""The head's graphs for CPUs, traced in parts; two become one graph with a Scan over blocks of query tokens."""

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fsvit_edge.export.int8_outline import int8_outline_model
from fsvit_edge.export.trace import check, simplify, trace
from fsvit_edge.model.cpu_head import CpuHeadSpecs
from fsvit_edge.runtime.bundle import INT8_OUTLINE

_BODY = "block_"
"""Prefix of the names in the Scan's body, which must differ from those around it."""


def cpu_head_models(specs: CpuHeadSpecs, opset: int, simplified: bool) -> dict[str, ModelProto]:
    """Make `compare`, `outline` and `int8_outline`; the errors are those of `trace`, `simplify` and `check`."""
    attend, finish, outline = (
        simplify(trace(spec, opset), name) if simplified else trace(spec, opset)
        for name, spec in (("compare", specs.attend), ("compare", specs.finish), ("outline", specs.outline))
    )
    models = {"compare": _scan(attend, finish, specs.num_blocks), "outline": outline}
    for name, model in models.items():
        check(model, name, opset)
    return {**models, INT8_OUTLINE: int8_outline_model(outline)}


def _scan(attend: ModelProto, finish: ModelProto, num_blocks: int) -> ModelProto:
    """Run `attend` for each block of the frame's tokens, put its outputs together, and run `finish` on them.

    The inputs become tokens (B, C, n, d), support (C, 9 + T, d), count (T,) and pooled_mask (9,).
    """
    body = attend.graph
    tokens, *shared = body.input
    outer = {value.name for value in shared}
    for node in body.node:
        node.name = _BODY + node.name
        for names in (node.input, node.output):
            names[:] = [name if name in outer or not name else _BODY + name for name in names]
    for value in (*body.initializer, *body.output):
        value.name = _BODY + value.name
    del body.value_info[:]
    channels, size, dim = (axis.dim_value for axis in tokens.type.tensor_type.shape.dim)
    block = helper.make_tensor_value_info(_BODY + tokens.name, TensorProto.FLOAT, [channels, size, dim])
    del body.input[:]
    body.input.append(block)

    frame = helper.make_tensor_value_info("tokens", TensorProto.FLOAT, [num_blocks, channels, size, dim])
    found, pooled_mask = finish.graph.input
    shape = np.array([axis.dim_value for axis in found.type.tensor_type.shape.dim])
    nodes = [
        helper.make_node("Scan", ["tokens"], ["all_found"], "blocks", num_scan_inputs=1, body=body),
        # (B, channels, p, n) -> (channels, p, B, n) -> (channels, p, N)
        helper.make_node("Transpose", ["all_found"], ["found_in_order"], perm=[1, 2, 0, 3]),
        helper.make_node("Reshape", ["found_in_order", "found_shape"], [found.name]),
    ]
    graph = helper.make_graph(
        [*nodes, *finish.graph.node],
        "compare",
        [frame, *shared, pooled_mask],
        list(finish.graph.output),
        [numpy_helper.from_array(shape, "found_shape"), *finish.graph.initializer],
    )
    return helper.make_model(graph, opset_imports=attend.opset_import, ir_version=attend.ir_version)
