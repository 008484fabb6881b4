"""How well presence scores tell pictures of a class from scenes without it, with bootstrap intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fsvit_edge.learn.metrics import Score, divide, resamples, score_of

_Floats = npt.NDArray[np.float64]

FALSE_ALARM_SHARES = (0.01, 0.001)
"""At which the hits are counted besides those at the level in use."""
_ROUNDING = 1e-9
_OF_ALL, _OF_CLASS = 7, 5  # figures


@dataclass(frozen=True)
class SceneTally:
    """What P pictures leave that are asked for C classes each.

    Attributes:
        scores: (P, C) P(present).
        levels: (C,) the score above which each class is present.
        shown: (P, C) bool, whether the picture shows the class; where it does not, it is a scene without it.
    """

    scores: _Floats
    levels: _Floats
    shown: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ClassSceneScores:
    """What was found of one class; None where it has no picture or no scene.

    Attributes:
        label: The class's number in its data set.
        name: Its name.
        level: The score above which it is present.
        pictures: How many show it.
        scenes: How many do not.
        hits: Share of its pictures in which it is present.
        false_alarms: Share of the scenes without it in which it is present.
        area: Under the curve of hits over false alarms: how often one of its pictures scores higher than a scene.
        hits_at_1_percent: Hits at the lowest level that lets through at most 1 % of the scenes.
        hits_at_01_percent: The same for 0.1 %, which is none of fewer than 1,000 scenes.
    """

    label: int
    name: str
    level: float
    pictures: int
    scenes: int
    hits: Score | None
    false_alarms: Score | None
    area: Score | None
    hits_at_1_percent: Score | None
    hits_at_01_percent: Score | None


@dataclass(frozen=True)
class SceneScores:
    """The result over all classes: means of the classes' figures, of those that have one.

    Attributes:
        hits: At the levels in use.
        false_alarms: At the levels in use.
        area: Under the curve.
        hits_at_1_percent: Each class at its own level that lets through at most 1 % of its scenes.
        hits_at_01_percent: The same for 0.1 %.
        pooled_hits_at_1_percent: All classes at one level that lets through at most 1 % of all their scenes.
        pooled_hits_at_01_percent: The same for 0.1 %.
        classes: Each class, in the order given.
    """

    hits: Score | None
    false_alarms: Score | None
    area: Score | None
    hits_at_1_percent: Score | None
    hits_at_01_percent: Score | None
    pooled_hits_at_1_percent: Score | None
    pooled_hits_at_01_percent: Score | None
    classes: tuple[ClassSceneScores, ...]


def score_scenes(tally: SceneTally, names: Mapping[int, str]) -> SceneScores:
    """Compute the figures and their percentile intervals.

    A resample draws as many pictures, with replacement; classes and supports stay, so an interval says nothing about
    other classes.

    Args:
        tally: At least one picture.
        names: Label -> name of the classes, in the order of the tally.
    """
    count, classes = tally.scores.shape
    estimate = _figures(tally, np.ones((1, count)))[0].tolist()
    spread = np.concatenate([_figures(tally, counts) for counts in resamples(count, count * classes)])
    figures = [score_of(value, column) for value, column in zip(estimate, spread.T, strict=True)]
    hits, false_alarms, area, own_1, own_01, pooled_1, pooled_01 = figures[:_OF_ALL]
    return SceneScores(
        hits,
        false_alarms,
        area,
        own_1,
        own_01,
        pooled_1,
        pooled_01,
        tuple(
            ClassSceneScores(
                label,
                name,
                float(tally.levels[index]),
                int(tally.shown[:, index].sum()),
                int((~tally.shown[:, index]).sum()),
                *figures[_OF_ALL + index * _OF_CLASS : _OF_ALL + (index + 1) * _OF_CLASS],
            )
            for index, (label, name) in enumerate(names.items())
        ),
    )


def hits_and_false_alarms(tally: SceneTally) -> tuple[float, float]:
    """Give both at the tally's levels, means over the classes in percent, without intervals."""
    hits, false_alarms = _figures(tally, np.ones((1, len(tally.scores))))[0, :2]
    return 100 * float(hits), 100 * float(false_alarms)


def _figures(tally: SceneTally, counts: _Floats) -> _Floats:
    """(R, P) how often each picture is drawn -> (R, 7 + 5 C): the figures of all, then of each class; NaN is 0 / 0."""
    by_class = []
    for scores, level, shown in zip(tally.scores.T, tally.levels, tally.shown.T, strict=True):
        present = scores > level
        rates = [
            divide(counts @ (present & which).astype(np.float64), counts @ which.astype(np.float64))
            for which in (shown, ~shown)
        ]
        by_class.append(np.stack([*rates, *_ranking(scores, shown, counts)], axis=1))
    stacked = np.stack(by_class, axis=1)
    measured = ~np.isnan(stacked)
    means = divide(np.where(measured, stacked, 0).sum(axis=1), measured.sum(axis=1))
    pooled = _ranking(tally.scores.ravel(), tally.shown.ravel(), counts.repeat(tally.scores.shape[1], axis=1))[1:]
    return np.concatenate([means, np.stack(pooled, axis=1), stacked.reshape(len(counts), -1)], axis=1)


def _ranking(scores: _Floats, shown: npt.NDArray[np.bool_], counts: _Floats) -> list[_Floats]:
    """What does not depend on a level: the area, and the hits at each of `FALSE_ALARM_SHARES`; (R,) each."""
    own, scene = np.flatnonzero(shown), np.flatnonzero(~shown)
    own, scene = own[np.argsort(scores[own])], scene[np.argsort(scores[scene])]
    hits, alarms = scores[own], scores[scene]
    # Column n: what the n lowest count together.
    own_sums, scene_sums = _sums(counts[:, own]), _sums(counts[:, scene])
    all_own, all_scenes = own_sums[:, -1], scene_sums[:, -1]
    below, up_to = (scene_sums[:, np.searchsorted(alarms, hits, side)] for side in ("left", "right"))
    figures = [divide((counts[:, own] * (below + up_to) / 2).sum(axis=1), all_own * all_scenes)]
    # Of each scene as the level, column n: the hits above the n-th lowest; an own picture as high is none.
    hits_above = all_own[:, None] - own_sums[:, np.searchsorted(hits, alarms, "right")]
    for share in FALSE_ALARM_SHARES:
        # The lowest scene above which no more than the share lies.
        enough = all_scenes[:, None] - scene_sums[:, 1:] <= share * all_scenes[:, None] + _ROUNDING
        if not scene.size:
            figures.append(np.full(len(counts), np.nan))
            continue
        at_level = hits_above[np.arange(len(counts)), enough.argmax(axis=1)]
        figures.append(divide(at_level, np.where(all_scenes > 0, all_own, 0)))
    return figures


def _sums(counts: _Floats) -> _Floats:
    return np.concatenate([np.zeros((len(counts), 1)), counts.cumsum(axis=1)], axis=1)
