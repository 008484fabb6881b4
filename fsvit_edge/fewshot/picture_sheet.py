"""Several pictures on one sheet, each with lines of text below it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.overlay import PALETTE, add_text, fitting_text

SHEET_PX = 200
"""Width of a picture on a sheet of many."""
_COLUMNS = 6
_TEXT_PX = 13
_LINE_PX = round(1.5 * _TEXT_PX)
_GAP_PX = 8
_PAPER = 20

_Rgb = npt.NDArray[np.uint8]


def captioned(panel: _Rgb, lines: Sequence[tuple[str, int | None]]) -> _Rgb:
    """Write lines below an (H, W, 3) uint8 RGB picture, which becomes higher.

    Each is a text, shortened if it is too wide, with the index of the class whose color precedes it, or None.
    """
    below = np.full((_LINE_PX * len(lines), panel.shape[1], 3), _PAPER, np.uint8)
    for number, (text, way) in enumerate(lines):
        line = below[number * _LINE_PX : (number + 1) * _LINE_PX]
        start = 0
        if way is not None:
            line[_TEXT_PX // 3 : _TEXT_PX, : 2 * _TEXT_PX // 3] = PALETTE[way % len(PALETTE)]
            start = _TEXT_PX
        add_text(line, fitting_text(text, _TEXT_PX, panel.shape[1] - start), start, 0, 255)
    both: _Rgb = np.concatenate([panel, below])
    return both


def sheet_of(cells: Sequence[_Rgb]) -> _Rgb:
    """Arrange at least one (h, w, 3) uint8 RGB picture in rows of six."""
    return sheet([cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)])


def sheet(rows: Sequence[Sequence[_Rgb]]) -> _Rgb:
    """Arrange (h, w, 3) uint8 RGB pictures of any sizes in rows, all columns as wide as the widest picture."""
    heights = [max(len(cell) for cell in row) + _GAP_PX for row in rows]
    column_px = max(cell.shape[1] for row in rows for cell in row) + _GAP_PX
    width = max(len(row) for row in rows) * column_px + _GAP_PX
    paper = np.full((sum(heights) + _GAP_PX, width, 3), _PAPER, np.uint8)
    top = _GAP_PX
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            left = _GAP_PX + column * column_px
            paper[top : top + len(cell), left : left + cell.shape[1]] = cell
        top += height
    return paper
