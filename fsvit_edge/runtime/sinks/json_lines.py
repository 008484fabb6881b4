"""One JSON object a line and frame, in a file or on the standard output."""

import contextlib
import os
import sys
from pathlib import Path

from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.frame import Frame
from fsvit_edge.runtime.prediction import Prediction
from fsvit_edge.runtime.sinks.base import Sink, SinkClosedError
from fsvit_edge.runtime.sinks.record import json_line


class JsonLinesSink(Sink):
    """Lines in a file, which is replaced."""

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
        """See `Sink.write`."""
        line = json_line(frame, prediction)
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


class StandardOutputSink(Sink):
    """Lines on the standard output."""

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """See `Sink.write`."""
        try:
            sys.stdout.buffer.write(json_line(frame, prediction))
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
