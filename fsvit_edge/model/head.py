"""The correlation transformer in the published order (CST, section 3.2): the slow reference for `fast_head.py`.

Shapes: B supports, C = slices x layers correlation channels, N query tokens, T support tokens (class token first).
Parameters have their published names, so `learner.*` of a published checkpoint loads unchanged.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.model.config import POOLED_GRID

NUM_ATTENTION_HEADS = 8
MASKED = -1e9


class HeadLogits(NamedTuple):
    """The head's answer for each of B supports."""

    presence: Tensor  # (B, 2) logits of absent and present
    mask: Tensor  # (B, 2, 2 * grid, 2 * grid) logits of background and foreground


def support_tokens(tokens: Tensor, grid: int, support_grid: int) -> Tensor:
    """Resize the image tokens of supports to the support grid; the class token is unchanged (CST, section 3.2).

    (B, L, 1 + grid ** 2, D) -> (B, L, 1 + support_grid ** 2, D).
    """
    batch, layers, _, dim = tokens.shape
    image = tokens[:, :, 1:].reshape(batch * layers, grid, grid, dim).permute(0, 3, 1, 2)  # B * L, D, grid, grid
    image = F.interpolate(image, size=(support_grid, support_grid), mode="bilinear", align_corners=True)
    image = image.permute(0, 2, 3, 1).reshape(batch, layers, support_grid**2, dim)  # B, L, support_grid ** 2, D
    return torch.cat([tokens[:, :, :1], image], dim=2)


def channel_vectors(tokens: Tensor, num_slices: int) -> Tensor:
    """Cut tokens into slices: (B, L, T, D) -> (B, C, T, D / slices), with channel = slice * L + layer."""
    batch, layers, length, dim = tokens.shape
    slices = tokens.reshape(batch, layers, length, num_slices, dim // num_slices)
    slices = slices.permute(0, 3, 1, 2, 4)  # B, slices, L, T, D / slices
    return slices.reshape(batch, num_slices * layers, length, dim // num_slices)


def mask_on_grid(mask: Tensor, grid: int) -> Tensor:
    """Resize masks (B, S, S) to a grid: (B, grid * grid), bilinear with align_corners; exactly 0 means masked."""
    return F.interpolate(mask[:, None], size=(grid, grid), mode="bilinear", align_corners=True).flatten(1)


class SupportPool(nn.Module):
    """Average-pool the support's image tokens in (B, C, N, 1 + side ** 2); the class token is unchanged."""

    def __init__(self, side: int, pooled_side: int) -> None:
        super().__init__()
        self.side = side
        self.kernel = side // pooled_side

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, N, 1 + (side / kernel) ** 2)."""
        batch, channels, num_query, _ = x.shape
        image = x[..., 1:].reshape(batch, channels * num_query, self.side, self.side)  # B, C * N, side, side
        image = F.avg_pool2d(image, self.kernel).reshape(batch, channels, num_query, -1)  # B, C, N, pooled side ** 2
        return torch.cat([x[..., :1], image], dim=3)


class AttentivePooling(nn.Module):
    """Attention over the support tokens of each query token, which pools them (CST, section 3.2; no 1 / sqrt(d))."""

    def __init__(self, dim_in: int, dim_out: int, side: int, pooled_side: int) -> None:
        super().__init__()
        half = dim_out // 2
        self.side = side
        self.pool = SupportPool(side, pooled_side)
        self.short_cut = nn.Sequential(
            nn.Conv2d(dim_in, dim_out, 1, bias=False), self.pool, nn.GroupNorm(4, dim_out), nn.ReLU()
        )
        self.qkv = nn.Conv2d(dim_in, half * 3, 1)
        widen = nn.Conv2d(half, dim_out, 1, bias=False)
        self.agg = nn.Sequential(nn.GroupNorm(4, half), nn.ReLU(), widen, nn.GroupNorm(4, dim_out), nn.ReLU())
        self.out_norm = nn.GroupNorm(4, dim_out)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Pool (B, C, N, 1 + side ** 2), attending only where `mask` (B, S, S) is not 0."""
        batch, _, num_query, _ = x.shape
        query, key, value = self.qkv(x).chunk(3, dim=1)
        query = self.pool(query)
        query, key, value = (
            t.reshape(batch, NUM_ATTENTION_HEADS, -1, num_query, t.shape[-1]) for t in (query, key, value)
        )  # B, heads, d, N, p or T
        logits = torch.einsum("bhdnp,bhdnt->bhnpt", query, key)
        unseen = F.pad(mask_on_grid(mask, self.side) == 0, (1, 0))  # B, T; the class token is never masked
        attention = logits.masked_fill(unseen[:, None, None, None], MASKED).softmax(dim=-1)
        pooled = torch.einsum("bhnpt,bhdnt->bhdnp", attention, value).flatten(1, 2)  # B, heads * d, N, p
        return torch.as_tensor(self.out_norm(self.agg(pooled) + self.short_cut(x)))


class FeedForward(nn.Module):
    """1 x 1 convolutions to half the width and back, added to the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.ff = nn.Sequential(
            nn.Conv2d(dim, half, 1, bias=False), nn.GroupNorm(4, half), nn.ReLU(), nn.Conv2d(half, dim, 1, bias=False)
        )
        self.out_norm = nn.GroupNorm(4, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, C, N, T)."""
        return torch.as_tensor(self.out_norm(x + self.ff(x)))


class CorrelationBlock(nn.Module):
    """One block of the correlation transformer."""

    def __init__(self, dim_in: int, dim_out: int, side: int, pooled_side: int) -> None:
        super().__init__()
        self.attn = AttentivePooling(dim_in, dim_out, side, pooled_side)
        self.ff = FeedForward(dim_out)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Pool (B, C, N, 1 + side ** 2), attending only where `mask` (B, S, S) is not 0."""
        return torch.as_tensor(self.ff(self.attn(x, mask)))


def two_convolutions(dim_in: int, dim_mid: int, dim_out: int, kernel: int) -> nn.Sequential:
    """Two convolutions of the same kernel size, with a ReLU between them."""
    pad = kernel // 2
    return nn.Sequential(
        nn.Conv2d(dim_in, dim_mid, kernel, padding=pad), nn.ReLU(), nn.Conv2d(dim_mid, dim_out, kernel, padding=pad)
    )


class CorrelationHead(nn.Module):
    """The correlation transformer with its two decoders, in the published order (CST, section 3.2 and figure 3)."""

    def __init__(self, num_channels: int, support_grid: int) -> None:
        super().__init__()
        self.corrtransformer = nn.ModuleList(
            [CorrelationBlock(num_channels, 32, support_grid, POOLED_GRID), CorrelationBlock(32, 128, POOLED_GRID, 1)]
        )
        linear = [(nn.Conv2d(128, 128, 1), nn.GroupNorm(4, 128), nn.ReLU()) for _ in range(2)]
        self.linear = nn.Sequential(*linear[0], *linear[1])
        self.decoder1_cls = two_convolutions(128, 128, 64, kernel=1)
        self.decoder2_cls = two_convolutions(64, 64, 2, kernel=1)
        self.decoder1_seg = two_convolutions(128, 128, 64, kernel=3)
        self.decoder2_seg = two_convolutions(64, 64, 2, kernel=3)

    def forward(self, query: Tensor, support: Tensor, mask: Tensor) -> HeadLogits:
        """Compare B supports with the frames.

        Args:
            query: (B or 1, C, N, d) image tokens of the frames, L2-normalized over d.
            support: (B, C, T, d), T = 1 + support_grid ** 2, class token first, L2-normalized over d.
            mask: (B, S, S) float, 0 where the support shows background, at the encoder's input size.
        """
        x = query @ support.transpose(-2, -1)  # B, C, N, T
        for block in self.corrtransformer:
            x = block(x, mask)
        x = self.linear(x)  # B, 128, N, 2: task tokens 0 (classification) and 1 (segmentation)
        return self.decode(x[..., 0], x[..., 1])

    def decode(self, classification: Tensor, segmentation: Tensor) -> HeadLogits:
        """Decode the two task tokens, each (B, 128, N) (CST, section 3.3)."""
        return HeadLogits(self.decode_presence(classification), self.decode_mask(segmentation))

    def decode_presence(self, classification: Tensor) -> Tensor:
        """Decode presence: (B, 128, N) -> (B, 2) logits."""
        presence = F.relu(self.decoder1_cls(self._map(classification)))
        presence = F.avg_pool2d(presence, 3, stride=2, padding=1)
        return torch.as_tensor(self.decoder2_cls(presence).mean(dim=(2, 3)))

    def decode_mask(self, segmentation: Tensor) -> Tensor:
        """Decode the mask: (B, 128, N) -> (B, 2, 2 * grid, 2 * grid) logits."""
        mask = F.relu(self.decoder1_seg(self._map(segmentation)))
        mask = F.interpolate(mask, scale_factor=2, mode="bilinear", align_corners=True)
        return torch.as_tensor(self.decoder2_seg(mask))

    @staticmethod
    def _map(tokens: Tensor) -> Tensor:
        side = math.isqrt(tokens.shape[2])
        return tokens.reshape(*tokens.shape[:2], side, side)  # B, 128, grid, grid
