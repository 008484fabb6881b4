"""From a picture of a class to the support that frames are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fsvit_edge.runtime.cached_support import CachedSupport
from fsvit_edge.runtime.engines.base import ResidentTensor
from fsvit_edge.runtime.network import ExportedNetwork
from fsvit_edge.runtime.outlines import objectness_weight
from fsvit_edge.runtime.pictures import thumbnail
from fsvit_edge.runtime.preprocess import resize_nearest
from fsvit_edge.runtime.support_masks import Image, Mask, support_window, thing_of_name

_THUMBNAIL_PX = 96
_MAX_LOO_SUPPORTS = 5
"""Supports that score a new picture: enough for a mean, and the hundredth picture costs no more than the sixth."""


@dataclass(frozen=True)
class Enrollment:
    """What one call of `FewShotModel.enroll` learned.

    Attributes:
        name: The class.
        shots: Supports (enrolled pictures) that the class has now.
        mask_cover: Share of each new picture that its mask, given or guessed, covers, in [0, 1].
        kept_tokens: Image tokens of each new picture that the mask keeps, at least 1.
        masks: (H, W) bool for each new picture, at its size: the mask used, whether given, made from a box or guessed.
    """

    name: str
    shots: int
    mask_cover: tuple[float, ...]
    kept_tokens: tuple[int, ...]
    masks: tuple[Mask, ...] = field(compare=False, repr=False)


def make_support(
    network: ExportedNetwork, image: Image, mask: Mask | None, others: Sequence[CachedSupport], is_sharp: bool
) -> tuple[CachedSupport, Mask]:
    """Encode and enroll one picture.

    Args:
        network: The graphs.
        image: (H, W, 3) uint8 RGB.
        mask: (H, W), not 0 on the thing; None if only the name is known.
        others: The class's other supports, which score the picture.
        is_sharp: Whether objectness is used, for outlines and to find a thing by its name.

    Returns:
        The support, and the mask that was used, (H, W) bool at the picture's size.
    """
    encoded = network.encode(image)
    objectness = network.objectness_of(encoded, image) if is_sharp else None
    loo_score = _score_by(network, others, encoded["tokens"]) if others else None
    if mask is None:
        # Copied to the host once, for the enroll graph may run twice.
        seen = {spec.name: encoded[spec.name].numpy() for spec in network.enroll.inputs if spec.name in encoded}
        cached = network.enrolled(seen, None)
        guess = cached["used_mask"][0] != 0
        if objectness is not None:
            guess = thing_of_name(objectness, guess)
            cached = network.enrolled(seen, guess)
        used = resize_nearest(guess, (image.shape[0], image.shape[1])) != 0
    else:
        used = np.asarray(mask) != 0
    weight = 0.0 if objectness is None else objectness_weight(objectness, used)
    window = support_window(used, network.manifest.support_crop)
    if window is not None:
        image = np.ascontiguousarray(image[window])
        cached = network.enrolled(network.encode(image), used[window])
    elif mask is not None:
        cached = network.enrolled(encoded, used)
    keep = cached["kept_mask"][0] > 0
    small = thumbnail(image, _THUMBNAIL_PX)
    support = CachedSupport(
        kept=cached["support"][0][:, keep].astype(np.float16),
        pooled=cached["pooled"][0].astype(np.float16),
        pooled_mask=cached["pooled_mask"][0] > 0,
        thumbnail=small,
        thumbnail_mask=resize_nearest(cached["used_mask"][0], (small.shape[0], small.shape[1])) != 0,
        has_mask=mask is not None,
        loo_score=loo_score,
        objectness_weight=weight,
    )
    return support, used


def _score_by(network: ExportedNetwork, supports: Sequence[CachedSupport], tokens: ResidentTensor) -> float:
    """Return P(present), in [0, 1], of a class of some of these supports, evenly chosen, in an encoded picture."""
    chosen = tuple(supports[:: -(-len(supports) // _MAX_LOO_SUPPORTS)])
    score = float(network.compare(tokens, (chosen,))[0][0])
    return min(max(0.0, score), 1.0)  # rounding may lift a mean of ones above 1
