"""An episode as one picture: supports with their masks, query, truth and prediction side by side."""

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.overlay import tint
from fsvit_edge.fewshot.picture_sheet import captioned, sheet
from fsvit_edge.fewshot.regions import find_regions
from fsvit_edge.learn.evaluation import Answer
from fsvit_edge.learn.examples import IGNORE, FewShotData
from fsvit_edge.runtime.preprocess import resize_image, resize_mask
from fsvit_edge.runtime.presence_level import score_text

_PANEL_PX = 256
_UNKNOWN_GRAY = 128

_Rgb = npt.NDArray[np.uint8]


def draw_answer(data: FewShotData, answer: Answer, masks: bool) -> _Rgb:
    """Draw an episode: one row of supports per way, with query, truth and prediction beside the first row.

    Every panel is square, as the network sees the picture. Class i has color i of the overlay; ignored pixels are gray.
    The masks of the supports are drawn if they were enrolled with them (`masks`). Returns (H, W, 3) uint8 RGB.
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
                tint(panel, find_regions(own, [1]).get(1), way)
            row.append(captioned(panel, [(f"support: {name}" + ("" if masks else " (name only)"), None)]))
        rows.append(row)

    query = _panel(data, episode.query)
    own_name = data.class_names[data.examples[episode.query].label]
    shown = ", ".join(name for name, there in zip(names, answer.shown, strict=True) if there)
    truth = "truth: no mask" if answer.truth is None else f"truth: {shown or 'no class'}"
    verdicts = [
        f"{name} {score_text(prediction.scores[way])}: {'present' if prediction.present[way] else 'absent'}, "
        f"{'right' if prediction.present[way] == answer.shown[way] else 'WRONG'}"
        for way, name in enumerate(names)
    ]
    rows[0] += [
        captioned(query, [(f"episode {answer.number}, query: {own_name}", None)]),
        captioned(_labeled(query, answer.truth, len(names)), [(truth, None)]),
        captioned(
            _labeled(query, prediction.label_map, len(names)),
            [("prediction", None), *((text, way) for way, text in enumerate(verdicts))],
        ),
    ]
    return sheet(rows)


def _panel(data: FewShotData, index: int) -> _Rgb:
    panel: _Rgb = resize_image(data.read_image(index), _PANEL_PX).copy()
    return panel


def _labeled(query: _Rgb, label_map: npt.NDArray[np.uint8] | None, ways: int) -> _Rgb:
    drawn: _Rgb = query.copy()
    if label_map is not None:
        enlarged = resize_mask(label_map, _PANEL_PX)
        for label, region in find_regions(enlarged, range(1, ways + 1)).items():
            tint(drawn, region, label - 1)
        drawn[enlarged == IGNORE] = _UNKNOWN_GRAY
    return drawn
