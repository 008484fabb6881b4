"""The frozen encoder: image -> normalized tokens of every block, and query and key vectors of the last block.

The blocks are timm's. Only the forward pass is written here, because the head reads every block, and because timm
resizes the position embedding differently from the published code.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.model.convolutional_stem import ConvolutionalPatches, ConvolutionalStem, passing_on
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, InputError


@dataclass(frozen=True)
class PositionResize:
    """How the published code of a model family resizes its position embedding to another grid (always bicubic)."""

    offset: float  # added to the new grid before dividing by the native one; 0.0 passes the target size, not a scale
    antialias: bool


DINO_RESIZE = PositionResize(offset=0.1, antialias=False)
DINOV2_REGISTER_RESIZE = PositionResize(offset=0.0, antialias=True)

NANO_BACKBONE = "vit_nano_patch8_64"
HYBRID_BACKBONE = "vit_nano_patch16_hybrid_256"
_NANO = {"embed_dim": 192, "num_heads": 3}
_HYBRID = {"img_size": 256, "patch_size": 16, "depth": 4, "mlp_ratio": 2.0, "embed_layer": ConvolutionalPatches}
OUR_BACKBONES: Mapping[str, Mapping[str, Any]] = {
    NANO_BACKBONE: {**_NANO, "img_size": 64, "patch_size": 8, "depth": 6},
    HYBRID_BACKBONE: {**_NANO, **_HYBRID},
}
"""Backbones that timm does not have, as arguments of its VisionTransformer."""

SUPPORTED_BACKBONES: Mapping[str, PositionResize | None] = {
    NANO_BACKBONE: DINO_RESIZE,
    HYBRID_BACKBONE: DINO_RESIZE,
    "vit_small_patch8_224.dino": DINO_RESIZE,
    "vit_small_patch16_224.dino": DINO_RESIZE,
    "vit_base_patch8_224.dino": DINO_RESIZE,
    "vit_base_patch16_224.dino": DINO_RESIZE,
    "vit_small_patch14_dinov2.lvd142m": DINO_RESIZE,
    "vit_base_patch14_dinov2.lvd142m": DINO_RESIZE,
    "vit_small_patch14_reg4_dinov2.lvd142m": DINOV2_REGISTER_RESIZE,
    "vit_base_patch14_reg4_dinov2.lvd142m": DINOV2_REGISTER_RESIZE,
    "vit_small_patch16_dinov3.lvd1689m": None,
    "vit_base_patch16_dinov3.lvd1689m": None,
}
"""timm names, and how each position embedding is resized (None: rotary, nothing to resize)."""


class EncoderOutput(NamedTuple):
    """The encoder's output for a batch of B images: L layers, N image tokens (row-major grid) of width D."""

    tokens: Tensor
    """(B, L, 1 + N, D), class token first, without registers. The last layers are the outputs of the blocks, normalized
    by the backbone's final norm; the first ones are the late maps of the convolutional stem, if there is one."""
    class_query: Tensor
    """(B, heads, D / heads), the last block's query vector of the class token, before attention."""
    image_keys: Tensor
    """(B, heads, N, D / heads), the last block's key vectors of the image tokens, before attention and rotation."""


class EvenedNorm(nn.Module):
    """The final norm of the hybrid backbone, then a linear layer that centers and whitens the tokens.

    The head compares tokens by their cosines. With the stem of a classifier, a large part of every token is the same
    and a few directions dominate, so cosines use only part of the information; see `examples/even_backbone.py`.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        (dim,) = norm.normalized_shape
        self.norm = norm
        self.project = passing_on(nn.Linear, dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (..., D)."""
        return torch.as_tensor(self.project(self.norm(x)))


class Encoder(nn.Module):
    """A ViT, plain or with a convolutional stem.

    The final norm normalizes the output of every block (CST, section 3.2). `image_size` is the side of the square input
    in pixels; `pretrained` loads the published weights from timm's hub, the first time over the internet.
    """

    def __init__(self, backbone: str, image_size: int, pretrained: bool = False) -> None:
        super().__init__()
        if backbone not in SUPPORTED_BACKBONES:
            raise InputError(
                f"Backbone {backbone!r} is not supported; choose one of: {', '.join(SUPPORTED_BACKBONES)}."
            )
        self.vit = _build_vit(backbone, pretrained)
        self.image_size = image_size
        self.patch_size = int(self.vit.patch_embed.patch_size[0])
        if image_size % self.patch_size or image_size < self.patch_size:
            raise InputError(
                f"The image size must be a multiple of the patch size of {backbone}, {self.patch_size} pixels; "
                f"got {image_size}."
            )
        self.grid = image_size // self.patch_size
        self.embed_dim = int(self.vit.embed_dim)
        self.num_layers = len(self.vit.blocks) + (0 if self.stem is None else len(self.stem.late))
        self.num_heads = int(self.vit.blocks[0].attn.num_heads)
        self.head_dim = self.embed_dim // self.num_heads
        # CST compares the slices of a token that belong to each attention head separately. The maps of a convolutional
        # trunk have no heads: comparing thirds of them is right in 81.9 % of episodes, comparing whole tokens in 83.4 %
        # (model page, "What was tried").
        self.num_slices = self.num_heads if self.stem is None else 1
        self.slice_dim = self.embed_dim // self.num_slices
        self.num_channels = self.num_slices * self.num_layers  # correlation channels C
        self._resize = SUPPORTED_BACKBONES[backbone]

    def position(self) -> Tensor:
        """Return the resized embedding (1, tokens, D), or the rotary table; the export stores it as a constant."""
        vit = self.vit
        if self._resize is None:
            return torch.as_tensor(vit.rope.get_embed(shape=[self.grid, self.grid]))
        prefix, image = vit.pos_embed[:, :1], vit.pos_embed[:, 1:]
        if vit.no_embed_class:
            prefix, image = vit.pos_embed.new_zeros(1, vit.num_prefix_tokens, self.embed_dim), vit.pos_embed
        return torch.cat([prefix, resize_position_embedding(image, self.grid, self._resize)], dim=1)

    @property
    def stem(self) -> ConvolutionalStem | None:
        """The convolutional stem; None if the backbone has plain patches."""
        stem = self.vit.patch_embed.proj
        return stem if isinstance(stem, ConvolutionalStem) else None

    def forward(
        self, image: Tensor, position: Tensor | None = None, maps: Sequence[Tensor] | None = None
    ) -> EncoderOutput:
        """Encode (B, 3, S, S) float RGB, in [0, 1] before the normalization with ImageNet's mean and deviation.

        `position` is the result of `position`, `maps` that of `ConvolutionalStem.maps`; None computes them.
        """
        vit, stem = self.vit, self.stem
        position = self.position() if position is None else position
        if stem is None:
            x = vit.patch_embed.proj(image)
        else:
            maps = stem.maps(image) if maps is None else maps
            x = stem.patches(maps)
        x = x.flatten(2).transpose(1, 2)  # B, N, D
        prefix = [vit.cls_token] if vit.reg_token is None else [vit.cls_token, vit.reg_token]
        x = torch.cat([*(token.expand(x.shape[0], -1, -1) for token in prefix), x], dim=1)
        rotary = {"rope": position} if self._resize is None else {}
        x = vit.norm_pre(x if rotary else x + position)
        features = []
        for block in vit.blocks[:-1]:
            x = block(x, **rotary)
            features.append(vit.norm(x))
        last = vit.blocks[-1]
        query, key = self._query_and_key(last.attn, last.norm1(x))
        features.append(vit.norm(last(x, **rotary)))
        tokens = torch.stack(features, dim=1)  # B, L, prefix + N, D
        num_prefix = int(vit.num_prefix_tokens)
        if num_prefix > 1:
            tokens = torch.cat([tokens[:, :, :1], tokens[:, :, num_prefix:]], dim=2)
        if stem is not None:
            assert maps is not None
            tokens = torch.cat([stem.late_tokens(maps), tokens], dim=1)
        return EncoderOutput(tokens, query[:, :, 0], key[:, :, num_prefix:])

    def _query_and_key(self, attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        qkv = attention.qkv(x)
        if getattr(attention, "q_bias", None) is not None:
            qkv = qkv + torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        qkv = qkv.reshape(*x.shape[:2], 3, self.num_heads, self.head_dim)  # B, prefix + N, 3, heads, d
        qkv = qkv.permute(2, 0, 3, 1, 4)  # 3, B, heads, prefix + N, d
        return attention.q_norm(qkv[0]), attention.k_norm(qkv[1])

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Load weights with the names of timm, or those of the published DINO and DINOv2; training heads are left out.

        timm's own conversion is not used: it resamples the patch or position embedding of a different model until it
        fits, and the results silently differ from the published ones.
        """
        state = {name: tensor for name, tensor in state.items() if not name.startswith(("head.", "mask_token"))}
        if {"register_tokens", "cls_token", "pos_embed"} <= state.keys():
            # If there are registers, timm adds the class token's position to the class token itself.
            state["reg_token"] = state.pop("register_tokens")
            state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
            state["pos_embed"] = state["pos_embed"][:, 1:]
        load_strictly(self.vit, state, "backbone")


def resize_position_embedding(embedding: Tensor, grid: int, how: PositionResize) -> Tensor:
    """Resize the image tokens' position embedding as the published code does (DINO's `interpolate_pos_encoding`).

    DINO passes the scale factor (grid + 0.1) / native to the bicubic interpolation instead of a target size, so it
    samples at slightly different positions than timm; the published results depend on it.

    (1, n * n, D) for the native n x n grid -> (1, grid * grid, D).
    """
    native = math.isqrt(embedding.shape[1])
    if native == grid:
        return embedding
    maps = embedding.reshape(1, native, native, -1).permute(0, 3, 1, 2)  # 1, D, n, n
    scale, size = ((grid + how.offset) / native, None) if how.offset else (None, grid)
    maps = F.interpolate(maps, size, scale, mode="bicubic", antialias=how.antialias)
    return maps.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], part: str) -> None:
    """Load `state` into `module`; an ArtifactError names a tensor that is missing, unknown, misshapen or not finite."""
    wanted = module.state_dict()
    if missing := sorted(wanted.keys() - state.keys()):
        raise ArtifactError(
            f"The {part} weights lack {len(missing)} tensors, for example {missing[0]!r}; is it the right file? It has "
            f"{', '.join(list(state)[:3]) or 'none'}."
        )
    if unknown := sorted(state.keys() - wanted.keys()):
        raise ArtifactError(f"The {part} weights contain {len(unknown)} unknown tensors, for example {unknown[0]!r}.")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise ArtifactError(
                f"The {part} tensor {name!r} has shape {tuple(tensor.shape)}, expected {tuple(wanted[name].shape)}."
            )
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"The {part} tensor {name!r} contains NaN or infinite values; the file is damaged.")
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()})


def _build_vit(backbone: str, pretrained: bool) -> Any:
    if backbone in OUR_BACKBONES:
        if pretrained:
            raise InputError(f"timm has no weights for {backbone}, a backbone of this project; leave out --pretrained.")
        ours: Any = VisionTransformer(**OUR_BACKBONES[backbone], num_classes=0, global_pool="token")
        if backbone == HYBRID_BACKBONE:
            ours.norm = EvenedNorm(ours.norm)
        return ours
    try:
        return timm.create_model(backbone, pretrained=pretrained, num_classes=0)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise EnvironmentLacksError(
            f"The pretrained weights of {backbone} cannot be downloaded ({reason}); "
            "connect to the internet once, or give a local file with --weights."
        ) from error
