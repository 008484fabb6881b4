"""Picture files: read from a path to an array, and written back.

The header is read before any pixel is decoded, because a file of 20 kB can expand to a gigabyte. Every fault of a file
becomes one InputError that names the file.
"""

import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.storage import atomic_write

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
MAX_PICTURE_PX = 40_000_000
MAX_PICTURE_BYTES = 64_000_000

_VOID_LABEL = 255
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
_FORMATS_TEXT = "PNG, JPEG, BMP, WebP, TIFF or GIF"
_ENCODERS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}
_JPEG_QUALITY = 90


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Read one picture as it is displayed, (H, W, 3) uint8 RGB: its EXIF orientation is applied.

    Gray, palette and CMYK pictures are converted; 16-bit ones keep their upper 8 bits; transparent parts become
    white; an animation or a file of several pages gives its first picture.

    Raises:
        InputError: The file is missing, empty, damaged, too large, of another format, or not a regular file.
    """
    with _decoded(path) as image:
        if image.mode == "F":
            raise InputError(f"{path} has floating-point pixels; save it with 8 or 16 bits per channel.")
        if image.mode.startswith("I"):
            eight_bit = (np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)
            return np.repeat(eight_bit[..., None], 3, axis=2)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            paper = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(paper, image)
        return np.array(image.convert("RGB"))


def read_mask(path: Path, size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Read the mask of a picture of height and width `size_hw`: bright is the object, dark is the rest.

    A pixel is foreground above half of the range (127 of 255), or above 0 if the mask contains only 0 and 1. If the
    transparency varies, it is the mask (a cut-out); in a color palette (PASCAL VOC's label maps) everything but black
    and void (255) is the object; otherwise the luminance decides. The EXIF orientation is applied.

    Returns:
        (H, W) bool, with at least one True.

    Raises:
        InputError: The file cannot be read (see `read_image`), has another size, or marks no pixel.
    """
    with _decoded(path) as image:
        values = _mask_values(image)
    if values.shape != size_hw:
        raise InputError(
            f"The mask {path} is {values.shape[1]}x{values.shape[0]} pixels, but its picture is "
            f"{size_hw[1]}x{size_hw[0]}; give a mask of the picture's size."
        )
    highest = values.max()
    full = 65535 if highest > 255 else 255
    mask: npt.NDArray[np.bool_] = values > (0 if highest == 1 else full // 2)
    if not mask.any():
        raise InputError(f"The mask {path} marks no pixel; paint the object white (above 127) and the rest black.")
    return mask


def write_image(path: Path, rgb: npt.NDArray[np.uint8]) -> None:
    """Write one (H, W, 3) uint8 RGB picture, whole or not at all, in the format of its suffix; see `atomic_write`."""
    encoder = _ENCODERS.get(path.suffix.lower())
    if encoder is None:
        raise InputError(f"{path} cannot be written as a picture; end its name in one of {', '.join(_ENCODERS)}.")
    encoded = BytesIO()
    Image.fromarray(rgb).save(encoded, encoder, quality=_JPEG_QUALITY)
    atomic_write(path, encoded.getvalue())


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures of a folder, by their suffixes, in natural order (2 before 10), without hidden files."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != ".")
    return sorted(files, key=_natural_order)


def by_stem(pictures: Iterable[Path]) -> dict[str, Path]:
    """Return the same pictures by their names without suffix; an InputError if two have the same."""
    files: dict[str, Path] = {}
    for path in pictures:
        if path.stem in files:
            raise InputError(f"{files[path.stem]} and {path} differ only in their suffix; rename one of them.")
        files[path.stem] = path
    return files


def thumbnail(rgb: npt.NDArray[np.uint8], longest_px: int) -> npt.NDArray[np.uint8]:
    """Shrink (H, W, 3) uint8 RGB so that its longer side has at most `longest_px`; a smaller one keeps its size."""
    image = Image.fromarray(rgb)
    image.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    return np.array(image)


def _natural_order(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part) if part.isdecimal() else -1, part) for part in parts]


@contextmanager
def _decoded(path: Path) -> Iterator[Image.Image]:
    data = _file_bytes(path)
    with warnings.catch_warnings():
        # Pillow warns about sizes and EXIF details; our own limits below decide, in one sentence or not at all.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise InputError(f"{path} is damaged or not a {_FORMATS_TEXT} picture.") from error
        except Image.DecompressionBombError as error:
            raise InputError(f"{path} has more than {MAX_PICTURE_PX // 10**6} megapixels; make it smaller.") from error
        # Decoders answer damaged data with many kinds of exceptions: OSError, SyntaxError, ValueError, struct.error.
        except Exception as error:
            raise InputError(f"{path} is damaged: its header cannot be read ({error}).") from error
        with image:
            if image.width * image.height > MAX_PICTURE_PX:
                raise InputError(
                    f"{path} has {image.width}x{image.height} pixels, more than the {MAX_PICTURE_PX // 10**6} "
                    "megapixels allowed; make it smaller."
                )
            try:
                image.load()
                upright = ImageOps.exif_transpose(image)
            except Exception as error:
                raise InputError(f"{path} is damaged or cut short: its pixels cannot be decoded ({error}).") from error
            yield upright


def _file_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path} is a folder; give one picture.")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file; give one picture.")
        if status.st_size > MAX_PICTURE_BYTES:
            raise InputError(
                f"{path} has {status.st_size / 1e6:.0f} MB, more than the {MAX_PICTURE_BYTES // 10**6} MB allowed; "
                "make it smaller."
            )
        if status.st_size == 0:
            raise InputError(f"{path} is empty.")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"The picture {path} cannot be read: {reason}.") from error


def _mask_values(image: Image.Image) -> npt.NDArray[Any]:
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if alpha.min() != alpha.max():
            return alpha
    if image.mode == "F" or image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode == "P":
        colors = np.asarray(image.convert("RGB"))
        if (colors != colors[..., :1]).any():
            # Label maps in color (PASCAL VOC's): class 1 is a dark red, which by luminance would be background.
            void = np.asarray(image) == _VOID_LABEL
            return np.where(colors.any(axis=2) & ~void, 255, 0).astype(np.uint8)
    return np.asarray(image.convert("L"))
