"""The pseudo-label enhancer: a coarse map and the frozen tokens of its picture -> a mask (CST, mixed supervision)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPSILON = 1e-6
_SHARPNESS = 2.0
"""Of the weights with which tokens count as seeds: one standard deviation of the map multiplies a weight by e ** 2."""


class PseudoLabelEnhancer(nn.Module):
    """A small convolutional network that knows no class: the coarse map says what is wanted.

    Beside the tokens it sees how much each token resembles those where the map is high, and those where it is low.
    That is what few masks cannot teach: it holds for things that no mask showed.

    Args:
        embed_dim: Width D of the tokens.
        width: Channels inside.
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
        """Judge B pictures, each on its own.

        Args:
            coarse: (B, grid, grid) of `pseudo_map`: the picture's own map, or that of another picture's class token
                against it.
            tokens: (B, grid * grid, D) the picture's image tokens of the last block.

        Returns:
            (B, 2 * grid, 2 * grid) logits, above 0 on the foreground. A logit stands for a quarter of a token's patch;
            enlarge them with align_corners off.
        """
        sides = coarse.shape[1:]
        flat = coarse.flatten(1)
        contrast = (flat - flat.mean(dim=1, keepdim=True)) / (flat.std(dim=1, keepdim=True) + _EPSILON)
        clues = torch.stack([flat, contrast, *_resemblance(contrast, tokens)], dim=1)
        features = self.reduce(tokens.transpose(1, 2).reshape(*tokens.shape[::2], *sides))
        x = self.enter(torch.cat([features, clues.reshape(*clues.shape[:2], *sides)], dim=1))
        for block in self.blocks:
            x = x + block(x)
        return torch.as_tensor(self.leave(x)[:, 0])


def _resemblance(contrast: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines (B, N) of the tokens with the mean token of the map's heights, and of its depths."""
    centered = tokens - tokens.mean(dim=1, keepdim=True)
    seeds = torch.stack([contrast, -contrast], dim=1).mul(_SHARPNESS).softmax(dim=2) @ centered
    both = F.normalize(seeds, dim=2) @ F.normalize(centered, dim=2).transpose(1, 2)
    return both[:, 0], both[:, 1]
