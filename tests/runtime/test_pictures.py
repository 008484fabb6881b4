import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.masks import read_mask
from fsvit_edge.runtime.pictures import read_image, thumbnail, write_image

RGB = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def half(shape: tuple[int, ...], low: int, high: int, dtype: type = np.uint8) -> np.ndarray:
    values = np.full(shape, low, dtype)
    values[:, shape[1] // 2 :] = high
    return values


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_a_lossless_picture_is_read_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(read_image(path), RGB)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".bmp", ".webp"])
def test_what_is_written_can_be_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "made" / f"picture{suffix}"
    plain = np.full((16, 20, 3), (200, 100, 50), np.uint8)
    write_image(path, plain)
    assert np.abs(read_image(path).astype(int) - plain).max() <= 3


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(half((4, 6), 10, 250)), [(10,) * 3, (250,) * 3]),
        (Image.fromarray(half((4, 6), 0, 255)).convert("1"), [(0,) * 3, (255,) * 3]),
        (Image.fromarray(half((4, 6), 256 * 7, 65535, np.uint16)), [(7,) * 3, (255,) * 3]),
        (Image.new("RGB", (6, 4), (255, 0, 0)).convert("P"), [(255, 0, 0)] * 2),
        (Image.new("RGB", (6, 4), (255, 0, 0)).convert("CMYK"), [(255, 0, 0)] * 2),
        (Image.new("RGBA", (6, 4), (0, 0, 0, 0)), [(255,) * 3] * 2),  # transparent on white
        (Image.new("RGBA", (6, 4), (10, 20, 30, 255)), [(10, 20, 30)] * 2),
        (Image.new("LA", (6, 4), (90, 255)), [(90,) * 3] * 2),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_kind_of_pixel_becomes_8_bit_rgb(
    tmp_path: Path, image: Image.Image, expected: list[tuple[int, int, int]]
) -> None:
    path = tmp_path / "picture"
    image.save(path, "TIFF" if image.mode == "CMYK" else "PNG")
    rgb = read_image(path)
    assert (rgb.dtype, rgb.shape) == (np.uint8, (4, 6, 3))
    assert [tuple(rgb[0, 0]), tuple(rgb[0, -1])] == expected


def test_the_exif_orientation_turns_picture_and_mask(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rows are columns
    upright = half((8, 6), 0, 255)
    Image.fromarray(np.rot90(upright)).save(tmp_path / "mask.png", exif=exif)
    Image.fromarray(np.rot90(upright)).convert("RGB").save(tmp_path / "picture.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "picture.png")[..., 0], upright)
    assert np.array_equal(read_mask(tmp_path / "mask.png", (8, 6)), upright > 0)


def make_truncated(path: Path) -> None:
    Image.fromarray(RGB).save(path)
    os.truncate(path, path.stat().st_size // 2)


def header(width: int, height: int) -> Callable[[Path], object]:
    """A picture without any pixel, so an answer other than "damaged" proves that the header alone decided."""
    return lambda path: path.write_bytes(png_header(width, height))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: None, "cannot be read: No such file or directory"),
        (Path.mkdir, "is a folder; give one picture"),
        (os.mkfifo, "is not a regular file"),
        (Path.touch, "is empty"),
        (lambda path: path.write_bytes(b"\x00\xff" * 99), "is damaged or not a PNG, JPEG"),
        (lambda path: Image.fromarray(RGB).save(path, "PPM"), "not a PNG, JPEG"),
        (make_truncated, "damaged or cut short: its pixels cannot be decoded"),
        (lambda path: path.touch() or os.truncate(path, 64_000_001), "has 64 MB, more than the 64 MB allowed"),
        (header(8000, 5001), "has 8000x5001 pixels, more than the 40"),
        (header(10000, 10000), "has 10000x10000 pixels"),  # Pillow would warn
        (header(30000, 30000), "has more than 40 megapixels"),  # Pillow raises
        (header(8000, 5000), "damaged or cut short"),  # just allowed
    ],
)
def test_an_unusable_picture_is_refused_by_name(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    path = tmp_path / "picture.png"
    make(path)
    for read in (read_image, lambda path: read_mask(path, (4, 4))):
        with pytest.raises(InputError, match=reason) as raised:
            read(path)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_other_unusable_pictures_and_names_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match="has floating-point pixels; save it with 8 or 16 bits"):
        read_image(tmp_path / "float.tif")  # a mask may hold floats
    with pytest.raises(InputError, match="cannot be read: embedded null byte"):
        read_image(Path("a\0b.png"))
    with pytest.raises(InputError, match=r"end its name in one of \.png"):
        write_image(tmp_path / "picture.tga", RGB)


@pytest.mark.parametrize(
    ("shape", "longest_px", "expected"),
    [((100, 50), 10, (10, 5)), ((50, 100), 10, (5, 10)), ((8, 6), 10, (8, 6)), ((400, 1), 10, (10, 1))],
)
def test_a_thumbnail_fits_and_keeps_the_shape(
    shape: tuple[int, int], longest_px: int, expected: tuple[int, int]
) -> None:
    small = thumbnail(np.full((*shape, 3), 77, np.uint8), longest_px)
    assert small.shape == (*expected, 3)
    assert small.dtype == np.uint8
    assert (small == 77).all()
