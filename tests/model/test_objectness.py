import dataclasses
from pathlib import Path

import pytest
import torch

from fsvit_edge.model.checkpoint import load_network, save_network
from fsvit_edge.model.config import ModelConfig
from fsvit_edge.model.encoder import HYBRID_BACKBONE, NANO_BACKBONE
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.errors import ArtifactError, InputError


@pytest.fixture(scope="module")
def network() -> FewShotNetwork:
    torch.manual_seed(0)
    return FewShotNetwork(ModelConfig("test", HYBRID_BACKBONE, 64, objectness=True)).eval()


def test_the_decoder_reads_the_maps_that_make_the_tokens(network: FewShotNetwork) -> None:
    stem, image = network.encoder.stem, torch.randn(2, 3, 64, 64)
    assert stem is not None
    assert network.objectness is not None
    with torch.no_grad():
        maps = stem.maps(image)
        assert [level.shape[-1] for level in maps] == [16, 8, 4, 2]
        assert torch.equal(stem.patches(maps), stem(image))
        assert network.objectness(maps).shape == (2, 16, 16)


def test_objectness_does_not_change_the_tokens(network: FewShotNetwork) -> None:
    plain = FewShotNetwork(dataclasses.replace(network.config, objectness=False))
    plain.encoder.load_state_dict(network.encoder.state_dict())
    image = torch.randn(1, 3, 64, 64)

    with torch.no_grad():
        assert torch.equal(plain.encoder(image).tokens, network.encoder(image).tokens)


def test_a_checkpoint_contains_the_decoder(network: FewShotNetwork, tmp_path: Path) -> None:
    save_network(network, tmp_path / "saved.safetensors")
    again = load_network(tmp_path / "saved.safetensors")

    assert again.config.objectness
    assert again.objectness is not None
    assert network.objectness is not None
    for name, tensor in network.objectness.state_dict().items():
        assert torch.equal(tensor, again.objectness.state_dict()[name])


def test_a_checkpoint_whose_decoder_is_missing_is_refused(network: FewShotNetwork, tmp_path: Path) -> None:
    plain = FewShotNetwork(dataclasses.replace(network.config, objectness=False))
    save_network(plain, tmp_path / "plain.safetensors")
    (tmp_path / "plain.json").write_text(network.config.to_json())

    with pytest.raises(ArtifactError, match="objectness decoder"):
        load_network(tmp_path / "plain.safetensors")


def test_a_backbone_without_a_convolutional_stem_has_no_decoder() -> None:
    with pytest.raises(InputError, match="convolutional stem"):
        FewShotNetwork(ModelConfig("test", NANO_BACKBONE, 64, objectness=True))
