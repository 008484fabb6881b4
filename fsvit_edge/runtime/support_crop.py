"""Where a support is looked at more closely: a window around a small thing, of which the encoder sees more tokens."""

import numpy as np
import numpy.typing as npt

_SMALLEST_PX = 32  # of the window's shorter side: enlarging fewer pixels shows the network nothing but blur
_LARGEST_SHARE = 0.8  # a window nearly as large as the picture would gain less than its surroundings are worth

Window = tuple[slice, slice]


def support_window(mask: npt.NDArray[np.bool_], factor: float) -> Window | None:
    """Choose the part of a support picture that the encoder should see.

    It has the picture's own aspect: the encoder squashes what it sees to a square, and a thing must be squashed in its
    support as it will be in the frames.

    Args:
        mask: (H, W) bool, True on the thing.
        factor: How many times as long as the mask's bounding box the window is, along the side of which the box takes
            the larger share; 0 never crops, else at least 1.

    Returns:
        Rows and columns, inside the picture and around the whole box; None where the picture is best seen whole.
    """
    if factor == 0 or not mask.any():
        return None
    rows, columns = _extent(mask, 1), _extent(mask, 0)
    height, width = mask.shape
    share = max((rows[1] - rows[0]) / height, (columns[1] - columns[0]) / width)
    side = max(factor * share, _SMALLEST_PX / min(height, width))
    if side >= _LARGEST_SHARE:
        return None
    return _span(*rows, side, height), _span(*columns, side, width)


def _extent(mask: npt.NDArray[np.bool_], across: int) -> tuple[int, int]:
    """First and one past the last row (across 1) or column (across 0) that holds a True."""
    found = np.flatnonzero(mask.any(axis=across))
    return int(found[0]), int(found[-1]) + 1


def _span(first: int, last: int, side: float, length: int) -> slice:
    """A span of about `side` * `length` pixels around `first` to `last`, moved to lie between 0 and `length`."""
    pixels = min(length, max(round(side * length), last - first))
    start = min(max((first + last - pixels) // 2, 0), length - pixels)
    return slice(start, start + pixels)
