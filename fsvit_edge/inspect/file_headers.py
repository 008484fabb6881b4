"""What ONNX files and checkpoints contain, read from their headers: nothing is loaded, unpickled or executed."""

import json
import math
import pickletools
import re
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fsvit_edge.inspect.tensor_names import (
    BACKBONE_PREFIX,
    HEAD_PREFIX,
    OBJECTNESS_PREFIX,
    backbone_prefix,
    is_shard,
    plain_name,
)
from fsvit_edge.runtime.json_records import MAX_JSON_BYTES
from fsvit_edge.runtime.onnx_file import message, text
from fsvit_edge.runtime.storage import read_file

# ----------------------------------------------------------------------------------------------------------- ONNX files

_QUANTIZED = re.compile(
    r"(Dynamic)?QuantizeLinear|DequantizeLinear|MatMulInteger(ToFloat)?|DynamicQuantizeMatMul|QLinearMatMul|QGemm|QAttention"
)
_FLOAT, _FLOAT16 = 1, 10


@dataclass(frozen=True)
class OnnxHeader:
    """An ONNX file without its weights."""

    producer: str  # name and version of the program that wrote it; "" if not stated
    opset: int  # version of ONNX's own operators
    operators: dict[str, int]  # number of nodes by operator, the most frequent first
    precision: str  # int8 if anything is quantized, else the type of most of the weights: fp16 or fp32


def read_onnx_header(data: bytes) -> OnnxHeader:
    """Read the header of an ONNX file; the numbers of its fields are those of onnx.proto.

    Raises:
        ValueError: It is not an ONNX file, or is truncated.
    """
    try:
        model = message(memoryview(data))  # 2 and 3 name the producer, 7 is the graph, 8 the operator sets
        opsets = [message(one) for one in model[8]]
        versions = [index(one[2][-1]) for one in opsets if text(one, 1) in ("", "ai.onnx") and one[2]]
        graph = message(model[7][-1]) if model[7] else None
        if graph is None or not versions or not versions[-1]:
            raise ValueError("it has no graph")
        operators = Counter(text(message(node), 4) for node in graph[1])
        weight_bytes: Counter[int] = Counter()
        for tensor in graph[5]:
            weight_bytes[sum(message(tensor)[2][-1:])] += len(tensor)  # by type; 0 if it states none
        producer = f"{text(model, 2)} {text(model, 3)}".strip()
    except (LookupError, TypeError) as error:  # it ends within a field, or a field is of another kind
        raise ValueError("it is truncated or not a protobuf message") from error
    precision = "fp16" if weight_bytes[_FLOAT16] > weight_bytes[_FLOAT] else "fp32"
    if any(map(_QUANTIZED.fullmatch, operators)):
        precision = "int8"
    return OnnxHeader(producer, versions[-1], dict(operators.most_common()), precision)


# ---------------------------------------------------------------------------------------------------------- checkpoints

_MAX_PICKLE_BYTES = 64 * 2**20
_PARTS = {"backbone": BACKBONE_PREFIX, "head": HEAD_PREFIX, "objectness decoder": OBJECTNESS_PREFIX}
_OF_STORAGE = re.compile(
    r"storage|\d+|cpu|meta|[a-z]+:\d+"
)  # the texts with which a pickle refers to a tensor's values
_HARMLESS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_\w+|torch \w+Storage|torch\.serialization _\w+")
"""Functions that unpickling a checkpoint of nothing but tensors calls."""


def safetensors_facts(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return a .safetensors file's metadata; and, for people, its tensors and the configuration beside it.

    Raises:
        ValueError: It is damaged or not a .safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            values: Counter[str] = Counter()
            for one in map(file.get_slice, names):
                values[one.get_dtype()] += math.prod(one.get_shape())
    except (SafetensorError, OSError, TypeError) as error:
        raise ValueError(str(error)) from error
    contains, command = _contents(path, names)
    return metadata, {
        "contains": contains,
        "values": ", ".join(f"{count / 1e6:.2f} million {dtype}" for dtype, count in values.most_common()) or "none",
        "configuration": _configuration(path.with_suffix(".json")),
        **command,
    }


def _configuration(path: Path) -> str:
    try:
        values = dict(json.loads(read_file(path, MAX_JSON_BYTES)).items())
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
    contains, command = _contents(path, names)
    return {
        "contains": contains,
        "tensors": f"{len(storages)}, {sum(info.file_size for info in storages) / 1e6:.1f} MB in total",
        "other objects": ", ".join(others[:5]) or "none",
        **command,
    }


def _scan_pickle(program: bytes) -> tuple[list[str], set[str]]:
    """The names of a pickle's tensors, and the functions that unpickling it would call."""
    texts: list[str] = []
    names: list[str] = []
    calls: set[str] = set()
    read = 0  # texts before the last tensor
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "GLOBAL":
                calls.add(str(argument))
            elif opcode.name == "STACK_GLOBAL":
                calls.add(" ".join(texts[-2:]))
            elif opcode.name == "BINPERSID":  # the values of a tensor, whose name stands before
                names += [text for text in texts[read:] if not _OF_STORAGE.fullmatch(text)][-1:]
                read = len(texts)
            elif isinstance(argument, str):
                texts.append(argument)
    except Exception as error:  # a damaged pickle raises anything in the disassembler
        raise ValueError("the names in it are damaged") from error
    return names, calls


def _contents(path: Path, names: list[str]) -> tuple[str, dict[str, str]]:
    """The tensors by part of the network, as "186 of the backbone, 60 of the head", and what exports them, if known."""
    if is_shard(path):
        return f"{len(names)} tensors of a checkpoint in several files; export takes one file with all of them", {}
    plain = dict.fromkeys(map(plain_name, names))  # a teacher and its student count once
    counts = {part: sum(name.startswith(prefix) for name in plain) for part, prefix in _PARTS.items()}
    needs_configuration = path.suffix == ".safetensors"
    has_configuration = needs_configuration and path.with_suffix(".json").is_file()
    prefix = backbone_prefix(plain.keys())
    if prefix is not None and not counts["head"] and not has_configuration:
        count = sum(name.startswith(prefix) for name in plain)
        command = f"fsvit-edge export --head prototype --weights {path}"
        return f"{count} tensors of a backbone alone", {"to export it": command}
    found = ", ".join(f"{count} tensors of the {part}" for part, count in counts.items() if count)
    if not found or needs_configuration > has_configuration:
        return found or "neither a backbone nor a head", {}
    lacks = "" if counts["backbone"] else " --backbone NAME --weights FILE"
    return found, {"to export it": f"fsvit-edge export --checkpoint {path}{lacks}"}
