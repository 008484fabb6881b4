"""A support's mask where nobody drew one: objectness marks the thing that a name or a box means."""

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.box_mask import Box, inside_box
from fsvit_edge.runtime.postprocess import Maps

LEAST_COVER = 0.01
LEAST_AGREEMENT = 0.5
_LEAST_SHARE_OF_BOX = 0.25


def thing_of_name(objectness: Maps, guess: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Take what objectness marks for the thing, if the encoder's own guess agrees.

    The guess (`pseudo_mask`) is a blob of tokens around what the picture shows most of. Where more than half of the
    objects' pixels lie in it, they are the thing, with its outline; else the picture shows stuff, or something that
    does not stand out, and the guess stays. IoU with drawn masks, pascal10-coseg, of which the rule was chosen: the
    guess 35, objectness alone 64, the log-odds' sum 61 to 63, this 64. Of which nothing was chosen: davis16-val 21, 63,
    60, 63; neu-seg 20, 17, 21, 31.

    Args:
        objectness: Logits (n, n) of the picture.
        guess: (S, S) bool.

    Returns:
        (S, S) bool.
    """
    thing = _enlarged(objectness, guess.shape) > 0
    agrees = (thing & guess).sum() > LEAST_AGREEMENT * thing.sum()
    return thing if agrees and thing.mean() >= LEAST_COVER else guess


def thing_in_box(objectness: Maps, ellipse: npt.NDArray[np.bool_], box_xyxy: Box) -> npt.NDArray[np.bool_]:
    """Take what objectness marks inside a box for the thing; the ellipse where that is next to nothing.

    The ellipse counts for one log-odd either way. IoU with drawn masks, pascal10-coseg, of which the rule was chosen:
    the ellipse 54, objectness alone 70, this 72. Of which nothing was chosen: davis16-val 52, 71, 72; fss1000-mini 71,
    84, 85; neu-seg 46, 18, 50; camvid60 36, 10, 39.

    Args:
        objectness: Logits (n, n) of the picture.
        ellipse: (H, W) bool that `mask_from_box` made of the box.
        box_xyxy: The box.

    Returns:
        (H, W) bool.
    """
    inside = inside_box(ellipse.shape, box_xyxy)
    thing = (_enlarged(objectness, ellipse.shape) + np.where(ellipse, 1, -1) > 0) & inside
    return thing if thing.sum() > _LEAST_SHARE_OF_BOX * inside.sum() else ellipse


def _enlarged(logits: Maps, size_hw: tuple[int, ...]) -> Maps:
    return np.asarray(cv2.resize(logits, size_hw[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
