"""An episode as one picture: supports with their masks, query, truth and prediction side by side."""

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.learn.datasets import IGNORE, FewShotData
from fsvit_edge.learn.evaluation import Answer
from fsvit_edge.runtime.overlay import PALETTE, fitting_text, tint
from fsvit_edge.runtime.preprocess import resize_image, resize_mask

_PANEL_PX = 256
_TEXT_PX = 13
_LINE_PX = round(1.5 * _TEXT_PX)
_GAP_PX = 8
_PAPER = 20
_UNKNOWN_GREY = 128

_Rgb = npt.NDArray[np.uint8]


def draw_answer(data: FewShotData, answer: Answer, masks: bool) -> _Rgb:
    """Draw an episode with its answer: a row of supports for each way; query, truth and prediction beside the first.

    Every panel is a square, as the network sees the picture. Class i has the overlay's colour i; what is not looked at
    is grey.

    Args:
        data: What the episode was drawn from.
        answer: The episode.
        masks: Whether the supports were enrolled with their masks, which are then drawn.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    episode, prediction = answer.episode, answer.prediction
    names = [data.class_names[label] for label in episode.ways]
    rows = []
    for way, (name, indices) in enumerate(zip(names, episode.supports, strict=True)):
        row = []
        for index in indices:
            panel = _panel(data, index)
            if masks:
                own = resize_mask(data.read_mask(index) == 1, _PANEL_PX)
                tint(panel, own * np.uint8(way + 1), way)
            row.append(_with_lines(panel, [(f"support: {name}" + ("" if masks else " (name only)"), None)]))
        rows.append(row)

    query = _panel(data, episode.query)
    own_name = data.class_names[data.examples[episode.query].label]
    shown = ", ".join(name for name, there in zip(names, answer.shown, strict=True) if there)
    truth = "truth: no mask" if answer.truth is None else f"truth: {shown or 'none of them'}"
    rows[0] += [
        _with_lines(query, [(f"episode {answer.number}, query: {own_name}", None)]),
        _with_lines(_labelled(query, answer.truth, len(names)), [(truth, None)]),
        _with_lines(
            _labelled(query, prediction.label_map, len(names)),
            [
                ("prediction", None),
                *(
                    (
                        f"{name} {prediction.scores[way]:.2f}: {'present' if prediction.present[way] else 'absent'}, "
                        f"{'right' if prediction.present[way] == answer.shown[way] else 'WRONG'}",
                        way,
                    )
                    for way, name in enumerate(names)
                ),
            ],
        ),
    ]
    return _grid(rows)


def _panel(data: FewShotData, index: int) -> _Rgb:
    resized: _Rgb = resize_image(data.read_image(index), _PANEL_PX).copy()
    return resized


def _labelled(query: _Rgb, label_map: npt.NDArray[np.uint8] | None, ways: int) -> _Rgb:
    drawn: _Rgb = query.copy()
    if label_map is not None:
        enlarged = resize_mask(label_map, _PANEL_PX)
        for way in range(ways):
            tint(drawn, enlarged, way)
        drawn[enlarged == IGNORE] = _UNKNOWN_GREY
    return drawn


def _with_lines(panel: _Rgb, lines: list[tuple[str, int | None]]) -> _Rgb:
    """Write lines below a panel, each behind the colour of its way."""
    below = np.full((_LINE_PX * len(lines), _PANEL_PX, 3), _PAPER, np.uint8)
    for number, (text, way) in enumerate(lines):
        line = below[number * _LINE_PX : (number + 1) * _LINE_PX]
        start = 0
        if way is not None:
            line[_TEXT_PX // 3 : _TEXT_PX, : 2 * _TEXT_PX // 3] = PALETTE[way % len(PALETTE)]
            start = _TEXT_PX
        letters = fitting_text(text, _TEXT_PX, _PANEL_PX - start)
        space = line[: letters.shape[0], start : start + letters.shape[1]]
        space[:] = cv2.add(space, cv2.cvtColor(letters[: space.shape[0], : space.shape[1]], cv2.COLOR_GRAY2RGB))
    both: _Rgb = np.concatenate([panel, below])
    return both


def _grid(rows: list[list[_Rgb]]) -> _Rgb:
    heights = [max(len(cell) for cell in row) + _GAP_PX for row in rows]
    width = max(len(row) for row in rows) * (_PANEL_PX + _GAP_PX) + _GAP_PX
    paper = np.full((sum(heights) + _GAP_PX, width, 3), _PAPER, np.uint8)
    top = _GAP_PX
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            left = _GAP_PX + column * (_PANEL_PX + _GAP_PX)
            paper[top : top + len(cell), left : left + _PANEL_PX] = cell
        top += height
    return paper
