"""The channel from the capture process to the run: pixels in shared memory, messages through a pipe.

The memory is a memfd: it has no name, so nothing is left to clean up after a kill. Its slots are filled in turn, and a
slot is overwritten only after three newer frames were announced: a reader that copies a frame and then sees fewer
announcements has an intact copy. The system calls on the pipe also order the memory accesses on ARM.

Messages are lines of JSON:

    {"opened": FPS}    {"frame": {"number": N, ...}}    {"error": SENTENCE, "is_refused": BOOLEAN}
    {"problem": SENTENCE, "left_out": N}    {"end": true, "problem": SENTENCE, "left_out": N}
"""

import contextlib
import json
import mmap
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_SLOTS = 4
SAFE_FRAMES = _SLOTS - 1  # the pixels of a frame stay intact until this many newer ones have been announced

_Rgb = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SharedFrame:
    """A frame in the shared memory."""

    number: int  # position among the frames of its process, from 0
    offset: int  # position in the memory in bytes
    height: int
    width: int
    captured_ns: int  # monotonic
    decode_ms: float  # waiting, reading and decoding
    is_frozen: bool = False


class FrameReader:
    """The memory as the run sees it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._memory: mmap.mmap | None = None

    def copy(self, offset: int, height: int, width: int) -> _Rgb:
        """Copy a frame, (height, width, 3) uint8."""
        end = offset + height * width * 3
        if self._memory is None or end > len(self._memory):
            if self._memory is not None:
                self._memory.close()
            self._memory = mmap.mmap(self._descriptor, os.fstat(self._descriptor).st_size, prot=mmap.PROT_READ)
        pixels = np.frombuffer(self._memory, np.uint8, height * width * 3, offset)
        return np.array(pixels.reshape(height, width, 3))

    def close(self) -> None:
        """Release the memory."""
        if self._memory is not None:
            self._memory.close()
        os.close(self._descriptor)


class FrameSender:
    """The end of the channel in the capture process; never waits for a slow reader.

    `memory` is the file descriptor of a memfd, whose size is set here, and `pipe` that of the pipe.
    """

    def __init__(self, memory: int, pipe: int) -> None:
        self._descriptor = memory
        self._pipe = pipe
        self._memory: mmap.mmap | None = None
        self._start = 0
        self._slot_bytes = 0
        self._next_slot = 0
        self._number = 0
        self._place = (0, 0, 0)  # offset, height and width of the slot that was taken last
        os.set_blocking(pipe, False)

    def slot(self, height: int, width: int) -> _Rgb:
        """Take the place of the next frame: a (height, width, 3) uint8 view to fill."""
        needed = height * width * 3
        if self._memory is None or needed > self._slot_bytes:
            # After the present slots: the run may be copying from them.
            self._start += self._slot_bytes * _SLOTS
            self._slot_bytes = -(-needed // mmap.PAGESIZE) * mmap.PAGESIZE
            total = self._start + self._slot_bytes * _SLOTS
            os.ftruncate(self._descriptor, total)
            self._memory = mmap.mmap(self._descriptor, total)
        offset = self._start + self._next_slot * self._slot_bytes
        self._next_slot = (self._next_slot + 1) % _SLOTS
        self._place = (offset, height, width)
        return np.frombuffer(self._memory, np.uint8, needed, offset).reshape(height, width, 3)

    def send_frame(self, captured_ns: int, decode_ms: float, is_frozen: bool = False) -> None:
        """Announce the frame in the slot that was taken last."""
        frame = SharedFrame(self._number, *self._place, captured_ns, round(decode_ms, 2), is_frozen)
        self._number += 1
        self.send(frame=asdict(frame))

    def send(self, **message: Any) -> None:
        """Send a message; BrokenPipeError means that the run has ended."""
        # A full pipe means that nobody has read for minutes. A line this short is written entirely or not at all.
        with contextlib.suppress(BlockingIOError):
            os.write(self._pipe, json.dumps(message).encode() + b"\n")


class CaptureChild:
    """One capture process, seen from the run: its memory and its pipe, whose descriptors are appended to the command.

    The request is a line for its standard input. `pipe` can be waited on for messages; `has_ended` says whether the
    process has closed its end of it.
    """

    def __init__(self, command: Sequence[str], request: bytes) -> None:
        memory = os.memfd_create("fsvit-edge-frames", os.MFD_CLOEXEC)
        self.pipe, write_end = os.pipe()
        os.set_blocking(self.pipe, False)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module; no text from the user is in the command
                [*command, str(memory), str(write_end)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # FFmpeg prints addresses
                pass_fds=(memory, write_end),
                start_new_session=True,  # Ctrl-C is for the run, which ends the process
            )
        except OSError:
            os.close(memory)
            os.close(self.pipe)
            raise
        finally:
            os.close(write_end)
        self._reader = FrameReader(memory)
        self._rest = b""
        self.has_ended = False
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.has_ended = True

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self._process.pid

    def messages(self) -> list[dict[str, Any]]:
        """The messages since the last call; never blocks."""
        while not self.has_ended:
            try:
                data = os.read(self.pipe, 65536)
            except BlockingIOError:
                break
            self.has_ended = not data
            self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in lines]

    def copy(self, frame: SharedFrame) -> _Rgb:
        """Copy the pixels of a frame, (height, width, 3) uint8; check afterwards that they were still intact."""
        return self._reader.copy(frame.offset, frame.height, frame.width)

    def kill(self) -> None:
        """End the process, even if it hangs, and release everything."""
        self._process.kill()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        os.close(self.pipe)
        self._reader.close()

    def is_gone(self, within_s: float) -> bool:
        """Whether the process ends in time; if a driver hangs, even SIGKILL does not end it."""
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def end(self) -> str:
        """How it ended: its exit code, or the signal that ended it."""
        code = self._process.returncode
        return f"exit code {code}" if code is None or code >= 0 else f"signal {-code}: {signal.strsignal(-code)}"
