"""Opens and reads videos, cameras and streams with OpenCV: with time limits, safe FFmpeg options, and no log output."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.live.sources.base import DEFAULT_FPS, Flip
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.pictures import MAX_PICTURE_PX

# FFmpeg probes a stream for up to 5 s before it returns the first frame; 1 s is enough to find the size.
RTSP_OPTIONS = "rtsp_transport;tcp|analyzeduration;1000000"
_SILENT = 0  # one of OpenCV's log levels
_NO_LOG = -8  # one of FFmpeg's
LOG_ERRORS = 16
"""The level of FFmpeg's log at which it tells why a stream cannot be opened, with the address."""
# FFmpeg gives up a read after this. Some cameras send a whole picture only once a minute, and `LiveSource` ends a read
# that takes too long for another reason.
READ_TIMEOUT_MS = 60_000
_OPEN_TIMEOUT_MS = 4500
# Only formats that hold their pictures themselves: playlists, whatever their name, make FFmpeg read other files.
_FILE = (
    "protocol_whitelist;file|format_whitelist;mov,matroska,avi,mpeg,mpegts,mpegvideo,asf,gif,flv,ogg,mxf,nut,rm,dv,h264,"
    "hevc,m4v,mjpeg,ivf,obu,av1,vc1,dhav,wtv,swf,h261,h263,apng,yuv4mpegpipe"
)
_SILENT_SOCKET = "|timeout;5000000"  # microseconds without a byte
_SOCKET_TIMEOUTS_SINCE = 59  # version of avformat; before, "timeout" meant to wait for a connection
_FLIP_CODES = {"horizontal": 1, "vertical": 0, "both": -1}

_Rgb = npt.NDArray[np.uint8]


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Silence OpenCV's log: our own errors say the same in one sentence."""
    set_log_level = getattr(cv2.utils, "logging", cv2).setLogLevel  # OpenCV 5 moved it
    level = set_log_level(_SILENT)
    try:
        yield
    finally:
        set_log_level(level)


@contextmanager
def ffmpeg_options(options: str = RTSP_OPTIONS, log_level: int = _NO_LOG) -> Iterator[None]:
    """Set FFmpeg's options, "name;value|name;value", while OpenCV opens a video.

    It takes them only from the environment, and so the level of FFmpeg's log, which goes to standard output; the first
    video opened settles that for the whole process.
    """
    wanted = {"OPENCV_FFMPEG_CAPTURE_OPTIONS": options, "OPENCV_FFMPEG_LOGLEVEL": str(log_level)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def open_video(path: str) -> cv2.VideoCapture:
    """Open a file; `isOpened` says whether that worked."""
    if _is_text(path):
        return _open_by_ffmpeg(path, _FILE)
    try:
        with open(path, "rb") as file:  # FFmpeg opens what this leads to, so it may be closed afterwards
            return _open_by_ffmpeg(f"/proc/self/fd/{file.fileno()}", _FILE)
    except OSError:
        return cv2.VideoCapture()


def open_stream(address: str, log_level: int = _NO_LOG) -> cv2.VideoCapture:
    """Open rtsp:// over TCP; `isOpened` says whether that worked."""
    version = re.search(r"avformat:\s+YES \(([0-9]+)", cv2.getBuildInformation())
    has_timeouts = version is not None and int(version[1]) >= _SOCKET_TIMEOUTS_SINCE
    return _open_by_ffmpeg(address, RTSP_OPTIONS + _SILENT_SOCKET * has_timeouts, log_level)


def open_camera(device: str, width: int | None, height: int | None, fps: float | None) -> cv2.VideoCapture:
    """Open a V4L2 device; `isOpened` says whether that worked. A camera uses the nearest size and rate it has."""
    wanted = {cv2.CAP_PROP_FRAME_WIDTH: width, cv2.CAP_PROP_FRAME_HEIGHT: height, cv2.CAP_PROP_FPS: fps}
    with quiet_opencv():
        capture = cv2.VideoCapture(device if _is_text(device) else os.path.realpath(device), cv2.CAP_V4L2)
        _request(capture, wanted)
        if _falls_short(capture, wanted):
            # OpenCV prefers raw pixels, but USB 2 carries only 10 raw frames per second of 1280x720; the same camera
            # delivers 30 as JPEGs (opencv/opencv#9540). A camera without JPEGs stays as it is.
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
            _request(capture, wanted)
        # Frames in the driver's queue would be old when they are read.
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return capture


def csi_pipeline(sensor: int, width: int | None, height: int | None, fps: float | None) -> str:
    """The GStreamer pipeline of a Jetson camera; only numbers enter it."""
    rate = 30.0 if fps is None else fps
    numerator, denominator = (int(rate), 1) if rate == int(rate) else (round(rate * 100), 100)
    return (
        f"nvarguscamerasrc sensor-id={int(sensor)} ! "
        f"video/x-raw(memory:NVMM),width={int(width or 1280)},height={int(height or 720)},"
        f"framerate={numerator}/{denominator} ! "
        "nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
        "appsink drop=true max-buffers=1 sync=false"
    )


def open_csi(sensor: int, width: int | None, height: int | None, fps: float | None) -> cv2.VideoCapture:
    """Open the CSI camera of a Jetson; `isOpened` says whether that worked."""
    with quiet_opencv():
        return cv2.VideoCapture(csi_pipeline(sensor, width, height, fps), cv2.CAP_GSTREAMER)


def has_gstreamer() -> bool:
    """Whether this OpenCV was built with GStreamer; the wheels on PyPI are not."""
    lines = (line.split() for line in cv2.getBuildInformation().splitlines())
    return any(words[:2] == ["GStreamer:", "YES"] for words in lines)


def declared_fps(capture: cv2.VideoCapture) -> float | None:
    """Frames per second declared by a capture; None if the number is unusable."""
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if math.isfinite(fps) and 0 < fps <= 1000 else None


def declared_size_hw(capture: cv2.VideoCapture) -> tuple[int, int]:
    """Height and width of the frames declared by a capture; 0 if it does not say."""
    return int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))


def check_frame_size(name: str, height: int, width: int) -> None:
    """Refuse frames with more pixels than a picture may have, with an InputError."""
    if height * width > MAX_PICTURE_PX:
        raise InputError(
            f"{name} has frames of {width}x{height} pixels, more than the {MAX_PICTURE_PX // 10**6} megapixels "
            "allowed; make them smaller."
        )


def codec_code(capture: cv2.VideoCapture) -> str:
    """The four characters that name the encoding of a video, as AV01; empty if there are none."""
    code = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True).decode("latin-1").strip("\0 ")
    return code.upper() if code.isascii() and code.isprintable() else ""


def media_time_s(capture: cv2.VideoCapture) -> float | None:
    """When the frame just read is shown, in seconds from the start of the file; None if the file does not say."""
    shown_s = float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1e3
    # OpenCV says 0 if it does not know.
    is_known = shown_s > 0 or capture.get(cv2.CAP_PROP_POS_FRAMES) <= 1
    return shown_s if is_known and math.isfinite(shown_s) else None


def read_bgr(capture: cv2.VideoCapture) -> _Rgb | None:
    """Read one frame, (H, W, 3) uint8 BGR; None at the end or after a failure."""
    with quiet_opencv():
        ok, bgr = capture.read()
    if not ok or bgr is None:
        return None
    return np.asarray(bgr, dtype=np.uint8)


def read_rgb(capture: cv2.VideoCapture) -> _Rgb | None:
    """Read one frame, (H, W, 3) uint8 RGB; None at the end or after a failure."""
    bgr = read_bgr(capture)
    return None if bgr is None else np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def flipped(image: _Rgb, flip: Flip) -> _Rgb:
    """Flip a picture as `SourceOptions.flip` describes."""
    return image if flip == "none" else np.asarray(cv2.flip(image, _FLIP_CODES[flip]), dtype=np.uint8)


def _is_text(path: str) -> bool:
    """Whether a path can be handed to OpenCV, which ends the process if a byte of it is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _request(capture: cv2.VideoCapture, wanted: dict[int, float | None]) -> None:
    for property_id, value in wanted.items():
        if value is not None:
            capture.set(property_id, value)


def _falls_short(capture: cv2.VideoCapture, wanted: dict[int, float | None]) -> bool:
    """Whether a camera delivers clearly less than requested, or fewer than 25 frames per second by default."""
    at_least = {cv2.CAP_PROP_FPS: DEFAULT_FPS, **{name: value for name, value in wanted.items() if value is not None}}
    # A driver that does not know its frame rate reports 0.
    return any(0 < capture.get(property_id) < 0.9 * value for property_id, value in at_least.items())


def _open_by_ffmpeg(target: str, options: str, log_level: int = _NO_LOG) -> cv2.VideoCapture:
    # Without these, FFmpeg waits for 30 s to open (measured).
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS]
    with quiet_opencv(), ffmpeg_options(options, log_level):
        return cv2.VideoCapture(target, cv2.CAP_FFMPEG, limits)
