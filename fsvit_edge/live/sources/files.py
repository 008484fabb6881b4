"""Sources that wait for their reader and drop nothing: a picture, a folder of pictures, a video file, the demo."""

import itertools
import math
import stat
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import SourceStatus
from fsvit_edge.live.opencv import (
    check_frame_size,
    codec_code,
    declared_fps,
    declared_size_hw,
    flipped,
    media_time_s,
    open_video,
    quiet_opencv,
    read_rgb,
)
from fsvit_edge.live.sources.base import EndOfSourceError, Source, SourceOptions
from fsvit_edge.live.sources.demo import DEMO_FPS, demo_frame, demo_length
from fsvit_edge.live.uri import SourceAddress, printable
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError, SourceError
from fsvit_edge.runtime.pictures import PICTURE_SUFFIXES, pictures_in, read_with_size

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".vob"),
    *(".ogv", ".flv", ".wmv", ".asf", ".gif"),
)
_COUNTED = (".mp4", ".m4v", ".mov", ".3gp", ".3g2")  # these list every frame; others work out a number from the time
# These say when they end, and pieces of a recording begin where the one before ended.
_FROM_ZERO = (".mkv", ".webm", ".wmv", ".asf")
_TOLERANCE = 0.05  # of a sound video, so much may be declared and not be there, and the last two frames
_MAX_FRAMES = 2**31  # FFmpeg reports an unknown number of frames as a huge or negative one

Images = Generator[tuple[str, npt.NDArray[np.uint8], tuple[int, int] | None], None, None]
"""For each frame, where it was read from, the (H, W, 3) uint8 RGB picture, and a file's size if it was read smaller."""


@dataclass
class _Unread:
    """What of a folder or video cannot be read; grows while it is read."""

    pictures: dict[Path, FsvitEdgeError] = field(default_factory=dict)  # by file: why it was left out
    sentence: str = ""  # for the person at the device; empty if everything was read


class FileSource(Source):
    """A source that waits for its reader.

    `close` releases what `images` reads from; `media_time_s` tells the time of the image just read in its file.
    """

    is_live = False

    def __init__(
        self,
        images: Images,
        *,
        name: str,
        fps: float | None = None,
        num_frames: int | None = None,
        close: Callable[[], None] = lambda: None,
        media_time_s: Callable[[], float | None] = lambda: None,
        notes: Sequence[str] = (),
        unread: _Unread | None = None,
        are_pictures: bool = False,
    ) -> None:
        self.name, self.fps, self.num_frames, self.notes = printable(name), fps, num_frames, notes
        self._unread, self._are_pictures = unread or _Unread(), are_pictures
        self._images, self._close, self._media_time_s = images, close, media_time_s
        self._opened_s = self._waiting_since_s = time.monotonic()
        self._count = 0

    def read(self, timeout_s: float) -> Frame | None:  # noqa: ARG002 - a file takes the time it needs
        """Read the next frame; never None."""
        started = time.perf_counter()
        try:
            source, image, full_hw = next(self._images)
        except StopIteration:
            raise EndOfSourceError from None
        decode_ms = (time.perf_counter() - started) * 1e3
        self._waiting_since_s = time.monotonic()
        index, self._count = self._count, self._count + 1
        now, shown_s = (time.time(), time.monotonic()), self._media_time_s()
        picture = Path(source).stem if self._are_pictures else ""
        return Frame(
            image,
            index,
            printable(source),
            *now,
            decode_ms,
            media_time_s=shown_s,
            picture=picture,
            full_hw=full_hw,
        )

    def waiting_since_s(self) -> float | None:
        """Since the last read: the next frame can always be read."""
        return self._waiting_since_s

    @property
    def status(self) -> SourceStatus:
        """Always "live"."""
        left_out = len(self._unread.pictures)
        return SourceStatus(
            "live", self._opened_s, captured=self._count, declared_frames=self.num_frames, left_out=left_out
        )

    @property
    def problem(self) -> str:
        """See `Source.problem`."""
        return self._unread.sentence

    def close(self) -> None:
        """Release the file."""
        self._images.close()
        self._close()


def open_file(address: SourceAddress, options: SourceOptions) -> FileSource:
    """Open a picture, folder, video or the demo; of the options only `flip` and `loop` apply. The demo never ends.

    Raises:
        InputError: The path is not a picture, folder or video, or a folder has no pictures.
        SourceError: It does not exist or cannot be opened.
        EnvironmentLacksError: The demo needs scikit-image.
    """
    if address.kind == "demo":
        demo_length()  # raises now, not at the first frame, if scikit-image is missing
        tour = (("demo", flipped(demo_frame(index), options.flip), None) for index in itertools.count())
        return FileSource(tour, name=address.name, fps=DEMO_FPS)
    uri, path = address.name, Path(address.target)
    try:
        mode = path.stat().st_mode
        is_folder = stat.S_ISDIR(mode)
        pictures = pictures_in(path) if is_folder else [path]
    except OSError as error:
        raise SourceError(f"The source {uri} cannot be opened: {error.strerror}; check the path.") from error
    if is_folder and not pictures:
        has_images = (path / "images").is_dir()
        inside = f"; give its folder of pictures, {Path(uri) / 'images'}" if has_images else its_videos(path)
        raise InputError(f"The folder {uri} contains no pictures ({', '.join(PICTURE_SUFFIXES)}){inside}.")
    if is_folder or path.suffix.lower() in PICTURE_SUFFIXES:
        notes, unread = _not_read(path, uri) if is_folder else (), _Unread()
        images = _repeated(lambda: _pictures(pictures, uri, unread), options)
        return FileSource(images, name=uri, notes=notes, unread=unread, are_pictures=True)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        if not stat.S_ISREG(mode):
            raise InputError(f"{uri} is not a regular file; give a video file.")
        return _open_video_file(path, uri, options)
    known = ", ".join(PICTURE_SUFFIXES + VIDEO_SUFFIXES)
    raise InputError(f"{uri} is not a picture or video; expected a name that ends in {known}.")


def its_videos(folder: Path) -> str:
    """How an error about a folder without pictures ends: with its videos, which may be what was meant."""
    videos = _videos_in(folder)
    one_of = f"one of its {len(videos)} videos, as" if len(videos) > 1 else "its video"
    return f"; give {one_of} {printable(str(folder / videos[0]))}" if videos else ""


def _videos_in(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if one.suffix.lower() in VIDEO_SUFFIXES and one.is_file())


def _not_read(folder: Path, uri: str) -> tuple[str, ...]:
    """What a folder has beside its pictures that somebody may miss."""
    folders = sorted(one.name for one in folder.iterdir() if one.is_dir() and one.name[0] != ".")
    videos = _videos_in(folder)
    return tuple(
        f"{uri} has {len(names)} {kind} that {'is' if len(names) == 1 else 'are'} not read, as "
        f"{printable(str(Path(uri) / names[0]))}; give {'it' if len(names) == 1 else 'them'} as a source too."
        for names, kind in ((folders, f"folder{'s' * (len(folders) > 1)}"), (videos, f"video{'s' * (len(videos) > 1)}"))
        if names
    )


def _open_video_file(path: Path, uri: str, options: SourceOptions) -> FileSource:
    capture = open_video(str(path.resolve()))
    if not capture.isOpened():
        raise SourceError(f"The video {uri} cannot be opened; it is damaged, incomplete, or has an unknown encoding.")
    try:
        check_frame_size(uri, *declared_size_hw(capture))  # before a frame is decoded, which takes 10 bytes per pixel
    except InputError:
        capture.release()
        raise
    frames = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    if path.suffix.lower() in _FROM_ZERO:
        frames -= _frames_before(path)
    declared = int(frames) if 1 <= frames < _MAX_FRAMES else None
    fps = declared_fps(capture)
    rounds = [capture]  # later rounds open the file again, because not every format can rewind
    playing = capture
    unread = _Unread()

    def play() -> Images:
        nonlocal playing
        count, shown_s = 0, 0.0
        playing = rounds.pop() if rounds else open_video(str(path.resolve()))
        try:
            for image in _video(playing, uri):
                count, shown_s = count + 1, media_time_s(playing) or 0.0
                yield uri, image, None
        finally:
            playing.release()
        covers = count if path.suffix.lower() in _COUNTED else max(count, math.ceil(shown_s * (fps or 0.0)))
        if declared is not None and covers + 2 < declared * (1 - _TOLERANCE):
            unread.sentence = (
                f"{uri} declares {declared} frames, but only {count} could be decoded: the rest is missing or "
                "damaged; get the whole file."
            )

    return FileSource(
        _repeated(play, options),
        name=uri,
        fps=fps,
        num_frames=None if options.loop else declared,
        close=capture.release,
        media_time_s=lambda: media_time_s(playing),
        unread=unread,
    )


def _frames_before(path: Path) -> float:
    """How many frames a video would have from the time 0 to its first one; 0 if OpenCV does not know (before 4.12)."""
    first = open_video(str(path.resolve()))
    try:
        with quiet_opencv():
            is_there = first.grab()
        return max(0.0, first.get(getattr(cv2, "CAP_PROP_PTS", -1))) if is_there else 0.0
    finally:
        first.release()


def _repeated(play: Callable[[], Images], options: SourceOptions) -> Images:
    while True:
        for name, image, full_hw in play():
            yield name, flipped(image, options.flip), full_hw
        if not options.loop:
            return


def _pictures(paths: list[Path], uri: str, unread: _Unread) -> Images:
    """Read what can be read: one damaged picture must not end a night's work on ten thousand."""
    for path in paths:
        try:
            image, size_hw = read_with_size(path)
        except FsvitEdgeError as error:  # noqa: PERF203 - a picture takes a hundred thousand times as long
            unread.pictures.setdefault(path, error)  # once, also if the folder is repeated
            first, count = next(iter(unread.pictures.values())), len(unread.pictures)
            others = f", and {count - 1} more of {len(paths)} pictures of {uri}" if count > 1 else ""
            unread.sentence = printable(f"Left out{others}: {first}")
        else:
            yield str(path), image, None if size_hw == image.shape[:2] else size_hw
    if len(unread.pictures) == len(paths):
        raise next(iter(unread.pictures.values()))


def _video(capture: cv2.VideoCapture, name: str) -> Generator[npt.NDArray[np.uint8], None, None]:
    is_empty = True
    while (image := read_rgb(capture)) is not None:
        is_empty = False
        check_frame_size(name, *image.shape[:2])  # a video may change its size
        yield image
    if is_empty:
        codec = codec_code(capture)
        raise SourceError(
            f"The video {name} contains no frame that can be decoded; it is damaged, or this OpenCV cannot decode its "
            f"encoding{f', {codec}' if codec else ''}: convert it with: ffmpeg -i {name} -c:v libx264 converted.mp4"
        )
