"""Label maps as pictures of 8 bits: the value of a pixel is the index of its class, the color comes from a palette."""

from functools import cache
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from fsvit_edge.fewshot.full_size import enlarged, scale_of
from fsvit_edge.fewshot.overlay import PALETTE
from fsvit_edge.fewshot.prediction import Prediction

_VALUES = 256
_COMPRESSION = 3  # of 9; of 1280x720 pixels, 2.0 ms and 10 kB; Pillow's own 6 takes 4.8 ms for 6 kB


def index_png(label_map: npt.NDArray[np.uint8]) -> bytes:
    """Encode an (H, W) uint8 label map as a PNG of indices; one picture gives the same bytes wherever it is encoded."""
    image = Image.fromarray(label_map, "L")
    image.putpalette(_palette())
    encoded = BytesIO()
    image.save(encoded, "PNG", bits=8, compress_level=_COMPRESSION)
    return encoded.getvalue()


def answer_png(prediction: Prediction, full_hw: tuple[int, int] | None = None) -> bytes:
    """Encode an answer: 0 is background, i + 1 is class i if it is present; pixels of an absent class are left out.

    With `full_hw`, the height and width of a picture file that was read smaller, it has the size of the file.
    """
    shown = np.zeros(_VALUES, np.uint8)
    ways = np.flatnonzero(prediction.present)
    shown[ways + 1] = ways + 1
    label_map = shown[prediction.label_map]
    if full_hw is not None:
        label_map = enlarged(label_map, scale_of(label_map.shape, full_hw), full_hw)
    return index_png(label_map)


def index_color(index: int) -> tuple[int, int, int]:
    """Return the RGB color of a value in [0, 255]: black for 0; the classes are colored as in pictures drawn by `run`.

    `run` begins again after ten classes; here no two values share a color, because some tools read the colors.
    """
    if index == 0:
        return (0, 0, 0)
    if index <= len(PALETTE):
        return PALETTE[index - 1]
    # As in Pascal VOC: each third bit of the index, from the low ones, is one of a channel's bits, from the high ones.
    red, green, blue = (
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)
    )
    return (red, green, blue)


@cache
def _palette() -> bytes:
    return bytes(channel for index in range(_VALUES) for channel in index_color(index))
