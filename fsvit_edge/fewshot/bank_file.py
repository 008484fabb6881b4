"""A bank's file: a header in JSON and tensors in one .safetensors file, with a sum over both."""

import hashlib
import json
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fsvit_edge.fewshot.cached_support import read_facts
from fsvit_edge.fewshot.names import escaped
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.storage import atomic_write

FORMAT_VERSION = 4
READABLE_VERSIONS = (3, 4)
"""Format 3 has neither negatives nor pictures of the empty scene."""
METADATA_KEY = "fsvit-edge-bank"
"""Key in the file's header that only a bank has."""
PRECISION = "fp16"

MAX_HEADER_BYTES = 8_000_000
"""Of a full bank's header, 2 MB are known; a parser needs a multiple of it in memory."""

MAX_FILE_BYTES = 2_000_000_000
"""Of a file; a full bank of the largest published encoder has 1.7 GB."""

_MOST_LOG_ODDS = 100.0
_SHOWN = 200
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a Path keeps one of two slashes
Tensors = Mapping[str, npt.NDArray[Any]]


def check_bank_path(path: Path) -> None:
    """Refuse an address, and a path that does not end in .safetensors, with an InputError."""
    if _ADDRESS.match(str(path)):
        raise InputError(
            f"A bank must be a .safetensors file, got the address {path}; only run reads a bank from an address. "
            "Change its file, and copy that to the server."
        )
    if path.suffix != ".safetensors":
        raise InputError(f"A bank must be a .safetensors file, got {path}.")


def write_bank_file(path: Path, contents: Mapping[str, Any], tensors: Tensors) -> None:
    """Write tensors and a header, and add format and sum, whole or not at all; raises as `SupportBank.save`."""
    check_bank_path(path)
    header = {"format_version": FORMAT_VERSION, "precision": PRECISION, **contents}
    header["sha256"] = digest_of(header, tensors)
    data = save(dict(tensors), metadata={METADATA_KEY: json.dumps(header)})
    if len(data) > MAX_FILE_BYTES:  # it could not be read again
        raise InputError(
            f"The classes need {len(data):,} bytes in {path}, and a bank has at most {MAX_FILE_BYTES:,}; remove "
            "classes or pictures."
        )
    atomic_write(path, data)


def read_bank_file(path: Path) -> tuple[dict[str, Any], Tensors]:
    """Return the header and the tensors of a file whose format and sum are right; raises as `SupportBank.load`."""
    header = check_bank_header(path)
    digest = header.pop("sha256")
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if digest != digest_of(header, tensors):
        raise ArtifactError(f"Bank {path} is damaged: its contents do not match its sha256; enroll its classes again.")
    return header, tensors


def check_bank_header(path: Path) -> dict[str, Any]:
    """Return the header of a file that can be a bank, read without its tensors; raises as `SupportBank.load`."""
    check_bank_path(path)
    _check_file(path)
    with _opened(path) as file:
        metadata = (file.metadata() or {}).get(METADATA_KEY)
    try:
        header: dict[str, Any] = json.loads(metadata or "")
        version, precision, _ = header["format_version"], header["precision"], header["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged_header(path) from error
    if type(version) is not int or version not in READABLE_VERSIONS or precision != PRECISION:
        raise ArtifactError(
            f"Bank {path} has format {version!r:.20} in {precision!r:.20}, this fsvit-edge reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))} in {PRECISION!r}; enroll its classes again."
        )
    return header


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        # It may repeat the name of a tensor, which may be anything.
        raise ArtifactError(
            f"Bank {path} is damaged or not a safetensors file: {escaped(str(error)[:_SHOWN])}."
        ) from error


def precision_of_bank(path: Path, encoder_sha256: str) -> str | None:
    """Return the precision that a bank of this encoder was enrolled in; None if there is none, or it cannot be read."""
    try:
        _check_file(path)
        with safe_open(path, framework="numpy") as file:
            encoder = json.loads((file.metadata() or {})[METADATA_KEY])["encoder"]
        return str(encoder["precision"]) if encoder["encoder_sha256"] == encoder_sha256 else None
    except (ArtifactError, SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # loading it says why


def _check_file(path: Path) -> None:
    """Refuse what is no file, which could block a reader, and a header too large to be parsed."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"Bank {path} is no file; give the name of a .safetensors file.")
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(
            f"Bank {path} does not exist; make one with: fsvit-edge enroll NAME IMAGE --bank {path}."
        ) from error
    except OSError as error:
        raise ArtifactError(f"Bank {path} cannot be read: {error.strerror}.") from error
    if status.st_size > MAX_FILE_BYTES:
        raise ArtifactError(f"Bank {path} has {status.st_size:,} bytes, and a bank at most {MAX_FILE_BYTES:,}.")
    if size > MAX_HEADER_BYTES:
        raise ArtifactError(
            f"Bank {path} is damaged or not a safetensors file: its header has {size} bytes, and a bank's at most "
            f"{MAX_HEADER_BYTES}."
        )


def damaged_header(path: Path) -> ArtifactError:
    """The error of a header that lacks something."""
    return ArtifactError(f"{path} is not a support bank of fsvit-edge: its header is missing or damaged.")


def digest_of(header: Mapping[str, Any], tensors: Tensors) -> str:
    """Return the sha256 of header and tensors: safetensors checks the shape of a file, not its values."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def read_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One class of a header; a ValueError, KeyError, TypeError or AttributeError if it is malformed."""
    negatives, margins = read_facts(entry.get("negatives")), entry.get("negative_margins", ())
    if len(negatives) != len(margins):
        raise ValueError(margins)
    name, is_by_hand, scores = entry["name"], entry["is_level_by_hand"], entry.get("scene_scores", ())
    if type(name) is not str or type(is_by_hand) is not bool or any(type(one) not in (int, float) for one in scores):
        raise ValueError(entry)
    return {
        "name": name,
        "level": entry["level"],
        "is_level_by_hand": is_by_hand,
        "supports": read_facts(entry),
        "negatives": negatives,
        "negative_margins": [_margin(margin) for margin in margins],
        "scene_scores": [float(score) for score in scores],
    }


def _margin(value: Any) -> float:
    """A negative's margin; one of more log-odds than scores can have makes no sense, and overflows."""
    if type(value) not in (int, float) or not abs(value) <= _MOST_LOG_ODDS:
        raise ValueError(value)
    return float(value)
