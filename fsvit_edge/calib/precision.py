"""One function for every target: a bundle's FP32 graph -> the graph that an engine is built from."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
from onnx import NodeProto

from fsvit_edge.calib.cpu_attention import fuse_attention
from fsvit_edge.calib.cpu_graph import integer_form_here, quantize_for_cpu
from fsvit_edge.calib.fp16 import to_fp16
from fsvit_edge.calib.onnx_graph import Graph, matches
from fsvit_edge.calib.quantize import LinearLayer, Ranges, chosen_layers, insert_qdq, linear_layers
from fsvit_edge.calib.smooth import smooth
from fsvit_edge.runtime.engines.onnx_runtime import refuse_fp16_on_cpu
from fsvit_edge.runtime.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from fsvit_edge.calib.calibration import Calibration

PRECISIONS = ("fp32", "fp16", "int8")
TARGETS = ("tensorrt", "tensorrt-rtx", "onnxruntime")
FLOAT32_IO = {
    "encoder": frozenset[str](),
    "head": frozenset({"kept_mask", "pooled_mask", "averaging", "presence", "foreground"}),
}
"""Inputs and outputs that stay FP32 in FP16 and INT8 plans; the tensors that are large are FP16."""


@dataclass(frozen=True)
class PrecisionOptions:
    """What the user may steer.

    Attributes:
        keep_fp32: Patterns of nodes, operators or weights that compute in FP32; as of a shell.
        quantize: Patterns of the linear layers to quantize; none: all, and on a CPU the attention of long sequences.
        smooth: Move the scale of outlying channels from activations to weights before quantizing; None: where it
            lowers the error.
    """

    keep_fp32: tuple[str, ...] = ()
    quantize: tuple[str, ...] = ()
    smooth: bool | None = None


def make_graph(
    data: bytes,
    graph: str,
    precision: str,
    target: str,
    calibration: "Calibration | None",
    options: PrecisionOptions,
) -> onnx.ModelProto:
    """Make the graph of one precision for one target.

    Args:
        data: The FP32 ONNX file's bytes; for INT8 it may already hold Q/DQ made elsewhere.
        graph: encoder or head.
        precision: One of `PRECISIONS`.
        target: One of `TARGETS`.
        calibration: Ranges of the encoder's tensors; needed for INT8 unless `data` is quantized already.
        options: What the user steers.

    Returns:
        A graph that passes `onnx.checker` (for ONNX Runtime it may use that one's own operators).

    Raises:
        InputError: The combination makes no sense, or a pattern matches nothing.
        ArtifactError: The graph or the calibration cannot be used.
    """
    source = Graph(data)
    if source.is_quantized and precision != "int8":
        raise InputError(f"The {graph} graph is quantized already, so it cannot become {precision}; build it as int8.")
    if target == "onnxruntime":
        refuse_fp16_on_cpu(precision)
    layers: list[LinearLayer] = []
    ranges: Ranges = {}
    if precision == "int8" and graph == "encoder" and not source.is_quantized:
        if calibration is None:
            raise InputError("INT8 needs the ranges of a calibration; give one with --calib FILE or --calib SOURCE.")
        layers = chosen_layers(source, options.quantize, options.keep_fp32)
        ranges = calibration.ranges.get(graph, {})
        if options.smooth is not False:
            ranges = smooth(source, layers, ranges, calibration.channel_max.get(graph, {}), options.smooth is True)
            layers = _named(source, {layer.node.name for layer in layers})
    if target == "onnxruntime":
        return _for_cpu(source, graph, layers, ranges, options)
    if precision == "fp32":
        return source.finish()
    if layers:
        insert_qdq(source, layers, ranges)
    return checked(to_fp16(source.finish(), FLOAT32_IO[graph], keeper(options.keep_fp32)), graph)


def _for_cpu(
    source: Graph, graph: str, layers: list[LinearLayer], ranges: Ranges, options: PrecisionOptions
) -> onnx.ModelProto:
    form = integer_form_here()
    may_be_int8 = bool(layers) and form.suits_attention and not options.quantize
    keep = keeper(options.keep_fp32)
    if graph == "encoder" and not source.is_quantized:
        names = {layer.node.name for layer in layers}
        origin = fuse_attention(source, lambda softmax: may_be_int8 and not keep(source, softmax))
        layers = _named(source, names | {part for part, whole in origin.items() if whole in names})
    if layers:
        quantize_for_cpu(source, layers, ranges, form)
    return source.finish()


def _named(graph: Graph, names: set[str]) -> list[LinearLayer]:
    return [layer for layer in linear_layers(graph) if layer.node.name in names]


def keeper(patterns: tuple[str, ...]) -> Callable[[Graph, NodeProto], bool]:
    """Return what says of a node whether a pattern keeps it in FP32."""

    def keep(graph: Graph, node: NodeProto) -> bool:
        return matches(graph, node, patterns)

    return keep


def checked(model: onnx.ModelProto, graph: str) -> onnx.ModelProto:
    """Pass a model through ONNX's checker.

    Raises:
        ArtifactError: It is not valid.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"The converted {graph} graph is not valid ONNX: {str(error).splitlines()[0]}.") from error
    return model


def check_patterns(graphs: Iterable[bytes], options: PrecisionOptions) -> None:
    """Refuse a pattern of `keep_fp32` that matches no node of any of the graphs.

    Raises:
        InputError: One does.
    """
    opened = [Graph(data) for data in graphs]
    for pattern in options.keep_fp32:
        if not any(matches(graph, node, [pattern]) for graph in opened for node in graph.nodes):
            raise InputError(
                f"--keep-fp32 {pattern!r} matches no node, operator or weight; "
                "try an operator's name as Softmax, or a part as '*blocks.11.*'."
            )
