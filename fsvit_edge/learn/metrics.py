"""0/1 exact ratio and mIoU over few-shot episodes, as the FS-CS task defines them, with bootstrap intervals.

Each episode contributes a few numbers per way, and every metric is a ratio of their sums. So a bootstrap resample is a
matrix product, and 2,000 of them take a fraction of a second.
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
"""Percentage of the resamples that an interval covers."""
RESAMPLES = 2000
RESAMPLING_SEED = 0
CELLS_AT_ONCE = 2**22
"""Maximum number of resamples x episodes in memory at once: 32 MB of weights."""


@dataclass(frozen=True)
class Score:
    """A ratio in percent, with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class, over the episodes that ask about it."""

    label: int  # the class's number in its data set
    name: str
    asked: int  # number of episodes that ask about it
    shown: int  # number of these episodes whose query shows it
    presence: Score | None  # share of right presence answers; None if it was never asked about
    iou: Score | None  # sum of intersections over sum of unions; None if it is neither shown nor predicted


@dataclass(frozen=True)
class Scores:
    """The scores over all episodes."""

    exact_ratio: Score  # share of the episodes in which every presence answer is right
    miou: Score | None  # mean IoU of the classes that have one; None if none has
    classes: tuple[ClassScores, ...]  # in the order of the data set


@dataclass(frozen=True)
class Tally:
    """The numbers that E episodes of N ways contribute; row e is episode e."""

    ways: Counts  # (E, N) int64 labels of the classes, all different within a row
    shown: npt.NDArray[np.bool_]  # (E, N) whether the query shows the class
    predicted: npt.NDArray[np.bool_]  # (E, N) whether the model predicts that it does
    intersections: Counts  # (E, N) int64 pixels
    unions: Counts  # (E, N) int64 pixels


def count_pixels(prediction: Labels, truth: Labels, ways: int) -> tuple[Counts, Counts]:
    """Count the pixels of intersection and union per way: 2 x (ways,) int64.

    Prediction and truth are (H, W) uint8: 0 is background, i + 1 is way i; pixels whose truth is 255 are ignored.
    """
    counted = truth != IGNORE
    predicted, true = prediction[counted].astype(np.int64), truth[counted].astype(np.int64)
    size = ways + 1
    confusion = np.bincount(true * size + predicted, minlength=size * size).reshape(size, size)
    intersections = np.diagonal(confusion)
    unions = confusion.sum(axis=0) + confusion.sum(axis=1) - intersections
    return intersections[1:].astype(np.int64), unions[1:].astype(np.int64)


def score(tally: Tally, names: Mapping[int, str]) -> Scores:
    """Compute the scores of at least one episode, with bootstrap percentile intervals.

    `names` maps the labels of the classes to average over to their names; it includes every way.
    """
    labels = list(names)
    sums = _sums(tally, labels)
    estimate = _ratios(sums.sum(axis=0, keepdims=True))
    resampled = _ratios(np.concatenate([counts @ sums for counts in resamples(len(sums), len(sums))]))
    exact, miou, *rest = (
        score_of(value, spread) for value, spread in zip(estimate[0].tolist(), resampled.T, strict=True)
    )
    assert exact is not None
    classes = []
    for label, presence, iou in zip(labels, rest[: len(labels)], rest[len(labels) :], strict=True):
        asked = tally.ways == label
        shown = int((asked & tally.shown).sum())
        classes.append(ClassScores(label, names[label], int(asked.sum()), shown, presence, iou))
    return Scores(exact, miou, tuple(classes))


def _sums(tally: Tally, labels: Sequence[int]) -> _Floats:
    """Return what each episode adds to numerators and denominators, (E, 2 + 4 C).

    Columns: exactly right episodes, episodes, then C columns each of right answers, answers, intersections, unions.
    """
    episodes, ways = tally.ways.shape
    right = tally.predicted == tally.shown
    order = np.argsort(labels)
    column = order[np.searchsorted(labels, tally.ways, sorter=order)]
    row = np.arange(episodes)[:, None].repeat(ways, axis=1)
    per_class = np.zeros((4, episodes, len(labels)))
    for index, values in enumerate((right, np.ones_like(right), tally.intersections, tally.unions)):
        per_class[index, row, column] = values
    both = np.stack([right.all(axis=1), np.ones(episodes)], axis=1)
    return np.concatenate([both, *per_class], axis=1)


def _ratios(sums: _Floats) -> _Floats:
    """(R, 2 + 4 C) sums -> (R, 2 + 2 C) exact ratio, mIoU, presence per class, IoU per class; NaN stands for 0 / 0."""
    exact = divide(sums[:, :1], sums[:, 1:2])
    right, answers, intersections, unions = np.split(sums[:, 2:], 4, axis=1)
    iou = divide(intersections, unions)
    return np.concatenate([exact, mean_of_measured(iou)[:, None], divide(right, answers), iou], axis=1)


def resamples(size: int, cells: int) -> Iterator[npt.NDArray[np.float64]]:
    """Draw `size` of `size` items with replacement, `RESAMPLES` times; `cells` numbers per draw are kept in memory.

    Yields (draws, size) float64: how often each item is drawn (a multinomial distribution).
    """
    rng = np.random.default_rng(RESAMPLING_SEED)
    chances = np.full(size, 1 / size)
    step = max(1, CELLS_AT_ONCE // cells)
    for start in range(0, RESAMPLES, step):
        yield rng.multinomial(size, chances, size=min(step, RESAMPLES - start)).astype(np.float64)


def divide(part: _Floats, whole: npt.NDArray[np.float64] | npt.NDArray[np.intp]) -> _Floats:
    """Divide; the result is NaN where `whole` is 0."""
    ratio: _Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio


def mean_of_measured(ratios: _Floats) -> _Floats:
    """Return the mean over axis 1 of what is not NaN; NaN if nothing is."""
    measured = ~np.isnan(ratios)
    return divide(np.where(measured, ratios, 0).sum(axis=1), measured.sum(axis=1))


def score_of(value: float, spread: npt.NDArray[np.float64]) -> Score | None:
    """Make a score from an estimate in [0, 1] and its resamples; None if the estimate is NaN (0 / 0)."""
    if np.isnan(value):
        return None
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(spread[~np.isnan(spread)], (tail, 100 - tail))
    return Score(100 * value, 100 * float(low), 100 * float(high))
