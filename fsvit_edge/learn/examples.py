"""What all data sets share: pictures as examples of classes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.pictures import read_image, reading_scale

IGNORE = 255
"""Mask value that all metrics and losses ignore."""

_ORIENTATION_TAG = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class Example:
    """One picture as an example of one class."""

    label: int  # the class's number in the data set, from 0, the same in every fold
    image: Path
    mask: Path | None  # None if only the class is known
    photograph: str  # copies of one photograph, which may be examples of several classes, share its name


class FewShotData(ABC):
    """Examples of a set of classes, from which `fsvit_edge.learn.episodes` draws.

    Args:
        class_names: Label -> name, in the order of the benchmark.
        examples: Examples of these classes, in the order of the benchmark.
    """

    lists_every_class = False
    """Whether a photograph is listed under every class that it shows, so that no mask has to be read to know."""
    query_order: Literal["listed", "shuffled", "by class"] = "listed"
    """How the benchmark's episodes choose their query: in order, or a random picture of a random class."""

    def __init__(self, class_names: Mapping[int, str], examples: Sequence[Example]) -> None:
        self.class_names = dict(class_names)
        self.examples = tuple(examples)
        self._of_class: dict[int, list[int]] = {label: [] for label in self.class_names}
        self._labels: dict[str, set[int]] = {}
        for index, example in enumerate(self.examples):
            self._of_class[example.label].append(index)
            self._labels.setdefault(example.photograph, set()).add(example.label)

    def of_class(self, label: int) -> Sequence[int]:
        """Return the indices of a class in `examples`, in order; an unknown class is an InputError."""
        if label not in self._of_class:
            known = ", ".join(f"{number} ({name})" for number, name in self.class_names.items())
            raise InputError(f"Unknown class {label}; choose one of: {known}.")
        return self._of_class[label]

    def labels_of(self, index: int) -> frozenset[int]:
        """Return every label that the photograph of an example is listed under."""
        return frozenset(self._labels[self.examples[index].photograph])

    def read_image(self, index: int) -> npt.NDArray[np.uint8]:
        """Return (H, W, 3) uint8 RGB; a missing or damaged file is an InputError, here and below."""
        return read_image(self.examples[index].image)

    def read_mask(self, index: int) -> npt.NDArray[np.uint8]:
        """Return (H, W) uint8: 1 on the example's own class, 0 elsewhere, `IGNORE` where unknown."""
        return self.read_truth(index, (self.examples[index].label,))

    @abstractmethod
    def read_truth(self, index: int, labels: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return (H, W) uint8: i + 1 on labels[i], 0 elsewhere, `IGNORE` where unknown."""


def read_stored_mask(path: Path) -> tuple[npt.NDArray[np.uint8], str]:
    """Return (H, W) or (H, W, channels) uint8 as stored, and Pillow's mode: "L" is gray, "P" indices of a palette."""
    try:
        with Image.open(path) as image:
            return np.array(image, dtype=np.uint8), image.mode
    # Pillow raises many kinds of exceptions for damaged data: OSError, SyntaxError, ValueError, struct.error.
    except Exception as error:
        raise InputError(f"The mask {path} cannot be read: {error}.") from error


def picture_size_hw(path: Path) -> tuple[int, int]:
    """Return height and width of a picture as it is read, after EXIF rotation, from its header."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = image.getexif().get(_ORIENTATION_TAG) in _SIDEWAYS
    except Exception as error:
        raise InputError(f"The picture {path} cannot be read: {error}.") from error
    scale = reading_scale(width * height) or 1
    width, height = -(-width // scale), -(-height // scale)
    return (width, height) if sideways else (height, width)


def check_size(mask: npt.NDArray[np.uint8], mask_path: Path, image_path: Path) -> None:
    """Refuse a mask that is not the size of its picture."""
    height, width = picture_size_hw(image_path)
    if mask.shape != (height, width):
        raise InputError(
            f"The mask {mask_path} is {mask.shape[1]}x{mask.shape[0]} pixels, but its picture {image_path} is "
            f"{width}x{height}; use a mask of the same size."
        )
