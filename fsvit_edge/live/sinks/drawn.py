"""Pictures of the results: drawn in, in a folder or as a video in one file or in numbered files; or index masks."""

import os
import re
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.index_mask import answer_png
from fsvit_edge.fewshot.overlay import draw_state
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.live.sinks.base import RecordingOptions, Sink
from fsvit_edge.live.sinks.segments import Segments
from fsvit_edge.live.sinks.unfinished import finish_recordings_of_killed_runs
from fsvit_edge.live.sinks.video_file import VideoFile, need_encoder
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.pictures import write_image
from fsvit_edge.runtime.storage import TemporaryFile, atomic_write

_OURS = r"frame_[0-9]{6,}(_[a-z]+)?(-[0-9]+)?"
_MAX_STILL_S = 1.0  # how long a frame of a live source is shown at most; of a longer gap, the rest is cut out

_Rgb = npt.NDArray[np.uint8]


class _DrawnSink(Sink):
    """When the source is lost, its last picture is shown again in gray."""

    _last: Frame | None = None

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """Draw the result into the frame."""
        self._last = frame
        self._add(frame.drawn(prediction), _name_of(frame), frame.monotonic_s, frame.media_time_s)

    def _write_state(self, health: Health) -> None:
        status = health.source_status
        if status.state != "live" and self._last is not None:
            picture = draw_state(self._last.image, status.state, status.message)
            self._add(picture, f"frame_{self._last.index:06d}_{status.state}", health.monotonic_s)

    @abstractmethod
    def _add(self, picture: _Rgb, name: str, now_s: float, media_s: float | None = None) -> None: ...


class _PictureFolder:
    """An existing folder of pictures with one suffix, of which the newest are kept.

    A name that is taken, by an earlier run or by a photo, gets "-2", "-3", ...
    """

    def __init__(self, folder: Path, suffix: str, options: RecordingOptions) -> None:
        self._folder, self._suffix, self._keep = folder, suffix, options.keep
        ours = re.compile(_OURS + re.escape(suffix))
        # By age, because the numbers start again with every run.
        earlier = [path for path in folder.iterdir() if ours.fullmatch(path.name)] if options.keep else []
        self._written = OrderedDict.fromkeys(sorted(earlier, key=lambda path: path.stat().st_mtime))

    def add(self, name: str, write: Callable[[Path], None]) -> None:
        path, number = self._folder / f"{name}{self._suffix}", 1
        while os.path.lexists(path):
            number += 1
            path = self._folder / f"{name}-{number}{self._suffix}"
        write(path)
        if self._keep is None:
            return
        self._written[path] = None
        self._written.move_to_end(path)
        while len(self._written) > self._keep:
            oldest, _ = self._written.popitem(last=False)
            oldest.unlink(missing_ok=True)


class PictureSink(_DrawnSink):
    """JPEGs in an existing folder, named like the picture that was read, or by the index of the frame."""

    resumes = True

    def __init__(self, folder: Path, options: RecordingOptions) -> None:
        self._pictures = _PictureFolder(folder, ".jpg", options)

    def _add(self, picture: _Rgb, name: str, _now_s: float, _media_s: float | None = None) -> None:
        self._pictures.add(name, lambda path: write_image(path, picture))

    def _finish(self) -> None:
        """Every picture is already complete."""


class IndexMaskSink(Sink):
    """PNGs of 8 bits in an existing folder, named alike: 0 is background, i + 1 is the i-th class, if it is present."""

    resumes = True

    def __init__(self, folder: Path, options: RecordingOptions) -> None:
        self._pictures = _PictureFolder(folder, ".png", options)

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """See `answer_png`."""
        data = answer_png(prediction, frame.full_hw)
        self._pictures.add(_name_of(frame), lambda path: atomic_write(path, data))

    def _finish(self) -> None:
        """Every picture is already complete."""


def _name_of(frame: Frame) -> str:
    return frame.picture or f"frame_{frame.index:06d}"


class VideoSink(_DrawnSink):
    """A video that plays at the original speed.

    Each frame is shown until the next was captured; of a video file, by its own times.

    One file replaces its target at the end; until then, and if the run is killed, it is "NAME-unfinished-....mp4",
    which the next run finishes.
    Numbered files replace nothing, so they have their name from the start. What follows after a failure of the disk is
    in a numbered file.
    """

    resumes = True

    def __init__(self, path: Path, fps: float, options: RecordingOptions, is_live: bool) -> None:
        self._path = path
        self._options = options
        self._fps = fps
        self._is_live = is_live
        self._segments = Segments(path, options) if options.segment_s is not None else None
        self._unfinished: TemporaryFile | None = None
        self._file: VideoFile | None = None
        self._last_s = 0.0
        self._last_media_s: float | None = None
        need_encoder()
        if self._segments is None:
            finish_recordings_of_killed_runs(path)
        with TemporaryFile(path):
            """Say now, not at the first frame, that this folder is not writable."""

    def _add(self, picture: _Rgb, _name: str, now_s: float, media_s: float | None = None) -> None:
        if self._file is None or self._is_full(picture, now_s):
            self._finish()
            self._file = self._start(now_s)
        try:
            self._file.write(picture, self._after_s(now_s, media_s))
        except (FsvitEdgeError, OSError) as error:
            if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
                self._segments = self._segments or Segments(self._path, self._options)
                self._finish()
            raise
        self._last_s, self._last_media_s = now_s, media_s

    def _after_s(self, now_s: float, media_s: float | None) -> float:
        """How long the picture before was shown."""
        if self._is_live:
            return min(now_s - self._last_s, _MAX_STILL_S)
        if media_s is not None and self._last_media_s is not None and media_s > self._last_media_s:
            return media_s - self._last_media_s
        return 1 / self._fps  # also where a file that is repeated starts again

    def _is_full(self, picture: _Rgb, now_s: float) -> bool:
        if self._segments is None or self._file is None:
            return False
        return self._segments.is_full(now_s) or not self._file.accepts(picture)

    def _start(self, now_s: float) -> VideoFile:
        if self._segments is None:
            self._unfinished = TemporaryFile(self._path, is_visible=True)
            return VideoFile(self._unfinished.path, self._path, self._fps)
        path = self._segments.start(now_s)
        file = VideoFile(path, path, self._fps)
        self._segments.delete_old()
        return file

    def _finish(self) -> None:
        file, self._file = self._file, None
        unfinished, self._unfinished = self._unfinished, None
        if file is None:
            return
        try:
            file.finish()
        finally:
            if unfinished is not None:
                with unfinished:
                    if not file.is_empty:
                        unfinished.replace_target()
            elif file.is_empty and self._segments is not None:
                self._segments.take_back(file.name)
