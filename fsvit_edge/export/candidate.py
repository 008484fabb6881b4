"""New engines before they are written: opened from memory, timed next to others, and scored on a data set."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from fsvit_edge.export.job import BuildJob
from fsvit_edge.runtime.engines.base import Array, Engine, Engines
from fsvit_edge.runtime.engines.files import ENGINE_GRAPHS, EngineRecord, find_engines, load_engine
from fsvit_edge.runtime.engines.fitting import fitting_sets
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import AccuracyGateError, ArtifactError
from fsvit_edge.runtime.predictor import FewShotModel

EPISODES = 200
"""Episodes for exact ratio and mIoU, each with one class (1-way) that one picture and its mask show (1-shot)."""
TIMED_S = 2.0
"""Time that each engine is measured for, unless `_MIN_ROUNDS` take longer."""

_MIN_ROUNDS, _MAX_ROUNDS = 8, 200
_WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class PrecisionScores:
    """Accuracy of one precision on the data set.

    Attributes:
        precision: One of `PRECISIONS`.
        exact_ratio: Percentage of queries whose every class is judged right, present or absent.
        miou: Mean intersection over union in percent; None if no query has a mask.
    """

    precision: str
    exact_ratio: float
    miou: float | None


def open_on_cpu(graphs: Mapping[str, bytes], stack: ExitStack) -> Engines:
    """Open ONNX graphs in ONNX Runtime on the CPU, which emulates FP16 in FP32: rounding shows but overflow does not.

    Args:
        graphs: Graph -> ONNX file.
        stack: Closes the engines.
    """
    return {name: stack.enter_context(OnnxRuntimeEngine(graph, "cpu")) for name, graph in graphs.items()}


def open_candidate(job: BuildJob, engines: Mapping[str, tuple[bytes, EngineRecord]], stack: ExitStack) -> Engines:
    """Open engines that this machine can run.

    Args:
        job: The build.
        engines: Graph -> engine and its record.
        stack: Closes the engines.
    """
    if job.backend.api is None:
        return open_on_cpu({name: data for name, (data, _) in engines.items()}, stack)
    from fsvit_edge.runtime.engines.cuda_packages import open_device_memory
    from fsvit_edge.runtime.engines.tensorrt import TensorRtEngine

    memory = open_device_memory()
    stack.callback(memory.close)
    return {
        name: stack.enter_context(TensorRtEngine(data, record, job.backend.api, memory))
        for name, (data, record) in engines.items()
    }


def time_beside_others(
    job: BuildJob,
    candidate: Mapping[str, Engine],
    unchanged: Collection[str],
    reference: Mapping[str, Engine],
    stack: ExitStack,
) -> dict[str, dict[str, float]]:
    """Time the new engines next to others, which take turns with them.

    On a CPU the others are the bundle's FP32 graphs; on a GPU they are existing engines of other precisions.

    Args:
        job: The build.
        candidate: The new encoder and head.
        unchanged: Graphs that compute the same as the bundle's on a CPU. They are timed once, because any difference
            between two measurements would be noise.
        reference: The bundle's FP32 graphs.
        stack: Closes the engines that are opened here.

    Returns:
        Precision -> graph -> median time of a run in ms.
    """
    if job.backend.api is None:
        others = {"fp32": dict(reference)}
    else:
        others = {
            precision: opened
            for precision in ("fp32", "fp16")
            if precision != job.precision and (opened := _open_existing(job, precision, stack))
        }
    running: dict[str, Mapping[str, Engine]] = {**others, job.precision: candidate}
    latency_ms: dict[str, dict[str, float]] = {precision: {} for precision in running}
    for graph in ENGINE_GRAPHS:
        if job.backend.api is None and graph in unchanged:
            (time_ms,) = time_side_by_side([reference[graph]], [example_feed(reference[graph], job.usual_sizes)])
            latency_ms[job.precision][graph] = latency_ms["fp32"][graph] = time_ms
            continue
        engines = [graphs[graph] for graphs in running.values()]
        times = time_side_by_side(engines, [example_feed(engine, job.usual_sizes) for engine in engines])
        for precision, time_ms in zip(running, times, strict=True):
            latency_ms[precision][graph] = time_ms
    return latency_ms


def time_side_by_side(engines: Sequence[Engine], feeds: Sequence[Mapping[str, Array]]) -> list[float]:
    """Return each engine's median time of a run in ms; they take turns, so that all run under the same load.

    Args:
        engines: Engines of the same graph.
        feeds: Inputs for each engine.
    """
    inputs = [
        {name: engine.upload(array) for name, array in feed.items()}
        for engine, feed in zip(engines, feeds, strict=True)
    ]
    times_ms: list[list[float]] = [[] for _ in engines]
    started = time.monotonic()
    for number in range(_WARM_UP_ROUNDS + _MAX_ROUNDS):
        if number >= _WARM_UP_ROUNDS + _MIN_ROUNDS and time.monotonic() - started > TIMED_S * len(engines):
            break
        turns = list(zip(engines, inputs, times_ms, strict=True))
        # Every other round in reverse, so that no engine always follows the same one.
        for engine, feed, own_times_ms in turns if number % 2 == 0 else reversed(turns):
            begun = time.perf_counter()
            outputs = engine.run(feed)
            # A GPU still computes when `run` returns; reading the smallest output waits for it.
            min(outputs.values(), key=lambda tensor: int(np.prod(tensor.shape))).numpy()
            if number >= _WARM_UP_ROUNDS:
                own_times_ms.append((time.perf_counter() - begun) * 1e3)
    return [float(np.median(own_times_ms)) for own_times_ms in times_ms]


def example_feed(engine: Engine, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Return random inputs for an engine, of its types, with the given sizes.

    Args:
        engine: The engine.
        sizes: Name of each dynamic size -> value.
    """
    rng = np.random.default_rng(0)
    feed: dict[str, Array] = {}
    for spec in engine.inputs:
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)
        if spec.dtype == "uint8":
            feed[spec.name] = rng.integers(0, 256, shape, dtype=np.uint8)
        elif spec.name in ("kept_mask", "pooled_mask"):
            feed[spec.name] = np.ones(shape, spec.dtype)
        elif spec.name == "averaging":
            feed[spec.name] = np.eye(shape[0], shape[1]).astype(spec.dtype)
        else:
            values = rng.standard_normal(shape)
            feed[spec.name] = (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(spec.dtype)
    return feed


def score(
    job: BuildJob, reference: Mapping[str, Engine], candidate: Mapping[str, Engine], progress: Callable[[str], None]
) -> tuple[PrecisionScores, ...]:
    """Measure exact ratio and mIoU of FP32 and of the new engines on the same episodes; needs torch.

    Args:
        job: The build, with the data set in its options.
        reference: The bundle's FP32 graphs.
        candidate: The new encoder and head.
        progress: Called with what is being scored.

    Raises:
        InputError: The data set cannot be used.
    """
    from fsvit_edge.learn.datasets import open_data
    from fsvit_edge.learn.evaluation import EvaluationOptions, evaluate

    assert job.options.data is not None
    selection = open_data("folder", job.options.data, None, None, "test")
    options = EvaluationOptions(episodes=EPISODES)

    def score_one(precision: str, graphs: Mapping[str, Engine]) -> PrecisionScores:
        model = FewShotModel(job.bundle.manifest, {**reference, **graphs})
        found = evaluate(model, selection, options, lambda step: progress(f"{precision} on the data set: {step}"))
        miou = found.scores.miou
        return PrecisionScores(precision, found.scores.exact_ratio.value, None if miou is None else miou.value)

    return score_one("fp32", reference), score_one(job.precision, candidate)


def check_drop(scores: Sequence[PrecisionScores], max_drop: float | None) -> None:
    """Refuse engines that lose too much accuracy.

    Args:
        scores: Of FP32 and of the new engines.
        max_drop: Most percentage points that exact ratio and mIoU may each lose; None: any.

    Raises:
        AccuracyGateError: One of them loses more.
    """
    if max_drop is None:
        return
    fp32, own = scores
    drops = [("exact ratio", fp32.exact_ratio, own.exact_ratio)]
    if fp32.miou is not None and own.miou is not None:
        drops.append(("mIoU", fp32.miou, own.miou))
    for name, before, after in drops:
        if not before - after <= max_drop:  # NaN is too much as well
            raise AccuracyGateError(
                f"The {name} is {before:.1f} % in FP32 and {after:.1f} % in {own.precision.upper()}: "
                f"{before - after:.1f} points lost, {max_drop:g} allowed; nothing was written."
            )


def _open_existing(job: BuildJob, precision: str, stack: ExitStack) -> Engines | None:
    """Engines of the same backend in another precision, if there is a complete set that fits."""
    built = [
        engine
        for engine in find_engines(job.folder)[0]
        if engine.record.backend == job.backend.name and engine.record.precision == precision
    ]
    for one in fitting_sets(built, job.bundle.manifest, job.machine, job.bundle.path).sets:
        try:
            data = {
                name: (load_engine(path, record), record)
                for name, (path, record) in (("encoder", one.encoder), ("head", one.head))
            }
        except ArtifactError:
            continue
        return open_candidate(job, data, stack)
    return None
