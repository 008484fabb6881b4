"""Smoothing: exact in FP32, and chosen where it lowers the error."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fsvit_edge.calib.calibration import Calibration
from fsvit_edge.calib.int8 import linear_layers, smooth
from fsvit_edge.calib.onnx_graph import Graph
from fsvit_edge.calib.precision import PrecisionOptions, make_graph
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine

OUTLIER = 40.0
CHANNELS = (3, 77, 150)


def tokens(data: bytes, picture: np.ndarray) -> np.ndarray:
    with OnnxRuntimeEngine(data, "cpu", 1) as engine:
        return np.array(engine.run({"image": picture})["tokens"].numpy(), np.float32)


@pytest.fixture(scope="module")
def planted(
    tiny_graphs: dict[str, bytes], tiny_calibration: Calibration
) -> tuple[bytes, dict[str, tuple[float, float]], dict[str, list[float]]]:
    """The same function with outlying channels after each norm, as large vision transformers have them."""
    graph = Graph(tiny_graphs["encoder"])
    ranges, largest = dict(tiny_calibration.ranges["encoder"]), dict(tiny_calibration.channel_max["encoder"])
    for layer in linear_layers(graph):
        view = graph.producer[layer.activation]
        norm = graph.producer.get(view.input[0])
        if norm is not None and norm.op_type == "LayerNormalization":
            scale = np.ones(192, np.float32)
            scale[list(CHANNELS)] = OUTLIER
            for position in (1, 2):
                norm.input[position] = graph.add_constant("planted", graph.constants[norm.input[position]] * scale)
            layer.node.input[1] = graph.add_constant("planted", graph.constants[layer.weight] / scale[:, None])
            largest[layer.activation] = list(np.asarray(largest[layer.activation]) * scale)
            bound = max(largest[layer.activation])
            ranges[layer.activation] = (-bound, bound)
    return graph.finish().SerializeToString(), ranges, largest


def test_a_smoothed_graph_computes_the_same(
    tiny_graphs: dict[str, bytes], tiny_calibration: Calibration, pictures: list[np.ndarray]
) -> None:
    graph = Graph(tiny_graphs["encoder"])
    ranges, largest = tiny_calibration.ranges["encoder"], tiny_calibration.channel_max["encoder"]
    changed = smooth(graph, linear_layers(graph), ranges, largest, always=True)
    assert sum(changed[name] != ranges[name] for name in ranges) == 12  # qkv and fc1 of six blocks
    data = graph.finish().SerializeToString()
    before = Graph(tiny_graphs["encoder"]).constants
    assert any(name not in before for name in Graph(data).constants)
    for picture in pictures:
        ours, theirs = tokens(data, picture), tokens(tiny_graphs["encoder"], picture)
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_the_new_ranges_fit_the_new_tensors(
    tiny_graphs: dict[str, bytes], tiny_calibration: Calibration, pictures: list[np.ndarray]
) -> None:
    graph = Graph(tiny_graphs["encoder"])
    layers = linear_layers(graph)
    largest = tiny_calibration.channel_max["encoder"]
    changed = smooth(graph, layers, tiny_calibration.ranges["encoder"], largest, always=True)
    for layer in linear_layers(graph)[:1]:
        graph.graph.output.append(graph.graph.output[0])
        graph.graph.output[-1].CopyFrom(graph.graph.output[0])
        graph.graph.output[-1].name = layer.activation
        graph.graph.output[-1].type.tensor_type.ClearField("shape")
        with OnnxRuntimeEngine(graph.finish().SerializeToString(), "cpu", 1) as engine:
            seen = max(float(np.abs(engine.run({"image": one})[layer.activation].numpy()).max()) for one in pictures)
        assert seen == pytest.approx(changed[layer.activation][1], rel=1e-3)


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime"])
def test_smoothing_helps_with_outlier_channels(
    planted: tuple[bytes, dict[str, tuple[float, float]], dict[str, list[float]]],
    tiny_calibration: Calibration,
    pictures: list[np.ndarray],
    backend: str,
) -> None:
    data, ranges, largest = planted
    errors = []
    for channel_max in ({"encoder": largest}, {}):  # nothing is smoothed without the channels' values
        calibration = replace(tiny_calibration, ranges={"encoder": ranges}, channel_max=channel_max)
        made = make_graph(data, "encoder", "int8", backend, calibration, PrecisionOptions())
        answers = [tokens(made.SerializeToString(), one) - tokens(data, one) for one in pictures]
        errors.append(float(np.mean(np.abs(answers))))
    assert errors[0] < errors[1] / 2


def test_smoothing_is_not_used_where_it_would_hurt(tiny_graphs: dict[str, bytes]) -> None:
    """A single large weight would make its channel an outlier of activations that are even."""
    graph = Graph(tiny_graphs["encoder"])
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
    tiny_graphs: dict[str, bytes],
    tiny_calibration: Calibration,
) -> None:
    graph = Graph(tiny_graphs["encoder"])
    ranges = tiny_calibration.ranges["encoder"]
    largest = break_it(tiny_calibration.channel_max["encoder"])
    assert smooth(graph, linear_layers(graph), ranges, largest, always=True) == ranges
