"""A video with the result drawn in."""

import os
import shutil
from pathlib import Path

import cv2

from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.frame import Frame
from fsvit_edge.runtime.overlay import draw
from fsvit_edge.runtime.prediction import Prediction
from fsvit_edge.runtime.sinks.base import Sink
from fsvit_edge.runtime.sources.opencv import ffmpeg_options, quiet_opencv

_KINDS = "a folder (ending in /), *.mp4, *.jsonl, or - for the standard output"
# The index of an mp4 file is written last; this much is kept for it, so that a full disk costs no finished second.
_SPARE_BYTES = 4_000_000


class VideoSink(Sink):
    """Writes beside the target and renames at the end: OpenCV reports no failed write, so the result is checked."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path = path
        self._temporary = path.with_name(f".fsvit-edge-{os.getpid()}-{path.name}")
        self._fps = fps
        self._size_hw: tuple[int, int] | None = None
        self._frames = 0
        self._writer = cv2.VideoWriter()
        try:
            self._temporary.touch()
        except OSError as error:
            raise FsvitEdgeError(f"{path} cannot be written: {error.strerror}.") from error

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """See `Sink.write`."""
        height, width = frame.image.shape[:2]
        if self._size_hw is None:
            self._open(height, width)
        elif self._size_hw != (height, width):
            raise InputError(
                f"Frame {frame.index} has {width}x{height} pixels, but the video {self._path} began with "
                f"{self._size_hw[1]}x{self._size_hw[0]}; write pictures of several sizes to a folder instead."
            )
        if shutil.disk_usage(self._path.parent).free < _SPARE_BYTES:
            raise FsvitEdgeError(f"{self._path} ends after {self._frames} frames: the disk is full; make room.")
        with quiet_opencv():
            self._writer.write(cv2.cvtColor(draw(frame.image, prediction), cv2.COLOR_RGB2BGR))
        self._frames += 1

    def _open(self, height: int, width: int) -> None:
        with quiet_opencv(), ffmpeg_options():
            self._writer.open(
                str(self._temporary.resolve()),
                cv2.CAP_FFMPEG,
                cv2.VideoWriter.fourcc(*"mp4v"),
                self._fps,
                (width, height),
            )
        if not self._writer.isOpened():
            raise FsvitEdgeError(
                f"The video {self._path} cannot be begun with frames of {width}x{height} pixels at {self._fps:g} "
                "frames per second; write to a folder instead."
            )
        self._size_hw = (height, width)

    def _finish(self) -> None:
        self._writer.release()
        try:
            if self._frames == 0:
                return
            if not self._is_whole():
                raise FsvitEdgeError(
                    f"The video {self._path} was not written: it could not be read back after {self._frames} frames, "
                    "most likely because the disk is full; make room and run again."
                )
            with self._temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(self._temporary, self._path)
        except OSError as error:
            raise FsvitEdgeError(f"The video {self._path} was not written: {error.strerror}.") from error
        finally:
            self._temporary.unlink(missing_ok=True)

    def _is_whole(self) -> bool:
        with quiet_opencv(), ffmpeg_options():
            written = cv2.VideoCapture(str(self._temporary.resolve()), cv2.CAP_FFMPEG)
        frames = written.get(cv2.CAP_PROP_FRAME_COUNT) if written.isOpened() else 0
        written.release()
        return frames == self._frames
