"""The head on its engines: supports padded to a few runs, or on a CPU one support a run and several runs at once."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.cached_support import CachedSupport, ClassSupports
from fsvit_edge.fewshot.clusters import fewer_tokens
from fsvit_edge.fewshot.decide import Flags
from fsvit_edge.fewshot.head_runs import head_runs
from fsvit_edge.runtime.bundle import EXPORT_AGAIN
from fsvit_edge.runtime.engines.base import Array, Engine, ResidentTensor, TensorSpec, on_host
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError
from fsvit_edge.runtime.postprocess import Maps

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class HeadAnswer:
    """What the head found in one frame, for each class; valid until the head's next run."""

    scores: npt.NDArray[np.float32]  # P(present), (ways,), in [0, 1]; rounding may lift a mean slightly above 1
    outline: Callable[[Flags], Maps]

    def __post_init__(self) -> None:
        check_finite(self.scores, "score")

    def foreground(self, wanted: Flags | None = None) -> Maps:
        """Return P(foreground) (ways, m, m) float32 in [0, 1], align_corners; 0 of classes not in `wanted` (ways,)."""
        return check_finite(self.outline(np.ones(len(self.scores), np.bool_) if wanted is None else wanted), "outline")


def check_finite(values: npt.NDArray[np.float32], what: str) -> npt.NDArray[np.float32]:
    """Return what the model computed; an FsvitEdgeError if a value is infinite or not a number."""
    if not np.isfinite(values).all():
        raise FsvitEdgeError(
            f"The model computed a value that is not a finite number (of: {what}); its files or its engine are at "
            "fault: check them with fsvit-edge inspect, or try --precision fp32 and --engine onnxruntime."
        )
    return values


def known_size(spec: TensorSpec, axis: int) -> int:
    """Return a size that a graph must fix; an ArtifactError if it is known only at run time."""
    size = spec.shape[axis]
    if isinstance(size, str):
        raise ArtifactError(f"The input or output {spec.name!r} has an unknown size {size!r:.40}; {EXPORT_AGAIN}.")
    return size


class Head(Protocol):
    """Compares frames with supports."""

    limits: Mapping[str, int]
    """The engine's, see `Engine.limits`."""
    token_dtype: str
    """The type of the frame's tokens, NumPy's name."""
    mask_size: int
    """Side m of the outlines."""
    steps: int
    """Grows whenever a part of a frame's work is done, by which a slow head is told from one that hangs."""

    def compare(self, tokens: Array | ResidentTensor, classes: Sequence[ClassSupports]) -> HeadAnswer:
        """Compare the tokens of a frame, (1, C, N, d), with each class.

        The supports of the last call stay where the head computes, and are uploaded again only if they change.
        """

    def close(self) -> None:
        """Free the engines; a second call does nothing."""


class PaddedHead:
    """The head as one graph that compares a frame with many supports, padded to the longest.

    Args:
        engine: The graph "head".
        kind: One of `bundle.HEADS`.
    """

    def __init__(self, engine: Engine, kind: str) -> None:
        self.limits = engine.limits
        self.steps = 0
        self.engine = engine
        self._kind = kind
        self.token_dtype = next(spec.dtype for spec in engine.inputs if spec.name == "tokens")
        self.mask_size = next(known_size(spec, 1) for spec in engine.outputs if spec.name == "foreground")
        self._uploaded: tuple[Sequence[ClassSupports], list[tuple[slice, dict[str, ResidentTensor]]]] | None = None

    def compare(self, tokens: Array | ResidentTensor, classes: Sequence[ClassSupports]) -> HeadAnswer:
        """See `Head.compare`; the outlines are there already."""
        scores = np.zeros(len(classes), np.float32)
        foreground = np.zeros((len(classes), self.mask_size, self.mask_size), np.float32)
        for ways, supports in self._runs(classes, tokens.shape[2]) if classes else ():
            answer = self.engine.run({"tokens": tokens, **supports})
            scores[ways] += np.asarray(answer["presence"].numpy(), np.float32)
            foreground[ways] += np.asarray(answer["foreground"].numpy(), np.float32)
            self.steps += 1
        return HeadAnswer(scores, lambda wanted: foreground * wanted[:, None, None])

    def close(self) -> None:
        """See `Head.close`."""
        self._uploaded = None
        self.engine.close()

    def _runs(self, classes: Sequence[ClassSupports], num_query: int) -> list[tuple[slice, dict[str, ResidentTensor]]]:
        """Return for each run its classes and its feed without the frame's tokens."""
        if self._uploaded is not None and are_same(self._uploaded[0], classes):
            return self._uploaded[1]
        self._uploaded = None  # first, for the GPU may not hold both
        limit = self.limits.get("ways", len(classes))
        runs = [
            (slice(first, first + limit), {name: self.engine.upload(array) for name, array in feed.items()})
            for first in range(0, len(classes), limit)
            for feed in head_runs(classes[first : first + limit], self._kind, num_query, self.engine)
        ]
        self._uploaded = (classes, runs)
        return runs


@dataclass(frozen=True)
class _Run:
    """One support, where the head computes."""

    way: int
    share: float  # of the support in its class's answer
    feed: dict[str, ResidentTensor]


class SplitHead:
    """The head on a CPU: each support is a run of its own, nothing is padded, and outlines are made when asked for.

    Runs are spread over threads, because the head's operators are too small to be.

    Args:
        alone: The graph "compare" on one thread.
        wide: The same on all threads, for a run that has no other beside it.
        outline: The graph "outline" on one thread.
        threads: How many runs at once.
        most_tokens: Image tokens of a support to compare with, see `fewer_tokens`; 0: all.
    """

    def __init__(self, alone: Engine, wide: Engine, outline: Engine, threads: int, most_tokens: int = 0) -> None:
        self.limits: Mapping[str, int] = {}
        self.steps = 0
        self._alone, self._wide, self._outline = alone, wide, outline
        self._threads = threads
        self._most_tokens = most_tokens
        self._pool = ThreadPoolExecutor(threads, "fsvit-head") if threads > 1 else None
        blocks = next(spec for spec in alone.inputs if spec.name == "tokens")
        self._num_blocks, self._block_size = known_size(blocks, 0), known_size(blocks, 2)
        self.token_dtype = blocks.dtype
        self.mask_size = next(known_size(spec, 1) for spec in outline.outputs if spec.name == "foreground")
        self._uploaded: tuple[Sequence[ClassSupports], list[_Run]] | None = None
        self._feeds: dict[int, tuple[weakref.ref[CachedSupport], dict[str, ResidentTensor]]] = {}

    def compare(self, tokens: Array | ResidentTensor, classes: Sequence[ClassSupports]) -> HeadAnswer:
        """See `Head.compare`."""
        scores = np.zeros(len(classes), np.float32)
        runs = self._runs(classes)
        blocks = self._alone.upload(self._in_blocks(on_host(tokens)[0]))
        # The longest run first; one that would have no other beside it gets all threads.
        apart = 1 if len(runs) % self._threads == 1 else 0
        answers = [self._step(self._wide, {"tokens": blocks, **run.feed}) for run in runs[:apart]]
        answers += self._spread(lambda run: self._step(self._alone, {"tokens": blocks, **run.feed}), runs[apart:])
        for run, answer in zip(runs, answers, strict=True):
            scores[run.way] += run.share * float(answer["presence"].numpy()[0])
        mask_tokens = [answer["mask_tokens"] for answer in answers]

        def outline(wanted: Flags) -> Maps:
            chosen = [(run, found) for run, found in zip(runs, mask_tokens, strict=True) if wanted[run.way]]
            drawn = self._spread(lambda pair: self._step(self._outline, {"mask_tokens": pair[1]}), chosen)
            foreground = np.zeros((len(classes), self.mask_size, self.mask_size), np.float32)
            for (run, _), answer in zip(chosen, drawn, strict=True):
                foreground[run.way] += np.float32(run.share) * answer["foreground"].numpy()[0]
            return foreground

        return HeadAnswer(scores, outline)

    def close(self) -> None:
        """See `Head.close`."""
        self._uploaded = None
        self._feeds.clear()
        if self._pool is not None:
            self._pool.shutdown()
        for engine in (self._alone, self._wide, self._outline):
            engine.close()

    def _in_blocks(self, tokens: Array) -> Array:
        """Cut (C, N, d) into (B, C, n, d), filled up with zeros."""
        channels, length, dim = tokens.shape
        whole, rest = divmod(length, self._block_size)
        blocks = np.empty((self._num_blocks, channels, self._block_size, dim), tokens.dtype)
        cut = tokens[:, : length - rest].reshape(channels, whole, self._block_size, dim)
        blocks[:whole] = cut.transpose(1, 0, 2, 3)
        if rest:
            blocks[whole, :, :rest] = tokens[:, length - rest :]
            blocks[whole, :, rest:] = 0
        return blocks

    def _step(self, engine: Engine, feed: Mapping[str, Array | ResidentTensor]) -> dict[str, ResidentTensor]:
        answer = engine.run(feed)
        self.steps += 1  # several threads may count as one, which is progress all the same
        return answer

    def _spread(
        self, work: Callable[[_Item], dict[str, ResidentTensor]], items: Sequence[_Item]
    ) -> list[dict[str, ResidentTensor]]:
        if self._pool is None or len(items) < 2:
            return [work(item) for item in items]
        return list(self._pool.map(work, items))

    def _feed(self, support: CachedSupport) -> dict[str, ResidentTensor]:
        """Return the inputs of "compare" for one support; made once while the support lives, for it takes a while."""
        known = self._feeds.get(id(support))
        if known is not None and known[0]() is support:
            return known[1]
        self._feeds = {key: one for key, one in self._feeds.items() if one[0]() is not None}
        kept, count = fewer_tokens(support.kept, self._most_tokens or support.kept.shape[1])
        arrays = {
            "support": np.concatenate([support.pooled.astype(np.float32), kept], axis=1),  # C, 9 + T, d
            "count": count,
            "pooled_mask": support.pooled_mask.astype(np.float32),
        }
        feed = {name: self._alone.upload(array) for name, array in arrays.items()}
        self._feeds[id(support)] = (weakref.ref(support), feed)
        self.steps += 1
        return feed

    def _runs(self, classes: Sequence[ClassSupports]) -> list[_Run]:
        """Return the supports of all classes, the longest first."""
        if self._uploaded is not None and are_same(self._uploaded[0], classes):
            return self._uploaded[1]
        runs = [
            _Run(way, 1 / len(supports), self._feed(support))
            for way, supports in enumerate(classes)
            for support in supports
        ]
        runs.sort(key=lambda run: -run.feed["count"].shape[0])
        self._uploaded = (classes, runs)
        return runs


def are_same(classes: Sequence[ClassSupports], others: Sequence[ClassSupports]) -> bool:
    """Whether two lists hold the same supports; a bank never changes a class's tuple of supports, it makes a new one.

    Comparing the arrays would be slow.
    """
    return list(map(id, classes)) == list(map(id, others))
