"""One JSON object a line: for every frame, and for every change of the source's state."""

import contextlib
import os
import sys
from pathlib import Path

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.live.sinks.base import Sink, SinkClosedError
from fsvit_edge.live.sinks.record import StateChanges, json_line, record, state_record
from fsvit_edge.live.sinks.segments import Segments, SinkOptions
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.prediction import Prediction

_QUEUE_FRAMES = 8


class JsonLinesSink(Sink):
    """Lines in a file, or in numbered files.

    What a live source has shown before does not come again, so its lines are added to those that are there; a run that
    a service starts again goes on where it ended. Of a file or folder they are replaced.

    Args:
        path: The file.
        options: Segments, how many to keep, and whether the source is live.
    """

    queue_frames = _QUEUE_FRAMES

    def __init__(self, path: Path, options: SinkOptions) -> None:
        self._segments = Segments(path, options) if options.segment_s is not None else None
        self._changes = StateChanges()
        self._file: _LineFile | None = None if self._segments else _LineFile(path, options.is_live)

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """See `Sink.write`."""
        self._write(json_line(record(frame, prediction)), frame.monotonic_s)

    def report(self, health: Health) -> None:
        """See `Sink.report`."""
        if self._changes.has_changed(health):
            self._write(json_line(state_record(health)), health.monotonic_s)

    def _write(self, line: bytes, now_s: float) -> None:
        if self._segments is not None and (self._file is None or self._segments.is_full(now_s)):
            self._finish()
            self._file = _LineFile(self._segments.begin(now_s), is_added_to=False)
            self._segments.delete_old()
        assert self._file is not None
        self._file.write(line)

    def _finish(self) -> None:
        if self._file is not None:
            self._file.close()


class _LineFile:
    """A file that holds whole lines only."""

    def __init__(self, path: Path, is_added_to: bool) -> None:
        self._path = path
        self._lines = 0
        try:
            if is_added_to:
                _end_last_line(path)
            # Unbuffered: a line is handed to the system in one piece, so a killed run leaves no torn one.
            self._file = path.open("ab" if is_added_to else "wb", buffering=0)
            self._whole_bytes = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise FsvitEdgeError(f"{path} cannot be written: {error.strerror}.") from error

    def write(self, line: bytes) -> None:
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

    def close(self) -> None:
        self._file.close()


def _end_last_line(path: Path) -> None:
    """End a line that a power cut has torn, so that it spoils none of ours."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


class StandardOutputSink(Sink):
    """Lines on the standard output."""

    queue_frames = _QUEUE_FRAMES

    def __init__(self) -> None:
        self._changes = StateChanges()

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """See `Sink.write`."""
        self._write(json_line(record(frame, prediction)))

    def report(self, health: Health) -> None:
        """See `Sink.report`."""
        if self._changes.has_changed(health):
            self._write(json_line(state_record(health)))

    def _write(self, line: bytes) -> None:
        try:
            sys.stdout.buffer.write(line)
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
