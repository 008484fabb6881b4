"""A box that somebody drew around a thing becomes a mask."""

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.errors import InputError

_LONGEST_SIDE_PX = 320  # GrabCut's time grows with the pixels; a token sees no more detail than this
_ITERATIONS = 5
_LEAST_COVER = 0.05


def mask_from_box(
    rgb: npt.NDArray[np.uint8], box_xyxy: tuple[int, int, int, int], refine: bool = True
) -> npt.NDArray[np.bool_]:
    """Make a mask of the thing in a box, by GrabCut (Rother et al., 2004), which tells its colours from those around.

    Args:
        rgb: (H, W, 3) uint8 RGB.
        box_xyxy: Left, top, right and bottom in pixels, right and bottom exclusive; what lies outside the picture is
            cut off.
        refine: False fills the box.

    Returns:
        (H, W) bool, True on the thing; nowhere outside the box. The whole box where GrabCut finds next to nothing, or
        where the box leaves no surroundings to compare with.

    Raises:
        InputError: The box holds less than 2 x 2 pixels of the picture.
    """
    height, width = rgb.shape[:2]
    left, top = max(0, int(box_xyxy[0])), max(0, int(box_xyxy[1]))
    right, bottom = min(width, int(box_xyxy[2])), min(height, int(box_xyxy[3]))
    if right - left < 2 or bottom - top < 2:
        raise InputError(
            f"The box {tuple(box_xyxy)} holds less than 2 x 2 pixels of the {width} x {height} picture; draw a larger "
            "one."
        )
    filled = np.zeros((height, width), np.bool_)
    filled[top:bottom, left:right] = True
    if not refine or filled.all():
        return filled
    found = _grab_cut(rgb, filled)
    return found if found.sum() >= _LEAST_COVER * filled.sum() else filled


def _grab_cut(rgb: npt.NDArray[np.uint8], filled: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    height, width = filled.shape
    scale = min(1.0, _LONGEST_SIDE_PX / max(height, width))
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    labels = cv2.resize(filled.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    labels = np.where(labels > 0, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    if not (labels == cv2.GC_PR_FGD).any() or not (labels == cv2.GC_BGD).any():
        return filled
    cv2.setRNGSeed(0)  # GrabCut starts from random clusters: the same box must give the same mask
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, labels, (0, 0, 0, 0), background, foreground, _ITERATIONS, cv2.GC_INIT_WITH_MASK)
    found = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    enlarged = cv2.resize(found, (width, height), interpolation=cv2.INTER_NEAREST) > 0
    return np.asarray(enlarged & filled, np.bool_)
