"""Pictures with the results drawn in: a folder of them, or a video in one file or in numbered files."""

import re
import shutil
from abc import abstractmethod
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.overlay import draw_state
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.live.opencv import ffmpeg_options, quiet_opencv
from fsvit_edge.live.sinks.base import RecordingOptions, Sink
from fsvit_edge.live.sinks.segments import Segments
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.pictures import write_image
from fsvit_edge.runtime.storage import TemporaryFile

_OURS = re.compile(r"frame_[0-9]{6,}(_[a-z]+)?\.jpg")
# The index of an mp4 file is written last; this much is reserved for it, so that a full disk does not spoil the file.
_SPARE_BYTES = 4_000_000
_MAX_STILL_S = 1.0  # the longest gap between two frames of a live source that is filled; a longer one is cut out

_Rgb = npt.NDArray[np.uint8]


class _DrawnSink(Sink):
    """When the source is lost, its last picture is shown again in gray."""

    _last: Frame | None = None

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """Draw the result into the frame."""
        self._last = frame
        self._add(frame.drawn(prediction), f"frame_{frame.index:06d}", frame.monotonic_s)

    def _write_state(self, health: Health) -> None:
        status = health.source_status
        if status.state != "live" and self._last is not None:
            picture = draw_state(self._last.image, status.state, status.message)
            self._add(picture, f"frame_{self._last.index:06d}_{status.state}", health.monotonic_s)

    @abstractmethod
    def _add(self, picture: _Rgb, name: str, now_s: float) -> None: ...


class PictureSink(_DrawnSink):
    """Pictures in an existing folder, named by the index of the frame."""

    def __init__(self, folder: Path, options: RecordingOptions) -> None:
        self._folder = folder
        self._keep = options.keep
        # By age, because the numbers start again with every run.
        earlier = [path for path in folder.iterdir() if _OURS.fullmatch(path.name)] if options.keep else []
        self._written = OrderedDict.fromkeys(sorted(earlier, key=lambda path: path.stat().st_mtime))

    def _add(self, picture: _Rgb, name: str, _now_s: float) -> None:
        path = self._folder / f"{name}.jpg"
        write_image(path, picture)
        if self._keep is None:
            return
        self._written[path] = None
        self._written.move_to_end(path)
        while len(self._written) > self._keep:
            oldest, _ = self._written.popitem(last=False)
            oldest.unlink(missing_ok=True)

    def _finish(self) -> None:
        """Every picture is already complete."""


class VideoSink(_DrawnSink):
    """A video that plays at the original speed: frames of a live source are repeated or skipped to follow the clock."""

    def __init__(self, path: Path, fps: float, options: RecordingOptions, is_live: bool) -> None:
        self._fps = fps
        self._is_live = is_live
        self._segments = Segments(path, options) if options.segment_s is not None else None
        self._shown_until_s = 0.0
        self._file: _VideoFile | None = None if self._segments else _VideoFile(path, fps)

    def _add(self, picture: _Rgb, _name: str, now_s: float) -> None:
        file = self._file
        if self._segments is not None and (file is None or self._segments.is_full(now_s) or not file.accepts(picture)):
            self._finish()
            self._file = _VideoFile(self._segments.start(now_s), self._fps)
        assert self._file is not None
        for _ in range(self._repeats(now_s)):
            self._file.write(picture)

    def _repeats(self, now_s: float) -> int:
        """How often to write a picture, so that the video lasts as long as what it shows."""
        if not self._is_live:
            return 1
        if not 0 <= now_s - self._shown_until_s <= _MAX_STILL_S:
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
    """A temporary file, renamed at the end; OpenCV does not report failed writes, so the result is checked first."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path = path
        self._temporary = TemporaryFile(path)
        self._fps = fps
        self._size_hw: tuple[int, int] | None = None
        self._frames = 0
        self._writer = cv2.VideoWriter()

    def accepts(self, picture: _Rgb) -> bool:
        """Whether a picture has the size of those before."""
        return self._size_hw in (None, picture.shape[:2])

    def write(self, picture: _Rgb) -> None:
        height, width = picture.shape[:2]
        if self._size_hw is None:
            self._open(height, width)
        elif not self.accepts(picture):
            raise InputError(
                f"A frame has {width}x{height} pixels, but the video {self._path} started with "
                f"{self._size_hw[1]}x{self._size_hw[0]}; write pictures of different sizes to a folder instead."
            )
        if shutil.disk_usage(self._path.parent).free < _SPARE_BYTES:
            raise FsvitEdgeError(f"{self._path} ends after {self._frames} frames: the disk is full; free some space.")
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
                f"The video {self._path} cannot be started with frames of {width}x{height} pixels at {self._fps:g} "
                "frames per second; write to a folder instead."
            )
        self._size_hw = (height, width)

    def finish(self) -> None:
        self._writer.release()
        with self._temporary:
            if self._frames == 0:
                return
            if not self._is_complete():
                raise FsvitEdgeError(
                    f"The video {self._path} was not written: it could not be read back after {self._frames} frames, "
                    "most likely because the disk is full; free some space and run again."
                )
            self._temporary.replace_target()

    def _is_complete(self) -> bool:
        with quiet_opencv(), ffmpeg_options():
            written = cv2.VideoCapture(str(self._temporary.path.resolve()), cv2.CAP_FFMPEG)
        frames = written.get(cv2.CAP_PROP_FRAME_COUNT) if written.isOpened() else 0
        written.release()
        return frames == self._frames
