"""Where frames come from: a SOURCE string goes in, RGB frames with their times come out.

    picture.jpg  folder/  video.mp4  0  /dev/video0  rtsp://host/path  demo

FFmpeg would also open http:, concat: and subfile: names, that is, reach the network or join files behind the user's
back; so a source is one of the kinds above, and a file reaches FFmpeg by its absolute path only.
"""

import itertools
import math
import os
import re
import stat
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.demo import DEMO_FPS, demo_frame, demo_length
from fsvit_edge.runtime.errors import InputError, SourceError
from fsvit_edge.runtime.pictures import PICTURE_SUFFIXES, read_image

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".gif")

_KINDS = "a picture, a folder of pictures, a video file, a camera (0 or /dev/video0), rtsp://..., or demo"
_SILENT = 0  # of OpenCV's log levels
_OPEN_TIMEOUT_MS = 5000
_READ_TIMEOUT_MS = 5000
# FFmpeg answers a frozen stream with "success" and an old frame twice before it admits the timeout (measured), so a
# read that took nearly the whole limit counts as the end, whatever it returned.
_STALL_MS = 0.9 * _READ_TIMEOUT_MS
_MOST_FRAMES = 2**31  # what FFmpeg does not know it gives as a huge or negative number
_FFMPEG_OPTIONS = {"OPENCV_FFMPEG_CAPTURE_OPTIONS": "rtsp_transport;tcp", "OPENCV_FFMPEG_LOGLEVEL": "-8"}

_Rgb = npt.NDArray[np.uint8]
_Images = Generator[tuple[str, _Rgb], None, None]


@dataclass(frozen=True)
class Frame:
    """One picture of a source and when it came.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        index: Position in the source, from 0.
        source: What it was read from, fit to print: a path, a device, or a stream's address without its password.
        wall_time_s: Seconds since 1970 (UTC) when the frame was there; jumps when the clock is set.
        monotonic_s: Seconds of a clock that never jumps, of the same moment; only differences mean something.
        decode_ms: Milliseconds spent reading and decoding; of a live source, waiting for the frame as well.
    """

    image: npt.NDArray[np.uint8]
    index: int
    source: str
    wall_time_s: float
    monotonic_s: float
    decode_ms: float


class Source:
    """An open source: iterate over it for its frames, once; use it as a context manager so that it is closed.

    Attributes:
        name: The source, fit to print (a stream's user name and password are left out).
        is_live: Whether frames come at their own pace and are lost when nobody reads.
        fps: Frames per second that the source declares; None where it declares none.
        num_frames: Frames that a video declares, which can be wrong; None where it declares none.
    """

    def __init__(
        self,
        images: _Images,
        *,
        name: str,
        is_live: bool = False,
        fps: float | None = None,
        num_frames: int | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.name = _printable(name)
        self.is_live = is_live
        self.fps = fps
        self.num_frames = num_frames
        self._images = images
        self._close = close
        self._count = 0

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._images.close()
        if self._close is not None:
            self._close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        """Read the next frame.

        Raises:
            StopIteration: The source has ended.
            InputError: A picture of the folder cannot be used.
            SourceError: A video holds no frame, or a live source stopped delivering.
        """
        started = time.perf_counter()
        source, image = next(self._images)
        decode_ms = (time.perf_counter() - started) * 1e3
        index, self._count = self._count, self._count + 1
        return Frame(image, index, _printable(source), time.time(), time.monotonic(), decode_ms)


def open_source(uri: str) -> Source:
    """Open a source of frames.

    Args:
        uri: A picture, a folder of pictures (in natural order: 2 before 10), a video file, a camera ("0",
            "/dev/video0"), "rtsp://..." (over TCP), or "demo", the built-in tour, which never ends.

    Returns:
        The source; frames are (H, W, 3) uint8 RGB.

    Raises:
        InputError: Not one of these kinds, or a folder without pictures.
        SourceError: The file, camera or stream cannot be found or opened.
        EnvironmentLacksError: "demo" without scikit-image.
    """
    if not uri or re.search(r"[\x00-\x1f\x7f]", uri):
        raise InputError(f"{uri!r} is no source; give {_KINDS}.")
    if uri == "demo":
        demo_length()  # a missing scikit-image is told now, not at the first frame
        return Source((("demo", demo_frame(index)) for index in itertools.count()), name="demo", fps=DEMO_FPS)
    if re.match("rtsp://", uri, re.IGNORECASE):
        return _open_stream(uri)
    if re.fullmatch("[0-9]{1,3}", uri):
        return _open_camera(f"/dev/video{int(uri)}", name=uri)
    if re.fullmatch("/dev/video[0-9]{1,3}", os.path.realpath(uri)):
        return _open_camera(os.path.realpath(uri), name=uri)
    return _open_path(uri)


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from writing to stderr what we say ourselves, in one sentence."""
    set_log_level = getattr(cv2.utils, "logging", cv2).setLogLevel  # OpenCV 5 moved it
    level = set_log_level(_SILENT)
    try:
        yield
    finally:
        set_log_level(level)


@contextmanager
def ffmpeg_options() -> Iterator[None]:
    """Hold FFmpeg's options while OpenCV opens a video, for it takes them from the environment only.

    RTSP goes over TCP, and FFmpeg keeps silent; its silence is settled once a process, by the first video opened.
    """
    before = {name: os.environ.get(name) for name in _FFMPEG_OPTIONS}
    os.environ.update(_FFMPEG_OPTIONS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _open_path(uri: str) -> Source:
    path = Path(uri)
    suffix = path.suffix.lower()
    try:
        mode = path.stat().st_mode
        entries = list(path.iterdir()) if stat.S_ISDIR(mode) else []
    except OSError as error:
        if re.match(r"[A-Za-z][A-Za-z0-9+.,-]*:", uri):
            raise InputError(f"{uri.partition(':')[0]}: is not a kind of source; give {_KINDS}.") from error
        raise SourceError(f"The source {uri} cannot be opened: {error.strerror}; check the path.") from error
    if stat.S_ISDIR(mode):
        pictures = [entry for entry in entries if entry.suffix.lower() in PICTURE_SUFFIXES and entry.name[0] != "."]
        if not pictures:
            raise InputError(f"The folder {uri} holds no picture ({', '.join(PICTURE_SUFFIXES)}).")
        return Source(_pictures(sorted(pictures, key=_natural_order)), name=uri)
    if suffix in PICTURE_SUFFIXES:
        return Source(_pictures([path]), name=uri)
    if suffix in VIDEO_SUFFIXES:
        capture = _capture(str(path.resolve()), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise SourceError(f"The video {uri} cannot be opened; it is damaged, cut short, or of an unknown encoding.")
        frames = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        num_frames = int(frames) if 1 <= frames < _MOST_FRAMES else None
        return Source(
            _video(capture, uri), name=uri, fps=_declared_fps(capture), num_frames=num_frames, close=capture.release
        )
    known = ", ".join(PICTURE_SUFFIXES + VIDEO_SUFFIXES)
    raise InputError(f"{uri} is no picture and no video: its name ends in none of {known}.")


def _open_camera(device: str, name: str) -> Source:
    if not os.path.exists(device):
        raise SourceError(f"There is no camera {device}; plug it in, or list the cameras with: ls /dev/video*")
    capture = _capture(device, cv2.CAP_V4L2)
    if not capture.isOpened():
        raise SourceError(
            f"The camera {device} cannot be opened; it is in use, delivers no pictures, or you lack the permission "
            "(group video)."
        )
    return Source(_live(capture, name), name=name, is_live=True, fps=_declared_fps(capture), close=capture.release)


def _open_stream(uri: str) -> Source:
    name = _printable_stream(uri)
    try:
        if not urlsplit(uri).hostname or " " in uri:
            raise InputError(f"{name} is no stream address; give rtsp://HOST/PATH.")
    except ValueError:
        # Not chained: the cause's text could hold the password.
        raise InputError(f"{name} is no stream address; give rtsp://HOST/PATH.") from None
    capture = _capture("rtsp://" + uri[len("rtsp://") :], cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise SourceError(
            f"The stream {name} cannot be opened; check the address, the password and that the camera is on."
        )
    return Source(_live(capture, name), name=name, is_live=True, fps=_declared_fps(capture), close=capture.release)


def _capture(target: str, backend: int) -> cv2.VideoCapture:
    # Without these FFmpeg waits for 30 s to open and 90 s to read (measured).
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_TIMEOUT_MS]
    with quiet_opencv(), ffmpeg_options():
        return cv2.VideoCapture(target, backend, limits if backend == cv2.CAP_FFMPEG else [])


def _declared_fps(capture: cv2.VideoCapture) -> float | None:
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if math.isfinite(fps) and 0 < fps <= 1000 else None


def _pictures(paths: list[Path]) -> _Images:
    for path in paths:
        yield str(path), read_image(path)


def _video(capture: cv2.VideoCapture, name: str) -> _Images:
    found = False
    while (image := _read(capture)) is not None:
        found = True
        yield name, image
    if not found:
        raise SourceError(f"The video {name} holds no frame that can be decoded.")


def _live(capture: cv2.VideoCapture, name: str) -> _Images:
    while True:
        started = time.monotonic()
        image = _read(capture)
        if image is None or (time.monotonic() - started) * 1e3 >= _STALL_MS:
            raise SourceError(
                f"{name} stopped delivering frames; check the camera and its connection, then start again."
            )
        yield name, image


def _read(capture: cv2.VideoCapture) -> _Rgb | None:
    with quiet_opencv():
        ok, bgr = capture.read()
    if not ok or bgr is None:
        return None
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _natural_order(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part) if part.isdecimal() else -1, part) for part in parts]


def _printable(name: str) -> str:
    # A file's name may hold bytes that are no text; they must not stop a JSON line later.
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _printable_stream(uri: str) -> str:
    address = uri[len("rtsp://") :]
    authority = re.split("[/?#]", address, maxsplit=1)[0]
    path = re.split("[?#]", address[len(authority) :], maxsplit=1)[0]
    # A password may itself hold / ? # or @, and some cameras take it as a part of the path: where in doubt, show less.
    if "@" in address[len(authority) :]:
        return "rtsp://***"
    return f"rtsp://{authority.rpartition('@')[2]}{'/***' if '=' in path else path}"
