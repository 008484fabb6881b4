"""Typed FP16: what stays FP32, what a constant becomes, and what the overflow check sees."""

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fsvit_edge.calib.convert import FLOAT32_IO, make_graph
from fsvit_edge.calib.convert_fp16 import MASK_FLOAT16, find_overflows, to_fp16
from fsvit_edge.calib.onnx_graph import Graph
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import ArtifactError

IN_FLOAT32 = ("LayerNormalization", "Softmax", "Gelu", "InstanceNormalization", "ReduceL2")
HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT


def small_graph(nodes: list[NodeProto], **constants: np.ndarray) -> bytes:
    inputs = [helper.make_tensor_value_info("x", SINGLE, [2, 4])]
    outputs = [helper.make_tensor_value_info("y", SINGLE, ["rows", "columns"])]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "small", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()


def typed(data: bytes, io: tuple[str, ...] = ()) -> Graph:
    model = to_fp16(data, io)
    onnx.checker.check_model(model, full_check=True)
    return Graph(model)


def run(data: bytes, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with OnnxRuntimeEngine(data, "cpu", 1) as engine:
        return {name: np.array(tensor.numpy()) for name, tensor in engine.run(feed).items()}


@pytest.mark.parametrize("name", ["encoder", "head"])
def test_norms_softmax_and_gelu_stay_in_fp32_and_products_do_not(name: str, tiny_graphs: dict[str, bytes]) -> None:
    graph = Graph(make_graph(tiny_graphs[name], name, "fp16", "tensorrt"))
    kinds = graph.element_types()
    in_float32 = [node for node in graph.nodes if node.op_type in IN_FLOAT32]
    products = [node for node in graph.nodes if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert {kinds[value] for node in in_float32 for value in (*node.input[:1], *node.output)} == {SINGLE}
    assert {kinds[value] for node in products for value in (*node.input, *node.output)} == {HALF}
    large = [key for key, value in graph.constants.items() if value.size > 1000 and value.dtype == np.float32]
    assert not large


def test_arithmetic_on_pixels_stays_in_fp32_up_to_the_patches(encoder: bytes) -> None:
    graph = Graph(make_graph(encoder, "encoder", "fp16", "tensorrt"))
    kinds = graph.element_types()
    patches = next(node for node in graph.nodes if node.op_type == "Conv")
    name, seen = patches.input[0], []
    while (node := graph.producer.get(name)) is not None:
        seen.append((node.op_type, kinds[name]))
        name = node.input[0]
    assert seen[0] == ("Cast", HALF)
    assert {kind for _, kind in seen[1:]} == {SINGLE}
    assert [operator for operator, _ in seen].count("Div") == 2


@pytest.mark.parametrize("name", ["encoder", "head"])
def test_inputs_and_outputs_have_the_types_of_an_engine_set(name: str, tiny_graphs: dict[str, bytes]) -> None:
    model = make_graph(tiny_graphs[name], name, "fp16", "tensorrt")
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]}
    assert kinds.pop("image", TensorProto.UINT8) == TensorProto.UINT8
    assert {value for value, kind in kinds.items() if kind == SINGLE} == FLOAT32_IO[name]
    assert {kind for value, kind in kinds.items() if value not in FLOAT32_IO[name]} == {HALF}


def test_the_encoder_computes_nearly_the_same_and_nothing_overflows(encoder: bytes, pictures: list[np.ndarray]) -> None:
    half = make_graph(encoder, "encoder", "fp16", "tensorrt")
    assert find_overflows(encoder, half, [{"image": picture} for picture in pictures]) == ()
    for picture in pictures:
        ours = run(half.SerializeToString(), {"image": picture})
        theirs = run(encoder, {"image": picture})
        for name, wanted in theirs.items():
            assert 0 < np.abs(ours[name] - wanted).max() < 0.01 * np.abs(wanted).max(), name


def test_padded_supports_are_masked_without_nan(tiny_graphs: dict[str, bytes]) -> None:
    """-1e9 would become -inf in FP16, and 0 * -inf is NaN."""
    rng = np.random.default_rng(0)
    shapes = {"tokens": (1, 18, 36, 64), "kept": (3, 18, 7, 64), "pooled": (3, 18, 9, 64)}
    feed = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    feed = {name: value / np.linalg.norm(value, axis=-1, keepdims=True) for name, value in feed.items()}
    feed |= {"kept_mask": np.ones((3, 7), np.float32), "pooled_mask": np.ones((3, 9), np.float32)}
    feed["kept_mask"][1, 3:] = feed["pooled_mask"][1] = feed["kept_mask"][2, 1:] = 0
    feed["averaging"] = np.eye(2, 3, dtype=np.float32) + np.eye(2, 3, 1, dtype=np.float32)
    half = make_graph(tiny_graphs["head"], "head", "fp16", "tensorrt")
    halves = {name: value.astype(np.float16) for name, value in feed.items() if name in shapes}
    ours, theirs = run(half.SerializeToString(), {**feed, **halves}), run(tiny_graphs["head"], feed)
    for name, wanted in theirs.items():
        np.testing.assert_allclose(ours[name], wanted, atol=5e-3)
    assert find_overflows(tiny_graphs["head"], half, [feed]) == ()
    values = [float(value) for value in Graph(half).constants.values() if value.size == 1 and value.dtype.kind == "f"]
    assert MASK_FLOAT16 in values
    assert np.isfinite(values).all()


def node(operator: str, inputs: str, output: str) -> NodeProto:
    return helper.make_node(operator, inputs.split(), [output])


EPSILON = np.float32(1e-12)
CLIP = [node("Clip", "x epsilon", "c"), node("Relu", "c", "y")]
DIVISION = [
    node("Clip", "x epsilon", "c"),
    node("Unsqueeze", "c first", "u"),
    node("Div", "x u", "d"),
    node("Reshape", "d shape", "y"),
]
POWERS = [node("Exp", "x", "e"), node("Add", "e e", "s"), node("MatMul", "s weight", "p"), node("Mul", "p p", "y")]


@pytest.mark.parametrize(
    ("nodes", "constants", "kinds"),
    [
        pytest.param(CLIP, {"epsilon": EPSILON}, {"Clip": SINGLE, "Relu": HALF}, id="an epsilon that FP16 rounds to 0"),
        pytest.param(CLIP, {"epsilon": np.float32(0.5)}, {"Clip": HALF, "Relu": HALF}, id="a harmless one"),
        pytest.param(
            DIVISION,
            {"epsilon": EPSILON, "first": np.array([0]), "shape": np.array([2, 4])},
            {"Clip": SINGLE, "Unsqueeze": SINGLE, "Div": SINGLE, "Reshape": HALF},
            id="a division by a clamped value",
        ),
        pytest.param(
            POWERS,
            {"weight": np.ones((4, 3), np.float32)},
            {"Exp": SINGLE, "Add": SINGLE, "MatMul": HALF, "Mul": SINGLE},
            id="sums of exponentials but not their products",
        ),
    ],
)
def test_what_fp16_would_spoil_stays_in_fp32(
    nodes: list[NodeProto], constants: dict[str, np.ndarray], kinds: dict[str, int]
) -> None:
    graph = typed(small_graph(nodes, **constants))
    types = graph.element_types()
    assert {node.op_type: types[node.output[0]] for node in graph.nodes if node.op_type != "Cast"} == kinds


def test_a_pattern_keeps_nodes_in_fp32(encoder: bytes) -> None:
    keep_fp32 = ("*blocks.0.attn.qkv.bias",)
    graph = Graph(make_graph(encoder, "encoder", "fp16", "tensorrt", keep_fp32=keep_fp32))
    kinds = graph.element_types()
    singles = [node for node in graph.nodes if node.op_type == "Gemm" and kinds[node.output[0]] == SINGLE]
    assert len(singles) == 1
    assert "blocks.0.attn.qkv.bias" in singles[0].input[2]


def test_outputs_of_fp32_nodes_and_shared_inputs_get_the_wanted_types() -> None:
    nodes = [node("Softmax", "x", "y"), node("Relu", "x", "unread")]
    for io, kind in (((), HALF), (("y",), SINGLE), (("x", "y"), SINGLE)):
        graph = typed(small_graph(nodes), io)
        assert graph.element_types()["y"] == kind
        assert [node.op_type for node in graph.nodes].count("Softmax") == 1
        assert "Relu" not in {node.op_type for node in graph.nodes}


def test_a_graph_that_cannot_be_converted_is_refused() -> None:
    with pytest.raises(ArtifactError, match="not an ONNX file"):
        to_fp16(b"not onnx at all", ())
    with pytest.raises(ArtifactError, match="not valid ONNX"):
        to_fp16(small_graph([node("MatMul", "x w", "y")], w=np.ones((5, 3), np.float32)), ())


def decomposed_norm() -> bytes:
    nodes = [node("Pow", "x two", "squares"), node("ReduceMean", "squares last", "variance")]
    nodes += [node("Sqrt", "variance", "deviation"), node("Div", "x deviation", "y")]
    return small_graph(nodes, two=np.float32(2), last=np.array([1]))


@pytest.mark.parametrize(
    ("size", "overflows"),
    [
        (100.0, {}),
        (400.0, {"squares": 160000.0, "variance": 160000.0}),
        (np.nan, dict.fromkeys(("squares", "variance", "deviation", "y"), np.inf)),
    ],
)
def test_overflow_in_a_split_norm_is_found_with_its_tensors(size: float, overflows: dict[str, float]) -> None:
    data = decomposed_norm()
    feed = {"x": np.full((2, 4), size, np.float32)}
    harmless = {"x": np.ones((2, 4), np.float32)}
    found = find_overflows(data, to_fp16(data, ()), [feed, harmless])
    assert {one.tensor: one.largest for one in found} == overflows
    kept = find_overflows(data, to_fp16(data, ("x", "y"), ("*",)), [feed])
    assert not kept


def test_a_weight_beyond_fp16_is_found() -> None:
    data = small_graph([node("MatMul", "x w", "y")], w=np.full((4, 3), 1e5, np.float32))
    found = find_overflows(data, to_fp16(data, ()), [{"x": np.zeros((2, 4), np.float32)}])
    assert [one.tensor for one in found] == ["w_fp16"]
