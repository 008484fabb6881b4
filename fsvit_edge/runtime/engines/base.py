"""The interface of an engine: what the predictor needs from whatever runs a graph."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.errors import InputError

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and type of one input or output of a graph.

    Attributes:
        name: Name in the graph.
        shape: Sizes; a string names a size that is known only at run time.
        dtype: NumPy's name of the element type.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str


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

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that `run` needs."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that `run` returns."""

    @property
    def limits(self) -> Mapping[str, int]:
        """The largest value of each variable size, by name ("supports", "ways"); other sizes have no limit."""

    def upload(self, array: Array) -> ResidentTensor:
        """Copy an array to the engine's memory; it must not be changed afterwards."""

    def run(self, feed: Mapping[str, Array | ResidentTensor]) -> dict[str, ResidentTensor]:
        """Compute all outputs. They are valid until the next run of this engine, which may reuse their memory.

        Raises:
            InputError: A name, type or shape in `feed` differs from the graph's.
            FsvitEdgeError: The computation failed.
        """

    def wait(self) -> None:
        """Wait until the work that `run` started is done; does nothing if `run` itself waits.

        Raises:
            FsvitEdgeError: The computation failed.
        """

    def close(self) -> None:
        """Free the graph; a second call does nothing."""

    def __enter__(self) -> "Engine":
        """Return itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""


def on_host(value: Array | ResidentTensor) -> Array:
    """Return a tensor's values as a NumPy array."""
    return value if isinstance(value, np.ndarray) else value.numpy()


def check_feed(feed: Mapping[str, Array | ResidentTensor], inputs: tuple[TensorSpec, ...]) -> None:
    """Refuse a feed that differs from the inputs of the graph.

    Raises:
        InputError: A name, type or shape differs.
    """
    expected = {spec.name for spec in inputs}
    if feed.keys() != expected:
        raise InputError(f"The graph needs the inputs {sorted(expected)}, got {sorted(feed)}.")
    for spec in inputs:
        value = feed[spec.name]
        shape = tuple(value.shape)
        fits = len(shape) == len(spec.shape) and all(
            isinstance(want, str) or want == got for want, got in zip(spec.shape, shape, strict=True)
        )
        if not fits or (isinstance(value, np.ndarray) and value.dtype != spec.dtype):
            got = f"{value.dtype} {shape}" if isinstance(value, np.ndarray) else str(shape)
            raise InputError(f"Input {spec.name!r} must be {spec.dtype} {spec.shape}, got {got}.")
