"""What the model found in one frame."""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.regions import Region, find_regions
from fsvit_edge.fewshot.support_masks import Box
from fsvit_edge.fewshot.zones import Zone, zones_of
from fsvit_edge.runtime.errors import EnvironmentLacksError

if TYPE_CHECKING:
    from supervision import Detections

CRUMB_OF_FRAME, CRUMB_OF_LARGEST = 0.004, 0.02
"""Parts of an outline below one of these shares are crumbs (`benchmarks/parts.py`; see docs/how-to/zones.md)."""


@dataclass(frozen=True)
class Instance:
    """A connected part of a class's outline; things that touch are one part."""

    area_px: int  # its pixels
    box_xyxy: Box  # left, top, right and bottom in pixels, the latter two exclusive


@dataclass(frozen=True)
class ClassResult:
    """What the model found of one class; the box is left, top, right and bottom in pixels, the latter two exclusive."""

    name: str
    score: float  # P(present), in [0, 1], after negatives and competing classes lowered it
    raw_score: float  # what the head said, in [0, 1]
    level: float  # the score above which the class is present, in (0, 1)
    is_present: bool  # whether the score is above the level, or was for long enough if answers are steady
    area_px: int  # pixels of the class in the label map; 0 if it is absent, although some labels are drawn even so
    area: float  # the same as a share of the frame, in [0, 1]
    box_xyxy: Box | None  # around those pixels; None without a pixel, or if it is absent
    zones: tuple[str, ...] = ()  # names of the zones that hold at least a fifth of those pixels, if it is present


@dataclass(frozen=True)
class Prediction:
    """The answer for one frame. Each class is scored on its own: none, some or all may be present.

    Attributes:
        classes: Names of the enrolled classes, in the order of enrollment.
        scores: P(present) of each class, (ways,) float32 in [0, 1].
        levels: The score above which each class is present, (ways,) float32 in (0, 1).
        label_map: (H, W) uint8 at the frame's size: 0 is background, i + 1 is `classes[i]`; with sharp outlines, or if
            presence is decided over several frames, only present classes have pixels.
        foreground: P(foreground) of each class at the frame's size, (ways, H, W) float32 in [0, 1]; None unless
            requested.
        latency_ms: Milliseconds spent in each stage, by name, in the order in which they ran.
        raw_scores: What the head said, (ways,) float32, before negatives and competing classes lowered it; None: the
            same as `scores`.
        steady_present: Whether each class is present, (ways,) bool, decided over several frames; None: by this frame
            alone.
        zones: The zones in which classes are looked for, in the order in which results name them.
        contested: Whether a surer class claims most of the class's pixels, (ways,) bool; None: not known.
    """

    classes: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    levels: npt.NDArray[np.float32]
    label_map: npt.NDArray[np.uint8]
    foreground: npt.NDArray[np.float32] | None
    latency_ms: dict[str, float]
    raw_scores: npt.NDArray[np.float32] | None = None
    steady_present: npt.NDArray[np.bool_] | None = None
    zones: tuple[Zone, ...] = ()
    contested: npt.NDArray[np.bool_] | None = None

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether each class is present, (ways,) bool: its score is above its level, or was for long enough."""
        return self.scores > self.levels if self.steady_present is None else self.steady_present

    @cached_property
    def results(self) -> tuple[ClassResult, ...]:
        """Score, area and box of each class."""
        return tuple(map(self._result, range(len(self.classes))))

    @cached_property
    def regions(self) -> dict[int, Region]:
        """The pixels of each present class that has any, by its index: whoever asks first finds them for all."""
        labels = (np.flatnonzero(self.present) + 1).tolist()
        return {label - 1: region for label, region in find_regions(self.label_map, labels).items()}

    def pixels(self, name: str) -> npt.NDArray[np.bool_]:
        """Return where the label map shows a class, (H, W) bool.

        Raises:
            ValueError: The class is not one of `classes`.
        """
        return np.asarray(self.label_map == self.classes.index(name) + 1, np.bool_)

    def instances(self, name: str) -> tuple[Instance, ...]:
        """Return the connected parts of a present class in the label map, the largest first; none if it is absent.

        Parts below 0.4 % of the frame or 2 % of the largest part are left out as crumbs, never the largest. They are
        found when they are first asked for, in less than a millisecond.

        Raises:
            ValueError: The class is not one of `classes`.
        """
        way = self.classes.index(name)
        if way not in self._instances:
            self._instances[way] = self._find_instances(way)
        return self._instances[way]

    def instance_pixels(self, name: str) -> tuple[npt.NDArray[np.bool_], ...]:
        """Return which pixels of its box each of `instances(name)` has, (bottom - top, right - left) bool.

        Raises:
            ValueError: The class is not one of `classes`.
        """
        way = self.classes.index(name)
        return tuple(self._pixels_of(way, instance) for instance in self.instances(name))

    def _pixels_of(self, way: int, instance: Instance) -> npt.NDArray[np.bool_]:
        left, top, right, bottom = instance.box_xyxy
        pixels = np.asarray(self.label_map[top:bottom, left:right] == way + 1, np.bool_)
        if np.count_nonzero(pixels) == instance.area_px:
            return pixels
        # Other parts reach into the box. Only one touches its four sides: two that did would meet.
        _, numbers, found, _ = cv2.connectedComponentsWithStats(pixels.view(np.uint8))
        whole = (found[1:, :4] == (0, 0, right - left, bottom - top)).all(axis=1)
        return np.asarray(numbers == 1 + int(whole.argmax()), np.bool_)

    def to_supervision(self) -> "Detections":
        """Return what is present as `Detections` of supervision, for its annotators, trackers, zones and slicers.

        Each of `instances` is a detection: `xyxy` is its box, `mask` its pixels, (detections, H, W) bool, `confidence`
        the score of its class, `class_id` the index of that in `classes`, and `data["class_name"]` its name.

        Raises:
            EnvironmentLacksError: supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise EnvironmentLacksError(
                'Detections need supervision, which is not installed; try: pip install "fsvit-edge[supervision]".'
            ) from error
        ways = [way for way, name in enumerate(self.classes) for _ in self.instances(name)]
        found = [instance for name in self.classes for instance in self.instances(name)]
        mask = np.zeros((len(found), *self.label_map.shape), np.bool_)
        for index, (way, instance) in enumerate(zip(ways, found, strict=True)):
            left, top, right, bottom = instance.box_xyxy
            mask[index, top:bottom, left:right] = self._pixels_of(way, instance)
        return Detections(
            xyxy=np.array([instance.box_xyxy for instance in found], np.float32).reshape(-1, 4),
            mask=mask,
            confidence=self.scores[ways].astype(np.float32),
            class_id=np.array(ways, np.int64),
            data={"class_name": np.array([self.classes[way] for way in ways], np.str_)},
        )

    @cached_property
    def _instances(self) -> dict[int, tuple[Instance, ...]]:
        """What was found of each class by its index."""
        return {}

    def _find_instances(self, way: int) -> tuple[Instance, ...]:
        region = self.regions.get(way)
        if region is None:
            return ()

        def least_px(largest_px: int) -> float:
            return min(largest_px, max(CRUMB_OF_FRAME * self.label_map.size, CRUMB_OF_LARGEST * largest_px))

        parts = region.parts(least_px)
        least = least_px(max(area for area, _ in parts))
        found = sorted((part for part in parts if part[0] >= least), key=lambda part: (-part[0], part[1]))
        return tuple(Instance(area, box) for area, box in found)

    def _result(self, way: int) -> ClassResult:
        region = self.regions.get(way)
        area_px, box = (0, None) if region is None else (cv2.countNonZero(region.pixels), region.box_xyxy)
        zones: tuple[str, ...] = ()
        if box is not None and self.zones:
            zones = zones_of(self.pixels(self.classes[way]).view(np.uint8), box, area_px, self.zones)
        return ClassResult(
            self.classes[way],
            float(self.scores[way]),
            float((self.scores if self.raw_scores is None else self.raw_scores)[way]),
            float(self.levels[way]),
            bool(self.present[way]),
            area_px,
            area_px / self.label_map.size,
            box,
            zones,
        )


@dataclass(frozen=True)
class Rejection:
    """What one call of `FewShotModel.reject` changed.

    Attributes:
        name: The class.
        negatives: Negatives that it has now.
        was_present: Whether it was found in the picture.
        score_before: Its score on the picture before, in [0, 1].
        score_after: Its score now; below the level unless the level is very low.
        level: The score above which it is present, in (0, 1).
        margin: How far behind the negative, in log-odds, the class may be and still be present. If it is small, the
            picture is much like the class's own, and the class may be missed from now on.
        is_mask_too_small: Whether the network sees nothing of what was marked, or of where the class was found, so that
            the whole picture became the negative.
    """

    name: str
    negatives: int
    was_present: bool
    score_before: float
    score_after: float
    level: float
    margin: float
    is_mask_too_small: bool = False


Stage = Literal["preprocess", "encoder", "head", "postprocess", "network"]
STAGES: tuple[str, ...] = get_args(Stage)
"""All stages of an answer; a box has no others to tell of."""


class StageClock:
    """Milliseconds of each stage, by name."""

    def __init__(self) -> None:
        self.laps_ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: Stage) -> None:
        """Add the time since the last lap to a stage."""
        now = time.perf_counter()
        self.laps_ms[name] = self.laps_ms.get(name, 0.0) + (now - self._last) * 1e3
        self._last = now
