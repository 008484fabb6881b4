"""Outlines in INT8: the graph, that its answers are near those in FP32, and when it runs."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch.nn import functional as F

from fsvit_edge.export.int8_outline import enlarging_matrix, int8_outline_model
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.sources.demo import demo_frame, demo_supports
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, INT8_OUTLINE, Bundle
from fsvit_edge.runtime.engines import open_graphs as module
from fsvit_edge.runtime.engines.choose import choose_engines
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.engines.open_graphs import open_graphs
from fsvit_edge.runtime.machine import has_vnni_here

TOLERANCE = 0.01


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(DEFAULT_BUNDLE)


@pytest.fixture(scope="module")
def outline(bundle: Bundle) -> ModelProto:
    return onnx.load_from_string(bundle.cpu_graphs["outline"])


def outlines_of_demo(bundle: Bundle, outline: bytes) -> np.ndarray:
    """The outlines of the demo's classes in two of its frames, by the FP32 model with another graph for outlines."""
    engines, choice = choose_engines(bundle, "onnxruntime", "fp32", 1)
    engines["outline"].close()
    engines["outline"] = OnnxRuntimeEngine(outline, "cpu", 1)
    with FewShotModel(bundle.manifest, engines, choice) as model:
        for support in demo_supports():
            model.enroll(support.name, [support.image], [support.mask])
        tokens = [model.network.encode(demo_frame(number))["tokens"] for number in (0, 40)]
        return np.stack([model.network.compare(one, model.bank.class_supports).foreground() for one in tokens])


@pytest.mark.parametrize("side", [1, 2, 3, 16, 50])
def test_enlarging_is_what_the_network_does(side: int) -> None:
    x = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)[0, 0].numpy()
    matrix = enlarging_matrix(side)
    np.testing.assert_allclose(
        matrix @ x[0, 0].numpy() @ matrix.T, wanted, atol=1e-5
    )  # torch computes the places in FP32


@pytest.mark.skipif(not has_vnni_here(), reason="The graph is exact only on x86 processors with VNNI.")
def test_outlines_in_int8_are_near_those_in_fp32_and_those_of_other_weights_are_not(
    bundle: Bundle, outline: ModelProto
) -> None:
    wanted = outlines_of_demo(bundle, bundle.cpu_graphs["outline"])
    assert wanted.max() > 0.9
    assert np.abs(outlines_of_demo(bundle, bundle.cpu_graphs[INT8_OUTLINE]) - wanted).max() < TOLERANCE
    other = ModelProto()
    other.CopyFrom(outline)
    weight = next(one for one in other.graph.initializer if list(one.dims) == [64, 64, 3, 3])
    weight.CopyFrom(numpy_helper.from_array(np.flip(numpy_helper.to_array(weight), 3).copy(), weight.name))
    mirrored = int8_outline_model(other).SerializeToString()
    assert np.abs(outlines_of_demo(bundle, mirrored) - wanted).max() > 2 * TOLERANCE


def test_the_bundled_graph_is_what_is_made_of_the_bundled_outline(bundle: Bundle, outline: ModelProto) -> None:
    shipped = onnx.load_from_string(bundle.cpu_graphs[INT8_OUTLINE])
    made = int8_outline_model(outline)
    assert list(made.graph.node) == list(shipped.graph.node)
    for ours, theirs in zip(made.graph.initializer, shipped.graph.initializer, strict=True):
        # Not equal: other versions of numpy may round the last bit of a scale otherwise.
        np.testing.assert_allclose(numpy_helper.to_array(ours), numpy_helper.to_array(theirs), rtol=1e-5)


@pytest.mark.parametrize(
    ("is_int8", "has_vnni", "has_graph", "expected"),
    [
        (True, True, True, INT8_OUTLINE),
        (False, True, True, "outline"),
        (True, False, True, "outline"),
        (True, True, False, "outline"),
    ],
)
def test_outlines_are_in_int8_beside_an_int8_encoder_where_that_is_fast(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    is_int8: bool,
    has_vnni: bool,
    has_graph: bool,
    expected: str,
) -> None:
    opened: list[bytes] = []

    class Noted(OnnxRuntimeEngine):
        def __init__(self, graph: bytes, provider: str, threads: int | None) -> None:
            opened.append(graph)
            super().__init__(graph, provider, threads)

    monkeypatch.setattr(module, "OnnxRuntimeEngine", Noted)
    monkeypatch.setattr(module, "has_vnni_here", lambda: has_vnni)
    given = bundle
    if not has_graph:
        infos = {name: info for name, info in bundle.manifest.cpu_graphs.items() if name != INT8_OUTLINE}
        graphs = {name: bundle.cpu_graphs[name] for name in infos}
        given = replace(bundle, manifest=replace(bundle.manifest, cpu_graphs=infos), cpu_graphs=graphs)
    info = bundle.manifest.int8_encoder if is_int8 else None
    for engine in open_graphs(given, None, "cpu", 1, info).values():
        engine.close()
    assert opened[-1] == bundle.cpu_graphs[expected]
    assert len(opened) == 5
