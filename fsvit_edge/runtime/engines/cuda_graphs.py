"""CUDA graphs of the runs of one engine: work that repeats is recorded once and then started by a single call."""

from collections import OrderedDict
from collections.abc import Callable

from fsvit_edge.runtime.engines.memory.base import CapturedGraph, DeviceMemory

MAX_GRAPHS = 16
"""Kept per engine: the encoder needs one, the head one for each run that a bank's supports are split into."""

Bindings = tuple[tuple[str, tuple[int, ...], int], ...]
"""Name, shape and address of every input and output. A graph is valid for exactly these."""


class CudaGraphCache:
    """The graphs of an engine by their bindings; the least recently used one is dropped.

    Args:
        memory: The memory whose stream is captured.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._graphs: OrderedDict[Bindings, CapturedGraph | None] = OrderedDict()
        """None for bindings that were run once."""
        self._failed: set[Bindings] = set()

    def launch(self, bindings: Bindings) -> bool:
        """Launch the graph of some bindings; False if there is none."""
        graph = self._graphs.get(bindings)
        if graph is None:
            return False
        graph.launch()
        self._graphs.move_to_end(bindings)
        return True

    def record(self, bindings: Bindings, work: Callable[[], None]) -> None:
        """Record work that has just been run, if these bindings were run before.

        The first run of new shapes does work that must not be in a graph; and a capture costs more than a run, so it
        pays only for bindings that come back.
        """
        graph = None
        if bindings in self._graphs and bindings not in self._failed:
            graph = self._memory.capture(work)
            if graph is None:
                self._failed.add(bindings)
        self._remember(bindings, graph)

    def _remember(self, bindings: Bindings, graph: CapturedGraph | None) -> None:
        """Keep a graph, or None for bindings that were only run, and drop the oldest."""
        self._graphs[bindings] = graph
        self._graphs.move_to_end(bindings)
        while len(self._graphs) > MAX_GRAPHS:
            oldest, dropped = self._graphs.popitem(last=False)
            self._failed.discard(oldest)
            if dropped is not None:
                self._memory.synchronize()
                dropped.free()

    def clear(self) -> None:
        """Free all graphs once the stream is done."""
        graphs = [graph for graph in self._graphs.values() if graph is not None]
        self._graphs.clear()
        self._failed.clear()
        if graphs:
            self._memory.synchronize()
        for graph in graphs:
            graph.free()
