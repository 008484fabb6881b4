"""A convolutional stem in INT8 for ONNX Runtime on a CPU: which layers, and how close to FP32."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from fsvit_edge.calib import convert, convert_cpu_stem
from fsvit_edge.calib.calibration import Calibration
from fsvit_edge.calib.convert import make_graph
from fsvit_edge.calib.convert_cpu import IntegerForm
from fsvit_edge.calib.convert_cpu_stem import stem_layers, stem_tensors
from fsvit_edge.calib.onnx_graph import Graph
from fsvit_edge.calib.ranges import collect_ranges
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import ArtifactError

SIDE, DIM = 32, 8
VNNI = IntegerForm(signed=False, largest_weight=127)
TRUNK_MEAN = 127 / 255
"""Times 255 it is a whole number, which can stand for 0."""


@pytest.fixture(autouse=True)
def fast_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine makes the graphs of one with VNNI instructions."""
    monkeypatch.setattr(convert, "integer_form_here", lambda: VNNI)


def stem_model(mean: float = TRUNK_MEAN) -> bytes:
    """An encoder whose stem has two inverted residuals behind two first layers, with a decoder and a linear layer."""
    rng = np.random.default_rng(0)
    constants: dict[str, npt.NDArray[np.generic]] = {
        "levels": np.float32(255),
        "mean": np.full(3, mean, np.float32),
        "deviation": np.full(3, 128 / 255, np.float32),
        "zero": np.float32(0),
        "six": np.float32(6),
        "shape": np.array([-1, (SIDE // 4) ** 2, DIM]),
        "fc.weight": (rng.standard_normal((DIM, DIM)) / 3).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "levels"], ["n0"]),
        helper.make_node("Sub", ["n0", "mean"], ["n1"]),
        helper.make_node("Div", ["n1", "deviation"], ["n2"]),
        helper.make_node("Transpose", ["n2"], ["picture"], perm=[0, 3, 1, 2]),
    ]

    def conv(name: str, source: str, channels: int, have: int, side: int, group: int = 1, stride: int = 1) -> str:
        weight = rng.standard_normal((channels, have // group, side, side)) / (have // group * side**2) ** 0.5
        constants[f"{name}.weight"] = (weight * 2).astype(np.float32)
        constants[f"{name}.bias"] = rng.uniform(0, 2, channels).astype(np.float32)
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        pads, strides = [side // 2] * 4, [stride] * 2
        attributes = {"group": group, "kernel_shape": [side, side], "pads": pads, "strides": strides}
        nodes.append(helper.make_node("Conv", inputs, [name], name, **attributes))
        return name

    def clip(name: str) -> str:
        nodes.append(helper.make_node("Clip", [name, "zero", "six"], [f"{name}_6"]))
        return f"{name}_6"

    def inverted(name: str, source: str) -> str:
        wide = clip(conv(f"{name}.expand", source, 48, 16, 1))
        return conv(f"{name}.narrow", clip(conv(f"{name}.depthwise", wide, 48, 48, 3, group=48)), 16, 48, 1)

    first = clip(conv("first", "picture", 16, 3, 3, stride=2))
    start = conv("start", first, 16, 16, 1)
    nodes.append(helper.make_node("Add", [inverted("a", start), start], ["sum"]))
    last = inverted("b", "sum")
    nodes.append(helper.make_node("Relu", [conv("decoder", "sum", 1, 16, 1)], ["objectness"]))
    conv("project", last, DIM, 16, 3, stride=2)
    nodes.append(helper.make_node("Transpose", ["project"], ["last"], perm=[0, 2, 3, 1]))
    nodes.append(helper.make_node("Reshape", ["last", "shape"], ["rows"]))
    nodes.append(helper.make_node("MatMul", ["rows", "fc.weight"], ["tokens"]))
    image = helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["batch", SIDE, SIDE, 3])
    outputs = [
        helper.make_tensor_value_info("tokens", onnx.TensorProto.FLOAT, ["batch", (SIDE // 4) ** 2, DIM]),
        helper.make_tensor_value_info("objectness", onnx.TensorProto.FLOAT, ["batch", 1, SIDE // 2, SIDE // 2]),
    ]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "encoder", [image], outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def pictures(count: int, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1) for _ in range(count)]


def calibrate(data: bytes, method: str = "percentile") -> Calibration:
    shipped = Bundle.load(DEFAULT_BUNDLE)
    info = replace(shipped.manifest.graphs["encoder"], sha256=hashlib.sha256(data).hexdigest())
    manifest = replace(shipped.manifest, image_size=SIDE, graphs={"encoder": info})
    return collect_ranges(Bundle(Path("stem"), manifest, {"encoder": data}), pictures(12, seed=1), method)


@pytest.fixture(scope="module")
def encoder() -> bytes:
    return stem_model()


@pytest.fixture(scope="module")
def calibration(encoder: bytes) -> Calibration:
    return calibrate(encoder)


def quantized(data: bytes, calibration: Calibration, keep_fp32: tuple[str, ...] = ()) -> bytes:
    made = make_graph(data, "encoder", "int8", "onnxruntime", calibration, keep_fp32)
    return bytes(made.SerializeToString())


def count(data: bytes, operator: str) -> int:
    return sum(node.op_type == operator for node in Graph(data).nodes)


def errors(ours: bytes, theirs: bytes) -> dict[str, float]:
    """Output -> relative error over pictures that were not calibrated on."""
    batch = np.stack(pictures(4))
    with OnnxRuntimeEngine(ours, "cpu", 1) as got, OnnxRuntimeEngine(theirs, "cpu", 1) as want:
        assert (got.inputs, got.outputs) == (want.inputs, want.outputs)
        pairs = [{name: one.numpy() for name, one in each.run({"image": batch}).items()} for each in (got, want)]
    return {
        name: float(np.linalg.norm(pairs[0][name] - value) / np.linalg.norm(value)) for name, value in pairs[1].items()
    }


def test_the_chain_begins_behind_the_first_narrow_layer_and_ends_before_the_tokens(encoder: bytes) -> None:
    names = [layer.node.name for layer in stem_layers(Graph(encoder))]
    chain = [f"{block}.{layer}" for block in "ab" for layer in ("expand", "depthwise", "narrow")]
    assert names == [*chain[:3], "node_sum", *chain[3:]]
    bounded = {f"{block}.{layer}_6": True for block in "ab" for layer in ("expand", "depthwise")}
    assert stem_tensors(Graph(encoder)) == {"start": False, "sum": False, **bounded}


def test_a_patch_embedding_is_no_stem(tiny_graphs: dict[str, bytes]) -> None:
    assert stem_layers(Graph(tiny_graphs["encoder"])) == []
    assert any(node.op_type == "Conv" for node in Graph(tiny_graphs["encoder"]).nodes)


def test_integer_convolutions_and_sums_are_close_for_every_output_and_batch(
    encoder: bytes, calibration: Calibration
) -> None:
    made = quantized(encoder, calibration)
    counts = {kind: count(made, kind) for kind in ("QLinearConv", "MatMulIntegerToFloat", "Conv", "Clip")}
    assert counts == {"QLinearConv": 4, "MatMulIntegerToFloat": 3, "Conv": 4, "Clip": 1}  # one product is of tokens
    assert max(errors(made, encoder).values()) < 0.05


def test_wrong_ranges_are_noticed(encoder: bytes, calibration: Calibration) -> None:
    """The control of the test before: a range that is too small loses what is outside."""
    ranges = {**calibration.ranges["encoder"], "sum": (-4.0, 4.0)}
    assert errors(quantized(encoder, replace(calibration, ranges={"encoder": ranges})), encoder)["tokens"] > 0.1


@pytest.mark.parametrize("name", ["a.expand", "a.depthwise", "a.narrow"])
def test_biases_take_the_shift_of_rounded_weights_back(name: str, encoder: bytes, calibration: Calibration) -> None:
    graph = Graph(encoder)
    node = next(node for node in graph.nodes if node.name == name)
    means = np.asarray(calibration.channel_mean["encoder"][node.input[0]])
    exact, bias = (graph.constants[constant].astype(np.float64) for constant in node.input[1:])
    found = convert_cpu_stem._Weight(graph, node, means)
    rounded = found.integers * found.scales[:, None, None, None].astype(np.float64)
    shares = means[:, None] if name == "a.depthwise" else means[None, :]  # of each output, (out or 1, in / group)

    def mean_of(weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray((weight.sum(axis=(2, 3)) * shares).sum(axis=1))

    np.testing.assert_allclose(mean_of(rounded) + found.bias, mean_of(exact) + bias, atol=1e-9)
    assert np.abs(mean_of(rounded) - mean_of(exact)).max() > 1e-3  # without the correction it would be off


def test_a_layer_can_stay_in_fp32_and_its_neighbors_still_compute_the_same(
    encoder: bytes, calibration: Calibration
) -> None:
    made = quantized(encoder, calibration, ("a.depthwise",))
    assert (count(made, "QLinearConv"), count(made, "MatMulIntegerToFloat")) == (3, 2)
    assert max(errors(made, encoder).values()) < 0.05


@pytest.mark.parametrize(
    "change",
    [
        lambda calibration: replace(calibration, channel_mean={}),  # made before the stem could be INT8
        lambda calibration: calibration,
    ],
)
def test_the_stem_stays_in_fp32_without_means_or_fast_products(
    change: Callable[[Calibration], Calibration],
    encoder: bytes,
    calibration: Calibration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = change(calibration)
    if changed.channel_mean:
        monkeypatch.setattr(convert, "integer_form_here", lambda: IntegerForm(signed=False, largest_weight=63))
    made = quantized(encoder, changed)
    assert (count(made, "QLinearConv"), count(made, "MatMulIntegerToFloat")) == (0, 1)


def test_a_tensor_without_a_range_is_named(encoder: bytes, calibration: Calibration) -> None:
    ranges = {name: one for name, one in calibration.ranges["encoder"].items() if name != "sum"}
    with pytest.raises(ArtifactError, match=r"no usable range for tensor 'sum'"):
        quantized(encoder, replace(calibration, ranges={"encoder": ranges}))


def test_a_normalization_with_a_whole_zero_becomes_one_operator(encoder: bytes) -> None:
    graph = Graph(encoder)
    convert_cpu_stem._shorten_normalization(graph)
    kinds = [node.op_type for node in graph.nodes]
    assert (kinds[:3], kinds.count("Sub")) == (["DequantizeLinear", "Transpose", "Conv"], 0)
    assert max(errors(graph.finish().SerializeToString(), encoder).values()) < 1e-5


def test_any_other_normalization_stays() -> None:
    encoder = stem_model(mean=0.485)
    assert count(quantized(encoder, calibrate(encoder)), "Sub") == 1


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_calibration_has_the_range_and_means_of_what_the_stem_stores(encoder: bytes, method: str) -> None:
    found = calibrate(encoder, method)
    tensors = stem_tensors(Graph(encoder))
    assert found.ranges["encoder"].keys() == {*tensors, "rows"}
    assert found.channel_mean["encoder"].keys() == tensors.keys()
    graph = Graph(encoder)
    graph.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors)
    with OnnxRuntimeEngine(graph.finish().SerializeToString(), "cpu", 1) as engine:
        plainly = engine.run({"image": np.stack(pictures(12, seed=1))})
    for name, is_bounded in tensors.items():
        values = plainly[name].numpy()
        low, high = found.ranges["encoder"][name]
        scale = float(np.abs(values).max())
        step = (high - low) / 255
        np.testing.assert_allclose(found.channel_mean["encoder"][name], values.mean(axis=(0, 2, 3)), atol=0.51 * step)
        if method == "minmax" or is_bounded:
            np.testing.assert_allclose([low, high], [values.min(), values.max()], atol=1e-5 * scale)
        else:
            assert values.min() - 0.01 * scale <= low < high <= values.max() + 0.01 * scale
