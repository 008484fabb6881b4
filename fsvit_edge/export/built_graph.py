"""What every builder returns: a graph as its backend built it, and a report of its layers."""

from dataclasses import dataclass

from fsvit_edge.runtime.engines.base import TensorSpec


@dataclass(frozen=True)
class LayerReport:
    """Number of an engine's layers by kind."""

    layers: int = 0  # all that compute
    attention: int = 0  # fused: kernels that compute scores, softmax and result without storing the scores
    int8_gemms: int = 0  # matrix products of INT8 by INT8
    fp16_gemms: int = 0
    fp32_gemms: int = 0

    @property
    def gemms(self) -> int:
        """All matrix products outside fused attention."""
        return self.int8_gemms + self.fp16_gemms + self.fp32_gemms


@dataclass(frozen=True)
class BuiltGraph:
    """A graph as a backend built it."""

    data: bytes  # the TensorRT plan, or for a CPU the optimized ONNX graph
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: dict[str, dict[str, list[int]]]  # input with dynamic sizes in a plan -> "min", "opt" and "max" shape
    layers: LayerReport
    build_s: float
