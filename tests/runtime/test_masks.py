"""Mask files: one file is read one way, by enrollment, data sets and the page."""

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fsvit_edge.learn.examples import picture_size_hw
from fsvit_edge.learn.folder import FolderFewShot
from fsvit_edge.page import frame_hub
from fsvit_edge.runtime import pictures
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.masks import VOID, read_mask, read_roles
from fsvit_edge.runtime.pictures import read_image

SIZE_HW = (12, 14)
OBJECT, RING = np.zeros(SIZE_HW, np.bool_), np.zeros(SIZE_HW, np.bool_)
OBJECT[3:9, 3:10] = True
RING[2:10, 2:11] = ~OBJECT[2:10, 2:11]
CORE = np.zeros(SIZE_HW, np.bool_)
CORE[4:8, 4:9] = True


def half(shape: tuple[int, ...], low: int, high: int, dtype: type = np.uint8) -> np.ndarray:
    values = np.full(shape, low, dtype)
    values[:, shape[1] // 2 :] = high
    return values


def painted(*layers: tuple[np.ndarray, object], background: object = 0, dtype: type = np.uint8) -> np.ndarray:
    channels = np.shape(background)
    values = np.full((*SIZE_HW, *channels), background, dtype)
    for where, value in layers:
        values[where] = value
    return values


def in_palette(numbers: np.ndarray, colors: dict[int, tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(numbers).convert("P")
    palette = [0] * 768
    for number, color in colors.items():
        palette[3 * number : 3 * number + 3] = color
    image.putpalette(palette)
    return image


BLACK, RED, GREEN, WHITE, VOC_VOID = (0, 0, 0), (128, 0, 0), (0, 128, 0), (255, 255, 255), (224, 224, 192)
FLOATS = np.where(OBJECT, 0.9, np.where(RING, 0.3, 0.02)).astype(np.float32)


@pytest.mark.parametrize(
    ("image", "void"),
    [
        (painted((OBJECT, 255)), False),
        (painted((OBJECT, 1)), False),
        (painted((OBJECT, 7)), False),
        (painted((OBJECT, 255), background=3), False),
        (painted((OBJECT, True)).astype(bool), False),
        (painted((OBJECT, 65535), dtype=np.uint16), False),
        (painted((OBJECT, 1), dtype=np.uint16), False),
        (painted((OBJECT, 26001), dtype=np.uint16), False),
        (painted((OBJECT, 1), dtype=np.float32), False),
        (FLOATS, False),
        (FLOATS * 255, False),
        # soft edges and unknown bands
        (painted((RING, 64), (OBJECT, 255)), False),
        (painted((RING, 100), (OBJECT, 255), (OBJECT & ~CORE, 200)), False),
        (painted((OBJECT, 255), (np.s_[0, 0], 3)), False),
        (painted((RING, 128), (np.s_[1], 128), (OBJECT, 255)), True),
        (painted((RING, 127), (np.s_[1], 127), (OBJECT, 255)), True),
        # label maps
        (painted((RING, 255), (OBJECT, 1)), True),
        (painted((RING, 255), (OBJECT, 15)), True),
        (painted((RING, 255), (OBJECT, 200)), True),
        (painted((RING[::-1], 255), (OBJECT, 15)), True),
        (painted((np.s_[:2, :4], 255), (OBJECT, 15)), True),
        (painted((RING, 65535), (OBJECT, 2), dtype=np.uint16), True),
        (painted((RING, 255), (OBJECT, 15), dtype=np.float32), True),
        (painted((RING, 255), (OBJECT, (9, 9, 9)), background=BLACK), True),
        (painted((RING, VOC_VOID), (OBJECT, RED), background=BLACK), True),
        (painted((RING, WHITE), (OBJECT, RED), background=BLACK), True),
        (painted((OBJECT, RED), background=BLACK), False),
        (in_palette(painted((RING, 255), (OBJECT, 1)), {1: RED, 255: VOC_VOID}), True),
        (in_palette(painted((RING, 2), (OBJECT, 0), background=1), {0: RED, 1: BLACK, 2: VOC_VOID}), True),
        (in_palette(painted((OBJECT, 1)), {1: WHITE}), False),
        (in_palette(painted((OBJECT, 1)), {}), False),
    ],
)
def test_every_reader_reads_a_mask_alike(tmp_path: Path, image: np.ndarray | Image.Image, void: bool) -> None:
    stored = image if isinstance(image, Image.Image) else Image.fromarray(image)
    suffix = ".tif" if stored.mode == "F" else ".png"
    for folder in ("images", "masks"):
        (tmp_path / "cup" / folder).mkdir(parents=True)
    for stem in "ab":
        noise = np.random.default_rng(ord(stem)).integers(0, 256, (*SIZE_HW, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "cup" / "images" / f"{stem}.png")
        path = tmp_path / "cup" / "masks" / f"{stem}{suffix}"
        stored.save(path)
    assert np.array_equal(read_mask(path, SIZE_HW), OBJECT)
    roles = FolderFewShot(tmp_path).read_mask(0)
    assert np.array_equal(roles == 1, OBJECT)
    assert (roles == VOID).any() == void
    if suffix == ".png":
        given = frame_hub.decode_mask(base64.b64encode(path.read_bytes()).decode(), SIZE_HW)
        assert np.array_equal(given, OBJECT)


@pytest.mark.parametrize(
    ("image", "values"),
    [
        (painted((OBJECT, 3), (CORE, 7)), "0, 3, 7"),
        (painted((RING, 255), (OBJECT, 3), (CORE, 7)), "0, 3, 7, 255"),
        (painted((np.s_[:6], 1), (np.s_[6:], 2), (OBJECT, 3)), "1, 2, 3"),
        (painted((np.s_[:3], 255), (CORE, 100)), "0, 100, 255"),
        (painted((OBJECT, 15), background=255), "15, 255"),
        (painted((OBJECT, WHITE), (np.s_[:2, :2], RED), background=BLACK), "#000000, #800000, #ffffff"),
        (painted((OBJECT, RED), (CORE, GREEN), (RING, VOC_VOID), background=BLACK), "#0{6}, #008000, #80{5}, #e0e0c0"),
        (in_palette(painted((OBJECT, 1), (CORE, 2)), {1: RED, 2: GREEN}), "#000000, #008000, #800000"),
        (painted((OBJECT, RED), background=WHITE), "#800000, #ffffff"),
        (in_palette(painted((OBJECT, 1)), {0: WHITE, 1: RED}), "#800000, #ffffff"),
        (painted((RING, 255), (np.s_[2], 200), (OBJECT, 200)), "0, 200, 255"),
        (painted((OBJECT, 254), background=255), "254, 255"),
        (painted((OBJECT, 255), background=200), "200, 255"),
        (painted((OBJECT, 65535), background=65534, dtype=np.uint16), "65534, 65535"),
        (painted(*((np.s_[row], 200 + row) for row in range(12)), (OBJECT, 255)), "200, 201, 202, .*"),
        (painted((OBJECT, (250, 251, 252)), background=WHITE), "251, 255"),
        (
            Image.merge(
                "RGBA", [*Image.new("RGB", (14, 12)).split(), Image.fromarray(painted((OBJECT, 254), background=255))]
            ),
            "254, 255",
        ),
        (painted(*((np.s_[row], 5 * row) for row in range(12)), (OBJECT, 80)), "0, 5, 10, 15, 20, 25, 30, 35, ..."),
    ],
)
def test_a_mask_that_can_be_read_in_several_ways_is_refused_with_its_values(
    tmp_path: Path, image: np.ndarray | Image.Image, values: str
) -> None:
    stored = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stored.save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=rf"mask\.png .*the rest .*Its values: {values}\.$"):
        read_mask(tmp_path / "mask.png", SIZE_HW)


def test_a_jpeg_has_no_labels(tmp_path: Path) -> None:
    Image.fromarray(painted((RING, 20), (OBJECT, 230))).save(tmp_path / "mask.jpg", quality=95)
    assert np.array_equal(read_mask(tmp_path / "mask.jpg", SIZE_HW), OBJECT)
    Image.fromarray(painted((RING, 255), (OBJECT, 15))).save(tmp_path / "map.jpg", quality=95)
    with pytest.raises(InputError, match="can be read in several ways"):
        read_mask(tmp_path / "map.jpg", SIZE_HW)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("L", (14, 12), 255),
        Image.new("L", (14, 12), 200),
        Image.new("1", (14, 12), 1),
        Image.fromarray(np.ones(SIZE_HW, np.float32)),
    ],
)
def test_an_object_may_fill_its_picture(tmp_path: Path, image: Image.Image) -> None:
    image.save(tmp_path / "mask.tif")
    assert read_mask(tmp_path / "mask.tif", SIZE_HW).all()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_photograph_is_no_mask(tmp_path: Path, suffix: str) -> None:
    y, x = np.indices((256, 256), np.uint8)
    photograph = np.dstack([x, y, x // 2 + y // 2])
    Image.fromarray(photograph).save(tmp_path / f"photo.{suffix}")
    with pytest.raises(
        InputError, match=r"has the many colors of a photograph, .* the object white and the rest black"
    ):
        read_mask(tmp_path / f"photo.{suffix}", (256, 256))
    soft = cv2.circle(np.zeros((256, 256, 3), np.uint8), (128, 128), 60, (90, 255, 140), -1)
    Image.fromarray(cv2.GaussianBlur(soft, (15, 15), 0)).save(tmp_path / "soft.jpg", quality=60)
    assert len(Image.open(tmp_path / "soft.jpg").getcolors(65536)) > 256  # the control: as many colors, of one hue
    assert read_mask(tmp_path / "soft.jpg", (256, 256)).sum() == pytest.approx(np.pi * 60**2, rel=0.05)


def test_probabilities_that_are_nowhere_below_a_half_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.where(OBJECT, 0.75, 1.0).astype(np.float32)).save(tmp_path / "mask.tif")
    with pytest.raises(InputError, match=r"several ways; .*Its values: 0\.75, 1\.$"):
        read_mask(tmp_path / "mask.tif", SIZE_HW)


@pytest.mark.parametrize("quality", [60, 75, 90, 95])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_that_was_a_label_map_of_0_1_and_void_is_refused(tmp_path: Path, quality: int, mode: str) -> None:
    """Only the border would be enrolled. In a mask of black and white, black is 0 away from the edges."""
    for label in (1, 0):
        values = np.zeros((160, 200), np.uint8)
        values[20:140, 30:170] = 255
        values[24:136, 34:166] = label
        Image.fromarray(values).convert(mode).save(tmp_path / f"{label}.jpg", quality=quality)
    with pytest.raises(InputError, match="can be read in several ways"):
        read_mask(tmp_path / "1.jpg", (160, 200))
    hoop = read_mask(tmp_path / "0.jpg", (160, 200))
    assert (hoop[80, 100], hoop[22, 100], hoop[5, 5]) == (False, True, False)


def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full(SIZE_HW, np.nan, np.float32)).save(tmp_path / "mask.tif")
    with pytest.raises(InputError, match="has pixels that are no numbers; save it with 8 bits"):
        read_roles(tmp_path / "mask.tif", SIZE_HW)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(half((4, 6), 127, 128)),
        Image.fromarray(half((4, 6), 0, 1)),
        Image.fromarray(half((4, 6), 32767, 32768, np.uint16)),
        Image.fromarray(half((4, 6), 0, 1, np.uint16)),
        Image.fromarray(half((4, 6), 0, 255)).convert("1"),
        Image.fromarray(half((4, 6, 3), 20, 230)),
        Image.merge("RGBA", [Image.new("L", (6, 4), 0)] * 3 + [Image.fromarray(half((4, 6), 0, 255))]),  # a cut-out
        Image.merge("RGBA", [Image.fromarray(half((4, 6), 0, 255))] * 3 + [Image.new("L", (6, 4), 255)]),  # opaque
    ],
    ids=lambda image: image.mode,
)
def test_the_bright_half_of_a_mask_is_foreground(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "mask.png"
    image.save(path)
    mask = read_mask(path, (4, 6))
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, half((4, 6), 0, 1).astype(bool))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((6, 4), 255, np.uint8), "is 4x6 pixels, but its picture is 6x4; give a mask of the picture's size"),
        (np.zeros((4, 6), np.uint8), "marks no pixel; paint the object white"),
        (np.full((4, 6), 127, np.uint8), "marks no pixel; paint the object white"),
    ],
)
def test_an_unusable_mask_is_refused(tmp_path: Path, values: np.ndarray, reason: str) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(values).save(path)
    with pytest.raises(InputError, match=reason):
        read_mask(path, (4, 6))


def test_a_label_map_in_voc_colors_marks_everything_but_black_and_void(tmp_path: Path) -> None:
    labels = np.zeros((6, 8), np.uint8)
    labels[1:3, 2:4] = 1
    labels[4, 4] = 255
    picture = Image.fromarray(labels).convert("P")
    palette = [0] * 768
    palette[3:6], palette[765:] = [128, 0, 0], [224, 224, 192]
    picture.putpalette(palette)
    picture.save(tmp_path / "mask.png")

    assert np.array_equal(read_mask(tmp_path / "mask.png", (6, 8)), labels == 1)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PICTURE_PX", 80 * 50)
    monkeypatch.setattr(pictures, "MAX_MASK_BYTES", 5 * 80 * 50)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("size", [(81, 57), (80, 62)])
@pytest.mark.parametrize("mode", ["L", "1", "P", "I;16", "RGB", "RGBA"])
def test_a_mask_of_the_size_of_a_picture_that_is_read_smaller_is_read_as_much_smaller(
    tmp_path: Path, size: tuple[int, int], mode: str
) -> None:
    Image.new("L", size).save(tmp_path / "photo.jpg")
    mask = Image.new("L", size)
    mask.paste(255, (10, 4, 60, 40))
    if mode == "I;16":
        Image.fromarray(np.asarray(mask).astype(np.uint16)).save(tmp_path / "mask.png")
    else:
        (Image.merge("RGBA", [mask] * 4) if mode == "RGBA" else mask.convert(mode)).save(tmp_path / "mask.png")
    height, width = read_image(tmp_path / "photo.jpg").shape[:2]
    assert (width, height) == (-(-size[0] // 2), -(-size[1] // 2))
    assert picture_size_hw(tmp_path / "photo.jpg") == (height, width)
    rows, columns = np.nonzero(read_mask(tmp_path / "mask.png", (height, width)))
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == [2, 19, 5, 29]


@pytest.mark.usefixtures("small_limits")
def test_a_mask_that_is_too_large_is_refused_with_the_size_to_give(tmp_path: Path) -> None:
    for name, image in (
        ("rgb", Image.new("RGB", (101, 50))),  # each pixel takes four bytes
        ("gray", Image.new("L", (201, 100))),
        ("huge", Image.new("1", (13500, 13500))),  # Pillow refuses it
    ):
        image.save(tmp_path / f"{name}.png")
        with pytest.raises(InputError, match=r"megapixels.*; save it with 40x31, as its picture is read\.$"):
            read_mask(tmp_path / f"{name}.png", (31, 40))
    Image.new("L", (40, 31)).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="is 40x31 pixels, but its picture is 80x62"):
        read_mask(tmp_path / "small.png", (62, 80))


def test_a_mask_in_the_colors_of_lab_is_read(tmp_path: Path) -> None:
    neutral = Image.new("L", SIZE_HW[::-1], 128)
    Image.merge("LAB", [Image.fromarray(painted((OBJECT, 255))), neutral, neutral]).save(tmp_path / "mask.tif")
    assert np.array_equal(read_mask(tmp_path / "mask.tif", SIZE_HW), OBJECT)
