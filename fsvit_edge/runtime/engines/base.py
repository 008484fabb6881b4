"""The contract between the predictor and whatever computes a graph."""

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
        name: As in the graph.
        shape: Sizes; a string names a size that is only known at run time.
        dtype: numpy's name of the element type.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str


class ResidentTensor(Protocol):
    """A tensor where the engine computes; it goes from graph to graph without a copy through Python.

    What a run returned is valid until the next run of the same engine; what was uploaded, as long as it is held.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""

    def numpy(self) -> Array:
        """Return the values on the host, which later runs leave alone; treat them as read-only."""


class Engine(Protocol):
    """One graph ready to run. Close it, or use it as a context manager."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` must be fed."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""

    @property
    def limits(self) -> Mapping[str, int]:
        """The largest value of each varying size by its name ("supports", "ways"); what is not named has no limit."""

    def upload(self, array: Array) -> ResidentTensor:
        """Put an array where the engine computes; it must not be changed afterwards."""

    def run(self, feed: Mapping[str, Array | ResidentTensor]) -> dict[str, ResidentTensor]:
        """Compute all outputs; they are valid until the next run of this engine, which may reuse their memory.

        Raises:
            InputError: A name, type or shape of `feed` is not the graph's.
            FsvitEdgeError: The computation failed.
        """

    def wait(self) -> None:
        """Wait until what `run` has started is done; where `run` itself waits, do nothing.

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


def check_feed(feed: Mapping[str, Array | ResidentTensor], inputs: tuple[TensorSpec, ...]) -> None:
    """Refuse a feed that is not what the graph takes.

    Raises:
        InputError: A name, type or shape differs.
    """
    wanted = {spec.name for spec in inputs}
    if feed.keys() != wanted:
        raise InputError(f"The graph takes {sorted(wanted)}, got {sorted(feed)}.")
    for spec in inputs:
        value = feed[spec.name]
        shape = tuple(value.shape)
        fits = len(shape) == len(spec.shape) and all(
            isinstance(want, str) or want == got for want, got in zip(spec.shape, shape, strict=True)
        )
        if not fits or (isinstance(value, np.ndarray) and value.dtype != spec.dtype):
            got = f"{value.dtype} {shape}" if isinstance(value, np.ndarray) else str(shape)
            raise InputError(f"Input {spec.name!r} must be {spec.dtype} {spec.shape}, got {got}.")
