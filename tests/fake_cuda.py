"""Modules that pretend to be `cuda.bindings.runtime` and `pycuda.driver`, on host memory; they record every call."""

# ruff: noqa: ARG002, N802, N815 - the names and signatures are NVIDIA's

import ctypes
import enum
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900


Kind = enum.IntEnum("Kind", "cudaMemcpyHostToDevice cudaMemcpyDeviceToHost")
Mode = enum.IntEnum("Mode", "cudaStreamCaptureModeThreadLocal cudaStreamCaptureModeRelaxed")


ON_STREAM = ("cudaStreamDestroy", "cudaStreamSynchronize", "cudaMemcpyAsync", "cudaStreamEndCapture", "cudaGraphLaunch")
"""Functions whose last argument is the stream."""


class FakeRuntime(ModuleType):
    """`cuda.bindings.runtime`; `fail` maps a function to the status that it returns from now on."""

    cudaError_t = Status
    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = Mode
    cudaHostAllocDefault = 0
    cudaStreamNonBlocking = 1
    STREAM = 77

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.calls: list[str] = []
        self.fail: dict[str, Status] = {}
        self.memory: dict[int, np.ndarray] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.open = {"stream": 0, "graph": 0, "executable": 0}

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        try:
            work = object.__getattribute__(self, f"do_{name}")
        except AttributeError:
            raise AttributeError(name) from None

        def function(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in ON_STREAM:
                assert arguments[-1] == self.STREAM
            failed = self.fail.get(name)
            if failed is not None:
                if name == "cudaStreamEndCapture":
                    self.capturing = None
                return (failed,) if name in ("cudaFree", "cudaMemcpyAsync", "cudaStreamSynchronize") else (failed, None)
            value = work(*arguments)
            return (Status.cudaSuccess,) if value is None else (Status.cudaSuccess, *value)

        return function

    def submit(self, kernel: Callable[[], None]) -> None:
        """Put a kernel on the stream."""
        if self.capturing is None:
            kernel()
        else:
            self.capturing.append(kernel)

    def do_cudaSetDevice(self, index: int) -> None:
        assert index == 0

    def do_cudaRuntimeGetVersion(self) -> tuple[int]:
        return (13000,)

    def do_cudaGetErrorString(self, status: Status) -> tuple[bytes]:
        return (status.name.encode(),)

    def do_cudaGetLastError(self) -> None:
        pass

    def do_cudaStreamCreateWithFlags(self, flags: int) -> tuple[int]:
        assert flags == self.cudaStreamNonBlocking
        self.open["stream"] += 1
        return (self.STREAM,)

    def do_cudaStreamDestroy(self, stream: int) -> None:
        self.open["stream"] -= 1

    def do_cudaStreamSynchronize(self, stream: int) -> None:
        assert self.capturing is None

    def do_cudaMalloc(self, nbytes: int) -> tuple[int]:
        array = np.full(nbytes, 0xA5, np.uint8)
        self.memory[array.ctypes.data] = array
        return (array.ctypes.data,)

    def do_cudaFree(self, address: int) -> None:
        del self.memory[address]

    def do_cudaHostAlloc(self, nbytes: int, flags: int) -> tuple[int]:
        assert flags == self.cudaHostAllocDefault
        return self.do_cudaMalloc(nbytes)

    do_cudaFreeHost = do_cudaFree

    def do_cudaMemcpyAsync(self, to: int, source: int, nbytes: int, kind: Kind, stream: int) -> None:
        assert isinstance(kind, Kind)
        ctypes.memmove(to, source, nbytes)

    def do_cudaMemGetInfo(self) -> tuple[int, int]:
        return 3 * 2**20, 8 * 2**30

    def do_cudaStreamBeginCapture(self, stream: int, mode: Mode) -> None:
        assert stream == self.STREAM
        assert mode is Mode.cudaStreamCaptureModeThreadLocal
        assert self.capturing is None
        self.capturing = []

    def do_cudaStreamEndCapture(self, stream: int) -> tuple[int]:
        assert self.capturing is not None
        number = len(self.graphs) + 1
        self.graphs[number], self.capturing = self.capturing, None
        self.open["graph"] += 1
        return (number,)

    def do_cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int]:
        assert flags == 0
        self.open["executable"] += 1
        return (graph,)

    def do_cudaGraphDestroy(self, graph: int) -> None:
        self.open["graph"] -= 1

    def do_cudaGraphLaunch(self, executable: int, stream: int) -> None:
        for kernel in self.graphs[executable]:
            kernel()

    def do_cudaGraphExecDestroy(self, executable: int) -> None:
        self.open["executable"] -= 1


class FakePycuda(ModuleType):
    """`pycuda.driver`; every function fails unless the primary context is current."""

    class Error(Exception): ...

    class MemoryError(Error): ...  # noqa: A001 - pycuda's name

    class LogicError(Error): ...

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.current = 0
        self.retained = 0
        self.fail: dict[str, Exception] = {}
        self.memory: dict[int, np.ndarray] = {}
        self.pinned = 0
        outer = self

        class Device:
            """The first GPU; its primary context is this object, too."""

            def __init__(self, index: int) -> None:
                assert index == 0

            def retain_primary_context(self) -> "Device":
                outer.retained += 1
                return self

            def push(self) -> None:
                outer.current += 1

            def pop(self) -> None:
                outer.current -= 1

            def detach(self) -> None:
                outer.retained -= 1

        class Stream:
            handle = FakeRuntime.STREAM

            def __init__(self, flags: int) -> None:
                outer.enter("Stream")
                assert flags == 1

            def synchronize(self) -> None:
                outer.enter("synchronize")

        self.Device, self.Stream = Device, Stream

    def enter(self, function: str) -> None:
        assert self.current > 0, f"{function} without a current context"
        if function in self.fail:
            raise self.fail[function]

    def init(self) -> None:
        if "init" in self.fail:
            raise self.fail["init"]

    def mem_alloc(self, nbytes: int) -> Any:
        self.enter("mem_alloc")
        array = np.full(nbytes, 0xA5, np.uint8)
        address = array.ctypes.data
        self.memory[address] = array

        class Allocation:
            def __int__(self) -> int:
                return address

            @staticmethod
            def free() -> None:
                self.enter("free")
                del self.memory[address]

        return Allocation()

    def mem_get_info(self) -> tuple[int, int]:
        self.enter("mem_get_info")
        return 3 * 2**20, 8 * 2**30

    def pagelocked_empty(self, shape: int, dtype: type) -> np.ndarray:
        self.enter("pagelocked_empty")
        self.pinned += 1

        class Pinned(np.ndarray):
            base = SimpleNamespace(free=self.unpin)  # pycuda's arrays have a HostAllocation there

        return np.zeros(shape, dtype).view(Pinned)

    def unpin(self) -> None:
        self.enter("unpin")
        self.pinned -= 1

    def memcpy_htod_async(self, to: int, source: np.ndarray, stream: Any) -> None:
        self.enter("memcpy_htod_async")
        assert isinstance(stream, self.Stream)
        ctypes.memmove(to, source.ctypes.data, source.nbytes)

    def memcpy_dtoh_async(self, to: np.ndarray, source: int, stream: Any) -> None:
        self.enter("memcpy_dtoh_async")
        assert isinstance(stream, self.Stream)
        ctypes.memmove(to.ctypes.data, source, to.nbytes)


def install_runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    runtime = FakeRuntime()
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = runtime  # type: ignore[attr-defined]  # a module of our making
    package = ModuleType("cuda")
    package.bindings = bindings  # type: ignore[attr-defined]  # see above
    for module in (package, bindings, runtime):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return runtime


def install_pycuda(monkeypatch: pytest.MonkeyPatch) -> FakePycuda:
    driver = FakePycuda()
    package = ModuleType("pycuda")
    package.driver = driver  # type: ignore[attr-defined]  # see above
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    return driver


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Pretend that these modules are not installed."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
