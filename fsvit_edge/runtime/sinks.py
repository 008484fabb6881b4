"""Where results go: a sink URI and the predictions of a run go in, files or lines come out.

folder/  video.mp4  results.jsonl  -
"""

import contextlib
import json
import os
import shutil
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.overlay import draw
from fsvit_edge.runtime.pictures import write_image
from fsvit_edge.runtime.prediction import Prediction
from fsvit_edge.runtime.sources import Frame, ffmpeg_options, quiet_opencv

_KINDS = "a folder (ending in /), *.mp4, *.jsonl, or - for the standard output"
# The index of an mp4 file is written last; this much is kept for it, so that a full disk costs no finished second.
_SPARE_BYTES = 4_000_000


class SinkClosedError(Exception):
    """Whoever read a sink has gone, as `head` does after ten lines: a clean end of the run, not a failure."""


class Sink(ABC):
    """Takes the frames and predictions of one run; use it as a context manager so that its file is finished."""

    def __enter__(self) -> "Sink":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what was written.

        Raises:
            FsvitEdgeError: It could not be finished; not raised where another exception is on its way already.
        """
        try:
            self._finish()
        except FsvitEdgeError:
            if error is None:
                raise

    @abstractmethod
    def write(self, frame: Frame, prediction: Prediction) -> None:
        """Take one frame and the prediction made for it.

        Raises:
            InputError: The frame does not fit what came before.
            FsvitEdgeError: The disk is full or something else keeps it from being written.
            SinkClosedError: The reader has gone; the run should end quietly.
        """

    @abstractmethod
    def _finish(self) -> None:
        """Complete and close what was written; called once."""


def open_sink(uri: str, fps: float) -> Sink:
    """Open a sink; what is there already is replaced.

    Args:
        uri: "FOLDER/" (ending in a slash, or an existing folder) for pictures with the result drawn in, named
            frame_000000.jpg by the frame's index; "*.mp4" for a video of them; "*.jsonl" for one JSON object (see
            `record`) a line and frame; "-" for the same lines on the standard output.
        fps: Frames per second at which a video is to play, above 0.

    Raises:
        InputError: Not one of these kinds, or the path has a file where a folder must be, or the reverse.
        FsvitEdgeError: The place cannot be written.
    """
    path = Path(uri)
    if uri == "-":
        return _StandardOutputSink()
    if uri.endswith("/") or (uri and path.is_dir()):
        _make_folder(path)
        return _PictureSink(path)
    if path.suffix.lower() == ".mp4":
        _make_folder(path.parent)
        return _VideoSink(path, fps)
    if path.suffix.lower() == ".jsonl":
        _make_folder(path.parent)
        return _JsonLinesSink(path)
    raise InputError(f"{uri!r} is no sink; give {_KINDS}.")


def record(frame: Frame, prediction: Prediction) -> dict[str, Any]:
    """Say in JSON's terms what a frame shows.

    Returns:
        "sequence": index of the frame; "source"; "wall_time_s" and "monotonic_s": when it came, in seconds;
        "size_hw": its height and width in pixels; "classes": for each enrolled class its "name", "score" in [0, 1],
        "present", "area_px" and "box_xyxy" (left, top, right, bottom; right and bottom are exclusive; null without a
        pixel), area and box being those of the label map, whether the class is present or not; "latency_ms":
        milliseconds of each stage, "decode" first.
    """
    classes = []
    for index, name in enumerate(prediction.classes):
        pixels = (prediction.label_map == index + 1).view(np.uint8)
        x, y, width, height = cv2.boundingRect(pixels)
        classes.append(
            {
                "name": name,
                "score": round(float(prediction.scores[index]), 4),
                "present": bool(prediction.present[index]),
                "area_px": cv2.countNonZero(pixels),
                "box_xyxy": [x, y, x + width, y + height] if width else None,
            }
        )
    return {
        "sequence": frame.index,
        "source": frame.source,
        "wall_time_s": round(frame.wall_time_s, 3),
        "monotonic_s": round(frame.monotonic_s, 3),
        "size_hw": list(frame.image.shape[:2]),
        "classes": classes,
        "latency_ms": {
            stage: round(float(ms), 2) for stage, ms in {"decode": frame.decode_ms, **prediction.latency_ms}.items()
        },
    }


class _PictureSink(Sink):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, frame: Frame, prediction: Prediction) -> None:
        write_image(self._folder / f"frame_{frame.index:06d}.jpg", draw(frame.image, prediction))

    def _finish(self) -> None:
        """Every picture is complete in itself."""


class _VideoSink(Sink):
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


class _JsonLinesSink(Sink):
    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = 0
        self._whole_bytes = 0
        try:
            # Unbuffered: a line is handed to the system in one piece, so a killed run leaves no torn one.
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise FsvitEdgeError(f"{path} cannot be written: {error.strerror}.") from error

    def write(self, frame: Frame, prediction: Prediction) -> None:
        line = _line(frame, prediction)
        try:
            rest = line
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # a device cannot be cut back to its last whole line
                self._file.truncate(self._whole_bytes)
                self._file.seek(self._whole_bytes)
            raise FsvitEdgeError(
                f"{self._path} ends after {self._lines} lines: {error.strerror}; make room."
            ) from error
        self._lines += 1
        self._whole_bytes += len(line)

    def _finish(self) -> None:
        self._file.close()


class _StandardOutputSink(Sink):
    def write(self, frame: Frame, prediction: Prediction) -> None:
        try:
            sys.stdout.buffer.write(_line(frame, prediction))
            sys.stdout.buffer.flush()
        except BrokenPipeError as error:
            _discard_standard_output()
            raise SinkClosedError("The reader of the standard output has gone.") from error
        except OSError as error:
            _discard_standard_output()
            raise FsvitEdgeError(f"The standard output cannot be written: {error.strerror}.") from error

    def _finish(self) -> None:
        """Every line is flushed; the standard output is not ours to close."""


def _discard_standard_output() -> None:
    # What is left in the buffer would fail once more, with a traceback, when Python ends.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _line(frame: Frame, prediction: Prediction) -> bytes:
    return json.dumps(record(frame, prediction), ensure_ascii=False).encode() + b"\n"


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path} cannot be a folder: {error.filename} is a file.") from error
    except OSError as error:
        raise FsvitEdgeError(f"The folder {path} cannot be made: {error.strerror}.") from error
