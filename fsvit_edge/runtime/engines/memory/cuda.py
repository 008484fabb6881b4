"""GPU memory by cuda-bindings, NVIDIA's own wheels."""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numpy.ctypeslib import as_array

from fsvit_edge.runtime.engines.memory.base import Bytes, CapturedGraph, DeviceMemory, device_failure
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError
from fsvit_edge.runtime.gpu import find_gpu


class CudaMemory(DeviceMemory):
    """`DeviceMemory` on the CUDA runtime, which retains the primary context itself.

    Raises:
        ImportError: cuda-bindings is not installed.
        EnvironmentLacksError: The driver is too old for cuda-bindings.
        FsvitEdgeError: The GPU fails.
    """

    name = "cuda-bindings"

    def __init__(self) -> None:
        from cuda.bindings import runtime

        super().__init__()
        self._cuda = runtime
        self._pinned_at: dict[int, int] = {}
        call(runtime, "cudaSetDevice", 0)
        self._stream = call(runtime, "cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream)

    def capture(self, work: Callable[[], None]) -> CapturedGraph | None:
        """Record with a stream capture."""
        return capture(self._cuda, self._stream, work)

    def free_bytes(self) -> tuple[int, int]:
        """Return the free and the total bytes, as the CUDA runtime reports them."""
        free, total = call(self._cuda, "cudaMemGetInfo")
        return free, total

    def _allocate(self, nbytes: int) -> int:
        return int(call(self._cuda, "cudaMalloc", nbytes))

    def _release(self, address: int) -> None:
        call(self._cuda, "cudaFree", address)

    def _pin(self, nbytes: int) -> Bytes:
        address = int(call(self._cuda, "cudaHostAlloc", nbytes, self._cuda.cudaHostAllocDefault))
        array: Bytes = as_array((ctypes.c_uint8 * nbytes).from_address(address))
        self._pinned_at[array.ctypes.data] = address
        return array

    def _unpin(self, array: Bytes) -> None:
        call(self._cuda, "cudaFreeHost", self._pinned_at.pop(array.ctypes.data))

    def _copy_up(self, address: int, pinned: Bytes) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(self._cuda, "cudaMemcpyAsync", address, pinned.ctypes.data, pinned.nbytes, kind, self._stream)

    def _copy_down(self, pinned: Bytes, address: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self._cuda, "cudaMemcpyAsync", pinned.ctypes.data, address, pinned.nbytes, kind, self._stream)

    def _wait(self) -> None:
        call(self._cuda, "cudaStreamSynchronize", self._stream)

    def _shut_down(self) -> None:
        call(self._cuda, "cudaStreamDestroy", self._stream)


class CudaGraph:
    """A CUDA graph, ready to launch."""

    def __init__(self, cuda: Any, executable: Any, stream: Any) -> None:
        self._cuda = cuda
        self._executable = executable
        self._stream = stream

    def launch(self) -> None:
        """Put the work on the stream again."""
        call(self._cuda, "cudaGraphLaunch", self._executable, self._stream)

    def free(self) -> None:
        """Free the graph; a second call does nothing."""
        executable, self._executable = self._executable, None
        if executable is not None:
            call(self._cuda, "cudaGraphExecDestroy", executable)

    def __del__(self) -> None:
        with suppress(Exception):  # nobody could catch it
            self.free()


def capture(cuda: Any, stream: Any, work: Callable[[], None]) -> CudaGraph | None:
    """Record what `work` puts on a stream; None if it cannot be captured.

    Args:
        cuda: The module `cuda.bindings.runtime`.
        stream: The stream or its handle; not the default stream.
        work: Puts work on the stream. It must not wait or allocate; an FsvitEdgeError ends the capture.
    """
    # Only this thread is restricted: other threads, or torch, may allocate meanwhile.
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    graph = None
    try:
        call(cuda, "cudaStreamBeginCapture", stream, mode)
        try:
            work()
        finally:
            # Must end the capture even if the work failed; it returns a graph only if nothing did.
            status, graph = cuda.cudaStreamEndCapture(stream)
        if int(status) != 0:
            raise device_failure("cudaStreamEndCapture", "the work cannot be captured")
        return CudaGraph(cuda, call(cuda, "cudaGraphInstantiate", graph, 0), stream)
    except (FsvitEdgeError, MemoryError):
        cuda.cudaGetLastError()  # clears the error, or TensorRT's or torch's next call would report it
        return None
    finally:
        if graph is not None:
            cuda.cudaGraphDestroy(graph)


def call(cuda: Any, function: str, *arguments: Any) -> Any:
    """Call a function of `cuda.bindings.runtime` and return its value, or its values if there are several.

    Raises:
        MemoryError: The device, or the machine's pinned memory, is full.
        EnvironmentLacksError: The driver is too old.
        FsvitEdgeError: The call failed for any other reason.
    """
    status, *values = getattr(cuda, function)(*arguments)
    if status == cuda.cudaError_t.cudaErrorMemoryAllocation:
        cuda.cudaGetLastError()
        raise MemoryError
    if status == cuda.cudaError_t.cudaErrorInsufficientDriver:
        raise EnvironmentLacksError(_too_old(cuda))
    if int(status) != 0:
        _, text = cuda.cudaGetErrorString(status)
        raise device_failure(function, text.decode())
    return values[0] if len(values) == 1 else values


def _too_old(cuda: Any) -> str:
    gpu = find_gpu()
    supported = "no CUDA" if gpu is None else f"CUDA {gpu.driver}"
    _, version = cuda.cudaRuntimeGetVersion()
    older = version // 1000 if gpu is None else int(gpu.driver.partition(".")[0]) + 1
    return (
        f"The NVIDIA driver supports {supported}, but the installed cuda-bindings needs CUDA {version // 1000}; "
        f'update the driver, or: pip install "cuda-bindings<{older}".'
    )
