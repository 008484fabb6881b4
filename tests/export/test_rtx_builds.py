"""Real builds by TensorRT-RTX for other GPUs: what becomes of the layers, and that the counts would show mistakes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fsvit_edge.calib.calibration import Calibration
from fsvit_edge.calib.convert import make_graph
from fsvit_edge.export.built_graph import BuiltGraph
from fsvit_edge.export.tensorrt import PlanRequest, build_plan
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines.base import TensorSpec
from fsvit_edge.runtime.engines.tensorrt_api import open_tensorrt

pytest.importorskip("tensorrt_rtx", reason="real builds need tensorrt-rtx, which the dev extra brings")

vits8 = pytest.mark.slow(reason="a ViT-S/8 at 400 px is exported and built; cst-nano's layers are counted in any run")

TARGETS = ("sm86", "sm89", "sm120")
others = pytest.mark.slow(reason="a build, 2.5 s; one target is built in any run, and the head for all")
HYBRID_BLOCKS = 4
STEM_PRODUCTS = 1
"""A 1 x 1 convolution over the 64 positions of the stem's last map, which RTX computes as a product in FP16."""
NETWORKS = {"nano": (HYBRID_BLOCKS, 5 * HYBRID_BLOCKS, STEM_PRODUCTS), "vits8": (12, 4 * 12, 0)}
"""Blocks, products with weights in them (four linear layers, in cst-nano also the one that evens the block's tokens),
and products in the stem."""
SIZES = {"batch": (1, 1, 1), "supports": (1, 5, 50), "ways": (1, 5, 10), "kept_tokens": (1, 44, 145)}
Calibrate = Callable[[bytes], Calibration]


@pytest.fixture(scope="module")
def nano() -> Bundle:
    return Bundle.load(DEFAULT_BUNDLE)


@pytest.fixture(scope="module")
def nano_encoder(nano: Bundle) -> bytes:
    return nano.graphs["encoder"]


def build(graph: bytes, name: str = "encoder", targets: tuple[str, ...] = ("sm86",)) -> BuiltGraph:
    described = onnx.load_from_string(graph).graph
    names = {
        value.name: tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in (*described.input, *described.output)
    }
    api = open_tensorrt("tensorrt-rtx")
    return build_plan(api, graph, PlanRequest(name, SIZES, names, None, targets), lambda _: None, lambda _: None)


def typed(graph: bytes, precision: str, calibration: Calibration | None = None, name: str = "encoder") -> bytes:
    return make_graph(graph, name, precision, "tensorrt-rtx", calibration).SerializeToString()


def dtypes(specs: Any) -> set[str]:
    return {spec.dtype for spec in specs}


@pytest.mark.parametrize("target", [TARGETS[0], *(pytest.param(target, marks=others) for target in TARGETS[1:])])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("network", ["nano", pytest.param("vits8", marks=vits8)])
def test_attention_is_fused_and_every_linear_layer_of_the_blocks_has_its_precision(
    request: pytest.FixtureRequest, calibrate: Calibrate, network: str, precision: str, target: str
) -> None:
    encoder = request.getfixturevalue(f"{network}_encoder")
    blocks, products, stem = NETWORKS[network]
    plan = build(typed(encoder, precision, calibrate(encoder)), targets=(target,))
    assert (plan.layers.attention, plan.layers.fp32_gemms) == (blocks, 0)
    assert plan.layers.int8_gemms == (products if precision == "int8" else 0)
    assert plan.layers.gemms == products + stem
    assert (dtypes(plan.inputs), dtypes(plan.outputs)) == ({"uint8"}, {"float16"})


@pytest.mark.slow(reason="exports a hybrid network, 18 s")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_objectness_decoder_is_built_and_the_blocks_stay_the_same(
    hybrid_bundle: Path, calibrate: Calibrate, precision: str
) -> None:
    bundle = Bundle.load(hybrid_bundle)
    encoder = bundle.graphs["encoder"]
    plan = build(typed(encoder, precision, calibrate(encoder) if precision == "int8" else None))
    layers = plan.layers
    assert (layers.attention, layers.fp32_gemms) == (HYBRID_BLOCKS, 0)
    # The projections behind the blocks pass tokens on as they are in this network, and RTX counts one product for all.
    products = 4 * HYBRID_BLOCKS + 1
    int8 = products if precision == "int8" else 0
    assert (layers.int8_gemms, layers.fp16_gemms) == (int8, products - int8 + STEM_PRODUCTS)
    assert plan.outputs[-1] == TensorSpec("objectness", (1, 16, 16), "float16")


def test_the_heads_large_inputs_are_fp16_with_any_size_in_its_profile(nano: Bundle) -> None:
    plan = build(typed(nano.graphs["head"], "fp16", name="head"), "head", TARGETS)
    types = {spec.name: spec.dtype for spec in (*plan.inputs, *plan.outputs)}
    assert {name for name, dtype in types.items() if dtype == "float16"} == {"tokens", "kept", "pooled"}
    assert types["presence"] == types["foreground"] == "float32"
    assert plan.profile["kept"]["max"][0] == 50
    assert plan.profile["kept"]["min"][2] == 1
    assert plan.outputs[0].shape == ("ways",)
    assert plan.layers.fp32_gemms == 0


def test_the_counts_show_fp32(nano: Bundle) -> None:
    layers = build(nano.graphs["encoder"]).layers
    assert layers.attention == 0
    assert layers.fp32_gemms >= 4 * HYBRID_BLOCKS
    assert layers.int8_gemms == layers.fp16_gemms == 0


@vits8
def test_the_counts_show_attention_that_quantization_split(vits8_encoder: bytes, calibrate: Calibrate) -> None:
    graph = typed(vits8_encoder, "int8", calibrate(vits8_encoder))
    assert build(quantize_attention(graph)).layers.attention == 0


def quantize_attention(graph: bytes) -> bytes:
    """Put Q/DQ before both inputs of every product of two activations, which prevents fused attention."""
    model = onnx.load_from_string(graph)
    producer = {name: node for node in model.graph.node for name in node.output}
    weights = {tensor.name for tensor in model.graph.initializer}
    scale, zero = (
        numpy_helper.from_array(value, f"attention_{kind}")
        for kind, value in (("scale", np.array(0.05, np.float16)), ("zero", np.array(0, np.int8)))
    )
    nodes = []
    for node in list(model.graph.node):
        if node.op_type == "MatMul" and all(
            name not in weights and producer[name].op_type != "DequantizeLinear" for name in node.input
        ):
            for place, name in enumerate(node.input):
                made = f"{node.output[0]}_{place}"
                nodes.append(helper.make_node("QuantizeLinear", [name, scale.name, zero.name], [f"{made}_q"]))
                nodes.append(helper.make_node("DequantizeLinear", [f"{made}_q", scale.name, zero.name], [f"{made}_dq"]))
                node.input[place] = f"{made}_dq"
        nodes.append(node)
    assert len(nodes) > len(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([scale, zero])
    return model.SerializeToString()
