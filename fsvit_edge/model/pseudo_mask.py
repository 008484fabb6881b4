"""Masks from the frozen encoder alone, for supports known only by their class's name (CST, section 3.4)."""

from torch import Tensor
from torch.nn import functional as F

PSEUDO_MASK_THRESHOLD = 0.4


def pseudo_mask(class_query: Tensor, image_keys: Tensor, grid: int, size: int) -> Tensor:
    """Tell foreground from background by the cosine between a class token's query and the image tokens' keys.

    The support's class token against its own image tokens gives the support's mask; against the tokens of a query
    image it gives the query's.

    Args:
        class_query: (B, heads, d) query vectors of the supports' class tokens in the last block.
        image_keys: (B, heads, grid * grid, d) key vectors of the image tokens in the last block.
        grid: Side of the token grid.
        size: Side of the masks to return, in pixels.

    Returns:
        (B, size, size), 1.0 where the head-averaged cosine, mapped to [0, 1], is above 0.4, else 0.0.
    """
    query = F.normalize(class_query, dim=-1)
    keys = F.normalize(image_keys, dim=-1)
    cosine = (keys @ query.unsqueeze(-1)).squeeze(-1).mean(dim=1)
    maps = F.interpolate(cosine.reshape(-1, 1, grid, grid), size=(size, size), mode="bilinear", align_corners=True)
    return ((maps[:, 0] + 1) / 2 > PSEUDO_MASK_THRESHOLD).to(class_query.dtype)
