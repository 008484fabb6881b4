"""Steady answers: a class turns on and off after some time above or below two levels, not with every frame."""

import math
from dataclasses import dataclass

import numpy as np

from fsvit_edge.fewshot.decide import Flags, Scores, above_level

OFF_MARGIN = 0.4
"""How far below its level, in log-odds, a class that is on must score to turn off; less than `decide.SCENE_MARGIN`, so
that a class turns off on a frame of the empty scene."""
ON_S, OFF_S = 0.3, 1.0
"""How long a class must be seen, and how long be gone, before the answer changes."""
GAP_S = 5.0
"""After so long without a frame, what was seen before counts no longer toward a change."""


@dataclass(frozen=True)
class SteadyState:
    """All that `SteadyAnswers` remembers, as plain values, for a box that answers many cameras and remembers none."""

    now_s: float  # when the next frame was captured
    classes: dict[str, tuple[bool, float | None]]  # whether each is on, and since when the frames say other than that


@dataclass
class _State:
    is_on: bool = False
    changing_since_s: float | None = None


class SteadyAnswers:
    """Turns classes on and off with time; a `PresenceOverTime`, asked before a frame's label map is made.

    A class turns on when it has scored above its level in every frame for `ON_S`, and off when it has scored more than
    `OFF_MARGIN` below for `OFF_S`, or at all below where a negative or a competing class lowered its score: these say
    "it is something else", which is no flicker.
    """

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}
        self._now_s = -math.inf

    @property
    def state(self) -> SteadyState:
        """What is remembered; `take` goes on with it, in another process as well."""
        known = {name: (one.is_on, one.changing_since_s) for name, one in self._states.items()}
        return SteadyState(self._now_s, known)

    def take(self, state: SteadyState) -> None:
        """Go on with what was remembered elsewhere."""
        self._now_s = state.now_s
        self._states = {name: _State(*one) for name, one in state.classes.items()}

    def at(self, now_s: float) -> "SteadyAnswers":
        """Tell when the next frame was captured, in seconds on a clock that never jumps back; returns itself."""
        if now_s - self._now_s > GAP_S:
            for state in self._states.values():
                state.changing_since_s = None
        self._now_s = now_s
        return self

    def before(self, classes: tuple[str, ...]) -> Flags:
        """Return whether each class was on in the frame before, (ways,) bool."""
        return np.array([name in self._states and self._states[name].is_on for name in classes], np.bool_)

    def decide(self, classes: tuple[str, ...], scores: Scores, raw_scores: Scores, levels: Scores) -> Flags:
        """Return whether each class is on, (ways,) bool; see `PresenceOverTime`."""
        self._states = {name: self._states.get(name) or _State() for name in classes}
        off_margins = np.where(raw_scores > levels, 0.0, OFF_MARGIN)
        for state, above, margin in zip(self._states.values(), above_level(scores, levels), off_margins, strict=True):
            self._step(state, bool(above < -margin if state.is_on else above > 0))
        return self.before(classes)

    def _step(self, state: _State, is_other: bool) -> None:
        """Count how long the frames have said other than the state, and change it after its time."""
        if not is_other:
            state.changing_since_s = None
            return
        if state.changing_since_s is None:
            state.changing_since_s = self._now_s
        if self._now_s - state.changing_since_s >= (OFF_S if state.is_on else ON_S):
            state.is_on = not state.is_on
            state.changing_since_s = None
