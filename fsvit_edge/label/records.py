"""What `label` found in one picture, as it is kept until the label files are written, and in JSON lines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    split: str = ""  # "train" or "val"; empty if the pictures are not split


@dataclass(frozen=True)
class About:
    """What the answers come from, by which they can be had again; the date is left out: the same gives the same."""

    fsvit_edge: str  # the version
    bundle_sha256: str  # as `bundle.json` states it
    bank_sha256: str  # of the bank's file
    classes: tuple[str, ...]  # all of the bank, in the order of enrollment
    levels: tuple[float, ...]  # of each class, the score above which it is present
    engine: str  # such as "onnxruntime"
    precision: str  # such as "fp32"
    outlines: str  # "sharp" or "plain"


def to_plain(classes: Iterable[LabeledClass]) -> list[dict[str, Any]]:
    """Return classes as plain values; as `asdict`, which copies each run length: nine tenths of the time."""
    return [{**vars(one), "parts": [vars(part) for part in one.parts]} for one in classes]


def from_plain(classes: Iterable[Mapping[str, Any]]) -> tuple[LabeledClass, ...]:
    """Return the classes of `to_plain`; a KeyError, TypeError or ValueError if they are something else."""
    return tuple(LabeledClass(**{**one, "parts": tuple(map(_part, one["parts"]))}) for one in classes)


def _part(plain: Mapping[str, Any]) -> Part:
    left, top, right, bottom = plain["box_xyxy"]
    return Part(plain["area_px"], (left, top, right, bottom), tuple(plain["counts"]))


def run_lengths(pixels: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """Return run lengths of an (H, W) mask as COCO counts them: down the columns, pixels that are off first."""
    flat = pixels.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return tuple([0, *lengths] if flat.size and flat[0] else lengths)


def pixels_of(counts: Sequence[int] | npt.NDArray[np.int_], size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the (H, W) bool mask of run lengths; a ValueError if they are for another number of pixels."""
    is_on = np.arange(len(counts)) % 2 == 1
    return np.repeat(is_on, counts).reshape(size_hw, order="F")


def pixels_in_box(part: Part, height: int) -> npt.NDArray[np.bool_]:
    """Return which pixels of its box a part has, (bottom - top, right - left) bool, in a picture of this height."""
    left, top, right, bottom = part.box_xyxy
    ends = np.clip(np.cumsum(part.counts), left * height, right * height)  # only the columns of the box
    lengths = np.diff(ends, prepend=left * height)
    return pixels_of(lengths, (height, right - left))[top:bottom]
