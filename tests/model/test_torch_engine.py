"""A network in torch answers as the bundle of the same network does."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.model.graphs import build_graphs
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.model.torch_engine import TorchEngine, open_network
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError

CPU = torch.device("cpu")


@pytest.fixture
def in_torch(tiny_network: FewShotNetwork) -> Iterator[FewShotModel]:
    with open_network(copy.deepcopy(tiny_network), CPU) as model:
        yield model


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 5, 6, 3), dtype=np.uint8)
    return list(small.repeat(12, axis=1).repeat(14, axis=2))


def test_torch_and_onnx_runtime_give_the_same_answers(in_torch: FewShotModel, tiny_bundle: Path) -> None:
    frame, *supports = pictures(5)
    mask = np.zeros((60, 84), np.bool_)
    mask[10:45, 20:60] = True
    with FewShotModel.load(tiny_bundle, "onnxruntime", threads=1) as in_onnx:
        for model in (in_torch, in_onnx):
            model.enroll("masked", supports[:2], [mask, None])
            model.enroll("named", supports[2:])
        ours, theirs = in_torch.predict(frame, probabilities=True), in_onnx.predict(frame, probabilities=True)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
    assert ours.foreground is not None
    assert theirs.foreground is not None
    assert np.ptp(theirs.foreground) > 0.01
    np.testing.assert_allclose(ours.foreground, theirs.foreground, atol=1e-3)
    assert (ours.label_map == theirs.label_map).mean() > 0.999


def test_a_checkpoint_crops_supports_as_its_bundle_does(tiny_network: FewShotNetwork) -> None:
    network = copy.deepcopy(tiny_network)
    network.config = replace(network.config, support_crop=2.0)
    with open_network(network, CPU) as model:
        assert model.manifest.support_crop == 2.0
        mask = np.zeros((400, 600), np.bool_)
        mask[100:140, 300:340] = True
        support = model.cache_support("small", np.full((400, 600, 3), 90, np.uint8), mask)
    assert support.thumbnail.shape == (64, 96, 3)
    assert support.thumbnail_mask.mean() > 0.1


def test_inputs_and_outputs_are_those_of_the_exported_graphs(in_torch: FewShotModel, tiny_bundle: Path) -> None:
    for name, info in in_torch.manifest.graphs.items():
        with OnnxRuntimeEngine(tiny_bundle / f"{name}.onnx", "cpu", 1) as exported:
            assert info.inputs == exported.inputs
            assert [(spec.name, spec.shape[1:], spec.dtype) for spec in info.outputs] == [
                (spec.name, spec.shape[1:], spec.dtype) for spec in exported.outputs
            ]


def test_other_weights_have_another_identity(tiny_network: FewShotNetwork) -> None:
    other = copy.deepcopy(tiny_network)
    with torch.no_grad():
        next(other.head.parameters()).add_(1e-3)
    models = [open_network(network, CPU) for network in (tiny_network, copy.deepcopy(tiny_network), other)]
    first, same, changed = ({name: info.sha256 for name, info in m.manifest.graphs.items()} for m in models)
    assert first == same
    assert first["encoder"] == changed["encoder"]
    assert first["head"] != changed["head"]


def test_a_wrong_feed_a_failure_of_torch_and_a_closed_engine_are_one_sentence(
    tiny_network: FewShotNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = build_graphs(tiny_network)["encoder"]
    engine = TorchEngine(spec, CPU)
    picture = np.zeros((1, 48, 48, 3), np.uint8)
    with pytest.raises(InputError, match="must be uint8"):
        engine.run({"image": picture.astype(np.float32)})
    assert engine.run({"image": picture})["tokens"].shape[0] == 1

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(spec.module, "forward", fail)
    with pytest.raises(FsvitEdgeError, match=r"^torch failed to run the network: CUDA out of memory\.$"):
        engine.run({"image": picture})
    engine.close()
    engine.close()
    with pytest.raises(FsvitEdgeError, match="closed"):
        engine.run({"image": picture})
