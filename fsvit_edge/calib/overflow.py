"""What a CPU can honestly say about FP16: which tensors of the typed graph hold values that FP16 does not.

Running an FP16 graph on a CPU proves nothing, because ONNX Runtime computes it by way of FP32. So the FP32 graph is run
and what it computes held against the types of the other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from fsvit_edge.calib.fp16 import replace_masks
from fsvit_edge.calib.onnx_graph import Graph
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine

LIMIT = 60000.0
"""Magnitude that no FP16 tensor may pass; FP16 ends at 65504, and other pictures go a little further."""


@dataclass(frozen=True)
class Overflow:
    """A tensor that FP16 does not hold.

    Attributes:
        tensor: Its name.
        node: Name of the node that makes it.
        largest: Largest absolute value seen; may be infinite or NaN.
    """

    tensor: str
    node: str
    largest: float


def find_overflows(
    fp32: bytes,
    typed: onnx.ModelProto,
    feeds: Iterable[Mapping[str, npt.NDArray[np.generic]]],
    threads: int | None = None,
) -> tuple[Overflow, ...]:
    """Run an FP32 graph and report the tensors that the typed graph holds in FP16 and that pass `LIMIT`.

    Constants of the typed graph are looked at too. The extremes are taken inside the graph, so that memory does not
    grow with the number of tensors.

    Args:
        fp32: The graph that `typed` was made from.
        typed: The graph with its FP16 types; tensors of both are known by the same names.
        feeds: Inputs for the FP32 graph, from real pictures.
        threads: Of the run.

    Returns:
        The worst first; empty if all is well.
    """
    other = Graph(typed)
    halves = {name for name, kind in other.element_types().items() if kind == TensorProto.FLOAT16}
    largest = {
        name: float(np.abs(value.astype(np.float32)).max(initial=0.0))
        for name, value in other.constants.items()
        if value.dtype == np.float16
    }
    probed, probes = _with_probes(fp32, halves)
    with OnnxRuntimeEngine(probed, "cpu", threads) as engine:
        for feed in feeds:
            answers = engine.run(dict(feed))
            for probe, name in probes.items():
                seen = float(answers[probe].numpy())
                # Not max(): it would lose a NaN that is not the first.
                largest[name] = float(np.fmax(largest.get(name, 0.0), seen)) if np.isfinite(seen) else np.inf
    makers = {name: node.name for node in other.nodes for name in node.output}
    bad = [Overflow(name, makers.get(name, ""), seen) for name, seen in largest.items() if seen > LIMIT]
    return tuple(sorted(bad, key=lambda one: -one.largest))


def _with_probes(fp32: bytes, halves: set[str]) -> tuple[bytes, dict[str, str]]:
    """The graph with one more output for each tensor: its largest absolute value."""
    graph = Graph(fp32)
    replace_masks(graph)
    types = graph.element_types()
    # A graph's output that is cast at its end has another name for what comes before.
    names = [name for node in graph.nodes for name in node.output if types.get(name) == TensorProto.FLOAT]
    probes = {}
    for name in names:
        if name in halves or f"{name}_inner" in halves or f"{name}_fp16" in halves:
            absolute = graph.add_node("Abs", [name], f"{name}_absolute")
            probe = graph.add_node("ReduceMax", [absolute], f"{name}_largest", keepdims=0)
            graph.graph.output.append(helper.make_tensor_value_info(probe, TensorProto.FLOAT, []))
            probes[probe] = name
    return graph.finish().SerializeToString(), probes
