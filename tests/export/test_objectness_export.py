"""Objectness in export, parity gate, command line, torch and engines: in the encoder, or as a separate graph."""

import copy
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from fsvit_edge.calib import convert
from fsvit_edge.calib.calibration import Calibration
from fsvit_edge.calib.convert import make_graph
from fsvit_edge.calib.convert_fp16 import find_overflows
from fsvit_edge.calib.ranges import collect_ranges
from fsvit_edge.cli.main import main
from fsvit_edge.export import measure, pipeline
from fsvit_edge.export.build import build_engines
from fsvit_edge.export.int8_encoder import VNNI
from fsvit_edge.export.job import BuildOptions
from fsvit_edge.export.measure import compare, demo_pictures
from fsvit_edge.export.parity import raise_on_failure, verify
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.model.checkpoint import save_network
from fsvit_edge.model.graphs import build_graphs
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.model.torch_engine import open_network
from fsvit_edge.runtime.bundle import GRAPH_NAMES, OBJECTNESS, Bundle
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import AccuracyGateError
from fsvit_edge.runtime.preprocess import resize_image

pytestmark = pytest.mark.slow(reason="exports a network with objectness, and a separate graph, 27 s")

CPU = torch.device("cpu")


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)


def mask() -> np.ndarray:
    made = np.zeros((80, 96), np.bool_)
    made[10:60, 20:70] = True
    return made


def enroll(model: FewShotModel) -> None:
    """A class of two supports that weigh objectness fully, whatever the rule says of them."""
    supports = [replace(model.cache_support("a", picture(i), mask()), objectness_weight=1.0) for i in range(2)]
    model.bank.add("a", supports)
    model.set_level_for_all(0.001)


def with_one_weight_more(graph: bytes, inputs: tuple[int, ...]) -> bytes:
    """Change one weight of the first convolution whose weight has this shape."""
    model = onnx.load_from_string(graph)
    weight = next(tensor for tensor in model.graph.initializer if tuple(tensor.dims) == inputs)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return model.SerializeToString()


OUT_OF_DECODER = (1, 32, 1, 1)


# ----------------------------------------------------------------------------------------------- what a bundle contains


def test_an_encoder_with_a_decoder_has_one_more_output(hybrid_bundle: Path) -> None:
    manifest = Bundle.load(hybrid_bundle).manifest
    assert manifest.graphs.keys() == set(GRAPH_NAMES)
    assert manifest.has_objectness
    told = manifest.graphs["encoder"].outputs[-1]
    assert (told.name, told.shape, told.dtype) == (OBJECTNESS, ("batch", 16, 16), "float32")
    assert [spec.name for spec in manifest.graphs["enroll"].inputs][-2:] == ["mask", "has_mask"]


def test_a_separate_objectness_graph_leaves_the_others_unchanged(
    bundle_beside: Path, tiny_bundle: Path, tiny_network: FewShotNetwork, hybrid_network: FewShotNetwork
) -> None:
    alone, together = build_graphs(tiny_network), build_graphs(tiny_network, hybrid_network)
    for name in GRAPH_NAMES:  # what is traced is the same
        one, other = alone[name], together[name]
        assert (type(one.module), one.outputs, one.dynamic) == (type(other.module), other.outputs, other.dynamic)
        weights = other.module.state_dict()
        assert weights.keys() == one.module.state_dict().keys()
        assert all(torch.equal(value, weights[key]) for key, value in one.module.state_dict().items())
    with_it, without = Bundle.load(bundle_beside), Bundle.load(tiny_bundle)
    assert without.manifest.graphs.keys() == set(GRAPH_NAMES)
    assert not without.manifest.has_objectness
    assert with_it.manifest.graphs.keys() == {*GRAPH_NAMES, OBJECTNESS}
    assert with_it.manifest.has_objectness
    assert {name: with_it.graphs[name] for name in GRAPH_NAMES} == without.graphs
    info = with_it.manifest.graphs[OBJECTNESS]
    # The picture has the encoder's side, and its objectness the side that the other network was trained with.
    assert info.inputs == without.manifest.graphs["encoder"].inputs
    assert [(spec.name, spec.shape) for spec in info.outputs] == [(OBJECTNESS, ("batch", 16, 16))]
    assert replace(with_it.manifest, graphs={}) == replace(without.manifest, graphs={})


# --------------------------------------------------------------------------------------------------- ONNX against torch


@pytest.mark.parametrize("batch", [1, 3])
@torch.inference_mode()
def test_both_graphs_compute_the_same_as_torch(
    hybrid_network: FewShotNetwork,
    tiny_network: FewShotNetwork,
    hybrid_bundle: Path,
    bundle_beside: Path,
    batch: int,
) -> None:
    for path, name, spec in (
        (hybrid_bundle, "encoder", build_graphs(hybrid_network)["encoder"]),
        (bundle_beside, OBJECTNESS, build_graphs(tiny_network, hybrid_network)[OBJECTNESS]),
    ):
        bundle = Bundle.load(path)
        size = bundle.manifest.image_size
        images = np.stack([resize_image(picture(seed), size) for seed in range(batch)])
        wanted = spec.module.eval()(torch.from_numpy(images))[-1].numpy()
        with OnnxRuntimeEngine(bundle.graphs[name], "cpu", 1) as engine:
            found = engine.run({"image": images})[OBJECTNESS].numpy()
        assert found.shape == wanted.shape == (batch, 16, 16)
        assert wanted.min() < 0 < wanted.max()
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_the_parity_gate_compares_objectness_and_notices_one_weight(
    hybrid_network: FewShotNetwork, tiny_network: FewShotNetwork, hybrid_bundle: Path, bundle_beside: Path
) -> None:
    for network, objectness_from, path, graph in (
        (hybrid_network, None, hybrid_bundle, "encoder"),
        (tiny_network, hybrid_network, bundle_beside, OBJECTNESS),
    ):
        models = Bundle.load(path).graphs
        rows = verify(network, models, objectness_from)
        raise_on_failure(rows)
        assert f"{graph}.objectness" in {row.output for row in rows}
        changed = {**models, graph: with_one_weight_more(models[graph], OUT_OF_DECODER)}
        rows = verify(network, changed, objectness_from)
        assert {row.output for row in rows if not row.passed} == {f"{graph}.objectness"}
        with pytest.raises(AccuracyGateError, match=rf"differs from torch in {graph}\.objectness by .*no bundle was"):
            raise_on_failure(rows)


def test_torch_and_onnx_runtime_draw_the_same_sharp_outlines(
    hybrid_network: FewShotNetwork, hybrid_bundle: Path
) -> None:
    answers = []
    for model in (open_network(copy.deepcopy(hybrid_network), CPU), FewShotModel.load(hybrid_bundle, threads=1)):
        with model:
            enroll(model)
            assert model.outlines == "sharp"
            sharp = model.predict(picture(9), probabilities=True)
            model.outlines = "plain"
            answers.append((sharp, model.predict(picture(9), probabilities=True)))
    in_torch, in_onnx = answers
    for ours, theirs in zip(in_torch, in_onnx, strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=2e-3)
        np.testing.assert_allclose(ours.foreground, theirs.foreground, atol=2e-2)
    assert np.abs(in_onnx[0].foreground - in_onnx[1].foreground).max() > 0.2


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[FewShotNetwork], None]:
    """Ship another network in the place of cst-nano."""

    def ship(network: FewShotNetwork) -> None:
        save_network(network, tmp_path / "assets" / "cst-nano.safetensors")
        monkeypatch.setattr("fsvit_edge.runtime.bundle.DEFAULT_BUNDLE", tmp_path / "assets")

    return ship


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch, bundle_beside: Path) -> None:
    """Return the graphs of `bundle_beside` instead of half a minute of tracing."""
    names = {"tokens": "encoder", "support": "enroll", "presence": "head", OBJECTNESS: OBJECTNESS}
    monkeypatch.setattr(pipeline, "trace", lambda spec, _: onnx.load(bundle_beside / f"{names[spec.outputs[0]]}.onnx"))
    monkeypatch.setattr(pipeline, "_cpu_head", lambda *_: Bundle.load(bundle_beside).cpu_graphs)


def export(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fsvit-edge", "export", *arguments])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.usefixtures("untraced")
def test_the_option_adds_the_bundled_decoder_and_its_parity(
    shipped: Callable[[FewShotNetwork], None],
    hybrid_network: FewShotNetwork,
    tiny_network: FewShotNetwork,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shipped(hybrid_network)
    save_network(tiny_network, tmp_path / "tiny.safetensors")
    arguments = ("--checkpoint", str(tmp_path / "tiny.safetensors"), "--output", str(tmp_path / "bundle"))
    assert export(monkeypatch, *arguments) == 0
    assert Bundle.load(tmp_path / "bundle").manifest.graphs.keys() == set(GRAPH_NAMES)
    capsys.readouterr()
    assert export(monkeypatch, *arguments, "--objectness") == 0
    said = capsys.readouterr().out
    assert "objectness.objectness" in said
    assert ", objectness " in said.splitlines()[-1]
    manifest = Bundle.load(tmp_path / "bundle").manifest
    assert manifest.graphs.keys() == {*GRAPH_NAMES, OBJECTNESS}
    assert manifest.parity["objectness.objectness"] < 1e-4


@pytest.mark.parametrize(
    ("shipped_with", "arguments", "text"),
    [
        (True, (), "hybrid already has an objectness decoder; export without --objectness."),
        (False, ("--checkpoint", "tiny.safetensors"), "hybrid has no objectness decoder, so there is none to add"),
    ],
)
def test_an_export_with_no_decoder_to_add_is_refused(
    shipped: Callable[[FewShotNetwork], None],
    hybrid_network: FewShotNetwork,
    tiny_network: FewShotNetwork,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shipped_with: bool,
    arguments: tuple[str, ...],
    text: str,
) -> None:
    network = copy.deepcopy(hybrid_network)
    if not shipped_with:
        network.config, network.objectness = replace(network.config, objectness=False), None
    shipped(network)
    monkeypatch.chdir(tmp_path)
    save_network(tiny_network, tmp_path / "tiny.safetensors")
    assert export(monkeypatch, "--objectness", *arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"Error: {text}")
    assert not (tmp_path / "bundle").exists()


# -------------------------------------------------------------------------------------------------------------- engines


INT8_STEM_TOLERANCE = 0.2
"""The largest error of one pixel with random weights, as a share of the largest logit; 0.12 was measured. How well the
outlines of a trained model fit is measured by benchmarks/outlines.py."""


def without_stem(calibration: Calibration) -> Calibration:
    """The calibration without the means of the stem's channels, so that the stem stays in FP32."""
    return replace(calibration, channel_mean={})


@pytest.fixture(scope="module")
def calibration(hybrid_bundle: Path) -> Calibration:
    return collect_ranges(Bundle.load(hybrid_bundle), demo_pictures(4), "minmax")


@pytest.mark.parametrize(
    ("precision", "target", "stem", "tolerance"),
    [
        ("fp16", "tensorrt", "its own", 5e-3),
        ("int8", "tensorrt", "its own", 5e-3),
        ("int8", "onnxruntime", "fp32", 1e-5),
        ("int8", "onnxruntime", "int8", INT8_STEM_TOLERANCE),
    ],
)
def test_the_decoder_works_in_every_precision(
    hybrid_bundle: Path,
    calibration: Calibration,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    target: str,
    stem: str,
    tolerance: float,
) -> None:
    monkeypatch.setattr(convert, "integer_form_here", lambda: VNNI)
    if stem == "fp32":
        calibration = without_stem(calibration)
    bundle = Bundle.load(hybrid_bundle)
    encoder = bundle.graphs["encoder"]
    image = resize_image(demo_pictures(3)[1], bundle.manifest.image_size)[None]
    made = make_graph(encoder, "encoder", precision, target, calibration)
    answers = []
    for data in (encoder, made.SerializeToString()):
        with OnnxRuntimeEngine(data, "cpu", 1) as engine:
            answers.append({name: np.array(tensor.numpy()) for name, tensor in engine.run({"image": image}).items()})
    wanted, found = answers
    assert find_overflows(encoder, made, [{"image": image}]) == ()
    assert found[OBJECTNESS].dtype == (np.float32 if target == "onnxruntime" else np.float16)
    scale = np.abs(wanted[OBJECTNESS]).max()
    assert np.abs(found[OBJECTNESS].astype(np.float32) - wanted[OBJECTNESS]).max() < tolerance * scale
    assert np.abs(found["tokens"].astype(np.float32) - wanted["tokens"]).max() > 1e-5  # it is another precision


@pytest.mark.parametrize(("stem", "tolerance"), [("fp32", 1e-5), ("int8", INT8_STEM_TOLERANCE)])
def test_int8_on_the_cpu_agrees_with_fp32_and_has_sharp_outlines(
    hybrid_bundle: Path, calibration: Calibration, tmp_path: Path, stem: str, tolerance: float
) -> None:
    path = shutil.copytree(hybrid_bundle, tmp_path / "bundle")
    (without_stem(calibration) if stem == "fp32" else calibration).save(path / "calibration.json")
    result = build_engines(path, BuildOptions(engine="onnxruntime"))
    assert result.agreement is not None
    assert result.agreement.outputs["encoder.objectness"]["max_error"] < tolerance
    assert result.engines["encoder"].record.int8_gemms >= 4 * (Bundle.load(path).manifest.num_layers - 2)
    with FewShotModel.load(path, "onnxruntime", "int8", threads=1) as model:
        enroll(model)
        assert model.outlines == "sharp"
        sharp = model.predict(picture(9), probabilities=True)
        model.outlines = "plain"
        plain = model.predict(picture(9), probabilities=True)
    assert not np.array_equal(sharp.foreground, plain.foreground)


class Sharing(FewShotModel):
    """Records the engines of every model that is opened."""

    opened: list[Any] = []  # noqa: RUF012 - shared by all models

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.opened.append((self.network.objectness, self.outlines))


def test_engines_are_compared_and_scored_with_the_separate_objectness_graph(
    bundle_beside: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(bundle_beside, tmp_path / "bundle")
    monkeypatch.setattr(Sharing, "opened", [])
    monkeypatch.setattr(measure, "FewShotModel", Sharing)
    monkeypatch.setattr(measure, "EPISODES", 4)
    result = build_engines(path, BuildOptions("onnxruntime", "fp32", data=data, max_drop=0.0))
    assert result.engines.keys() == {"encoder", "head"}
    assert result.agreement is not None
    assert (result.agreement.presence_flips, result.agreement.label_agreement) == (0, 1.0)
    assert result.scores[0].miou == result.scores[1].miou
    # Two models that are compared and two that are scored: all by the graph in FP32.
    engines, outlines = zip(*Sharing.opened, strict=True)
    assert outlines == ("sharp",) * 4
    assert {type(engine) for engine in engines} == {OnnxRuntimeEngine}

    answers = []
    for where in (bundle_beside, path):
        with FewShotModel.load(where, "onnxruntime", "fp32", threads=1) as model:
            enroll(model)
            assert model.outlines == "sharp"
            answers.append(model.predict(picture(9), probabilities=True).foreground)
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-4)


def test_the_comparison_shows_an_engine_with_other_objectness(hybrid_bundle: Path, altered: Any) -> None:
    bundle = Bundle.load(hybrid_bundle)
    reference = {name: OnnxRuntimeEngine(graph, "cpu", 1) for name, graph in bundle.graphs.items()}
    blind = altered(OBJECTNESS, lambda seen: np.full_like(seen, -8))(bundle.graphs["encoder"], "cpu", 1)
    found = [
        compare(bundle.manifest, reference, {"encoder": one, "head": reference["head"]}, demo_pictures(3), "", "")
        for one in (reference["encoder"], blind)
    ]
    for engine in (*reference.values(), blind):
        engine.close()
    assert found[0].outputs["encoder.objectness"]["max_error"] == 0
    assert found[0].label_agreement == 1
    assert found[1].outputs["encoder.objectness"]["max_error"] > 0.5
    assert found[1].outputs["encoder.tokens"]["max_error"] == 0
