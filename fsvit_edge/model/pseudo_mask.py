"""Masks from the frozen encoder alone, for supports known only by their class's name (CST, section 3.4)."""

from torch import Tensor
from torch.nn import functional as F

PSEUDO_MASK_THRESHOLD = 0.4


def pseudo_map(class_query: Tensor, image_keys: Tensor, grid: int) -> Tensor:
    """Compare a class token's query with the image tokens' keys.

    The support's class token against its own image tokens gives the support's map; against the tokens of a query
    image it gives the query's.

    Args:
        class_query: (B, heads, d) query vectors of the supports' class tokens in the last block.
        image_keys: (B, heads, grid * grid, d) key vectors of the image tokens in the last block.
        grid: Side of the token grid.

    Returns:
        (B, grid, grid), the cosine, averaged over the heads.
    """
    query = F.normalize(class_query, dim=-1)
    keys = F.normalize(image_keys, dim=-1)
    cosine = (keys @ query.unsqueeze(-1)).squeeze(-1).mean(dim=1)
    return cosine.reshape(-1, grid, grid)


def thresholded(maps: Tensor, size: int) -> Tensor:
    """Enlarge maps (B, grid, grid) to (B, size, size) and bring them to [0, 1]: 1.0 where above 0.4, else 0.0."""
    full = F.interpolate(maps[:, None], size=(size, size), mode="bilinear", align_corners=True)
    return ((full[:, 0] + 1) / 2 > PSEUDO_MASK_THRESHOLD).to(maps.dtype)


def pseudo_mask(class_query: Tensor, image_keys: Tensor, grid: int, size: int) -> Tensor:
    """Tell foreground from background: (B, size, size) of 1.0 and 0.0, see `pseudo_map` and `thresholded`."""
    return thresholded(pseudo_map(class_query, image_keys, grid), size)
