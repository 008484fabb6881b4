"""The journal of a labeling: a line for each picture, in order; all that a killed run leaves for the next.

A line that a kill, a full disk or a power cut left incomplete is cut off, with what is behind it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsvit_edge.label.records import LabeledClass, LabeledPicture, Part
from fsvit_edge.runtime.errors import FsvitEdgeError


@dataclass(frozen=True)
class Failure:
    """A picture, or the rest of a video, that cannot be labeled."""

    path: str  # as `LabeledPicture.path`, or the name of the video
    reason: str  # a sentence


Record = LabeledPicture | Failure


class Journal:
    """An open journal: append lines; a context manager closes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _disk_errors(path):
            self._file = path.open("ab", buffering=0)  # the system gets each line in one piece

    def append(self, line: bytes) -> None:
        """Add what `to_line` returned; an FsvitEdgeError if the disk is full."""
        with _disk_errors(self._path):
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def cut_torn(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the path of each record and whether it is a failure, and cut off what is behind the last whole line.

    Nothing, if there is no journal.
    """
    try:
        file = path.open("rb+")
    except FileNotFoundError:
        return
    with file:
        whole = 0
        for line in file:
            record = _parsed(line) if line.endswith(b"\n") else None
            if record is None:
                break
            whole += len(line)
            yield record["path"], "reason" in record
        file.truncate(whole)


def read(path: Path) -> Iterator[Record]:
    """Yield the records of a journal that is complete."""
    with path.open("rb") as file:
        yield from map(from_line, file)


def to_line(record: Record) -> bytes:
    """Return a record as a line of JSON."""
    if isinstance(record, Failure):
        values: dict[str, Any] = {"path": record.path, "reason": record.reason}
    else:
        values = {
            "path": record.path,
            "size_hw": record.size_hw,
            "time_s": record.time_s,
            "classes": [
                {
                    "name": one.name,
                    "score": one.score,
                    "level": one.level,
                    "present": one.present,
                    # Not by dataclasses.asdict, which copies each number.
                    "parts": [[part.area_px, part.box_xyxy, part.counts] for part in one.parts],
                }
                for one in record.classes
            ],
        }
    return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes) -> Record:
    """Return the record of a line that `to_line` returned."""
    values = json.loads(line)
    if "reason" in values:
        return Failure(values["path"], values["reason"])
    classes = tuple(
        LabeledClass(
            one["name"],
            one["score"],
            one["level"],
            one["present"],
            tuple(Part(area_px, _box(box), tuple(counts)) for area_px, box, counts in one["parts"]),
        )
        for one in values["classes"]
    )
    height, width = values["size_hw"]
    return LabeledPicture(values["path"], (height, width), values["time_s"], classes)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("path"), str) else None


def _box(values: list[int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = values
    return left, top, right, bottom


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FsvitEdgeError(
            f"{path} cannot be written: {error.strerror}; free some space, and the same command goes on where this "
            "one stopped."
        ) from error
