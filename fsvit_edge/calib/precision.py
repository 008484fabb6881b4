"""One function for every precision and backend: a bundle's FP32 graph -> the graph that an engine is built from."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
from onnx import NodeProto

from fsvit_edge.calib.fp16 import to_fp16
from fsvit_edge.calib.int8 import LinearLayer, Ranges, chosen_layers, insert_qdq, linear_layers, smooth
from fsvit_edge.calib.int8_cpu import fuse_attention, integer_form_here, quantize_for_cpu
from fsvit_edge.calib.onnx_graph import Graph, matches
from fsvit_edge.runtime.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from fsvit_edge.calib.calibration import Calibration

FLOAT32_IO = {
    "encoder": frozenset[str](),
    "head": frozenset({"kept_mask", "pooled_mask", "averaging", "presence", "foreground"}),
}
"""Inputs and outputs that stay FP32 in FP16 and INT8 graphs for TensorRT; only the large tensors are FP16."""


@dataclass(frozen=True)
class PrecisionOptions:
    """What the user can choose.

    Attributes:
        keep_fp32: Shell-style patterns of nodes, operators or weights that compute in FP32.
        quantize: Patterns of the linear layers to quantize; empty for all, and on a CPU long attention too.
    """

    keep_fp32: tuple[str, ...] = ()
    quantize: tuple[str, ...] = ()


def make_graph(
    data: bytes,
    graph: str,
    precision: str,
    backend: str,
    calibration: "Calibration | None",
    options: PrecisionOptions,
) -> onnx.ModelProto:
    """Make the graph of one precision for one backend.

    Only the encoder is quantized: an INT8 head is an FP16 head for TensorRT, and an FP32 head for ONNX Runtime.

    Args:
        data: The FP32 ONNX file; for INT8 it may already contain Q/DQ from another tool.
        graph: encoder or head.
        precision: fp32, fp16 or int8.
        backend: tensorrt, tensorrt-rtx or onnxruntime.
        calibration: Ranges of the encoder's tensors; needed for INT8 unless `data` is already quantized.
        options: What the user chose.

    Returns:
        A graph that passes `onnx.checker`; for ONNX Runtime it may use ONNX Runtime's own operators.

    Raises:
        InputError: The combination is not possible, or a pattern matches nothing.
        ArtifactError: The graph or the calibration cannot be used.
    """
    source = Graph(data)
    if source.is_quantized and precision != "int8":
        raise InputError(
            f"The {graph} graph is already quantized, so it cannot become {precision}; build it with --precision int8."
        )
    match ("cpu" if backend == "onnxruntime" else "tensorrt", precision):
        case ("tensorrt", "fp32"):
            return source.finish()
        case ("tensorrt", "fp16"):
            return _to_valid_fp16(source, graph, options)
        case ("tensorrt", "int8"):
            layers, ranges = _layers_to_quantize(source, graph, calibration, options)
            insert_qdq(source, layers, ranges)
            return _to_valid_fp16(source, graph, options)
        case ("cpu", "fp32"):
            if graph == "encoder":
                fuse_attention(source)
            return source.finish()
        case ("cpu", "int8"):
            layers, ranges = _layers_to_quantize(source, graph, calibration, options)
            if layers:
                _to_int8_on_cpu(source, layers, ranges, options)
            return source.finish()
    raise AssertionError(f"no graph for {precision} and {backend}")


def check_patterns(graphs: Iterable[bytes], options: PrecisionOptions) -> None:
    """Refuse a `keep_fp32` pattern that matches no node of any graph.

    Raises:
        InputError: A pattern matches nothing.
    """
    opened = [Graph(data) for data in graphs]
    for pattern in options.keep_fp32:
        if not any(matches(graph, node, [pattern]) for graph in opened for node in graph.nodes):
            raise InputError(
                f"--keep-fp32 {pattern!r} matches no node, operator or weight; "
                "try an operator such as Softmax, or part of a name such as '*blocks.11.*'."
            )


def _layers_to_quantize(
    source: Graph, graph: str, calibration: "Calibration | None", options: PrecisionOptions
) -> tuple[list[LinearLayer], Ranges]:
    """The encoder's linear layers to quantize, smoothed, and the ranges of their activations."""
    if graph != "encoder" or source.is_quantized:
        return [], {}
    if calibration is None:
        raise InputError("INT8 needs a calibration; give one with --calib FILE or --calib SOURCE.")
    layers = chosen_layers(source, options.quantize, options.keep_fp32)
    ranges = smooth(source, layers, calibration.ranges.get(graph, {}), calibration.channel_max.get(graph, {}))
    return _layers_named(source, {layer.node.name for layer in layers}), ranges


def _to_valid_fp16(source: Graph, graph: str, options: PrecisionOptions) -> onnx.ModelProto:
    def keep(opened: Graph, node: NodeProto) -> bool:
        return matches(opened, node, options.keep_fp32)

    model = to_fp16(source.finish(), FLOAT32_IO[graph], keep)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"The converted {graph} graph is not valid ONNX: {str(error).splitlines()[0]}.") from error
    return model


def _to_int8_on_cpu(source: Graph, layers: list[LinearLayer], ranges: Ranges, options: PrecisionOptions) -> None:
    form = integer_form_here()

    def in_int8(softmax: NodeProto) -> bool:
        return form.suits_attention and not options.quantize and not matches(source, softmax, options.keep_fp32)

    names = {layer.node.name for layer in layers}
    origin = fuse_attention(source, in_int8)
    names |= {part for part, whole in origin.items() if whole in names}
    quantize_for_cpu(source, _layers_named(source, names), ranges, form)


def _layers_named(graph: Graph, names: set[str]) -> list[LinearLayer]:
    return [layer for layer in linear_layers(graph) if layer.node.name in names]
