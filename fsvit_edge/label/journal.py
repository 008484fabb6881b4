"""The journal of a labeling: a line for each picture, by which a repeated command labels only what it has not yet.

A line tells of which file it is and of which version of it; of two lines of one picture, the later one counts. A line
that a kill, a full disk or a power cut left incomplete is cut off, with what is behind it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fsvit_edge.label.pictures import Listing, Stored
from fsvit_edge.label.records import LabeledPicture, from_plain, to_plain
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError


@dataclass(frozen=True)
class Failure:
    """A picture, or the rest of a video, that cannot be labeled."""

    path: str  # as `LabeledPicture.path`, or the name of the video
    reason: str  # a sentence


@dataclass(frozen=True)
class VideoEnd:
    """A video of which every frame has a line."""

    path: str  # the name of the video


Record = LabeledPicture | Failure
Kind = Literal["labeled", "failed", "ended"]


class Journal:
    """An open journal: append lines; a context manager closes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _disk_errors(path):
            self._file = path.open("ab+", buffering=0)  # the system gets each line in one piece
            self._end = self._file.seek(0, os.SEEK_END)

    def append(self, line: bytes) -> int:
        """Add what `to_line` returned, and return its place; an FsvitEdgeError if the disk is full."""
        place = self._end
        with _disk_errors(self._path):
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._end += len(line)
        return place

    def has(self, line: bytes, place: int) -> bool:
        """Whether a line is at a place."""
        return os.pread(self._file.fileno(), len(line), place) == line

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Kept:
    """What a journal has of the pictures and videos that are listed, as these are now.

    Attributes:
        labeled: The place of the line of each picture and frame.
        failed: The same for those that could not be labeled, and for the rest of a video; they are tried again.
        versions: Of each video with a line, the version that was read.
        gone: Pictures and videos with a line that are not listed.
    """

    def __init__(self) -> None:
        self.labeled: dict[str, int] = {}
        self.failed: dict[str, int] = {}
        self.versions: dict[str, str] = {}
        self.gone: set[str] = set()
        self._frames: dict[str, set[str]] = {}
        self._ended: set[str] = set()

    def add(self, entry: str, path: str, kind: Kind, place: int) -> None:
        """Note a line of what is listed as `entry`, in place of earlier ones of the same path."""
        self.labeled.pop(path, None)
        self.failed.pop(path, None)
        self._ended.discard(path)
        if kind == "ended":
            self._ended.add(path)
            return
        (self.labeled if kind == "labeled" else self.failed)[path] = place
        if path != entry:
            self._frames.setdefault(entry, set()).add(path)

    def is_done(self, entry: Stored) -> bool:
        """Whether all of a picture or video is labeled."""
        if not entry.is_video:
            return entry.name in self.labeled
        return entry.name in self._ended and self._frames.get(entry.name, set()).isdisjoint(self.failed)

    def items(self, listing: Listing) -> Iterator[int | Failure]:
        """Yield the places of the lines of what is listed, in order, and why there is none."""
        for entry in listing.entries:
            if entry.problem:
                yield Failure(entry.name, entry.problem)
                continue
            frames = self._frames.get(entry.name, ())
            for path in (*sorted(frames, key=lambda name: (len(name), name)), entry.name):
                place = self.labeled.get(path, self.failed.get(path))
                if place is not None:
                    yield place

    def digest(self, listing: Listing) -> str:
        """Return what differs if other label files come of it."""
        total = hashlib.sha256()
        for item in self.items(listing):
            total.update(f"{item}\n".encode())
        return total.hexdigest()


def read_kept(path: Path, listing: Listing, has_picture: Callable[[str], bool]) -> tuple[Kept, set[str]]:
    """Read what a journal has of a listing, and cut off what is behind its last whole line.

    Args:
        path: The journal, which need not exist.
        listing: What is to be labeled now; a file that has another size or time since is as if it had no line.
        has_picture: Whether there still is the picture that stands for a frame.

    Returns:
        What is kept, and the videos of which pictures of frames are left that no line is kept for.
    """
    known = {entry.name: entry.is_video for entry in listing.entries if not entry.problem}
    kept, left, lacking = Kept(), set[str](), set[str]()
    name = version = ""
    for place, values in _whole_lines(path):
        if values["entry"] != name:
            name = values["entry"]
            version = listing.version(name) if name in known else ""
        is_frame = values["path"] != name
        if name not in known or values["version"] != version:
            if name not in known:
                kept.gone.add(name)
            if is_frame:
                left.add(name)
            continue
        if is_frame and not has_picture(values["path"]) and "reason" not in values:
            lacking.add(name)
            continue
        if known[name]:
            kept.versions[name] = version
        kind: Kind = "failed" if "reason" in values else "labeled" if "size_hw" in values else "ended"
        if kind != "ended" or name not in lacking:
            kept.add(name, values["path"], kind, place)
    return kept, left - kept.versions.keys()


def read(path: Path, items: Iterable[int | Failure]) -> Iterator[Record]:
    """Yield the records at places of a journal; an ArtifactError if somebody has changed it."""
    with path.open("rb") as file:
        for item in items:
            if isinstance(item, Failure):
                yield item
            else:
                file.seek(item)
                try:
                    record = from_line(file.readline())
                except (KeyError, TypeError, ValueError) as error:
                    raise ArtifactError(
                        f"{path} is damaged at byte {item}: {error!r:.80}; remove its folder's output, or give another "
                        "one with --output."
                    ) from error
                yield record


def to_line(record: Record | VideoEnd, entry: str, version: str) -> bytes:
    """Return a record as a line of JSON, with the name of what is listed, a picture or a video, and its version."""
    values: dict[str, Any] = {"entry": entry, "version": version, "path": record.path}
    if isinstance(record, Failure):
        values["reason"] = record.reason
    elif isinstance(record, LabeledPicture):
        values |= {"size_hw": record.size_hw, "time_s": record.time_s, "classes": to_plain(record.classes)}
    return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes) -> Record:
    """Return the record of a line of a picture or a failure."""
    values = json.loads(line)
    if "reason" in values:
        return Failure(values["path"], values["reason"])
    height, width = values["size_hw"]
    return LabeledPicture(values["path"], (height, width), values["time_s"], from_plain(values["classes"]))


def _whole_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        file = path.open("rb+")
    except FileNotFoundError:
        return
    with file:
        whole = 0
        for line in file:
            values = _parsed(line) if line.endswith(b"\n") else None
            if values is None:
                break
            yield whole, values
            whole += len(line)
        file.truncate(whole)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    is_ours = isinstance(values, dict) and all(isinstance(values.get(key), str) for key in ("entry", "version", "path"))
    return values if is_ours else None


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FsvitEdgeError(
            f"{path} cannot be written: {error.strerror}; free some space, and the same command goes on where this "
            "one stopped."
        ) from error
