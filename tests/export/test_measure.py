"""The comparison of an engine with the FP32 graphs reports differences, and only real ones."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_engine import FakeEngine
from onnx import numpy_helper

from fsvit_edge.calib.convert import make_graph
from fsvit_edge.export.job import check_memory, peak_bytes
from fsvit_edge.export.measure import Agreement, check_fp16, compare, demo_pictures, example_feed, time_side_by_side
from fsvit_edge.export.onnxruntime import report_optimized
from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.engines.base import Array
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import AccuracyGateError, FsvitEdgeError


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.load(tiny_bundle)


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> Iterator[dict[str, OnnxRuntimeEngine]]:
    engines = {name: OnnxRuntimeEngine(graph, "cpu", 1) for name, graph in bundle.graphs.items()}
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture
def with_noise(bundle: Bundle, reference: dict[str, Any], altered: Any) -> Callable[[float], Agreement]:
    """Compare the reference with an encoder that adds noise to its tokens."""

    def agree(level: float) -> Agreement:
        def add(tokens: np.ndarray) -> np.ndarray:
            return tokens + np.float32(level) * np.random.default_rng(0).standard_normal(tokens.shape, np.float32)

        with altered("tokens", add)(bundle.graphs["encoder"], "cpu", 1) as encoder:
            candidate = {"encoder": encoder, "head": reference["head"]}
            return compare(bundle.manifest, reference, candidate, demo_pictures(4), "the demo's", "the engine")

    return agree


def test_the_same_graphs_agree_to_the_last_bit(with_noise: Callable[[float], Agreement]) -> None:
    found = with_noise(0.0)
    assert (found.presence_flips, found.label_agreement, found.pairs) == (0, 1.0, 12)
    assert all(row == {"max_error": 0.0, "cosine": pytest.approx(1)} for row in found.outputs.values())


def test_noise_shows_in_its_output_and_in_the_answers(with_noise: Callable[[float], Agreement]) -> None:
    found = with_noise(1.0)
    assert found.outputs["encoder.tokens"]["max_error"] > 0.1
    assert found.outputs["encoder.tokens"]["cosine"] < 0.9
    assert found.outputs["encoder.norms"]["max_error"] == 0
    # The head is fed what the reference computed: its own figures are its own.
    assert found.outputs["head.presence"]["max_error"] == 0
    assert found.label_agreement < 1


def test_a_value_beyond_fp16_is_found_on_a_cpu(bundle: Bundle, reference: dict[str, Any]) -> None:
    def typed(graphs: dict[str, bytes]) -> dict[str, bytes]:
        names = graphs.keys() & {"encoder", "head"}
        return {name: make_graph(graphs[name], name, "fp16", "tensorrt").SerializeToString() for name in names}

    pictures = demo_pictures(1)
    check_fp16(bundle.manifest, reference, bundle.graphs, typed(bundle.graphs), pictures)
    model = onnx.load_from_string(bundle.graphs["encoder"])
    first = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == first.input[1])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(3e4), scale.name))
    wide = {"encoder": model.SerializeToString()}
    with pytest.raises(AccuracyGateError, match=r"of the encoder overflows in FP16: it reaches .* --keep-fp32 '"):
        check_fp16(bundle.manifest, reference, wide, typed(wide), pictures)


def test_engines_take_turns_and_the_slower_one_shows(reference: dict[str, Any]) -> None:
    turns: list[str] = []

    def make(name: str, work: int) -> FakeEngine:
        def run(_: dict[str, Array]) -> dict[str, Array]:
            turns.append(name)
            return {spec.name: np.full((1,), np.linalg.norm(np.ones(work))) for spec in reference["head"].outputs}

        return FakeEngine(reference["head"].inputs, reference["head"].outputs, run)

    fast, slow = make("fast", 1), make("slow", 3_000_000)
    sizes = {"supports": 3, "ways": 2, "kept_tokens": 7}
    feed = example_feed(reference["head"], sizes)
    assert feed["kept"].shape[0] == 3
    assert np.isfinite(reference["head"].run(feed)["foreground"].numpy()).all()
    times = time_side_by_side([fast, slow], [example_feed(fast, sizes), example_feed(slow, sizes)])
    assert times[0] < times[1]
    assert turns[:4] == ["fast", "slow", "slow", "fast"]


def test_the_memory_of_a_graph_is_estimated_from_its_sizes(bundle: Bundle) -> None:
    data = bundle.graphs["head"]
    head = onnx.load_from_string(data)
    few, many = ({"supports": supports, "ways": 2, "kept_tokens": 145} for supports in (2, 20))
    assert peak_bytes(head, many) > 5 * peak_bytes(head, few) > 0
    weights = sum(numpy_helper.to_array(one).nbytes for one in head.graph.initializer)
    said: list[str] = []
    with pytest.raises(FsvitEdgeError, match=r"needs about .* on the GPU, which has 1 MB"):
        check_memory("head", data, many, 10**6, said.append)
    (line,) = said
    assert line.startswith(f"Memory of the head with 20 supports at once: weights {weights / 1e6:,.0f} MB, activations")


def test_products_are_counted_in_the_graph_that_onnx_runtime_optimized(bundle: Bundle) -> None:
    counted = report_optimized(onnx.load_from_string(bundle.graphs["encoder"]))
    assert counted.int8_gemms == 0
    assert counted.fp32_gemms >= 4 * bundle.manifest.num_layers
