"""What all data sets share: pictures as examples of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from fsvit_edge.runtime.errors import InputError

IGNORE = 255
"""Mask value that all metrics and losses ignore."""

_ORIENTATION_TAG = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class Example:
    """One picture as an example of one class.

    Attributes:
        label: The class's number in the data set, from 0, the same in every fold.
        image: Path of the picture.
        mask: Path of its mask; None if only the class is known.
        photograph: Name of the photograph; copies of it, which may be examples of several classes, share the name.
    """

    label: int
    image: Path
    mask: Path | None
    photograph: str


class FewShotData(Protocol):
    """Examples of a set of classes, from which `fsvit_edge.learn.episodes` draws."""

    @property
    def class_names(self) -> Mapping[int, str]:
        """Label -> name of each class, in the order of the benchmark."""

    @property
    def examples(self) -> Sequence[Example]:
        """All examples, in the order of the benchmark."""

    @property
    def lists_every_class(self) -> bool:
        """Whether a photograph is listed under every class that it shows, so that no mask has to be read to know."""

    def of_class(self, label: int) -> Sequence[int]:
        """Return the indices of a class in `examples`, in order."""

    def labels_of(self, index: int) -> frozenset[int]:
        """Return every label that the photograph of an example is listed under."""

    def read_image(self, index: int) -> npt.NDArray[np.uint8]:
        """Return (H, W, 3) uint8 RGB."""

    def read_mask(self, index: int) -> npt.NDArray[np.uint8]:
        """Return (H, W) uint8: 1 on the example's own class, 0 elsewhere, `IGNORE` where unknown."""

    def read_truth(self, index: int, labels: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return (H, W) uint8: i + 1 on labels[i], 0 elsewhere, `IGNORE` where unknown."""


class ExampleList:
    """The part of `FewShotData` that reads no files.

    Args:
        class_names: Label -> name, in order.
        examples: Examples of these classes, in order.
    """

    def __init__(self, class_names: Mapping[int, str], examples: Sequence[Example]) -> None:
        self._class_names = dict(class_names)
        self._examples = tuple(examples)
        self._of_class: dict[int, list[int]] = {label: [] for label in self._class_names}
        self._labels: dict[str, set[int]] = {}
        for index, example in enumerate(self._examples):
            self._of_class[example.label].append(index)
            self._labels.setdefault(example.photograph, set()).add(example.label)

    @property
    def class_names(self) -> Mapping[int, str]:
        """Label -> name of each class, in the order of the benchmark."""
        return self._class_names

    @property
    def examples(self) -> Sequence[Example]:
        """All examples, in the order of the benchmark."""
        return self._examples

    def of_class(self, label: int) -> Sequence[int]:
        """Return the indices of a class in `examples`, in order.

        Raises:
            InputError: The class is unknown.
        """
        if label not in self._of_class:
            known = ", ".join(f"{number} ({name})" for number, name in self._class_names.items())
            raise InputError(f"Unknown class {label}; choose one of: {known}.")
        return self._of_class[label]

    def labels_of(self, index: int) -> frozenset[int]:
        """Return every label that the photograph of an example is listed under."""
        return frozenset(self._labels[self._examples[index].photograph])


def read_stored_mask(path: Path) -> tuple[npt.NDArray[np.uint8], str]:
    """Read the pixels of a mask file as stored; for a palette, these are its indices.

    Returns:
        (H, W) or (H, W, channels) uint8, and Pillow's name of the mode: "L" is gray, "P" a palette.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return np.array(image, dtype=np.uint8), image.mode
    # Pillow raises many kinds of exceptions for damaged data: OSError, SyntaxError, ValueError, struct.error.
    except Exception as error:
        raise InputError(f"The mask {path} cannot be read: {error}.") from error


def picture_size_hw(path: Path) -> tuple[int, int]:
    """Read height and width of a picture, after EXIF rotation, from its header.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = image.getexif().get(_ORIENTATION_TAG) in _SIDEWAYS
    except Exception as error:
        raise InputError(f"The picture {path} cannot be read: {error}.") from error
    return (width, height) if sideways else (height, width)


def check_size(mask: npt.NDArray[np.uint8], mask_path: Path, image_path: Path) -> None:
    """Refuse a mask that is not the size of its picture.

    Raises:
        InputError: The sizes differ, or the picture cannot be read.
    """
    height, width = picture_size_hw(image_path)
    if mask.shape != (height, width):
        raise InputError(
            f"The mask {mask_path} is {mask.shape[1]}x{mask.shape[0]} pixels, but its picture {image_path} is "
            f"{width}x{height}; use a mask of the same size."
        )
