import numpy as np
import pytest
from PIL import Image

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, read_manifest
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.preprocess import (
    DESCRIPTION,
    IMAGENET_MEAN,
    IMAGENET_STD,
    _filter_matrix,
    check_rgb,
    resize_image,
    resize_mask,
)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 7919 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow(rgb: np.ndarray, size: int, how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).resize((size, size), how))


def distance(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        *((480, 640, 128), (1080, 1920, 400)),  # a camera's frame; full HD to the published size
        *((37, 61, 128), (30, 500, 128)),  # enlarging both sides, or one
        *((129, 127, 128), (131, 257, 63), (64, 64, 1)),
        *((1, 200, 128), (200, 1, 128), (1, 1, 128), (3000, 2, 50)),
    ],
)
def test_resizing_is_pillows_to_one_gray_level(height: int, width: int, size: int) -> None:
    rgb = noise(height, width)
    before = rgb.copy()
    resized = resize_image(rgb, size)
    assert np.array_equal(rgb, before)
    assert (resized.dtype, resized.shape) == (np.uint8, (size, size, 3))
    assert distance(resized, pillow(rgb, size, Image.Resampling.BILINEAR)) <= 1


@pytest.mark.parametrize(("height", "width", "size"), [(720, 1280, 400), (480, 640, 128), (37, 61, 128)])
def test_every_gray_level_is_that_of_whole_matrices(height: int, width: int, size: int) -> None:
    rgb = noise(height, width)
    down, across = (_filter_matrix(length, size).astype(np.float64) for length in (height, width))
    plain = np.einsum("yh,xw,hwc->yxc", down, across, rgb.astype(np.float64), optimize=True)
    decided = np.abs(plain + 0.5 - np.round(plain + 0.5)) > 1e-3  # elsewhere float32 may round either way
    assert decided.mean() > 0.99
    resized = resize_image(rgb, size)
    assert np.array_equal(resized[decided], (plain + 0.5)[decided].astype(np.uint8))
    assert not np.array_equal(resized[decided], plain[decided].astype(np.uint8))  # without rounding


@pytest.mark.parametrize("how", [Image.Resampling.NEAREST, Image.Resampling.BOX, Image.Resampling.BICUBIC])
def test_another_filter_would_be_noticed(how: Image.Resampling) -> None:
    rgb = noise(480, 640)
    assert distance(pillow(rgb, 128, how), pillow(rgb, 128, Image.Resampling.BILINEAR)) > 5


@pytest.mark.parametrize("color", [(0, 0, 0), (1, 1, 1), (254, 254, 254), (255, 255, 255), (0, 200, 0)])
def test_a_picture_of_one_color_keeps_it(color: tuple[int, int, int]) -> None:
    assert (resize_image(np.full((333, 777, 3), color, np.uint8), 128) == color).all()


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    rgb = noise(128, 128)
    assert np.array_equal(resize_image(rgb, 128), rgb)


def test_a_view_is_resized_like_its_copy() -> None:
    bgr = noise(240, 320)
    for view in (bgr[..., ::-1], bgr[::2, ::3], bgr.transpose(1, 0, 2)):
        assert np.array_equal(resize_image(view, 128), resize_image(view.copy(), 128))


@pytest.mark.parametrize(
    ("height", "width", "size"), [(480, 640, 128), (37, 61, 128), (5, 3, 8), (1, 9, 4), (128, 128, 128)]
)
def test_a_mask_takes_the_nearest_pixel(height: int, width: int, size: int) -> None:
    mask = noise(height, width)[..., 0] > 127
    resized = resize_mask(mask, size)
    assert (resized.dtype, resized.shape) == (np.uint8, (size, size))
    nearest = Image.fromarray(mask.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    assert np.array_equal(resized, np.asarray(nearest))


def test_a_mask_keeps_its_place() -> None:
    mask = np.zeros((40, 60), np.bool_)
    mask[:10, 45:] = True
    expected = np.zeros((8, 8), np.uint8)
    expected[:2, 6:] = 1
    assert np.array_equal(resize_mask(mask, 8), expected)


@pytest.mark.parametrize(
    ("picture", "got"),
    [
        (np.zeros((4, 5, 3)), "float64 (4, 5, 3)"),
        *(
            (np.zeros(shape, np.uint8), f"uint8 {shape}")
            for shape in ((4, 5), (4, 5, 4), (3, 4, 5), (0, 5, 3), (5, 0, 3), (1, 4, 5, 3))
        ),
        ([[[0, 0, 0]]], "list"),
        (None, "NoneType"),
    ],
)
def test_an_array_that_is_not_a_picture_is_refused_by_name(picture: np.ndarray, got: str) -> None:
    with pytest.raises(InputError) as refused:
        check_rgb(picture, "The frame")
    assert str(refused.value) == (f"The frame must be an RGB picture, uint8 of shape (height, width, 3); got {got}.")


def test_the_bundle_records_this_preprocessing() -> None:
    recorded = read_manifest(DEFAULT_BUNDLE).preprocessing
    assert recorded == {"resize": DESCRIPTION, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
