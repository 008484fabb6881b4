from collections import Counter
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fsvit_edge.inspect.file_headers import OnnxHeader, read_onnx_header
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, GRAPH_NAMES


def model(weights: np.ndarray, operator: str = "Identity", **changes: Any) -> bytes:
    """A graph with one constant, which is also listed as an input as in files of old exporters."""
    constant = numpy_helper.from_array(weights, "w")
    described = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, None]),
        helper.make_tensor_value_info("w", constant.data_type, weights.shape),
    ]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [])]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])] * 2, "g", described, out, [constant])
    values = {
        "producer_name": "maker",
        "producer_version": "7",
        "opset_imports": [helper.make_opsetid("", 17)],
    } | changes
    return bytes(helper.make_model(graph, **values).SerializeToString())


@pytest.mark.parametrize("name", GRAPH_NAMES)
def test_a_graph_is_read_as_the_onnx_package_reads_it(name: str) -> None:
    data = (DEFAULT_BUNDLE / f"{name}.onnx").read_bytes()
    header, loaded = read_onnx_header(data), onnx.load_from_string(data)
    assert header.opset == loaded.opset_import[0].version
    assert header.precision == "fp32"
    assert header.operators == Counter(node.op_type for node in loaded.graph.node)


def test_the_header_has_producer_opset_operators_and_precision() -> None:
    header = read_onnx_header(model(np.zeros((5, 2), np.float16)))
    assert header == OnnxHeader("maker 7", 17, {"Identity": 2}, "fp16")


@pytest.mark.parametrize(
    ("weights", "operator", "precision"),
    [
        (np.zeros(4, np.float32), "Identity", "fp32"),
        (np.zeros(4, np.float16), "Identity", "fp16"),
        (np.zeros(4, np.int64), "Identity", "fp32"),
        (np.zeros(4, np.int8), "QuantizeLinear", "int8"),
        (np.zeros(4, np.float16), "DequantizeLinear", "int8"),
        (np.zeros(4, np.uint8), "MatMulInteger", "int8"),
    ],
)
def test_the_precision_is_that_of_the_weights_or_int8(weights: np.ndarray, operator: str, precision: str) -> None:
    assert read_onnx_header(model(weights, operator)).precision == precision


def test_only_onnxs_own_opset_counts() -> None:
    domains = [helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("ai.onnx", 18)]
    assert read_onnx_header(model(np.zeros(1, np.float32), opset_imports=domains)).opset == 18
    with pytest.raises(ValueError, match="it has no graph"):
        read_onnx_header(model(np.zeros(1, np.float32), opset_imports=domains[:1]))


@pytest.mark.parametrize("data", [b"", b"no graph", b"\x00" * 64, b"\xff" * 64, b"\x08\x0a", b"\x0b" * 8, b"\x3a\x7f"])
def test_a_file_that_is_not_a_graph_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it |^a "):
        read_onnx_header(data)


GRAPH = (DEFAULT_BUNDLE / "enroll.onnx").read_bytes()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(ValueError):
        read_onnx_header(data)


@given(position=st.integers(0, len(GRAPH) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_an_altered_or_truncated_graph_is_read_or_refused(position: int, value: int, cut: bool) -> None:
    data = GRAPH[:position] if cut else GRAPH[:position] + bytes([value]) + GRAPH[position + 1 :]
    try:
        read_onnx_header(data)
    except ValueError:
        return
    assert not cut or position > len(GRAPH) - 1000  # the operator sets and the exporter's notes come last
