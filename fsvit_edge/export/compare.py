"""Does an engine answer as the FP32 graphs do, and is it faster? Measured on real pictures, side by side."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from fsvit_edge.calib.overflow import find_overflows
from fsvit_edge.live.sources.demo import demo_frame, demo_length
from fsvit_edge.runtime.bundle import OBJECTNESS, Manifest
from fsvit_edge.runtime.engines.base import Array, Engine, ResidentTensor
from fsvit_edge.runtime.errors import AccuracyGateError, EnvironmentLacksError
from fsvit_edge.runtime.predictor import FewShotModel
from fsvit_edge.runtime.preprocess import resize_image

PICTURES = 12
"""Looked at; each as a query is asked for itself and the two before it: 36 answers."""
_SUPPORTS_EACH = 3
_TIMED_S = 2.0
_FEWEST_ROUNDS, _MOST_ROUNDS = 8, 200
_WARM_UP_RUNS = 2
_REPORT_EVERY_S = 5.0

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Agreement:
    """How far an engine's answers are from those of the FP32 graphs.

    Attributes:
        pictures: How many were looked at.
        source: Which pictures, in words.
        computed_by: What computed the engine's answers: the engine itself, or ONNX Runtime in its place.
        outputs: graph.output -> "max_error", relative to the output's largest value where it is no probability, and
            "cosine", the smallest over the pictures.
        pairs: Questions asked: is what this support shows in that picture, and where?
        presence_flips: Answers to the first half that are another.
        label_agreement: Share of pixels, of all answers to the second half, with the same label.
    """

    pictures: int
    source: str
    computed_by: str
    outputs: dict[str, dict[str, float]]
    pairs: int
    presence_flips: int
    label_agreement: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, rounded to what is worth telling."""
        return {**asdict(self), "outputs": {name: dict(row) for name, row in self.outputs.items()}}


def demo_pictures(count: int = PICTURES) -> list[Picture]:
    """Return views of the photographs that scikit-image ships.

    Raises:
        EnvironmentLacksError: It is not installed.
    """
    try:
        return [demo_frame(number * demo_length() // count) for number in range(count)]
    except EnvironmentLacksError as error:
        raise EnvironmentLacksError(
            'An engine is verified on pictures: install scikit-image\'s with: pip install "fsvit-edge[demo]", give '
            "your own with --calib SOURCE, or build with --no-verify."
        ) from error


def compare(
    manifest: Manifest,
    reference: Mapping[str, Engine],
    candidate: Mapping[str, Engine],
    pictures: Sequence[Picture],
    source: str,
    computed_by: str,
    progress: Callable[[str], None] = lambda _: None,
) -> Agreement:
    """Compare two sets of graphs.

    Each graph of the candidate is fed what the reference computed before it; the answers to the pairs come out of
    each set's own encoder and head, with the outlines that the device draws: a graph of its own for objectness always
    runs in FP32, so both sets share it.

    Args:
        manifest: Of the bundle.
        reference: The bundle's graphs in FP32.
        candidate: encoder and head.
        pictures: (H, W, 3) uint8 RGB each.
        source: Which pictures, in words.
        computed_by: See `Agreement`.
        progress: Is told how far it has come.

    Raises:
        AccuracyGateError: An output of the candidate is not finite.
    """
    rows: dict[str, list[tuple[float, float]]] = {}
    kinds = {spec.name: spec.dtype for spec in candidate["head"].inputs}
    said_at = time.monotonic()
    for number, picture in enumerate(pictures):
        if time.monotonic() - said_at > _REPORT_EVERY_S:
            said_at = time.monotonic()
            progress(f"compare with FP32: picture {number + 1} of {len(pictures)}")
        image = resize_image(picture, manifest.image_size)[None]
        wanted, question = _ask(reference, image)
        _add_rows(rows, "encoder", wanted, _host(candidate["encoder"].run({"image": image})))
        answer = _host(reference["head"].run(question))
        typed = {name: array.astype(kinds[name]) for name, array in question.items()}
        _add_rows(rows, "head", answer, _host(candidate["head"].run(typed)))
    outputs = {name: {"max_error": _worst(each, 0), "cosine": _worst(each, 1)} for name, each in rows.items()}
    _check_finite(outputs)
    progress("compare with FP32: answers")
    models = [
        FewShotModel(
            manifest, graphs["encoder"], reference["enroll"], graphs["head"], objectness=reference.get(OBJECTNESS)
        )
        for graphs in (reference, candidate)
    ]
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
    """Refuse graphs with a tensor that FP16 cannot hold, which shows nowhere where FP16 goes by way of FP32.

    Args:
        manifest: Of the bundle.
        reference: encoder and enroll in FP32.
        fp32: The bundle's graphs.
        typed: What is made of encoder and head.
        pictures: (H, W, 3) uint8 RGB each.

    Raises:
        AccuracyGateError: A value is too large.
    """
    images = [resize_image(picture, manifest.image_size)[None] for picture in pictures]
    feeds: dict[str, Iterator[Mapping[str, Array]]] = {
        "encoder": ({"image": image} for image in images),
        "head": (_ask(reference, image)[1] for image in images),
    }
    for name, graph in typed.items():
        found = find_overflows(fp32[name], onnx.load_from_string(graph), feeds[name])
        if found:
            worst = found[0]
            raise AccuracyGateError(
                f"FP16 cannot hold {worst.tensor!r} of the {name}, which reaches {worst.largest:.3g}; nothing was "
                f"written; keep it in FP32 with: --keep-fp32 '{worst.node}'."
            )


def time_side_by_side(engines: Sequence[Engine], feeds: Sequence[Mapping[str, Array]]) -> list[float]:
    """Return each engine's median time of a run in ms, from runs that take turns, so that all share the machine's mood.

    Args:
        engines: Of one graph.
        feeds: What each is fed.
    """
    inputs = [
        {name: engine.upload(array) for name, array in feed.items()}
        for engine, feed in zip(engines, feeds, strict=True)
    ]
    laps: list[list[float]] = [[] for _ in engines]
    started = time.monotonic()
    for number in range(_WARM_UP_RUNS + _MOST_ROUNDS):
        if number >= _WARM_UP_RUNS + _FEWEST_ROUNDS and time.monotonic() - started > _TIMED_S * len(engines):
            break
        turns = list(zip(engines, inputs, laps, strict=True))
        # Back and forth, so that none always follows the same other.
        for engine, feed, times in turns if number % 2 == 0 else reversed(turns):
            begun = time.perf_counter()
            outputs = engine.run(feed)
            # A GPU computes on while Python goes ahead; what is read is there.
            min(outputs.values(), key=lambda tensor: int(np.prod(tensor.shape))).numpy()
            if number >= _WARM_UP_RUNS:
                times.append((time.perf_counter() - begun) * 1e3)
    return [float(np.median(times)) for times in laps]


def example_feed(engine: Engine, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Return inputs for an engine, of the types that it takes, at the given sizes.

    Args:
        engine: Whose inputs to make.
        sizes: Of what varies, by name.
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


def _ask(reference: Mapping[str, Engine], image: Picture) -> tuple[dict[str, Array], dict[str, Array]]:
    """What the FP32 encoder says of a picture, and the head's input that asks whether the picture shows itself."""
    encoded = _host(reference["encoder"].run({"image": image}))
    feed: dict[str, Array | ResidentTensor] = {
        **{name: array for name, array in encoded.items() if name != OBJECTNESS},
        "mask": np.zeros(image.shape[:3], np.uint8),
        "has_mask": np.array([False]),
    }
    cached = _host(reference["enroll"].run(feed))
    question: dict[str, Array] = {
        "tokens": encoded["tokens"],
        "kept": cached["support"],
        **{name: cached[name] for name in ("kept_mask", "pooled", "pooled_mask")},
        "averaging": np.ones((1, 1), np.float32),
    }
    return encoded, question


def _check_finite(outputs: Mapping[str, Mapping[str, float]]) -> None:
    broken = [name for name, row in outputs.items() if not np.isfinite(row["max_error"])]
    if broken:
        raise AccuracyGateError(
            f"A value overflows in the engine: not finite in {', '.join(broken)}; nothing was written; "
            "keep more of the graph in FP32 with --keep-fp32 PATTERN."
        )


def _answers(model: FewShotModel, pictures: Sequence[Picture]) -> list[tuple[bool, npt.NDArray[np.uint8]]]:
    """Presence and label map of each picture, asked for what itself and the ones before it show."""
    banks = []
    for picture in pictures:
        bank = model.bank.emptied()
        bank.add("shown", [model.cache_support("shown", picture)])
        banks.append(bank)
    answers = []
    for number, picture in enumerate(pictures):
        asked = [banks[number - back] for back in range(min(_SUPPORTS_EACH, len(banks)))]
        small = resize_image(picture, model.manifest.image_size)
        answers += [(bool(one.present[0]), one.label_map) for one in model.predict_with(small, asked)]
    return answers


def _host(tensors: Mapping[str, ResidentTensor]) -> dict[str, Array]:
    return {name: np.array(tensor.numpy()) for name, tensor in tensors.items()}


def _add_rows(
    rows: dict[str, list[tuple[float, float]]], graph: str, wanted: Mapping[str, Array], got: Mapping[str, Array]
) -> None:
    for name, array in wanted.items():
        ours, theirs = got[name].astype(np.float64).ravel(), array.astype(np.float64).ravel()
        scale = 1.0 if graph == "head" else max(float(np.abs(theirs).max()), 1e-12)
        with np.errstate(invalid="ignore", over="ignore"):  # an overflow is found out, not warned of
            error = float(np.abs(ours - theirs).max()) / scale
            lengths = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
            cosine = float(ours @ theirs) / lengths if lengths > 0 else float(lengths == 0)
        rows.setdefault(f"{graph}.{name}", []).append((error, cosine))


def _worst(rows: Sequence[tuple[float, float]], which: int) -> float:
    values = [row[which] for row in rows]
    # numpy's, because Python's loses a NaN that is not the first.
    return float(np.max(values)) if which == 0 else float(np.min(values))
