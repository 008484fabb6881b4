"""OpenCV's video reader with its traps covered: time limits, FFmpeg's options and its chatter."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import numpy.typing as npt

READ_TIMEOUT_MS = 5000
"""After which FFmpeg gives a read up."""

_SILENT = 0  # of OpenCV's log levels
_OPEN_TIMEOUT_MS = 5000
_FFMPEG_OPTIONS = {"OPENCV_FFMPEG_CAPTURE_OPTIONS": "rtsp_transport;tcp", "OPENCV_FFMPEG_LOGLEVEL": "-8"}


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


def open_capture(target: str, backend: int) -> cv2.VideoCapture:
    """Open a device, file or stream; whether that worked, `isOpened` tells."""
    # Without these FFmpeg waits for 30 s to open and 90 s to read (measured).
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS]
    with quiet_opencv(), ffmpeg_options():
        return cv2.VideoCapture(target, backend, limits if backend == cv2.CAP_FFMPEG else [])


def declared_fps(capture: cv2.VideoCapture) -> float | None:
    """Frames per second that a capture declares; None where that is no number of use."""
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if math.isfinite(fps) and 0 < fps <= 1000 else None


def read_rgb(capture: cv2.VideoCapture) -> npt.NDArray[np.uint8] | None:
    """Read one frame, (H, W, 3) uint8 RGB; None at the end or after a failure."""
    with quiet_opencv():
        ok, bgr = capture.read()
    if not ok or bgr is None:
        return None
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)
