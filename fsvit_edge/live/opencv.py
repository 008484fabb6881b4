"""OpenCV without its log output, and with FFmpeg's options, for the sources and sinks that use it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

RTSP_OPTIONS = "rtsp_transport;tcp|analyzeduration;1000000"
"""FFmpeg probes a stream for up to 5 s before it returns the first frame; 1 s is enough to find the size."""

_SILENT = 0  # one of OpenCV's log levels


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
def ffmpeg_options(options: str = RTSP_OPTIONS) -> Iterator[None]:
    """Set FFmpeg's options while OpenCV opens a video; OpenCV takes them only from the environment.

    FFmpeg's log is silenced too; the first video opened settles that for the whole process.

    Args:
        options: Names and values as OpenCV parses them: "name;value|name;value".
    """
    wanted = {"OPENCV_FFMPEG_CAPTURE_OPTIONS": options, "OPENCV_FFMPEG_LOGLEVEL": "-8"}
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
