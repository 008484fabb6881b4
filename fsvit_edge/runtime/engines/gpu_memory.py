"""The interface of GPU memory, whichever package provides it, and what all of them share.

Everything runs on one stream of the primary context, which TensorRT and torch use too.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.engines.base import Array
from fsvit_edge.runtime.errors import FsvitEdgeError

Bytes = npt.NDArray[np.uint8]
_Memory = TypeVar("_Memory")

STAGING_BYTES = 4 * 2**20
"""Pinned buffer per direction. A frame, or masks of ten classes at 100 x 100, fit; more is copied in pieces."""
_MIB = 2**20


class DeviceBuffer:
    """Bytes on the device, freed when nothing refers to them any more."""

    def __init__(self, memory: "DeviceMemory", address: int, nbytes: int) -> None:
        self._memory = memory
        self.address = address  # aligned to 256 bytes; 0 once freed
        self.nbytes = nbytes

    def __del__(self) -> None:
        with suppress(Exception):  # nobody could catch it, and if the GPU is lost, others have reported it
            self._memory.release(self)


class CapturedGraph(Protocol):
    """Work that was recorded once and is repeated by one call: a CUDA graph."""

    def launch(self) -> None:
        """Put the work on the stream again; it reads and writes the addresses that were recorded."""

    def free(self) -> None:
        """Free the graph; a second call does nothing."""


class DeviceMemory(ABC):
    """Allocation, copies, one stream and captured graphs on the first GPU.

    Its methods raise FsvitEdgeError if the device is full, or fails. The memory closes when nothing refers to it or to
    a buffer of it any more; closing it earlier frees its buffers.
    """

    name: str  # of the package
    stream: int  # handle of the stream, for TensorRT; never the default stream, which waits for all others

    def __init__(self) -> None:
        self._live: set[int] = set()
        self._up: Bytes | None = None  # pinned, as is `_down`; made at the first copy
        self._down: Bytes | None = None
        self._is_up_busy = False
        self._is_closed = False

    def alloc(self, nbytes: int) -> DeviceBuffer:
        """Allocate; the contents are undefined."""
        address = self._reserve(self._allocate, max(nbytes, 1), "GPU's")
        self._live.add(address)
        return DeviceBuffer(self, address, nbytes)

    def release(self, buffer: DeviceBuffer) -> None:
        """Free a buffer of `alloc`; does nothing if it is free already."""
        if buffer.address in self._live:
            self._live.remove(buffer.address)
            self._release(buffer.address)
        buffer.address = 0

    def upload(self, array: Array, to: DeviceBuffer) -> None:
        """Copy an array of any memory layout to the device, in C order; it may be changed once this returns."""
        source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        assert source.nbytes <= to.nbytes
        staging = self._up = self._pinned() if self._up is None else self._up
        for start in range(0, source.nbytes, staging.nbytes):
            if self._is_up_busy:
                self.synchronize()
            piece = source[start : start + staging.nbytes]
            staging[: piece.nbytes] = piece
            self._copy_up(to.address + start, staging[: piece.nbytes])
            self._is_up_busy = True

    def download(self, buffer: DeviceBuffer, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Wait for the stream, then copy the start of a buffer to a new array on the host."""
        element = np.dtype(dtype)
        target = np.empty(math.prod(shape) * element.itemsize, np.uint8)
        assert target.nbytes <= buffer.nbytes
        staging = self._down = self._pinned() if self._down is None else self._down
        for start in range(0, target.nbytes, staging.nbytes):
            piece = staging[: min(staging.nbytes, target.nbytes - start)]
            self._copy_down(piece, buffer.address + start)
            self.synchronize()
            target[start : start + piece.nbytes] = piece
        return target.view(element).reshape(shape)

    def synchronize(self) -> None:
        """Wait until everything on the stream is done; fails if part of the work failed."""
        self._wait()
        self._is_up_busy = False

    def close(self) -> None:
        """Free everything that was allocated; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        # If the GPU is lost, every call fails and others have reported it.
        for address in sorted(self._live):
            with suppress(FsvitEdgeError):
                self._release(address)
        self._live.clear()
        for staging in (self._up, self._down):
            if staging is not None:
                with suppress(FsvitEdgeError):
                    self._unpin(staging)
        self._up = self._down = None
        with suppress(FsvitEdgeError):
            self._shut_down()

    def __del__(self) -> None:
        with suppress(Exception):  # as above; a half-made one lacks the attributes to free
            self.close()

    def _reserve(self, allocate: Callable[[int], _Memory], nbytes: int, whose: str) -> _Memory:
        try:
            return allocate(nbytes)
        except MemoryError as error:
            free, total = self.free_bytes()
            raise FsvitEdgeError(
                f"The {whose} memory is full: {-(-nbytes // _MIB)} MiB needed, {free // _MIB} of the GPU's "
                f"{total // _MIB} MiB free; close other programs that use the GPU, or use --engine onnxruntime."
            ) from error

    def _pinned(self) -> Bytes:
        return self._reserve(self._pin, STAGING_BYTES, "machine's pinned")

    # What each package does in its own way. `_allocate` and `_pin` raise MemoryError if there is no room.

    @abstractmethod
    def capture(self, work: Callable[[], None]) -> CapturedGraph | None:
        """Record what `work` puts on the stream, without running it; it must not wait or allocate.

        None if the package or the work cannot be captured, or the work failed; the stream is unchanged then.
        """

    @abstractmethod
    def free_bytes(self) -> tuple[int, int]:
        """Return the free and the total bytes of the device."""

    @abstractmethod
    def _allocate(self, nbytes: int) -> int: ...

    @abstractmethod
    def _release(self, address: int) -> None: ...  # once the stream no longer uses it

    @abstractmethod
    def _pin(self, nbytes: int) -> Bytes: ...  # page-locked host memory, which the device reads and writes itself

    @abstractmethod
    def _unpin(self, array: Bytes) -> None: ...

    @abstractmethod
    def _copy_up(self, address: int, pinned: Bytes) -> None: ...

    @abstractmethod
    def _copy_down(self, pinned: Bytes, address: int) -> None: ...

    @abstractmethod
    def _wait(self) -> None: ...

    @abstractmethod
    def _shut_down(self) -> None: ...


def device_failure(what: str, reason: str) -> FsvitEdgeError:
    """Return the error for a call that the device refused."""
    return FsvitEdgeError(f"The GPU failed during {what}: {reason.rstrip('. ')}; restart the program.")
