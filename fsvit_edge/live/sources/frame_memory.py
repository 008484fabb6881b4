"""Frames from one process to another through shared memory: a few slots in turn, the newest one counts.

The memory is a memfd: it has no name, so nothing is left to clean up after a kill. A slot is written again only after
three newer frames were announced; whoever copies a frame and then sees fewer announcements has an untorn copy. The
announcements go through a pipe, whose system calls also order the memory accesses on ARM.
"""

import mmap
import os

import numpy as np
import numpy.typing as npt

_SLOTS = 4
SAFE_FRAMES = _SLOTS - 1
"""A frame's memory is untouched until so many newer ones have been announced."""


class FrameWriter:
    """The side of the process that captures.

    Args:
        descriptor: Of a memfd; its size is set here.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._memory: mmap.mmap | None = None
        self._start = 0
        self._slot_bytes = 0
        self._next = 0

    def slot(self, height: int, width: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """Take the next slot: its offset and a (height, width, 3) uint8 view to fill."""
        needed = height * width * 3
        if self._memory is None or needed > self._slot_bytes:
            # Behind the slots there were: somebody may be copying from those.
            self._start += self._slot_bytes * _SLOTS
            self._slot_bytes = -(-needed // mmap.PAGESIZE) * mmap.PAGESIZE
            total = self._start + self._slot_bytes * _SLOTS
            os.ftruncate(self._descriptor, total)
            self._memory = mmap.mmap(self._descriptor, total)
        offset = self._start + self._next * self._slot_bytes
        self._next = (self._next + 1) % _SLOTS
        view = np.frombuffer(self._memory, np.uint8, needed, offset)
        return offset, view.reshape(height, width, 3)


class FrameReader:
    """The side of the process that takes frames.

    Args:
        descriptor: Of the memfd; closed by `close`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._memory: mmap.mmap | None = None

    def copy(self, offset: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        """Copy an announced frame, (height, width, 3) uint8.

        Raises:
            ValueError: There is no such place in the memory.
        """
        end = offset + height * width * 3
        if self._memory is None or end > len(self._memory):
            if self._memory is not None:
                self._memory.close()
            self._memory = mmap.mmap(self._descriptor, os.fstat(self._descriptor).st_size, prot=mmap.PROT_READ)
        view = np.frombuffer(self._memory, np.uint8, height * width * 3, offset)
        return np.array(view.reshape(height, width, 3))

    def close(self) -> None:
        """Give the memory back."""
        if self._memory is not None:
            self._memory.close()
        os.close(self._descriptor)
