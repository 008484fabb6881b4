"""Evaluation on scenes: every class of a set is enrolled at once, and every other picture is asked for all of them.

Few-shot episodes show the class that is asked for in half of the queries; a camera hardly ever does. So here a class
has its own few pictures to find, and all others as scenes in which it must not be seen.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fsvit_edge.learn.datasets import FewShotData
from fsvit_edge.learn.episodes import Episode, present
from fsvit_edge.learn.evaluation import REPORT_EVERY_S, ModelIdentity, cache_example, identify
from fsvit_edge.learn.metrics import CONFIDENCE, RESAMPLES
from fsvit_edge.learn.scene_metrics import SceneScores, SceneTally, score_scenes
from fsvit_edge.runtime.bank import SupportBank
from fsvit_edge.runtime.cached_support import CachedSupport
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.predictor import FewShotModel
from fsvit_edge.runtime.preprocess import resize_image


@dataclass(frozen=True)
class SceneOptions:
    """What to enroll and what to ask.

    Attributes:
        shot: Supports of each class: its first pictures.
        masks: Enroll them with their masks; False enrolls by the class's name alone.
        per_class: Pictures of each class that are judged, spread evenly over the others; None judges all.
    """

    shot: int = 1
    masks: bool = True
    per_class: int | None = None


@dataclass(frozen=True)
class SceneResult:
    """What came out.

    Attributes:
        options: What was enrolled and asked.
        scores: The figures.
        tally: The answers from which they were made.
        pictures: How many were judged.
        model: Which network answered.
        outlines: See `EvaluationResult`.
        elapsed_s: How long it took.
    """

    options: SceneOptions
    scores: SceneScores
    tally: SceneTally
    pictures: int
    model: ModelIdentity
    outlines: str
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Give what JSON can hold, without the tally; shares are in percent."""
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
    """Enroll the first pictures of every class and judge the others by all classes.

    A photograph that is a support is not judged, under whatever class it stands, and each other photograph once.

    Args:
        model: The network; its enrolled classes are left as they are.
        data: A test selection.
        options: What to enroll and what to ask.
        progress: Is told now and then how far it has come.

    Raises:
        InputError: The selection has too few classes or pictures, or a file in it cannot be used.
        ArtifactError: The head's engine was built for fewer classes.
    """
    started = reported = time.monotonic()
    labels = tuple(data.class_names)
    if len(labels) < 2:
        raise InputError("Scenes without a class are pictures of the others; give at least 2 classes.")
    supports = {label: _supports(data, label, options.shot) for label in labels}
    queries = _queries(data, supports, options.per_class)
    bank = model.bank.emptied()
    for number, (label, indices) in enumerate(supports.items()):
        _enroll(model, data, bank, label, indices, options.masks)
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            progress(f"{number + 1} of {len(labels)} classes enrolled")
    size = model.manifest.image_size
    scores = np.zeros((len(queries), len(labels)))
    shown = np.zeros(scores.shape, np.bool_)
    began = time.monotonic()
    for row, query in enumerate(queries):
        (prediction,) = model.predict_with(resize_image(data.read_image(query), size), [bank])
        scores[row] = prediction.scores
        shown[row] = present(data, Episode(query, labels, ()))
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            progress(f"{row + 1} of {len(queries)} pictures, {(row + 1) / (reported - began):.1f} a second")
    progress("bootstrap")
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


def _supports(data: FewShotData, label: int, shot: int) -> list[int]:
    indices = list(data.of_class(label))
    if len(indices) <= shot:
        name = data.class_names[label]
        raise InputError(
            f"Class {name!r} has {len(indices)} pictures, too few for {shot} as supports and one to judge; choose a "
            "smaller --shot."
        )
    return indices[:shot]


def _queries(data: FewShotData, supports: dict[int, list[int]], per_class: int | None) -> list[int]:
    """Indices of the pictures to judge, of each photograph one."""
    taken = {data.examples[index].photograph for indices in supports.values() for index in indices}
    queries: dict[str, int] = {}
    for label in supports:
        others = [index for index in data.of_class(label) if data.examples[index].photograph not in taken]
        if per_class is not None and len(others) > per_class:
            others = [others[number * len(others) // per_class] for number in range(per_class)]
        for index in others:
            queries.setdefault(data.examples[index].photograph, index)
    if not queries:
        raise InputError("Every picture is a support of some class; give more pictures or fewer with --shot.")
    return list(queries.values())


def _enroll(
    model: FewShotModel, data: FewShotData, bank: SupportBank, label: int, indices: list[int], masks: bool
) -> None:
    enrolled: list[CachedSupport] = []
    for index in indices:
        enrolled.append(cache_example(model, data, index, masks, enrolled))
    bank.add(data.class_names[label], enrolled)
