"""The interface of GPU memory, whichever package provides it, and what all of them share.

Everything runs on one stream of the primary context, which TensorRT and torch use too.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.engines.base import Array
from fsvit_edge.runtime.errors import FsvitEdgeError

Bytes = npt.NDArray[np.uint8]

STAGING_BYTES = 4 * 2**20
"""Pinned buffer per direction. A frame, or masks of ten classes at 100 x 100, fit; more is copied in pieces."""
_MIB = 2**20


class DeviceBuffer:
    """Bytes on the device, freed when nothing refers to them any more.

    Attributes:
        address: Device address, aligned to 256 bytes; 0 once freed.
        nbytes: Size in bytes.
    """

    def __init__(self, memory: "DeviceMemory", address: int, nbytes: int) -> None:
        self._memory = memory
        self.address = address
        self.nbytes = nbytes

    def free(self) -> None:
        """Free the memory; a second call does nothing."""
        self._memory.release(self)

    def __del__(self) -> None:
        with suppress(Exception):  # nobody could catch it, and if the GPU is lost, others have reported it
            self.free()


class CapturedGraph(Protocol):
    """Work that was recorded once and is repeated by one call: a CUDA graph."""

    def launch(self) -> None:
        """Put the work on the stream again; it reads and writes the addresses that were recorded."""

    def free(self) -> None:
        """Free the graph; a second call does nothing."""


class DeviceMemory(ABC):
    """Allocation, copies, one stream and captured graphs on the first GPU.

    A subclass provides the abstract methods and raises Python's `MemoryError` if the device is full. The memory closes
    when nothing refers to it or to a buffer of it any more; closing it earlier frees its buffers.

    Attributes:
        name: Name of the package.
    """

    name: str

    def __init__(self) -> None:
        self._live: set[int] = set()
        self._up: Bytes | None = None
        self._down: Bytes | None = None
        self._is_up_busy = False
        self._is_closed = False

    def alloc(self, nbytes: int) -> DeviceBuffer:
        """Allocate; the contents are undefined.

        Raises:
            FsvitEdgeError: The device is full, or fails.
        """
        try:
            address = self._allocate(max(nbytes, 1))
        except MemoryError as error:
            raise FsvitEdgeError(self._full(nbytes, "GPU's")) from error
        self._live.add(address)
        return DeviceBuffer(self, address, nbytes)

    def release(self, buffer: DeviceBuffer) -> None:
        """Free a buffer of `alloc`; does nothing if it is free already."""
        if buffer.address in self._live:
            self._live.remove(buffer.address)
            self._release(buffer.address)
        buffer.address = 0

    def upload(self, array: Array, to: DeviceBuffer) -> None:
        """Copy an array of any memory layout to the device, in C order; it may be changed once this returns.

        Raises:
            FsvitEdgeError: The device fails, or there is no pinned memory left.
        """
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
        """Wait for the stream, then copy the start of a buffer to a new array on the host.

        Raises:
            FsvitEdgeError: The device fails, or there is no pinned memory left.
        """
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
        """Wait until everything on the stream is done.

        Raises:
            FsvitEdgeError: Part of the work failed.
        """
        self._wait()
        self._is_up_busy = False

    def close(self) -> None:
        """Free everything that was allocated; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        live, self._live = self._live, set()
        for address in sorted(live):
            with suppress(FsvitEdgeError):  # if the GPU is lost, every call fails and others have reported it
                self._release(address)
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

    @property
    @abstractmethod
    def stream(self) -> int:
        """Handle of the stream, for TensorRT; never the default stream, which waits for all others."""

    @abstractmethod
    def capture(self, work: Callable[[], None]) -> CapturedGraph | None:
        """Record what `work` puts on the stream, without running it.

        Returns:
            None if the package or the work cannot be captured; the stream is unchanged then.
        """

    @abstractmethod
    def free_bytes(self) -> tuple[int, int]:
        """Return the free and the total bytes of the device."""

    @abstractmethod
    def _allocate(self, nbytes: int) -> int:
        """Allocate and return the address."""

    @abstractmethod
    def _release(self, address: int) -> None:
        """Free memory of `_allocate` once the stream no longer uses it."""

    @abstractmethod
    def _pin(self, nbytes: int) -> Bytes:
        """Return page-locked host memory, which the device can read and write itself."""

    @abstractmethod
    def _unpin(self, array: Bytes) -> None:
        """Free memory of `_pin`."""

    @abstractmethod
    def _copy_up(self, address: int, pinned: Bytes) -> None:
        """Put a copy from the host to the device on the stream."""

    @abstractmethod
    def _copy_down(self, pinned: Bytes, address: int) -> None:
        """Put a copy from the device to the host on the stream."""

    @abstractmethod
    def _wait(self) -> None:
        """Wait until the stream is done."""

    @abstractmethod
    def _shut_down(self) -> None:
        """Destroy the stream and release the context."""

    def _pinned(self) -> Bytes:
        try:
            return self._pin(STAGING_BYTES)
        except MemoryError as error:
            raise FsvitEdgeError(self._full(STAGING_BYTES, "machine's pinned")) from error

    def _full(self, nbytes: int, whose: str) -> str:
        free, total = self.free_bytes()
        return (
            f"The {whose} memory is full: {-(-nbytes // _MIB)} MiB needed, {free // _MIB} of the GPU's "
            f"{total // _MIB} MiB free; close other programs that use the GPU, or use --engine onnxruntime."
        )


def device_failure(what: str, reason: str) -> FsvitEdgeError:
    """Return the error for a call that the device refused."""
    return FsvitEdgeError(f"The GPU failed during {what}: {reason.rstrip('. ')}; restart the program.")
