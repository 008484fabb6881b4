"""GPU memory by pycuda.

`pycuda.autoinit` is never used: it creates a second context besides the primary one of TensorRT and torch. pycuda has
no CUDA graphs, so a capture uses cuda-bindings, if they are installed, on pycuda's stream.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fsvit_edge.runtime.engines.memory.base import Bytes, CapturedGraph, DeviceMemory, device_failure
from fsvit_edge.runtime.engines.memory.cuda import CudaGraph, capture

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream does not wait for the default one."""


class PycudaMemory(DeviceMemory):
    """`DeviceMemory` on pycuda; the primary context is current only during a call, in whichever thread calls.

    Raises:
        ImportError: pycuda is not installed or lacks a library.
        FsvitEdgeError: The GPU fails.
    """

    name = "pycuda"

    def __init__(self) -> None:
        import pycuda.driver

        super().__init__()
        self._driver = pycuda.driver
        self._allocations: dict[int, Any] = {}
        try:
            self._driver.init()
            self._context: Any = self._driver.Device(0).retain_primary_context()
        except self._driver.Error as error:
            raise device_failure("initialization", str(error)) from error
        with self._current("initialization"):
            self._stream: Any = self._driver.Stream(_NON_BLOCKING)
        self._cuda_runtime: Any = _import_cuda_runtime()

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream.handle)

    def capture(self, work: Callable[[], None]) -> CapturedGraph | None:
        """Record with a stream capture of cuda-bindings; None without them."""
        if self._cuda_runtime is None:
            return None
        with self._current("a graph capture"):
            graph = capture(self._cuda_runtime, self.stream, work)
        return None if graph is None else _ContextGraph(self, graph)

    def free_bytes(self) -> tuple[int, int]:
        """Return the free and the total bytes, as the driver reports them."""
        with self._current("mem_get_info"):
            free, total = self._driver.mem_get_info()
        return free, total

    def _allocate(self, nbytes: int) -> int:
        with self._current("an allocation"):
            allocation = self._driver.mem_alloc(nbytes)
        address = int(allocation)
        self._allocations[address] = allocation
        return address

    def _release(self, address: int) -> None:
        with self._current("a release"):
            self._allocations.pop(address).free()

    def _pin(self, nbytes: int) -> Bytes:
        with self._current("an allocation"):
            array: Bytes = self._driver.pagelocked_empty(nbytes, np.uint8)
        return array

    def _unpin(self, array: Bytes) -> None:
        with self._current("a release"):
            array.base.free()  # type: ignore[union-attr]  # pycuda's HostAllocation

    def _copy_up(self, address: int, pinned: Bytes) -> None:
        with self._current("a copy to the device"):
            self._driver.memcpy_htod_async(address, pinned, self._stream)

    def _copy_down(self, pinned: Bytes, address: int) -> None:
        with self._current("a copy from the device"):
            self._driver.memcpy_dtoh_async(pinned, address, self._stream)

    def _wait(self) -> None:
        with self._current("synchronization"):
            self._stream.synchronize()

    def _shut_down(self) -> None:
        with self._current("shutdown"):
            self._stream = None
        self._context.detach()
        self._context = None

    @contextmanager
    def _current(self, what: str) -> Iterator[None]:
        """Make the context current, and turn pycuda's errors into ours."""
        try:
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()
        except self._driver.MemoryError as error:
            raise MemoryError from error
        except self._driver.Error as error:
            raise device_failure(what, str(error)) from error


class _ContextGraph:
    """A CUDA graph that runs in pycuda's context."""

    def __init__(self, memory: PycudaMemory, graph: CudaGraph) -> None:
        self._memory = memory
        self._graph = graph

    def launch(self) -> None:
        """Put the work on the stream again."""
        with self._memory._current("a graph launch"):
            self._graph.launch()

    def free(self) -> None:
        """Free the graph; a second call does nothing."""
        self._graph.free()


def _import_cuda_runtime() -> Any:
    """`cuda.bindings.runtime`; None if it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    return runtime
