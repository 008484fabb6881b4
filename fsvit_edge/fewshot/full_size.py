"""Answers in the pixels of a picture file that was read smaller, as a JPEG of more than 40 megapixels is.

A pixel of the answer is one of 2 x 2, 4 x 4 or 8 x 8 of the file; those of the last row and column may stand for fewer.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.support_masks import Box

SizeHw = tuple[int, int]
_Kind = TypeVar("_Kind", bound=np.generic)


def scale_of(map_hw: tuple[int, ...], size_hw: SizeHw) -> int:
    """Return how many rows of a file of height and width `size_hw` a row of its label map stands for."""
    return -(-size_hw[0] // map_hw[0])


def enlarged(pixels: npt.NDArray[_Kind], scale: int, most_hw: SizeHw) -> npt.NDArray[_Kind]:
    """Repeat the pixels of a map, or of a box in it, up to as many rows and columns as there are in the file."""
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)[: most_hw[0], : most_hw[1]]


def place_in_file(box_xyxy: Box, pixels: npt.NDArray[np.generic], scale: int, size_hw: SizeHw) -> tuple[int, Box]:
    """Return area and box in the file of what is in a box of the map.

    Args:
        box_xyxy: In the map; right and bottom are exclusive.
        pixels: Which pixels of the box are meant, (bottom - top, right - left) bool or 0 and 1.
        scale: As `scale_of`.
        size_hw: Height and width of the file.
    """
    height, width = size_hw
    left, top, right, bottom = (scale * side for side in box_xyxy)
    # Counted by rows and columns: enlarged, 200 megapixels would take 200 MB for each class.
    in_row = scale * np.count_nonzero(pixels, axis=1) - max(0, right - width) * (pixels[:, -1] != 0)
    area = scale * int(in_row.sum()) - max(0, bottom - height) * int(in_row[-1])
    return area, (left, top, min(right, width), min(bottom, height))
