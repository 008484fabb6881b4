"""GPU memory made of host arrays, to test everything between the predictor and TensorRT without a GPU."""

from collections.abc import Callable

import numpy as np

from fsvit_edge.runtime.engines.gpu_memory import Bytes, CapturedGraph, DeviceMemory, device_failure
from fsvit_edge.runtime.errors import FsvitEdgeError

_ALIGNMENT = 256


class FakeMemory(DeviceMemory):
    """`DeviceMemory` on the host. A kernel is a function, given to `submit`.

    It refuses what would crash a GPU: a freed address, a copy or an allocation during a capture.
    """

    name = "fake"
    stream = 0x57EA

    def __init__(self, total_bytes: int = 2**30, can_capture: bool = True) -> None:
        super().__init__()
        self.total_bytes = total_bytes  # of the pretended device
        self.lost = ""  # why the device is lost, as the error at the next wait
        self._can_capture = can_capture
        self._arrays: dict[int, Bytes] = {}
        self._recording: list[Callable[[], None]] | None = None
        # So far, or in use now.
        self.bytes_up = self.bytes_down = self.allocated_bytes = self.captures = self.launches = 0

    @property
    def is_capturing(self) -> bool:
        return self._recording is not None

    def submit(self, kernel: Callable[[], None]) -> None:
        """Run a kernel now, or at each launch if a capture is on."""
        if self._recording is None:
            kernel()
        else:
            self._recording.append(kernel)

    def view(self, address: int, nbytes: int) -> Bytes:
        """Return the bytes at an address, as a kernel sees them."""
        array = self._arrays.get(address)
        assert array is not None, f"address {address:#x} is not allocated, or was freed"
        assert nbytes <= array.nbytes, f"{nbytes} bytes at {address:#x}, where there are {array.nbytes}"
        return array[:nbytes]

    def capture(self, work: Callable[[], None]) -> CapturedGraph | None:
        if not self._can_capture:
            return None
        kernels: list[Callable[[], None]] = []
        self._recording = kernels
        try:
            work()
        except FsvitEdgeError:
            return None
        finally:
            self._recording = None
        self.captures += 1
        return _FakeGraph(self, kernels)

    def free_bytes(self) -> tuple[int, int]:
        return self.total_bytes - self.allocated_bytes, self.total_bytes

    def _allocate(self, nbytes: int) -> int:
        self._refuse_during_capture("an allocation")
        if self.allocated_bytes + nbytes > self.total_bytes:
            raise MemoryError
        whole = np.full(nbytes + _ALIGNMENT, 0xA5, np.uint8)
        offset = -whole.ctypes.data % _ALIGNMENT
        array = whole[offset : offset + nbytes]
        self._arrays[array.ctypes.data] = array
        self.allocated_bytes += nbytes
        return array.ctypes.data

    def _release(self, address: int) -> None:
        self.allocated_bytes -= self._arrays.pop(address).nbytes

    def _pin(self, nbytes: int) -> Bytes:
        return np.zeros(nbytes, np.uint8)

    def _unpin(self, array: Bytes) -> None:
        array.fill(0)

    def _copy_up(self, address: int, pinned: Bytes) -> None:
        self._refuse_during_capture("a copy")
        self._at(address, pinned.nbytes)[:] = pinned
        self.bytes_up += pinned.nbytes

    def _copy_down(self, pinned: Bytes, address: int) -> None:
        self._refuse_during_capture("a copy")
        pinned[:] = self._at(address, pinned.nbytes)
        self.bytes_down += pinned.nbytes

    def _wait(self) -> None:
        self._refuse_during_capture("waiting")
        if self.lost:
            raise device_failure("cudaStreamSynchronize", self.lost)

    def _shut_down(self) -> None:
        pass

    def _at(self, address: int, nbytes: int) -> Bytes:
        """Bytes at an address that may lie within an allocation."""
        for start, array in self._arrays.items():
            if start <= address and address + nbytes <= start + array.nbytes:
                return array[address - start : address - start + nbytes]
        raise AssertionError(f"address {address:#x} is not allocated, or was freed")

    def _refuse_during_capture(self, what: str) -> None:
        assert self._recording is None, f"{what} during a capture"


class _FakeGraph:
    def __init__(self, memory: FakeMemory, kernels: list[Callable[[], None]]) -> None:
        self._memory = memory
        self._kernels = kernels

    def launch(self) -> None:
        self._memory.launches += 1
        for kernel in self._kernels:
            kernel()

    def free(self) -> None:
        self._kernels = []
