"""New engines before they are written: opened from memory, compared with FP32, timed next to others, and scored."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from fsvit_edge.calib.convert_fp16 import find_overflows
from fsvit_edge.export.job import BuildJob
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.sources.demo import demo_frame, demo_length
from fsvit_edge.runtime.bundle import OBJECTNESS, Manifest
from fsvit_edge.runtime.engines.base import Array, Engine, Engines, ResidentTensor
from fsvit_edge.runtime.engines.files import ENGINE_GRAPHS, EngineRecord, find_engines, load_engine
from fsvit_edge.runtime.engines.fitting import fitting_sets
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import AccuracyGateError, ArtifactError, EnvironmentLacksError
from fsvit_edge.runtime.messages import Progress
from fsvit_edge.runtime.preprocess import resize_image

PICTURES = 12
"""Number of pictures; each is queried with itself and the two before it as supports: 36 answers."""
EPISODES = 200
"""Episodes for exact ratio and mIoU, each with one class (1-way) that one picture and its mask show (1-shot)."""
TIMED_S = 2.0
"""Time that each engine is measured for, unless `_MIN_ROUNDS` take longer."""

_SUPPORTS_PER_PICTURE = 3
_REPORT_EVERY_S = 5.0
_MIN_ROUNDS, _MAX_ROUNDS, _WARM_UP_ROUNDS = 8, 200, 2

Picture = npt.NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""


@dataclass(frozen=True)
class Agreement:
    """How far an engine's answers are from those of the FP32 graphs."""

    pictures: int
    source: str  # where the pictures come from, in words
    computed_by: str  # the engine itself, or ONNX Runtime in its place
    outputs: dict[str, dict[str, float]]
    """graph.output -> "max_error", relative to the output's largest value unless it is a probability, and "cosine", the
    smallest over the pictures."""
    pairs: int  # number of answers: is the object of this support in that picture, and where?
    presence_flips: int  # answers whose present or absent differs
    label_agreement: float  # share of the pixels of all answers with the same label


@dataclass(frozen=True)
class PrecisionScores:
    """Accuracy of one precision on the data set."""

    precision: str
    exact_ratio: float  # percentage of queries whose every class is judged right, present or absent
    miou: float | None  # mean intersection over union in percent; None if no query has a mask


# ------------------------------------------------------------------------------------------------------------ opened


def open_on_cpu(graphs: Mapping[str, bytes], stack: ExitStack) -> Engines:
    """Open ONNX graphs on the CPU, where ONNX Runtime emulates FP16 in FP32: rounding shows but overflow does not."""
    return {name: stack.enter_context(OnnxRuntimeEngine(graph, "cpu")) for name, graph in graphs.items()}


def open_candidate(job: BuildJob, engines: Mapping[str, tuple[bytes, EngineRecord]], stack: ExitStack) -> Engines:
    """Open engines, by graph, that this machine can run."""
    if job.backend.tensorrt is None:
        return open_on_cpu({name: data for name, (data, _) in engines.items()}, stack)
    from fsvit_edge.runtime.engines.cuda_packages import open_device_memory
    from fsvit_edge.runtime.engines.tensorrt import TensorRtEngine

    memory = open_device_memory()
    stack.callback(memory.close)
    return {
        name: stack.enter_context(TensorRtEngine(data, record, job.backend.tensorrt, memory))
        for name, (data, record) in engines.items()
    }


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


# ---------------------------------------------------------------------------------------------------------- compared


def demo_pictures(count: int = PICTURES) -> list[Picture]:
    """Return views of the photographs that scikit-image ships."""
    try:
        return [demo_frame(number * demo_length() // count) for number in range(count)]
    except EnvironmentLacksError as error:
        raise EnvironmentLacksError(
            'Verifying an engine needs pictures: install scikit-image\'s with: pip install "fsvit-edge[demo]", give '
            "your own with --calib SOURCE, or build with --no-verify."
        ) from error


def compare(
    manifest: Manifest,
    reference: Mapping[str, Engine],
    candidate: Mapping[str, Engine],
    pictures: Sequence[Picture],
    source: str,
    computed_by: str,
    progress: Progress = lambda _: None,
) -> Agreement:
    """Compare an engine's outputs and answers with those of the FP32 graphs; refuse outputs that are not finite.

    For the outputs, each graph of the candidate gets what the reference computed before it. The answers come from each
    set's own encoder and head, with the outlines that the device draws. A separate objectness graph always runs in
    FP32, so both sets share it. `source` and `computed_by` are for the `Agreement`.
    """
    rows: dict[str, list[tuple[float, float]]] = {}
    dtypes = {spec.name: spec.dtype for spec in candidate["head"].inputs}
    reported_at = time.monotonic()
    for number, picture in enumerate(pictures):
        if time.monotonic() - reported_at > _REPORT_EVERY_S:
            reported_at = time.monotonic()
            progress(f"compare with FP32: picture {number + 1} of {len(pictures)}")
        image = resize_image(picture, manifest.image_size)[None]
        encoded, question = _encode_and_ask(reference, image)
        _add_errors(rows, "encoder", encoded, _on_host(candidate["encoder"].run({"image": image})))
        answer = _on_host(reference["head"].run(question))
        typed = {name: array.astype(dtypes[name]) for name, array in question.items()}
        _add_errors(rows, "head", answer, _on_host(candidate["head"].run(typed)))
    # numpy's maximum and minimum, because Python's lose a NaN that is not the first.
    outputs = {
        name: {"max_error": float(np.max(each, axis=0)[0]), "cosine": float(np.min(each, axis=0)[1])}
        for name, each in rows.items()
    }
    if broken := [name for name, row in outputs.items() if not np.isfinite(row["max_error"])]:
        raise AccuracyGateError(
            f"A value overflows in the engine: not finite in {', '.join(broken)}; nothing was written; "
            "keep more of the graph in FP32 with --keep-fp32 PATTERN."
        )
    progress("compare with FP32: answers")
    models = [FewShotModel(manifest, {**reference, **graphs}) for graphs in (reference, candidate)]
    answers = [_answers(model, pictures) for model in models]
    flips = sum(one[0] != other[0] for one, other in zip(*answers, strict=True))
    same = [float(np.mean(one[1] == other[1])) for one, other in zip(*answers, strict=True)]
    return Agreement(len(pictures), source, computed_by, outputs, len(same), flips, float(np.mean(same)))


def check_fp16(
    manifest: Manifest,
    reference: Mapping[str, Engine],
    fp32: Mapping[str, bytes],
    typed: Mapping[str, bytes],
    pictures: Sequence[Picture],
) -> None:
    """Refuse graphs with a tensor that overflows in FP16, which does not show where FP16 is emulated in FP32.

    Args:
        manifest: The bundle's manifest.
        reference: encoder and enroll in FP32.
        fp32: The bundle's graphs.
        typed: The converted encoder and head.
        pictures: (H, W, 3) uint8 RGB each.
    """
    images = [resize_image(picture, manifest.image_size)[None] for picture in pictures]
    feeds: dict[str, Iterator[Mapping[str, Array]]] = {
        "encoder": ({"image": image} for image in images),
        "head": (_encode_and_ask(reference, image)[1] for image in images),
    }
    for name, graph in typed.items():
        found = find_overflows(fp32[name], onnx.load_from_string(graph), feeds[name])
        if found:
            worst = found[0]
            raise AccuracyGateError(
                f"Tensor {worst.tensor!r} of the {name} overflows in FP16: it reaches {worst.largest:.3g}; nothing was "
                f"written; keep it in FP32 with: --keep-fp32 '{worst.node}'."
            )


def _encode_and_ask(reference: Mapping[str, Engine], image: Picture) -> tuple[dict[str, Array], dict[str, Array]]:
    """The FP32 encoder's outputs for a picture, and the head's inputs that ask for the picture in itself."""
    encoded = _on_host(reference["encoder"].run({"image": image}))
    feed: dict[str, Array | ResidentTensor] = {
        **{name: array for name, array in encoded.items() if name != OBJECTNESS},
        "mask": np.zeros(image.shape[:3], np.uint8),
        "has_mask": np.array([False]),
    }
    cached = _on_host(reference["enroll"].run(feed))
    question: dict[str, Array] = {
        "tokens": encoded["tokens"],
        "kept": cached["support"],
        **{name: cached[name] for name in ("kept_mask", "pooled", "pooled_mask")},
        "averaging": np.ones((1, 1), np.float32),
    }
    return encoded, question


def _answers(model: FewShotModel, pictures: Sequence[Picture]) -> list[tuple[bool, npt.NDArray[np.uint8]]]:
    """Presence and label map of each picture, with itself and the pictures before it as supports."""
    banks = []
    for picture in pictures:
        bank = model.bank.emptied()
        bank.add("shown", [model.cache_support("shown", picture)])
        banks.append(bank)
    answers = []
    for number, picture in enumerate(pictures):
        asked = [banks[number - back] for back in range(min(_SUPPORTS_PER_PICTURE, len(banks)))]
        small = resize_image(picture, model.manifest.image_size)
        answers += [(bool(one.present[0]), one.label_map) for one in model.predict_with(small, asked)]
    return answers


def _on_host(tensors: Mapping[str, ResidentTensor]) -> dict[str, Array]:
    return {name: np.array(tensor.numpy()) for name, tensor in tensors.items()}


def _add_errors(
    rows: dict[str, list[tuple[float, float]]], graph: str, wanted: Mapping[str, Array], got: Mapping[str, Array]
) -> None:
    """Append each output's largest error and cosine."""
    for name, array in wanted.items():
        ours, theirs = got[name].astype(np.float64).ravel(), array.astype(np.float64).ravel()
        scale = 1.0 if graph == "head" else max(float(np.abs(theirs).max()), 1e-12)
        with np.errstate(invalid="ignore", over="ignore"):  # `compare` reports overflows
            error = float(np.abs(ours - theirs).max()) / scale
            lengths = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
            cosine = float(ours @ theirs) / lengths if lengths > 0 else float(lengths == 0)
        rows.setdefault(f"{graph}.{name}", []).append((error, cosine))


# ------------------------------------------------------------------------------------------------------------- timed


def time_beside_others(
    job: BuildJob,
    candidate: Mapping[str, Engine],
    unchanged: Collection[str],
    reference: Mapping[str, Engine],
    stack: ExitStack,
) -> dict[str, dict[str, float]]:
    """Time the new engines next to others, which take turns with them.

    On a CPU the others are the bundle's FP32 graphs; on a GPU they are existing engines of other precisions.
    `unchanged` graphs compute the same as the bundle's on a CPU. They are timed once, because any difference between
    two measurements would be noise.

    Returns:
        Precision -> graph -> median time of a run in ms.
    """
    if job.backend.tensorrt is None:
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
        if job.backend.tensorrt is None and graph in unchanged:
            (time_ms,) = time_side_by_side([reference[graph]], [example_feed(reference[graph], job.usual_sizes)])
            latency_ms[job.precision][graph] = latency_ms["fp32"][graph] = time_ms
            continue
        engines = [graphs[graph] for graphs in running.values()]
        times = time_side_by_side(engines, [example_feed(engine, job.usual_sizes) for engine in engines])
        for precision, time_ms in zip(running, times, strict=True):
            latency_ms[precision][graph] = time_ms
    return latency_ms


def time_side_by_side(engines: Sequence[Engine], feeds: Sequence[Mapping[str, Array]]) -> list[float]:
    """Return the median time of a run in ms of engines of one graph, which take turns: all run under the same load."""
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
    """Return random inputs of an engine's types, with the given value of each dynamic size."""
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


# ------------------------------------------------------------------------------------------------------------ scored


def score(
    job: BuildJob, reference: Mapping[str, Engine], candidate: Mapping[str, Engine], progress: Progress
) -> tuple[PrecisionScores, ...]:
    """Measure exact ratio and mIoU of FP32 and of the new engines on the same episodes; needs torch."""
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
    """Refuse engines whose exact ratio or mIoU is over `max_drop` points below FP32's; None: any loss is fine."""
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
