"""The head without weights through export, parity gate, command line and runtime."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from fsvit_edge.cli.main import main
from fsvit_edge.export import pipeline
from fsvit_edge.export.parity import raise_on_failure, verify
from fsvit_edge.fewshot import head_runs
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.model.checkpoint import load_network, save_network
from fsvit_edge.model.config import ModelConfig
from fsvit_edge.model.graphs import EncoderGraph, EnrollGraph, GraphSpec, HeadGraph
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.model.prototype_head import PrototypeHead
from fsvit_edge.model.torch_engine import open_network
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import AccuracyGateError

pytestmark = pytest.mark.slow(reason="exports a network with the prototype head, 7 s")

SIZE = 48


@pytest.fixture(scope="module")
def network(tiny_network: FewShotNetwork) -> FewShotNetwork:
    made = FewShotNetwork(ModelConfig("tiny", "vit_nano_patch8_64", SIZE, head="prototype")).eval()
    made.encoder.load_state_dict(tiny_network.encoder.state_dict())
    return made


@pytest.fixture(scope="module")
def bundle(network: FewShotNetwork, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported by the command line from a file of the backbone alone; its encoder has been traced for `tiny_bundle`."""
    trace = pipeline.trace

    def take_or_trace(spec: GraphSpec, opset: int) -> onnx.ModelProto:
        return onnx.load(tiny_bundle / "encoder.onnx") if spec.outputs[0] == "tokens" else trace(spec, opset)

    folder = tmp_path_factory.mktemp("prototype")
    save_network(network, folder / "backbone.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["--backbone", "vit_nano_patch8_64", "--weights", str(folder / "backbone.safetensors")]
        arguments += ["--image-size", str(SIZE), "--output", str(folder / "bundle"), "--head", "prototype"]
        patch.setattr(pipeline, "trace", take_or_trace)
        patch.setattr(sys, "argv", ["fsvit-edge", "export", *arguments])
        patch.setattr(sys, "excepthook", sys.excepthook)
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code
    return folder / "bundle"


def test_an_unknown_head_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["fsvit-edge", "export", "--head", "linear"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "Head 'linear' is unknown; choose one of: cst, prototype" in capsys.readouterr().err


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)


def mask(seed: int) -> np.ndarray:
    made = np.zeros((SIZE, SIZE), np.bool_)
    made[4 * seed % 24 : 4 * seed % 24 + 20, 8 : 16 + 4 * seed % 28] = True
    return made


def test_the_manifest_names_the_head_and_has_its_parity(bundle: Path, tiny_bundle: Path) -> None:
    manifest = Bundle.load(bundle).manifest
    assert (manifest.name, manifest.head) == ("backbone", "prototype")
    assert {"head.presence", "head.foreground", "enroll.pooled"} <= manifest.parity.keys()
    trained = Bundle.load(tiny_bundle).manifest
    assert trained.head == "cst"
    for name, info in manifest.graphs.items():  # the contract is the trained head's
        assert info.inputs == trained.graphs[name].inputs
        assert info.outputs == trained.graphs[name].outputs


def test_the_head_graph_has_no_weights(bundle: Path, tiny_bundle: Path) -> None:
    def floats(path: Path) -> int:
        graph = onnx.load_from_string(Bundle.load(path).graphs["head"]).graph
        arrays = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
        return sum(array.size for array in arrays if array.dtype == np.float32)

    assert floats(bundle) < 50
    assert floats(tiny_bundle) > 100_000


@pytest.mark.parametrize("shots", [(1,), (3,), (1, 2, 1), (5, 1, 4)])
@torch.inference_mode()
def test_onnx_computes_the_same_as_torch(bundle: Path, network: FewShotNetwork, shots: tuple[int, ...]) -> None:
    encode, enroll = EncoderGraph(network).eval(), EnrollGraph(network).eval()
    assert network.prototype_head is not None
    has_mask = torch.tensor([True])
    caches = [
        enroll(*encode(torch.from_numpy(picture(i))[None]), torch.from_numpy(mask(i)).byte()[None], has_mask)[:4]
        for i in range(sum(shots))
    ]
    kept, kept_mask, pooled, pooled_mask = (torch.cat(parts) for parts in zip(*caches, strict=True))
    averaging = torch.block_diag(*(torch.full((1, shot), 1 / shot) for shot in shots))
    tokens = encode(torch.from_numpy(picture(99))[None])[0]
    wanted = HeadGraph(network)(tokens, kept, kept_mask, pooled, pooled_mask, averaging)
    feed = {"tokens": tokens, "kept": kept, "kept_mask": kept_mask, "pooled": pooled, "pooled_mask": pooled_mask}
    with OnnxRuntimeEngine(Bundle.load(bundle).graphs["head"], "cpu") as engine:
        got = engine.run({name: value.numpy() for name, value in {**feed, "averaging": averaging}.items()})
    np.testing.assert_allclose(got["presence"].numpy(), wanted[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(got["foreground"].numpy(), wanted[1].numpy(), atol=1e-4)
    assert wanted[0].min() > 0
    assert wanted[0].max() < 1


def test_the_parity_gate_notices_another_constant(
    bundle: Path, network: FewShotNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = Bundle.load(bundle).graphs
    raise_on_failure(verify(network, graphs))
    for name in ("TEMPERATURE", "AMONG_WEIGHT", "ALONE_LEVEL"):
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[PrototypeHead.__module__], name, 0.9)
            with pytest.raises(AccuracyGateError, match=r"head\."):
                raise_on_failure(verify(network, graphs))


def enroll_many(model: FewShotModel) -> None:
    model.enroll("a", [picture(seed) for seed in range(4)], [mask(seed) for seed in range(4)])
    model.enroll("b", [picture(4)], [None])
    model.enroll("c", [picture(seed) for seed in range(5, 8)], [mask(5), None, mask(7)])


def test_many_supports_in_several_runs_answer_as_in_one(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[int, ...]] = []  # classes and supports of every run of the head
    run = OnnxRuntimeEngine.run

    def recorded(self: OnnxRuntimeEngine, feed: Any) -> Any:
        runs.extend(tuple(feed[name].shape) for name in ("averaging",) if name in feed)
        return run(self, feed)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", recorded)

    def predict() -> Any:
        with FewShotModel.load(bundle, threads=1) as model:
            enroll_many(model)
            runs.clear()  # enrollment asks the head too
            return model.predict(picture(50), probabilities=True)

    whole = predict()
    assert runs == [(3, 8)]
    assert np.ptp(whole.scores) > 0.01
    with FewShotModel.load(bundle, threads=1) as model:
        enroll_many(model)
        longest = max(support.kept.shape[1] for name in model.classes for support in model.bank.supports(name))
        one = longest * 4 * model.bank.identity.num_channels * model.bank.identity.head_dim
    monkeypatch.setattr(head_runs, "LARGEST_TENSOR_BYTES", 4 * one)
    split = predict()
    assert runs == [(3, 4), (3, 4)]
    np.testing.assert_allclose(split.scores, whole.scores, atol=1e-5)
    np.testing.assert_allclose(split.foreground, whole.foreground, atol=1e-4)

    # A class that does not fit into one run still answers with probabilities.
    monkeypatch.setattr(head_runs, "LARGEST_TENSOR_BYTES", 1)
    alone = predict()
    assert len(runs) == 8
    for values in (alone.scores, alone.foreground):
        assert values.min() >= 0
        assert values.max() <= 1 + 1e-5


def test_a_saved_bank_and_torch_give_the_same_answers(bundle: Path, network: FewShotNetwork, tmp_path: Path) -> None:
    with FewShotModel.load(bundle, threads=1) as model:
        enroll_many(model)
        before = model.predict(picture(50), probabilities=True)
        model.save_bank(tmp_path / "bank.safetensors")
        model.load_bank(tmp_path / "bank.safetensors")
        after = model.predict(picture(50), probabilities=True)
    assert np.array_equal(before.scores, after.scores)
    with open_network(network, torch.device("cpu")) as plain:
        assert plain.manifest.head == "prototype"
        enroll_many(plain)
        theirs = plain.predict(picture(50), probabilities=True)
    # Both keep supports in FP16, rounded from numbers that differ in their last digits.
    np.testing.assert_allclose(theirs.scores, before.scores, atol=2e-3)
    np.testing.assert_allclose(theirs.foreground, before.foreground, atol=2e-2)


def test_the_bundled_backbone_gets_the_head_and_a_name_with_it() -> None:
    network = load_network(DEFAULT_BUNDLE / "cst-nano.safetensors", head="prototype")
    assert (network.config.name, network.config.head) == ("cst-nano-prototype", "prototype")
