"""What ONNX files and checkpoints contain, read from their headers: nothing is loaded, unpickled or executed.

The ONNX reader is our own, because the onnx package is not installed on devices; it reads only the fields it needs.
"""

import json
import math
import pickletools
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

# ----------------------------------------------------------------------------------------------------------- ONNX files

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOAT, _FLOAT16 = 1, 10
_QUANTIZED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
}


@dataclass(frozen=True)
class OnnxHeader:
    """An ONNX file without its weights.

    Attributes:
        producer: Name and version of the program that wrote it; "" if not stated.
        opset: Version of ONNX's own operators.
        operators: Number of nodes by operator, the most frequent first.
        precision: int8 if anything is quantized, else the type of most of the weights: fp16 or fp32.
    """

    producer: str
    opset: int
    operators: dict[str, int]
    precision: str


def read_onnx_header(data: bytes) -> OnnxHeader:
    """Read the header of an ONNX file.

    Raises:
        ValueError: It is not an ONNX file, or is truncated.
    """
    producer = version = ""
    opset = 0
    graph: memoryview | None = None
    for number, value in _fields(memoryview(data)):
        if number == 2:
            producer = _text(value)
        elif number == 3:
            version = _text(value)
        elif number == 7:
            graph = _message(value)
        elif number == 8:
            operator_set = dict(_fields(_message(value)))
            if 1 not in operator_set or _text(operator_set[1]) in ("", "ai.onnx"):
                opset = _int(operator_set.get(2, 0))
    if graph is None or opset == 0:
        raise ValueError("it has no graph")
    operators: Counter[str] = Counter()
    weight_bytes: Counter[int] = Counter()
    for number, value in _fields(graph):
        if number == 1:
            operators[next((_text(one) for at, one in _fields(_message(value)) if at == 4), "")] += 1
        elif number == 5:
            tensor = _message(value)
            weight_bytes[next((_int(one) for at, one in _fields(tensor) if at == 2), 0)] += len(tensor)
    precision = "fp16" if weight_bytes[_FLOAT16] > weight_bytes[_FLOAT] else "fp32"
    if operators.keys() & _QUANTIZED:
        precision = "int8"
    return OnnxHeader(f"{producer} {version}".strip(), opset, dict(operators.most_common()), precision)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a protobuf message."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("it is not a protobuf message")
        if number == 0 or position + size > len(data):
            raise ValueError("it is truncated or not a protobuf message")
        yield number, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number of variable length, and the position after it."""
    value = 0
    for index in range(10):
        if position + index >= len(data):
            raise ValueError("it is truncated")
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("it is not a protobuf message")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it has a number in place of a message")  # noqa: TRY004 - the file is wrong, not the type
    return value


def _int(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("it has a message in place of a number")  # noqa: TRY004 - as above
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode("utf-8", "replace")


# ---------------------------------------------------------------------------------------------------------- checkpoints

_MAX_PICKLE_BYTES = 64 * 2**20
_PARTS = {"backbone": "backbone.", "head": "learner.", "objectness decoder": "objectness."}
_HARMLESS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_\w+|torch \w+Storage|torch\.serialization _\w+")
"""Functions that unpickling a checkpoint of nothing but tensors calls."""


def safetensors_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in a .safetensors file's header.

    Raises:
        ValueError: It is damaged or not a .safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, TypeError) as error:
        raise ValueError(str(error)) from error


def safetensors_facts(path: Path) -> dict[str, Any]:
    """Describe the tensors of a .safetensors file and the configuration beside it.

    Raises:
        ValueError: It is damaged or not a .safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            shapes = {name: (one.get_dtype(), one.get_shape()) for name in names for one in [file.get_slice(name)]}
    except (SafetensorError, OSError, TypeError) as error:
        raise ValueError(str(error)) from error
    values: Counter[str] = Counter()
    for dtype, shape in shapes.values():
        values[dtype] += math.prod(shape)
    return {
        "contains": _parts(names),
        "values": ", ".join(f"{count / 1e6:.2f} million {dtype}" for dtype, count in values.most_common()) or "none",
        "configuration": _configuration(path.with_suffix(".json")),
    }


def _configuration(path: Path) -> str:
    try:
        values = dict(json.loads(path.read_text()).items())
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError, AttributeError, RecursionError):
        return f"{path.name} is damaged"
    return ", ".join(f"{key} {value!s:.60}" for key, value in values.items())


def pickled_facts(path: Path) -> dict[str, Any]:
    """Describe the tensors of a .ckpt, .pth or .pt file of torch, from the names in it.

    Raises:
        ValueError: It is damaged or not such a file.
    """
    with path.open("rb") as file:
        if file.read(2) == b"\x80\x02":
            return {"contains": "unknown: this old torch format can be read only by unpickling it"}
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [info for info in archive.infolist() if info.filename.endswith("data.pkl")]
            storages = [info for info in archive.infolist() if re.search(r"(^|/)data/\d+$", info.filename)]
            if len(pickles) != 1:
                raise ValueError("it is a zip file without torch's data.pkl")
            with archive.open(pickles[0]) as file:
                program = file.read(_MAX_PICKLE_BYTES)
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(f"it is truncated or not a torch checkpoint: {error}") from error
    if damaged is not None:
        raise ValueError(f"{damaged} in it is damaged")
    names, calls = _scan_pickle(program)
    others = sorted(call for call in calls if not _HARMLESS.fullmatch(call))
    return {
        "contains": _parts(names),
        "tensors": f"{len(storages)}, {sum(info.file_size for info in storages) / 1e6:.1f} MB in total",
        "other objects": ", ".join(others[:5]) or "none",
    }


def _scan_pickle(program: bytes) -> tuple[list[str], set[str]]:
    """The texts of a pickle, and the functions that unpickling it would call."""
    texts: list[str] = []
    calls: set[str] = set()
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "GLOBAL":
                calls.add(str(argument))
            elif opcode.name == "STACK_GLOBAL":
                calls.add(" ".join(texts[-2:]))
            elif isinstance(argument, str):
                texts.append(argument)
    except Exception as error:  # a damaged pickle raises anything in the disassembler
        raise ValueError("the names in it are damaged") from error
    return texts, calls


def _parts(names: list[str]) -> str:
    """The tensors by part of the network: 186 of the backbone, 60 of the head."""
    counts = {part: sum(name.startswith(prefix) for name in names) for part, prefix in _PARTS.items()}
    found = ", ".join(f"{count} tensors of the {part}" for part, count in counts.items() if count)
    return found or "neither a backbone nor a head"
