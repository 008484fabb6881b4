"""What `label` found in one picture, as it is kept until the label files are written, and in JSON lines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.support_masks import Box


@dataclass(frozen=True)
class Part:
    """A connected part of a class in one picture."""

    area_px: int
    box_xyxy: Box  # left, top, right and bottom in pixels, the latter two exclusive
    counts: tuple[int, ...]  # run lengths of its pixels, as `run_lengths` gives them


@dataclass(frozen=True)
class LabeledClass:
    """A class in one picture."""

    name: str
    score: float  # P(present), in [0, 1]
    level: float  # the score above which it is present
    present: bool
    parts: tuple[Part, ...]  # the largest first; none if it is absent


@dataclass(frozen=True)
class LabeledPicture:
    """What was found in one picture."""

    path: str  # of a file, with its suffix; of a frame of a video, the name of the picture that stands for it; with "/"
    size_hw: tuple[int, int]  # as people see it: turned as its EXIF orientation says
    time_s: float | None  # of a frame in its video; None for a picture
    classes: tuple[LabeledClass, ...]  # all of the bank, in the order of enrollment


def run_lengths(pixels: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """Return run lengths of an (H, W) mask as COCO counts them: down the columns, pixels that are off first."""
    flat = pixels.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return tuple([0, *lengths] if flat.size and flat[0] else lengths)


def pixels_of(counts: Sequence[int], size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the (H, W) bool mask of run lengths; a ValueError if they are for another number of pixels."""
    is_on = np.arange(len(counts)) % 2 == 1
    return np.repeat(is_on, counts).reshape(size_hw, order="F")
