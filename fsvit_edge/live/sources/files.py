"""Sources that wait for their reader and drop nothing: a picture, a folder of pictures, a video file, the demo."""

import itertools
import stat
import time
from collections.abc import Callable, Generator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import SourceStatus
from fsvit_edge.live.opencv import declared_fps, flipped, media_time_s, open_video, read_rgb
from fsvit_edge.live.sources.base import EndOfSourceError, Source, SourceOptions
from fsvit_edge.live.sources.demo import DEMO_FPS, demo_frame, demo_length
from fsvit_edge.live.uri import SourceAddress, printable
from fsvit_edge.runtime.errors import InputError, SourceError
from fsvit_edge.runtime.pictures import PICTURE_SUFFIXES, pictures_in, read_image

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".gif")
_MAX_FRAMES = 2**31  # FFmpeg reports an unknown number of frames as a huge or negative one

Images = Generator[tuple[str, npt.NDArray[np.uint8]], None, None]
"""For each frame, where it was read from and the (H, W, 3) uint8 RGB picture."""


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
    ) -> None:
        self.name, self.fps, self.num_frames = printable(name), fps, num_frames
        self._images, self._close, self._media_time_s = images, close, media_time_s
        self._opened_s = self._waiting_since_s = time.monotonic()
        self._count = 0

    def read(self, timeout_s: float) -> Frame | None:  # noqa: ARG002 - a file takes the time it needs
        """Read the next frame; never None."""
        started = time.perf_counter()
        try:
            source, image = next(self._images)
        except StopIteration:
            raise EndOfSourceError from None
        decode_ms = (time.perf_counter() - started) * 1e3
        self._waiting_since_s = time.monotonic()
        index, self._count = self._count, self._count + 1
        now, shown_s = (time.time(), time.monotonic()), self._media_time_s()
        return Frame(image, index, printable(source), *now, decode_ms, media_time_s=shown_s)

    def waiting_since_s(self) -> float | None:
        """Since the last read: the next frame can always be read."""
        return self._waiting_since_s

    @property
    def status(self) -> SourceStatus:
        """Always "live"."""
        return SourceStatus("live", self._opened_s, captured=self._count)

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
        tour = (("demo", flipped(demo_frame(index), options.flip)) for index in itertools.count())
        return FileSource(tour, name=address.name, fps=DEMO_FPS)
    uri, path = address.name, Path(address.target)
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        pictures = pictures_in(path) if is_folder else [path]
    except OSError as error:
        raise SourceError(f"The source {uri} cannot be opened: {error.strerror}; check the path.") from error
    if is_folder and not pictures:
        inside = f"; give its folder of pictures, {Path(uri) / 'images'}" if (path / "images").is_dir() else ""
        raise InputError(f"The folder {uri} contains no pictures ({', '.join(PICTURE_SUFFIXES)}){inside}.")
    if is_folder or path.suffix.lower() in PICTURE_SUFFIXES:
        return FileSource(_repeated(lambda: _pictures(pictures), options), name=uri)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return _open_video_file(path, uri, options)
    known = ", ".join(PICTURE_SUFFIXES + VIDEO_SUFFIXES)
    raise InputError(f"{uri} is not a picture or video; expected a name that ends in {known}.")


def _open_video_file(path: Path, uri: str, options: SourceOptions) -> FileSource:
    capture = open_video(str(path.resolve()))
    if not capture.isOpened():
        raise SourceError(f"The video {uri} cannot be opened; it is damaged, incomplete, or has an unknown encoding.")
    frames = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    num_frames = int(frames) if 1 <= frames < _MAX_FRAMES and not options.loop else None
    fps = declared_fps(capture)
    unread = [capture]  # later rounds open the file again, because not every format can rewind
    playing = capture

    def play() -> Images:
        nonlocal playing
        playing = unread.pop() if unread else open_video(str(path.resolve()))
        try:
            yield from _video(playing, uri)
        finally:
            playing.release()

    return FileSource(
        _repeated(play, options),
        name=uri,
        fps=fps,
        num_frames=num_frames,
        close=capture.release,
        media_time_s=lambda: media_time_s(playing),
    )


def _repeated(play: Callable[[], Images], options: SourceOptions) -> Images:
    while True:
        for name, image in play():
            yield name, flipped(image, options.flip)
        if not options.loop:
            return


def _pictures(paths: list[Path]) -> Images:
    for path in paths:
        yield str(path), read_image(path)


def _video(capture: cv2.VideoCapture, name: str) -> Images:
    is_empty = True
    while (image := read_rgb(capture)) is not None:
        is_empty = False
        yield name, image
    if is_empty:
        raise SourceError(f"The video {name} contains no frame that can be decoded.")
