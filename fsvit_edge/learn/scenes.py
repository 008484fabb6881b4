"""Evaluation on scenes: enroll every class of a data set at once, then look for all of them in all remaining pictures.

In half of the few-shot episodes the query shows the class asked about; a camera frame rarely does. Here, a class is to
be found in its own few pictures, and every picture of another class is a scene in which it must not be found. Scores
tell how well presence scores separate the two, with bootstrap intervals.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.learn.episodes import Episode, present
from fsvit_edge.learn.evaluation import ModelIdentity, cache_example, every_few_seconds, identify
from fsvit_edge.learn.examples import FewShotData
from fsvit_edge.learn.metrics import CONFIDENCE, RESAMPLES, Score, divide, mean_of_measured, resamples, score_of
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.messages import Progress
from fsvit_edge.runtime.preprocess import resize_image

_Floats = npt.NDArray[np.float64]

FALSE_ALARM_SHARES = (0.01, 0.001)
"""Shares of false alarms at which hits are measured, besides those at the current levels."""
_ROUNDING = 1e-9
_OVERALL, _PER_CLASS = 7, 5
"""Number of metrics."""


@dataclass(frozen=True)
class SceneTally:
    """The answers for P pictures that are asked about C classes each."""

    scores: _Floats  # (P, C) P(present)
    levels: _Floats  # (C,) the score above which each class counts as present
    shown: npt.NDArray[np.bool_]  # (P, C) whether the picture shows the class; if not, it is a scene without it


@dataclass(frozen=True)
class ClassSceneScores:
    """The scores of one class; None if it has no pictures or there are no scenes without it."""

    label: int  # the class's number in its data set
    name: str
    level: float  # the score above which it counts as present
    pictures: int  # number of pictures that show it
    scenes: int  # number of pictures that do not
    hits: Score | None  # share of its pictures in which it is found
    false_alarms: Score | None  # share of the scenes without it in which it is found
    area: Score | None  # under the curve of hits over false alarms: how often a picture of it scores above a scene
    hits_at_1_percent: Score | None  # hits at the lowest level with at most 1 % false alarms
    hits_at_01_percent: Score | None  # likewise with at most 0.1 % (none, below 1,000 scenes)


@dataclass(frozen=True)
class SceneScores:
    """The scores over all classes: means over the classes that have a score."""

    hits: Score | None  # at the current levels
    false_alarms: Score | None  # at the current levels
    area: Score | None  # under the curve of hits over false alarms
    hits_at_1_percent: Score | None  # with one level per class, each with at most 1 % false alarms
    hits_at_01_percent: Score | None  # likewise with at most 0.1 %
    pooled_hits_at_1_percent: Score | None  # with one level for all, with at most 1 % false alarms over all scenes
    pooled_hits_at_01_percent: Score | None  # likewise with at most 0.1 %
    classes: tuple[ClassSceneScores, ...]  # in the order of the data set


@dataclass(frozen=True)
class SceneOptions:
    """What to enroll and what to ask."""

    shots: int = 1  # number of supports per class: its first pictures
    masks: bool = True  # whether supports are enrolled with their masks, or with the class name only
    per_class: int | None = None  # maximum number of scenes per class, spread evenly over its pictures; None: all


@dataclass(frozen=True)
class SceneResult:
    """The result of `evaluate_scenes`."""

    options: SceneOptions
    scores: SceneScores
    tally: SceneTally  # the answers from which the scores are computed
    pictures: int  # number of pictures asked about
    model: ModelIdentity
    outlines: str  # "plain" or "sharp", see `FewShotModel.outlines`
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON, without the tally; shares are in percent."""
        return {
            "protocol": "scenes",
            **asdict(self.options),
            "pictures": self.pictures,
            **asdict(self.scores),
            "interval": {"percent": CONFIDENCE, "resamples": RESAMPLES, "resampled": "pictures"},
            "model": asdict(self.model),
            "outlines": self.outlines,
            "elapsed_s": self.elapsed_s,
        }


def evaluate_scenes(
    model: FewShotModel,
    data: FewShotData,
    options: SceneOptions,
    progress: Progress = lambda _: None,
) -> SceneResult:
    """Enroll the first pictures of every class, and look for all classes in the other pictures.

    A photograph that is a support of any class is not asked about; every other photograph is, once. The model's
    enrolled classes stay unchanged. An engine of the head that was built for fewer classes is an ArtifactError.
    """
    started, report = time.monotonic(), every_few_seconds(progress)
    labels = tuple(data.class_names)
    if len(labels) < 2:
        raise InputError("Scenes need at least 2 classes, because the pictures of one are scenes without the other.")
    supports = {label: _supports(data, label, options.shots) for label in labels}
    queries = _queries(data, supports, options.per_class)
    bank = model.bank.emptied()
    for number, (label, indices) in enumerate(supports.items(), start=1):
        enrolled: list[CachedSupport] = []
        for index in indices:
            enrolled.append(cache_example(model, data, index, options.masks, enrolled))
        bank.add(data.class_names[label], enrolled)
        report(f"{number} of {len(labels)} classes enrolled")
    size = model.manifest.image_size
    scores = np.zeros((len(queries), len(labels)))
    shown = np.zeros(scores.shape, np.bool_)
    began = time.monotonic()
    for row, query in enumerate(queries):
        (prediction,) = model.predict_with(resize_image(data.read_image(query), size), [bank])
        scores[row] = prediction.scores
        shown[row] = present(data, Episode(query, labels, ()))
        report(f"{row + 1} of {len(queries)} pictures, {(row + 1) / (time.monotonic() - began):.1f} per second")
    progress("compute confidence intervals")
    tally = SceneTally(scores, prediction.levels.astype(np.float64), shown)
    return SceneResult(
        options,
        score_scenes(tally, data.class_names),
        tally,
        len(queries),
        identify(model),
        model.outlines,
        time.monotonic() - started,
    )


def _supports(data: FewShotData, label: int, shots: int) -> list[int]:
    indices = list(data.of_class(label))
    if len(indices) <= shots:
        name = data.class_names[label]
        raise InputError(
            f"Class {name!r} has {len(indices)} pictures, too few for {shots} supports and a scene; use fewer --shots."
        )
    return indices[:shots]


def _queries(data: FewShotData, supports: dict[int, list[int]], per_class: int | None) -> list[int]:
    """Return the indices of the pictures to ask about, one per photograph."""
    taken = {data.examples[index].photograph for indices in supports.values() for index in indices}
    queries: dict[str, int] = {}
    for label in supports:
        others = [index for index in data.of_class(label) if data.examples[index].photograph not in taken]
        if per_class is not None and len(others) > per_class:
            others = [others[number * len(others) // per_class] for number in range(per_class)]
        for index in others:
            queries.setdefault(data.examples[index].photograph, index)
    if not queries:
        raise InputError("Every picture is a support of some class; add pictures or use fewer --shots.")
    return list(queries.values())


def score_scenes(tally: SceneTally, names: Mapping[int, str]) -> SceneScores:
    """Compute the scores of at least one picture, with bootstrap percentile intervals.

    The pictures are resampled, the classes and supports are not, so an interval says nothing about other classes.
    `names` maps label to name, in the order of the tally.
    """
    count, classes = tally.scores.shape
    estimate = _metrics(tally, np.ones((1, count)))[0].tolist()
    spread = np.concatenate([_metrics(tally, counts) for counts in resamples(count, count * classes)])
    scores = [score_of(value, column) for value, column in zip(estimate, spread.T, strict=True)]
    per_class = tuple(
        ClassSceneScores(
            label,
            name,
            float(tally.levels[index]),
            int(tally.shown[:, index].sum()),
            int((~tally.shown[:, index]).sum()),
            *scores[_OVERALL + index * _PER_CLASS : _OVERALL + (index + 1) * _PER_CLASS],
        )
        for index, (label, name) in enumerate(names.items())
    )
    hits, false_alarms, area, own_1, own_01, pooled_1, pooled_01 = scores[:_OVERALL]
    return SceneScores(hits, false_alarms, area, own_1, own_01, pooled_1, pooled_01, per_class)


def hits_and_false_alarms(tally: SceneTally) -> tuple[float, float]:
    """Return both at the levels of the tally: means over the classes in percent, without intervals."""
    hits, false_alarms = _metrics(tally, np.ones((1, len(tally.scores))))[0, :2]
    return 100 * float(hits), 100 * float(false_alarms)


def _metrics(tally: SceneTally, counts: _Floats) -> _Floats:
    """(R, P) how often each picture is drawn -> (R, 7 + 5 C) overall and per-class metrics; NaN stands for 0 / 0."""
    by_class = []
    for scores, level, shown in zip(tally.scores.T, tally.levels, tally.shown.T, strict=True):
        present = scores > level
        rates = [
            divide(counts @ (present & which).astype(np.float64), counts @ which.astype(np.float64))
            for which in (shown, ~shown)
        ]
        by_class.append(np.stack([*rates, *_ranking(scores, shown, counts)], axis=1))
    stacked = np.stack(by_class, axis=1)
    pooled = _ranking(tally.scores.ravel(), tally.shown.ravel(), counts.repeat(tally.scores.shape[1], axis=1))[1:]
    return np.concatenate(
        [mean_of_measured(stacked), np.stack(pooled, axis=1), stacked.reshape(len(counts), -1)], axis=1
    )


def _ranking(scores: _Floats, shown: npt.NDArray[np.bool_], counts: _Floats) -> list[_Floats]:
    """Return the metrics that need no level, (R,) each: the area, and the hits at each of `FALSE_ALARM_SHARES`."""
    own, scene = np.flatnonzero(shown), np.flatnonzero(~shown)
    own, scene = own[np.argsort(scores[own])], scene[np.argsort(scores[scene])]
    hits, alarms = scores[own], scores[scene]
    # Column n: the total count of the n pictures with the lowest scores.
    own_sums, scene_sums = _cumulated(counts[:, own]), _cumulated(counts[:, scene])
    all_own, all_scenes = own_sums[:, -1], scene_sums[:, -1]
    below, up_to = (scene_sums[:, np.searchsorted(alarms, hits, side)] for side in ("left", "right"))
    figures = [divide((counts[:, own] * (below + up_to) / 2).sum(axis=1), all_own * all_scenes)]
    # Column n: the hits if the score of the n-th lowest scene is the level; an equal score is no hit.
    hits_above = all_own[:, None] - own_sums[:, np.searchsorted(hits, alarms, "right")]
    for share in FALSE_ALARM_SHARES:
        # The lowest scene with no more than this share of the scenes above it.
        enough = all_scenes[:, None] - scene_sums[:, 1:] <= share * all_scenes[:, None] + _ROUNDING
        if not scene.size:
            figures.append(np.full(len(counts), np.nan))
            continue
        at_level = hits_above[np.arange(len(counts)), enough.argmax(axis=1)]
        figures.append(divide(at_level, np.where(all_scenes > 0, all_own, 0)))
    return figures


def _cumulated(counts: _Floats) -> _Floats:
    return np.concatenate([np.zeros((len(counts), 1)), counts.cumsum(axis=1)], axis=1)
