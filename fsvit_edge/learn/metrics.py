"""0/1 exact ratio and mIoU over few-shot episodes, as the FS-CS task defines them, with bootstrap intervals.

An episode leaves a few numbers for each of its ways; every figure is a ratio of their sums. So a bootstrap resample of
the episodes is a matrix product, and 2,000 of them take a fraction of a second.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fsvit_edge.learn.examples import IGNORE

Labels = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]

CONFIDENCE = 95.0
"""Percent of the resamples that an interval covers."""
RESAMPLES = 2000
RESAMPLING_SEED = 0
_CELLS_AT_ONCE = 2**22
"""Resamples x episodes held in memory together: 32 MB of weights."""


@dataclass(frozen=True)
class Score:
    """A ratio in percent.

    Attributes:
        value: The estimate.
        low: Lower end of its bootstrap interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassScores:
    """What was found of one class over the episodes that have it among their ways.

    Attributes:
        label: The class's number in its data set.
        name: Its name.
        asked: In how many episodes it is among the ways.
        shown: In how many of these the query shows it.
        presence: How often its presence was judged rightly; None where it was never asked for.
        iou: Sum of the intersections over sum of the unions; None where it is neither there nor predicted.
    """

    label: int
    name: str
    asked: int
    shown: int
    presence: Score | None
    iou: Score | None


@dataclass(frozen=True)
class Scores:
    """The result over all episodes.

    Attributes:
        exact_ratio: Episodes in which every presence answer is right.
        miou: Mean of the classes' IoU, of those that have one; None where none has.
        classes: Each class, in the order given.
    """

    exact_ratio: Score
    miou: Score | None
    classes: tuple[ClassScores, ...]


@dataclass(frozen=True)
class Tally:
    """What E episodes of N ways leave; row e is episode e.

    Attributes:
        ways: (E, N) int64 labels of the support classes, no label twice in a row.
        shown: (E, N) bool, whether the query shows the class.
        judged: (E, N) bool, whether the model says so.
        intersections: (E, N) int64 pixels.
        unions: (E, N) int64 pixels.
    """

    ways: Counts
    shown: npt.NDArray[np.bool_]
    judged: npt.NDArray[np.bool_]
    intersections: Counts
    unions: Counts


def count_pixels(prediction: Labels, truth: Labels, ways: int) -> tuple[Counts, Counts]:
    """Count what prediction and truth share, way by way.

    Args:
        prediction: (H, W) uint8: 0 is background, i + 1 is way i.
        truth: The same; pixels of 255 are not looked at.
        ways: How many there are.

    Returns:
        Intersections and unions, (ways,) int64.
    """
    looked_at = truth != IGNORE
    predicted, true = prediction[looked_at].astype(np.int64), truth[looked_at].astype(np.int64)
    size = ways + 1
    confusion = np.bincount(true * size + predicted, minlength=size * size).reshape(size, size)
    intersections = np.diagonal(confusion)
    unions = confusion.sum(axis=0) + confusion.sum(axis=1) - intersections
    return intersections[1:].astype(np.int64), unions[1:].astype(np.int64)


def score(tally: Tally, names: Mapping[int, str]) -> Scores:
    """Compute the figures and their percentile intervals; a resample draws as many episodes, with replacement.

    Args:
        tally: At least one episode.
        names: Label -> name of the classes over which to average, every way among them.
    """
    labels = list(names)
    sums = _sums(tally, labels)
    estimate = _ratios(sums.sum(axis=0, keepdims=True))
    resampled = _ratios(_resample(sums))
    exact, miou, *rest = (
        score_of(value, spread) for value, spread in zip(estimate[0].tolist(), resampled.T, strict=True)
    )
    assert exact is not None
    asked = [tally.ways == label for label in labels]
    classes = tuple(
        ClassScores(
            label,
            names[label],
            int(asked[index].sum()),
            int((asked[index] & tally.shown).sum()),
            rest[index],
            rest[len(labels) + index],
        )
        for index, label in enumerate(labels)
    )
    return Scores(exact, miou, classes)


def _sums(tally: Tally, labels: Sequence[int]) -> _Floats:
    """What each episode adds: (E, 2 + 4 C) numerators and denominators.

    The columns are right and all episodes, then for each class right answers, answers, intersections, unions.
    """
    episodes, ways = tally.ways.shape
    right = tally.judged == tally.shown
    order = np.argsort(labels)
    column = order[np.searchsorted(labels, tally.ways, sorter=order)]
    row = np.arange(episodes)[:, None].repeat(ways, axis=1)
    per_class = np.zeros((4, episodes, len(labels)))
    for index, values in enumerate((right, np.ones_like(right), tally.intersections, tally.unions)):
        per_class[index, row, column] = values
    both = np.stack([right.all(axis=1), np.ones(episodes)], axis=1)
    return np.concatenate([both, *per_class], axis=1)


def _ratios(sums: _Floats) -> _Floats:
    """(R, 2 + 4 C) sums -> (R, 2 + 2 C) exact ratio, mIoU, presence and IoU of each class; NaN is 0 / 0."""
    exact = divide(sums[:, :1], sums[:, 1:2])
    right, answers, intersections, unions = np.split(sums[:, 2:], 4, axis=1)
    iou = divide(intersections, unions)
    measured = ~np.isnan(iou)
    miou = divide(np.where(measured, iou, 0).sum(axis=1, keepdims=True), measured.sum(axis=1, keepdims=True))
    return np.concatenate([exact, miou, divide(right, answers), iou], axis=1)


def _resample(sums: _Floats) -> _Floats:
    return np.concatenate([counts @ sums for counts in resamples(len(sums), len(sums))])


def resamples(size: int, cells: int) -> Iterator[npt.NDArray[np.float64]]:
    """Draw as many as there are, with replacement, `RESAMPLES` times: how often each is drawn is multinomial.

    Args:
        size: How many there are.
        cells: Numbers that the caller holds for each draw, which bounds the draws that come together.

    Yields:
        (draws, size) float64: how often each one is drawn.
    """
    rng = np.random.default_rng(RESAMPLING_SEED)
    chances = np.full(size, 1 / size)
    step = max(1, _CELLS_AT_ONCE // cells)
    for start in range(0, RESAMPLES, step):
        yield rng.multinomial(size, chances, size=min(step, RESAMPLES - start)).astype(np.float64)


def divide(part: _Floats, whole: npt.NDArray[np.float64] | npt.NDArray[np.intp]) -> _Floats:
    """Divide; NaN where the whole is 0."""
    ratio: _Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio


def score_of(value: float, spread: npt.NDArray[np.float64]) -> Score | None:
    """Make a score of an estimate in [0, 1] and its resamples; None where it is NaN, which is 0 / 0."""
    if np.isnan(value):
        return None
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(spread[~np.isnan(spread)], (tail, 100 - tail))
    return Score(100 * value, 100 * float(low), 100 * float(high))
