"""The process that reads a live source, so that a read that hangs can be killed: python -m ....capture_process FD FD.

The request comes as one line of JSON through stdin, for an address may hold a password and `ps` shows arguments. Frames
go into shared memory, announcements as lines of JSON into a pipe:

    {"opened": FPS}    {"frame": N, "at": OFFSET, "hw": [H, W], ...}    {"error": SENTENCE}    {"end": true}
"""

import contextlib
import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.live.sources.files import open_file
from fsvit_edge.live.sources.frame_memory import FrameWriter
from fsvit_edge.live.sources.opencv import (
    READ_TIMEOUT_MS,
    declared_fps,
    flipped,
    open_camera,
    open_csi,
    open_stream,
    read_bgr,
)
from fsvit_edge.live.sources.options import SourceOptions
from fsvit_edge.live.uri import SourceAddress
from fsvit_edge.runtime.errors import FsvitEdgeError, SourceError

FROZEN_S = 5.0
"""Identical pixels for so long are no picture of the world: a sensor has noise."""

# FFmpeg answers a frozen stream with "success" and an old frame twice before it admits the timeout (measured), so a
# read that took nearly the whole limit counts as the end, whatever it returned.
_STALL_S = 0.9 * READ_TIMEOUT_MS / 1e3
_CATCH_UP_S = 5.0
_DEFAULT_FPS = 25.0

_Bgr = npt.NDArray[np.uint8]


class _Announcer:
    """Says what happens in lines of JSON; never waits for a reader that is slow."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)

    def __call__(self, **message: Any) -> None:
        # A full pipe means that nobody has read for minutes; a line is short enough to be written whole or not at all.
        with contextlib.suppress(BlockingIOError):
            os.write(self._descriptor, json.dumps(message).encode() + b"\n")


def main() -> None:
    """Read the request and publish frames until the source ends, fails, or the parent goes."""
    memory, pipe = int(sys.argv[1]), int(sys.argv[2])
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    announce = _Announcer(pipe)
    address, options = SourceAddress(**request["address"]), SourceOptions(**request["options"])
    writer = FrameWriter(memory)
    try:
        if address.kind in ("path", "demo"):
            _play(address, options, writer, announce)
        else:
            _capture(address, options, writer, announce)
    except FsvitEdgeError as error:
        announce(error=str(error))
    except BrokenPipeError:
        pass
    except Exception as error:  # its text may hold an address with its password; its kind does not
        announce(error=f"{address.name} failed with {type(error).__name__}.")
    # Not the ordinary end: closing a stream whose camera has gone took 1 s (measured).
    os._exit(0)


def _end_with_the_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _capture(address: SourceAddress, options: SourceOptions, writer: FrameWriter, announce: _Announcer) -> None:
    capture = _open(address, options)
    fps = declared_fps(capture)
    announce(opened=fps)
    frozen = _FrozenWatch()
    for number, (bgr, captured_ns, decode_ms) in enumerate(_caught_up(_reads(address, capture), fps)):
        height, width = bgr.shape[:2]
        offset, slot = writer.slot(height, width)
        cv2.cvtColor(flipped(bgr, options.flip), cv2.COLOR_BGR2RGB, dst=slot)
        announce(
            frame=number,
            at=offset,
            hw=[height, width],
            captured_ns=captured_ns,
            decode_ms=round(decode_ms, 2),
            frozen=frozen(bgr, captured_ns),
        )


def _open(address: SourceAddress, options: SourceOptions) -> cv2.VideoCapture:
    size_and_rate = (options.width, options.height, options.fps)
    if address.kind == "camera":
        capture = open_camera(address.target, *size_and_rate)
        reason = "it is in use, unplugged, or delivers no pictures"
    elif address.kind == "csi":
        capture = open_csi(int(address.target), *size_and_rate)
        reason = "it is in use, not connected, or nvargus-daemon does not run"
    else:
        capture = open_stream(address.target)
        reason = "check the address, the password and that the camera is on"
    if not capture.isOpened():
        raise SourceError(f"{address.name} cannot be opened; {reason}.")
    return capture


def _reads(address: SourceAddress, capture: cv2.VideoCapture) -> Iterator[tuple[_Bgr, int, float]]:
    while True:
        started = time.monotonic()
        bgr = read_bgr(capture)
        taken_s = time.monotonic() - started
        if bgr is None or taken_s >= _STALL_S:
            raise SourceError(f"{address.name} stopped delivering frames; check the camera and its connection.")
        yield bgr, time.monotonic_ns(), taken_s * 1e3


def _caught_up(reads: Iterator[tuple[_Bgr, int, float]], fps: float | None) -> Iterator[tuple[_Bgr, int, float]]:
    """Leave out the first frames for as long as they come faster than the camera makes them: they are old.

    FFmpeg keeps what arrived while it looked at the stream: the first frame of an RTSP camera was 1.9 s old (measured).
    """
    until = time.monotonic() + _CATCH_UP_S
    period_ms = 1e3 / (fps or _DEFAULT_FPS)
    for read in reads:
        if read[2] >= 0.4 * period_ms or time.monotonic() > until:
            yield read
            break
    yield from reads


class _FrozenWatch:
    """Tells whether the same pixels have come for FROZEN_S."""

    def __init__(self) -> None:
        self._sum: int | None = None
        self._since_ns = 0

    def __call__(self, bgr: _Bgr, now_ns: int) -> bool:
        total = zlib.crc32(np.ascontiguousarray(bgr).data)
        if total != self._sum:
            self._sum, self._since_ns = total, now_ns
        return now_ns - self._since_ns >= FROZEN_S * 1e9


def _play(address: SourceAddress, options: SourceOptions, writer: FrameWriter, announce: _Announcer) -> None:
    """Play a file as a camera would; a frame is late by what decoding takes, never early."""
    with open_file(address, options) as source:
        fps = options.fps or source.fps or _DEFAULT_FPS
        announce(opened=fps)
        due = time.monotonic()
        for number, frame in enumerate(source):
            time.sleep(max(0.0, due - time.monotonic()))
            # Where decoding is slower than the pace, time that is lost is not made up for by a rush.
            due = max(due, time.monotonic() - 1 / fps) + 1 / fps
            height, width = frame.image.shape[:2]
            offset, slot = writer.slot(height, width)
            slot[:] = frame.image
            announce(
                frame=number,
                at=offset,
                hw=[height, width],
                captured_ns=time.monotonic_ns(),
                decode_ms=round(frame.decode_ms, 2),
                frozen=False,
            )
        announce(end=True)


if __name__ == "__main__":
    main()
