"""A SOURCE string -> the calibration set, a bounded and reproducible sample of its pictures.

SOURCE: folder/  list.txt  video.mp4  picture.jpg  0  /dev/video0  rtsp://host/path
"""

import hashlib
import heapq
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fsvit_edge.live.sources.files import its_videos
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.pictures import PICTURE_SUFFIXES, read_image

Rgb = npt.NDArray[np.uint8]

LIST_SUFFIX = ".txt"

_PICTURE_FOLDERS = frozenset({"images", "jpegimages", "train2014", "val2014"})
_MASK_FOLDERS = frozenset(
    {"masks", "labels", "annotations", "segmentationclass", "segmentationclassaug", "segmentationobject"}
)
"""Folders of label maps, skipped next to a folder of pictures, because label maps are not camera pictures."""


@dataclass
class _Files:
    """Picture files, of which the first `count` readable ones are used; the rest replace unreadable files."""

    paths: list[Path]
    count: int

    def read(self) -> Iterator[Rgb | FsvitEdgeError]:
        left = self.count
        for path in self.paths:
            if left == 0:
                return
            try:
                image = read_image(path)
            except FsvitEdgeError as error:
                yield error
            else:
                left -= 1
                yield image


@dataclass
class _Video:
    """Frames of a video, one random frame from each of `count` equal parts."""

    uri: str
    num_frames: int
    seed: int
    count: int

    def read(self) -> Iterator[Rgb | FsvitEdgeError]:
        rng = random.Random(self.seed)  # noqa: S311 - not a secret
        bounds = [part * self.num_frames // self.count for part in range(self.count + 1)]
        wanted = {rng.randrange(start, stop) for start, stop in pairwise(bounds)}
        last = max(wanted)
        with open_source(self.uri) as source:
            for frame in source:
                if frame.index in wanted:
                    yield frame.image
                if frame.index == last:
                    return
                wanted.discard(frame.index)
            for _ in wanted:  # the video ends before them
                yield InputError(source.problem or f"{self.uri} ends before its frame {last}.")


@dataclass
class _Live:
    """Frames of a camera or stream, at equal intervals."""

    uri: str
    interval_s: float
    count: int

    def read(self) -> Iterator[Rgb]:
        due_s, left = 0.0, self.count
        with open_source(self.uri) as source:
            for frame in source:
                if frame.monotonic_s >= due_s:
                    due_s, left = frame.monotonic_s + self.interval_s, left - 1
                    yield frame.image
                if left == 0:
                    return


@dataclass
class CalibrationSet:
    """A sample of a source. Iterate over it for (H, W, 3) uint8 RGB pictures, one in memory at a time.

    Each iteration reads the pictures again, in the same order except from a camera.
    """

    source: str
    parts: "list[_Files | _Video | _Live]"
    unreadable: int = field(default=0, init=False)  # pictures that the last iteration skipped: missing or damaged
    first_error: str = field(default="", init=False)

    @property
    def count(self) -> int:
        """Number of pictures, if enough of them can be read and a video is as long as its header says."""
        return sum(part.count for part in self.parts)

    def __iter__(self) -> Iterator[Rgb]:
        """Read the pictures."""
        self.unreadable, self.first_error, given = 0, "", 0
        for part in self.parts:
            for item in part.read():
                if isinstance(item, FsvitEdgeError):
                    self.unreadable += 1
                    self.first_error = self.first_error or str(item)
                else:
                    given += 1
                    yield item
        if given == 0:
            reason = self.first_error or "it ends before the first sampled frame."
            raise InputError(f"{self.source} has no picture to calibrate with: {reason}")


def sample_pictures(source: str, max_pictures: int = 256, seed: int = 0, seconds: float = 60.0) -> CalibrationSet:
    """Choose pictures from a source; none is read before you iterate over the set.

    Files are chosen by a hash of the seed and their path below the source, so the choice does not depend on the order
    in which the disk lists them or on where the source is, and a few new files change few choices. A folder is searched
    recursively, without folders of masks next to folders of pictures; the lines of a .txt list are relative to it, and
    each of its folders, each video, and all single pictures together contribute equal shares as far as they have
    enough; a video is sampled over its whole length, a camera or stream over at least `seconds`.

    Raises:
        InputError: The kind of source is not supported, or it contains no picture or cannot be searched.
        SourceError: The source does not exist or cannot be opened.
    """
    return CalibrationSet(source, _parts(source, max_pictures, seed, seconds))


def _parts(source: str, num: int, seed: int, seconds: float) -> "list[_Files | _Video | _Live]":
    if os.path.isdir(source):
        files = _choose(Path(source), _pictures_below(source), num, seed)
        if not files.paths:
            raise InputError(
                f"The folder {source} contains no picture ({', '.join(PICTURE_SUFFIXES)}), at any depth"
                f"{its_videos(Path(source))}."
            )
        return [files]
    if source.lower().endswith(LIST_SUFFIX) and os.path.isfile(source):
        return _listed_parts(Path(source), num, seed, seconds)
    if source == "demo":
        raise InputError("The demo cannot be used to calibrate; give pictures, a video or a camera of the real scene.")
    with open_source(source) as opened:
        if opened.is_live:
            return [_Live(source, seconds / num, num)]
        if source.lower().endswith(PICTURE_SUFFIXES):
            return [_Files([Path(source)], 1)]
        num_frames = opened.num_frames or sum(1 for _ in opened)
    return [_Video(source, num_frames, seed, min(num, num_frames))]


def _listed_parts(path: Path, num: int, seed: int, seconds: float) -> "list[_Files | _Video | _Live]":
    pictures = (line for line in _lines(path) if line.lower().endswith(PICTURE_SUFFIXES))
    files = _choose(path.parent, pictures, num, seed)
    parts: list[_Files | _Video | _Live] = [files] if files.paths else []
    for line in _lines(path):
        if line.lower().endswith(LIST_SUFFIX):
            raise InputError(f"{path} contains {line}, another list; replace that line with the lines of the list.")
        if not line.lower().endswith(PICTURE_SUFFIXES):
            parts += _parts(str(path.parent / line), num, seed, seconds)
    if not parts:
        raise InputError(f"The list {path} is empty; write one picture, folder or video on each line.")
    left = num
    for place, part in enumerate(sorted(parts, key=lambda part: part.count)):
        part.count = min(part.count, left // (len(parts) - place))
        left -= part.count
    return [part for part in parts if part.count]


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from (line.strip() for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The list {path} cannot be read as text: {error}.") from error


def _choose(root: Path, names: Iterable[str], num: int, seed: int) -> _Files:
    """Choose the files below `root` whose names have the lowest hashes, twice as many as wanted.

    No more names than that are in memory, and as strings: the parts of a `Path` are interned, so they would stay.
    """

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()

    chosen = heapq.nsmallest(2 * num, names, key=rank)
    return _Files([root / name for name in chosen], min(num, len(chosen)))


def _pictures_below(root: str) -> Iterator[str]:
    """Yield the path of every picture relative to `root`, with slashes; linked folders are searched once."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, onerror=_refuse_folder, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        lower = {name.lower() for name in folders}
        leave = _MASK_FOLDERS if lower & _PICTURE_FOLDERS else frozenset[str]()
        folders[:] = sorted(name for name in folders if name[0] != "." and name.lower() not in leave)
        below = Path(os.path.relpath(folder, root)).as_posix()
        for name in files:
            if name[0] != "." and name.lower().endswith(PICTURE_SUFFIXES):
                yield name if below == "." else f"{below}/{name}"


def _refuse_folder(error: OSError) -> None:
    raise InputError(f"The folder {error.filename} cannot be searched: {error.strerror}.") from error
