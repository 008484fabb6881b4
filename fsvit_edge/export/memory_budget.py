"""The memory that a build and its engine need, estimated from the graph, compared with the memory of this machine."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from fsvit_edge.runtime.errors import FsvitEdgeError

_BYTES: dict[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.DOUBLE: 8,
}
_BUILDER_BYTES = 400 * 2**20
"""TensorRT's libraries and tables: 180 MB were measured with RTX 1.7 and a small graph, without a GPU's context."""
_COPIES_OF_WEIGHTS = 4
"""Copies during a build: the graph, the parsed network, its optimized copy, and the plan."""


@dataclass(frozen=True)
class MemoryBudget:
    """Memory needed and available, in bytes.

    Attributes:
        weights: The graph's constants.
        activations: The tensors that exist at once, at most. An upper estimate, because fused layers need fewer.
        build: Host memory needed during the build.
        free: Free host memory; None if unknown.
        gpu: The GPU's total memory; None without a GPU.
    """

    weights: int
    activations: int
    build: int
    free: int | None
    gpu: int | None

    def check(self, name: str) -> None:
        """Refuse a build that cannot fit.

        Raises:
            FsvitEdgeError: The host or the GPU has too little memory.
        """
        if self.free is not None and self.build > self.free:
            raise FsvitEdgeError(
                f"Building the {name} needs about {_mb(self.build)} of memory, but only {_mb(self.free)} are free; "
                "close other programs or add swap, then build again."
            )
        if self.gpu is not None and self.weights + self.activations > self.gpu:
            raise FsvitEdgeError(
                f"The {name} needs about {_mb(self.weights + self.activations)} on the GPU, which has "
                f"{_mb(self.gpu)}; export the bundle with a smaller --image-size."
            )

    def __str__(self) -> str:
        """The budget in one line."""
        parts = [f"weights {_mb(self.weights)}", f"activations up to {_mb(self.activations)}"]
        parts.append(f"{_mb(self.build)} to build" + ("" if self.free is None else f" of {_mb(self.free)} free"))
        if self.gpu is not None:
            parts.append(f"GPU {_mb(self.gpu)}")
        return ", ".join(parts)


def estimate(model: onnx.ModelProto, sizes: Mapping[str, int], gpu_bytes: int | None) -> MemoryBudget:
    """Estimate a graph's memory.

    Args:
        model: The graph.
        sizes: Name of each dynamic size -> value.
        gpu_bytes: The GPU's total memory; None without a GPU.
    """
    weights = sum(_size(tensor.data_type, tensor.dims) for tensor in model.graph.initializer)
    build = _BUILDER_BYTES + _COPIES_OF_WEIGHTS * weights
    return MemoryBudget(weights, _peak(model, sizes), build, free_memory(), gpu_bytes)


def free_memory() -> int | None:
    """Return how many bytes this process can still use: the machine's, or the container's if they are fewer."""
    free = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith(("MemAvailable:", "SwapFree:"))]
        free = [sum(free)] if free else []
    except (OSError, ValueError, IndexError):
        pass
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
        free += [] if limit == "max" else [max(int(limit) - int(used), 0)]
    except (OSError, ValueError):
        pass
    return min(free) if free else None


def _peak(model: onnx.ModelProto, sizes: Mapping[str, int]) -> int:
    """The most bytes of tensors alive at once, if every tensor lives from its node to its last use; 0 if unknown."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    # Shapes that were inferred with names for sizes would prevent shapes with numbers.
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = sizes.get(axis.dim_param, 1)
    try:
        graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        return 0
    bytes_of = {
        value.name: _size(
            value.type.tensor_type.elem_type, [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    last_use = {name: index for index, node in enumerate(graph.node) for name in node.input}
    ends: dict[int, list[str]] = {}
    for name, index in last_use.items():
        ends.setdefault(index, []).append(name)
    alive = peak = sum(bytes_of[value.name] for value in graph.input)
    for index, node in enumerate(graph.node):
        alive += sum(bytes_of.get(name, 0) for name in node.output)
        peak = max(peak, alive)
        alive -= sum(bytes_of.get(name, 0) for name in ends.get(index, ()))
    return peak


def _size(kind: int, dims: Iterable[int]) -> int:
    return _BYTES.get(kind, 1) * math.prod(dims)


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
