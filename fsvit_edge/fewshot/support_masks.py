"""Masks of support pictures: checked as given, made from a box or a name, and the window around a small object.

With objectness (a map of how much each pixel belongs to any object) a box or a name gets the object's own outline;
without it a box becomes an ellipse, and a name gets the encoder's pseudo-mask.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.names import quoted
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.postprocess import Maps
from fsvit_edge.runtime.preprocess import check_rgb

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are exclusive."""

MIN_COVER = 0.01
MIN_AGREEMENT = 0.5
_MIN_SHARE_OF_BOX = 0.25
_MIN_WINDOW_PX = 32  # of the window's shorter side: enlarging fewer pixels shows the network only blur
_MAX_WINDOW_SHARE = 0.8  # a window nearly as large as the picture gains less than its surroundings are worth


# ------------------------------------------------------------------------------------------------------- what is given


def counted(count: int, one: str, several: str) -> str:
    """Return a number with its noun, as "1 box" or "2 boxes"."""
    return f"{count} {one if count == 1 else several}"


def support_masks(
    name: str,
    images: Sequence[Image],
    masks: Sequence[Mask | None] | None,
    boxes: Sequence[Box | None] | None,
    mask_of_box: Callable[[Image, Box], Mask],
) -> list[Mask | None]:
    """Check everything that is given of a class's new pictures, (H, W, 3) uint8 RGB, and make masks from the boxes.

    Returns:
        For each picture its mask, (H, W), not 0 on the object; None if only the name is known.

    Raises:
        InputError: There is no picture, or a picture, a mask or a box cannot be used.
    """
    if len(images) == 0:
        raise InputError(f"Class {quoted(name)} needs at least one picture.")
    for what, several, given in (("mask", "masks", masks), ("box", "boxes", boxes)):
        if given is not None and len(given) != len(images):
            numbers = f"{counted(len(images), 'picture', 'pictures')} but {counted(len(given), what, several)}"
            raise InputError(f"Class {quoted(name)} has {numbers}; give one for each.")
    none = [None] * len(images)
    pairs = zip(none if masks is None else masks, none if boxes is None else boxes, strict=True)
    found: list[Mask | None] = []
    for image, (mask, box) in zip(images, pairs, strict=True):
        if mask is not None and box is not None:
            raise InputError(f"Picture {len(found) + 1} of {quoted(name)} has both a mask and a box; give one of them.")
        if box is not None:
            check_rgb(image, f"The picture of {quoted(name)}")
            mask = mask_of_box(image, _checked_box(name, box))
        check_support(name, image, mask)
        found.append(mask)
    return found


def check_support(name: str, image: Image, mask: Mask | None) -> None:
    """Refuse a picture or mask that cannot be enrolled as a support of class `name`, with an InputError."""
    check_rgb(image, f"The picture of {quoted(name)}")
    if mask is None:
        return
    mask = np.asarray(mask)
    if mask.shape != image.shape[:2]:
        raise InputError(
            f"The mask of {quoted(name)} must be as large as its picture, {image.shape[:2]} (height, width); "
            f"got {mask.shape}."
        )
    if not mask.any():
        raise InputError(f"The mask of {quoted(name)} is empty; mark the object, or give no mask, and one is guessed.")


def _checked_box(name: str, box: Sequence[float]) -> Box:
    try:
        left, top, right, bottom = (round(float(value)) for value in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"A box of {quoted(name)} must be (left, top, right, bottom) in pixels; got {box!r:.80}."
        ) from error
    return left, top, right, bottom


# ---------------------------------------------------------------------------------------------------- from box or name


def mask_from_box(size_hw: tuple[int, int], box_xyxy: Box) -> Mask:
    """Make a mask of (H, W) from a box alone: the ellipse that touches its four sides. `thing_in_box` improves on it.

    Measured by `benchmarks/box_masks.py` on three data sets: classes enrolled from the ellipse are found as well as
    those from GrabCut's outline and better than those from the whole box. GrabCut's outlines are closer to drawn ones,
    but take 50 to 120 ms, and now and then it keeps a cat's eyes instead of the cat.

    The box is cut off at the picture's edges; an InputError if less than 4 x 4 pixels of the picture are in it.
    """
    height, width = size_hw
    left, top = max(0, box_xyxy[0]), max(0, box_xyxy[1])
    right, bottom = min(width, box_xyxy[2]), min(height, box_xyxy[3])
    if right - left < 4 or bottom - top < 4:
        raise InputError(
            f"The box {tuple(box_xyxy)} contains less than 4 x 4 pixels of the {width} x {height} picture; draw a "
            "larger one; a box is left, top, right, bottom."
        )
    drawn = np.zeros((height, width), np.uint8)
    # In sixteenths of a pixel, so that the ellipse touches the outermost pixels of the box.
    center = (8 * (left + right - 1), 8 * (top + bottom - 1))
    axes = (8 * (right - left - 1), 8 * (bottom - top - 1))
    cv2.ellipse(drawn, center, axes, 0, 0, 360, 1, cv2.FILLED, cv2.LINE_8, shift=4)
    return np.asarray(drawn > 0, np.bool_)


def thing_in_box(objectness: Maps, ellipse: Mask, box_xyxy: Box) -> Mask:
    """Use what objectness, logits (n, n), marks inside a box as the mask; or the ellipse if that is almost nothing.

    The ellipse counts for one log-odd either way. IoU with drawn masks, pascal10-coseg, on which the rule was chosen:
    the ellipse 54, objectness alone 70, this 72. On data not used to choose it: davis16-val 52, 71, 72; fss1000-mini
    71, 84, 85; neu-seg 46, 18, 50; camvid60 36, 10, 39.
    """
    left, top, right, bottom = (max(0, edge) for edge in box_xyxy)
    inside = np.zeros(ellipse.shape, np.bool_)
    inside[top:bottom, left:right] = True
    marked = (_enlarged(objectness, ellipse.shape) + np.where(ellipse, 1, -1) > 0) & inside
    return marked if marked.sum() > _MIN_SHARE_OF_BOX * inside.sum() else ellipse


def thing_of_name(objectness: Maps, guess: Mask) -> Mask:
    """Use what objectness, logits (n, n), marks as the mask, if the encoder's own (S, S) guess agrees.

    The guess (`pseudo_mask`) is a blob of tokens around what the picture shows most of. If more than half of the
    objects' pixels are in it, they are the object, with its outline; else the picture shows stuff, or something that
    does not stand out, and the guess stays. IoU with drawn masks, pascal10-coseg, on which the rule was chosen: the
    guess 35, objectness alone 64, the sum of the log-odds 61 to 63, this 64. On data not used to choose it: davis16-val
    21, 63, 60, 63; neu-seg 20, 17, 21, 31.
    """
    marked = _enlarged(objectness, guess.shape) > 0
    agrees = (marked & guess).sum() > MIN_AGREEMENT * marked.sum()
    return marked if agrees and marked.mean() >= MIN_COVER else guess


def _enlarged(logits: Maps, size_hw: tuple[int, ...]) -> Maps:
    return np.asarray(cv2.resize(logits, size_hw[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


# -------------------------------------------------------------------------------------------------------- small objects


def support_window(mask: Mask, factor: float) -> tuple[slice, slice] | None:
    """Choose the part of a support picture that the encoder should see, so that a small object gets more tokens.

    It has the picture's own aspect: the encoder squashes what it sees to a square, and an object must be squashed in
    its support as it will be in the frames.

    Args:
        mask: (H, W) bool, True on the object.
        factor: How many times as long as the mask's bounding box the window is, along the side where the box takes the
            larger share; 0 never crops, else at least 1.

    Returns:
        Rows and columns, inside the picture and around the whole box; None if the picture is best seen whole.
    """
    if factor == 0 or not mask.any():
        return None
    rows, columns = _extent(mask, 1), _extent(mask, 0)
    height, width = mask.shape
    share = max((rows[1] - rows[0]) / height, (columns[1] - columns[0]) / width)
    side = max(factor * share, _MIN_WINDOW_PX / min(height, width))
    if side >= _MAX_WINDOW_SHARE:
        return None
    return _span(*rows, side, height), _span(*columns, side, width)


def _extent(mask: Mask, across: int) -> tuple[int, int]:
    """Return the first and one past the last row (across 1) or column (across 0) that contains a True."""
    found = np.flatnonzero(mask.any(axis=across))
    return int(found[0]), int(found[-1]) + 1


def _span(first: int, last: int, side: float, length: int) -> slice:
    """Return about `side` * `length` pixels around `first` to `last`, moved to lie between 0 and `length`."""
    pixels = min(length, max(round(side * length), last - first))
    start = min(max((first + last - pixels) // 2, 0), length - pixels)
    return slice(start, start + pixels)
