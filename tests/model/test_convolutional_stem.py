from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.model.checkpoint import load_network, save_network
from fsvit_edge.model.convolutional_stem import (
    COARSE_BLOCKS,
    FINE_STAGES,
    TRUNK,
    ConvolutionalStem,
    fold_batch_norms,
    joined,
    renormalize,
    trunk_stages,
)
from fsvit_edge.model.encoder import HYBRID_BACKBONE, Encoder
from fsvit_edge.model.network import FewShotNetwork, normalize


def assert_near(ours: Tensor, theirs: Tensor, relative: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=relative * float(theirs.abs().max()))


@pytest.fixture
def trunk() -> nn.Module:
    """timm's network with batch norms that change their input."""
    torch.manual_seed(0)
    network = timm.create_model(TRUNK, pretrained=False, num_classes=0).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, middle in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                nn.init.uniform_(getattr(module, name), middle - 0.5, middle + 0.5)
    return network


def pixels(size: int, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, size, size, 3), generator=torch.Generator().manual_seed(size)).byte()


@torch.inference_mode()
def test_the_stem_gives_the_maps_of_timms_stages_with_timms_normalization(trunk: nn.Module) -> None:
    images = pixels(64)
    config = timm.data.resolve_data_config({}, model=trunk)
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    theirs = trunk.get_submodule("conv_stem")((images.permute(0, 3, 1, 2).float() / 255 - mean) / std)
    theirs = trunk.get_submodule("bn1")(theirs)
    stages = list(trunk.get_submodule("blocks").children())
    for stage in stages[:FINE_STAGES]:
        theirs = stage(theirs)
    coarse = theirs
    for block in list(stages[FINE_STAGES].children())[:COARSE_BLOCKS]:
        coarse = block(coarse)
    late = [stages[FINE_STAGES](theirs)]
    late.append(stages[FINE_STAGES + 1](late[0]))

    fine_part, coarse_part, late_parts = trunk_stages(trunk)

    # timm rounds 127 / 255 and 128 / 255 to 0.5.
    ours = fine_part((renormalize(normalize(images)) * (128 / 255) + 127 / 255 - mean) / std)
    assert_near(ours, theirs)
    x = coarse_part(ours)
    assert_near(x, coarse)
    for part, wanted in zip(late_parts, late, strict=True):
        x = part(x)
        assert_near(x, wanted)
    parts = nn.ModuleList([fine_part, coarse_part, *late_parts])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in parts.modules())


@torch.inference_mode()
def test_pictures_are_renormalized_for_the_trunk_before_padding() -> None:
    images = pixels(32)
    wanted = (images.permute(0, 3, 1, 2).float() - 127) / 128
    ours = renormalize(normalize(images))
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-6)
    # Folding this into a convolution with zero padding would change the border, where zero means another gray.
    assert not torch.allclose(F.pad(ours, (0, 1)), renormalize(F.pad(normalize(images), (0, 1))), atol=1e-2)


@torch.inference_mode()
def test_folding_a_batch_norm_does_not_change_the_result(trunk: nn.Module) -> None:
    image = torch.randn(1, 3, 64, 64)
    theirs = trunk(image)
    fold_batch_norms(trunk)
    assert_near(trunk(image), theirs)


@pytest.mark.parametrize("size", [64, 80])
@torch.inference_mode()
def test_both_strides_are_concatenated_whether_32_divides_the_picture_or_not(size: int) -> None:
    stem = ConvolutionalStem(48).eval()
    image = torch.randn(1, 3, size, size)
    fine = stem.fine(renormalize(image))
    assert fine.shape[-1] == size // 16
    both = joined(fine, stem.coarse(fine))
    assert torch.equal(both[:, : fine.shape[1]], fine)
    assert_near(stem(image), torch.einsum("oc,bchw->bohw", stem.project.weight[..., 0, 0], both), relative=0.5)
    assert stem(image).shape == (1, 48, size // 16, size // 16)


@pytest.mark.parametrize("size", [64, 80])
@torch.inference_mode()
def test_late_tokens_are_the_mean_and_then_the_resized_late_maps(size: int) -> None:
    stem = ConvolutionalStem(48).eval()
    maps = stem.maps(torch.randn(2, 3, size, size))
    tokens = stem.late_tokens(maps)
    grid = size // 16
    assert tokens.shape == (2, 2, 1 + grid**2, 48)
    x = maps[-1]
    for part, layer in zip(stem.late, tokens.unbind(1), strict=True):
        x = part(x)
        # Until the backbone is whitened, the first channels pass through.
        assert_near(layer[:, 0], x[:, :48].mean(dim=(2, 3)))
        large = F.interpolate(x[:, :48], size=(grid, grid), mode="bilinear", align_corners=False)
        assert_near(layer[:, 1:], large.flatten(2).transpose(1, 2))


@torch.inference_mode()
def test_late_tokens_come_before_those_of_the_blocks_and_do_not_change_them() -> None:
    encoder = Encoder(HYBRID_BACKBONE, 96).eval()
    image = torch.randn(2, 3, 96, 96)
    before = encoder(image)
    stem = encoder.stem
    assert stem is not None
    maps = stem.maps(image)
    assert torch.equal(before.tokens[:, :2], stem.late_tokens(maps))
    assert torch.equal(encoder(image, maps=maps).tokens, before.tokens)
    for weight in (stem.project_late[0].weight, stem.project_late[1].weight):
        torch.as_tensor(weight).mul_(2)
    after = encoder(image)
    assert_near(after.tokens[:, :2], 2 * before.tokens[:, :2])
    assert torch.equal(after.tokens[:, 2:], before.tokens[:, 2:])


def test_the_hybrid_has_one_token_per_16_pixels_and_loads_strictly() -> None:
    encoder = Encoder(HYBRID_BACKBONE, 96).eval()
    assert (encoder.patch_size, encoder.grid, encoder.num_layers, encoder.num_heads) == (16, 6, 6, 3)
    assert (encoder.num_slices, encoder.slice_dim, encoder.num_channels) == (1, 192, 6)
    tokens, class_query, image_keys = encoder(torch.randn(2, 3, 96, 96))
    assert tokens.shape == (2, 6, 37, 192)
    assert (class_query.shape, image_keys.shape) == ((2, 3, 64), (2, 3, 36, 64))
    other = Encoder(HYBRID_BACKBONE, 256)
    other.load_published(encoder.vit.state_dict())
    assert torch.equal(other.vit.patch_embed.proj.project.weight, encoder.vit.patch_embed.proj.project.weight)


@pytest.mark.slow(reason="exports a hybrid network, 18 s")
def test_a_hybrid_is_saved_loaded_and_exported_to_the_same_numbers(
    tmp_path: Path, hybrid_network: FewShotNetwork, hybrid_bundle: Path
) -> None:
    save_network(hybrid_network, tmp_path / "hybrid.safetensors")
    again = load_network(tmp_path / "hybrid.safetensors")
    images = pixels(64)
    with torch.inference_mode():
        theirs = hybrid_network.encoder(normalize(images))
        loaded = again.encoder(normalize(images))
    assert all(torch.equal(one, other) for one, other in zip(theirs, loaded, strict=True))
    session = onnxruntime.InferenceSession(hybrid_bundle / "encoder.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    ours = dict(zip(names, session.run(None, {"image": images.numpy()}), strict=True))
    for name, wanted in (("class_query", theirs.class_query), ("image_keys", theirs.image_keys)):
        np.testing.assert_allclose(ours[name], wanted.numpy(), rtol=0, atol=1e-4 * float(wanted.abs().max()))
