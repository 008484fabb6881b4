from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import apply_rot_embed_cat, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.model.encoder import (
    DINO_RESIZE,
    DINOV2_REGISTER_RESIZE,
    HYBRID_BACKBONE,
    NANO_BACKBONE,
    SUPPORTED_BACKBONES,
    Encoder,
    EncoderOutput,
    PositionResize,
    resize_position_embedding,
)
from fsvit_edge.runtime.errors import EnvironmentLacksError, InputError

Randomize = Callable[[nn.Module, int], None]
SMALL_DINO = "vit_small_patch16_224.dino"
SMALL_REGISTERS = "vit_small_patch14_reg4_dinov2.lvd142m"
SMALL_ROTARY = "vit_small_patch16_dinov3.lvd1689m"


def random_encoder(backbone: str, image_size: int, randomize: Randomize) -> Encoder:
    encoder = Encoder(backbone, image_size).eval()
    randomize(encoder.vit, 0)
    return encoder


def picture(size: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(size))


def assert_near(ours: Tensor, theirs: Tensor, relative: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=relative * float(theirs.abs().max()))


class Witness:
    """Results of a plain forward pass of timm's model: its output, that of every block, and the last query and key."""

    def __init__(self, vit: Any, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        attended: list[tuple[Tensor, Tensor]] = []
        self.blocks: list[Tensor] = []
        plain = F.scaled_dot_product_attention

        def listen(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            attended.append((query.clone(), key.clone()))
            return plain(query, key, *args, **kwargs)

        hooks = [block.register_forward_hook(lambda *call: self.blocks.append(call[2].clone())) for block in vit.blocks]
        with monkeypatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", listen)
            self.features = vit.forward_features(image)
        for hook in hooks:
            hook.remove()
        assert len(attended) == len(self.blocks) == len(vit.blocks)
        self.query, self.key = attended[-1]


@pytest.mark.parametrize(
    "backbone",
    [
        pytest.param(
            name,
            marks=pytest.mark.slow(reason="a ViT-B, 3 to 6 s; the ViT-Ss and one ViT-B are always compared")
            if name.startswith("vit_base") and name != "vit_base_patch16_224.dino"
            else (),
        )
        for name in SUPPORTED_BACKBONES
    ],
)
@torch.inference_mode()
def test_at_the_native_size_the_encoder_gives_the_output_of_timms_model(
    backbone: str, randomize: Randomize, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours_at = {NANO_BACKBONE: 64, HYBRID_BACKBONE: 256}
    native = ours_at.get(backbone) or timm.models.get_pretrained_cfg(backbone).input_size[-1]
    encoder = Encoder(backbone, native if backbone in ours_at else min(native, 224)).eval()
    vit, prefix = encoder.vit, encoder.vit.num_prefix_tokens
    if native == 518:  # 1,369 tokens take ten seconds a model; with fewer, the pass through the blocks is the same
        vit.set_input_size(img_size=(224, 224))
    randomize(vit, 0)
    image = picture(encoder.image_size)
    theirs = Witness(vit, image, monkeypatch)

    ours = encoder(image)

    without_registers = [0, *range(prefix, prefix + encoder.grid**2)]
    late = encoder.num_layers - len(vit.blocks)
    assert late == (2 if backbone == HYBRID_BACKBONE else 0)
    assert ours.tokens.shape == (1, encoder.num_layers, len(without_registers), vit.embed_dim)
    assert_near(ours.tokens[:, -1], theirs.features[:, without_registers])
    for layer, block in enumerate(theirs.blocks):
        assert_near(ours.tokens[:, late + layer], vit.norm(block)[:, without_registers])
    assert_near(ours.class_query, theirs.query[:, :, 0])
    # In rotary models, timm's query and key have been rotated; ours have not.
    image_keys = ours.image_keys
    if SUPPORTED_BACKBONES[backbone] is None:
        image_keys = apply_rot_embed_cat(image_keys, vit.rope.get_embed(shape=[encoder.grid] * 2), half=True)
    assert_near(image_keys, theirs.key[:, :, prefix:])


@torch.inference_mode()
def test_the_comparison_with_timm_notices_a_missing_norm_a_shifted_layer_and_a_register(
    randomize: Randomize, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = random_encoder(SMALL_REGISTERS, 70, randomize)
    vit, image = encoder.vit, picture(70)
    vit.set_input_size(img_size=(70, 70))
    theirs = Witness(vit, image, monkeypatch)
    ours = encoder(image, torch.cat([torch.zeros(1, 5, vit.embed_dim), vit.pos_embed], dim=1))
    kept = [0, *range(5, 30)]
    assert_near(ours.tokens[:, 3], vit.norm(theirs.blocks[3])[:, kept])
    normed = vit.norm(theirs.blocks[3])
    for part, wrong in (
        (ours.tokens[:, 3], theirs.blocks[3][:, kept]),
        (ours.tokens[:, 3], vit.norm(theirs.blocks[2])[:, kept]),
        (ours.tokens[:, 3], normed[:, [1, *kept[1:]]]),
        (ours.tokens[:, 3], normed[:, :26]),
        (ours.class_query, theirs.query[:, :, 1]),
        (ours.image_keys, theirs.key[:, :, 4:-1]),
    ):
        with pytest.raises(AssertionError):
            assert_near(part, wrong)


@torch.inference_mode()
def test_pictures_of_one_batch_are_independent(randomize: Randomize) -> None:
    encoder = random_encoder(NANO_BACKBONE, 48, randomize)
    images = picture(48, count=3)
    together = encoder(images)
    assert not torch.allclose(together.tokens[0], together.tokens[1])
    for index in range(3):
        for ours, alone in zip(together, encoder(images[index : index + 1]), strict=True):
            assert_near(ours[index], alone[0])


def bicubic_matrix(native: int, grid: int, scale: float, antialias: bool) -> np.ndarray:
    """Rows: the weights of the native cells in a target cell. Keys' kernel; align_corners off, border repeated.

    With antialiasing the kernel is Pillow's (a = -0.5), as wide as a target cell, and cut off at the border.
    """
    a = -0.5 if antialias else -0.75
    stretch = max(1 / scale, 1.0) if antialias else 1.0
    matrix = np.zeros((grid, native))
    for row in range(grid):
        center = (row + 0.5) / scale - 0.5
        for column in range(-4 * native, 5 * native):
            x = abs(column - center) / stretch
            inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
            outer = a * (x**3 - 5 * x**2 + 8 * x - 4)
            weight = inner if x <= 1 else outer if x < 2 else 0.0
            if not antialias:
                matrix[row, min(max(column, 0), native - 1)] += weight
            elif 0 <= column < native:
                matrix[row, column] += weight
    return matrix / matrix.sum(axis=1, keepdims=True)


def resized_by_hand(embedding: Tensor, grid: int, offset: float, antialias: bool) -> Tensor:
    native = round(embedding.shape[1] ** 0.5)
    matrix = bicubic_matrix(native, grid, (grid + offset) / native, antialias)
    maps = embedding.double().numpy().reshape(native, native, -1)
    return torch.from_numpy(np.einsum("yi,xj,ijd->yxd", matrix, matrix, maps).reshape(1, grid * grid, -1)).float()


@pytest.mark.parametrize(("native", "grid"), [(28, 50), (14, 30), (37, 28), (8, 6), (8, 16), (8, 9)])
@pytest.mark.parametrize("how", [DINO_RESIZE, DINOV2_REGISTER_RESIZE], ids=["dino", "registers"])
def test_a_position_embedding_is_resized_as_in_the_published_code_of_its_family(
    how: PositionResize, native: int, grid: int
) -> None:
    embedding = torch.randn(1, native**2, 5, generator=torch.Generator().manual_seed(native * grid))
    ours = resize_position_embedding(embedding, grid, how)
    assert_near(ours, resized_by_hand(embedding, grid, how.offset, how.antialias))
    other = DINO_RESIZE if how is DINOV2_REGISTER_RESIZE else DINOV2_REGISTER_RESIZE
    with pytest.raises(AssertionError):
        assert_near(ours, resized_by_hand(embedding, grid, other.offset, other.antialias), relative=1e-2)


def test_timms_own_resampling_is_not_dinos() -> None:
    embedding = torch.randn(1, 28**2, 5, generator=torch.Generator().manual_seed(0))
    ours = resize_position_embedding(embedding, 50, DINO_RESIZE)
    theirs = resample_abs_pos_embed(embedding, [50, 50], num_prefix_tokens=0)
    without_offset = resized_by_hand(embedding, 50, 0.0, antialias=False)
    for other, relative in ((theirs, 1e-2), (without_offset, 1e-3)):
        with pytest.raises(AssertionError):
            assert_near(ours, other, relative)
    assert resize_position_embedding(embedding, 28, DINO_RESIZE) is embedding


@pytest.mark.parametrize("backbone", SUPPORTED_BACKBONES)
def test_a_backbone_is_resized_like_its_family(backbone: str) -> None:
    family = None if "dinov3" in backbone else DINOV2_REGISTER_RESIZE if "reg4" in backbone else DINO_RESIZE
    assert SUPPORTED_BACKBONES[backbone] == family


@pytest.mark.parametrize(
    ("backbone", "size", "offset", "antialias", "learned_prefix", "prefix"),
    [
        (NANO_BACKBONE, 48, 0.1, False, 1, 1),
        (SMALL_DINO, 400, 0.1, False, 1, 1),
        ("vit_small_patch14_dinov2.lvd142m", 392, 0.1, False, 1, 1),
        # timm keeps the class token's position in the class token; registers have none.
        (SMALL_REGISTERS, 392, 0.0, True, 0, 5),
    ],
)
@torch.inference_mode()
def test_position_has_the_resized_image_tokens_after_the_untouched_prefix(
    randomize: Randomize, backbone: str, size: int, offset: float, antialias: bool, learned_prefix: int, prefix: int
) -> None:
    encoder = random_encoder(backbone, size, randomize)
    position, learned = encoder.position(), encoder.vit.pos_embed
    assert position.shape == (1, prefix + encoder.grid**2, encoder.embed_dim)
    assert torch.equal(position[:, :learned_prefix], learned[:, :learned_prefix])
    assert not position[:, learned_prefix:prefix].any()
    image = learned[:, learned_prefix:]
    assert_near(position[:, prefix:], resized_by_hand(image, encoder.grid, offset, antialias))


@torch.inference_mode()
def test_at_another_size_the_encoder_is_timms_model_with_our_position_embedding(randomize: Randomize) -> None:
    encoder = random_encoder(NANO_BACKBONE, 48, randomize)
    image = picture(48)
    settings = {"patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3, "num_classes": 0, "global_pool": "token"}
    plain = VisionTransformer(img_size=48, **settings).eval()
    weights = encoder.vit.state_dict()
    plain.load_state_dict({**weights, "pos_embed": encoder.position()})
    assert_near(encoder(image).tokens[:, -1], plain.forward_features(image))

    plain.load_state_dict({**weights, "pos_embed": resample_abs_pos_embed(weights["pos_embed"], [6, 6])})
    with pytest.raises(AssertionError):
        assert_near(encoder(image).tokens[:, -1], plain.forward_features(image), relative=1e-3)


@torch.inference_mode()
def test_a_rotary_model_handles_other_sizes_as_timm_does(randomize: Randomize) -> None:
    encoder = random_encoder(SMALL_ROTARY, 160, randomize)
    image = picture(160)
    theirs = encoder.vit.forward_features(image)
    assert_near(encoder(image).tokens[:, -1], theirs[:, [0, *range(5, 105)]])


@torch.inference_mode()
@pytest.mark.parametrize(("backbone", "size"), [(NANO_BACKBONE, 48), (SMALL_ROTARY, 64)])
def test_a_position_computed_once_gives_the_same_output(randomize: Randomize, backbone: str, size: int) -> None:
    encoder = random_encoder(backbone, size, randomize)
    image, position = picture(size), encoder.position().clone()
    for ours, again in zip(encoder(image, position), encoder(image), strict=True):
        assert torch.equal(ours, again)
    assert not torch.allclose(encoder(image, position.flip(-2)).tokens, encoder(image).tokens, atol=1e-3)


def test_an_unknown_backbone_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(InputError, match="resnet50") as caught:
        Encoder("resnet50", 224)
    for name in SUPPORTED_BACKBONES:
        assert name in str(caught.value)


@pytest.mark.parametrize("size", [0, -8, 4, 50, 401])
def test_an_image_size_must_be_a_multiple_of_the_patch(size: int) -> None:
    with pytest.raises(InputError, match=rf"multiple of the patch size of {NANO_BACKBONE}, 8 pixels; got {size}\."):
        Encoder(NANO_BACKBONE, size)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        pytest.param(OSError("no route to host\nsecond line"), "OSError: no route to host", id="several lines"),
        pytest.param(ConnectionError(), "ConnectionError", id="no message"),
        pytest.param(RuntimeError("hub is down"), "RuntimeError: hub is down", id="RuntimeError"),
    ],
)
def test_weights_that_cannot_be_downloaded_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, reason: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(EnvironmentLacksError, match="--weights") as caught:
        Encoder(SMALL_DINO, 224, pretrained=True)
    message = str(caught.value)
    assert f"({reason})" in message
    assert message.count("\n") == 0
    assert message.endswith(".")
    with pytest.raises(type(failure)):  # without --pretrained, such an error is a bug of ours and is not converted
        Encoder(SMALL_DINO, 224)


@pytest.mark.parametrize("pretrained", [False, True])
def test_timm_downloads_weights_only_if_pretrained_is_true(monkeypatch: pytest.MonkeyPatch, pretrained: bool) -> None:
    asked = []

    def local(name: str, **kwargs: Any) -> VisionTransformer:
        asked.append((name, kwargs["pretrained"]))
        model = VisionTransformer(img_size=32, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=0)
        nn.init.constant_(model.norm.bias, 7.0)
        return model

    monkeypatch.setattr(timm, "create_model", local)
    encoder = Encoder(SMALL_DINO, 64, pretrained)
    assert asked == [(SMALL_DINO, pretrained)]
    assert (encoder.vit.norm.bias == 7.0).all()
    assert (encoder.grid, encoder.num_channels, encoder.head_dim) == (4, 6, 16)
    assert isinstance(encoder(picture(64)), EncoderOutput)


@pytest.mark.parametrize("backbone", [NANO_BACKBONE, HYBRID_BACKBONE])
def test_timm_has_no_weights_for_our_own_backbones(backbone: str) -> None:
    with pytest.raises(InputError, match="leave out --pretrained"):
        Encoder(backbone, 64, pretrained=True)


def dinov2_published(vit: Any) -> dict[str, Tensor]:
    """timm's state as DINOv2 publishes it: the class token has its own position, and there are heads for training."""
    state = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    state |= {"mask_token": torch.zeros(1, vit.embed_dim), "head.mlp.0.weight": torch.zeros(3)}
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        of_class = torch.full((1, 1, vit.embed_dim), 0.5)
        state["cls_token"] = state["cls_token"] - of_class
        state["pos_embed"] = torch.cat([of_class, state["pos_embed"]], dim=1)
    return state


@pytest.mark.parametrize("backbone", [SMALL_REGISTERS, "vit_small_patch14_dinov2.lvd142m"])
def test_weights_with_dinov2s_own_names_load_without_the_heads_for_training(
    randomize: Randomize, backbone: str
) -> None:
    source, target = random_encoder(backbone, 70, randomize), Encoder(backbone, 70)
    target.load_published(dinov2_published(source.vit))
    for (name, ours), theirs in zip(target.vit.state_dict().items(), source.vit.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=name)
