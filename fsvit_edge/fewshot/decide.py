"""From the head's scores to which classes are present: levels, the empty scene, negatives, and classes that compete.

All rules work on log-odds, here called z. The scores that they return are above a class's level exactly if the class is
present. `benchmarks/false_alarms.py` measures what each rule buys.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.postprocess import Maps, log_odds, sigmoid

Scores = npt.NDArray[np.float32]

SCENE_MARGIN = 0.5
"""How far above the highest score on the empty scene, in log-odds, a class must be."""
NEGATIVE_MARGIN = 3.0
"""How far behind a negative, in log-odds, a class may be and still be present: a negative is newer than the class's own
pictures, and so more like the frame."""
_REJECTED_BY = 0.25
_SUREST = 0.05
LEFT = 0.7
"""Share of a class's pixels that must be left to it by classes of higher scores."""


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
    lead, _ = _lead(log_odds(scores), log_odds(foreground))
    return min(NEGATIVE_MARGIN, -lead - _REJECTED_BY)


def subtract_negatives(
    scores: Scores, foreground: Maps, levels: Scores, negatives: Sequence[tuple[int, float]]
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

    Returns:
        Scores (ways,) and P(foreground) (ways, m, m) of the classes.
    """
    if not negatives:
        return scores, foreground
    ways = len(levels)
    decided, pixels = scores[:ways].copy(), foreground[:ways].copy()
    z, z_levels = log_odds(scores), log_odds(levels)
    for index, (way, margin) in enumerate(negatives, start=ways):
        lead, left = _lead(z[[way, index]], log_odds(foreground[[way, index]]))
        decided[way] = min(decided[way], sigmoid(z_levels[way] + np.float32(lead + margin)))
        np.minimum(pixels[way], sigmoid(left), out=pixels[way])
    return decided, pixels


def _lead(z: Scores, z_pixels: Maps) -> tuple[float, Maps]:
    """How far a class leads its negative, and the log-odds of its pixels less those of the negative."""
    left = np.minimum(z_pixels[0], z_pixels[0] - z_pixels[1])
    lost = _surest(z_pixels[0]) - _surest(left)
    return float(z[0] - z[1]) - lost, left


def _surest(z_pixels: Maps) -> float:
    count = max(1, round(_SUREST * z_pixels.size))
    return float(np.partition(z_pixels.ravel(), -count)[-count:].mean())


def compete(scores: Scores, foreground: Maps, levels: Scores) -> Scores:
    """Let classes that claim the same pixels exclude each other.

    Classes take their pixels in the order of their scores above their levels; a class is absent if less than `LEFT` of
    its pixels, those above 0.5 in CST's own foreground, are left by the present classes before it. One without pixels
    claims nothing and stays.

    Args:
        scores: P(present), (ways,) float32 in [0, 1].
        foreground: P(foreground), (ways, m, m).
        levels: (ways,) in (0, 1).

    Returns:
        Scores (ways,), lowered to below the level for classes that lost their pixels.
    """
    present = np.flatnonzero(scores > levels)
    if len(present) < 2:
        return scores
    leads = log_odds(scores[present]) - log_odds(levels[present])
    taken = np.zeros(foreground.shape[1:], np.bool_)
    decided = np.array(scores)
    for way in present[np.argsort(-leads, kind="stable")]:
        pixels = foreground[way] > 0.5
        left = float((pixels & ~taken).sum() / pixels.sum()) if pixels.any() else 1.0
        if left < LEFT:
            decided[way] = levels[way] * left / LEFT
        else:
            taken |= pixels
    return decided
