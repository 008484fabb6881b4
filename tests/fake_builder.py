"""A module that builds like `tensorrt` 8.6, 10.3 or 11.4, with their differences.

What a version has removed is missing here, too: using it raises AttributeError, as in the real module.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest
from google.protobuf.message import DecodeError

_HALF = "[ { Name: x, Dimensions: [257,192], Datatype: Half, Format: (Linear) }]"
LAYERS = f"""Layers:
Name: Gemm_1, LayerType: gemm, Inputs: {_HALF.replace("Half", "Int8")}, Constants: {_HALF}, Outputs: {_HALF}
Name: _gemm_mha_v2_1, LayerType: kgen, Inputs: {_HALF}, Outputs: {_HALF}
Name: __myl_FcAdd_2, LayerType: runtime_fusion, Inputs: {_HALF}, Constants: {_HALF}, Outputs: {_HALF}
Name: wait_1, LayerType: wait, Inputs: []
"""


Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        self.is_ready = True


class IProgressMonitor:
    def __init__(self) -> None:
        pass


DataType = enum.Enum("DataType", "FLOAT HALF UINT8")


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: DataType


class Network:
    """One input, one output; the batch is a variable size."""

    def __init__(self) -> None:
        self.tensors = [Tensor("image", (-1, 8, 8, 3), DataType.UINT8), Tensor("tokens", (-1, 4), DataType.HALF)]
        self.num_inputs = self.num_outputs = 1

    def take(self, graph: onnx.GraphProto) -> None:
        """Get the inputs and outputs of a graph."""
        kinds = {onnx.TensorProto.FLOAT: DataType.FLOAT, onnx.TensorProto.FLOAT16: DataType.HALF}
        self.num_inputs, self.num_outputs = len(graph.input), len(graph.output)
        self.tensors = []
        for value in (*graph.input, *graph.output):
            kind = value.type.tensor_type
            shape = tuple(-1 if axis.dim_param else axis.dim_value for axis in kind.shape.dim)
            self.tensors.append(Tensor(value.name, shape, kinds.get(kind.elem_type, DataType.UINT8)))

    def get_input(self, index: int) -> Tensor:
        return self.tensors[index]

    def get_output(self, index: int) -> Tensor:
        tensor = self.tensors[self.num_inputs + index]
        if tensor.shape[0] == -1 and self.tensors[0].name == "image":  # the batch
            tensor.shape = (self.tensors[0].shape[0], *tensor.shape[1:])
        return tensor


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = shapes


@dataclass
class TimingCache:
    data: bytes

    def serialize(self) -> bytes:
        return self.data + b"+"


class Config:
    """The settings that all versions have, as attributes."""

    def __init__(self, fake: FakeTensorRT) -> None:
        self._fake = fake
        self.profiling_verbosity: Any = None
        self.progress_monitor: Any = None
        self.profiles: list[Profile] = []
        self.pools: dict[str, int] = {}
        self.cache: TimingCache | None = None

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.pools[pool] = size

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1 if self._fake.accepts_profile else -1

    def create_timing_cache(self, data: bytes) -> TimingCache:
        return TimingCache(data)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.data == b"of another GPU":
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache


class Builder:
    def __init__(self, fake: FakeTensorRT, logger: Any) -> None:
        assert logger.is_ready, "pybind requires a call of the base's __init__"
        self._fake, self._logger = fake, logger
        fake.builders.append(self)

    def create_network(self, flags: int) -> Network | None:
        if flags == 1 << self._fake.strongly_typed:
            return Network()
        self._logger.log(Severity.ERROR, "IBuilder::createNetworkV2: Error Code 3: API Usage Error (unknown flags)")
        return None

    def create_builder_config(self) -> Config:
        self.config = Config(self._fake)
        return self.config

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, _: Network, config: Config) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Timing graph nodes", "Building engine", 9)
        self._logger.log(Severity.VERBOSE, "nothing of interest")
        for step in range(self._fake.steps):
            self._fake.at_step(step)
            if not monitor.step_complete("Timing graph nodes", step):
                self._logger.log(Severity.ERROR, "IBuilder::build: Error Code 7: BuildCanceled (by user)")
                self._fake.was_cancelled = True
                return None
        monitor.phase_finish("Timing graph nodes")
        monitor.phase_finish("Building engine")
        for text in self._fake.build_errors:
            self._logger.log(Severity.ERROR, text)
        if self._fake.build_errors:
            return None
        return f"plan of {self._fake.__version__} {[profile.shapes for profile in config.profiles]}".encode()


class Parser:
    """Parses ONNX, or `b"graph"` as the network above."""

    def __init__(self, network: Network, _: Any) -> None:
        self._network = network
        self.num_errors = 0

    def parse(self, graph: bytes) -> bool:
        try:
            if graph != b"graph":
                self._network.take(onnx.load_from_string(graph).graph)
        except DecodeError:
            self.num_errors += 1
        return self.num_errors == 0

    def get_error(self, _: int) -> Any:
        return SimpleNamespace(desc=lambda: "Assertion failed:\n  the ONNX model cannot be parsed.")


class Engine:
    def create_engine_inspector(self) -> Engine:
        return self

    def get_engine_information(self, kind: str) -> str:
        assert kind == "oneline"
        return LAYERS


@dataclass
class Runtime:
    logger: Any

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        if plan.startswith(b"plan of"):
            return Engine()
        self.logger.log(Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: (magic tag In f at /x/y.cpp:4)")
        return None


@dataclass
class Flag:
    """An enum member as pybind makes it, which must be converted to int."""

    value: int

    def __int__(self) -> int:
        return self.value


class FakeTensorRT(ModuleType):
    """A module `tensorrt`: 10.x has weak and strong typing, and flags for them; 11.x has only strong typing."""

    def __init__(self, version: str) -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.__spec__ = ModuleSpec("tensorrt", None, origin="fake")
        is_old = int(version.partition(".")[0]) < 11
        self.strongly_typed = 1 if is_old else 0
        self.builders: list[Builder] = []
        self.build_errors: list[str] = []
        self.accepts_profile = True
        self.steps = 3
        self.was_cancelled = False
        self.at_step: Callable[[int], object] = lambda _: None
        self.ILogger, self.IProgressMonitor, self.OnnxParser = ILogger, IProgressMonitor, Parser
        self.Builder = lambda logger: Builder(self, logger)
        self.Runtime = Runtime
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=Flag(self.strongly_typed))
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.LayerInformationFormat = SimpleNamespace(ONELINE="oneline")
        self.BuilderFlag = SimpleNamespace(TF32=Flag(4))
        if is_old:
            self.NetworkDefinitionCreationFlag.EXPLICIT_BATCH = Flag(0)
            self.BuilderFlag.FP16, self.BuilderFlag.INT8 = Flag(0), Flag(1)


def install(monkeypatch: pytest.MonkeyPatch, version: str) -> FakeTensorRT:
    """Replace `tensorrt` by a fake."""
    fake = FakeTensorRT(version)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake
