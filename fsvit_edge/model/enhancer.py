"""The pseudo-label enhancer: coarse map and frozen tokens of a picture -> mask (CST, mixed supervision)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPSILON = 1e-6
_SHARPNESS = 2.0
"""A token one standard deviation higher in the map has e ** 2 times the weight in the mean of the foreground tokens."""


class PseudoLabelEnhancer(nn.Module):
    """A small class-agnostic convolutional network: the coarse map tells it which object to outline.

    Besides the tokens, it reads how similar each token is to those where the map is high and to those where it is low.
    This cannot be learned from a few masks, and it generalizes to objects that no mask showed.
    """

    def __init__(self, embed_dim: int, width: int = 32) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(embed_dim, width, 1), nn.GroupNorm(4, width), nn.ReLU())
        self.enter = nn.Conv2d(width + 4, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(4, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
            )
            for dilation in (1, 2, 4)
        )
        self.leave = nn.Sequential(nn.GroupNorm(4, width), nn.ReLU(), nn.Conv2d(width, 4, 1), nn.PixelShuffle(2))

    def forward(self, coarse: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (B, 2 * grid, 2 * grid), above 0 on the foreground.

        `coarse` (B, grid, grid) comes from `pseudo_map`, with the class token of the picture itself or of another
        picture of the class; `tokens` (B, grid * grid, D) are the image tokens of the last block. A logit covers a
        quarter of a token's patch, so resize them with align_corners off.
        """
        sides = coarse.shape[1:]
        flat = coarse.flatten(1)  # B, N
        contrast = (flat - flat.mean(dim=1, keepdim=True)) / (flat.std(dim=1, keepdim=True) + _EPSILON)
        clues = torch.stack([flat, contrast, *_similarity(contrast, tokens)], dim=1)  # B, 4, N
        features = self.reduce(tokens.transpose(1, 2).reshape(*tokens.shape[::2], *sides))  # B, width, grid, grid
        x = self.enter(torch.cat([features, clues.reshape(*clues.shape[:2], *sides)], dim=1))
        for block in self.blocks:
            x = x + block(x)
        return torch.as_tensor(self.leave(x)[:, 0])


def _similarity(contrast: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines (B, N) of the tokens with the mean token where the map is high, and with that where it is low."""
    centered = tokens - tokens.mean(dim=1, keepdim=True)
    seeds = torch.stack([contrast, -contrast], dim=1).mul(_SHARPNESS).softmax(dim=2) @ centered  # B, 2, D
    both = F.normalize(seeds, dim=2) @ F.normalize(centered, dim=2).transpose(1, 2)  # B, 2, N
    return both[:, 0], both[:, 1]
