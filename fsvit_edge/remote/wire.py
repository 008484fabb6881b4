"""What goes between a device and a box: the names of the tensors, and the JSON in three of them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.steady import SteadyState
from fsvit_edge.fewshot.zones import Zone
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.json_records import record_from_json

WIRE_VERSION = 1
"""Of all that this file describes; a device refuses a box of another one."""

FRAME, JPEG, BANK, OPTIONS = "frame", "jpeg", "bank", "options"
NAMES, SCORES, RAW_SCORES, LEVELS = "names", "scores", "raw_scores", "levels"
PRESENT, CONTESTED, LABEL_PNG, FACTS, DETAILS = "present", "contested", "label_png", "facts", "details"

INPUTS = {
    FRAME: ("TYPE_UINT8", (-1, -1, 3)),  # RGB of any size; without it and without JPEG, only the facts are answered
    JPEG: ("TYPE_STRING", (1,)),  # or the bytes of a picture file
    BANK: ("TYPE_STRING", (1,)),  # its name, without .safetensors
    OPTIONS: ("TYPE_STRING", (1,)),  # `Options` as JSON
}
"""Type and shape of each input; only the bank is required."""
OUTPUTS = {
    NAMES: ("TYPE_STRING", (-1,)),
    SCORES: ("TYPE_FP32", (-1,)),
    RAW_SCORES: ("TYPE_FP32", (-1,)),
    LEVELS: ("TYPE_FP32", (-1,)),
    PRESENT: ("TYPE_BOOL", (-1,)),
    CONTESTED: ("TYPE_BOOL", (-1,)),
    LABEL_PNG: ("TYPE_STRING", (1,)),  # the label map as a PNG, whose values are 0 or 1 + the index of a class
    FACTS: ("TYPE_STRING", (1,)),  # `Facts` as JSON
    DETAILS: ("TYPE_STRING", (1,)),  # `Details` as JSON
}
"""Type and shape of each output; those of an answer are as in `Prediction`."""

Tensors = Mapping[str, npt.NDArray[Any]]

_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Options:
    """How a frame is to be answered.

    Attributes:
        classes: The only classes to look for, as if the bank had no others; empty: all.
        min_score: A level below which no class's own may be, in (0, 1); null leaves them as they are.
        level: One level for all classes, in (0, 1); null: the level of each.
        exclusive: As `FewShotModel.exclusive`.
        first_look: How many classes of the frame to compare, as `run --first-look`; null: all.
        size_hw: Height and width of the frame, if a smaller one is sent, at most 32,767 pixels each and
            40 megapixels; the label map has this size.
        steady: What the device remembers of the frames before, for steady answers; null: this frame decides alone.
    """

    classes: tuple[str, ...] = ()
    min_score: float | None = None
    level: float | None = None
    exclusive: bool = False
    first_look: int | None = None
    size_hw: tuple[int, int] | None = None
    steady: SteadyState | None = None


@dataclass(frozen=True)
class Facts:
    """By what a box answers; the same for all frames until the box or the bank changes.

    Attributes:
        wire: Version of inputs and outputs.
        fsvit_edge: Version of fsvit-edge on the box.
        model: Name of the network.
        image_size: Side of the encoder's input in pixels; a larger frame tells the box no more.
        engine: Engine that computes.
        precision: Precision of the engine.
        outlines: How outlines are drawn, "plain" or "sharp".
        bundle_sha256: Sum of the bundle.
        bank_sha256: Sum of the bank's file.
        classes: Names of the classes that are looked for.
        levels: The level of each.
        scene_frames: Pictures of the empty scene that the bank has.
        zones: The bank's zones.
    """

    wire: int
    fsvit_edge: str
    model: str
    image_size: int
    engine: str
    precision: str
    outlines: str
    bundle_sha256: str
    bank_sha256: str
    classes: tuple[str, ...]
    levels: tuple[float, ...]
    scene_frames: int
    zones: tuple[Zone, ...]


@dataclass(frozen=True)
class Details:
    """What is told of one answer.

    Attributes:
        latency_ms: Milliseconds of each stage on the box.
        steady: What the device is to remember, if it asked for steady answers.
        problem: Why the bank's file of now is not used but the one before, in one sentence; empty if it is used.
    """

    latency_ms: dict[str, float] = field(default_factory=dict)
    steady: SteadyState | None = None
    problem: str = ""


def to_json(record: Options | Facts | Details) -> npt.NDArray[np.object_]:
    """Return a record as a tensor of one text."""
    return text_tensor(json.dumps(asdict(record), ensure_ascii=False).encode())


def from_json(kind: type[_Record], tensors: Tensors, name: str) -> _Record:
    """Read a record from a tensor of one text; an InputError if it is no such record."""
    try:
        values = json.loads(text_of(tensors, name))
        if not isinstance(values, dict):
            raise InputError(f"The tensor {name!r} must hold a JSON object, got {values!r:.80}.")
        return record_from_json(kind, Path(name), values)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The tensor {name!r} is no JSON: {error}.") from error
    except ArtifactError as error:
        raise InputError(f"The tensor {error}") from error


def text_tensor(*texts: bytes) -> npt.NDArray[np.object_]:
    """Return a tensor of texts, or of the bytes of files."""
    return np.array(texts, np.object_)


def bytes_of(tensors: Tensors, name: str) -> bytes:
    """Return the only element of a tensor of bytes; an InputError if it has none or several."""
    tensor = tensors[name]
    if tensor.size != 1 or not isinstance(tensor.flat[0], bytes):
        raise InputError(f"The tensor {name!r} must have one text, got {tensor.dtype} {tensor.shape}.")
    data: bytes = tensor.flat[0]
    return data


def text_of(tensors: Tensors, name: str) -> str:
    """Return the only text of a tensor; an InputError if it is none."""
    try:
        return bytes_of(tensors, name).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"The tensor {name!r} is not UTF-8 text.") from error
