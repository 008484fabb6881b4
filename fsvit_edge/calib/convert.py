"""One function for every precision and backend: a bundle's FP32 graph -> the graph that an engine is built from."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import onnx
from onnx import NodeProto

from fsvit_edge.calib.convert_cpu import IntegerForm, fuse_attention, integer_form_here, quantize_for_cpu
from fsvit_edge.calib.convert_cpu_stem import quantize_stem, stem_layers
from fsvit_edge.calib.convert_fp16 import to_fp16
from fsvit_edge.calib.convert_int8 import chosen_layers, insert_qdq, linear_layers, smooth
from fsvit_edge.calib.onnx_graph import Graph, matches
from fsvit_edge.runtime.errors import ArtifactError, InputError, first_line

if TYPE_CHECKING:
    from fsvit_edge.calib.calibration import Calibration

FLOAT32_IO = {
    "encoder": frozenset[str](),
    "head": frozenset({"kept_mask", "pooled_mask", "averaging", "presence", "foreground"}),
}
"""Inputs and outputs that stay FP32 in FP16 and INT8 graphs for TensorRT; only the large tensors are FP16."""


def make_graph(
    data: bytes,
    graph: str,
    precision: str,
    backend: str,
    calibration: "Calibration | None" = None,
    keep_fp32: Sequence[str] = (),
    quantize: Sequence[str] = (),
    form: IntegerForm | None = None,
) -> onnx.ModelProto:
    """Make the graph of one precision for one backend.

    Only the encoder is quantized: an INT8 head is an FP16 head for TensorRT, and an FP32 head for ONNX Runtime, for
    which the graph may use ONNX Runtime's own operators.

    Args:
        data: The FP32 ONNX file; for INT8 it may already contain Q/DQ from another tool.
        graph: encoder or head.
        precision: One of `PRECISIONS`.
        backend: One of `BACKENDS`; FP16 is not for ONNX Runtime.
        calibration: Ranges of the encoder's tensors; needed for INT8 unless `data` is already quantized.
        keep_fp32: Shell-style patterns of nodes, operators or weights that compute in FP32.
        quantize: Patterns of the linear layers to quantize; empty for all, and on a CPU for long attention and a
            convolutional stem too.
        form: The integers that the CPU multiplies fastest; None for this machine's.

    Raises:
        InputError: The combination is not possible, or a pattern matches nothing.
        ArtifactError: The graph or the calibration cannot be used.
    """
    source = Graph(data)
    if source.is_quantized and precision != "int8":
        raise InputError(
            f"The {graph} graph is already quantized, so it cannot become {precision}; build it with --precision int8."
        )
    layers, ranges = [], {}
    if graph == "encoder" and precision == "int8" and not source.is_quantized:
        if calibration is None:
            raise InputError("INT8 needs a calibration; give one with --calib FILE or --calib SOURCE.")
        layers = chosen_layers(source, quantize, keep_fp32)
        ranges = smooth(source, layers, calibration.ranges.get(graph, {}), calibration.channel_max.get(graph, {}))
        names = {layer.node.name for layer in layers}
        layers = [layer for layer in linear_layers(source) if layer.node.name in names]  # smoothed weights
    if backend != "onnxruntime":
        insert_qdq(source, layers, ranges)
        if precision == "fp32":
            return source.finish()
        model = to_fp16(source.finish(), FLOAT32_IO[graph], keep_fp32)
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ArtifactError(f"The converted {graph} graph is not valid ONNX: {first_line(error)}.") from error
        return model
    assert precision != "fp16"
    if precision == "fp32" and graph == "encoder":
        fuse_attention(source)
    elif layers:
        form = form or integer_form_here()

        def in_int8(softmax: NodeProto) -> bool:
            return form.is_exact_and_fast and not quantize and not matches(source, softmax, keep_fp32)

        origin = fuse_attention(source, in_int8)
        names |= {part for part, whole in origin.items() if whole in names}
        layers = [layer for layer in linear_layers(source) if layer.node.name in names]
        quantize_for_cpu(source, layers, ranges, form)
        means = {} if calibration is None else calibration.channel_mean.get(graph, {})
        if form.is_exact_and_fast and means and not quantize and (stem := stem_layers(source, keep_fp32)):
            quantize_stem(source, stem, ranges, means)
    return source.finish()


def check_patterns(graphs: Iterable[bytes], keep_fp32: Sequence[str]) -> None:
    """Refuse a pattern that matches no node of any graph."""
    opened = [Graph(data) for data in graphs]
    for pattern in keep_fp32:
        if not any(matches(graph, node, [pattern]) for graph in opened for node in graph.nodes):
            raise InputError(
                f"--keep-fp32 {pattern!r} matches no node, operator or weight; "
                "try an operator such as Softmax, or part of a name such as '*blocks.11.*'."
            )
