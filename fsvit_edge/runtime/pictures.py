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

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.storage import atomic_write

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
MAX_PICTURE_PX = 40_000_000
MAX_PICTURE_BYTES = 64_000_000

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
    with decoded_file(path) as image:
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
def decoded_file(path: Path) -> Iterator[Image.Image]:
    """Decode a picture file for Pillow, upright; raises as `read_image`."""
    with decoded(_file_bytes(path), str(path)) as image:
        yield image


@contextmanager
def decoded(data: bytes, what: str) -> Iterator[Image.Image]:
    """Decode the bytes of a picture file; `what` is how errors call it, to start a sentence."""
    with warnings.catch_warnings():
        # Pillow warns about sizes and EXIF details; our own limits below decide, in one sentence or not at all.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise InputError(f"{what} is damaged or not a {_FORMATS_TEXT} picture.") from error
        except Image.DecompressionBombError as error:
            raise InputError(f"{what} has more than {MAX_PICTURE_PX // 10**6} megapixels; make it smaller.") from error
        # Decoders answer damaged data with many kinds of exceptions: OSError, SyntaxError, ValueError, struct.error.
        except Exception as error:
            raise InputError(f"{what} is damaged: its header cannot be read ({error}).") from error
        with image:
            if image.width * image.height > MAX_PICTURE_PX:
                raise InputError(
                    f"{what} has {image.width}x{image.height} pixels, more than the {MAX_PICTURE_PX // 10**6} "
                    "megapixels allowed; make it smaller."
                )
            try:
                image.load()
                upright = ImageOps.exif_transpose(image)
            except Exception as error:
                raise InputError(f"{what} is damaged or cut short: its pixels cannot be decoded ({error}).") from error
            upright.format = image.format
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
