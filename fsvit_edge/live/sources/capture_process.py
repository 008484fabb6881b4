"""The process that captures a live source, so that a read that hangs can be killed; `live` starts it with FD FD.

The request comes as one line of JSON through stdin, because an address may contain a password and `ps` shows arguments.
Frames and messages leave through a `frame_channel`, whose two file descriptors are the arguments.
"""

import ctypes
import json
import os
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.live.opencv import (
    LOG_ERRORS,
    READ_TIMEOUT_MS,
    check_frame_size,
    declared_fps,
    declared_size_hw,
    flipped,
    open_camera,
    open_csi,
    open_stream,
    read_bgr,
)
from fsvit_edge.live.sources.base import DEFAULT_FPS, SourceOptions
from fsvit_edge.live.sources.files import open_file
from fsvit_edge.live.sources.frame_channel import FrameSender
from fsvit_edge.live.sources.mjpeg import AccessRefusedError, MjpegStream, error_of_status
from fsvit_edge.live.uri import SourceAddress
from fsvit_edge.runtime.errors import FsvitEdgeError, SourceError

FROZEN_S = 5.0  # identical pixels for this long mean a frozen camera: a real sensor has noise
# A read that takes this long counts as the end, whatever it returns: FFmpeg answers a frozen stream twice with
# "success" and an old frame before it reports the timeout (measured).
STALL_S = 0.9 * READ_TIMEOUT_MS / 1e3
_REFUSAL = re.compile(rb"method [A-Z]+ failed: (40[13])\b")  # in FFmpeg's log; OpenCV says only that it failed
_ROW_STEP = 16  # between two rows that are compared in every frame
CATCH_UP_S = 5.0  # how long old frames at the start may be skipped
_LOG_BYTES = 65536

_Bgr = npt.NDArray[np.uint8]
_Read = Callable[[], _Bgr | None]


def main() -> None:
    """Read the request and send frames until the source ends or fails, or the run ends."""
    sender = FrameSender(int(sys.argv[1]), int(sys.argv[2]))
    # OpenCV's threads spin after each conversion: a third of this process's time at 640x360, and no frame is faster.
    cv2.setNumThreads(1)
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_exit_with_run, daemon=True).start()
    address, options = SourceAddress(**request["address"]), SourceOptions(**request["options"])
    sender.send(started=True)
    try:
        if address.is_stored:
            _play(address, options, sender)
        else:
            capture(address, options, sender)
    except FsvitEdgeError as error:
        sender.send(error=str(error), is_refused=isinstance(error, AccessRefusedError))
    except BrokenPipeError:
        pass
    except Exception as error:  # its text may contain an address with its password; its type does not
        sender.send(error=f"{address.name} failed with {type(error).__name__}.")
    # Not a normal exit: closing a stream whose camera was gone took 1 s (measured).
    os._exit(0)


def _exit_with_run() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def capture(address: SourceAddress, options: SourceOptions, sender: FrameSender) -> None:
    """Send the frames of a camera or stream until it fails, with SourceError, or the run ends, with BrokenPipeError."""
    read, fps = _open(address, options)
    sender.send(opened=fps)
    detector = FrozenDetector()
    for bgr, captured_ns, decode_ms in _skip_old(_reads(address, read), fps):
        check_frame_size(address.name, *bgr.shape[:2])
        slot = sender.slot(*bgr.shape[:2])
        cv2.cvtColor(flipped(bgr, options.flip), cv2.COLOR_BGR2RGB, dst=slot)
        sender.send_frame(captured_ns, decode_ms, detector.is_frozen(bgr, captured_ns))


def _open(address: SourceAddress, options: SourceOptions) -> tuple[_Read, float | None]:
    """Open a source: what reads its next frame, and the frames per second that it declares."""
    if address.kind == "http":
        return MjpegStream(address).read, None
    size_and_rate = (options.width, options.height, options.fps)
    if address.kind == "camera":
        video = open_camera(address.target, *size_and_rate)
        reason = "it is in use, unplugged, or delivers no pictures"
    elif address.kind == "csi":
        video = open_csi(int(address.target), *size_and_rate)
        reason = "it is in use, not connected, or nvargus-daemon is not running"
    else:
        with _caught_output() as printed:
            video = open_stream(address.target, LOG_ERRORS)
            refusal = None if video.isOpened() else _REFUSAL.search(printed())
        if refusal is not None:
            raise error_of_status(address.name, int(refusal[1]))
        reason = "check the address and the password, and that the camera is on"
    if not video.isOpened():
        raise SourceError(f"{address.name} cannot be opened; {reason}.")
    check_frame_size(address.name, *declared_size_hw(video))
    return lambda: read_bgr(video), declared_fps(video)


@contextmanager
def _caught_output() -> Iterator[Callable[[], bytes]]:
    """Catch what C libraries print to standard output, which this process uses for nothing."""
    caught, kept = os.memfd_create("fsvit-edge-log", os.MFD_CLOEXEC), os.dup(1)
    flush_all = ctypes.CDLL(None).fflush

    def printed() -> bytes:
        flush_all(None)
        return os.pread(caught, _LOG_BYTES, 0)

    os.dup2(caught, 1)
    try:
        yield printed
    finally:
        flush_all(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(caught)


def _reads(address: SourceAddress, read: _Read) -> Iterator[tuple[_Bgr, int, float]]:
    """Yield each frame with its monotonic nanoseconds and the milliseconds that reading it took."""
    while True:
        started = time.monotonic()
        bgr = read()
        taken_s = time.monotonic() - started
        if bgr is None or taken_s >= STALL_S:
            raise SourceError(f"{address.name} stopped delivering frames; check the camera and its connection.")
        yield bgr, time.monotonic_ns(), taken_s * 1e3


def _skip_old(reads: Iterator[tuple[_Bgr, int, float]], fps: float | None) -> Iterator[tuple[_Bgr, int, float]]:
    """Skip the first frames while they arrive faster than the camera makes them: they are old.

    FFmpeg keeps what arrives while it probes the stream: the first frame of an RTSP camera was 1.9 s old (measured).
    """
    until = time.monotonic() + CATCH_UP_S
    period_ms = 1e3 / (fps or DEFAULT_FPS)
    for read in reads:
        if read[2] >= 0.4 * period_ms or time.monotonic() > until:
            yield read
            break
    yield from reads


class FrozenDetector:
    """Tells whether a camera has delivered the same pixels for FROZEN_S.

    It compares all rows only while some rows stay the same: their checksum took a fifth of the process's time at
    1920x1080.
    """

    def __init__(self) -> None:
        self._some_rows: int | None = None
        self._all_rows: int | None = None  # None before the second frame with the same `_some_rows`
        self._since_ns = 0

    def is_frozen(self, bgr: _Bgr, now_ns: int) -> bool:
        """Check the next frame, (H, W, 3) uint8, at its monotonic nanoseconds."""
        some_rows = _checksum(bgr[::_ROW_STEP])
        if some_rows != self._some_rows:
            self._some_rows, self._all_rows, self._since_ns = some_rows, None, now_ns
            return False
        all_rows = _checksum(bgr)
        if self._all_rows not in (None, all_rows):
            self._since_ns = now_ns
        self._all_rows = all_rows
        return now_ns - self._since_ns >= FROZEN_S * 1e9


def _checksum(bgr: _Bgr) -> int:
    return zlib.crc32(np.ascontiguousarray(bgr).data)


def _play(address: SourceAddress, options: SourceOptions, sender: FrameSender) -> None:
    """Play a file like a camera; slow decoding makes a frame late, but none is early."""
    with open_file(address, options) as source:
        fps = options.fps or source.fps or DEFAULT_FPS
        sender.send(opened=fps)
        due, problem = time.monotonic(), ""
        for frame in source:
            if source.problem != problem:  # before the end, because a loop has none
                problem = source.problem
                sender.send(problem=problem, left_out=source.status.left_out)
            time.sleep(max(0.0, due - time.monotonic()))
            # If decoding is slower than the frame rate, later frames do not rush to make up for it.
            due = max(due, time.monotonic() - 1 / fps) + 1 / fps
            sender.slot(*frame.image.shape[:2])[:] = frame.image
            sender.send_frame(time.monotonic_ns(), frame.decode_ms)
        sender.send(end=True, problem=source.problem, left_out=source.status.left_out)
