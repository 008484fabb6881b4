"""Engines on trial, before they are written: opened from memory, timed beside others, scored on a data set."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from fsvit_edge.export.build_result import PrecisionScores
from fsvit_edge.export.compare import example_feed, time_side_by_side
from fsvit_edge.export.job import Job
from fsvit_edge.runtime.bundle import OBJECTNESS
from fsvit_edge.runtime.engines.base import Engine
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.engines.store.files import ENGINE_GRAPHS, EngineRecord, load_engine
from fsvit_edge.runtime.engines.store.sets import find_engines, fitting_sets
from fsvit_edge.runtime.errors import AccuracyGateError, ArtifactError
from fsvit_edge.runtime.predictor import FewShotModel

EPISODES = 200
"""Of a data set, 1-way 1-shot with masks, for the exact ratio and the mIoU."""

Engines = dict[str, Engine]


def open_candidate(job: Job, engines: Mapping[str, tuple[bytes, EngineRecord]], stack: ExitStack) -> Engines:
    """Open engines that this machine can run.

    Args:
        job: What was built.
        engines: By graph, each with its record.
        stack: Closes them.
    """
    if job.backend.api is None:
        return {name: stack.enter_context(OnnxRuntimeEngine(data, "cpu")) for name, (data, _) in engines.items()}
    from fsvit_edge.runtime.engines.memory.choose import open_device_memory
    from fsvit_edge.runtime.engines.tensorrt import TensorRtEngine

    memory = open_device_memory()
    stack.callback(memory.close)
    return {
        name: stack.enter_context(TensorRtEngine(data, record, job.backend.api, memory))
        for name, (data, record) in engines.items()
    }


def open_stand_ins(typed: Mapping[str, bytes], stack: ExitStack) -> Engines:
    """Open the graphs that engines for other machines were built from, in ONNX Runtime on the CPU.

    It computes FP16 by way of FP32, so rounding shows and overflow does not.

    Args:
        typed: ONNX by graph.
        stack: Closes them.
    """
    return {name: stack.enter_context(OnnxRuntimeEngine(data, "cpu")) for name, data in typed.items()}


def time_beside_others(
    job: Job,
    candidate: Mapping[str, Engine],
    unchanged: Collection[str],
    reference: Mapping[str, Engine],
    stack: ExitStack,
) -> dict[str, dict[str, float]]:
    """Return precision -> graph -> median ms of a run, all from the same minutes.

    On a CPU it runs beside the bundle's FP32 graphs; on a GPU beside engines of the other precisions that are there.

    Args:
        job: What was built.
        candidate: encoder and head.
        unchanged: Graphs of a CPU that compute what the bundle's do: they take the same time, and what the clock would
            find between them is noise.
        reference: The bundle's, in FP32.
        stack: Closes what is opened.
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
            feed = example_feed(reference[graph], job.usual())
            latency_ms[job.precision][graph] = latency_ms["fp32"][graph] = time_side_by_side(
                [reference[graph]], [feed]
            )[0]
            continue
        engines = [of[graph] for of in running.values()]
        times = time_side_by_side(engines, [example_feed(engine, job.usual()) for engine in engines])
        for precision, time_ms in zip(running, times, strict=True):
            latency_ms[precision][graph] = time_ms
    return latency_ms


def _open_existing(job: Job, precision: str, stack: ExitStack) -> Engines | None:
    """Engines of the same backend in another precision, where they are whole and fit."""
    built = [
        one
        for one in find_engines(job.folder)[0]
        if one[1].backend == job.backend.name and one[1].precision == precision
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


def score(
    job: Job, reference: Mapping[str, Engine], candidate: Mapping[str, Engine], progress: Callable[[str], None]
) -> tuple[PrecisionScores, ...]:
    """Measure exact ratio and mIoU of FP32 and of what was built, on the same episodes; needs torch.

    Args:
        job: What was built, with the data set in its options.
        reference: The bundle's graphs in FP32.
        candidate: encoder and head.
        progress: Is told how far it has come.

    Raises:
        InputError: The data cannot be used.
    """
    from fsvit_edge.learn.datasets import open_data
    from fsvit_edge.learn.evaluation import EvaluationOptions, evaluate

    assert job.options.data is not None
    selection = open_data("folder", job.options.data, None, None, "test")
    options = EvaluationOptions(episodes=EPISODES)
    rows = []
    for precision, graphs in (("fp32", reference), (job.precision, candidate)):
        model = FewShotModel(
            job.bundle.manifest,
            graphs["encoder"],
            reference["enroll"],
            graphs["head"],
            objectness=reference.get(OBJECTNESS),
        )
        say = partial(_say, progress, precision)
        found = evaluate(model, selection, options, say)
        miou = found.scores.miou
        rows.append(PrecisionScores(precision, found.scores.exact_ratio.value, None if miou is None else miou.value))
    return tuple(rows)


def _say(progress: Callable[[str], None], precision: str, step: str) -> None:
    progress(f"{precision} on the data set: {step}")


def check_drop(scores: Sequence[PrecisionScores], max_drop: float | None) -> None:
    """Refuse engines that lose too much.

    Args:
        scores: Of FP32 and of what was built.
        max_drop: Points that exact ratio and mIoU may each lose; None: any.

    Raises:
        AccuracyGateError: One loses more.
    """
    if max_drop is None:
        return
    wanted, got = scores
    drops = [("exact ratio", wanted.exact_ratio, got.exact_ratio)]
    if wanted.miou is not None and got.miou is not None:
        drops.append(("mIoU", wanted.miou, got.miou))
    for name, before, after in drops:
        if not before - after <= max_drop:
            raise AccuracyGateError(
                f"The {name} is {before:.1f} % in FP32 and {after:.1f} % in {got.precision.upper()}: "
                f"{before - after:.1f} points lost, {max_drop:g} allowed; nothing was written."
            )
