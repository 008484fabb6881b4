"""OpenVINO's encoder timed beside ONNX Runtime's: once per processor, model and versions, then kept in the cache.

A precision whose answers differ from those of FP32 is refused, however fast it is.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.engines.base import Array, Engine
from fsvit_edge.runtime.engines.fitting import installed_version, read_int8_encoder
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.engines.openvino import OpenVinoEngine, openvino_version, usable_precisions
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.json_records import read_json_object, record_from_json
from fsvit_edge.runtime.machine import has_vnni_here, processor
from fsvit_edge.runtime.messages import Say
from fsvit_edge.runtime.storage import atomic_write, cache_problem, user_cache

FORMAT_VERSION = 2
MIN_LABEL_AGREEMENT = 0.99
"""Share of pixels that must get the same label as in FP32; `build-engine` warns of fewer."""
MIN_COSINE = 0.95
"""Of all tokens of a picture with those of FP32; cst-nano in BF16: 0.98 on photographs, 0.998 on these pictures."""

_ROUNDS = range(3, 8)
"""How often each encoder runs, the first time untimed: at least and, within `_BUDGET_S`, at most."""
_BUDGET_S = 2.0
_CACHE = "speed"
_PICTURES = 2

Answers = list[dict[str, Array]]


@dataclass(frozen=True)
class Trial:
    """What was measured; the file has the same fields."""

    format_version: int
    processor: str
    graphs: dict[str, str]  # sha256 of each
    versions: dict[str, str]  # of ONNX Runtime and OpenVINO
    onnxruntime_ms: float  # median time of the bundle's FP32 encoder
    openvino_ms: dict[str, float]  # the same in OpenVINO, by precision
    refused: dict[str, str]  # why a precision must not be taken, a sentence each
    int8_ms: float | None  # the same of the bundle's INT8 encoder in ONNX Runtime; None without one for this processor

    def ratio(self, precision: str) -> float:
        """OpenVINO's time over that of ONNX Runtime in FP32; infinite for a precision that must not be taken."""
        if precision in self.refused or precision not in self.openvino_ms:
            return float("inf")
        return self.openvino_ms[precision] / self.onnxruntime_ms

    def __str__(self) -> str:
        """In words: 37.2 ms in ONNX Runtime, 34.4 ms in OpenVINO in FP32, 21.6 ms in BF16."""
        times = ", ".join(f"{ms:.1f} ms in {name.upper()}" for name, ms in self.openvino_ms.items())
        int8 = "" if self.int8_ms is None else f", {self.int8_ms:.1f} ms in INT8"
        return f"{self.onnxruntime_ms:.1f} ms in ONNX Runtime in FP32{int8}; in OpenVINO {times or 'nothing ran'}"


def find_trial(bundle: Bundle, threads: int | None, say: Say) -> Trial | None:
    """Return what was measured here, after measuring it if that was not done; None if OpenVINO is not installed.

    It takes about 3 s for cst-nano on one core; `say` gets a line before. A cache that cannot be read or written only
    costs the time.
    """
    known = known_trial(bundle)
    if known is not None or openvino_version() is None:
        return known
    problem = cache_problem(_CACHE)
    often = (
        f"at each start, because the result cannot be kept: {problem}"
        if problem
        else "once for this processor, model and versions"
    )
    say(f"Timing OpenVINO beside ONNX Runtime, {often}.")
    trial = measure(bundle, threads)
    if trial.openvino_ms and not problem:  # else it may be repaired until the next time
        with suppress(FsvitEdgeError):
            file = file_of(trial.processor, trial.graphs, trial.versions)
            atomic_write(file, json.dumps(asdict(trial), indent=2).encode())
    return trial


def known_trial(bundle: Bundle) -> Trial | None:
    """Return what was measured with this processor, these graphs and these versions; None if nothing was."""
    wanted = conditions_of(bundle)
    if wanted is None:
        return None
    try:
        file = file_of(*wanted)
        trial = record_from_json(Trial, file, read_json_object(file, FORMAT_VERSION, "remove it"))
    except (FsvitEdgeError, OSError):  # none, or a damaged one, which the next replaces
        return None
    numbers = (trial.onnxruntime_ms, *trial.openvino_ms.values(), *filter(None, (trial.int8_ms,)))
    is_sound = (trial.processor, trial.graphs, trial.versions) == wanted and min(numbers) > 0
    return trial if is_sound else None


def measure(bundle: Bundle, threads: int | None = None) -> Trial:
    """Time the encoders in turns, and compare the answers that they lead to."""
    conditions = conditions_of(bundle)
    assert conditions is not None, "OpenVINO is installed"
    refused: dict[str, str] = {}
    with ExitStack() as stack:
        info = bundle.manifest.graphs["encoder"]
        int8 = bundle.manifest.int8_encoder
        try:
            fp32 = {
                name: stack.enter_context(OnnxRuntimeEngine(bundle.graphs[name], "cpu", threads))
                for name in ("encoder", "enroll", "head")
            }
            encoders: dict[str, Engine] = {"": fp32["encoder"]}
            if int8 is not None and has_vnni_here():
                encoders["int8"] = stack.enter_context(
                    OnnxRuntimeEngine(read_int8_encoder(bundle.path, int8), "cpu", threads)
                )
            for precision in usable_precisions():
                engine = OpenVinoEngine(bundle.graphs["encoder"], info, precision, threads)
                encoders[precision] = stack.enter_context(engine)
            times_ms, encoded = _take_turns(encoders, bundle.manifest.image_size)
        except FsvitEdgeError as error:  # a broken installation or graph must not stop who did not ask for it
            return Trial(FORMAT_VERSION, *conditions, 1.0, {}, {"fp32": str(error), "bf16": str(error)}, None)
        wanted = _answers(fp32, encoded[""], bundle.manifest.image_size)
        for precision in encoders.keys() - {"", "int8"}:
            got = _answers(fp32, encoded[precision], bundle.manifest.image_size)
            if difference := _difference(got, wanted, bundle.manifest.presence_level):
                refused[precision] = f"OpenVINO's encoder in {precision.upper()} is not used: {difference}."
    fp32_ms, int8_ms = times_ms.pop(""), times_ms.pop("int8", None)
    return Trial(FORMAT_VERSION, *conditions, fp32_ms, times_ms, refused, int8_ms)


def conditions_of(bundle: Bundle) -> tuple[str, dict[str, str], dict[str, str]] | None:
    """Return processor, graphs and versions, which a measurement belongs to; None without OpenVINO."""
    versions = {"onnxruntime": installed_version("onnxruntime") or "", "openvino": openvino_version()}
    if versions["openvino"] is None:
        return None
    graphs = {name: info.sha256 for name, info in bundle.manifest.all_graphs.items()}
    return processor(), graphs, {name: str(version) for name, version in versions.items()}


def file_of(*conditions: object) -> Path:
    """Return the file of what was measured under these conditions."""
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    return user_cache(_CACHE) / f"openvino-{digest[:16]}.json"


def _take_turns(encoders: Mapping[str, Engine], side: int) -> tuple[dict[str, float], dict[str, Answers]]:
    """Median time of each encoder in ms, and what each made of each picture."""
    pictures = [_picture(number, side)[0][None] for number in range(_PICTURES)]
    times_ms: dict[str, list[float]] = {name: [] for name in encoders}
    encoded: dict[str, Answers] = {name: [] for name in encoders}
    started = time.monotonic()
    for number in range(_ROUNDS.stop):
        if number >= _ROUNDS.start and time.monotonic() - started > _BUDGET_S:
            break
        names = list(encoders)
        # Every other round in reverse, so that no engine always follows the same one.
        for name in names if number % 2 == 0 else reversed(names):
            begun = time.perf_counter()
            outputs = encoders[name].run({"image": pictures[number % _PICTURES]})
            if number > 0:
                times_ms[name].append((time.perf_counter() - begun) * 1e3)
            if number < _PICTURES:
                encoded[name].append({output: tensor.numpy() for output, tensor in outputs.items()})
    return {name: float(np.median(each)) for name, each in times_ms.items()}, encoded


def _answers(fp32: Mapping[str, Engine], encoded: Answers, side: int) -> Answers:
    """For each picture its tokens, and what the head says of each picture shown by it: presence and foreground."""
    answers: Answers = []
    for number, outputs in enumerate(encoded):
        mask = {"mask": _picture(number, side)[1][None], "has_mask": np.array([True])}
        made = fp32["enroll"].run(_taken(fp32["enroll"], {**outputs, **mask}))
        support = {name: tensor.numpy() for name, tensor in made.items()}
        shown = {**support, "kept": support["support"], "averaging": np.ones((1, 1), np.float32)}
        for asked in encoded:
            answer = fp32["head"].run(_taken(fp32["head"], {**shown, "tokens": asked["tokens"]}))
            found = {name: np.array(answer[name].numpy()) for name in ("presence", "foreground")}
            answers.append({**found, "tokens": outputs["tokens"]})
    return answers


def _taken(engine: Engine, tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {spec.name: tensors[spec.name] for spec in engine.inputs}


def _difference(got: Answers, wanted: Answers, level: float) -> str:
    """What is too different, a clause; empty if nothing is."""
    for one, other in zip(got, wanted, strict=True):
        if not all(np.isfinite(array).all() for array in one.values()):
            return "its values are not finite"
        ours, theirs = (np.asarray(each["tokens"], np.float64).ravel() for each in (one, other))
        cosine = float(ours @ theirs / max(np.linalg.norm(ours) * np.linalg.norm(theirs), 1e-12))
        if cosine < MIN_COSINE:
            return f"its tokens differ from those of FP32 (cosine {cosine:.2f}, at least {MIN_COSINE})"
        if bool(one["presence"][0] > level) != bool(other["presence"][0] > level):
            return "what is present differs from FP32"
    same = _share(got, wanted)
    if same < MIN_LABEL_AGREEMENT:
        return f"only {same:.1%} of the pixels get the label of FP32, at least {MIN_LABEL_AGREEMENT:.0%} must"
    return ""


def _share(got: Answers, wanted: Answers) -> float:
    """The share of all pixels that are foreground, or are not, in both."""
    both = zip(got, wanted, strict=True)
    return float(np.mean([np.mean(_inside(one) == _inside(other)) for one, other in both]))


def _inside(answer: Mapping[str, Array]) -> Any:
    return np.asarray(answer["foreground"], np.float32) > 0.5


def _picture(number: int, side: int) -> tuple[Array, Array]:
    """A disc of one texture on another, (side, side, 3) uint8 RGB, and its mask (side, side) uint8, 1 on the disc."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:side, :side]
    center = side * (0.35 + 0.3 * rng.random(2))
    mask = np.hypot(rows - center[0], columns - center[1]) < 0.22 * side
    blocks = [rng.normal(rng.uniform(60, 200, 3), 25, (-(-side // size), -(-side // size), 3)) for size in (16, 8)]
    ground, thing = (
        block.repeat(size, axis=0).repeat(size, axis=1)[:side, :side]
        for block, size in zip(blocks, (16, 8), strict=True)
    )
    shaded = np.where(mask[..., None], thing, ground) + 20 * (rows / side)[..., None]
    return np.clip(shaded, 0, 255).astype(np.uint8), mask.astype(np.uint8)
