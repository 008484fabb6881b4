"""From the head's scores to which classes are present: levels, the empty scene, negatives, and classes that compete.

All rules work on log-odds, here called z. The scores that they return are above a class's level exactly if the class is
present. `benchmarks/false_alarms.py` measures what each rule buys.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.outlines import surest_count
from fsvit_edge.runtime.postprocess import Maps, log_odds, sigmoid

Scores = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

SCENE_MARGIN = 0.5
"""How far above the highest score on the empty scene, in log-odds, a class must be."""
NEGATIVE_MARGIN = 3.0
"""How far behind a negative, in log-odds, a class may be and still be present: a negative is newer than the class's own
pictures, and so more like the frame."""
_REJECTED_BY = 0.25
"""By how much, in log-odds, a class falls short on the picture of its negative, where it must be absent."""
SHARE_LEFT = 0.7
"""Share of a class's pixels that must be left to it by classes of higher scores."""


class PresenceOverTime(Protocol):
    """Decides over several frames which classes are present, as `steady.SteadyAnswers` does."""

    def before(self, classes: tuple[str, ...]) -> Flags:
        """Return whether each class was present in the frame before, (ways,) bool."""

    def decide(self, classes: tuple[str, ...], scores: Scores, raw_scores: Scores, levels: Scores) -> Flags:
        """Return whether each class is present in this frame, (ways,) bool; called once for each frame.

        Args:
            classes: Their names.
            scores: P(present), (ways,) float32, after negatives and competing classes lowered it.
            raw_scores: The same before that.
            levels: (ways,) in (0, 1).
        """


def above_level(scores: Scores, levels: Scores) -> Scores:
    """Return how far scores are above their levels, in log-odds."""
    return np.asarray(log_odds(scores) - log_odds(levels), np.float32)


def scene_level(level: float, scene_scores: Sequence[float]) -> float:
    """Raise a class's level above what it scores on pictures of the empty scene.

    Args:
        level: The class's own level, in (0, 1).
        scene_scores: P(present), in [0, 1], of each picture of the scene.

    Returns:
        The level, in (0, 1).
    """
    if not scene_scores:
        return level
    highest = float(log_odds(np.array(scene_scores, np.float32)).max()) + SCENE_MARGIN
    return max(level, float(sigmoid(np.array([highest], np.float32))[0]))


def negative_margin(scores: Scores, foreground: Maps) -> float:
    """Return the margin of a negative, from what the head finds on the negative's own picture.

    It is `NEGATIVE_MARGIN`, or less if the class would otherwise still be present on that picture.

    Args:
        scores: P(present) of the class and of the negative, (2,) float32.
        foreground: P(foreground) of both, (2, m, m).
    """
    ahead, _ = _compare_with_negative(log_odds(scores), log_odds(foreground))
    return min(NEGATIVE_MARGIN, -ahead - _REJECTED_BY)


def subtract_negatives(
    scores: Scores,
    foreground: Maps,
    levels: Scores,
    negatives: Sequence[tuple[int, float]],
    asked: Flags | None = None,
) -> tuple[Scores, Maps]:
    """Let the classes compete with their negatives, pictures that a person said are not the class.

    A class is present if it is above its level and, for each of its negatives,

        z - z_negative - lost > -margin

    where `lost` is how far the log-odds of its surest pixels fall if in each pixel those of the negative, where above
    0, are subtracted. If only what was rejected is in view, it claims the same pixels; if the thing is beside it, the
    thing's pixels stay, and so does the class, unless the negative is much likelier.

    Chosen by scripts that are not kept, on the clips of moving and fixed cameras with Pascal's classes as supports, and
    on every other class of davis16-val. On its other ten classes, after one negative in each of 36 scenes that alarmed:
    alarms in the rest of the scene, hits, and hits with a picture of the scene above or below the thing:

        rule                        alarms    hits             both in view
        level 0.5 above negative    -81 %     100.0 -> 81.3    81.1 -> 44.4
        lost not counted, margin 1  -89 %     100.0 -> 99.2    81.1 -> 52.3
        this rule                   -89 %     100.0 -> 100.0   81.1 -> 69.9

    Args:
        scores: P(present) of the classes, then of the negatives, (ways + negatives,) float32 in [0, 1].
        foreground: P(foreground) of the same, (ways + negatives, m, m).
        levels: Of the classes, (ways,) in (0, 1).
        negatives: For each negative the index of its class, and its margin.
        asked: Classes (ways,) bool whose negatives count; the others are absent anyway. None: all.

    Returns:
        Scores (ways,) and P(foreground) (ways, m, m) of the classes.
    """
    if not negatives:
        return scores, foreground
    ways = len(levels)
    decided, pixels = scores[:ways].copy(), foreground[:ways].copy()
    z, z_levels = log_odds(scores), log_odds(levels)
    for index, (way, margin) in enumerate(negatives, start=ways):
        if asked is not None and not asked[way]:
            continue
        ahead, z_rest = _compare_with_negative(z[[way, index]], log_odds(foreground[[way, index]]))
        decided[way] = min(decided[way], sigmoid(z_levels[way] + np.float32(ahead + margin)))
        np.minimum(pixels[way], sigmoid(z_rest), out=pixels[way])
    return decided, pixels


def _compare_with_negative(z: Scores, z_pixels: Maps) -> tuple[float, Maps]:
    """How far a class is ahead of its negative, and the log-odds of its pixels less those of the negative."""
    z_rest = np.minimum(z_pixels[0], z_pixels[0] - z_pixels[1])
    lost = _surest(z_pixels[0]) - _surest(z_rest)
    return float(z[0] - z[1]) - lost, z_rest


def _surest(z_pixels: Maps) -> float:
    count = surest_count(z_pixels.size)
    return float(np.partition(z_pixels.ravel(), -count)[-count:].mean())


def compete(scores: Scores, foreground: Maps, levels: Scores, before: Flags | None = None) -> Scores:
    """Let classes that claim the same pixels exclude each other.

    Classes take their pixels in the order of their scores above their levels; a class is absent if less than
    `SHARE_LEFT` of its pixels, those above 0.5 in CST's own foreground, are left by the present classes in front of it.
    One without pixels claims nothing and stays.

    Args:
        scores: P(present), (ways,) float32 in [0, 1].
        foreground: P(foreground), (ways, m, m).
        levels: (ways,) in (0, 1).
        before: Which classes were present in the frame before, (ways,) bool, if that is decided over time: those lose
            pixels only to each other. Otherwise several classes, each in view for too short a time to be present, could
            push out one that is, and none would be left. None: all classes lose pixels to all.

    Returns:
        Scores (ways,), lowered to below the level for classes that lost their pixels.
    """
    present = np.flatnonzero(scores > levels)
    if len(present) < 2:
        return scores
    taken = np.zeros(foreground.shape[1:], np.bool_)
    taken_by_known = np.zeros_like(taken)
    decided = np.array(scores)
    for way in present[np.argsort(-above_level(scores[present], levels[present]), kind="stable")]:
        is_known = before is None or bool(before[way])
        pixels = foreground[way] > 0.5
        lost = taken_by_known if is_known else taken
        share_left = float((pixels & ~lost).sum() / pixels.sum()) if pixels.any() else 1.0
        if share_left < SHARE_LEFT:
            decided[way] = levels[way] * share_left / SHARE_LEFT
        else:
            taken |= pixels
            if is_known:
                taken_by_known |= pixels
    return decided
