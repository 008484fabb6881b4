"""Q/DQ for TensorRT: which tensors have it, which do not, and its scales."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fsvit_edge.calib.calibration import Calibration
from fsvit_edge.calib.convert import check_patterns, make_graph
from fsvit_edge.calib.convert_fp16 import FP16_MIN_NORMAL
from fsvit_edge.calib.convert_int8 import insert_qdq, linear_layers, quantize_weight, smooth
from fsvit_edge.calib.onnx_graph import Graph
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, InputError

BLOCKS = 6
Make = Callable[..., Graph]


@pytest.fixture
def made(encoder: bytes, calibration: Calibration) -> Make:
    def make(data: bytes | None = None, **patterns: tuple[str, ...]) -> Graph:
        data = data or encoder
        return Graph(make_graph(data, "encoder", "int8", "tensorrt-rtx", calibration, **patterns))

    return make


def nodes_of(graph: Graph, *operators: str) -> list[NodeProto]:
    return [node for node in graph.nodes if node.op_type in operators]


def count(graph: Graph, operator: str) -> int:
    return len(nodes_of(graph, operator))


def test_every_linear_layer_of_every_block_and_nothing_else_is_quantized(made: Make) -> None:
    graph = made()
    assert (count(graph, "QuantizeLinear"), count(graph, "DequantizeLinear")) == (4 * BLOCKS, 8 * BLOCKS)
    for node in nodes_of(graph, "DequantizeLinear"):
        assert [reader.op_type for reader in graph.readers(node.output[0])] == ["Gemm"]
    for node in nodes_of(graph, "Gemm"):
        assert [graph.producer[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    for node in nodes_of(graph, "MatMul", "Conv"):  # the products of attention, the patches
        makers = [graph.producer[name].op_type for name in node.input if name in graph.producer]
        assert "DequantizeLinear" not in makers


def test_scales_are_normal_numbers_of_fp16_and_zero_points_are_zero(made: Make) -> None:
    graph = made()
    for node in nodes_of(graph, "QuantizeLinear", "DequantizeLinear"):
        scale = graph.constants[node.input[1]]
        assert scale.dtype == np.float16
        assert (scale >= FP16_MIN_NORMAL).all()
        zero_points = [graph.constants[name] for name in node.input[2:]]
        assert all(zero.dtype == np.int8 and not zero.any() for zero in zero_points)
    for node in nodes_of(graph, "QuantizeLinear"):
        assert len(node.input) == 3  # without a zero point it would be uint8
        assert graph.constants[node.input[1]].ndim == 0


def test_weights_are_stored_as_int8_with_a_scale_for_each_output(made: Make, encoder: bytes) -> None:
    graph = made()
    stored = [value for value in graph.constants.values() if value.dtype == np.int8 and value.ndim == 2]
    assert len(stored) == 4 * BLOCKS
    assert not [value for value in graph.constants.values() if value.dtype == np.float16 and value.shape == (192, 576)]
    assert graph.model.ByteSize() < len(encoder) / 3
    for layer in linear_layers(Graph(encoder)):
        weight = Graph(encoder).constants[layer.weight]
        values, scales = quantize_weight(weight, layer.axis)
        assert scales.shape == (weight.shape[1],)
        assert np.abs(values * scales - weight).max() <= 0.5001 * scales.max()


def test_the_encoder_computes_nearly_the_same(made: Make, encoder: bytes, pictures: list[np.ndarray]) -> None:
    with (
        OnnxRuntimeEngine(made().model.SerializeToString(), "cpu", 1) as ours,
        OnnxRuntimeEngine(encoder, "cpu", 1) as theirs,
    ):
        for picture in pictures:
            got, wanted = ours.run({"image": picture})["tokens"].numpy(), theirs.run({"image": picture})["tokens"]
            cosine = (got.astype(np.float32) * wanted.numpy()).sum(-1)
            assert 0.98 < cosine.min() < 0.99999


def test_one_quantizer_serves_several_readers() -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((4, 3)).astype(np.float32) for name in ("a", "b")}
    nodes = [helper.make_node("MatMul", ["x", name], [f"y_{name}"]) for name in weights]
    outputs = [helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, [2, 3]) for name in weights]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, stored))
    graph = Graph(model)
    insert_qdq(graph, linear_layers(graph), {"x": (-2.0, 1.0)})
    graph = Graph(graph.finish())
    assert (count(graph, "QuantizeLinear"), count(graph, "DequantizeLinear")) == (1, 3)
    scale = graph.constants[next(node for node in graph.nodes if node.op_type == "QuantizeLinear").input[1]]
    assert scale == np.float16(2 / 127)


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-4, 1.0])
def test_a_weight_too_small_for_an_fp16_scale_still_gets_one(size: float) -> None:
    weight = np.linspace(-size, size, 12, dtype=np.float32).reshape(4, 3)
    values, scales = quantize_weight(weight, 1)
    assert (scales.astype(np.float16) >= FP16_MIN_NORMAL).all()
    assert np.abs(values * scales - weight).max() <= 0.51 * scales.max()


def test_a_transposed_weight_is_scaled_along_its_outputs() -> None:
    weight = np.diag([1.0, 100.0]).astype(np.float32) + np.array([[0, 0.5], [50, 0]], np.float32)
    for axis in (0, 1):
        values, scales = quantize_weight(weight if axis == 1 else weight.T, axis)
        turned = values if axis == 1 else values.T
        np.testing.assert_allclose(turned * scales, weight, atol=0.5 * float(scales.max()))
        assert scales.shape == (2,)


@pytest.mark.parametrize(
    ("options", "quantized"),
    [
        ({"keep_fp32": ("*blocks.5.*",)}, 4 * (BLOCKS - 1)),
        ({"quantize": ("*mlp.fc?.bias",)}, 2 * BLOCKS),
        ({"keep_fp32": ("*fc2*",), "quantize": ("*blocks.0.*",)}, 3),
    ],
)
def test_patterns_choose_the_layers(made: Make, options: dict[str, Any], quantized: int) -> None:
    assert count(made(**options), "QuantizeLinear") == quantized


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": ("*nothing*",)}, "--quantize '\\*nothing\\*' matches no linear layer"),
        ({"quantize": ("Softmax",)}, "matches no linear layer"),
        ({"keep_fp32": ("Gemm",)}, "No linear layer is left"),
    ],
)
def test_patterns_that_match_nothing_are_refused(made: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(**options)


def test_a_keep_fp32_pattern_must_match_in_one_of_the_graphs(tiny_graphs: dict[str, bytes]) -> None:
    graphs = [tiny_graphs["encoder"], tiny_graphs["head"]]
    check_patterns(graphs, ("Gelu", "InstanceNormalization", "*blocks.0.*"))
    with pytest.raises(InputError, match="--keep-fp32 'Gellu' matches no node"):
        check_patterns(graphs, ("Gelu", "Gellu"))


def test_int8_without_ranges_is_refused(encoder: bytes, calibration: Calibration) -> None:
    with pytest.raises(InputError, match="--calib"):
        make_graph(encoder, "encoder", "int8", "tensorrt")
    missing = Calibration(**{**vars(calibration), "ranges": {"encoder": {}}, "channel_max": {}})
    with pytest.raises(ArtifactError, match="no usable range for tensor"):
        make_graph(encoder, "encoder", "int8", "tensorrt", missing)


def test_an_int8_head_is_an_fp16_head(tiny_graphs: dict[str, bytes], calibration: Calibration) -> None:
    made = [
        make_graph(tiny_graphs["head"], "head", precision, "tensorrt", calibration).SerializeToString()
        for precision in ("fp16", "int8")
    ]
    assert made[0] == made[1]


def foreign(encoder: bytes, calibration: Calibration, scale: float | None = None) -> bytes:
    """As other tools write it: FP32 weights with a Q of their own, and Q/DQ on a residual."""
    graph = Graph(encoder)
    insert_qdq(graph, linear_layers(graph), calibration.ranges["encoder"])
    graph = Graph(graph.finish())
    for node in graph.nodes:
        weight = graph.constants.get(node.input[0])
        if node.op_type == "DequantizeLinear" and weight is not None:
            scales = graph.constants[node.input[1]]
            whole = graph.add_constant("whole", weight * scales)
            zeros = graph.add_constant("zeros", np.zeros(scales.shape, np.int8))
            node.input[0] = graph.add_node("QuantizeLinear", [whole, node.input[1], zeros], "quantized", axis=1)
            node.input.append(zeros)
    residual = next(node for node in graph.nodes if node.op_type == "Add" and node.input[0] in graph.producer)
    step = graph.add_constant("step", np.float32(0.1 if scale is None else scale))
    zero = graph.add_constant("zero", np.zeros((), np.int8))
    integers = graph.add_node("QuantizeLinear", [residual.input[0], step, zero], "residual")
    residual.input[0] = graph.add_node("DequantizeLinear", [integers, step, zero], "residual_dequantized")
    return graph.finish().SerializeToString()


def test_a_graph_quantized_by_another_tool_is_accepted_unchanged(
    made: Make, encoder: bytes, calibration: Calibration
) -> None:
    data = foreign(encoder, calibration)
    before, after = Graph(data), made(data)
    for operator in ("QuantizeLinear", "DequantizeLinear", "Gemm", "LayerNormalization"):
        assert count(before, operator) == count(after, operator) > 0
    scales = {after.constants[node.input[1]].dtype for node in after.nodes if node.op_type.endswith(("uantizeLinear",))}
    assert scales == {np.dtype(np.float16)}
    onnx.checker.check_model(after.model, full_check=True)
    needs_no_ranges = make_graph(data, "encoder", "int8", "tensorrt")
    assert needs_no_ranges.ByteSize() > 0
    for precision in ("fp32", "fp16"):
        with pytest.raises(InputError, match="already quantized"):
            make_graph(data, "encoder", precision, "tensorrt")


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-5, -0.1, 1e5, float("nan")])
def test_a_scale_that_is_not_a_normal_fp16_number_is_refused(
    made: Make, scale: float, encoder: bytes, calibration: Calibration
) -> None:
    with pytest.raises(FsvitEdgeError, match="positive normal"):
        made(foreign(encoder, calibration, scale))


# ----------------------------------------------------------- smoothing: exact in FP32, and where it lowers the error


def tokens(data: bytes, picture: np.ndarray) -> np.ndarray:
    with OnnxRuntimeEngine(data, "cpu", 1) as engine:
        return np.array(engine.run({"image": picture})["tokens"].numpy(), np.float32)


@pytest.fixture(scope="module")
def planted(encoder: bytes, calibration: Calibration) -> tuple[bytes, Calibration]:
    """The same function with outlying channels after each norm, as large vision transformers have them."""
    graph = Graph(encoder)
    ranges, largest = dict(calibration.ranges["encoder"]), dict(calibration.channel_max["encoder"])
    for layer in linear_layers(graph):
        view = graph.producer[layer.activation]
        norm = graph.producer.get(view.input[0])
        if norm is not None and norm.op_type == "LayerNormalization":
            scale = np.ones(192, np.float32)
            scale[[3, 77, 150]] = 40
            for position in (1, 2):
                norm.input[position] = graph.add_constant("planted", graph.constants[norm.input[position]] * scale)
            layer.node.input[1] = graph.add_constant("planted", graph.constants[layer.weight] / scale[:, None])
            largest[layer.activation] = list(np.asarray(largest[layer.activation]) * scale)
            bound = max(largest[layer.activation])
            ranges[layer.activation] = (-bound, bound)
    changed = replace(calibration, ranges={"encoder": ranges}, channel_max={"encoder": largest})
    return graph.finish().SerializeToString(), changed


def test_a_smoothed_graph_computes_the_same_and_its_ranges_fit(
    encoder: bytes, calibration: Calibration, pictures: list[np.ndarray]
) -> None:
    graph = Graph(encoder)
    ranges, largest = calibration.ranges["encoder"], calibration.channel_max["encoder"]
    changed = smooth(graph, linear_layers(graph), ranges, largest, always=True)
    assert sum(changed[name] != ranges[name] for name in ranges) == 12  # qkv and fc1 of six blocks
    data = graph.finish().SerializeToString()
    before = Graph(encoder).constants
    assert any(name not in before for name in Graph(data).constants)
    for picture in pictures:
        ours, theirs = tokens(data, picture), tokens(encoder, picture)
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    first = linear_layers(graph)[0].activation
    graph.graph.output.append(helper.make_tensor_value_info(first, TensorProto.FLOAT, None))
    with OnnxRuntimeEngine(graph.finish().SerializeToString(), "cpu", 1) as engine:
        seen = max(float(np.abs(engine.run({"image": one})[first].numpy()).max()) for one in pictures)
    assert seen == pytest.approx(changed[first][1], rel=1e-3)


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime"])
def test_smoothing_helps_with_outlier_channels(
    planted: tuple[bytes, Calibration], pictures: list[np.ndarray], backend: str
) -> None:
    data, calibration = planted
    errors = []
    for used in (calibration, replace(calibration, channel_max={})):  # without the channels nothing is smoothed
        made = make_graph(data, "encoder", "int8", backend, used).SerializeToString()
        errors.append(np.mean([np.abs(tokens(made, one) - tokens(data, one)) for one in pictures]))
    assert errors[0] < errors[1] / 2


def test_smoothing_is_not_used_where_it_would_hurt(encoder: bytes) -> None:
    """A single large weight would make its channel an outlier of activations that are even."""
    graph = Graph(encoder)
    layers = [layer for layer in linear_layers(graph) if len(graph.constants[layer.weight]) == 192][:1]
    weight = np.ones((192, 576), np.float32)
    weight[0, 0] = 100
    layers[0].node.input[1] = graph.add_constant("uneven", weight)
    layers = [layer for layer in linear_layers(graph) if layer.weight == "uneven"]
    even = {layers[0].activation: [1.0] * 192}
    ranges = {layers[0].activation: (-1.0, 1.0)}
    assert smooth(graph, layers, ranges, even) == ranges
    assert smooth(graph, layers, ranges, even, always=True) != ranges


@pytest.mark.parametrize("break_it", [lambda _: {}, lambda values: {name: row[:-1] for name, row in values.items()}])
def test_without_matching_channels_nothing_is_smoothed(
    break_it: Callable[[dict[str, list[float]]], dict[str, list[float]]],
    encoder: bytes,
    calibration: Calibration,
) -> None:
    graph = Graph(encoder)
    ranges = calibration.ranges["encoder"]
    largest = break_it(calibration.channel_max["encoder"])
    assert smooth(graph, linear_layers(graph), ranges, largest, always=True) == ranges
