"""TensorRT and TensorRT-RTX: run a plan that `build-engine` made.

Only inputs from the host and outputs that are read with `numpy` are copied. From the third run with the same tensors at
the same addresses, a run is one CUDA graph; RTX records its own graphs.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fsvit_edge.runtime.engines import rtx as rtx_runtime
from fsvit_edge.runtime.engines.base import (
    Array,
    Engine,
    ResidentTensor,
    TensorSpec,
    check_feed,
    on_host,
    variable_sizes,
)
from fsvit_edge.runtime.engines.files import EngineRecord
from fsvit_edge.runtime.engines.gpu_memory import CapturedGraph, DeviceBuffer, DeviceMemory
from fsvit_edge.runtime.engines.tensorrt_api import DTYPES, TensorRT
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.gpu import find_gpu, gpu_missing_reason

MAX_GRAPHS = 16
"""Kept per engine: the encoder needs one, the head one for each run that a bank's supports are split into."""

Bindings = tuple[tuple[str, tuple[int, ...], int], ...]
"""Name, shape and address of every input and output. A CUDA graph is valid for exactly these."""


@dataclass(eq=False)
class DeviceTensor:
    """A tensor on the GPU; stale once a later run of its engine has overwritten it."""

    memory: DeviceMemory
    buffer: DeviceBuffer
    shape: tuple[int, ...]
    dtype: str
    is_stale: bool = False

    def numpy(self) -> Array:
        """Wait for the GPU and copy the values to the host."""
        assert not self.is_stale, "an output was read after a later run of its engine"
        return self.memory.download(self.buffer, self.shape, self.dtype)


class TensorRtEngine(Engine):
    """One plan, whose checksum was verified before, ready to run; engines that feed each other share one memory."""

    def __init__(self, plan: bytes, record: EngineRecord, api: TensorRT, memory: DeviceMemory) -> None:
        gpu = find_gpu()
        if gpu is None:
            raise EnvironmentLacksError(
                f"{record.file} cannot run here: {gpu_missing_reason()}; use --engine onnxruntime."
            )
        self.inputs = record.inputs
        self.outputs = record.outputs
        self.limits = record.limits
        self._record = record
        self._api = api
        self._memory = memory
        self._log = api.log()
        if api.is_rtx:
            rtx_runtime.check_validity(plan, record, api, self._log, gpu)
        self._engine = api.engine(plan, self._log, record.file)
        self._check_tensors()
        self._kernels: rtx_runtime.KernelCache | None = None
        if api.is_rtx:
            self._context, self._kernels = rtx_runtime.open_context(self._engine, record, api, gpu)
        else:
            # We provide memory for the current sizes; those of the largest sizes may take ten times as much.
            strategy = api.trt.ExecutionContextAllocationStrategy.USER_MANAGED
            self._context = self._engine.create_execution_context(strategy)
        if self._context is None:
            raise self._failure("cannot prepare")
        self._buffers: dict[str, DeviceBuffer] = {}
        self._scratch: DeviceBuffer | None = None
        self._bound: Bindings | None = None
        self._graphs = CudaGraphCache(memory)
        self._latest: list[DeviceTensor] = []

    def upload(self, array: Array) -> DeviceTensor:
        """Copy an array to the GPU, where it stays as long as anything refers to the tensor."""
        buffer = self._memory.alloc(array.nbytes)
        self._memory.upload(array, buffer)
        return DeviceTensor(self._memory, buffer, array.shape, array.dtype.name)

    def run(self, feed: Mapping[str, Array | ResidentTensor]) -> dict[str, ResidentTensor]:
        """Start to compute all outputs; tensors in the same GPU memory are used without a copy.

        Raises ArtifactError, too, if a size is larger than the plan was built for.
        """
        if self._engine is None:
            raise FsvitEdgeError("The engine is closed.")
        check_feed(feed, self.inputs)
        sizes = self._sizes(feed)
        bindings = [
            (spec.name, tuple(feed[spec.name].shape), self._address(spec, feed[spec.name])) for spec in self.inputs
        ]
        outputs = {}
        for spec in self.outputs:
            shape = tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)
            buffer = self._buffer(spec.name, math.prod(shape) * np.dtype(spec.dtype).itemsize)
            outputs[spec.name] = DeviceTensor(self._memory, buffer, shape, spec.dtype)
            bindings.append((spec.name, shape, buffer.address))
        for tensor in self._latest:
            tensor.is_stale = True
        self._latest = list(outputs.values())
        self._compute(tuple(bindings))
        return dict(outputs)

    def wait(self) -> None:
        """Wait for the GPU's stream."""
        self._memory.synchronize()

    def close(self) -> None:
        """Free the plan and its memory; a second call does nothing."""
        if self._engine is None:
            return
        with suppress(FsvitEdgeError):  # if the GPU is lost, the error that reported it must not be hidden
            self._graphs.clear()
        if self._kernels is not None:
            self._kernels.store()
        self._context = None
        self._engine = None
        self._buffers.clear()
        self._scratch = None
        self._latest = []

    def _compute(self, bindings: Bindings) -> None:
        if self._graphs.launch(bindings):
            return
        self._bind(bindings)
        self._enqueue()
        if not self._api.is_rtx:  # RTX records graphs of its own
            self._graphs.record(bindings, self._enqueue)

    def _bind(self, bindings: Bindings) -> None:
        """Give the context all shapes and addresses, and the scratch memory that it needs for them."""
        if bindings == self._bound:
            return
        self._bound = None
        shapes = {name: shape for name, shape, _ in bindings}
        for spec in self.inputs:
            if not self._context.set_input_shape(spec.name, shapes[spec.name]):
                raise self._failure(f"refuses {spec.name!r} of shape {shapes[spec.name]} for")
        for spec in self.outputs:
            if tuple(self._context.get_tensor_shape(spec.name)) != shapes[spec.name]:
                raise self._mismatch(f"returns {spec.name!r} in a different shape than its sidecar states")
        # 0 if it fails; then the memory for the largest sizes is enough, too.
        needed = int(self._context.update_device_memory_size_for_shapes() or self._engine.device_memory_size_v2)
        if needed > (0 if self._scratch is None else self._scratch.nbytes):
            self._graphs.clear()  # they contain the address of the memory that is freed now
            self._scratch = None
            self._scratch = self._memory.alloc(needed)
        if self._scratch is not None:
            self._context.set_device_memory(self._scratch.address, self._scratch.nbytes)
        for name, _, address in bindings:
            if not self._context.set_tensor_address(name, address):
                raise self._failure(f"refuses the address of {name!r} for")
        self._bound = bindings

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._memory.stream):
            raise self._failure("failed to run")

    def _address(self, spec: TensorSpec, value: Array | ResidentTensor) -> int:
        """The address of an input; a value that is not in this GPU memory is copied to the input's own buffer."""
        ready = value if isinstance(value, DeviceTensor) and value.memory is self._memory else on_host(value)
        if ready.dtype != spec.dtype:
            raise InputError(f"Input {spec.name!r} must be {spec.dtype} {spec.shape}, got {ready.dtype}.")
        if isinstance(ready, DeviceTensor):
            assert not ready.is_stale, "an output was fed after a later run of its engine"
            return ready.buffer.address
        buffer = self._buffer(spec.name, ready.nbytes)
        self._memory.upload(ready, buffer)
        return buffer.address

    def _buffer(self, name: str, nbytes: int) -> DeviceBuffer:
        """The buffer of an output, or of an input from the host; it grows and never shrinks."""
        if name not in self._buffers or self._buffers[name].nbytes < nbytes:
            self._buffers.pop(name, None)
            self._buffers[name] = self._memory.alloc(nbytes)
        return self._buffers[name]

    def _sizes(self, feed: Mapping[str, Array | ResidentTensor]) -> dict[str, int]:
        """The variable sizes, by name."""
        sizes = variable_sizes(feed, self.inputs)
        for size, got in sizes.items():
            limit = self.limits.get(size, got)
            if got > limit:
                raise ArtifactError(
                    f"{self._record.file} was built for at most {limit} {size.replace('_', ' ')}, got {got}; build it "
                    "for more with: fsvit-edge build-engine --max-ways N --max-shots K."
                )
        return sizes

    def _check_tensors(self) -> None:
        trt = self._api.trt
        for mode, specs in ((trt.TensorIOMode.INPUT, self.inputs), (trt.TensorIOMode.OUTPUT, self.outputs)):
            names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
            found = {name for name in names if self._engine.get_tensor_mode(name) == mode}
            if found != {spec.name for spec in specs}:
                raise self._mismatch("has different inputs or outputs than its sidecar states")
            for spec in specs:
                dtype = self._engine.get_tensor_dtype(spec.name).name
                shape = tuple(self._engine.get_tensor_shape(spec.name))
                is_same = len(shape) == len(spec.shape) and all(
                    got == -1 or isinstance(want, str) or got == want
                    for got, want in zip(shape, spec.shape, strict=True)
                )
                if not is_same or DTYPES.get(dtype, dtype) != spec.dtype:
                    raise self._mismatch(
                        f"has {spec.name!r} as {DTYPES.get(dtype, dtype)} {shape}, but its sidecar states "
                        f"{spec.dtype} {spec.shape}"
                    )

    def _mismatch(self, what: str) -> ArtifactError:
        return ArtifactError(
            f"{self._record.file} {what}; rebuild it with: fsvit-edge build-engine --engine {self._api.backend} --force"
        )

    def _failure(self, what: str) -> FsvitEdgeError:
        reason = self._log.last_error()
        if "memory" in reason.lower():
            free, total = self._memory.free_bytes()
            reason += (
                f"; {free // 2**20} of the GPU's {total // 2**20} MiB free; close other programs that use the GPU, or "
                "use --engine onnxruntime"
            )
        return FsvitEdgeError(f"{self._api.title} {what} {self._record.file}: {reason}.")


class CudaGraphCache:
    """CUDA graphs of an engine's runs: work that repeats is recorded once and then started by a single call."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._graphs: dict[Bindings, CapturedGraph | Literal[False] | None] = {}
        """By use, latest last; None: ran once; False: cannot be captured."""

    def launch(self, bindings: Bindings) -> bool:
        """Launch the graph of some bindings; False if there is none."""
        graph = self._graphs.get(bindings)
        if not graph:
            return False
        graph.launch()
        self._graphs[bindings] = self._graphs.pop(bindings)
        return True

    def record(self, bindings: Bindings, work: Callable[[], None]) -> None:
        """Record work that has just been run, if these bindings were run before.

        The first run of new shapes does work that must not be in a graph; and a capture costs more than a run, so it
        pays only for bindings that come back.
        """
        ran_before = bindings in self._graphs
        graph = self._graphs.pop(bindings, None)
        if ran_before and graph is None:
            graph = self._memory.capture(work) or False
        self._graphs[bindings] = graph
        while len(self._graphs) > MAX_GRAPHS:
            self._free([self._graphs.pop(next(iter(self._graphs)))])

    def clear(self) -> None:
        """Free all graphs once the stream is done."""
        graphs = list(self._graphs.values())
        self._graphs.clear()
        self._free(graphs)

    def _free(self, graphs: Iterable[CapturedGraph | Literal[False] | None]) -> None:
        captured = [graph for graph in graphs if graph]
        if captured:
            self._memory.synchronize()
        for graph in captured:
            graph.free()
