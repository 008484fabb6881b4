"""Standard streams that end no command: closed ones, a log that cannot be written, text that has no letters there."""

import codecs
import contextlib
import io
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, TextIO, cast

_MAX_WAITING_BYTES = 65_536
_WAIT_S = 0.2  # for a line to be written, so that a terminal shows lines and results in their order
_LAST_S = 1.0  # at the end, for all that waits
_ESCAPE = "fsvit-edge-escape"


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Take a closed stream for /dev/null, and let no message block a command or end it."""
    open_closed()
    codecs.register_error(_ESCAPE, _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_ESCAPE)
    before = sys.stderr
    try:
        log = Log(before)
    except OSError:  # of a program that calls `main` and has no descriptor for it
        yield
        return
    sys.stderr = cast(TextIO, log)
    try:
        yield
    finally:
        log.finish()
        sys.stderr = before


class Log:
    """A text stream whose lines a thread writes: one that cannot be written is counted, and waited for only briefly.

    The disk of a log may be full, its reader gone, or asleep. What waits is bounded; how many messages were lost is
    written when that is possible again.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor = stream.fileno()
        self._changed = threading.Condition()
        self._unfinished = ""
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._lost = 0
        self._is_stuck = False
        threading.Thread(target=self._write_waiting, name="log", daemon=True).start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Take a text; it is written with the end of its line, or with a flush."""
        with self._changed:
            self._unfinished += text
            if "\n" in text:
                self.flush()
        return len(text)

    def flush(self) -> None:
        """Let what was taken be written, and wait for a moment, unless the last wait was in vain."""
        with self._changed:
            data = self._unfinished.encode(self._stream.encoding, "backslashreplace")
            self._unfinished = ""
            if self._waiting_bytes + len(data) > _MAX_WAITING_BYTES:
                self._lost += 1
            elif data:
                self._add(data)
            if not self._is_stuck:
                self._is_stuck = not self._wait(_WAIT_S)

    def finish(self) -> None:
        """Wait for what was taken; no longer than a second."""
        self.flush()
        with self._changed:
            self._wait(_LAST_S)

    def _add(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        self._changed.notify_all()

    def _wait(self, within_s: float) -> bool:
        return self._changed.wait_for(lambda: not self._waiting, within_s)

    def _write_waiting(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                data = self._waiting[0]
            is_written = _write(self._descriptor, data)
            with self._changed:
                self._waiting.popleft()
                self._waiting_bytes -= len(data)
                self._lost += not is_written
                if is_written and self._lost and not self._waiting:
                    count = "A message was" if self._lost == 1 else f"{self._lost} messages were"
                    self._lost = 0
                    self._add(f"{count} lost before this line, because the log could not be written.\n".encode())
                self._is_stuck = self._is_stuck and bool(self._waiting)
                self._changed.notify_all()


def _write(descriptor: int, data: bytes) -> bool:
    """Write all of it, however long that takes; return whether it was possible."""
    rest = memoryview(data)
    try:
        while rest:
            select.select([], [descriptor], [])  # another process may have made the same pipe non-blocking
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        return False
    return True


def open_closed() -> None:
    """Take a closed stream for /dev/null."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It gets the lowest free number, that of the stream, which the next file would get otherwise.
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, mode, encoding="utf-8"))  # noqa: SIM115 - for the whole process


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Write what the encoding of a stream lacks as JSON does, in which some of our results are."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)), error.end
