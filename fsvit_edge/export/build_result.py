"""What a build is asked for, and what it answers: engines, figures, and what to do about them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fsvit_edge.export.backend import Backend
from fsvit_edge.export.compare import Agreement
from fsvit_edge.export.layers import LayerReport
from fsvit_edge.runtime.engines.store.files import EngineRecord

_NOTABLE_DISAGREEMENT = 0.01
"""Share of pixels."""


@dataclass(frozen=True)
class BuildOptions:
    """What to build, and how.

    Attributes:
        engine: "auto" or a backend.
        precision: One of `PRECISIONS`; None: FP16 with TensorRT, INT8 with ONNX Runtime.
        calib: A calibration's file, or what to calibrate on; None: the one that lies in the bundle.
        keep_fp32: Patterns of nodes that compute in FP32.
        quantize: Patterns of the linear layers to quantize; none: all.
        workspace_mib: See `PlanOptions`.
        timing_cache: See `PlanOptions`.
        targets: See `PlanOptions`; none: the GPU here, or else the default ones.
        ways_max: Classes that the head's plan takes at once; None: 10.
        shots_max: Supports of each; None: 5.
        verify: Compare with the FP32 graphs.
        data: Folder of a data set to compare exact ratio and mIoU on.
        max_drop: Points that either may lose there.
        force: Build although the very engine is there.
    """

    engine: str = "auto"
    precision: str | None = None
    calib: str | None = None
    keep_fp32: tuple[str, ...] = ()
    quantize: tuple[str, ...] = ()
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    targets: tuple[str, ...] = ()
    ways_max: int | None = None
    shots_max: int | None = None
    verify: bool = True
    data: Path | None = None
    max_drop: float | None = None
    force: bool = False


@dataclass(frozen=True)
class BuiltEngine:
    """One engine.

    Attributes:
        path: Where it lies.
        record: What its sidecar says.
        layers: What became of the graph; None of an engine that was there.
    """

    path: Path
    record: EngineRecord
    layers: LayerReport | None


@dataclass(frozen=True)
class PrecisionScores:
    """How good a precision is on the data set.

    Attributes:
        precision: Which.
        exact_ratio: 0/1 exact ratio in percent.
        miou: In percent; None where no query has a mask.
    """

    precision: str
    exact_ratio: float
    miou: float | None


@dataclass(frozen=True)
class BuildResult:
    """What was built.

    Attributes:
        bundle: Of which bundle.
        backend: By what.
        precision: In which precision.
        engines: By graph.
        up_to_date: The very engines were there already, and nothing was built.
        runs_here: Whether they can run on this machine.
        agreement: With the FP32 graphs; None where that was not asked for.
        latency_ms: Precision -> median of encoder and head together, from the same runs: of this one and of those that
            it was timed against; empty where it cannot run here.
        scores: On the data set, of FP32 and of this precision; empty without one.
        notes: What a person should know, a sentence each.
    """

    bundle: Path
    backend: Backend
    precision: str
    engines: dict[str, BuiltEngine]
    up_to_date: bool
    runs_here: bool
    agreement: Agreement | None
    latency_ms: dict[str, float]
    scores: tuple[PrecisionScores, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "bundle": str(self.bundle),
            "engine": self.backend.name,
            "engine_version": self.backend.version,
            "reason": self.backend.reason,
            "precision": self.precision,
            "up_to_date": self.up_to_date,
            "runs_here": self.runs_here,
            "engines": {
                name: {
                    "path": str(one.path),
                    "layers": None if one.layers is None else asdict(one.layers),
                    "record": asdict(one.record),
                }
                for name, one in self.engines.items()
            },
            "agreement": None if self.agreement is None else asdict(self.agreement),
            "latency_ms": self.latency_ms,
            "scores": [asdict(row) for row in self.scores],
            "notes": list(self.notes),
            "advice": list(self.advice),
        }

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do about it, a sentence each."""
        lines = []
        if not self.runs_here:
            targets = ", ".join(self.engines["encoder"].record.targets)
            lines.append(
                f"These engines are for other machines ({targets}); one that runs here comes with --engine onnxruntime."
            )
        if self.precision == "int8":
            lines += self._int8_advice()
        if self.agreement is not None and self.agreement.label_agreement < 1 - _NOTABLE_DISAGREEMENT:
            lines.append(
                f"{100 * (1 - self.agreement.label_agreement):.1f} % of the pixels get another label than in FP32: "
                "measure on your own pictures with --data DIR before you rely on it."
            )
        return tuple(lines)

    def _int8_advice(self) -> list[str]:
        plain = "--fp16" if self.backend.api is not None else "fp32"
        if self.engines["encoder"].record.int8_gemms == 0:
            return [f"No matrix product is computed in INT8: use {plain}."]
        own = self.latency_ms.get("int8")
        slower = {name: other for name, other in self.latency_ms.items() if own is not None and other <= own}
        if "fp16" in slower:
            return [f"INT8 takes {own:.1f} ms, FP16 {slower['fp16']:.1f} ms: use --fp16."]
        if "fp32" in slower:
            return [f"INT8 takes {own:.1f} ms, FP32 {slower['fp32']:.1f} ms: use fp32, as `run` does by itself."]
        if self.backend.api is None or "fp16" in self.latency_ms:
            return []
        if self.runs_here:
            return ["INT8 is often no faster than FP16 on a GPU: build with --fp16 too, then this again with --force."]
        if self.backend.api.is_rtx:
            return ["NVIDIA promises INT8 in TensorRT-RTX for weights alone: compare with --fp16 on the GPU itself."]
        return []
