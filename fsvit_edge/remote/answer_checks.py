"""An answer of a box as a device takes it: whole, of its own frame, and within what such answers can hold.

Nothing on the way is signed, and the box may be another program: what is wrong must be said here, in one sentence, and
not by whoever draws or stores it later.
"""

import math

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.bank import MAX_CLASSES
from fsvit_edge.fewshot.names import check_name
from fsvit_edge.fewshot.scene import MAX_SCENE_FRAMES
from fsvit_edge.fewshot.zones import check_zones
from fsvit_edge.remote import wire
from fsvit_edge.remote.wire import Details, Facts, Tensors
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.pictures import decoded
from fsvit_edge.runtime.presence_level import check_level

_MAX_IMAGE_SIZE = 4096
"""Of the encoder's input: larger ones would be sent with more bytes than frames of cameras have."""
_MAX_STAGES = 20
_MAX_STAGE_MS = 1e9  # statistics hold float32
_DTYPES = {"TYPE_FP32": np.dtype(np.float32), "TYPE_BOOL": np.dtype(np.bool_), "TYPE_STRING": np.dtype(np.object_)}


def check_facts(facts: Facts) -> None:
    """Refuse facts that no bank and no network have, with an InputError."""
    texts = (facts.fsvit_edge, facts.model, facts.engine, facts.precision, facts.outlines)
    if not all(map(str.isprintable, texts)):
        raise InputError("a text has control characters")
    if not 1 <= facts.image_size <= _MAX_IMAGE_SIZE:
        raise InputError(f"image_size is {facts.image_size!r:.20}")
    if not 1 <= len(facts.classes) == len(facts.levels) <= MAX_CLASSES or len(set(facts.classes)) < len(facts.classes):
        raise InputError(f"{len(facts.classes)} classes with {len(facts.levels)} levels")
    for name in facts.classes:
        check_name(name)
    for level in facts.levels:
        check_level(level)
    if not 0 <= facts.scene_frames <= MAX_SCENE_FRAMES:
        raise InputError(f"scene_frames is {facts.scene_frames!r:.20}")
    check_zones(facts.zones)


def check_tensors(tensors: Tensors, facts: Facts) -> None:
    """Refuse tensors, of which none is missing, that are not for the classes of the facts, with an InputError."""
    for name, (kind, shape) in wire.OUTPUTS.items():
        tensor, expected = tensors[name], shape if shape == (1,) else (len(facts.classes),)
        if tensor.dtype != _DTYPES[kind] or tensor.shape != expected:
            raise InputError(f"the tensor {name!r} is {tensor.dtype} {tensor.shape}, not {_DTYPES[kind]} {expected}")
    if tensors[wire.NAMES].tolist() != [name.encode() for name in facts.classes]:
        raise InputError("the names are not those of the facts")
    for name in (wire.SCORES, wire.RAW_SCORES, wire.LEVELS):
        if not bool(((tensors[name] >= 0) & (tensors[name] <= 1)).all()):  # false of a NaN
            raise InputError(f"the tensor {name!r} has values outside 0 to 1")


def check_details(details: Details, facts: Facts) -> None:
    """Refuse times that are none, and what is remembered of other classes, with an InputError."""
    times = details.latency_ms.values()
    if len(times) > _MAX_STAGES or not all(0 <= time_ms <= _MAX_STAGE_MS for time_ms in times):
        raise InputError(f"latency_ms is {details.latency_ms!r:.80}")
    if details.steady is None:
        return
    since = [since_s for _, since_s in details.steady.classes.values() if since_s is not None]
    if details.steady.classes.keys() != set(facts.classes) or not all(map(math.isfinite, since)):
        raise InputError(f"steady is {details.steady!r:.80}")


def label_map_of(tensors: Tensors, facts: Facts, size_hw: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return the label map of a frame of this size, (H, W) uint8; an InputError if it is of something else."""
    with decoded(wire.bytes_of(tensors, wire.LABEL_PNG), "the label map") as image:
        if image.mode != "P" or (image.height, image.width) != size_hw:
            got = f"{image.mode} of {image.width}x{image.height}"
            raise InputError(f"the label map is {got}, and the frame has {size_hw[1]}x{size_hw[0]}")
        label_map = np.array(image, np.uint8)
    if int(label_map.max()) > len(facts.classes):
        raise InputError(f"the label map has {label_map.max()}, and there are {len(facts.classes)} classes")
    return label_map
