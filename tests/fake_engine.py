"""An engine without a graph: a NumPy function with the same interface."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fsvit_edge.runtime.engines.base import Array, Engine, ResidentTensor, TensorSpec, check_feed


@dataclass
class HostTensor:
    """An array that pretends to be in other memory."""

    array: Array
    is_stale: bool = False  # whether a later run of its engine would have overwritten it

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def numpy(self) -> Array:
        assert not self.is_stale, "an output was read after a later run of its engine"
        return self.array


class FakeEngine(Engine):
    """Runs a function of arrays by name, and counts the calls; `limits` are the largest sizes, by name."""

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        function: Callable[[dict[str, Array]], dict[str, Array]],
        limits: Mapping[str, int] | None = None,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.limits: Mapping[str, int] = limits or {}
        self._latest: list[HostTensor] = []
        self._function = function
        self.runs = 0
        self.uploads = 0
        self.waits = 0
        self.closed = False

    def upload(self, array: Array) -> HostTensor:
        self.uploads += 1
        return HostTensor(array)

    def run(self, feed: Mapping[str, Array | ResidentTensor]) -> dict[str, ResidentTensor]:
        check_feed(feed, self.inputs)
        self.runs += 1
        arrays = {name: value if isinstance(value, np.ndarray) else value.numpy() for name, value in feed.items()}
        answer = {name: HostTensor(array) for name, array in self._function(arrays).items()}
        for tensor in self._latest:
            tensor.is_stale = True
        self._latest = list(answer.values())
        return dict(answer)

    def wait(self) -> None:
        self.waits += 1

    def close(self) -> None:
        self.closed = True
