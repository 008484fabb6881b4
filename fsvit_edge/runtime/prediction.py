"""What the model found in one frame."""

import time
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.support_masks import Box


@dataclass(frozen=True)
class ClassResult:
    """What the model found of one class."""

    name: str
    score: float  # P(present), in [0, 1]
    level: float  # in (0, 1)
    is_present: bool  # whether the score is above the level
    area_px: int  # pixels of the class in the label map, whether it is present or not
    area: float  # the same as a share of the frame, in [0, 1]
    box_xyxy: (
        Box | None
    )  # left, top, right and bottom of those pixels, right and bottom exclusive; None without a pixel


@dataclass(frozen=True)
class Prediction:
    """The answer for one frame. Each class is scored on its own: none, some or all may be present.

    Attributes:
        classes: Names of the enrolled classes, in the order of enrollment.
        scores: P(present) of each class, (ways,) float32 in [0, 1].
        levels: The score above which each class is present, (ways,) float32 in (0, 1).
        label_map: (H, W) uint8 at the frame's size: 0 is background, i + 1 is `classes[i]`; with sharp outlines only
            present classes have pixels.
        foreground: P(foreground) of each class at the frame's size, (ways, H, W) float32 in [0, 1]; None unless
            requested.
        latency_ms: Milliseconds spent in each stage, by name, in the order in which they ran.
    """

    classes: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    levels: npt.NDArray[np.float32]
    label_map: npt.NDArray[np.uint8]
    foreground: npt.NDArray[np.float32] | None
    latency_ms: dict[str, float]

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether each score is above its level, (ways,) bool."""
        return self.scores > self.levels

    @cached_property
    def results(self) -> tuple[ClassResult, ...]:
        """Score, area and box of each class."""
        return tuple(self._result(way) for way in range(len(self.classes)))

    def pixels(self, name: str) -> npt.NDArray[np.bool_]:
        """Return where the label map shows a class, (H, W) bool.

        Raises:
            ValueError: The class is not one of `classes`.
        """
        return np.asarray(self.label_map == self.classes.index(name) + 1, np.bool_)

    def _result(self, way: int) -> ClassResult:
        pixels = self.pixels(self.classes[way]).view(np.uint8)
        area_px = cv2.countNonZero(pixels)
        x, y, width, height = cv2.boundingRect(pixels)
        return ClassResult(
            self.classes[way],
            float(self.scores[way]),
            float(self.levels[way]),
            bool(self.scores[way] > self.levels[way]),
            area_px,
            area_px / pixels.size,
            (x, y, x + width, y + height) if width else None,
        )


class StageClock:
    """Milliseconds of each stage, by name, since the last `lap`."""

    def __init__(self) -> None:
        self.laps_ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.laps_ms[name] = (now - self._last) * 1e3
        self._last = now
