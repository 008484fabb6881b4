"""Pseudo-masks from the frozen encoder alone, for supports without a mask (CST, section 3.4)."""

from torch import Tensor
from torch.nn import functional as F

PSEUDO_MASK_THRESHOLD = 0.4


def pseudo_map(class_query: Tensor, image_keys: Tensor, grid: int) -> Tensor:
    """Compare queries of class tokens (B, heads, d) with keys of image tokens (B, heads, grid ** 2, d), last block.

    The support's class token and its own image tokens give the support's map; the support's class token and the query
    picture's image tokens give the query's map. Returns (B, grid, grid) cosines, averaged over the heads.
    """
    query = F.normalize(class_query, dim=-1)
    keys = F.normalize(image_keys, dim=-1)
    cosine = (keys @ query.unsqueeze(-1)).squeeze(-1).mean(dim=1)  # B, grid * grid
    return cosine.reshape(-1, grid, grid)


def thresholded(maps: Tensor, size: int) -> Tensor:
    """Enlarge maps (B, grid, grid) to (B, size, size), rescale them to [0, 1], and return 1.0 above 0.4, else 0.0."""
    full = F.interpolate(maps[:, None], size=(size, size), mode="bilinear", align_corners=True)
    return ((full[:, 0] + 1) / 2 > PSEUDO_MASK_THRESHOLD).to(maps.dtype)


def pseudo_mask(class_query: Tensor, image_keys: Tensor, grid: int, size: int) -> Tensor:
    """Return pseudo-masks (B, size, size), 1.0 on the foreground and 0.0 elsewhere, from the input of `pseudo_map`."""
    return thresholded(pseudo_map(class_query, image_keys, grid), size)
