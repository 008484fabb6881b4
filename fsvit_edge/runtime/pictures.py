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

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile

from fsvit_edge.runtime.errors import EnvironmentLacksError, InputError, package_error
from fsvit_edge.runtime.storage import atomic_write

PICTURE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),  # these need a recent Pillow, or pillow-heif
)
MAX_PICTURE_PX = 40_000_000
MAX_JPEG_PX = 250_000_000
"""Limit of a JPEG that its decoder can read at a half, a quarter or an eighth of its size, at most `MAX_PICTURE_PX`."""
MAX_MASK_BYTES = 200_000_000
"""Limit of a decoded mask, which is read at the size of its picture: 200 megapixels of gray, or 50 of color."""
MAX_PICTURE_BYTES = 64_000_000

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
_FORMATS_TEXT = "PNG, JPEG, BMP, WebP, TIFF, GIF, AVIF or HEIC"
_ENCODERS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}
_JPEG_QUALITY = 90
_IS_DEEP = "fsvit-edge: 16 bits per color"  # our own note in the information about a picture
_JPEG_START = b"\xff\xd8"
_START_OF_SCAN = 0xDA
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ORIENTATION, _FIRST_TURNED = 0x0112, 5  # EXIF: from this value on, rows of the file are columns of the picture


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """Read one picture as it is displayed, (H, W, 3) uint8 RGB: its EXIF orientation is applied.

    Gray, palette and CMYK pictures are converted. Of 16 bits, the upper 8 are kept; of the 12 bits in 16 that many
    cameras write, those of the 12: the fewest of 8, 10, 12, 14 or 16 that hold the brightest pixel. Transparent parts
    become white. An animation or a file of several pages gives its first picture. A JPEG of more than 40 megapixels is
    read at a half, a quarter or an eighth of its size; `full_size` tells what it was.

    Raises:
        InputError: The file is missing, empty, damaged, too large, of another format, or not a regular file.
        EnvironmentLacksError: It is a HEIC or AVIF picture, and what decodes it is not installed.
    """
    return decode_image(_file_bytes(Path(path)), str(path))


def decode_image(data: bytes, what: str) -> npt.NDArray[np.uint8]:
    """Decode the bytes of a picture file; `what` is how errors call it, to start a sentence. Raises as `read_image`."""
    with decoded(data, what) as image:
        if image.mode == "F":
            raise InputError(f"{what} has floating-point pixels; save it with 8 or 16 bits per channel.")
        if image.mode.startswith("I"):
            return np.repeat(_upper_bits(np.clip(np.asarray(image), 0, 65535))[..., None], 3, axis=2)
        is_deep = image.info[_IS_DEEP]
        if image.has_transparency_data:
            image = image.convert("RGBA")
            paper = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(paper, image)
        rgb = np.array(image if image.mode == "RGB" else image.convert("RGB"))
        if is_deep and rgb.max() < 1 << 6:
            # Pillow keeps the upper 8 bits of 16-bit colors; with at most 14 bits in them, that is too dark.
            deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
            if deep is not None and deep.dtype == np.uint16:
                rgb = _upper_bits(deep[..., ::-1])
    return rgb


def read_with_size(path: Path) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """Return what `read_image` and `full_size` do, for one read of the file."""
    return decode_with_size(_file_bytes(path), str(path))


def decode_with_size(data: bytes, what: str) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """Return the same of the bytes of a picture file, as `decode_image` takes them."""
    return decode_image(data, what), _full_size_of(data, what)


def full_size(path: Path) -> tuple[int, int]:
    """Return height and width of a picture as it is displayed, from its header; raises like `read_image`."""
    return _full_size_of(_file_bytes(path), str(path))


def _full_size_of(data: bytes, what: str) -> tuple[int, int]:
    with _opened(data, what) as image:
        width, height = image.size
        is_turned = image.getexif().get(_ORIENTATION, 1) >= _FIRST_TURNED
    return (width, height) if is_turned else (height, width)


def reading_scale(num_pixels: int) -> int | None:
    """By how much a JPEG of so many pixels, or its mask, is read smaller: 1, 2, 4 or 8; None if they are too many."""
    return next((scale for scale in (1, 2, 4, 8) if num_pixels <= MAX_PICTURE_PX * scale**2), None)


def write_image(path: Path, rgb: npt.NDArray[np.uint8]) -> None:
    """Write one (H, W, 3) uint8 RGB picture, whole or not at all, in the format of its suffix; see `atomic_write`."""
    encoder = _ENCODERS.get(path.suffix.lower())
    if encoder is None:
        raise InputError(f"{path} cannot be written as a picture; end its name in one of {', '.join(_ENCODERS)}.")
    atomic_write(path, _encoded(rgb, encoder))


def encode_jpeg(rgb: npt.NDArray[np.uint8]) -> bytes:
    """Return what `write_image` writes of (H, W, 3) uint8 RGB into a .jpg."""
    return _encoded(rgb, "JPEG")


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures of a folder, by their suffixes, in natural order (2 before 10), without hidden files."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != ".")
    return sorted(files, key=lambda path: natural_order(path.name))


def natural_order(name: str) -> list[tuple[int, str]]:
    """The key by which names are sorted as people count: 2 before 10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part) if part.isdecimal() else -1, part) for part in parts]


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


@contextmanager
def decoded_file(path: Path, mask_of: tuple[int, int] | None = None) -> Iterator[Image.Image]:
    """Decode a picture file for Pillow, upright, as `decoded` does; raises as `read_image`."""
    with decoded(_file_bytes(path), str(path), mask_of) as image:
        yield image


@contextmanager
def decoded(data: bytes, what: str, mask_of: tuple[int, int] | None = None) -> Iterator[Image.Image]:
    """Decode the bytes of a picture file.

    Args:
        data: The file.
        what: How errors call it, to start a sentence.
        mask_of: Height and width of the picture that this is a mask of. A mask of more than 40 megapixels, which is
            that of a JPEG that was read smaller, is read as much smaller: each pixel is one of the mask's.
    """
    advice = "make it smaller" if mask_of is None else f"save it with {mask_of[1]}x{mask_of[0]}, as its picture is read"
    with _opened(data, what, advice) as image:
        size, shrink = image.width * image.height, 1
        scale = reading_scale(size)
        if isinstance(image, JpegImageFile) and size <= MAX_JPEG_PX and _is_read_in_rows(image, data):
            assert scale is not None
            image.draft(None, (image.width // scale, image.height // scale))
        elif (
            scale is not None
            and sorted(mask_of or ()) == sorted(-(-side // scale) for side in image.size)
            and size * _pixel_bytes(image.mode) <= MAX_MASK_BYTES
        ):
            shrink = scale
        elif size > MAX_PICTURE_PX:
            if mask_of is None and isinstance(image, JpegImageFile) and size <= MAX_JPEG_PX:
                advice += ", or save it as a JPEG that is not progressive"
            raise InputError(
                f"{what} has {image.width}x{image.height} pixels, more than the {MAX_PICTURE_PX // 10**6} "
                f"megapixels allowed; {advice}."
            )
        is_deep = any(";16" in str(tile) for tile in getattr(image, "tile", ()))
        try:
            image.load()
            # In place and, below, converted only if need be: a copy of a large picture takes as long as decoding it.
            ImageOps.exif_transpose(image, in_place=True)
        except Exception as error:
            raise InputError(f"{what} is damaged or cut short: its pixels cannot be decoded ({error}).") from error
        if shrink > 1:
            image_format, (width, height) = image.format, image.size
            image = image.resize((-(-width // shrink), -(-height // shrink)), Image.Resampling.NEAREST)
            image.format = image_format
        image.info[_IS_DEEP] = is_deep
        yield image


def _pixel_bytes(mode: str) -> int:
    """What a pixel takes in Pillow's memory, where colors have four bytes."""
    return 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4


@contextmanager
def _opened(data: bytes, what: str, advice: str = "make it smaller") -> Iterator[Image.Image]:
    """Yield a picture of which only the header has been read, and decode what is asked of it without warnings."""
    formats = _formats(data, what)
    with warnings.catch_warnings():
        # Pillow warns about sizes and EXIF details; our own limits decide, in one sentence or not at all.
        warnings.simplefilter("ignore")
        try:
            try:
                image: Image.Image = Image.open(BytesIO(data), formats=formats)
            except Image.DecompressionBombError:
                if not data.startswith(_JPEG_START):
                    raise
                image = JpegImageFile(BytesIO(data))
        except UnidentifiedImageError as error:
            raise InputError(f"{what} is damaged or not a {_FORMATS_TEXT} picture.") from error
        except Image.DecompressionBombError as error:
            raise InputError(f"{what} has more than {MAX_PICTURE_PX // 10**6} megapixels; {advice}.") from error
        # Decoders answer damaged data with many kinds of exceptions: OSError, SyntaxError, ValueError, struct.error.
        except Exception as error:
            raise InputError(f"{what} is damaged: its header cannot be read ({error}).") from error
        with image:
            yield image


def _formats(data: bytes, what: str) -> tuple[str, ...]:
    """The formats that a file may have; an EnvironmentLacksError if what decodes it is not installed."""
    if data[4:8] != b"ftyp":
        return _FORMATS
    brands = data[8:64]
    if b"avif" in brands or b"avis" in brands:
        if not features.check("avif"):
            raise EnvironmentLacksError(
                f"{what} is an AVIF picture, which this Pillow cannot read; try: pip install --upgrade pillow."
            )
        return ("AVIF",)
    if not any(brand in brands for brand in _HEIC_BRANDS):
        return _FORMATS
    try:
        from pillow_heif import register_heif_opener
    except (ImportError, OSError) as error:
        install = 'pip install "fsvit-edge[heic]", or save it as a JPEG'
        raise package_error(f"{what} is a HEIC picture: it needs pillow-heif", "pillow_heif", install, error) from error
    register_heif_opener()
    return ("HEIF",)


def _is_read_in_rows(image: JpegImageFile, data: bytes) -> bool:
    """Whether a JPEG is in one scan, so that decoding it smaller needs no memory for the whole of it."""
    if "progressive" in image.info:
        return False
    position = len(_JPEG_START)
    while data[position : position + 1] == b"\xff":
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _START_OF_SCAN:
            return data[position + 4] == image.layers
        position += 2 + length
    return False


def _upper_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale values of 8, 10, 12, 14 or 16 bits, the fewest that hold the highest, to 8 bits."""
    highest = int(values.max())
    bits = next(bits for bits in (8, 10, 12, 14, 16) if highest < 1 << bits)
    return (values >> (bits - 8)).astype(np.uint8)


def _encoded(rgb: npt.NDArray[np.uint8], encoder: str) -> bytes:
    encoded = BytesIO()
    Image.fromarray(rgb).save(encoded, encoder, quality=_JPEG_QUALITY)
    return encoded.getvalue()


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
