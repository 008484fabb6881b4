"""FP32 graph -> strongly typed FP16 graph with FP32 islands; and which of its tensors would overflow.

Every tensor has its type in the file. onnxconverter_common does part of this, but it knows neither Q/DQ nor islands by
position (the arithmetic on pixels, the end of an L2 normalization), and another dependency is another wheel on a
Jetson, so these rules are our own.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fsvit_edge.calib.onnx_graph import FLOATS, GEMMS, QUANTIZERS, Graph, as_float16, matches
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import ArtifactError

FLOAT32_OPERATORS = (
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization", "LpNormalization"),
    *("Softmax", "LogSoftmax", "Gelu", "Erf", "Sigmoid", "Exp", "Log"),
    *("ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"),
)
"""Operators that lose too much precision in FP16, or overflow."""
MASK_FLOAT16 = -30000.0
"""Replaces constants below FP16's range: -1e9 would become -inf, and masks compute 0 * -inf, which is NaN. The sum of
two such masks is still in range."""
OVERFLOW_LIMIT = 60000.0
"""Largest magnitude allowed in an FP16 tensor; FP16 ends at 65504, and other pictures go a little further."""
FP16_MIN_NORMAL = float(np.finfo(np.float16).tiny)
FP16_MAX = float(np.finfo(np.float16).max)

_PRODUCTS = (*GEMMS, "Conv", "Einsum")
_TOWARD_DIVISION = ("Clip", "Max", "Add", "Sqrt", "Expand", "Reshape", "Unsqueeze", "Reciprocal", "Div", "Mul")
_TAKES_ANY_TYPE = ("Cast", "Shape", "Size")
_ALWAYS_FLOAT32 = {("Resize", 2)}


def to_fp16(
    data: bytes | onnx.ModelProto, float32_io: Collection[str], keep_fp32: Sequence[str] = ()
) -> onnx.ModelProto:
    """Give every floating-point tensor of a graph (FP32 or already partly FP16, with or without Q/DQ) its type.

    Inputs and outputs in `float32_io` stay FP32, and nodes that match a pattern of `keep_fp32` compute in it, besides
    those that always do.

    Raises:
        ArtifactError: The graph is not valid ONNX, or a quantization scale is not a positive normal FP16 number.
    """
    graph = Graph(data)
    types = graph.element_types()
    floats = {name for name, kind in types.items() if kind in FLOATS}
    islands = _islands(graph, floats)
    in_float32 = {id(node) for node in graph.nodes if node.name in islands or matches(graph, node, keep_fp32)}
    replace_masks(graph)
    _retype(graph, floats, in_float32, float32_io)
    return graph.finish()


def _islands(graph: Graph, floats: set[str]) -> set[str]:
    """Names of the nodes that always compute in FP32."""
    found = {node.name for node in graph.nodes if node.op_type in FLOAT32_OPERATORS or _has_unsafe_scalar(graph, node)}
    pictures = [value.name for value in graph.graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8]
    found |= _downstream(graph, pictures, floats, until=_PRODUCTS)
    # Divisions by a norm or by a value clamped to an epsilon, and the nodes that lead to them.
    divisors = [node for node in graph.nodes if node.op_type in ("ReduceL2", "ReduceSumSquare")]
    divisors += [node for node in graph.nodes if node.op_type in ("Clip", "Max") and node.name in found]
    names = [name for node in divisors for name in node.output]
    found |= _downstream(graph, names, floats, only=_TOWARD_DIVISION, after=("Div", "Mul"))
    # exp(1 / 0.1) of nine prototypes adds up to more than FP16 can represent; products with it are in range again.
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
    """Nodes reached through floating-point tensors: only operators in `only`, up to `until`, none beyond `after`."""
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
    """Whether a node reads an epsilon that FP16 rounds to 0, or a number beyond FP16's range."""
    if node.op_type in QUANTIZERS:
        return False
    values = [graph.constants[name] for name in node.input if name in graph.constants]
    numbers = [float(value.reshape(())) for value in values if value.size == 1 and value.dtype.kind == "f"]
    return any(0 < abs(number) < FP16_MIN_NORMAL or FP16_MAX < number < np.inf for number in numbers)


def replace_masks(graph: Graph) -> None:
    """Replace constants below FP16's range by `MASK_FLOAT16`."""
    for name, value in graph.constants.items():
        if value.dtype.kind == "f":
            is_mask = (value < -FP16_MAX) & np.isfinite(value)
            graph.constants[name] = np.where(is_mask, MASK_FLOAT16, value).astype(value.dtype)


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
            for names in (names for node in graph.nodes for names in (node.input, node.output)):
                for position, name in enumerate(names):
                    names[position] = inner if name == value.name else name
            graph.add_node("Cast", [inner], value.name, output=value.name, to=kind)


def _set_type_attributes(node: NodeProto, kind: int) -> None:
    for attribute in node.attribute:
        if (node.op_type, attribute.name) in (("Cast", "to"), ("EyeLike", "dtype")) and attribute.i in FLOATS:
            attribute.i = kind
        elif node.op_type == "ConstantOfShape" and attribute.name == "value" and attribute.t.data_type in FLOATS:
            value = numpy_helper.to_array(attribute.t)
            value = np.where(value < -FP16_MAX, MASK_FLOAT16, value)
            attribute.t.CopyFrom(numpy_helper.from_array(value.astype(helper.tensor_dtype_to_np_dtype(kind))))


def _check_scale(graph: Graph, node: NodeProto) -> None:
    scale = graph.constants.get(node.input[1])
    if scale is None:
        raise ArtifactError(
            f"{node.op_type} {node.name!r} has a computed scale, which TensorRT does not accept; use a constant scale."
        )
    if not np.all((scale >= FP16_MIN_NORMAL) & (scale <= FP16_MAX)):
        worst = float(np.min(scale)) if np.min(scale) < FP16_MIN_NORMAL else float(np.max(scale))
        raise ArtifactError(
            f"{node.op_type} {node.name!r} has a scale of {worst:.1e}, which is not a positive normal FP16 number "
            f"({FP16_MIN_NORMAL:.1e} to {FP16_MAX:.0f}); keep that layer in floating point."
        )


# ------------------------------------------------------------------------------------------------------------ overflow


@dataclass(frozen=True)
class Overflow:
    """A tensor with values beyond FP16's range."""

    tensor: str
    node: str  # computes the tensor
    largest: float  # largest absolute value seen; may be infinite


def find_overflows(
    fp32: bytes,
    typed: onnx.ModelProto,
    feeds: Iterable[Mapping[str, npt.NDArray[np.generic]]],
) -> tuple[Overflow, ...]:
    """Run the FP32 graph on real pictures and report the tensors beyond `OVERFLOW_LIMIT` that are FP16 in `typed`.

    Running an FP16 graph on a CPU proves nothing, because ONNX Runtime emulates FP16 in FP32. The extremes are computed
    inside the graph, so memory does not grow with the number of tensors. Tensors have the same names in both graphs;
    the typed graph's constants are checked too. The worst tensor comes first.
    """
    other = Graph(typed)
    halves = {name for name, kind in other.element_types().items() if kind == TensorProto.FLOAT16}
    largest = {
        name: float(np.abs(value.astype(np.float32)).max(initial=0.0))
        for name, value in other.constants.items()
        if value.dtype == np.float16
    }
    probed, probes = _with_probes(fp32, halves)
    with OnnxRuntimeEngine(probed, "cpu") as engine:
        for feed in feeds:
            answers = engine.run(dict(feed))
            for probe, name in probes.items():
                seen = float(answers[probe].numpy())
                # A NaN counts as an overflow; max() would lose one that is not the first.
                largest[name] = float(np.fmax(largest.get(name, 0.0), seen)) if np.isfinite(seen) else np.inf
    makers = {name: node.name for node in other.nodes for name in node.output}
    bad = [Overflow(name, makers.get(name, ""), seen) for name, seen in largest.items() if seen > OVERFLOW_LIMIT]
    return tuple(sorted(bad, key=lambda one: -one.largest))


def _with_probes(fp32: bytes, halves: set[str]) -> tuple[bytes, dict[str, str]]:
    """Add an output per FP16 tensor, its largest absolute value; returns the graph and output -> tensor."""
    graph = Graph(fp32)
    replace_masks(graph)
    types = graph.element_types()
    # An output that is cast at its end has another name before the cast.
    names = [name for node in graph.nodes for name in node.output if types.get(name) == TensorProto.FLOAT]
    probes = {}
    for name in names:
        if name in halves or f"{name}_inner" in halves or f"{name}_fp16" in halves:
            absolute = graph.add_node("Abs", [name], f"{name}_absolute")
            probe = graph.add_node("ReduceMax", [absolute], f"{name}_largest", keepdims=0)
            graph.graph.output.append(helper.make_tensor_value_info(probe, TensorProto.FLOAT, []))
            probes[probe] = name
    return graph.finish().SerializeToString(), probes
