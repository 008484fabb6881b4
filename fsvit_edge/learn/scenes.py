"""Evaluation on scenes: enroll every class of a data set at once, then look for all of them in all remaining pictures.

In half of the few-shot episodes the query shows the class asked about; a camera frame rarely does. Here, a class is to
be found in its own few pictures, and every picture of another class is a scene in which it must not be found.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fsvit_edge.learn.episodes import Episode, present
from fsvit_edge.learn.evaluation import ModelIdentity, cache_example, every_few_seconds, identify
from fsvit_edge.learn.examples import FewShotData
from fsvit_edge.learn.metrics import CONFIDENCE, RESAMPLES
from fsvit_edge.learn.scene_metrics import SceneScores, SceneTally, score_scenes
from fsvit_edge.runtime.cached_support import CachedSupport
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.predictor import FewShotModel
from fsvit_edge.runtime.preprocess import resize_image


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
    progress: Callable[[str], None] = lambda _: None,
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
