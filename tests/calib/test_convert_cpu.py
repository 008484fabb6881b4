"""ONNX Runtime on the CPU: fused attention is exact, INT8 linear layers and INT8 attention are close."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from fsvit_edge.calib import convert, convert_cpu
from fsvit_edge.calib.calibration import Calibration
from fsvit_edge.calib.convert import make_graph
from fsvit_edge.calib.convert_cpu import IntegerForm, attend_in_int8, integer_form
from fsvit_edge.calib.convert_int8 import linear_layers
from fsvit_edge.calib.onnx_graph import ORT_DOMAIN, Graph
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine

BLOCKS, HEADS, DIM = 6, 3, 64
VNNI = IntegerForm(signed=False, largest_weight=127)


@pytest.fixture(autouse=True)
def fast_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine makes the graphs of one with VNNI instructions."""
    monkeypatch.setattr(convert, "integer_form_here", lambda: VNNI)


def run(data: bytes, picture: np.ndarray) -> dict[str, np.ndarray]:
    with OnnxRuntimeEngine(data, "cpu", 1) as engine:
        return {name: np.array(tensor.numpy()) for name, tensor in engine.run({"image": picture}).items()}


def count(model: Graph, operator: str) -> int:
    return sum(node.op_type == operator for node in model.nodes)


def mean_errors(ours: bytes, theirs: bytes, pictures: list[np.ndarray]) -> list[float]:
    pairs = [(run(ours, one), run(theirs, one)) for one in pictures]
    return [
        float(np.mean([np.abs(got[name] - want[name]).mean() / np.abs(want[name]).mean() for got, want in pairs]))
        for name in pairs[0][1]
    ]


@pytest.mark.parametrize("batch", [1, 3])
def test_fused_attention_is_exact_for_every_output(batch: int, encoder: bytes, pictures: list[np.ndarray]) -> None:
    made = make_graph(encoder, "encoder", "fp32", "onnxruntime")
    graph = Graph(made)
    assert (count(graph, "MultiHeadAttention"), count(graph, "Softmax"), count(graph, "Slice")) == (BLOCKS, 0, 3)
    assert (count(graph, "Gemm"), count(Graph(encoder), "Gemm")) == (6 * BLOCKS, 4 * BLOCKS)
    picture = np.concatenate(pictures[:batch])
    ours, theirs = run(made.SerializeToString(), picture), run(encoder, picture)
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        assert ours[name].shape == wanted.shape
        assert np.abs(ours[name] - wanted).max() <= 1e-5 * np.abs(wanted).max(), name


def test_the_head_is_unchanged_in_fp32_and_int8(tiny_graphs: dict[str, bytes], calibration: Calibration) -> None:
    wanted = [node.op_type for node in Graph(tiny_graphs["head"]).nodes]
    for kind in ("fp32", "int8"):
        made = make_graph(tiny_graphs["head"], "head", kind, "onnxruntime", calibration)
        assert sorted(node.op_type for node in made.graph.node) == sorted(wanted)


def test_attention_of_another_form_is_left_as_it_is(encoder: bytes, pictures: list[np.ndarray]) -> None:
    graph = Graph(encoder)
    softmax = next(node for node in graph.nodes if node.op_type == "Softmax")
    softmax.input[0] = graph.add_node("Relu", [softmax.input[0]], "masked")
    data = graph.finish().SerializeToString()
    made = make_graph(data, "encoder", "fp32", "onnxruntime")
    assert (count(Graph(made), "MultiHeadAttention"), count(Graph(made), "Softmax")) == (BLOCKS - 1, 1)
    ours, theirs = run(made.SerializeToString(), pictures[0]), run(data, pictures[0])
    assert np.abs(ours["tokens"] - theirs["tokens"]).max() < 1e-5


def test_linear_layers_and_long_attention_become_integer_products_and_are_close(
    encoder: bytes, calibration: Calibration, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_graph(encoder, "encoder", "int8", "onnxruntime", calibration)
    graph = Graph(made)
    assert (count(graph, "MatMulIntegerToFloat"), count(graph, "Gemm")) == (6 * BLOCKS, 0)
    assert (count(graph, "MultiHeadAttention"), count(graph, "QuantizeLinear")) == (BLOCKS, 4 * BLOCKS)
    assert made.ByteSize() < len(encoder) / 2.5
    errors = mean_errors(made.SerializeToString(), encoder, pictures)
    assert 1e-4 < max(errors) < 0.05
    monkeypatch.setattr(convert_cpu, "INT8_FROM_TOKENS", 0)
    monkeypatch.setattr(convert_cpu, "QUERIES_AT_ONCE", 10)  # 37 tokens: several blocks, the last one shorter
    made = make_graph(encoder, "encoder", "int8", "onnxruntime", calibration)
    graph = Graph(made)
    assert (count(graph, "MultiHeadAttention"), count(graph, "Softmax")) == (0, 4 * BLOCKS)
    assert max(mean_errors(made.SerializeToString(), encoder, pictures)) < 1.3 * max(errors)


def test_patterns_keep_layers_and_attention_in_fp32(
    encoder: bytes, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_cpu, "INT8_FROM_TOKENS", 0)

    def made(**options: tuple[str, ...]) -> tuple[int, int]:
        model = make_graph(encoder, "encoder", "int8", "onnxruntime", calibration, **options)
        return count(Graph(model), "Gemm"), count(Graph(model), "MultiHeadAttention")

    assert made() == (0, 0)
    assert made(keep_fp32=("*blocks.0.attn.qkv*",)) == (3, 0)
    assert made(keep_fp32=("Softmax",)) == (0, BLOCKS)
    assert made(quantize=("*mlp*",)) == (4 * BLOCKS, BLOCKS)
    monkeypatch.setattr(convert, "integer_form_here", lambda: IntegerForm(False, 63))
    assert made() == (0, BLOCKS), "without the instructions, attention stays in floating point"


@pytest.mark.parametrize(
    ("machine", "flags", "form"),
    [
        ("aarch64", set(), IntegerForm(True, 127)),
        ("arm64", set(), IntegerForm(True, 127)),
        ("x86_64", {"avx2", "avx512_vnni"}, VNNI),
        ("x86_64", {"avx_vnni"}, VNNI),
        ("x86_64", {"avx2"}, IntegerForm(False, 63)),
        ("AMD64", set(), IntegerForm(False, 63)),
    ],
)
def test_the_integer_form_depends_on_the_processor(machine: str, flags: set[str], form: IntegerForm) -> None:
    assert integer_form(machine, flags) == form
    assert form.is_exact_and_fast is (form == VNNI)


@pytest.mark.parametrize("form", [IntegerForm(True, 127), IntegerForm(False, 63), VNNI])
def test_every_form_computes_nearly_the_same(
    form: IntegerForm, encoder: bytes, calibration: Calibration, pictures: list[np.ndarray]
) -> None:
    graph = Graph(encoder)
    convert_cpu.quantize_for_cpu(graph, linear_layers(graph), calibration.ranges["encoder"], form)
    data = graph.finish().SerializeToString()
    integers = [value for value in Graph(data).constants.values() if value.dtype == np.int8 and value.ndim == 2]
    assert max(int(np.abs(value.astype(int)).max()) for value in integers) == form.largest_weight
    assert max(mean_errors(data, encoder, pictures)) < 0.08


def attend(length: int, batch: int = 1) -> bytes:
    shape = [batch, length, HEADS * DIM]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "qkv"]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, length, HEADS, DIM])]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(ORT_DOMAIN, 1)]
    model = helper.make_model(helper.make_graph([], "g", inputs, outputs), opset_imports=opsets, ir_version=9)
    graph = Graph(model)
    result = attend_in_int8(graph, ["q", "k", "v"], [-1, length, HEADS, DIM], DIM**-0.5, "a")
    graph.add_node("Identity", [result], "y", output="y")
    return graph.finish().SerializeToString()


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    q, k, v = (part.reshape(*part.shape[:2], HEADS, DIM).transpose(0, 2, 1, 3) for part in (q, k, v))
    logits = q @ k.transpose(0, 1, 3, 2) * DIM**-0.5
    chances = np.exp(logits - logits.max(-1, keepdims=True))
    return (chances / chances.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)


@pytest.mark.parametrize(
    ("sharpness", "batch", "length"), [(0.3, 1, 300), (1.0, 1, 129), (1.0, 2, 128), (3.0, 1, 300), (0.0, 1, 5)]
)
def test_int8_attention_is_close_however_sharp_it_is(sharpness: float, batch: int, length: int) -> None:
    """Keys and values have large means, which would eat the range if they were not taken off."""
    rng = np.random.default_rng(0)
    shape = (batch, length, HEADS * DIM)
    q, k = (sharpness * rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    k += 20 * rng.standard_normal(HEADS * DIM, dtype=np.float32)
    v = rng.standard_normal(shape, dtype=np.float32) + 20
    with OnnxRuntimeEngine(attend(length, batch), "cpu", 1) as engine:
        ours = engine.run({"q": q, "k": k, "v": v})["y"].numpy()
    wanted = exact(q.astype(np.float64), k.astype(np.float64), v.astype(np.float64))
    mean = v.reshape(batch, length, HEADS, DIM).mean(1, keepdims=True)
    error, signal = np.abs(ours - wanted).mean(), np.abs(wanted - mean).mean()
    assert error < 0.06 * signal + 0.002  # of values around their mean, whose deviation is 1


def test_many_small_probabilities_are_not_lost() -> None:
    """One token takes half of the attention, 299 share the rest, each below half a step of int8."""
    length = 300
    q = np.ones((1, length, HEADS * DIM), np.float32)
    k = np.zeros_like(q)
    k[:, 0] = np.log(length - 1) / DIM * DIM**0.5
    v = np.full_like(q, 2.0)
    v[:, 0] = 0.0
    with OnnxRuntimeEngine(attend(length), "cpu", 1) as engine:
        ours = engine.run({"q": q, "k": k, "v": v})["y"].numpy()
    np.testing.assert_allclose(ours, exact(q, k, v), atol=0.02)
    np.testing.assert_allclose(ours, 1.0, atol=0.02)
