"""Preprocessing: from any RGB picture to the square uint8 picture that the encoder reads.

Training, calibration and the device all use this one. Normalization is inside the encoder's graph.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DESCRIPTION = "RGB uint8, resized to a square by antialiased bilinear filtering (Pillow's BILINEAR), aspect not kept"

_ROWS_PER_PRODUCT = 4
"""Output rows computed by one matrix product: 2 to 8 were equally fast, 1 and 16 slower (720p to 128 and 400 px)."""

Block = tuple[slice, slice, npt.NDArray[np.float32]]


def check_rgb(rgb: npt.NDArray[np.uint8], what: str) -> None:
    """Refuse an array that is not an (H, W, 3) uint8 picture with an InputError, which starts with `what`."""
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        got = f"{rgb.dtype} {rgb.shape}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
        raise InputError(f"{what} must be an RGB picture, uint8 of shape (height, width, 3); got {got}.")


def resize_image(rgb: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 RGB to (size, size, 3) with an antialiased bilinear filter.

    The weights are Pillow's, which the published numbers were measured with; the result differs from Pillow's by at
    most one gray level, because Pillow also rounds between its two passes. Two banded matrix products in numpy take a
    third to a half of Pillow's time on a 1280 x 720 frame. An InputError refuses anything but such an array.
    """
    check_rgb(rgb, "The picture")
    height, width, _ = rgb.shape
    if (height, width) == (size, size):
        return rgb
    rows = rgb.reshape(height, width * 3)
    squashed = np.empty((size, width * 3), np.float32)
    for out, taken, weights in _vertical_blocks(height, size):
        # The few rows of a block stay in the CPU's cache; the whole picture in float32 would be written and read again.
        np.matmul(weights, rows[taken].astype(np.float32), out=squashed[out])
    resized = np.empty((size, size * 3), np.float32)
    for out, taken, weights in _horizontal_blocks(width, size):
        np.matmul(squashed[:, taken], weights, out=resized[:, out])
    resized += np.float32(0.5)
    rounded: npt.NDArray[np.uint8] = resized.astype(np.uint8).reshape(size, size, 3)
    return rounded


def resize_mask(mask: npt.NDArray[np.bool_] | npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Resize an (H, W) mask or label map to (size, size) uint8, nearest neighbor; True becomes 1."""
    return resize_nearest(mask, (size, size))


def resize_nearest(
    mask: npt.NDArray[np.bool_] | npt.NDArray[np.uint8], size_hw: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Resize an (H, W) mask or label map to `size_hw`, uint8, nearest neighbor; True becomes 1."""
    (height, width), (new_height, new_width) = mask.shape, size_hw
    rows = ((np.arange(new_height) + 0.5) * height / new_height).astype(np.intp)
    columns = ((np.arange(new_width) + 0.5) * width / new_width).astype(np.intp)
    nearest: npt.NDArray[np.uint8] = mask[rows[:, None], columns].astype(np.uint8)
    return nearest


def blocks_of_rows(matrix: npt.NDArray[np.float32], rows: int) -> tuple[Block, ...]:
    """Cut a banded matrix into blocks of rows: the rows, the columns that are not all 0 in them, and the weights."""
    blocks = []
    for start in range(0, len(matrix), rows):
        band = matrix[start : start + rows]
        used = np.flatnonzero(band.any(axis=0))
        taken = slice(int(used[0]), int(used[-1]) + 1)
        blocks.append((slice(start, start + len(band)), taken, np.ascontiguousarray(band[:, taken])))
    return tuple(blocks)


def _filter_matrix(length: int, size: int) -> npt.NDArray[np.float32]:
    """Return the (size, length) matrix of a triangle filter whose half-width is the scale, at least one pixel."""
    scale = length / size
    half_width = max(scale, 1.0)
    centers = (np.arange(size) + 0.5) * scale
    matrix = np.zeros((size, length), np.float64)
    for row, center in enumerate(centers):
        first = max(int(center - half_width + 0.5), 0)
        last = min(int(center + half_width + 0.5), length)
        weights = 1.0 - np.abs((np.arange(first, last) - center + 0.5) / half_width)
        matrix[row, first:last] = np.clip(weights, 0.0, None)
    normalized: npt.NDArray[np.float32] = (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalized


@lru_cache(maxsize=16)
def _vertical_blocks(length: int, size: int) -> tuple[Block, ...]:
    return blocks_of_rows(_filter_matrix(length, size), _ROWS_PER_PRODUCT)


@lru_cache(maxsize=16)
def _horizontal_blocks(length: int, size: int) -> tuple[Block, ...]:
    """Return the vertical blocks for interleaved RGB, to be multiplied from the right."""
    three = np.eye(3, dtype=np.float32)
    return tuple(
        (slice(out.start * 3, out.stop * 3), slice(taken.start * 3, taken.stop * 3), np.kron(band, three).T.copy())
        for out, taken, band in _vertical_blocks(length, size)
    )
