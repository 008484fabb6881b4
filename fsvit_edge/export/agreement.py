"""Compare an engine's answers with those of the FP32 graphs, on real pictures."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from fsvit_edge.calib.fp16 import find_overflows
from fsvit_edge.live.sources.demo import demo_frame, demo_length
from fsvit_edge.runtime.bundle import OBJECTNESS, Manifest
from fsvit_edge.runtime.engines.base import Array, Engine, ResidentTensor
from fsvit_edge.runtime.errors import AccuracyGateError, EnvironmentLacksError
from fsvit_edge.runtime.predictor import FewShotModel
from fsvit_edge.runtime.preprocess import resize_image

PICTURES = 12
"""Number of pictures; each is queried with itself and the two before it as supports: 36 answers."""
_SUPPORTS_PER_PICTURE = 3
_REPORT_EVERY_S = 5.0

Picture = npt.NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""


@dataclass(frozen=True)
class Agreement:
    """How far an engine's answers are from those of the FP32 graphs.

    Attributes:
        pictures: Number of pictures.
        source: Where the pictures come from, in words.
        computed_by: What computed the engine's answers: the engine itself, or ONNX Runtime in its place.
        outputs: graph.output -> "max_error", relative to the output's largest value unless it is a probability, and
            "cosine", the smallest over the pictures.
        pairs: Number of answers: is the object of this support in that picture, and where?
        presence_flips: Answers whose present or absent differs.
        label_agreement: Share of the pixels of all answers with the same label.
    """

    pictures: int
    source: str
    computed_by: str
    outputs: dict[str, dict[str, float]]
    pairs: int
    presence_flips: int
    label_agreement: float


def demo_pictures(count: int = PICTURES) -> list[Picture]:
    """Return views of the photographs that scikit-image ships.

    Raises:
        EnvironmentLacksError: scikit-image is not installed.
    """
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
    progress: Callable[[str], None] = lambda _: None,
) -> Agreement:
    """Compare an engine's outputs and answers with those of the FP32 graphs.

    For the outputs, each graph of the candidate gets what the reference computed before it. The answers come from each
    set's own encoder and head, with the outlines that the device draws. A separate objectness graph always runs in
    FP32, so both sets share it.

    Args:
        manifest: The bundle's manifest.
        reference: The bundle's FP32 graphs.
        candidate: The new encoder and head.
        pictures: (H, W, 3) uint8 RGB each.
        source: Where the pictures come from, in words.
        computed_by: What computes the candidate, see `Agreement`.
        progress: Called with what is being compared.

    Raises:
        AccuracyGateError: An output of the candidate is not finite.
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
    _check_finite(outputs)
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

    Raises:
        AccuracyGateError: A value is too large.
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


def _check_finite(outputs: Mapping[str, Mapping[str, float]]) -> None:
    broken = [name for name, row in outputs.items() if not np.isfinite(row["max_error"])]
    if broken:
        raise AccuracyGateError(
            f"A value overflows in the engine: not finite in {', '.join(broken)}; nothing was written; "
            "keep more of the graph in FP32 with --keep-fp32 PATTERN."
        )


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
        with np.errstate(invalid="ignore", over="ignore"):  # `_check_finite` reports overflows
            error = float(np.abs(ours - theirs).max()) / scale
            lengths = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
            cosine = float(ours @ theirs) / lengths if lengths > 0 else float(lengths == 0)
        rows.setdefault(f"{graph}.{name}", []).append((error, cosine))
