"""The runtime's sharp outlines, in PyTorch and for whole batches, so that the head trains on nearly the final result.

The runtime adds objectness to CST's foreground (`fewshot/outlines.py`). A head trained without it wastes capacity on
edges that objectness finds better, and rejects other objects that objectness marks too weakly.

One factor is missing here: the runtime multiplies the support's weight by `recognized`, which checks whether
objectness sees the object in the frame. Training and its validation use the support's weight alone.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fsvit_edge.fewshot.outlines import CERTAIN_LOGIT, STUFF, THING
from fsvit_edge.fewshot.support_masks import MIN_AGREEMENT, MIN_COVER


def sharpened(mask: Tensor, objectness: Tensor, weight: Tensor) -> Tensor:
    """Add objectness (B, n, n) to the foreground of mask logits (B, 2, S, S), background first.

    `weight` (B,) is how much each support trusts objectness, in [0, 1].
    """
    added = resized_objectness(objectness.clamp(-CERTAIN_LOGIT, CERTAIN_LOGIT), mask.shape[2])
    background, foreground = mask.unbind(1)
    return torch.stack([background, foreground + weight[:, None, None] * added], dim=1)


def weight_of_support(objectness: Tensor, mask: Tensor) -> Tensor:
    """Return each support's weight (B,) in [0, 1], see `fsvit_edge.fewshot.outlines.objectness_weight`.

    From the logits (B, n, n) of the supports' pictures and their masks (B, S, S), nonzero on the object.
    """
    side = objectness.shape[1]
    inside = F.interpolate(mask[:, None].float(), size=(side, side), mode="nearest-exact")[:, 0] != 0
    sure = (objectness.sigmoid() * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp_min(1)
    return ((sure - STUFF) / (THING - STUFF)).clamp(0, 1)


def thing_of_name(objectness: Tensor, guess: Tensor) -> Tensor:
    """Replace pseudo-masks (B, S, S) of 0 and 1 by objectness (B, n, n) logits where the two agree.

    See `fsvit_edge.fewshot.support_masks.thing_of_name`.
    """
    thing = resized_objectness(objectness, guess.shape[1]) > 0
    shared = (thing & (guess != 0)).sum(dim=(1, 2))
    agrees = (shared > MIN_AGREEMENT * thing.sum(dim=(1, 2))) & (thing.float().mean(dim=(1, 2)) >= MIN_COVER)
    return torch.where(agrees[:, None, None], thing.to(guess.dtype), guess)


def resized_objectness(objectness: Tensor, size: int) -> Tensor:
    """Resize objectness: (B, n, n) -> (B, size, size)."""
    return F.interpolate(objectness[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]
