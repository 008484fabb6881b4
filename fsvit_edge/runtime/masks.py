"""Mask files: which pixels are the object, which are not, and which nobody knows.

Enrollment, data sets and the page read a file by the same rules:

- If the transparency varies, it is the mask (a cut-out).
- Gray, whatever the bits: of two values with black, the other one is the object; else what is above half of the range.
- A label map has few values, each in an area of its own. With one label beside black, this is the object, and the
  highest value (255) is void: the border that annotators leave out. In color, white and VOC's light gray are void.
- A trimap's band of 127 or 128 between black and white is void.
- What can be read in more than one way is refused.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.pictures import decoded, decoded_file

VOID = 255
"""Value of a pixel that is neither the object nor not."""

_WHITE, _VOC_VOID = 0xFFFFFF, 0xE0E0C0  # the latter in PASCAL VOC's color maps
_MAX_LABELS = 32  # a soft mask has more values
_MAX_COLORS = 256
_MOST_SHADES = 48
"""Colors of 4 bits a channel with a thousandth of a mask's pixels. Of 151 photographs in color 8 have no more; of 1,200
masks in one color, blurred by up to 9 pixels of 224 and stored as JPEG, none has more than 43."""
_STRAY = 50  # a value on fewer than one in so many of the brightest pixels is a slip of the brush
_NOISE = 8  # black in a JPEG has values below
_NOISE_REACH = 33  # pixels: an edge disturbs only the blocks that it is in, of 8 or 16; elsewhere black is 0
_LISTED = 8

_Values = npt.NDArray[np.uint8 | np.uint16]
_Roles = npt.NDArray[np.uint8]


def read_mask(path: str | Path, size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Read the mask of a picture of height and width `size_hw`.

    Returns:
        (H, W) bool, with at least one True.

    Raises:
        InputError: The file cannot be read (see `read_image`), has another size, marks no pixel, or can be read in
            several ways.
    """
    return np.asarray(read_roles(Path(path), size_hw) == 1, np.bool_)


def read_roles(path: Path, size_hw: tuple[int, int]) -> _Roles:
    """Return (H, W) uint8: 1 on the object, at least once, 0 elsewhere, `VOID` where unknown; raises as `read_mask`."""
    with decoded_file(path, size_hw) as image:
        return _roles(image, f"The mask {path}", size_hw)


def decode_mask(data: bytes, what: str, size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Decode the bytes of a mask file; `what` is how errors call it, to start a sentence. Raises as `read_mask`."""
    with decoded(data, what, size_hw) as image:
        return np.asarray(_roles(image, what, size_hw) == 1, np.bool_)


def _roles(image: Image.Image, what: str, size_hw: tuple[int, int]) -> _Roles:
    if image.size != size_hw[::-1]:
        raise InputError(
            f"{what} is {image.width}x{image.height} pixels, but its picture is {size_hw[1]}x{size_hw[0]}; give a mask "
            "of the picture's size."
        )
    is_exact = image.format != "JPEG"
    if image.mode == "LAB":  # which Pillow makes no gray of
        image = image.convert("RGB")
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if alpha.min() != alpha.max():
            return _above_half(alpha, what)
    if image.mode == "F":
        return _of_floats(np.asarray(image), what)
    if image.mode.startswith("I"):
        return _of_gray(np.clip(np.asarray(image), 0, 65535).astype(np.uint16), is_exact, what)
    if image.mode in ("1", "L", "LA"):
        return _of_gray(np.asarray(image.convert("L")), is_exact, what)
    rgb = np.asarray(image.convert("RGB"))
    if (rgb != rgb[..., :1]).any():
        return _of_colors(image, rgb, is_exact, what)
    gray = rgb[..., 0]
    if image.mode == "P":
        numbers = np.asarray(image)
        if np.unique(gray).size < np.unique(numbers).size:  # a palette that says nothing
            gray = numbers
    return _of_gray(gray, is_exact, what)


def _of_floats(values: npt.NDArray[Any], what: str) -> _Roles:
    if not np.isfinite(values).all():
        raise InputError(f"{what} has pixels that are no numbers; save it with 8 bits, the object 255 and the rest 0.")
    if values.max() <= 1:
        return _above(0.5, values, what)
    if (values == np.clip(np.rint(values), 0, 65535)).all():
        return _of_gray(values.astype(np.uint16), True, what)
    return _above_half(values, what)


def _of_gray(values: _Values, is_exact: bool, what: str) -> _Roles:
    highest = _highest(values)
    is_present = np.zeros(highest + 1, np.bool_)
    for row in values:  # all at once would take eight bytes a pixel
        is_present[row] = True
    present = np.flatnonzero(is_present)
    inner = present[(present > 0) & (present < highest)]
    has_black, has_highest = present[0] == 0, present[-1] == highest
    if not is_exact:
        dark_areas = ((values >= _NOISE) & (values <= highest // 2), _faint_label(values))
        if any(_has_area(one) and one.sum() > (values > highest // 2).sum() for one in dark_areas):
            raise _ambiguous(values, what)  # a label map, of which only the border would be left
    if not is_exact or not inner.size or present.size > _MAX_LABELS:
        return _above_half(values, what)
    if inner.size == 1 and not has_highest and (has_black or inner[0] == 1):
        return _checked((values == inner[0]).astype(np.uint8), values, what)
    is_on_white = (values == highest).sum() > (values == inner[0]).sum()
    if inner.size == 1 and has_highest and not has_black and 1 < inner[0] <= highest // 2 and is_on_white:
        raise _ambiguous(values, what)  # a label on void, or a large object on dark gray
    if inner.size == 1 and has_highest and (has_black or inner[0] == 1):
        return _of_three(values, int(inner[0]), highest, what)
    dark = [value for value in inner[inner <= highest // 2] if _has_area(values == value)]
    if dark and (has_black or len(dark) > 1):
        raise _ambiguous(values, what)
    return _above_half(values, what)


def _of_three(values: _Values, middle: int, highest: int, what: str) -> _Roles:
    """Black, one value and the highest: an object with a border that is void, or one with soft edges."""
    marked, top, black = values == middle, values == highest, values == 0
    label_map = np.where(top, VOID, marked).astype(np.uint8)
    touches, top_touches = _touch(marked, black), _touch(top, black)
    has_area = _has_area(marked)
    if middle == 1 or (top_touches and not touches):
        return label_map
    is_soft = touches and not top_touches
    if is_soft and has_area and middle in (highest // 2, highest // 2 + 1):
        return np.where(marked, VOID, top).astype(np.uint8)
    if is_soft or not has_area or marked.sum() * _STRAY < top.sum():
        return _bright(values)
    if marked.sum() < top.sum() or middle > highest // 2:
        raise _ambiguous(values, what)
    return label_map


def _of_colors(image: Image.Image, rgb: npt.NDArray[np.uint8], is_exact: bool, what: str) -> _Roles:
    is_palette = image.mode == "P"
    red, green, blue = np.moveaxis(rgb.astype(np.int32), 2, 0)
    packed = (red << 16) + (green << 8) + blue
    numbers: dict[int, int] = {}
    if image.convert("RGB").getcolors(_MAX_COLORS) is not None:  # fast, also for a photograph
        found, counts = np.unique(packed, return_counts=True)
        numbers = dict(zip(found.tolist(), counts.tolist(), strict=True))
    labels = numbers.keys() - {0, _WHITE, _VOC_VOID}
    is_map = is_palette or (is_exact and 0 in numbers and any(_has_area(packed == one) for one in labels))
    if not is_map and not (is_exact and numbers.keys() == {0, _VOC_VOID}):
        if not numbers and _shades(packed) > _MOST_SHADES:
            raise InputError(
                f"{what} has the many colors of a photograph, so it does not say which pixels are the object; give a "
                "picture with the object white and the rest black."
            )
        gray = np.asarray(image.convert("L"))
        if gray.min() >= (1 if is_exact else _NOISE) and gray.min() <= 127 < gray.max():
            raise _ambiguous(packed, what)  # two colors, of which either may be the object
        return _above_half(gray, what)
    if len(labels) > 1 or (numbers and 0 not in numbers and len(numbers) > 1):
        raise _ambiguous(packed, what)
    roles = (packed != 0).astype(np.uint8)
    if is_palette:
        roles[np.asarray(image) == VOID] = VOID
    if labels:
        if numbers.get(_WHITE, 0) > sum(numbers[one] for one in labels):
            raise _ambiguous(packed, what)
        roles[(packed == _VOC_VOID) | (packed == _WHITE)] = VOID
    return _checked(roles, packed, what)


def _shades(packed: npt.NDArray[np.int32]) -> int:
    """How many colors a picture has, without those of few pixels; alike to 4 bits are the same."""
    coarse = (packed >> 12 & 0xF00) | (packed >> 8 & 0xF0) | (packed >> 4 & 0xF)
    return int((np.bincount(coarse.ravel(), minlength=4096) > packed.size / 1000).sum())


def _highest(values: npt.NDArray[Any]) -> int:
    return 65535 if values.max() > 255 else 255


def _above_half(values: npt.NDArray[Any], what: str) -> _Roles:
    return _above(_highest(values) // 2, values, what)


def _above(half: float, values: npt.NDArray[Any], what: str) -> _Roles:
    """The object of a soft mask. One that is all above half, and not the same everywhere, may be something else."""
    roles = (values > half).astype(np.uint8)
    if roles.all() and values.min() < values.max():
        raise _ambiguous(values, what)
    return _checked(roles, values, what)


def _bright(values: npt.NDArray[Any]) -> _Roles:
    return (values > _highest(values) // 2).astype(np.uint8)


def _faint_label(values: _Values) -> npt.NDArray[np.bool_]:
    """Where a JPEG is not quite black although it is elsewhere, far from the noise around an edge: label 1 of a map."""
    is_far = cv2.dilate((values >= _NOISE).view(np.uint8), np.ones((_NOISE_REACH, _NOISE_REACH), np.uint8)) == 0
    return np.asarray(is_far & (values > 0) & _has_area(is_far & (values == 0)), np.bool_)


def _has_area(marked: npt.NDArray[np.bool_]) -> bool:
    """Whether 2 x 2 pixels are marked, as they hardly are on a soft edge."""
    rows = marked[1:] & marked[:-1]
    return bool((rows[:, 1:] & rows[:, :-1]).any())


def _touch(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> bool:
    """Whether a pixel of one is beside, above or below one of the other."""
    pairs = ((one[1:], other[:-1]), (one[:-1], other[1:]), (one[:, 1:], other[:, :-1]), (one[:, :-1], other[:, 1:]))
    return any(bool((here & there).any()) for here, there in pairs)


def _checked(roles: _Roles, values: npt.NDArray[Any], what: str) -> _Roles:
    if not (roles == 1).any():
        raise InputError(
            f"{what} marks no pixel; paint the object white (above 127) and the rest black. {_listed(values)}"
        )
    return roles


def _ambiguous(values: npt.NDArray[Any], what: str) -> InputError:
    return InputError(f"{what} can be read in several ways; make the object 255 and the rest 0. {_listed(values)}")


def _listed(values: npt.NDArray[Any]) -> str:
    found = np.unique(values)
    is_color = values.dtype != np.float32 and found[-1] > 65535
    shown = [f"#{value:06x}" if is_color else f"{value:g}" for value in found[:_LISTED]]
    return f"Its values: {', '.join(shown)}{', ...' if found.size > _LISTED else ''}."
