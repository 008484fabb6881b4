"""Steady answers: a class turns on and off after some time above or below two levels, not with every frame."""

import math
from dataclasses import dataclass, replace

import numpy as np

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.runtime.postprocess import log_odds

OFF_MARGIN = 0.4
"""How far below its level, in log-odds, a class that is on must score to turn off; less than `decide.SCENE_MARGIN`, so
that a class turns off on a frame of the empty scene."""
GAP_S = 5.0
"""After so long without a frame, what was seen before counts no longer toward a change."""


@dataclass(frozen=True)
class SteadyOptions:
    """How long a class must be seen, or be gone, before the answer changes; in seconds."""

    on_s: float = 0.3
    off_s: float = 1.0


@dataclass
class _State:
    is_on: bool = False
    changing_since_s: float | None = None


class SteadyAnswers:
    """Turns the answers of single frames into steady ones.

    A class turns on when it has scored above its level in every frame for `on_s`, and off when it has scored more than
    `OFF_MARGIN` below for `off_s`, or at all below where a negative or a competing class lowered its score: these say
    "it is something else", which is no flicker. Scores, levels and masks stay those of the frame; a class that is not
    yet on has no pixels.

    Args:
        options: The two times.
    """

    def __init__(self, options: SteadyOptions = SteadyOptions()) -> None:
        self._options = options
        self._states: dict[str, _State] = {}
        self._last_s = -math.inf

    def update(self, prediction: Prediction, now_s: float) -> Prediction:
        """Return the answer for a frame with `present` decided over time.

        Args:
            prediction: The frame's own answer.
            now_s: When the frame was captured, in seconds on a clock that never jumps back.
        """
        self._states = {name: self._states.get(name) or _State() for name in prediction.classes}
        if now_s - self._last_s > GAP_S:
            for state in self._states.values():
                state.changing_since_s = None
        self._last_s = now_s
        raw_scores = prediction.scores if prediction.raw_scores is None else prediction.raw_scores
        margins = np.where(raw_scores > prediction.levels, 0.0, OFF_MARGIN)
        leads = log_odds(prediction.scores) - log_odds(prediction.levels)
        for state, lead, margin in zip(self._states.values(), leads, margins, strict=True):
            self._step(state, float(lead), float(margin), now_s)
        present = np.array([state.is_on for state in self._states.values()], np.bool_)
        labels = prediction.label_map
        pending = np.flatnonzero((prediction.scores > prediction.levels) & ~present)
        if len(pending):
            labels = np.where(np.isin(labels, pending + 1), np.uint8(0), labels)
        return replace(prediction, steady_present=present, label_map=labels)

    def _step(self, state: _State, lead: float, margin: float, now_s: float) -> None:
        if not (lead < -margin if state.is_on else lead > 0):
            state.changing_since_s = None
            return
        if state.changing_since_s is None:
            state.changing_since_s = now_s
        if now_s - state.changing_since_s >= (self._options.off_s if state.is_on else self._options.on_s):
            state.is_on = not state.is_on
            state.changing_since_s = None
