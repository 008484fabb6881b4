"""Evaluation on episodes: the same questions to any `FewShotModel`, with any engine.

Predictions and truth are compared at the model's input size, as in the published code. Episodes with the same query run
together, so that the encoder, which takes most of the time, sees each query once.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.learn.episodes import Episode, benchmark_episode, present
from fsvit_edge.learn.examples import FewShotData
from fsvit_edge.learn.metrics import CONFIDENCE, RESAMPLES, Scores, Tally, count_pixels, score
from fsvit_edge.runtime.engines.choose import EngineChoice
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.messages import Progress
from fsvit_edge.runtime.preprocess import resize_image, resize_mask

SUPPORT_CACHE_BYTES = 2**30
"""Room for 1,000 supports of a ViT-S/8 at 400 px whose masks cover a third of the picture."""
EPISODES_AT_ONCE = 64
"""Episodes of one query that run together; their label maps are in memory at the same time."""
REPORT_EVERY_S = 5.0


@dataclass(frozen=True)
class EvaluationOptions:
    """Which episodes to run."""

    ways: int = 1  # number of classes that an episode asks about
    shots: int = 1  # number of support pictures per class
    episodes: int = 1000  # number of episodes, numbered from 0
    masks: bool = True  # whether supports are enrolled with their masks, or with the class name only


@dataclass(frozen=True)
class Answer:
    """One episode with the model's answer."""

    number: int  # the episode's number
    episode: Episode
    prediction: Prediction  # at the model's input size S
    shown: npt.NDArray[np.bool_]  # (ways,) whether the query shows each class
    truth: npt.NDArray[np.uint8] | None  # (S, S): i + 1 is way i, 0 background, 255 ignored; None: a mask is missing


@dataclass(frozen=True)
class ModelIdentity:
    """The network that was evaluated."""

    name: str
    backbone: str
    head: str  # kind of head
    image_size: int  # side of its input in pixels
    precision: str  # of its engines
    sha256: dict[str, str]  # of each graph, by name


@dataclass(frozen=True)
class EvaluationResult:
    """The result of `evaluate`."""

    options: EvaluationOptions
    scores: Scores
    episodes_sha256: str  # of the episodes and of every file in them; equal if the questions were the same
    segmented: int  # number of episodes that count for the mIoU; the other queries have no mask
    model: ModelIdentity
    outlines: str  # "plain" or "sharp", see `FewShotModel.outlines`
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON; ratios are in percent."""
        return {
            **asdict(self.options),
            "episodes_sha256": self.episodes_sha256,
            "segmented": self.segmented,
            **asdict(self.scores),
            "interval": {"percent": CONFIDENCE, "resamples": RESAMPLES},
            "model": asdict(self.model),
            "outlines": self.outlines,
            "elapsed_s": self.elapsed_s,
        }


def evaluate(
    model: FewShotModel,
    data: FewShotData,
    options: EvaluationOptions,
    progress: Progress = lambda _: None,
    on_answer: Callable[[Answer], None] = lambda _: None,
    episodes: Sequence[Episode] | None = None,
) -> EvaluationResult:
    """Run test episodes; compute the 0/1 exact ratio and the mIoU. The model's enrolled classes stay unchanged.

    The answers come grouped by query, not in the order of the episodes' numbers. `episodes` replaces those of the
    benchmark; they fit the options.
    """
    if options.episodes < 1:
        raise InputError(f"An evaluation needs at least 1 episode; got {options.episodes}.")
    started, report = time.monotonic(), every_few_seconds(progress)
    if episodes is None:
        progress("draw episodes")
        episodes = [benchmark_episode(data, number, options.ways, options.shots) for number in range(options.episodes)]
    assert len(episodes) == options.episodes
    files, supports = _Files(data, options.masks), _Supports(model, data, options.masks)
    size = model.manifest.image_size
    shape = (options.episodes, options.ways)
    tally = Tally(
        np.array([episode.ways for episode in episodes], np.int64),
        np.zeros(shape, np.bool_),
        np.zeros(shape, np.bool_),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
    )
    digests = [""] * options.episodes
    done = segmented = 0
    for query, numbers in _by_query(episodes):
        banks = [supports.bank(episodes[number]) for number in numbers]
        predictions = model.predict_with(resize_image(data.read_image(query), size), banks)
        for number, prediction in zip(numbers, predictions, strict=True):
            episode, truth = episodes[number], None
            if files.has_truth(episode):
                truth = resize_mask(data.read_truth(query, episode.ways), size)
                pixels = count_pixels(prediction.label_map, truth, options.ways)
                tally.intersections[number], tally.unions[number] = pixels
                segmented += 1
            tally.shown[number] = present(data, episode)
            tally.predicted[number] = prediction.present
            digests[number] = files.digest(episode)
            on_answer(Answer(number, episode, prediction, tally.shown[number], truth))
        done += len(numbers)
        report(f"{done} of {options.episodes} episodes, {done / (time.monotonic() - started):.1f} per second")
    progress("compute confidence intervals")
    return EvaluationResult(
        options,
        score(tally, data.class_names),
        hashlib.sha256("".join(digests).encode()).hexdigest(),
        segmented,
        identify(model),
        model.outlines,
        time.monotonic() - started,
    )


def every_few_seconds(progress: Progress) -> Progress:
    """Return a function that passes on one message every `REPORT_EVERY_S` seconds and drops the others."""
    reported = time.monotonic()

    def report(text: str) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            progress(text)

    return report


def identify(model: FewShotModel) -> ModelIdentity:
    """Identify the network of a model."""
    manifest = model.manifest
    return ModelIdentity(
        manifest.name,
        manifest.backbone,
        manifest.head,
        manifest.image_size,
        model.choice.precision,
        {name: info.sha256 for name, info in manifest.graphs.items()},
    )


def cache_example(
    model: FewShotModel, data: FewShotData, index: int, masks: bool, others: Sequence[CachedSupport] = ()
) -> CachedSupport:
    """Make an example a cached support of its class, whose other supports score it: the class's level follows."""
    example = data.examples[index]
    if masks and example.mask is None:
        raise InputError(f"{example.image} has no mask; add one, or evaluate with --supports names.")
    # Ignored pixels count as background, as in the published code.
    mask = data.read_mask(index) == 1 if masks else None
    return model.cache_support(data.class_names[example.label], data.read_image(index), mask, others)


def to_json(result: dict[str, Any], choice: EngineChoice) -> str:
    """Return a result as JSON text, with the engine and the versions that computed it."""
    wanted = ("fsvit-edge", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch")
    found = {name: package.version for package in distributions() if (name := package.metadata["Name"]) in wanted}
    document = {
        **result,
        "engine": choice.engine,
        "precision": choice.precision,
        "computed_by": choice.description,
        "versions": {"python": platform.python_version(), **dict(sorted(found.items()))},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


class _Supports:
    """Makes the bank of each episode; a least-recently-used cache saves encoding a support again."""

    def __init__(self, model: FewShotModel, data: FewShotData, masks: bool) -> None:
        self._model, self._data, self._masks = model, data, masks
        self._cached: dict[int, CachedSupport] = {}  # the least recently used first

    def bank(self, episode: Episode) -> SupportBank:
        bank = self._model.bank.emptied()
        for label, indices in zip(episode.ways, episode.supports, strict=True):
            bank.add(self._data.class_names[label], [self._support(index) for index in indices])
        return bank

    def _support(self, index: int) -> CachedSupport:
        known = self._cached.pop(index, None)
        self._cached[index] = known or cache_example(self._model, self._data, index, self._masks)
        while len(self._cached) > 1 and sum(one.nbytes for one in self._cached.values()) > SUPPORT_CACHE_BYTES:
            del self._cached[next(iter(self._cached))]
        return self._cached[index]


class _Files:
    """The mask files and file digests of a data set."""

    def __init__(self, data: FewShotData, support_masks: bool) -> None:
        self._data, self._support_masks = data, support_masks
        self._masks: dict[tuple[str, int], Path | None] = {}
        for example in data.examples:
            self._masks.setdefault((example.photograph, example.label), example.mask)
        self._digest = lru_cache(maxsize=None)(_digest_of_file)

    def has_truth(self, episode: Episode) -> bool:
        """Return whether the query has a mask for its own class and for each way that it shows.

        Its own class is checked even if it is not among the ways: if only some pictures have masks, those without would
        count false alarms and never a hit.
        """
        query = self._data.examples[episode.query]
        return query.mask is not None and None not in self._truth_files(episode)

    def digest(self, episode: Episode) -> str:
        """Return the SHA-256 of an episode's class names and file contents."""
        query = self._data.examples[episode.query]
        supports = [self._data.examples[index] for indices in episode.supports for index in indices]
        files = [query.image, query.mask, *self._truth_files(episode), *(support.image for support in supports)]
        if self._support_masks:
            files += [support.mask for support in supports]
        names = [self._data.class_names[label] for label in episode.ways]
        text = json.dumps([names, [self._digest(path) for path in files]])
        return hashlib.sha256(text.encode()).hexdigest()

    def _truth_files(self, episode: Episode) -> list[Path | None]:
        photograph = self._data.examples[episode.query].photograph
        return [self._masks[photograph, label] for label in episode.ways if (photograph, label) in self._masks]


def _digest_of_file(path: Path | None) -> str | None:
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def _by_query(episodes: Sequence[Episode]) -> Iterator[tuple[int, list[int]]]:
    """Yield each query with the numbers of its episodes, in the order in which the queries first occur."""
    by_query: dict[int, list[int]] = {}
    for number, episode in enumerate(episodes):
        by_query.setdefault(episode.query, []).append(number)
    for query, numbers in by_query.items():
        for start in range(0, len(numbers), EPISODES_AT_ONCE):
            yield query, numbers[start : start + EPISODES_AT_ONCE]
