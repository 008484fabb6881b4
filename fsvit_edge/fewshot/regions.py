"""The pixels of one class in a label map: where they are, their outline and their connected parts."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.support_masks import Box

_Ints = npt.NDArray[np.int32]


class Region:
    """All pixels of a class, at least one. What is found of them is kept for all who ask.

    Attributes:
        box_xyxy: The box around them: left, top, right, bottom in pixels, the latter two exclusive.
        pixels: Which pixels of the box they are, (height, width) uint8, 0 or 1.
    """

    def __init__(self, box_xyxy: Box, pixels: npt.NDArray[np.uint8]) -> None:
        self.box_xyxy, self.pixels = box_xyxy, pixels

    @cached_property
    def outline(self) -> tuple[list[_Ints], _Ints]:
        """Contours in the box, as (N, 1, 2) x and y each, and OpenCV's tree of them: those of holes have a parent."""
        contours, tree = cv2.findContours(self.pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        return [np.asarray(contour, np.int32) for contour in contours], np.asarray(tree, np.int32)

    def parts(self, least_px: Callable[[int], float] = lambda _: 0) -> list[tuple[int, Box]]:
        """Return area and box of each connected part; corners connect.

        Contours give the same as OpenCV's connected components, in a tenth of the time. Parts whose box has fewer
        pixels than `least_px` of the largest area are left out: it must not fall as that grows, nor be above it.
        """
        left, top = self.box_xyxy[:2]
        contours, tree = self.outline
        outer = [index for index in range(len(contours)) if tree[0, index, 3] < 0]  # not a hole of another
        boxes = sorted(((cv2.boundingRect(contours[index]), index) for index in outer), key=lambda one: -_size(one[0]))
        parts: list[tuple[int, Box]] = []
        largest = 0
        for (x, y, width, height), index in boxes:
            if width * height < least_px(largest):
                break
            part = np.zeros((height, width), np.uint8)
            cv2.drawContours(part, contours, index, (1,), cv2.FILLED, hierarchy=tree, maxLevel=1, offset=(-x, -y))
            parts.append((cv2.countNonZero(part), (left + x, top + y, left + x + width, top + y + height)))
            largest = max(largest, parts[-1][0])
        return parts


def find_regions(label_map: npt.NDArray[np.uint8], labels: Iterable[int]) -> dict[int, Region]:
    """Find the pixels of each of these labels in an (H, W) uint8 map; a label without a pixel is left out."""
    found = {}
    is_label = np.empty(label_map.shape, np.bool_)  # one for all: new memory for each takes as long as the rest
    for label in labels:
        pixels = np.equal(label_map, label, out=is_label).view(np.uint8)
        x, y, width, height = cv2.boundingRect(pixels)
        if width:
            found[label] = Region((x, y, x + width, y + height), pixels[y : y + height, x : x + width].copy())
    return found


def _size(box: Sequence[int]) -> int:
    return box[2] * box[3]
