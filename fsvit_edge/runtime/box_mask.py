"""A box that somebody drew around a thing becomes a mask."""

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.errors import InputError

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are exclusive."""


def inside_box(size_hw: tuple[int, ...], box_xyxy: Box) -> npt.NDArray[np.bool_]:
    """(H, W) bool, True in what of a box lies in the picture."""
    left, top, right, bottom = (max(0, edge) for edge in box_xyxy)
    inside = np.zeros(size_hw, np.bool_)
    inside[top:bottom, left:right] = True
    return inside


def mask_from_box(size_hw: tuple[int, int], box_xyxy: Box) -> npt.NDArray[np.bool_]:
    """Make a mask of the thing in a box where nothing is known of the picture: the ellipse that touches its four sides.

    With objectness, `thing_mask.thing_in_box` makes a better one of it.

    Measured by `benchmarks/box_masks.py` on three data sets: classes enrolled from the ellipse are found as well as
    those from GrabCut's outline and better than those from the whole box. GrabCut's outlines are closer to drawn ones,
    but take 50 to 120 ms, and now and then it keeps a cat's eyes for the cat.

    Args:
        size_hw: Height and width of the picture in pixels.
        box_xyxy: Left, top, right and bottom in pixels, right and bottom exclusive; what lies outside the picture is
            cut off.

    Returns:
        (H, W) bool, True on the thing; nowhere outside the box.

    Raises:
        InputError: The box holds less than 4 x 4 pixels of the picture.
    """
    height, width = size_hw
    left, top = max(0, box_xyxy[0]), max(0, box_xyxy[1])
    right, bottom = min(width, box_xyxy[2]), min(height, box_xyxy[3])
    if right - left < 4 or bottom - top < 4:
        raise InputError(
            f"The box {tuple(box_xyxy)} holds less than 4 x 4 pixels of the {width} x {height} picture; draw a larger "
            "one."
        )
    drawn = np.zeros((height, width), np.uint8)
    # In sixteenths of a pixel, so that the ellipse touches the outermost pixels of the box.
    center = (8 * (left + right - 1), 8 * (top + bottom - 1))
    axes = (8 * (right - left - 1), 8 * (bottom - top - 1))
    cv2.ellipse(drawn, center, axes, 0, 0, 360, 1, cv2.FILLED, cv2.LINE_8, shift=4)
    return np.asarray(drawn > 0, np.bool_)
