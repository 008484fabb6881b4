"""From pictures, folders, lists and videos to a list of what to label, in a stable order."""

import hashlib
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.live.sources.files import VIDEO_SUFFIXES
from fsvit_edge.live.uri import printable
from fsvit_edge.runtime.errors import InputError, SourceError
from fsvit_edge.runtime.pictures import PICTURE_SUFFIXES, natural_order, read_with_size

STATE_NAME = ".fsvit-edge-label"
"""Folder in an output of `label` that tells what is in it, and by which a later call leaves the output out."""

LIST_SUFFIX = ".txt"
WITH_MASKS = ("images", "masks")  # folders of pictures and of their masks, as `enroll` reads them
_LONGEST_LIST_BYTES = 2 * 10**9  # some 20 million paths
_UNNAMEABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # in lists, XML or JSON


WithSize = tuple[Image, tuple[int, int]]
"""A picture as the model sees it, (H, W, 3) uint8 RGB, and height and width of its file, which may be larger."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A picture or a video to label."""

    name: str  # its path below the base of the listing, with "/"; safe to write anywhere
    is_video: bool = False
    problem: str = ""  # why it cannot be labeled, as a sentence; empty if it may be


@dataclass(frozen=True)
class Listing:
    """What to label, in order, each once.

    Attributes:
        base: The deepest folder that holds all sources; names are below it.
        entries: Pictures and videos.
        notes: What to say of them before they are read, in sentences.
    """

    base: Path
    entries: Sequence[Stored]
    notes: tuple[str, ...] = ()

    def file(self, entry: Stored) -> Path:
        """Return where an entry is read from."""
        return self.base / entry.name

    @property
    def reader(self) -> Callable[[str], WithSize]:
        """What reads a picture by its name, in any process; raises as `read_image`."""
        return partial(_read_below, self.base)

    def version(self, name: str) -> str:
        """Return what differs once the file of a name was replaced: its size and time; "" if it cannot be reached."""
        try:
            status = os.stat(os.path.join(self.base, name))
        except OSError:
            return ""
        return f"{status.st_size} {status.st_mtime_ns}"


def _read_below(base: Path, name: str) -> WithSize:
    return read_with_size(base / name)


@dataclass
class _Found:
    """Absolute paths in order, each once, with what is wrong with them; and folders that hold them."""

    paths: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    unread_videos: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)

    def add(self, path: str, problem: str = "") -> None:
        self.paths.setdefault(path, problem)


def list_pictures(sources: Sequence[str], every_s: float | None = None) -> Listing:
    """Find the pictures and videos of sources.

    Args:
        sources: Pictures, folders, of which sub-folders are read too, lists (.txt, with a path on each line, from the
            current folder), and videos. In folders, names are in natural order (2 before 10), files before sub-folders;
            hidden files, the outputs of `label`, and masks/ beside images/ are left out.
        every_s: Seconds between the frames of a video to label, 0 for every frame; None for no videos.

    Raises:
        InputError: A source is of no such kind or has nothing to label, or a video is given without `every_s`.
        SourceError: A source does not exist or cannot be read.
    """
    if every_s is not None and not 0 <= every_s < math.inf:
        raise InputError(f"--every must be a time in seconds, 0 or more, got {every_s:g}.")
    found = _Found()
    for source in sources:
        _add_source(source, every_s is not None, found)
    base = os.path.commonpath(found.folders)
    below = len(base.rstrip("/")) + 1
    entries = [stored(path, path[below:], problem) for path, problem in found.paths.items()]
    notes = []
    if found.unread_videos:
        count, first = len(found.unread_videos), printable(found.unread_videos[0])
        what = f"The video {first} is" if count == 1 else f"{count} videos, such as {first}, are"
        notes.append(f"{what} not read; give --every SECONDS to label frames of videos, too.")
    if found.masks:
        count, first = len(found.masks), printable(found.masks[0])
        what = f"{first} is" if count == 1 else f"{count} folders, such as {first}, are"
        notes.append(f"{what} left out: beside images/, masks/ has masks.")
    return Listing(Path(base), entries, tuple(notes))


def stored(path: str, name: str, problem: str = "") -> Stored:
    """Return what is at a path by its name; one that label files cannot name has a problem."""
    if _UNNAMEABLE.search(name):
        problem = f"The name {path!r} is not UTF-8 or has control characters, which label files cannot name; rename it."
        name = printable(name)
    return Stored(name, name.lower().endswith(VIDEO_SUFFIXES), problem)


def _add_source(source: str, takes_videos: bool, found: _Found) -> None:
    if not source:  # of a variable that is not set; as a path, it would be the current folder
        raise InputError("A source is empty; give a picture, a folder, a video or a list, or . for the current folder.")
    shown, path = printable(source), _absolute(source)
    if not os.path.lexists(path):
        if "://" in source:
            raise InputError(
                f"{shown} is not stored here, and label reads only what is; record it first with: fsvit-edge run "
                "SOURCE --sink out.mp4"
            )
        raise SourceError(f"The source {shown} does not exist; check the path.")
    if os.path.isdir(path):
        found.folders.append(path)
        videos_before = len(found.unread_videos)
        if not _walk(path, takes_videos, found):
            if videos_before == len(found.unread_videos):
                raise InputError(f"The folder {shown} contains no pictures ({', '.join(PICTURE_SUFFIXES)}).")
            raise InputError(f"The folder {shown} contains only videos; give --every SECONDS to label their frames.")
        return
    suffix = os.path.splitext(path)[1].lower()
    if suffix == LIST_SUFFIX:
        for line in _lines(path, shown):
            _add_file(line, takes_videos, found)
    elif suffix in PICTURE_SUFFIXES + VIDEO_SUFFIXES:
        _add_file(source, takes_videos, found)
    else:
        known = ", ".join((*PICTURE_SUFFIXES, *VIDEO_SUFFIXES, LIST_SUFFIX))
        raise InputError(f"{shown} is no picture, video or list; expected a folder or a name that ends in {known}.")


def _add_file(path: str, takes_videos: bool, found: _Found) -> None:
    if path.lower().endswith(VIDEO_SUFFIXES) and not takes_videos:
        raise InputError(f"{printable(path)} is a video; label a frame of it every few seconds with --every SECONDS.")
    absolute = _absolute(path)
    found.folders.append(os.path.dirname(absolute))
    found.add(absolute)


def _lines(path: str, shown: str) -> Iterator[str]:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"The list {shown} is not a regular file; give a text file with a path on each line.")
        if status.st_size > _LONGEST_LIST_BYTES:
            raise InputError(
                f"The list {shown} has {status.st_size / 1e9:.1f} GB, more than the {_LONGEST_LIST_BYTES // 10**9} GB "
                "that are read; split it."
            )
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise SourceError(f"The list {shown} cannot be read: {error.strerror}.") from error
    lines = [line.rstrip(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    if not any(lines):
        raise InputError(f"The list {shown} is empty; write the path of a picture on each line.")
    return map(os.fsdecode, filter(None, lines))


def _walk(top: str, takes_videos: bool, found: _Found) -> bool:
    """Add what is in a folder; return whether there was anything, which may be known already.

    A folder that links lead to is read once: under its own name if that is below `top`.
    """
    is_any = False
    waiting, known = [top], set[tuple[int, int]]()
    below = os.path.join(os.path.realpath(top), "")
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            with os.scandir(folder) as entries:
                inside = [(entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            if folder == top:
                raise SourceError(f"The folder {printable(top)} cannot be read: {error.strerror}.") from error
            found.add(folder, f"The folder {printable(folder)} cannot be read: {error.strerror}.")
            is_any = True
            continue
        own = (status.st_dev, status.st_ino)
        if own in known or (folder != top and os.path.isdir(os.path.join(folder, STATE_NAME))):  # an output
            continue
        known.add(own)
        if {(name, True) for name in WITH_MASKS} <= set(inside):
            inside.remove((WITH_MASKS[1], True))
            found.masks.append(os.path.join(folder, WITH_MASKS[1]))
        inside.sort(key=lambda entry: natural_order(entry[0]))
        for name, is_folder in inside:
            suffix = os.path.splitext(name)[1].lower()
            if is_folder or suffix not in PICTURE_SUFFIXES + VIDEO_SUFFIXES:
                continue
            if suffix in VIDEO_SUFFIXES and not takes_videos:
                found.unread_videos.append(os.path.join(folder, name))
            else:
                found.add(os.path.join(folder, name))
                is_any = True
        for name, is_folder in reversed(inside):
            path = os.path.join(folder, name)
            if is_folder and not (os.path.islink(path) and _is_shown_below(below, os.path.realpath(path))):
                waiting.append(path)
    return is_any


def _is_shown_below(top: str, path: str) -> bool:
    return path.startswith(top) and not any(part.startswith(".") for part in path[len(top) :].split("/"))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; who reads it says so
        return False


def _absolute(path: str) -> str:
    if ".." not in path.split("/"):
        return os.path.abspath(path)
    folder, name = os.path.split(path.rstrip("/"))  # behind a link, ".." is not where the name of the link says
    return os.path.realpath(path) if name == ".." else os.path.join(os.path.realpath(folder), name)


# --------------------------------------------------------------------------------------------------------------- split

PARTS = ("train", "val", "test")
_PRECISION = 1e-6


def parse_split(text: str) -> tuple[float, ...]:
    """Convert "0.8/0.2" to the shares of `PARTS`, of which there may be two or three; an InputError otherwise."""
    try:
        shares = tuple(map(float, text.split("/")))
    except ValueError:
        shares = ()
    if len(shares) not in (2, 3) or not all(0 < one < 1 for one in shares) or abs(sum(shares) - 1) > _PRECISION:
        raise InputError(
            f"--split {text!r:.40} is no split; give the shares of {', '.join(PARTS[:2])} and perhaps {PARTS[2]}, each "
            "above 0, which add up to 1, as in 0.8/0.2 or 0.7/0.2/0.1."
        )
    return shares


def part_chooser(shares: Sequence[float]) -> Callable[[str], str]:
    """Return what tells the part in which a picture, or a video with all of its frames, belongs by its name.

    The first 8 bytes of the sha256 of the name, as a number from 0 to 1, decide: a picture keeps its part whatever else
    is labeled with it.
    """

    def part_of(name: str) -> str:
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        for part, share in zip(PARTS, shares, strict=False):
            if place < share:
                return part
            place -= share
        return PARTS[len(shares) - 1]

    return part_of
