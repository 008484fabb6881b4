import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, features

from fsvit_edge.runtime import pictures
from fsvit_edge.runtime.errors import EnvironmentLacksError, InputError
from fsvit_edge.runtime.masks import read_mask
from fsvit_edge.runtime.pictures import full_size, pictures_in, read_image, thumbnail, write_image

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
        (Image.fromarray(half((4, 6), 16 * 7, 4095, np.uint16)), [(7,) * 3, (255,) * 3]),  # 12 bits in 16
        (Image.fromarray(half((4, 6), 4 * 7, 1023, np.uint16)), [(7,) * 3, (255,) * 3]),
        (Image.fromarray(half((4, 6), 64 * 7, 16383, np.uint16)), [(7,) * 3, (255,) * 3]),
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


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_colors_of_12_bits_in_16_are_not_black(tmp_path: Path, suffix: str, bits: int) -> None:
    colors = np.array([[[255, 100, 7], [0, 50, 200]]], np.uint16)
    path = tmp_path / f"picture{suffix}"
    assert cv2.imwrite(str(path), (colors << (bits - 8))[..., ::-1])
    assert np.array_equal(read_image(path), colors)


def test_a_path_may_be_text(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.full((4, 6, 3), 200, np.uint8))
    assert read_image(str(tmp_path / "a.png")).shape == (4, 6, 3)
    assert read_mask(str(tmp_path / "a.png"), (4, 6)).all()
    with pytest.raises(InputError, match=r"nosuch\.png cannot be read"):
        read_image(str(tmp_path / "nosuch.png"))


def test_a_dark_picture_of_8_bits_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(RGB // 8).save(tmp_path / "dark.png")
    assert np.array_equal(read_image(tmp_path / "dark.png"), RGB // 8)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PICTURE_PX", 80 * 50)
    monkeypatch.setattr(pictures, "MAX_JPEG_PX", 500 * 500)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize(("width", "height", "scale"), [(80, 50, 1), (80, 56, 2), (168, 120, 4), (480, 480, 8)])
def test_a_jpeg_of_many_megapixels_is_read_smaller(tmp_path: Path, width: int, height: int, scale: int) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("L", (width, height), 40)
    picture.paste(Image.new("L", (width // 2, height), 200))
    picture.save(path, exif=exif)
    gray = read_image(path)[..., 0]
    assert gray.shape == (width // scale, height // scale)
    assert abs(gray[0, 0] - 200.0) <= 1
    assert abs(gray[-1, -1] - 40.0) <= 1
    assert full_size(path) == (width, height)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize(
    ("size", "options", "advice"),
    [
        ((80, 56), {"progressive": True}, r"make it smaller, or save it as a JPEG that is not progressive\.$"),
        ((501, 500), {}, r"make it smaller\.$"),
    ],
    ids=["progressive", "too large"],
)
def test_a_jpeg_that_needs_much_memory_is_refused(
    tmp_path: Path, size: tuple[int, int], options: dict[str, bool], advice: str
) -> None:
    Image.new("L", size).save(tmp_path / "photo.jpg", **options)
    with pytest.raises(InputError, match=f"allowed; {advice}"):
        read_image(tmp_path / "photo.jpg")


def test_a_huge_jpeg_is_refused_by_its_header(tmp_path: Path) -> None:
    Image.new("L", (16, 16)).save(tmp_path / "photo.jpg")
    data = (tmp_path / "photo.jpg").read_bytes()
    frame = data.index(b"\xff\xc0") + 5
    (tmp_path / "photo.jpg").write_bytes(data[:frame] + struct.pack(">HH", 60000, 60000) + data[frame + 4 :])
    with pytest.raises(InputError, match="has 60000x60000 pixels, more than the 40 megapixels allowed"):
        read_image(tmp_path / "photo.jpg")


@pytest.mark.parametrize("suffix", [".heic", ".avif", ".jfif"])
def test_pictures_of_phones_are_read(tmp_path: Path, suffix: str) -> None:
    plain = np.full((64, 80, 3), (200, 100, 50), np.uint8)
    path = tmp_path / f"picture{suffix}"
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").from_pillow(Image.fromarray(plain)).save(path)
    else:
        Image.fromarray(plain).save(path)
    assert np.abs(read_image(path).astype(int) - plain).max() <= 4
    assert pictures_in(tmp_path) == [path]


@pytest.mark.parametrize(
    ("brand", "missing", "remedy"),
    [(b"heic", "pillow_heif", r'pip install "fsvit-edge\[heic\]"'), (b"avif", "avif", "pip install --upgrade pillow")],
)
def test_what_reads_a_format_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brand: bytes, missing: str, remedy: str
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(features, "check", lambda feature: feature != missing)
    path = tmp_path / "picture"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(12))
    with pytest.raises(EnvironmentLacksError, match=remedy):
        read_image(path)


def test_a_decoder_that_is_installed_and_does_not_load_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pillow_heif.py").write_text("raise OSError('libheif.so.1: no such file')")
    (tmp_path / "picture").write_bytes(b"\0\0\0\x18ftypheic" + bytes(12))
    monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        EnvironmentLacksError, match=r"cannot be loaded \(libheif\.so\.1: no such file\); see: .*doctor"
    ):
        read_image(tmp_path / "picture")


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
