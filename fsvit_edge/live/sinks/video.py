"""A video with the result drawn in, in one file or in numbered ones."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.live.sinks.base import Sink
from fsvit_edge.live.sinks.record import StateChanges
from fsvit_edge.live.sinks.segments import Segments, SinkOptions
from fsvit_edge.live.sources.opencv import ffmpeg_options, quiet_opencv
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.overlay import draw, draw_state
from fsvit_edge.runtime.prediction import Prediction
from fsvit_edge.runtime.storage import TemporaryFile

# The index of an mp4 file is written last; this much is kept for it, so that a full disk costs no finished second.
_SPARE_BYTES = 4_000_000
_LONGEST_STILL_S = 1.0  # by which a gap between two frames of a live source is filled; a lost camera is cut out

_Rgb = npt.NDArray[np.uint8]


class VideoSink(Sink):
    """A file that plays as it happened: of a live source, frames are repeated or left out to follow the clock.

    Args:
        path: The file; its parts are numbered where there are segments.
        fps: Frames per second of the video.
        options: Segments, how many to keep, and whether the source is live.
    """

    def __init__(self, path: Path, fps: float, options: SinkOptions) -> None:
        self._fps = fps
        self._is_live = options.is_live
        self._segments = Segments(path, options) if options.segment_s is not None else None
        self._changes = StateChanges()
        self._last: Frame | None = None
        self._shown_until_s = 0.0
        self._file: _VideoFile | None = None if self._segments else _VideoFile(path, fps)

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """See `Sink.write`."""
        self._last = frame
        self._add(draw(frame.image, prediction), frame.monotonic_s)

    def report(self, health: Health) -> None:
        """See `Sink.report`."""
        status = health.source_status
        if self._changes.has_changed(health) and status.state != "live" and self._last is not None:
            self._add(draw_state(self._last.image, status.state, status.message), health.monotonic_s)

    def _add(self, picture: _Rgb, now_s: float) -> None:
        file = self._file
        if self._segments is not None and (file is None or self._segments.is_full(now_s) or not file.takes(picture)):
            self._finish()
            self._file = _VideoFile(self._segments.begin(now_s), self._fps)
        assert self._file is not None
        for _ in range(self._repeats(now_s)):
            self._file.write(picture)

    def _repeats(self, now_s: float) -> int:
        """How often a picture has to be written, so that the video is as long as what it shows."""
        if not self._is_live:
            return 1
        if not 0 <= now_s - self._shown_until_s <= _LONGEST_STILL_S:
            self._shown_until_s = max(self._shown_until_s, now_s - 1 / self._fps)
        count = max(0, round((now_s - self._shown_until_s) * self._fps))
        self._shown_until_s += count / self._fps
        return count

    def _finish(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.finish()
            if self._segments is not None:
                self._segments.delete_old()


class _VideoFile:
    """Written beside the target and renamed at the end: OpenCV reports no failed write, so the result is checked."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path = path
        self._temporary = TemporaryFile(path)
        self._fps = fps
        self._size_hw: tuple[int, int] | None = None
        self._frames = 0
        self._writer = cv2.VideoWriter()

    def takes(self, picture: _Rgb) -> bool:
        """Whether a picture has the size of those before it."""
        return self._size_hw in (None, picture.shape[:2])

    def write(self, picture: _Rgb) -> None:
        height, width = picture.shape[:2]
        if self._size_hw is None:
            self._open(height, width)
        elif not self.takes(picture):
            raise InputError(
                f"A frame has {width}x{height} pixels, but the video {self._path} began with "
                f"{self._size_hw[1]}x{self._size_hw[0]}; write pictures of several sizes to a folder instead."
            )
        if shutil.disk_usage(self._path.parent).free < _SPARE_BYTES:
            raise FsvitEdgeError(f"{self._path} ends after {self._frames} frames: the disk is full; make room.")
        with quiet_opencv():
            self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self._frames += 1

    def _open(self, height: int, width: int) -> None:
        with quiet_opencv(), ffmpeg_options():
            self._writer.open(
                str(self._temporary.path.resolve()),
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

    def finish(self) -> None:
        self._writer.release()
        with self._temporary:
            if self._frames == 0:
                return
            if not self._is_whole():
                raise FsvitEdgeError(
                    f"The video {self._path} was not written: it could not be read back after {self._frames} frames, "
                    "most likely because the disk is full; make room and run again."
                )
            self._temporary.replace_target()

    def _is_whole(self) -> bool:
        with quiet_opencv(), ffmpeg_options():
            written = cv2.VideoCapture(str(self._temporary.path.resolve()), cv2.CAP_FFMPEG)
        frames = written.get(cv2.CAP_PROP_FRAME_COUNT) if written.isOpened() else 0
        written.release()
        return frames == self._frames
