"""Memory on the GPU behind one small interface, whoever provides it: pycuda, cuda.bindings, or a fake for tests.

Everything happens on one stream of the primary context, which TensorRT and torch use as well.
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
"""Of pinned memory in each direction: a frame and the answer for ten classes at 100 x 100 fit; more goes in pieces."""
_MIB = 2**20


class DeviceBuffer:
    """Bytes on the device, freed when nobody holds them any more.

    Attributes:
        address: On the device, aligned to 256 bytes.
        nbytes: Size.
    """

    def __init__(self, memory: "DeviceMemory", address: int, nbytes: int) -> None:
        self._memory = memory
        self.address = address
        self.nbytes = nbytes

    def free(self) -> None:
        """Give the memory back; a second call does nothing."""
        self._memory.release(self)

    def __del__(self) -> None:
        with suppress(Exception):  # nobody could catch it, and where the GPU is lost others have said so
            self.free()


class CapturedGraph(Protocol):
    """Work on the stream that was recorded once and is repeated by one call."""

    def launch(self) -> None:
        """Put the work on the stream once more; it reads and writes the addresses of the capture."""

    def free(self) -> None:
        """Free it; a second call does nothing."""


class DeviceMemory(ABC):
    """Allocation, copies, one stream and captured graphs on the first GPU.

    A backend supplies the abstract methods and raises Python's `MemoryError` where the device is full. It closes when
    nobody holds it or a buffer of it any more; where it is closed before, its buffers are gone.

    Attributes:
        name: What people call the backend.
        bytes_up: Copied from the host to the device so far.
        bytes_down: Copied from the device to the host so far.
    """

    name: str

    def __init__(self) -> None:
        self.bytes_up = 0
        self.bytes_down = 0
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
        """Free a buffer of `alloc`; one that is gone is left alone."""
        if buffer.address in self._live:
            self._live.remove(buffer.address)
            self._release(buffer.address)
        buffer.address = 0

    def upload(self, array: Array, to: DeviceBuffer) -> None:
        """Copy an array of any layout to the device, in C order; the array may be changed as soon as this returns.

        Raises:
            FsvitEdgeError: The device fails, or has no pinned memory.
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
        self.bytes_up += source.nbytes

    def download(self, buffer: DeviceBuffer, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Wait for the stream, then copy the beginning of a buffer to a new array on the host.

        Raises:
            FsvitEdgeError: The device fails, or has no pinned memory.
        """
        wanted = np.dtype(dtype)
        target = np.empty(math.prod(shape) * wanted.itemsize, np.uint8)
        assert target.nbytes <= buffer.nbytes
        staging = self._down = self._pinned() if self._down is None else self._down
        for start in range(0, target.nbytes, staging.nbytes):
            piece = staging[: min(staging.nbytes, target.nbytes - start)]
            self._copy_down(piece, buffer.address + start)
            self.synchronize()
            target[start : start + piece.nbytes] = piece
        self.bytes_down += target.nbytes
        return target.view(wanted).reshape(shape)

    def synchronize(self) -> None:
        """Wait until everything on the stream is done.

        Raises:
            FsvitEdgeError: Something of it failed.
        """
        self._wait()
        self._is_up_busy = False

    def close(self) -> None:
        """Free everything that was allocated here; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        live, self._live = self._live, set()
        for address in sorted(live):
            with suppress(FsvitEdgeError):  # where the GPU is lost every call fails, and others have said so
                self._release(address)
        for staging in (self._up, self._down):
            if staging is not None:
                with suppress(FsvitEdgeError):
                    self._unpin(staging)
        self._up = self._down = None
        with suppress(FsvitEdgeError):
            self._shut_down()

    def __del__(self) -> None:
        with suppress(Exception):  # as above; half made, it lacks what it would free
            self.close()

    @property
    @abstractmethod
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it; never the default stream, which would wait for everything."""

    @abstractmethod
    def capture(self, work: Callable[[], None]) -> CapturedGraph | None:
        """Record what `work` puts on the stream, without doing it.

        Returns:
            None where the backend cannot capture, or this work cannot be captured; the stream is as it was.
        """

    @abstractmethod
    def elapsed_ms(self, work: Callable[[], None]) -> float:
        """Measure by events how long the device takes for what `work` puts on the stream."""

    @abstractmethod
    def free_bytes(self) -> tuple[int, int]:
        """Return how many bytes of the device are free, and how many it has."""

    @abstractmethod
    def _allocate(self, nbytes: int) -> int:
        """Return the address of new memory."""

    @abstractmethod
    def _release(self, address: int) -> None:
        """Free memory of `_allocate`, once the stream no longer uses it."""

    @abstractmethod
    def _pin(self, nbytes: int) -> Bytes:
        """Return host memory that the device copies from and to by itself."""

    @abstractmethod
    def _unpin(self, array: Bytes) -> None:
        """Free memory of `_pin`."""

    @abstractmethod
    def _copy_up(self, address: int, pinned: Bytes) -> None:
        """Put a copy to the device on the stream."""

    @abstractmethod
    def _copy_down(self, pinned: Bytes, address: int) -> None:
        """Put a copy to the host on the stream."""

    @abstractmethod
    def _wait(self) -> None:
        """Wait for the stream."""

    @abstractmethod
    def _shut_down(self) -> None:
        """Free the stream and the context."""

    def _pinned(self) -> Bytes:
        try:
            return self._pin(STAGING_BYTES)
        except MemoryError as error:
            raise FsvitEdgeError(self._full(STAGING_BYTES, "machine's pinned")) from error

    def _full(self, nbytes: int, whose: str) -> str:
        free, total = self.free_bytes()
        return (
            f"The {whose} memory is full: {-(-nbytes // _MIB)} MiB are needed, {free // _MIB} of the GPU's "
            f"{total // _MIB} MiB are free; close other programs that use the GPU, or use --engine onnxruntime."
        )


def device_failure(what: str, reason: str) -> FsvitEdgeError:
    """What to raise where the device refuses a call, of whatever backend."""
    return FsvitEdgeError(f"The GPU failed at {what}: {reason.rstrip('. ')}; start the program again.")
