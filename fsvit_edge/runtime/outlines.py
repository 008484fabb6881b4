"""Sharp outlines: what CST says of a class, plus how much each pixel belongs to any thing.

CST's foreground is a map of tokens and says which thing; objectness says where things end. Both are log-odds, so they
are added: `z = z_cst + w * z_objectness`. The weight `w` belongs to the support: it is 1 where the thing in its mask
stands out from what is around it, and 0 for stuff (road, sky, a whole wall), of which objectness knows nothing.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.postprocess import Maps, log_odds

CERTAIN_LOGIT = 8.0
"""Objectness is cut here: beyond it the decoder only says that it is sure, and CST must be able to contradict."""


def sharpen(foreground: Maps, objectness: Maps, weights: npt.NDArray[np.float32]) -> Maps:
    """Add objectness to the foreground of each class.

    Args:
        foreground: P(foreground) (ways, m, m), align_corners.
        objectness: Logits (n, n) of the same frame, one for each cell of n x n pixels' squares.
        weights: (ways,), in [0, 2].

    Returns:
        P(foreground) (ways, k, k) with k the larger of m and n, align_corners.
    """
    size = max(foreground.shape[1], objectness.shape[0])
    rows = _corner_matrix(foreground.shape[1], size)
    cells = _cell_matrix(objectness.shape[0], size)
    things = cells @ np.clip(objectness, -CERTAIN_LOGIT, CERTAIN_LOGIT).astype(np.float32) @ cells.T
    logits = rows @ log_odds(foreground) @ rows.T + weights[:, None, None] * things
    return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


@lru_cache(maxsize=8)
def _corner_matrix(cells: int, size: int) -> Maps:
    """(size, cells): linear interpolation between points of which the outermost lie on the picture's edges."""
    return _linear(np.linspace(0, cells - 1, size), cells)


@lru_cache(maxsize=8)
def _cell_matrix(cells: int, size: int) -> Maps:
    """(size, cells): at the same places, of values that lie in the middle of their cells."""
    return _linear(np.clip(np.linspace(0, cells, size) - 0.5, 0, cells - 1), cells)


def _linear(places: npt.NDArray[np.float64], cells: int) -> Maps:
    low = np.minimum(places.astype(np.intp), max(cells - 2, 0))
    weight = places - low
    matrix = np.zeros((len(places), cells), np.float32)
    matrix[np.arange(len(places)), low] = 1 - weight
    matrix[np.arange(len(places)), np.minimum(low + 1, cells - 1)] += weight
    return matrix
