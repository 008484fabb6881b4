"""A head without learned weights: any self-supervised ViT finds a class the minute it is exported.

A support gives one prototype of the thing, the mean of its foreground tokens, and up to nine of what is not the thing,
the means of its background tokens over a 3 x 3 grid. A token of the frame is foreground where it is more like the
former than like the latter. The thing is present where some token of the frame is as like a support's prototype as the
class's other supports are, so a class of several supports calibrates itself; of a single one a fixed likeness is asked.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.model.config import POOLED_GRID
from fsvit_edge.model.fast_head import Supports

NUM_LAYERS = 2
"""Blocks compared, the last ones."""
TEMPERATURE = 0.1
"""Of a cosine: between the mean of the background prototypes and the nearest of them, and better than both."""
BACKGROUND_WEIGHT = 3.0
"""A token must be this many times likelier under the foreground: the background has more faces than a support shows."""
FOREGROUND_COVER = 0.47
"""Of a token, relative to the token that the mask covers most, where it is foreground; not a half, where ties lie."""
BACKGROUND_COVER = 0.05
"""Of a token: up to here it is background. What lies between has something of both and is left out."""
PRESENCE_SLOPE = 18.0
"""Of P(present) before the sigmoid, in 1 / cosine."""
AMONG_WEIGHT = 0.98
"""Of the likeness that the supports of a class find in each other: relative, so that it suits any backbone."""
ALONE_LEVEL = 0.65
"""The likeness asked for where there is one support. What it says of itself tells nothing of other pictures (measured:
no statistic of its own foreground or background beat a fixed level), and the best level differs between backbones, from
0.45 to 0.73. So this P(present) is a guess, and it does not bar the mask."""


class PrototypeHead(nn.Module):
    """Compare a frame with prototypes. It has no parameters.

    Args:
        num_layers: Blocks of the encoder, by which its channels are ordered: channel = head * num_layers + layer.
        grid: Side of the encoder's token grid.
    """

    def __init__(self, num_layers: int, grid: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.grid = grid

    def cache_supports(self, support: Tensor, mask: Tensor, support_grid: int) -> Supports:
        """Make the cache from all tokens of the supports; nothing is dropped yet, `kept_mask` says what may be.

        `kept` are the class token and the foreground tokens; `pooled` are background prototypes, and `pooled_mask` is 0
        where a cell of the 3 x 3 grid shows no background.

        Args:
            support: (S, C, 1 + support_grid ** 2, d) L2-normalized, class token first.
            mask: (S, size, size) float, 0 where the support shows background; its side is a multiple of the grid's.
            support_grid: Side of the support grid.
        """
        batch, channels, _, dim = support.shape
        # Sampled on the support grid, as the trained head does, a small thing would fall between the points.
        cover = F.avg_pool2d(mask[:, None], mask.shape[-1] // self.grid)
        cover = F.interpolate(cover, size=(support_grid, support_grid), mode="bilinear", align_corners=True).flatten(1)
        most = cover.amax(dim=1, keepdim=True)
        seen = ((cover >= FOREGROUND_COVER * most) & (cover > 0)).to(support.dtype)
        unseen = (cover <= BACKGROUND_COVER).to(support.dtype)

        cell = support_grid // POOLED_GRID
        grids = (POOLED_GRID, cell, POOLED_GRID, cell)
        background = (support[:, :, 1:] * unseen[:, None, :, None]).reshape(batch, channels, *grids, dim)
        counts = unseen.reshape(batch, *grids).sum(dim=(2, 4)).reshape(batch, 1, -1, 1)
        pooled = background.sum(dim=(3, 5)).reshape(batch, channels, -1, dim) / counts.clamp_min(1.0)
        pooled_mask = (counts.reshape(batch, -1) > 0).to(support.dtype)
        return Supports(support, F.pad(seen, (1, 0), value=1.0), pooled, pooled_mask)

    def forward(self, query: Tensor, supports: Supports, averaging: Tensor) -> tuple[Tensor, Tensor]:
        """Judge a frame.

        Args:
            query: (C, N, d) image tokens of the frame, L2-normalized over d.
            supports: Of `cache_supports`; tokens that are not kept may be missing.
            averaging: (W, S), above 0 where the support is the way's. A way's supports in one run are judged together;
                where they are spread over several runs, the results add up in proportion to the sums of the rows.

        Returns:
            presence (W,) and foreground (W, 2 * grid, 2 * grid), probabilities.
        """
        frame = self._descriptors(query[None])[0]
        kept = self._descriptors(supports.kept)
        used = _used(supports.kept_mask)
        thing = F.normalize((kept * used[..., None]).sum(dim=1), dim=-1)
        rest = F.normalize(self._descriptors(supports.pooled), dim=-1)
        share = averaging.sum(dim=1)
        weights = averaging / share.clamp_min(1e-6)[:, None]

        likeness = thing @ frame.T
        unlike = torch.exp(rest @ frame.T / TEMPERATURE) * supports.pooled_mask[..., None]
        unlike = unlike.sum(dim=1) / supports.pooled_mask.sum(dim=1).clamp_min(1.0)[:, None]
        odds = weights @ torch.exp(likeness / TEMPERATURE) / (weights @ unlike * BACKGROUND_WEIGHT).clamp_min(1e-6)
        maps = odds.clamp_min(1e-6).log().reshape(-1, 1, self.grid, self.grid)
        maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)[:, 0]

        expected, has_others = _expected(thing, kept, used, averaging)
        presence = PRESENCE_SLOPE * (weights @ (likeness.amax(dim=1) - expected)[:, None])[:, 0]
        is_told = (weights @ has_others[:, None] > 0)[..., None]
        maps = torch.where(is_told, torch.minimum(maps, presence[:, None, None]), maps)
        return share * presence.sigmoid(), share[:, None, None] * maps.sigmoid()

    def _descriptors(self, tokens: Tensor) -> Tensor:
        """(S, C, T, d) -> (S, T, D): the last blocks' channels side by side, as long as one channel is on the mean."""
        batch, _, length, dim = tokens.shape
        blocks = tokens.reshape(batch, -1, self.num_layers, length, dim)[:, :, -NUM_LAYERS:]
        vectors = blocks.permute(0, 3, 1, 2, 4).reshape(batch, length, -1)
        return torch.as_tensor(vectors / (vectors.shape[-1] / dim) ** 0.5)


def _used(kept_mask: Tensor) -> Tensor:
    """(S, T): 1 for the kept image tokens; for the class token where a support has none."""
    is_image = (torch.arange(kept_mask.shape[1], device=kept_mask.device) > 0).to(kept_mask.dtype)
    used = kept_mask * is_image
    none = (used.sum(dim=1, keepdim=True) == 0).to(used.dtype)
    return used + none * (1 - is_image)


def _expected(thing: Tensor, kept: Tensor, used: Tensor, averaging: Tensor) -> tuple[Tensor, Tensor]:
    """How like its prototype each support expects the thing to be elsewhere: each is looked for in its class's others.

    Args:
        thing: (S, D) prototypes.
        kept: (S, T, D) kept tokens.
        used: (S, T), 1 where they are foreground.
        averaging: (W, S), above 0 where the support is the way's.

    Returns:
        The likeness (S,), and (S,) 1 where there are others and 0 where it is the fixed level.
    """
    same = (averaging.T @ averaging > 0).to(thing.dtype)
    others = same * (1 - torch.eye(thing.shape[0], dtype=thing.dtype, device=thing.device))
    count = others.sum(dim=1)
    found = (kept @ thing.T).masked_fill(used[..., None] == 0, -1.0).amax(dim=1)
    among = (found * others).sum(dim=0) / count.clamp_min(1.0)
    has_others = (count > 0).to(thing.dtype)
    return has_others * AMONG_WEIGHT * among + (1 - has_others) * ALONE_LEVEL, has_others
