"""The interface of an engine, and the words for engines.

engine: A file that a backend built from a graph, or that file opened; the option --engine names a backend.
backend: The library that builds and runs a model: one of `BACKENDS`.
graph: A part of the network as an ONNX file: encoder, enroll, head, and objectness.
target: A GPU architecture that TensorRT-RTX builds for, such as "sm86".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.errors import InputError

Array = npt.NDArray[np.generic]
_EngineType = TypeVar("_EngineType", bound="Engine")

TENSORRT_BACKENDS = ("tensorrt", "tensorrt-rtx")
BACKENDS = (*TENSORRT_BACKENDS, "onnxruntime")
BACKEND_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX", "onnxruntime": "ONNX Runtime"}
_RENAMED = {"cpu": "onnxruntime", "cuda": "onnxruntime-cuda"}


def refuse_old_name(engine: str) -> None:
    """Raise InputError for a name that --engine had in 0.1.0."""
    if engine in _RENAMED:
        raise InputError(f"Engine {engine!r} is now called {_RENAMED[engine]!r}.")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    shape: tuple[int | str, ...]  # a string names a size that is known only at run time
    dtype: str  # NumPy's name


class ResidentTensor(Protocol):
    """A tensor in the engine's own memory, which goes from graph to graph without a copy through Python.

    An output is valid until the next run of the same engine; an uploaded tensor, as long as anything refers to it.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""

    def numpy(self) -> Array:
        """Return the values on the host; later runs leave them alone. Treat them as read-only."""


class Engine(Protocol):
    """One graph ready to run. Close it, or use it as a context manager."""

    inputs: tuple[TensorSpec, ...]  # what `run` needs
    outputs: tuple[TensorSpec, ...]  # what `run` returns
    limits: Mapping[str, int]  # largest value of each variable size ("supports", "ways"); others have no limit

    def upload(self, array: Array) -> ResidentTensor:
        """Copy an array to the engine's memory; it must not be changed afterwards."""

    def run(self, feed: Mapping[str, Array | ResidentTensor]) -> dict[str, ResidentTensor]:
        """Compute all outputs. They are valid until the next run of this engine, which may reuse their memory.

        Raises:
            InputError: A name, type or shape in `feed` differs from the graph's.
            FsvitEdgeError: The computation failed.
        """

    def wait(self) -> None:
        """Wait until the work that `run` started is done, and report its failure; nothing to do if `run` waits."""
        return  # not abstract

    def close(self) -> None:
        """Free the graph; a second call does nothing."""

    def __enter__(self: _EngineType) -> _EngineType:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Engines = dict[str, Engine]
"""Open engines by graph."""
WIDE_COMPARE = "compare-wide"
"""The graph "compare" once more, on all threads."""


def on_host(value: Array | ResidentTensor) -> Array:
    """Return a tensor's values as a NumPy array."""
    return value if isinstance(value, np.ndarray) else value.numpy()


def check_feed(feed: Mapping[str, Array | ResidentTensor], inputs: tuple[TensorSpec, ...]) -> None:
    """Raise InputError for a feed whose names, types or shapes differ from the inputs of the graph."""
    expected = {spec.name for spec in inputs}
    if feed.keys() != expected:
        raise InputError(f"The graph needs the inputs {sorted(expected)}, got {sorted(feed)}.")
    for spec in inputs:
        value = feed[spec.name]
        shape = tuple(value.shape)
        if not fits(shape, spec.shape) or (isinstance(value, np.ndarray) and value.dtype != spec.dtype):
            got = f"{value.dtype} {shape}" if isinstance(value, np.ndarray) else str(shape)
            raise InputError(f"Input {spec.name!r} must be {spec.dtype} {spec.shape}, got {got}.")


def variable_sizes(feed: Mapping[str, Array | ResidentTensor], inputs: tuple[TensorSpec, ...]) -> dict[str, int]:
    """Return the variable sizes of a checked feed by name; an InputError if two inputs differ in one."""
    sizes: dict[str, int] = {}
    for spec in inputs:
        for size, got in zip(spec.shape, feed[spec.name].shape, strict=True):
            if isinstance(size, str) and sizes.setdefault(size, got) != got:
                raise InputError(f"Input {spec.name!r} has {got} {size}, but another input has {sizes[size]}.")
    return sizes


def fits(shape: tuple[int | str, ...], stated: tuple[int | str, ...]) -> bool:
    """Return whether a shape is the stated one, in which a string stands for any size."""
    return len(shape) == len(stated) and all(
        isinstance(want, str) or want == got for got, want in zip(shape, stated, strict=True)
    )
