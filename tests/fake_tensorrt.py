"""A module that pretends to be TensorRT: its plans name an ONNX graph, which ONNX Runtime runs on a FakeMemory."""

# ruff: noqa: N802 - the names are NVIDIA's

import enum
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime
from engine_records import MANIFEST, record
from fake_memory import FakeMemory

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE
from fsvit_edge.runtime.engines.base import TensorSpec
from fsvit_edge.runtime.engines.files import EngineRecord
from fsvit_edge.runtime.engines.tensorrt_api import TensorRT

FROM_HALF = ("tokens", "norms", "class_token", "class_query", "image_keys", "kept", "pooled")
TYPES = {"float32": "FLOAT", "float16": "HALF", "uint8": "UINT8"}
HEADER_SIZE = 64
SCRATCH_PER_SUPPORT = 1000


TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
DataType = enum.Enum("DataType", "FLOAT HALF UINT8")
Severity = enum.Enum("Severity", "ERROR WARNING")
ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", "STATIC USER_MANAGED")
CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
EngineValidity = enum.Enum("EngineValidity", "VALID SUBOPTIMAL INVALID")
EngineInvalidityDiagnostics = enum.IntFlag(
    "EngineInvalidityDiagnostics",
    "VERSION_MISMATCH UNSUPPORTED_CC OLD_CUDA_DRIVER OLD_CUDA_RUNTIME INSUFFICIENT_GPU_MEMORY MALFORMED_ENGINE "
    "CUDA_ERROR NEW_IN_NEXT_VERSION",
)


class ILogger: ...


class FakeTensorRT:
    """The module `tensorrt` or `tensorrt_rtx`; addresses belong to `memory`, on which kernels run."""

    TensorIOMode, DataType, ILogger = TensorIOMode, DataType, ILogger
    ExecutionContextAllocationStrategy, CudaGraphStrategy = ExecutionContextAllocationStrategy, CudaGraphStrategy
    EngineValidity, EngineInvalidityDiagnostics = EngineValidity, EngineInvalidityDiagnostics

    def __init__(self, memory: FakeMemory) -> None:
        self.memory = memory
        self.fail: dict[str, Any] = {}  # methods that fail, with what they return: None, False or 0
        self.log = ""  # the error that is logged before such a failure
        self.calls: list[str] = []
        self.contexts: list[Context] = []
        self.compiled = 0  # kernels: one for each context that found none in its cache (RTX)
        self.logger: Any = None
        self.validity: tuple[EngineValidity, int] = (EngineValidity.VALID, 0)
        self.driver = "580.1"

    def Runtime(self, logger: Any) -> "Runtime":
        self.logger = logger
        return Runtime(self)

    def answer(self, method: str, right: Callable[[], Any]) -> Any:
        self.calls.append(method)
        if method in self.fail:
            if self.log:
                self.logger.log(Severity.ERROR, self.log)
            return self.fail[method]
        return right()


@dataclass
class Runtime:
    trt: FakeTensorRT
    engine_header_size = HEADER_SIZE

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        return self.trt.answer("deserialize_cuda_engine", lambda: Engine(self.trt, plan))

    def get_engine_validity(self, header: bytes) -> tuple[EngineValidity, int]:
        assert len(header) == HEADER_SIZE, "the header is enough"
        self.trt.calls.append("get_engine_validity")
        return self.trt.validity


@functools.cache
def opened(graph: str) -> onnxruntime.InferenceSession:
    """What computes a graph; it keeps nothing from run to run, so all fakes share it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class Engine:
    def __init__(self, trt: FakeTensorRT, plan: bytes) -> None:
        self.trt = trt
        content = json.loads(plan[HEADER_SIZE:])
        self.tensors = [
            (mode, TensorSpec(name, tuple(shape), dtype)) for mode, name, shape, dtype in content["tensors"]
        ]
        self.limits: dict[str, int] = content["limits"]
        self.session = opened(content["onnx"])
        self.num_io_tensors = len(self.tensors)
        self.device_memory_size_v2 = SCRATCH_PER_SUPPORT * self.limits.get("supports", 1)

    def spec(self, name: str) -> TensorSpec:
        return next(spec for _, spec in self.tensors if spec.name == name)

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index][1].name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return next(TensorIOMode[mode] for mode, spec in self.tensors if spec.name == name)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[TYPES[self.spec(name).dtype]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(size, str) else size for size in self.spec(name).shape)

    def create_execution_context(self, how: Any) -> Any:
        def right() -> Context:
            if isinstance(how, RuntimeConfig):
                assert how.allocation is ExecutionContextAllocationStrategy.USER_MANAGED
                assert how.cache is not None
                if not how.cache.kernels:
                    self.trt.compiled += 1
                    how.cache.kernels = b"kernels"
            else:
                assert how is ExecutionContextAllocationStrategy.USER_MANAGED
            self.trt.contexts.append(Context(self, how))
            return self.trt.contexts[-1]

        return self.trt.answer("create_execution_context", right)

    def create_runtime_config(self) -> "RuntimeConfig":
        return RuntimeConfig(self.trt)


@dataclass
class RuntimeConfig:
    trt: FakeTensorRT
    allocation: Any = None
    cuda_graph_strategy: Any = None
    cache: "RuntimeCache | None" = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> "RuntimeCache":
        return RuntimeCache(self.trt)

    def set_runtime_cache(self, cache: "RuntimeCache") -> None:
        self.cache = cache


@dataclass
class RuntimeCache:
    """Its kernels are valid only for the driver that they were compiled with."""

    trt: FakeTensorRT
    kernels: bytes = b""

    def deserialize(self, blob: bytes) -> bool:
        driver, _, kernels = blob.partition(b"|")
        if driver != self.trt.driver.encode():
            return False
        self.kernels = kernels
        return True

    def serialize(self) -> bytes:
        return self.trt.driver.encode() + b"|" + self.kernels


class Context:
    """An execution context; it refuses what TensorRT's documentation calls undefined."""

    def __init__(self, engine: Engine, how: Any) -> None:
        self.engine = engine
        self.trt = engine.trt
        self.memory = engine.trt.memory
        self.how = how
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.is_new = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> Any:
        def right() -> bool:
            for want, got in zip(self.engine.spec(name).shape, shape, strict=True):
                if isinstance(want, str) and got > self.engine.limits[want]:
                    return False
            self.is_new = self.is_new or self.shapes.get(name) != shape
            self.shapes[name] = shape
            return True

        return self.trt.answer("set_input_shape", right)

    def sizes(self) -> dict[str, int]:
        return {
            size: got
            for name, shape in self.shapes.items()
            for size, got in zip(self.engine.spec(name).shape, shape, strict=True)
            if isinstance(size, str)
        }

    def get_tensor_shape(self, name: str) -> Any:
        sizes = self.sizes()
        right = tuple(sizes[size] if isinstance(size, str) else size for size in self.engine.spec(name).shape)
        return self.trt.answer("get_tensor_shape", lambda: right)

    def update_device_memory_size_for_shapes(self) -> int:
        assert len(self.shapes) == sum(mode == "INPUT" for mode, _ in self.engine.tensors)
        return int(self.trt.answer("update_device_memory_size_for_shapes", self.needed))

    def needed(self) -> int:
        return SCRATCH_PER_SUPPORT * self.sizes().get("supports", 1)

    def set_device_memory(self, address: int, nbytes: int) -> None:
        self.scratch = (address, nbytes)

    def set_tensor_address(self, name: str, address: int) -> Any:
        self.addresses[name] = address
        return self.trt.answer("set_tensor_address", lambda: True)

    def execute_async_v3(self, stream_handle: int) -> Any:
        return self.trt.answer("execute_async_v3", lambda: self._execute(stream_handle))

    def _execute(self, stream: int) -> bool:
        assert stream == self.memory.stream
        assert self.scratch[1] >= self.needed()
        if self.memory.is_capturing and self.is_new:
            return False  # the first run with new shapes does work that cannot be captured
        if not self.memory.is_capturing:
            self.is_new = False
        shapes, addresses, scratch = dict(self.shapes), dict(self.addresses), self.scratch
        sizes = self.sizes()

        def kernel() -> None:
            self.memory.view(*scratch)[:] = 0xEE
            feed = {}
            for mode, spec in self.engine.tensors:
                if mode == "INPUT":
                    nbytes = int(np.prod(shapes[spec.name])) * np.dtype(spec.dtype).itemsize
                    array = self.memory.view(addresses[spec.name], nbytes).view(spec.dtype)
                    array = array.reshape(shapes[spec.name])
                    feed[spec.name] = array.astype(np.float32) if spec.dtype == "float16" else array.copy()
            for (_, spec), array in zip(
                [tensor for tensor in self.engine.tensors if tensor[0] == "OUTPUT"],
                self.engine.session.run(None, feed),
                strict=True,
            ):
                assert array.shape == tuple(sizes[n] if isinstance(n, str) else n for n in spec.shape)
                data = np.ascontiguousarray(array.astype(spec.dtype)).reshape(-1).view(np.uint8)
                self.memory.view(addresses[spec.name], data.nbytes)[:] = data

        self.memory.submit(kernel)
        return True


def make_plan(
    graph: str, precision: str = "fp32", limits: dict[str, int] | None = None, backend: str = "tensorrt"
) -> tuple[bytes, EngineRecord]:
    """A plan of the bundled model's graph that the fake understands, and its sidecar."""
    info = MANIFEST.graphs[graph]

    def as_built(spec: TensorSpec) -> TensorSpec:
        is_half = precision != "fp32" and spec.name in FROM_HALF
        shape = tuple(1 if size == "batch" else size for size in spec.shape)
        return TensorSpec(spec.name, shape, "float16" if is_half else spec.dtype)

    inputs, outputs = tuple(map(as_built, info.inputs)), tuple(map(as_built, info.outputs))
    first = 1 if graph == "encoder" else "ways"  # the exporter may name the outputs' size otherwise
    outputs = tuple(replace(spec, shape=(first, *spec.shape[1:])) for spec in outputs)
    if limits is None:
        limits = {"ways": 10, "supports": 50, "kept_tokens": 145} if graph == "head" else {}
    content = {
        "onnx": str(DEFAULT_BUNDLE / info.file),
        "limits": limits,
        "tensors": [
            (mode, spec.name, spec.shape, spec.dtype)
            for mode, specs in (("INPUT", inputs), ("OUTPUT", outputs))
            for spec in specs
        ],
    }
    plan = b"fake plan".ljust(HEADER_SIZE, b"\0") + json.dumps(content).encode()
    built = record(
        graph,
        backend,
        precision,
        backend_version="10.3.0",
        file=f"{graph}.fake.{precision}.engine",
        sha256="0123456789abcdef" * 4,
        size_bytes=len(plan),
        inputs=inputs,
        outputs=outputs,
        limits=limits,
        latency_ms=None,
    )
    return plan, built


def api_of(trt: FakeTensorRT, backend: str = "tensorrt") -> TensorRT:
    return TensorRT(backend, trt, "10.3.0" if backend == "tensorrt" else "1.7.1")
