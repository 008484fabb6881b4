"""A head without learned weights: with it, any self-supervised ViT works right after export, without training.

A support gives one prototype of the object, the mean of its foreground tokens, and up to nine prototypes of the
background, the means of its background tokens over a 3 x 3 grid. A token of the frame is foreground if it is more
similar to the former than to the latter. The object is present if some token of the frame is as similar to a support's
prototype as the other supports of the class are. So a class with several supports calibrates itself; a single support
needs a fixed similarity.

Shapes: S supports, C channels (slices x layers), T kept support tokens, N tokens of the frame, d channels per slice,
D channels of a descriptor, W ways.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.model.config import POOLED_GRID
from fsvit_edge.model.fast_head import Supports

NUM_LAYERS = 2
"""Number of last blocks whose tokens are compared."""
TEMPERATURE = 0.1
"""Divides the cosines; the result is between the mean of the background prototypes and the nearest one, and better."""
BACKGROUND_WEIGHT = 3.0
"""A token must be this much more similar to the foreground, because a support shows only part of all backgrounds."""
FOREGROUND_COVER = 0.47
"""A token is foreground if the mask covers this share of it, relative to the most covered token. Not 0.5, where ties
are common."""
BACKGROUND_COVER = 0.05
"""A token is background if the mask covers at most this share of it. Tokens between the two limits are not used."""
PRESENCE_SLOPE = 18.0
"""Slope of P(present) before the sigmoid, in 1 / cosine."""
AMONG_WEIGHT = 0.98
"""Factor on the similarity among the supports of a class; relative, so that it fits any backbone."""
ALONE_LEVEL = 0.65
"""Similarity needed if there is one support. The support itself does not tell how similar other pictures are (no
statistic of its foreground or background beat a fixed level), and the best level differs between backbones, from 0.45
to 0.73. So this P(present) is a guess, and it does not limit the mask."""


class PrototypeHead(nn.Module):
    """Compares a frame with prototypes. It has no parameters."""

    def __init__(self, num_layers: int, grid: int) -> None:
        super().__init__()
        self.num_layers = num_layers  # channel = slice * num_layers + layer
        self.grid = grid  # side of the encoder's token grid

    def cache_supports(self, support: Tensor, mask: Tensor, support_grid: int) -> Supports:
        """Make the cache from all tokens of the supports. None is dropped yet; `kept_mask` is 0 for those that may be.

        `kept` has the class token and the foreground tokens, `pooled` the background prototypes; `pooled_mask` is 0 for
        cells of the 3 x 3 grid without background. `support` is (S, C, 1 + support_grid ** 2, d), L2-normalized, class
        token first; `mask` is (S, size, size) float, 0 where the support shows background, `size` a multiple of `grid`.
        """
        batch, channels, _, dim = support.shape
        # Sampling on the support grid, as the trained head does, could miss a small object between the points.
        cover = F.avg_pool2d(mask[:, None], mask.shape[-1] // self.grid)  # S, 1, grid, grid
        cover = F.interpolate(cover, size=(support_grid, support_grid), mode="bilinear", align_corners=True).flatten(1)
        most = cover.amax(dim=1, keepdim=True)
        seen = ((cover >= FOREGROUND_COVER * most) & (cover > 0)).to(support.dtype)
        unseen = (cover <= BACKGROUND_COVER).to(support.dtype)

        cell = support_grid // POOLED_GRID
        grids = (POOLED_GRID, cell, POOLED_GRID, cell)
        background = (support[:, :, 1:] * unseen[:, None, :, None]).reshape(batch, channels, *grids, dim)
        counts = unseen.reshape(batch, *grids).sum(dim=(2, 4)).reshape(batch, 1, -1, 1)  # S, 1, 9, 1
        pooled = background.sum(dim=(3, 5)).reshape(batch, channels, -1, dim) / counts.clamp_min(1.0)  # S, C, 9, d
        pooled_mask = (counts.reshape(batch, -1) > 0).to(support.dtype)
        return Supports(support, F.pad(seen, (1, 0), value=1.0), pooled, pooled_mask)

    def forward(self, query: Tensor, supports: Supports, averaging: Tensor) -> tuple[Tensor, Tensor]:
        """Compare a frame with the supports.

        Args:
            query: (C, N, d) image tokens of the frame, L2-normalized over d.
            supports: Result of `cache_supports`; tokens that are not kept may be missing.
            averaging: (W, S) weights, above 0 if the support belongs to the way. If the supports of a way are spread
                over several runs, the results of the runs add up in proportion to the sums of these rows.

        Returns:
            Probabilities: presence (W,) and foreground (W, 2 * grid, 2 * grid).
        """
        frame = self._descriptors(query[None])[0]  # N, D
        kept = self._descriptors(supports.kept)  # S, T, D
        used = _used(supports.kept_mask)  # S, T
        prototypes = F.normalize((kept * used[..., None]).sum(dim=1), dim=-1)  # S, D
        rest = F.normalize(self._descriptors(supports.pooled), dim=-1)  # S, 9, D
        share = averaging.sum(dim=1)
        weights = averaging / share.clamp_min(1e-6)[:, None]

        similarity = prototypes @ frame.T  # S, N
        unlike = torch.exp(rest @ frame.T / TEMPERATURE) * supports.pooled_mask[..., None]  # S, 9, N
        unlike = unlike.sum(dim=1) / supports.pooled_mask.sum(dim=1).clamp_min(1.0)[:, None]
        odds = weights @ torch.exp(similarity / TEMPERATURE) / (weights @ unlike * BACKGROUND_WEIGHT).clamp_min(1e-6)
        maps = odds.clamp_min(1e-6).log().reshape(-1, 1, self.grid, self.grid)  # W, 1, grid, grid
        maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)[:, 0]

        expected, has_others = _expected(prototypes, kept, used, averaging)
        presence = PRESENCE_SLOPE * (weights @ (similarity.amax(dim=1) - expected)[:, None])[:, 0]
        is_told = (weights @ has_others[:, None] > 0)[..., None]
        maps = torch.where(is_told, torch.minimum(maps, presence[:, None, None]), maps)
        return share * presence.sigmoid(), share[:, None, None] * maps.sigmoid()

    def _descriptors(self, tokens: Tensor) -> Tensor:
        """(S, C, T, d) -> (S, T, D): channels of the last blocks side by side, scaled to the length of one channel."""
        batch, _, length, dim = tokens.shape
        blocks = tokens.reshape(batch, -1, self.num_layers, length, dim)[:, :, -NUM_LAYERS:]  # S, slices, last L, T, d
        vectors = blocks.permute(0, 3, 1, 2, 4).reshape(batch, length, -1)  # S, T, D
        return torch.as_tensor(vectors / (vectors.shape[-1] / dim) ** 0.5)


def _used(kept_mask: Tensor) -> Tensor:
    """Return (S, T): 1 for the kept image tokens, or for the class token if a support keeps no image token."""
    is_image = (torch.arange(kept_mask.shape[1], device=kept_mask.device) > 0).to(kept_mask.dtype)
    used = kept_mask * is_image
    none = (used.sum(dim=1, keepdim=True) == 0).to(used.dtype)
    return used + none * (1 - is_image)


def _expected(prototypes: Tensor, kept: Tensor, used: Tensor, averaging: Tensor) -> tuple[Tensor, Tensor]:
    """Return how similar each support's prototype is to the object in the other supports of its class.

    Prototypes (S, D), kept tokens (S, T, D), 1 for those used (S, T), averaging (W, S) -> the similarity (S,), and (S,)
    1 if there are other supports, 0 if the similarity is the fixed level.
    """
    same = (averaging.T @ averaging > 0).to(prototypes.dtype)  # S, S: 1 if two supports belong to the same way
    others = same * (1 - torch.eye(prototypes.shape[0], dtype=prototypes.dtype, device=prototypes.device))
    count = others.sum(dim=1)
    found = (kept @ prototypes.T).masked_fill(used[..., None] == 0, -1.0).amax(dim=1)  # S, S
    among = (found * others).sum(dim=0) / count.clamp_min(1.0)
    has_others = (count > 0).to(prototypes.dtype)
    return has_others * AMONG_WEIGHT * among + (1 - has_others) * ALONE_LEVEL, has_others
