"""GPU memory by the package that is installed: pycuda or cuda-bindings."""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.ctypeslib import as_array

from fsvit_edge.runtime.engines.gpu_memory import Bytes, CapturedGraph, DeviceMemory, device_failure
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError
from fsvit_edge.runtime.gpu import Gpu, find_gpu, gpu_missing_reason

MEMORY_PACKAGES = ("pycuda", "cuda-bindings")
"""In the order they are tried."""
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING, for pycuda: the stream does not wait for the default one."""


def open_device_memory(package: str | None = None) -> "DeviceMemory":
    """Open the memory of the first GPU with a package of `MEMORY_PACKAGES`; None for the first that is installed."""
    gpu = find_gpu()
    if gpu is None:
        raise EnvironmentLacksError(f"The GPU cannot be used: {gpu_missing_reason()}; use --engine onnxruntime.")
    candidates = MEMORY_PACKAGES if package is None else (package,)
    for candidate in candidates:
        with suppress(ImportError):
            return PycudaMemory() if candidate == "pycuda" else CudaMemory()
    raise EnvironmentLacksError(
        f"TensorRT needs {' or '.join(candidates)} to manage the GPU's memory, which is not installed; "
        f'try: pip install "cuda-bindings<{_first_too_new(gpu)}", or: pip install pycuda, or use --engine onnxruntime.'
    )


class CudaMemory(DeviceMemory):
    """`DeviceMemory` by cuda-bindings, NVIDIA's own wheels: on the CUDA runtime, which retains the primary context."""

    name = "cuda-bindings"

    def __init__(self) -> None:
        from cuda.bindings import runtime

        super().__init__()
        self._cuda = runtime
        self._call = partial(call, runtime)
        self._call("cudaSetDevice", 0)
        self._stream = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        self.stream = int(self._stream)

    def capture(self, work: Callable[[], None]) -> CapturedGraph | None:
        """Record with a stream capture."""
        return _capture(self._cuda, self._call, self._stream, work)

    def free_bytes(self) -> tuple[int, int]:
        """Return the free and the total bytes, as the CUDA runtime reports them."""
        free, total = self._call("cudaMemGetInfo")
        return free, total

    def _allocate(self, nbytes: int) -> int:
        return int(self._call("cudaMalloc", nbytes))

    def _release(self, address: int) -> None:
        self._call("cudaFree", address)

    def _pin(self, nbytes: int) -> Bytes:
        address = int(self._call("cudaHostAlloc", nbytes, self._cuda.cudaHostAllocDefault))
        array: Bytes = as_array((ctypes.c_uint8 * nbytes).from_address(address))
        return array

    def _unpin(self, array: Bytes) -> None:
        self._call("cudaFreeHost", array.ctypes.data)

    def _copy_up(self, address: int, pinned: Bytes) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, pinned.ctypes.data, pinned.nbytes, kind, self._stream)

    def _copy_down(self, pinned: Bytes, address: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", pinned.ctypes.data, address, pinned.nbytes, kind, self._stream)

    def _wait(self) -> None:
        self._call("cudaStreamSynchronize", self._stream)

    def _shut_down(self) -> None:
        self._call("cudaStreamDestroy", self._stream)


class PycudaMemory(DeviceMemory):
    """`DeviceMemory` by pycuda; the primary context is current only during a call, in whichever thread calls.

    `pycuda.autoinit` is never used: it creates a second context besides the primary one of TensorRT and torch. pycuda
    has no CUDA graphs, so a capture uses cuda-bindings, if they are installed, on pycuda's stream.
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
        self._stream: Any = self._call("initialization", self._driver.Stream, _NON_BLOCKING)
        self.stream = int(self._stream.handle)
        self._cuda: Any = None
        with suppress(ImportError):
            from cuda.bindings import runtime

            self._cuda = runtime

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function while the context is current, and turn pycuda's errors into ours."""
        try:
            self._context.push()
            try:
                return function(*arguments)
            finally:
                self._context.pop()
        except self._driver.MemoryError as error:
            raise MemoryError from error
        except self._driver.Error as error:
            raise device_failure(what, str(error)) from error

    def capture(self, work: Callable[[], None]) -> CapturedGraph | None:
        """Record with a stream capture of cuda-bindings; None without them."""
        if self._cuda is None:
            return None

        def call_in_context(function: str, *arguments: Any) -> Any:
            return self._call(function, call, self._cuda, function, *arguments)

        arguments = (self._cuda, call_in_context, self.stream, work)
        graph: CapturedGraph | None = self._call("a graph capture", _capture, *arguments)
        return graph

    def free_bytes(self) -> tuple[int, int]:
        """Return the free and the total bytes, as the driver reports them."""
        free, total = self._call("mem_get_info", self._driver.mem_get_info)
        return free, total

    def _allocate(self, nbytes: int) -> int:
        allocation = self._call("an allocation", self._driver.mem_alloc, nbytes)
        address = int(allocation)
        self._allocations[address] = allocation
        return address

    def _release(self, address: int) -> None:
        self._call("a release", self._allocations.pop(address).free)

    def _pin(self, nbytes: int) -> Bytes:
        array: Bytes = self._call("an allocation", self._driver.pagelocked_empty, nbytes, np.uint8)
        return array

    def _unpin(self, array: Bytes) -> None:
        self._call("a release", array.base.free)  # type: ignore[union-attr]  # pycuda's HostAllocation

    def _copy_up(self, address: int, pinned: Bytes) -> None:
        self._call("a copy to the device", self._driver.memcpy_htod_async, address, pinned, self._stream)

    def _copy_down(self, pinned: Bytes, address: int) -> None:
        self._call("a copy from the device", self._driver.memcpy_dtoh_async, pinned, address, self._stream)

    def _wait(self) -> None:
        self._call("synchronization", self._stream.synchronize)

    def _shut_down(self) -> None:
        self._call("shutdown", delattr, self, "_stream")  # pycuda destroys it with the last reference
        self._context.detach()
        self._context = None


class CudaGraph:
    """A CUDA graph, ready to launch; `run` calls a function of the CUDA runtime in the stream's context."""

    def __init__(self, run: Callable[..., Any], executable: Any, stream: Any) -> None:
        self._run = run
        self._executable = executable
        self._stream = stream

    def launch(self) -> None:
        """Put the work on the stream again."""
        self._run("cudaGraphLaunch", self._executable, self._stream)

    def free(self) -> None:
        """Free the graph; a second call does nothing."""
        executable, self._executable = self._executable, None
        if executable is not None:
            self._run("cudaGraphExecDestroy", executable)

    def __del__(self) -> None:
        with suppress(Exception):  # nobody could catch it
            self.free()


def _capture(cuda: Any, run: Callable[..., Any], stream: Any, work: Callable[[], None]) -> CudaGraph | None:
    """Record what `work` puts on a stream; None if it cannot be captured, or fails."""
    # Only this thread is restricted: other threads, or torch, may allocate meanwhile.
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    graph = None
    try:
        run("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        finally:
            # Must end the capture even if the work failed; it returns a graph only if nothing did.
            status, graph = cuda.cudaStreamEndCapture(stream)
        if int(status) != 0:
            raise device_failure("cudaStreamEndCapture", "the work cannot be captured")
        return CudaGraph(run, run("cudaGraphInstantiate", graph, 0), stream)
    except (FsvitEdgeError, MemoryError):
        cuda.cudaGetLastError()  # clears the error, or TensorRT's or torch's next call would report it
        return None
    finally:
        if graph is not None:
            cuda.cudaGraphDestroy(graph)


def call(cuda: Any, function: str, *arguments: Any) -> Any:
    """Call a function of `cuda.bindings.runtime` and return its value, or its values if there are several.

    Raises MemoryError if the device, or the machine's pinned memory, is full; any other failure is an error of ours.
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
    older = version // 1000 if gpu is None else _first_too_new(gpu)
    return (
        f"The NVIDIA driver supports {supported}, but the installed cuda-bindings needs CUDA {version // 1000}; "
        f'update the driver, or: pip install "cuda-bindings<{older}".'
    )


def _first_too_new(gpu: Gpu) -> int:
    """The major version of CUDA from which on cuda-bindings do not run on the driver."""
    return int(gpu.driver.partition(".")[0]) + 1
