"""Evaluation: the same episodes through any `FewShotModel`, whatever computes in it.

The query is judged at the model's input size, where its truth is compared with the label map, as published. Episodes
that ask about the same picture run one after the other, so that the encoder, which is the cost, sees it once.
"""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fsvit_edge.learn.datasets import FewShotData
from fsvit_edge.learn.episodes import Episode, benchmark_episode, present
from fsvit_edge.learn.metrics import CONFIDENCE, RESAMPLES, Scores, Tally, count_pixels, score
from fsvit_edge.runtime.bank import SupportBank
from fsvit_edge.runtime.cached_support import CachedSupport
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.prediction import Prediction
from fsvit_edge.runtime.predictor import FewShotModel
from fsvit_edge.runtime.preprocess import resize_image, resize_mask

_SUPPORT_CACHE_BYTES = 2**30
"""Of cached supports: 1,000 of a ViT-S/8 at 400 px under masks that cover a third of the picture."""
_EPISODES_AT_ONCE = 64
"""Of one query: their label maps are held together."""
REPORT_EVERY_S = 5.0


@dataclass(frozen=True)
class EvaluationOptions:
    """Which episodes to run.

    Attributes:
        way: Classes of an episode.
        shot: Support pictures of each.
        episodes: How many, numbered from 0.
        masks: Enroll the supports with their masks; False enrolls by the class's name alone.
    """

    way: int = 1
    shot: int = 1
    episodes: int = 1000
    masks: bool = True


@dataclass(frozen=True)
class Answer:
    """One episode with what the model said, to draw or to look into.

    Attributes:
        number: The episode's number.
        episode: What was asked.
        prediction: At the model's input size.
        shown: Whether the query shows each way's class, (way,) bool.
        truth: (S, S) uint8 at the model's input size: i + 1 is way i, 255 is not looked at; None where a mask is
            missing.
    """

    number: int
    episode: Episode
    prediction: Prediction
    shown: npt.NDArray[np.bool_]
    truth: npt.NDArray[np.uint8] | None


@dataclass(frozen=True)
class ModelIdentity:
    """Which network answered.

    Attributes:
        name: What people call it.
        backbone: Name of the encoder.
        head: Kind of the head.
        image_size: Side of its input in pixels.
        precision: What its engines compute in.
        sha256: Of each graph, by name.
    """

    name: str
    backbone: str
    head: str
    image_size: int
    precision: str
    sha256: dict[str, str]


@dataclass(frozen=True)
class EvaluationResult:
    """What came out.

    Attributes:
        options: Which episodes were run.
        scores: The figures.
        episodes_sha256: Of the episodes drawn and of every file in them; equal where the questions were the same.
        segmented: Episodes that count for the mIoU; the others' queries have no mask.
        model: Which network answered.
        outlines: With which outlines, "plain" or "sharp"; see `FewShotModel.outlines`.
        elapsed_s: How long it took.
    """

    options: EvaluationOptions
    scores: Scores
    episodes_sha256: str
    segmented: int
    model: ModelIdentity
    outlines: str
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Give what JSON can hold; ratios are in percent."""
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
    progress: Callable[[str], None] = lambda _: None,
    on_answer: Callable[[Answer], None] = lambda _: None,
    episodes: Sequence[Episode] | None = None,
) -> EvaluationResult:
    """Run test episodes and sum up 0/1 exact ratio and mIoU.

    Args:
        model: The network; its enrolled classes are left as they are.
        data: A test selection.
        options: Which episodes.
        progress: Is told now and then how far it has come.
        on_answer: Is given each episode's answer, ordered by the queries, not by the episodes' numbers.
        episodes: Of the way, the shot and the number that the options say; None draws the benchmark's.

    Raises:
        InputError: The selection has too few classes or pictures, or a file in it cannot be used.
    """
    if options.episodes < 1:
        raise InputError(f"An evaluation needs at least 1 episode; got {options.episodes}.")
    started = reported = time.monotonic()
    if episodes is None:
        progress("draw episodes")
        episodes = [benchmark_episode(data, number, options.way, options.shot) for number in range(options.episodes)]
    assert len(episodes) == options.episodes
    files = _Files(data, options.masks)
    supports = _Supports(model, data, options.masks)
    shape = (options.episodes, options.way)
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
        size = model.manifest.image_size
        predictions = model.predict_with(resize_image(data.read_image(query), size), banks)
        for number, prediction in zip(numbers, predictions, strict=True):
            episode = episodes[number]
            truth = None
            if files.has_truth(episode):
                truth = resize_mask(data.read_truth(query, episode.ways), size)
                tally.intersections[number], tally.unions[number] = count_pixels(
                    prediction.label_map, truth, options.way
                )
                segmented += 1
            tally.shown[number] = present(data, episode)
            tally.judged[number] = prediction.present
            digests[number] = files.digest(episode)
            on_answer(Answer(number, episode, prediction, tally.shown[number], truth))
        done += len(numbers)
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            progress(f"{done} of {options.episodes} episodes, {done / (reported - started):.1f} a second")
    progress("bootstrap")
    return EvaluationResult(
        options,
        score(tally, data.class_names),
        hashlib.sha256("".join(digests).encode()).hexdigest(),
        segmented,
        identify(model),
        model.outlines,
        time.monotonic() - started,
    )


def identify(model: FewShotModel) -> ModelIdentity:
    """Tell which network a model is."""
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
    """Cache an example as a support of its class.

    Args:
        model: The network.
        data: Holds the example.
        index: Of the example.
        masks: Take its mask; False takes the class's name alone.
        others: The class's other supports, by which it is judged.

    Raises:
        InputError: It has no mask where one is asked for, or a file cannot be used.
    """
    example = data.examples[index]
    if masks and example.mask is None:
        raise InputError(f"{example.image} has no mask; evaluate with --supports names or give it one.")
    # Unknown pixels are no foreground, as published.
    mask = data.read_mask(index) == 1 if masks else None
    return model.cache_support(data.class_names[example.label], data.read_image(index), mask, others)


class _Supports:
    """Banks of cached supports; a picture is encoded once as long as it is remembered."""

    def __init__(self, model: FewShotModel, data: FewShotData, masks: bool) -> None:
        self._model = model
        self._data = data
        self._masks = masks
        self._cached: OrderedDict[int, CachedSupport] = OrderedDict()
        self._bytes = 0

    def bank(self, episode: Episode) -> SupportBank:
        """The support classes of an episode."""
        bank = self._model.bank.emptied()
        for label, indices in zip(episode.ways, episode.supports, strict=True):
            bank.add(self._data.class_names[label], [self._support(index) for index in indices])
        return bank

    def _support(self, index: int) -> CachedSupport:
        if index in self._cached:
            self._cached.move_to_end(index)
            return self._cached[index]
        support = cache_example(self._model, self._data, index, self._masks)
        self._cached[index] = support
        self._bytes += support.nbytes
        while self._bytes > _SUPPORT_CACHE_BYTES and len(self._cached) > 1:
            _, oldest = self._cached.popitem(last=False)
            self._bytes -= oldest.nbytes
        return support


class _Files:
    """What is known of the files of a selection."""

    def __init__(self, data: FewShotData, support_masks: bool) -> None:
        self._data = data
        self._support_masks = support_masks
        self._masks: dict[tuple[str, int], Path | None] = {}
        for example in data.examples:
            self._masks.setdefault((example.photograph, example.label), example.mask)
        self._digests: dict[Path, str] = {}

    def has_truth(self, episode: Episode) -> bool:
        """Whether the query has the masks of its own class and of every way's class under which it stands.

        Its own even where that is none of the ways: among pictures of which some have masks, those without would add
        false alarms and never a hit.
        """
        query = self._data.examples[episode.query]
        return query.mask is not None and None not in self._truth_files(episode)

    def digest(self, episode: Episode) -> str:
        """Tell an episode by its classes and the contents of its files."""
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

    def _digest(self, path: Path | None) -> str | None:
        if path is None:
            return None
        if path not in self._digests:
            self._digests[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._digests[path]


def _by_query(episodes: Sequence[Episode]) -> Iterator[tuple[int, list[int]]]:
    """A query with the numbers of its episodes, in the order in which the queries first come."""
    numbers: dict[int, list[int]] = {}
    for number, episode in enumerate(episodes):
        numbers.setdefault(episode.query, []).append(number)
    for query, its in numbers.items():
        for start in range(0, len(its), _EPISODES_AT_ONCE):
            yield query, its[start : start + _EPISODES_AT_ONCE]
