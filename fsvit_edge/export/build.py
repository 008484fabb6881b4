"""A bundle -> the engines of one backend and one precision: graphs, plans, comparison, files."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import onnx

from fsvit_edge import __version__
from fsvit_edge.calib.precision import PrecisionOptions, check_patterns, make_graph
from fsvit_edge.export.backend import Backend, choose_backend
from fsvit_edge.export.calibrate import Calibrated, find_calibration
from fsvit_edge.export.cpu_builder import build_for_cpu
from fsvit_edge.export.engine_check import (
    PICTURES,
    Agreement,
    Picture,
    compare,
    demo_pictures,
    example_feed,
    time_side_by_side,
)
from fsvit_edge.export.layer_report import LayerReport
from fsvit_edge.export.memory_budget import estimate
from fsvit_edge.export.plan_builder import Plan, PlanOptions, Range, build_plan, choose_targets
from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.engines.base import Engine
from fsvit_edge.runtime.engines.engine_file import (
    ENGINE_GRAPHS,
    FORMAT_VERSION,
    PRECISIONS,
    EngineRecord,
    engine_folder,
    engine_name,
    load_engine,
    read_record,
    write_engine,
)
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import ArtefactError, FsvitEdgeError, InputError
from fsvit_edge.runtime.machine import Machine

DEFAULT_WAYS_MAX = 10
DEFAULT_SHOTS_MAX = 5
_USUAL_SUPPORTS = 5
_USUAL_MASK_COVER = 0.3

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BuildOptions:
    """What to build, and how.

    Attributes:
        engine: "auto" or a backend.
        precision: One of `PRECISIONS`; None: FP16 with TensorRT, INT8 with ONNX Runtime.
        calib: A calibration's file, or what to calibrate on; None: the one that lies in the bundle.
        keep_fp32: Patterns of nodes that compute in FP32.
        quantize: Patterns of the linear layers to quantise; none: all.
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
        was_there: The very engines were there already, and nothing was built.
        runs_here: Whether they can run on this machine.
        agreement: With the FP32 graphs; None where that was not asked for.
        fp16_latency_ms: By graph, of an FP16 engine that is here, from the same runs; empty without one.
        scores: On the data set, of FP32 and of this precision; empty without one.
        notes: What a person should know, a sentence each.
    """

    bundle: Path
    backend: Backend
    precision: str
    engines: dict[str, BuiltEngine]
    was_there: bool
    runs_here: bool
    agreement: Agreement | None
    fp16_latency_ms: dict[str, float]
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
            "was_there": self.was_there,
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
            "fp16_latency_ms": self.fp16_latency_ms,
            "scores": [asdict(row) for row in self.scores],
            "notes": list(self.notes),
        }
