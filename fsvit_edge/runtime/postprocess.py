"""From the head's small probability maps to the frame's size.

Two-class softmax is the logistic function of the difference of two logits, and bilinear interpolation is linear, so
interpolating the log-odds and then deciding is what the published procedure computes for one shot (it enlarges the
logits before the softmax). With several shots it enlarges each shot's and averages; we enlarge the average.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.preprocess import Block, blocks_of_rows

Maps = npt.NDArray[np.float32]

_CERTAIN = 2.0**-23
"""Probabilities are clipped this far from 0 and 1: in float32 the log-odds of both ends are then equally large."""
_BAND_ROWS, _BAND_COLUMNS = 32, 64
_BELOW_ZERO = np.nextafter(np.float32(0), np.float32(-1))


def upsample_foreground(foreground: Maps, size_hw: tuple[int, int]) -> Maps:
    """Resize P(foreground) (ways, h, w) to (ways, H, W) float32, bilinear with align_corners on the log-odds."""
    rows, columns = (interpolation_matrix(n, m) for n, m in zip(foreground.shape[1:], size_hw, strict=True))
    return sigmoid(rows @ log_odds(foreground) @ columns.T)


def label_map(foreground: Maps, size_hw: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Label every pixel of an (H, W) frame with the class of highest P(foreground), or background if that is below 0.5.

    The frame is processed in bands of rows that stay in the CPU's cache (one pass over whole maps took six times as
    long), and a class is skipped in a band where no cell reaches 0.5: interpolation never exceeds its neighbors.

    Returns:
        (H, W) uint8: 0 is background, i + 1 is class i.
    """
    height, width = size_hw
    ways, cells_high, cells_wide = foreground.shape
    labels = np.zeros(size_hw, np.uint8)
    odds = log_odds(foreground)
    wide = np.empty((ways, cells_high, width), np.float32)
    for out, taken, weights in _bands(cells_wide, width, _BAND_COLUMNS):
        np.matmul(odds[..., taken], weights.T, out=wide[..., out])
    peaks = odds.max(axis=2, initial=-np.inf)
    for out, taken, weights in _bands(cells_high, height, _BAND_ROWS):
        band = labels[out]
        highest: Maps | None = None
        for way in np.flatnonzero(peaks[:, taken].max(axis=1) >= 0):
            values = weights @ wide[way, taken]
            leads = (values >= 0 if highest is None else values > highest).view(np.uint8)
            # A later class has a higher label: arithmetic on bytes is many times faster than a masked write.
            leads *= np.uint8(way + 1)
            np.maximum(band, leads, out=band)
            highest = np.maximum(values, _BELOW_ZERO if highest is None else highest, out=values)
    return labels


def log_odds(probability: Maps) -> Maps:
    """Return the log-odds of probabilities, float32, clipped to about -16 to 16."""
    clipped = np.clip(probability, _CERTAIN, 1 - _CERTAIN)
    return np.asarray(np.log(clipped / (1 - clipped)), np.float32)


def sigmoid(logits: Maps) -> Maps:
    """Return the probabilities of log-odds, float32 in [0, 1]."""
    return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


@lru_cache(maxsize=16)
def _bands(cells: int, pixels: int, size: int) -> tuple[Block, ...]:
    return blocks_of_rows(interpolation_matrix(cells, pixels), size)


@lru_cache(maxsize=16)
def interpolation_matrix(cells: int, pixels: int) -> Maps:
    """Return the (pixels, cells) matrix of linear interpolation with align_corners."""
    return linear_matrix(np.linspace(0, cells - 1, pixels), cells)


def linear_matrix(places: npt.NDArray[np.float64], cells: int) -> Maps:
    """Return the (places, cells) matrix that interpolates between cells; places are in [0, cells - 1]."""
    low = np.minimum(places.astype(np.intp), max(cells - 2, 0))
    weight = places - low
    matrix = np.zeros((len(places), cells), np.float32)
    matrix[np.arange(len(places)), low] = 1 - weight
    matrix[np.arange(len(places)), np.minimum(low + 1, cells - 1)] += weight
    return matrix
