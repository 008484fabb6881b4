"""What a person gives in a file: a secret, a list, a key. It may be a pipe, as in `--sink @<(pass show camera)`."""

import errno
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from fsvit_edge.runtime.disk_steps import tell_once
from fsvit_edge.runtime.errors import InputError

_LIMIT_S = 60.0  # a program that writes into a pipe may ask for a password first
_PATIENCE_S, _POLL_S = 1.0, 0.02
_PIECE_BYTES = 1 << 20
_MAX_LINE_BYTES = 10_000


def read_given(path: Path, most_bytes: int) -> bytes:
    """Return what is in a file, or comes through a pipe until it is closed, but at most so many bytes.

    Opening a pipe as a file would wait for its writer without an end: here it is told what is waited for, and an
    OSError ends it if nothing comes for a minute.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        data, since_s = bytearray(), time.monotonic()
        while len(data) < most_bytes:
            piece = None
            with suppress(BlockingIOError):  # somebody may write into it
                piece = os.read(descriptor, min(most_bytes - len(data), _PIECE_BYTES))
            if piece:
                data += piece
                since_s = time.monotonic()
            elif piece is not None and (data or not is_pipe):
                break
            else:  # an empty pipe that nobody has opened yet reads as if it had ended
                _wait(path, time.monotonic() - since_s)
        return bytes(data)
    finally:
        os.close(descriptor)


def read_given_text(path: Path, what: str, most_bytes: int) -> str:
    """Return the same as text; an InputError, which begins with `what`, if it cannot be read, or is longer."""
    try:
        data = read_given(path, most_bytes + 1)
        if len(data) > most_bytes:
            raise InputError(f"{what} {path} cannot be read: it is longer than {most_bytes:,} bytes.")
        return data.decode("utf-8-sig")  # Windows puts a mark before the text
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"{what} {path} cannot be read: {reason}.") from error


def given_line(text: str) -> str:
    """The text, or the only line of FILE for "@FILE"; a user may see the commands of all others."""
    if not text.startswith("@"):
        return text
    lines = read_given_text(Path(text[1:]), "The file", _MAX_LINE_BYTES).split("\n")
    *others, line = [line.strip() for line in lines if line.strip()] or [""]
    if others or not line:
        raise InputError(f"The file {text[1:]} must have one line, got {len(others) + bool(line)}.")
    return line


def _wait(path: Path, waited_s: float) -> None:
    if waited_s >= _LIMIT_S:
        raise TimeoutError(errno.ETIMEDOUT, f"nothing came through this pipe for {_LIMIT_S:.0f} s", str(path))
    if waited_s >= _PATIENCE_S:
        tell_once(f"Waiting for what is written into {path}")
    time.sleep(_POLL_S)
