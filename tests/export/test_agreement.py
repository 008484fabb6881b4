"""The comparison of an engine with the FP32 graphs reports differences, and only real ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_engine import FakeEngine
from onnx import numpy_helper

from fsvit_edge.calib.precision import PrecisionOptions, make_graph
from fsvit_edge.export.agreement import check_fp16, compare, demo_pictures
from fsvit_edge.export.candidate import example_feed, time_side_by_side
from fsvit_edge.export.layers import report_optimized
from fsvit_edge.export.memory_budget import estimate, free_memory
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


class Noisy(OnnxRuntimeEngine):
    """An encoder that adds noise to its tokens."""

    level = 0.0

    def run(self, feed: Any) -> Any:
        outputs = super().run(feed)
        tokens = outputs["tokens"].numpy()
        noise = np.random.default_rng(0).standard_normal(tokens.shape, np.float32)
        return {**outputs, "tokens": self.upload(tokens + np.float32(self.level) * noise)}


def agreement(bundle: Bundle, reference: dict[str, Any], level: float) -> Any:
    with Noisy(bundle.graphs["encoder"], "cpu", 1) as encoder:
        encoder.level = level
        candidate = {"encoder": encoder, "head": reference["head"]}
        return compare(bundle.manifest, reference, candidate, demo_pictures(4), "the demo's", "the engine")


def test_the_same_graphs_agree_to_the_last_bit(bundle: Bundle, reference: dict[str, Any]) -> None:
    found = agreement(bundle, reference, 0.0)
    assert (found.presence_flips, found.label_agreement, found.pairs) == (0, 1.0, 12)
    assert all(row == {"max_error": 0.0, "cosine": pytest.approx(1)} for row in found.outputs.values())


def test_noise_shows_in_its_output_and_in_the_answers(bundle: Bundle, reference: dict[str, Any]) -> None:
    found = agreement(bundle, reference, 1.0)
    assert found.outputs["encoder.tokens"]["max_error"] > 0.1
    assert found.outputs["encoder.tokens"]["cosine"] < 0.9
    assert found.outputs["encoder.norms"]["max_error"] == 0
    # The head is fed what the reference computed: its own figures are its own.
    assert found.outputs["head.presence"]["max_error"] == 0
    assert found.label_agreement < 1


def test_an_output_that_is_not_finite_is_refused(bundle: Bundle, reference: dict[str, Any]) -> None:
    with pytest.raises(AccuracyGateError, match=r"not finite in encoder\.tokens"):
        agreement(bundle, reference, np.inf)


def test_a_value_beyond_fp16_is_found_on_a_cpu(bundle: Bundle, reference: dict[str, Any]) -> None:
    encoder, head = bundle.graphs["encoder"], bundle.graphs["head"]
    pictures = demo_pictures(1)
    sound = {"encoder": typed(encoder), "head": typed(head, "head")}
    check_fp16(bundle.manifest, reference, bundle.graphs, sound, pictures)
    model = onnx.load_from_string(encoder)
    first = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == first.input[1])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(3e4), scale.name))
    wide = model.SerializeToString()
    with pytest.raises(AccuracyGateError, match=r"of the encoder overflows in FP16: it reaches .* --keep-fp32 '"):
        check_fp16(bundle.manifest, reference, {"encoder": wide}, {"encoder": typed(wide)}, pictures)


def typed(graph: bytes, name: str = "encoder") -> bytes:
    return make_graph(graph, name, "fp16", "tensorrt", None, PrecisionOptions()).SerializeToString()


def test_engines_take_turns_and_the_slower_one_shows(reference: dict[str, Any]) -> None:
    turns: list[str] = []

    def make(name: str, work: int) -> FakeEngine:
        def run(_: dict[str, Array]) -> dict[str, Array]:
            turns.append(name)
            return {spec.name: np.full((1,), np.linalg.norm(np.ones(work))) for spec in reference["head"].outputs}

        return FakeEngine(reference["head"].inputs, reference["head"].outputs, run)

    fast, slow = make("fast", 1), make("slow", 3_000_000)
    sizes = {"supports": 2, "ways": 2, "kept_tokens": 5}
    times = time_side_by_side([fast, slow], [example_feed(fast, sizes), example_feed(slow, sizes)])
    assert times[0] < times[1]
    assert turns[:4] == ["fast", "slow", "slow", "fast"]


def test_inputs_for_timing_fit_the_graph(reference: dict[str, Any]) -> None:
    head = reference["head"]
    feed = example_feed(head, {"supports": 3, "ways": 2, "kept_tokens": 7})
    answer = head.run(feed)
    assert np.isfinite(answer["foreground"].numpy()).all()
    assert feed["kept"].shape[0] == 3


def test_the_memory_of_a_graph_is_estimated_from_its_sizes(bundle: Bundle) -> None:
    head = onnx.load_from_string(bundle.graphs["head"])
    few, many = (estimate(head, {"supports": supports, "ways": 2, "kept_tokens": 145}, None) for supports in (2, 20))
    assert many.activations > 5 * few.activations > 0
    assert many.weights == few.weights == sum(numpy_helper.to_array(one).nbytes for one in head.graph.initializer)
    assert "activations up to" in str(many)
    with pytest.raises(FsvitEdgeError, match=r"needs about .* on the GPU, which has 1 MB"):
        estimate(head, {"supports": 20, "ways": 2, "kept_tokens": 145}, 10**6).check("head")


def test_free_memory_is_known_on_linux() -> None:
    free = free_memory()
    assert free is not None
    assert free > 10**6


def test_products_are_counted_in_the_graph_that_onnx_runtime_optimized(bundle: Bundle) -> None:
    counted = report_optimized(onnx.load_from_string(bundle.graphs["encoder"]))
    assert counted.int8_gemms == 0
    assert counted.fp32_gemms >= 4 * bundle.manifest.num_layers
