"""What the data sets of few-shot learning have in common: pictures as examples of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from fsvit_edge.runtime.errors import InputError

IGNORE = 255
"""Value of a mask that no metric and no loss looks at."""

_ORIENTATION_TAG = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class Example:
    """One picture as an example of one class.

    Attributes:
        label: The class's number in the data set's own numbering, from 0, the same in every fold.
        image: The picture.
        mask: Its mask; None where only the class is known.
        photograph: The same for every copy of one photograph, which may stand under several classes.
    """

    label: int
    image: Path
    mask: Path | None
    photograph: str


class FewShotData(Protocol):
    """Examples of some classes, as `fsvit_edge.learn.episodes` draws them."""

    @property
    def class_names(self) -> Mapping[int, str]:
        """Label -> name of the classes of this selection, in the benchmark's order."""

    @property
    def examples(self) -> Sequence[Example]:
        """All examples, in the benchmark's order."""

    @property
    def lists_every_class(self) -> bool:
        """Whether a photograph stands under every class that its masks show, so that no mask need be asked."""

    def of_class(self, label: int) -> Sequence[int]:
        """Indices into `examples` of a class, in order."""

    def labels_of(self, index: int) -> frozenset[int]:
        """Every label of this selection under which the photograph of an example stands."""

    def read_image(self, index: int) -> npt.NDArray[np.uint8]:
        """(H, W, 3) RGB."""

    def read_mask(self, index: int) -> npt.NDArray[np.uint8]:
        """(H, W): 1 where the example's own class is, 0 elsewhere, `IGNORE` where nobody knows."""

    def read_truth(self, index: int, labels: Sequence[int]) -> npt.NDArray[np.uint8]:
        """(H, W): i + 1 where labels[i] is, 0 elsewhere, `IGNORE` where nobody knows."""


class ExampleList:
    """The part of `FewShotData` that reads no file.

    Args:
        class_names: Label -> name, in order.
        examples: In order; each of one of these classes.
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
        """Label -> name of the classes of this selection, in the benchmark's order."""
        return self._class_names

    @property
    def examples(self) -> Sequence[Example]:
        """All examples, in the benchmark's order."""
        return self._examples

    def of_class(self, label: int) -> Sequence[int]:
        """Indices into `examples` of a class, in order.

        Raises:
            InputError: The class is not of this selection.
        """
        if label not in self._of_class:
            known = ", ".join(f"{number} ({name})" for number, name in self._class_names.items())
            raise InputError(f"There is no class {label} in this selection; it has: {known}.")
        return self._of_class[label]

    def labels_of(self, index: int) -> frozenset[int]:
        """Every label of this selection under which the photograph of an example stands."""
        return frozenset(self._labels[self._examples[index].photograph])


def read_stored_mask(path: Path) -> tuple[npt.NDArray[np.uint8], str]:
    """Read the pixels of a mask file as they are stored: of a palette its indices.

    Returns:
        (H, W) uint8, or (H, W, channels), and the file's mode as Pillow names it: "L" is gray, "P" a palette.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return np.array(image, dtype=np.uint8), image.mode
    # Pillow answers damaged data with many kinds of exceptions: OSError, SyntaxError, ValueError, struct.error.
    except Exception as error:
        raise InputError(f"The mask {path} cannot be read: {error}.") from error


def picture_size_hw(path: Path) -> tuple[int, int]:
    """Height and width of a picture as the eye sees it, from its header.

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
    """Refuse a mask of another size than its picture.

    Raises:
        InputError: The sizes differ, or the picture cannot be read.
    """
    height, width = picture_size_hw(image_path)
    if mask.shape != (height, width):
        raise InputError(
            f"The mask {mask_path} is {mask.shape[1]}x{mask.shape[0]} pixels, but its picture {image_path} is "
            f"{width}x{height}; give a mask of the picture's size."
        )
