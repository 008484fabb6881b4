"""Phase 1 of a labeling: from pictures and videos to lines of the journal, decoding and encoding beside the model."""

import errno
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from threadpoolctl import ThreadpoolController

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.label.frames import VideoFrame, frames_of
from fsvit_edge.label.journal import Failure, Journal, Kept, Kind, Record, VideoEnd, read, read_kept, to_line
from fsvit_edge.label.labeler import Labeler, label_picture
from fsvit_edge.label.output import Output
from fsvit_edge.label.pictures import Listing, Stored
from fsvit_edge.label.records import About
from fsvit_edge.live.uri import printable
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.limits import usable_cores
from fsvit_edge.runtime.pictures import decode_image, encode_jpeg, read_with_size

_MOST_READERS = 16
_TICK_S = 0.1

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Progress:
    """How far a labeling is."""

    labeled: int  # pictures and frames in the journal, with those of earlier calls
    failed: int
    here: int  # of both, those of this call
    share: float  # of all, in [0, 1]
    share_at_start: float  # what earlier calls did
    elapsed_s: float  # of this call

    @classmethod
    def at_start(cls, listing: Listing, pending: Sequence[Stored], kept: Kept) -> "Progress":
        """Return how far it is before the first picture of a call."""
        share = 1 - len(pending) / len(listing.entries)
        problems = sum(entry.problem != "" for entry in listing.entries)
        return cls(len(kept.labeled), problems, 0, share, share, 0.0)

    @property
    def rate(self) -> float:
        """Pictures per second of this call."""
        return self.here / max(self.elapsed_s, 1e-9)

    @property
    def left_s(self) -> float | None:
        """Seconds left, if the rest goes on as this call did; None if that cannot be said."""
        done = self.share - self.share_at_start
        return None if done <= 0 else self.elapsed_s * (1 - self.share) / done


OnProgress = Callable[[Progress], None]


class Way(Protocol):
    """Where pictures are labeled, and where what is found is kept until the label files are written."""

    @property
    def about(self) -> About:
        """What the answers come from."""

    def read_kept(self, output: Output, listing: Listing) -> Kept:
        """Return what an output, in which the others work from then on, has of a listing."""

    def fill(self, listing: Listing, pending: Sequence[Stored], kept: Kept, on_progress: OnProgress) -> Kept:
        """Label what is pending, and return what is kept then."""

    def read(self, items: Iterable[int | Failure]) -> Iterator[Record]:
        """Yield the records at the places that `Kept` has."""


class InProcess:
    """Labels in this process, and keeps what is found in the journal: a `Way`.

    Args:
        labelers: What label, side by side; alike.
        every_s: Seconds between the frames of a video to label, 0 for every frame; None for no videos.
    """

    def __init__(self, labelers: Sequence[Labeler], every_s: float | None) -> None:
        self.about = labelers[0].about
        self._labelers, self._every_s = labelers, every_s
        self._output: Output | None = None

    def read_kept(self, output: Output, listing: Listing) -> Kept:
        """See `Way`; pictures of frames of which no line is kept are removed."""
        self._output = output
        kept, left = read_kept(output.journal, listing, output.has_picture)
        for video in left:
            output.remove_pictures(video)
        return kept

    def fill(self, listing: Listing, pending: Sequence[Stored], kept: Kept, on_progress: OnProgress) -> Kept:
        """See `Way`."""
        assert self._output is not None
        fill_journal(listing, pending, kept, self._labelers, self._every_s, self._output, on_progress)
        return kept

    def read(self, items: Iterable[int | Failure]) -> Iterator[Record]:
        """See `Way`."""
        assert self._output is not None
        return read(self._output.journal, items)


@dataclass(frozen=True)
class _Decoded:
    entry: str  # the picture or video, as it is listed
    version: str  # of its file
    name: str
    share: float  # of all that is listed, up to and with this one
    image: Image | None = None  # (H, W, 3) uint8 RGB
    size_hw: tuple[int, int] = (0, 0)  # of the file's picture, which may be larger
    time_s: float | None = None
    jpeg: bytes | None = None  # the file of a frame
    reason: str = ""  # why there is no image; empty at the end of a video


def fill_journal(
    listing: Listing,
    pending: Sequence[Stored],
    kept: Kept,
    labelers: Sequence[Labeler],
    every_s: float | None,
    output: Output,
    on_progress: OnProgress,
) -> None:
    """Label the pictures and videos of a listing that are pending, except for frames that are kept.

    Each gets a line in the journal, which is noted in `kept`.
    """
    progress = Progress.at_start(listing, pending, kept)
    started_s = time.monotonic()
    readers = min(max(2, usable_cores()), _MOST_READERS)
    waiting: deque[tuple[_Decoded, Future[tuple[bytes, Kind]]]] = deque()

    def write_first() -> None:
        nonlocal progress
        one, written = waiting.popleft()
        line, kind = written.result()
        place = kept.failed.get(one.name)
        if place is None or not journal.has(line, place):  # a failure that repeats itself is no news
            place = journal.append(line)
        kept.add(one.entry, one.name, kind, place)
        progress = replace(
            progress,
            labeled=progress.labeled + (kind == "labeled"),
            failed=progress.failed + (kind == "failed"),
            here=progress.here + (kind != "ended"),
            share=one.share,
            elapsed_s=time.monotonic() - started_s,
        )
        on_progress(progress)

    # Pictures that are decoded and answers that are encoded wait in queues as long as there are threads for them.
    with Journal(output.journal) as journal, ThreadPoolExecutor(readers, "label") as pool:
        with (
            closing(_ahead(_decode_all(listing, pending, kept, every_s, pool), readers)) as decoded,
            closing(_answered(decoded, labelers)) as answered,
        ):
            for one, answer in answered:
                waiting.append((one, pool.submit(_line_of, one, answer, output)))
                if len(waiting) > readers:
                    write_first()
        while waiting:
            write_first()


def _answered(
    decoded: Iterable["Future[_Decoded]"], labelers: Sequence[Labeler]
) -> Generator[tuple[_Decoded, Prediction | None], None, None]:
    """Yield what was decoded, in its order, with what a labeler finds in it; None if it has no image."""
    free: queue.SimpleQueue[Labeler] = queue.SimpleQueue()
    for labeler in labelers:
        free.put(labeler)

    def answer(one: _Decoded) -> tuple[_Decoded, Prediction | None]:
        if one.image is None:
            return one, None
        labeler = free.get()
        try:
            return one, labeler.predict(one.image)
        finally:
            free.put(labeler)

    if len(labelers) == 1:  # in this thread, so that Ctrl-C ends the waiting for a box
        yield from (answer(future.result()) for future in decoded)
        return
    going: deque[Future[tuple[_Decoded, Prediction | None]]] = deque()
    # `FewShotModel.predict` sets the threads of BLAS to one, and back: to more while another one still computes.
    one_thread = ThreadpoolController().select(user_api="blas").limit(limits=1)
    with one_thread, ThreadPoolExecutor(len(labelers), "label-models") as models:
        try:
            for future in decoded:
                going.append(models.submit(answer, future.result()))
                if len(going) > len(labelers):
                    yield going.popleft().result()
            while going:
                yield going.popleft().result()
        finally:
            models.shutdown(cancel_futures=True)


def _decode_all(
    listing: Listing, pending: Sequence[Stored], kept: Kept, every_s: float | None, pool: ThreadPoolExecutor
) -> Iterator["Future[_Decoded]"]:
    count = len(listing.entries)
    done = count - len(pending)
    for number, entry in enumerate(pending, 1):
        file = listing.file(entry)
        # Of before the file is read: what replaces it meanwhile is another version for the next call.
        version = kept.versions.get(entry.name) or listing.version(entry.name)
        last = _Decoded(entry.name, version, entry.name, (done + number) / count)
        if not entry.is_video:
            yield pool.submit(_decode, last, file)
            continue
        assert every_s is not None  # or it would not be listed
        try:
            for frame in frames_of(file, entry.name, every_s):
                if frame.name not in kept.labeled:
                    share = (done + number - 1 + frame.share) / count
                    yield pool.submit(_encode, replace(last, share=share), frame)
        except FsvitEdgeError as error:
            last = replace(last, reason=str(error))
        yield pool.submit(replace, last)


def _decode(one: _Decoded, file: Path) -> _Decoded:
    try:
        image, size_hw = read_with_size(file)
    except FsvitEdgeError as error:
        return replace(one, reason=str(error))
    return replace(one, image=image, size_hw=size_hw)


def _encode(one: _Decoded, frame: VideoFrame) -> _Decoded:
    """The model sees the frame as it is written, so that its labels are those of the picture."""
    jpeg = encode_jpeg(frame.image)
    image = decode_image(jpeg, frame.name)
    height, width = frame.image.shape[:2]
    return replace(one, name=frame.name, image=image, size_hw=(height, width), time_s=frame.time_s, jpeg=jpeg)


def _line_of(one: _Decoded, answer: Prediction | None, output: Output) -> tuple[bytes, Kind]:
    """Return the line of a picture and its kind; the file of a frame is written before its line."""
    reason = one.reason
    if one.jpeg is not None:
        try:
            output.write_picture(one.name, one.jpeg)
        except FsvitEdgeError as error:
            if getattr(error.__cause__, "errno", None) != errno.ENAMETOOLONG:
                raise
            reason = str(error)
    if reason:
        return to_line(Failure(one.name, printable(reason)), one.entry, one.version), "failed"
    if answer is None:
        return to_line(VideoEnd(one.name), one.entry, one.version), "ended"
    return to_line(label_picture(one.name, answer, one.size_hw, one.time_s), one.entry, one.version), "labeled"


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
