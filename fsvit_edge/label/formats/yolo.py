"""YOLO-seg, as Ultralytics reads it: a text file per picture, with one polygon for each part of a class.

The polygons go through the outermost pixels of a part, as OpenCV's contours do, and readers fill them including these.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.label.formats.files import ENCODING, create, write_beside
from fsvit_edge.label.records import About, LabeledPicture, Part, pixels_in_box
from fsvit_edge.runtime.errors import InputError

_FROM_CORNER_PX = (
    0.25  # some readers round to whole pixels, Ultralytics cuts off: both then find the pixel that is meant
)
_FEWEST_POINTS = 3

_Points = npt.NDArray[np.int32]


def write_labels(folder: Path, about: About, pictures: Callable[[], Iterable[LabeledPicture]]) -> None:
    """Write `labels/PICTURE.txt`, lists of the pictures of each split, and `data.yaml` into an empty folder.

    Pictures without a split are listed for training, and validate if no others do: Ultralytics wants both.

    Raises:
        InputError: Two pictures differ only in their suffix, one is outside of the folder that is labeled, or the
            label file of one would not be found.
    """
    index_of = {name: index for index, name in enumerate(about.classes)}
    with ExitStack() as stack:
        lists = {"train": stack.enter_context(create(folder / "train.txt"))}
        for picture in pictures():
            split = picture.split or "train"
            if split not in lists:
                lists[split] = stack.enter_context(create(folder / f"{split}.txt"))
            lines = [
                _line(index_of[found.name], part, picture.size_hw) for found in picture.classes for part in found.parts
            ]
            write_beside(folder / "labels", picture.path, ".txt", "".join(lines).encode())
            lists[split].write(_listed(picture.path))
    names = "".join(f"  {index}: {yaml_text(name)}\n" for index, name in enumerate(about.classes))
    validated = "val" if "val" in lists else "train"
    text = f"train: train.txt\nval: {validated}.txt\nnames:{' {}' if not names else ''}\n{names}"
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def outline_of(pixels: npt.NDArray[np.bool_]) -> _Points:
    """Return one closed polygon (n, 2) int32, x and y, through the outermost pixels of a connected (H, W) part.

    Each hole is joined to what is left of it by a line there and back along a row. Filled by the even-odd rule, with
    the pixels on the polygon, it has the same pixels as the part.
    """
    contours, tree = cv2.findContours(pixels.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [contour[:, 0] for contour in contours]
    ring = np.concatenate([one for one, (*_, parent) in zip(rings, tree[0], strict=True) if parent < 0])
    holes = [one for one, (*_, parent) in zip(rings, tree[0], strict=True) if parent >= 0]
    # From the left: what is to the left of a hole's leftmost pixel is the outside, or a hole that is joined already.
    for hole in sorted(holes, key=lambda one: int(one[:, 0].min())):
        start = int(hole[:, 0].argmin())
        x, y = (int(value) for value in hole[start])
        is_off = np.flatnonzero(~pixels[y, :x])
        edge_x = int(is_off[-1]) + 1 if is_off.size else 0
        place = int(np.flatnonzero((ring == (edge_x, y)).all(axis=1))[0])
        ring = np.concatenate([ring[: place + 1], hole[start:], hole[: start + 1], ring[place:]])
    return _corners(ring)


def _corners(ring: _Points) -> _Points:
    """Leave out the points of a closed polygon at which its direction does not change."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)] if len(ring) > 1 else ring
    steps = np.roll(ring, -1, axis=0) - ring
    return ring[(steps != np.roll(steps, 1, axis=0)).any(axis=1)] if len(ring) > 1 else ring


def _line(index: int, part: Part, size_hw: tuple[int, int]) -> str:
    left, top, _, _ = part.box_xyxy
    points = outline_of(pixels_in_box(part, size_hw[0]))
    while len(points) < _FEWEST_POINTS:  # fewer would be read as a box
        points = np.concatenate([points, points[-1:]])
    shares = (points + np.array([left, top]) + _FROM_CORNER_PX) / size_hw[::-1]
    return f"{index} {' '.join(f'{value:.6f}' for value in shares.ravel().tolist())}\n"


def check_path(picture: str) -> None:
    """Refuse a picture whose label file Ultralytics would not find, with an InputError."""
    reason = ""
    if len(picture.splitlines()) > 1:
        reason = "has a line break in its name, which a list of pictures cannot hold; rename it"
    elif "/images/" in f"/{picture}":
        reason = (
            "is in a folder named images, for which Ultralytics looks elsewhere for labels; label that folder "
            "alone, with an --output of its own, or rename it"
        )
    elif "./" in picture:
        reason = "is in a folder whose name ends in a dot, which Ultralytics takes for its own; rename it"
    if reason:
        raise InputError(f"The picture {picture!r:.200} {reason}, or choose --format coco, cvat or jsonl.")


def _listed(picture: str) -> bytes:
    """A line for a list of pictures; Ultralytics looks for their label files in `labels` instead of `images`."""
    check_path(picture)
    return f"./images/{picture}\n".encode(**ENCODING)


def yaml_text(text: str) -> str:
    """Quote a text for YAML. JSON's quotes would not do: YAML does not join the two halves of an emoji."""
    return '"' + "".join(one if one.isprintable() and one not in '"\\' else f"\\U{ord(one):08x}" for one in text) + '"'
