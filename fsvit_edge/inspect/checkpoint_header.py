"""What a checkpoint holds, read without opening it: nothing is unpickled and no tensor is loaded."""

import json
import math
import pickletools
import re
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

_MOST_PICKLE_BYTES = 64 * 2**20
_PARTS = {"a backbone": "backbone.", "a head": "learner.", "an objectness decoder": "objectness."}
_HARMLESS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_\w+|torch \w+Storage|torch\.serialization _\w+")


def safetensors_metadata(path: Path) -> dict[str, str]:
    """Return the texts in a .safetensors file's header.

    Raises:
        ValueError: It is damaged or no such file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, TypeError) as error:
        raise ValueError(str(error)) from error


def safetensors_facts(path: Path) -> dict[str, Any]:
    """Count what a .safetensors file holds, with the configuration beside it.

    Raises:
        ValueError: It is damaged or no such file.
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
    facts: dict[str, Any] = {
        "holds": _parts(names),
        "values": ", ".join(f"{count / 1e6:.2f} million {dtype}" for dtype, count in values.most_common()) or "none",
    }
    config = path.with_suffix(".json")
    try:
        stated = dict(json.loads(config.read_text()).items())
        facts["configuration"] = ", ".join(f"{key} {value!s:.60}" for key, value in stated.items())
    except FileNotFoundError:
        facts["configuration"] = f"no {config.name} beside it"
    except (OSError, ValueError, AttributeError, RecursionError):
        facts["configuration"] = f"{config.name} beside it is damaged"
    return facts


def pickled_facts(path: Path) -> dict[str, Any]:
    """Count what a .ckpt, .pth or .pt file of torch holds, from the names in it.

    Raises:
        ValueError: It is damaged or no such file.
    """
    with path.open("rb") as file:
        if file.read(2) == b"\x80\x02":
            return {"holds": "a pickle of an old torch, whose contents cannot be told without unpickling it"}
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [info for info in archive.infolist() if info.filename.endswith("data.pkl")]
            storages = [info for info in archive.infolist() if re.search(r"(^|/)data/\d+$", info.filename)]
            if len(pickles) != 1:
                raise ValueError("it is a zip file without torch's data.pkl")
            with archive.open(pickles[0]) as file:
                program = file.read(_MOST_PICKLE_BYTES)
            flaw = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(f"it is no checkpoint of torch, or cut short: {error}") from error
    if flaw is not None:
        raise ValueError(f"{flaw} in it is damaged")
    names, calls = _scan(program)
    odd = sorted(call for call in calls if not _HARMLESS.fullmatch(call))
    return {
        "holds": _parts(names),
        "tensors": f"{len(storages)} of {sum(info.file_size for info in storages) / 1e6:.1f} MB in all",
        "beside tensors": ", ".join(odd[:5]) or "nothing",
    }


def _scan(program: bytes) -> tuple[list[str], set[str]]:
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
    except Exception as error:  # whatever a broken pickle makes of the disassembler
        raise ValueError("the names in it are damaged") from error
    return texts, calls


def _parts(names: list[str]) -> str:
    counts = {part: sum(name.startswith(prefix) for name in names) for part, prefix in _PARTS.items()}
    found = [f"{count} tensors of {part}" for part, count in counts.items() if count]
    return ", ".join(found) or "neither a backbone nor a head"
