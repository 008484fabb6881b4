"""From the head's small probability maps to the frame's size.

Two-class softmax is the logistic function of the difference of two logits, and bilinear interpolation is linear, so
interpolating the log-odds and then deciding is what the published procedure computes for one shot (it enlarges the
logits before the softmax). With several shots it enlarges each shot's and averages; we enlarge the average.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Maps = npt.NDArray[np.float32]

_CERTAIN = 2.0**-23
"""Probabilities closer than this to 0 or 1 count as this: in float32 the log-odds of both are then equally large."""
_BELOW_ZERO = np.nextafter(np.float32(0), np.float32(-1))


def upsample_foreground(foreground: Maps, size_hw: tuple[int, int]) -> Maps:
    """Enlarge P(foreground) (ways, h, w) to (ways, H, W), bilinear with align_corners on the log-odds."""
    rows, columns = (_interpolation_matrix(n, m) for n, m in zip(foreground.shape[1:], size_hw, strict=True))
    return np.asarray(1 / (1 + np.exp(-(rows @ _log_odds(foreground) @ columns.T))), np.float32)


def label_map(foreground: Maps, size_hw: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Decide every pixel of the frame: the class of the highest P(foreground), background where that is below 0.5.

    Only the surroundings of cells that can reach 0.5 are enlarged: an interpolated value never exceeds its neighbours.

    Args:
        foreground: (ways, h, w) probabilities.
        size_hw: The frame's height H and width W.

    Returns:
        (H, W) uint8: 0 is background, i + 1 is way i.
    """
    labels = np.zeros(size_hw, np.uint8)
    highest = np.full(size_hw, _BELOW_ZERO, np.float32) if len(foreground) > 1 else None
    for way, odds in enumerate(_log_odds(foreground)):
        region = _reach(odds >= 0, size_hw)
        if region is None:
            continue
        (rows_out, rows_in), (columns_out, columns_in) = region
        rows = _interpolation_matrix(odds.shape[0], size_hw[0])[rows_out, rows_in]
        columns = _interpolation_matrix(odds.shape[1], size_hw[1])[columns_out, columns_in]
        values = rows @ (odds[rows_in, columns_in] @ columns.T)
        if highest is None:
            labels[rows_out, columns_out] = values >= 0
            continue
        best = highest[rows_out, columns_out]
        np.putmask(labels[rows_out, columns_out], values > best, way + 1)
        np.maximum(best, values, out=best)
    return labels


def _log_odds(probability: Maps) -> Maps:
    clipped = np.clip(probability, _CERTAIN, 1 - _CERTAIN)
    return np.asarray(np.log(clipped / (1 - clipped)), np.float32)


def _reach(
    cells: npt.NDArray[np.bool_], size_hw: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Per axis, the pixels that a set cell can influence and the cells that they read; None where no cell is set."""
    axes = []
    for axis in (0, 1):
        used = np.flatnonzero(cells.any(axis=1 - axis))
        if used.size == 0:
            return None
        cells_here, pixels = cells.shape[axis], size_hw[axis]
        cells_in = slice(max(int(used[0]) - 1, 0), min(int(used[-1]) + 2, cells_here))
        step = (cells_here - 1) / max(pixels - 1, 1)
        first = int(np.ceil(cells_in.start / step)) if step else 0
        # The last pixel must not be lost to rounding: in float64, 31 / (31 / 119) is less than 119.
        last = pixels - 1 if cells_in.stop == cells_here else int(np.floor((cells_in.stop - 1) / step))
        axes.append((slice(first, min(last, pixels - 1) + 1), cells_in))
    return axes[0], axes[1]


@lru_cache(maxsize=16)
def _interpolation_matrix(cells: int, pixels: int) -> Maps:
    """The (pixels, cells) matrix of linear interpolation with align_corners."""
    places = np.linspace(0, cells - 1, pixels)
    low = np.minimum(places.astype(np.intp), max(cells - 2, 0))
    weight = places - low
    matrix = np.zeros((pixels, cells), np.float32)
    matrix[np.arange(pixels), low] = 1 - weight
    matrix[np.arange(pixels), np.minimum(low + 1, cells - 1)] += weight
    return matrix
