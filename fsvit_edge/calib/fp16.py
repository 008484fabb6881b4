"""FP32 graph -> strongly typed FP16 graph with FP32 islands: every tensor has its type in the file.

onnxconverter_common does a part of this. It knows neither Q/DQ nor islands by position (the picture's arithmetic, the
end of an L2 normalization), and a dependency more is a wheel more on a Jetson, so these rules are ours.
"""

from collections.abc import Callable, Collection, Iterable

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fsvit_edge.calib.onnx_graph import FLOATS, GEMMS, QUANTIZERS, Graph, as_float16
from fsvit_edge.runtime.errors import ArtifactError

FLOAT32_OPERATORS = (
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization", "LpNormalization"),
    *("Softmax", "LogSoftmax", "Gelu", "Erf", "Sigmoid", "Exp", "Log"),
    *("ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"),
)
"""What loses too much in FP16, or overflows."""
MASK_FLOAT16 = -30000.0
"""In place of constants below FP16's range: -1e9 would become -inf, and 0 * -inf, which a mask does, is NaN. The sum of
two such masks is still in range."""
SMALLEST_NORMAL = float(np.finfo(np.float16).tiny)
LARGEST = float(np.finfo(np.float16).max)

_PRODUCTS = (*GEMMS, "Conv", "Einsum")
_WAY_TO_DIVISION = ("Clip", "Max", "Add", "Sqrt", "Expand", "Reshape", "Unsqueeze", "Reciprocal", "Div", "Mul")
_TAKES_ANY_TYPE = ("Cast", "Shape", "Size")
_ALWAYS_FLOAT32 = {("Resize", 2)}


def to_fp16(
    data: bytes | onnx.ModelProto, float32_io: Collection[str], keep_fp32: Callable[[Graph, NodeProto], bool]
) -> onnx.ModelProto:
    """Give every floating-point tensor of a graph its type.

    Args:
        data: The graph, FP32 or already partly FP16, with or without Q/DQ.
        float32_io: Inputs and outputs that stay FP32; the others become FP16.
        keep_fp32: Says of a node whether it computes in FP32 beyond those that do so anyway.

    Raises:
        ArtifactError: The graph is not valid ONNX, or a quantization scale is no positive normal number of FP16.
    """
    graph = Graph(data)
    types = graph.element_types()
    floats = {name for name, kind in types.items() if kind in FLOATS}
    islands = _islands(graph, floats)
    in_float32 = {id(node) for node in graph.nodes if node.name in islands or keep_fp32(graph, node)}
    replace_masks(graph)
    _retype(graph, floats, in_float32, float32_io)
    return graph.finish()


def _islands(graph: Graph, floats: set[str]) -> set[str]:
    """Names of the nodes that compute in FP32 whatever the user says."""
    found = {node.name for node in graph.nodes if node.op_type in FLOAT32_OPERATORS or _has_unsafe_scalar(graph, node)}
    pictures = [value.name for value in graph.graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8]
    found |= _downstream(graph, pictures, floats, until=_PRODUCTS)
    # What is divided by a norm or by something clamped to an epsilon, and the way there.
    divisors = [node for node in graph.nodes if node.op_type in ("ReduceL2", "ReduceSumSquare")]
    divisors += [node for node in graph.nodes if node.op_type in ("Clip", "Max") and node.name in found]
    names = [name for node in divisors for name in node.output]
    found |= _downstream(graph, names, floats, only=_WAY_TO_DIVISION, after=("Div", "Mul"))
    # exp(1 / 0.1) of nine prototypes adds up to more than FP16 holds; what is multiplied with it is still in range.
    powers = [name for node in graph.nodes if node.op_type == "Exp" for name in node.output]
    reached = _downstream(graph, powers, floats)
    return found | {node.name for node in graph.nodes if node.name in reached and node.op_type not in _PRODUCTS}


def _downstream(
    graph: Graph,
    names: Iterable[str],
    floats: set[str],
    until: Collection[str] = (),
    only: Collection[str] | None = None,
    after: Collection[str] = (),
) -> set[str]:
    """Nodes reached from tensors along floating-point tensors, up to but without `until`, up to and with `after`."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        for node in graph.readers(waiting.pop()):
            made = [name for name in node.output if name in floats]
            stops = node.op_type in until or (only is not None and node.op_type not in only)
            if node.name in found or not made or stops:
                continue
            found.add(node.name)
            if node.op_type not in after:
                waiting += made
    return found


def _has_unsafe_scalar(graph: Graph, node: NodeProto) -> bool:
    """Whether a node reads an epsilon that FP16 loses, or a number that it does not reach."""
    if node.op_type in QUANTIZERS:
        return False
    for name in node.input:
        value = graph.constants.get(name)
        if value is not None and value.size == 1 and value.dtype.kind == "f":
            number = float(value.reshape(()))
            if 0 < abs(number) < SMALLEST_NORMAL or LARGEST < number < np.inf:
                return True
    return False


def replace_masks(graph: Graph) -> None:
    """Put `MASK_FLOAT16` in place of constants below FP16's range."""
    for name, value in graph.constants.items():
        if value.dtype.kind == "f" and np.any((value < -LARGEST) & np.isfinite(value)):
            graph.constants[name] = np.where((value < -LARGEST) & np.isfinite(value), MASK_FLOAT16, value).astype(
                value.dtype
            )


def _retype(graph: Graph, floats: set[str], in_float32: set[int], float32_io: Collection[str]) -> None:
    def wanted_of(node: NodeProto) -> int:
        return TensorProto.FLOAT if id(node) in in_float32 else TensorProto.FLOAT16

    def wanted_io(name: str) -> int:
        return TensorProto.FLOAT if name in float32_io else TensorProto.FLOAT16

    actual: dict[str, int] = {}
    for value in graph.graph.input:
        if value.name in floats:
            actual[value.name] = value.type.tensor_type.elem_type = wanted_io(value.name)
    for node in graph.nodes:
        kind = wanted_of(node)
        actual.update((name, kind) for name in node.output if name in floats)
        _set_type_attributes(node, kind)

    casts: dict[tuple[str, int], str] = {}

    def as_type(name: str, kind: int) -> str:
        if name not in graph.constants and actual[name] == kind:
            return name
        key = (name, kind)
        if key not in casts:
            suffix = "fp32" if kind == TensorProto.FLOAT else "fp16"
            if name in graph.constants:
                value = graph.constants[name]
                number = as_float16(value) if kind == TensorProto.FLOAT16 else value.astype(np.float32)
                casts[key] = graph.add_constant(f"{name}_{suffix}", number)
            else:
                casts[key] = graph.add_node("Cast", [name], f"{name}_{suffix}", to=kind)
        return casts[key]

    for node in graph.nodes:
        if node.op_type in _TAKES_ANY_TYPE:
            continue
        if node.op_type in QUANTIZERS:
            _check_scale(graph, node)
        for position, name in enumerate(node.input):
            if name in floats:
                kind = TensorProto.FLOAT if (node.op_type, position) in _ALWAYS_FLOAT32 else wanted_of(node)
                node.input[position] = as_type(name, kind)

    for value in graph.graph.output:
        if value.name not in floats:
            continue
        kind = value.type.tensor_type.elem_type = wanted_io(value.name)
        if actual[value.name] != kind:
            inner = graph.new_name(f"{value.name}_inner")
            _rename(graph, value.name, inner)
            graph.add_node("Cast", [inner], value.name, output=value.name, to=kind)


def _set_type_attributes(node: NodeProto, kind: int) -> None:
    for attribute in node.attribute:
        if (node.op_type, attribute.name) in (("Cast", "to"), ("EyeLike", "dtype")) and attribute.i in FLOATS:
            attribute.i = kind
        elif node.op_type == "ConstantOfShape" and attribute.name == "value" and attribute.t.data_type in FLOATS:
            value = numpy_helper.to_array(attribute.t)
            value = np.where(value < -LARGEST, MASK_FLOAT16, value)
            attribute.t.CopyFrom(numpy_helper.from_array(value.astype(helper.tensor_dtype_to_np_dtype(kind))))


def _rename(graph: Graph, old: str, new: str) -> None:
    for node in graph.nodes:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = new


def _check_scale(graph: Graph, node: NodeProto) -> None:
    scale = graph.constants.get(node.input[1])
    if scale is None:
        raise ArtifactError(
            f"{node.op_type} {node.name!r} has a scale that is computed, which TensorRT refuses; take a constant one."
        )
    if not np.all((scale >= SMALLEST_NORMAL) & (scale <= LARGEST)):
        worst = float(np.min(scale)) if np.min(scale) < SMALLEST_NORMAL else float(np.max(scale))
        raise ArtifactError(
            f"{node.op_type} {node.name!r} has a scale of {worst:.1e}, which FP16 does not hold as a normal positive "
            f"number ({SMALLEST_NORMAL:.1e} to {LARGEST:.0f}); keep that layer in floating point."
        )
