"""A labeling from sources to label files: decoding and encoding beside the model, resumable at any moment.

Phase 1 appends a line for each picture to the journal, phase 2 writes the label files from it.
"""

import errno
import json
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.label.formats import FORMATS, check_path, write_format
from fsvit_edge.label.frames import VideoFrame, frame_name, frames_of
from fsvit_edge.label.journal import Failure, Journal, cut_torn, read, to_line
from fsvit_edge.label.labeler import Labeler, LabelerOptions, label_picture
from fsvit_edge.label.output import Output, open_output
from fsvit_edge.label.pictures import Listing, list_pictures, parse_split, part_chooser
from fsvit_edge.label.records import LabeledPicture
from fsvit_edge.live.uri import printable
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, InputError
from fsvit_edge.runtime.limits import usable_cores
from fsvit_edge.runtime.messages import Say
from fsvit_edge.runtime.pictures import decode_image, encode_jpeg, read_image

_MOST_READERS = 16
_TICK_S = 0.1
_NAMED_BY_STEM = ("yolo", "masks")
"""Formats with a file for each picture, of its name without the suffix."""

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class LabelOptions:
    """What to label and where to.

    Attributes:
        labeler: What to look for, and by which model.
        sources: As `list_pictures` takes them.
        output: The folder for the labels.
        format: A key of `FORMATS`.
        every_s: Seconds between the frames of a video, 0 for every frame; None for no videos.
        split: As `parse_split` takes it; None does not split the pictures.
    """

    labeler: LabelerOptions
    sources: tuple[str, ...]
    output: Path
    format: str
    every_s: float | None = None
    split: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far a labeling is."""

    labeled: int  # pictures and frames in the journal, with those of earlier calls
    failed: int
    here: int  # of both, those of this call
    share: float  # of all, in [0, 1]
    share_at_start: float  # what earlier calls did
    elapsed_s: float  # of this call

    @property
    def rate(self) -> float:
        """Pictures per second of this call."""
        return self.here / max(self.elapsed_s, 1e-9)

    @property
    def left_s(self) -> float | None:
        """Seconds left, if the rest goes on as this call did; None if that cannot be said."""
        done = self.share - self.share_at_start
        return None if done <= 0 else self.elapsed_s * (1 - self.share) / done


@dataclass(frozen=True)
class LabelResult:
    """What is in an output.

    Attributes:
        labeled: Pictures and frames with labels.
        failed: Lines of `errors.jsonl`.
        pictures_of: Of each class, the number of pictures that it is present in.
        parts_of: Of each class, the number of its parts.
        pictures_in: Of each part of the split, the number of its pictures; empty without a split.
        elapsed_s: Seconds of this call; None if the output was complete before.
    """

    labeled: int
    failed: int
    pictures_of: dict[str, int]
    parts_of: dict[str, int]
    pictures_in: dict[str, int]
    elapsed_s: float | None = None


def label(
    options: LabelOptions,
    say: Say = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> LabelResult:
    """Label pictures; a call that was ended at any moment is finished by the same call, with the same result.

    Args:
        options: What to label and where to.
        say: Gets notes and warnings.
        on_progress: Called after each picture, in this thread.

    Raises:
        InputError: An option or source cannot be used, or the output holds something else.
        SourceError: A source does not exist.
        ArtifactError: The bundle or bank is missing, damaged or does not fit.
        EnvironmentLacksError: The engine is not installed here, or finds no device.
        FsvitEdgeError: Another process writes to the output, or the disk is full.
    """
    started_s = time.monotonic()
    if options.format not in FORMATS:
        raise InputError(f"--format must be one of {', '.join(FORMATS)}, got {options.format!r:.40}.")
    shares = None if options.split is None else parse_split(options.split)
    listing = list_pictures(options.sources, options.every_s)
    _check_names(listing, options.format)
    for note in listing.notes:
        say(f"Note: {note}")
    with open_output(options.output) as output, Labeler(options.labeler, say) as labeler:
        output.begin(_call(options, listing, labeler))
        summary = output.summary
        if summary is not None:
            return LabelResult(**summary)
        _fill_journal(listing, labeler, options, output, on_progress)
        result = _write_labels(labeler, options.format, output, None if shares is None else part_chooser(shares))
    return replace(result, elapsed_s=time.monotonic() - started_s)


def _call(options: LabelOptions, listing: Listing, labeler: Labeler) -> dict[str, object]:
    """What makes this call the same as another; threads are left out, because they decide only how fast it is."""
    about = labeler.about
    return {
        "fsvit_edge": about.fsvit_edge,
        "sources": [printable(os.path.abspath(source)) for source in options.sources],
        "pictures": f"{len(listing.entries)} pictures and videos (sum of their names {listing.digest()[:12]})",
        "format": options.format,
        "bundle_sha256": about.bundle_sha256,
        "bank_sha256": about.bank_sha256,
        "engine": about.engine,
        "precision": about.precision,
        "classes": list(about.classes),
        "min_score": options.labeler.min_score,
        "split": options.split,
        "every_s": options.every_s,
    }


def _check_names(listing: Listing, format_name: str) -> None:
    """Say at the start, by an InputError, what would be said after the last picture."""
    stems: dict[str, str] = {}
    for entry in listing.entries:
        if entry.problem:
            continue
        check_path(format_name, frame_name(entry.name, 0) if entry.is_video else entry.name)
        if format_name not in _NAMED_BY_STEM or entry.is_video:
            continue
        other = stems.setdefault(os.path.splitext(entry.name)[0], entry.name)
        if other != entry.name:
            raise InputError(
                f"{other} and {entry.name} differ only in their suffix, and --format {format_name} names files without "
                "it; rename one of them, or choose coco, cvat or jsonl."
            )


# ------------------------------------------------------------------------------------------------ phase 1: the journal


@dataclass(frozen=True)
class _Decoded:
    name: str
    share: float  # of all that is listed, up to and with this one
    image: Image | None = None  # (H, W, 3) uint8 RGB
    time_s: float | None = None
    jpeg: bytes | None = None  # the file of a frame
    reason: str = ""  # why there is no image


@dataclass(frozen=True)
class _Position:
    """Where a journal ends: in which entry, behind how many frames of it."""

    entry: int = 0
    frames: int = 0
    labeled: int = 0
    failed: int = 0


def _fill_journal(
    listing: Listing,
    labeler: Labeler,
    options: LabelOptions,
    output: Output,
    on_progress: Callable[[Progress], None],
) -> None:
    position = _position_of(listing, cut_torn(output.journal), output.folder)
    share = position.entry / len(listing.entries)
    progress = Progress(position.labeled, position.failed, 0, share, share, 0.0)
    started_s = time.monotonic()
    readers = min(max(2, usable_cores()), _MOST_READERS)
    waiting: deque[tuple[float, Future[tuple[bytes, bool]]]] = deque()

    def write_first() -> None:
        nonlocal progress
        share, written = waiting.popleft()
        line, is_failure = written.result()
        journal.append(line)
        progress = replace(
            progress,
            labeled=progress.labeled + (not is_failure),
            failed=progress.failed + is_failure,
            here=progress.here + 1,
            share=share,
            elapsed_s=time.monotonic() - started_s,
        )
        on_progress(progress)

    # Pictures that are decoded and answers that are encoded wait in queues as long as there are threads for them.
    with Journal(output.journal) as journal, ThreadPoolExecutor(readers, "label") as pool:
        with closing(_ahead(_decode_all(listing, position, options.every_s, pool), readers)) as decoded:
            for future in decoded:
                one = future.result()
                answer = None if one.image is None else labeler.predict(one.image)
                waiting.append((one.share, pool.submit(_line_of, one, answer, output)))
                if len(waiting) > readers:
                    write_first()
        while waiting:
            write_first()


def _position_of(listing: Listing, records: Iterable[tuple[str, bool]], folder: Path) -> _Position:
    entries = listing.entries
    index = frames = labeled = failed = 0
    for name, is_failure in records:
        if frames and name != entries[index].name and not name.startswith(f"{entries[index].name}/"):
            index, frames = index + 1, 0  # the video had no more
        if index < len(entries) and name == entries[index].name:  # a picture, or what a video lacks
            index, frames = index + 1, 0
        elif index < len(entries) and entries[index].is_video and name.startswith(f"{entries[index].name}/"):
            frames += 1
        else:
            raise ArtifactError(
                f"The journal in {folder} is damaged: {name} is not what comes next; give another folder with --output."
            )
        labeled, failed = labeled + (not is_failure), failed + is_failure
    return _Position(index, frames, labeled, failed)


def _decode_all(
    listing: Listing, position: _Position, every_s: float | None, pool: ThreadPoolExecutor
) -> Iterator["Future[_Decoded]"]:
    count = len(listing.entries)
    for index in range(position.entry, count):
        entry = listing.entries[index]
        share = (index + 1) / count
        if not entry.is_video or entry.problem:
            yield pool.submit(_decode, entry.name, listing.file(entry), share, entry.problem)
            continue
        assert every_s is not None  # or it would not be listed
        left = position.frames if index == position.entry else 0
        try:
            for frame in frames_of(listing.file(entry), entry.name, every_s):
                left -= 1
                if left < 0:
                    yield pool.submit(_encode, frame, (index + frame.share) / count)
        except FsvitEdgeError as error:
            yield pool.submit(_decode, entry.name, listing.file(entry), share, str(error))


def _decode(name: str, file: Path, share: float, problem: str) -> _Decoded:
    if problem:
        return _Decoded(name, share, reason=problem)
    try:
        return _Decoded(name, share, read_image(file))
    except FsvitEdgeError as error:
        return _Decoded(name, share, reason=str(error))


def _encode(frame: VideoFrame, share: float) -> _Decoded:
    """The model sees the frame as it is written, so that its labels are those of the picture."""
    jpeg = encode_jpeg(frame.image)
    return _Decoded(frame.name, share, decode_image(jpeg, frame.name), frame.time_s, jpeg)


def _line_of(one: _Decoded, answer: Prediction | None, output: Output) -> tuple[bytes, bool]:
    """Return the line of a picture and whether it is a failure; the file of a frame is written before its line."""
    reason = one.reason
    if one.jpeg is not None:
        try:
            output.write_picture(one.name, one.jpeg)
        except FsvitEdgeError as error:
            if getattr(error.__cause__, "errno", None) != errno.ENAMETOOLONG:
                raise
            reason = str(error)
    if answer is None or reason:
        return to_line(Failure(one.name, printable(reason))), True
    return to_line(label_picture(one.name, answer, one.time_s)), False


def _ahead(items: Iterator[_Item], count: int) -> Generator[_Item, None, None]:
    """Yield items that a thread takes from an iterator, of which `count` wait; close it to end the thread."""
    waiting: queue.Queue[tuple[_Item] | BaseException | None] = queue.Queue(count)
    is_closed = threading.Event()

    def put(one: "tuple[_Item] | BaseException | None") -> bool:
        while not is_closed.is_set():
            try:
                waiting.put(one, timeout=_TICK_S)
            except queue.Full:
                continue
            return True
        return False

    def take() -> None:
        try:
            for item in items:
                if not put((item,)):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=take, name="label-sources", daemon=True)
    thread.start()
    try:
        while (one := waiting.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            yield one[0]
    finally:
        is_closed.set()
        thread.join()


# ------------------------------------------------------------------------------------------------ phase 2: the labels


def _write_labels(
    labeler: Labeler, format_name: str, output: Output, part_of: Callable[[str], str] | None
) -> LabelResult:
    failures: list[Failure] = []
    classes: Sequence[str] = labeler.about.classes
    pictures_of, parts_of, pictures_in = dict.fromkeys(classes, 0), dict.fromkeys(classes, 0), dict[str, int]()
    labeled = 0
    for record in read(output.journal):
        if isinstance(record, Failure):
            failures.append(record)
            continue
        labeled += 1
        for one in record.classes:
            pictures_of[one.name] += one.present
            parts_of[one.name] += len(one.parts)
        if part_of is not None:
            part = part_of(_split_name(record))
            pictures_in[part] = pictures_in.get(part, 0) + 1

    def pictures() -> Iterator[LabeledPicture]:
        for record in read(output.journal):
            if isinstance(record, LabeledPicture):
                yield record if part_of is None else replace(record, split=part_of(_split_name(record)))

    result = LabelResult(labeled, len(failures), pictures_of, parts_of, pictures_in)
    errors = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in failures).encode()
    output.finish(lambda folder: write_format(format_name, folder, labeler.about, pictures), errors, asdict(result))
    return result


def _split_name(record: LabeledPicture) -> str:
    """Frames of one video are much alike, so they stay together."""
    return record.path if record.time_s is None else record.path.rpartition("/")[0]
