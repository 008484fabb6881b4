"""A bundle -> the engines of one backend and one precision: `build_engines` is the whole story, step by step."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fsvit_edge import __version__
from fsvit_edge.calib.calibration import CALIBRATION_NAME, Calibration
from fsvit_edge.calib.convert import check_patterns, make_graph
from fsvit_edge.calib.onnx_graph import Graph
from fsvit_edge.calib.pictures import sample_pictures
from fsvit_edge.calib.ranges import collect_ranges
from fsvit_edge.export.built_graph import BuiltGraph, LayerReport
from fsvit_edge.export.job import Backend, BuildJob, BuildOptions, check_memory, plan_job
from fsvit_edge.export.measure import (
    PICTURES,
    Agreement,
    Picture,
    PrecisionScores,
    check_drop,
    check_fp16,
    compare,
    demo_pictures,
    open_candidate,
    open_on_cpu,
    score,
    time_beside_others,
)
from fsvit_edge.export.onnxruntime import build_for_cpu
from fsvit_edge.export.tensorrt import PlanRequest, build_plan
from fsvit_edge.runtime.engines.files import (
    ENGINE_GRAPHS,
    FORMAT_VERSION,
    EngineRecord,
    engine_name,
    find_engines,
    load_engine,
    read_record,
    write_engines,
)
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.messages import Progress, Say

_NOTABLE_DISAGREEMENT = 0.01
"""Share of pixels with another label from which the result advises to measure."""


@dataclass(frozen=True)
class BuiltEngine:
    """One engine."""

    path: Path
    record: EngineRecord  # its sidecar
    layers: LayerReport | None  # what became of the graph; None if the engine was up to date


@dataclass(frozen=True)
class BuildResult:
    """The engines and what was measured."""

    bundle: Path
    backend: Backend
    precision: str
    engines: dict[str, BuiltEngine]  # by graph
    up_to_date: bool  # the engines already existed and nothing was built
    runs_here: bool  # whether they can run on this machine
    agreement: Agreement | None  # with the FP32 graphs; None if it was not measured
    latency_ms: dict[str, float]
    """Precision -> median time of encoder and head together, of this precision and those timed next to it; empty if the
    engines cannot run here."""
    scores: tuple[PrecisionScores, ...]  # of FP32 and this precision on the data set; empty without one
    notes: tuple[str, ...]  # what the user should know, one sentence each

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
        """What to do next, one sentence each."""
        lines = []
        if not self.runs_here:
            targets = ", ".join(self.engines["encoder"].record.targets)
            lines.append(f"These engines are for other machines ({targets}); for this one, use --engine onnxruntime.")
        if self.precision == "int8":
            lines += self._int8_advice()
        if self.agreement is not None and self.agreement.label_agreement < 1 - _NOTABLE_DISAGREEMENT:
            lines.append(
                f"{100 * (1 - self.agreement.label_agreement):.1f} % of the pixels get a different label than in FP32; "
                "measure on your own pictures with --data DIR before you rely on it."
            )
        return tuple(lines)

    def _int8_advice(self) -> list[str]:
        other = "fp32" if self.backend.tensorrt is None else "fp16"
        if self.engines["encoder"].record.int8_gemms == 0:
            return [f"No matrix multiplication runs in INT8; use --precision {other}."]
        own_ms = self.latency_ms.get("int8")
        for precision in ("fp16", "fp32"):
            other_ms = self.latency_ms.get(precision)
            if own_ms is not None and other_ms is not None and other_ms <= own_ms:
                choice = ", as `run` does by default" if precision == "fp32" else ""
                name = precision.upper()
                return [f"INT8 takes {own_ms:.1f} ms, {name} {other_ms:.1f} ms; use --precision {precision}{choice}."]
        if self.backend.tensorrt is None or "fp16" in self.latency_ms:
            return []
        if self.runs_here:
            return ["INT8 is often no faster than FP16 on a GPU; compare: build with --fp16, then INT8 with --force."]
        if self.backend.tensorrt.is_rtx:
            return ["NVIDIA documents INT8 in TensorRT-RTX only for weights; compare with --fp16 on the GPU itself."]
        return []


def build_engines(
    bundle: Path,
    options: BuildOptions,
    progress: Progress = lambda _: None,
    say: Say = lambda _: None,
) -> BuildResult:
    """Build encoder and head, compare them with the FP32 graphs, and write both or none.

    Existing engines that were built from the same graphs by the same backend are kept.

    Args:
        bundle: The bundle's folder.
        options: What to build, and how.
        progress: Called with each step that begins.
        say: Called with what the user should see before the end, one line each: what builds, why, and the memory that
            it needs.

    Raises:
        InputError: Options contradict each other, or the bundle has no calibration.
        EnvironmentLacksError: The backend, its GPU, or the pictures to verify on are missing.
        ArtifactError: The bundle or the calibration is damaged, or the backend cannot read the graph.
        AccuracyGateError: An output is not finite, or too much is lost on the data set; nothing is written.
        FsvitEdgeError: The build failed or the disk is full; existing engines are unchanged.
    """
    job = plan_job(bundle, options)
    calibration, pictures, source = _calibrate(job, progress)
    if options.verify and not pictures:
        pictures, source = demo_pictures(), "scikit-image's photographs"
    say(f"Building {job.precision.upper()} with {job.backend.title}: {job.backend.reason}.")

    typed_graphs = _convert(job, calibration, progress)
    built_from = {name: _digest_of_build(job, name, graph) for name, graph in typed_graphs.items()}
    notes = () if calibration is None else tuple(calibration.warnings())
    if existing := _find_up_to_date(job, built_from):
        times = _recorded_times(job, existing)
        return BuildResult(bundle, job.backend, job.precision, existing, True, job.runs_here, None, times, (), notes)

    built = {name: _build(job, name, graph, progress, say) for name, graph in typed_graphs.items()}
    records = {name: _describe(job, name, one, calibration, built_from[name]) for name, one in built.items()}
    with ExitStack() as stack:
        reference = open_on_cpu(job.bundle.graphs, stack)
        if job.runs_here:
            engines = {name: (one.data, records[name]) for name, one in built.items()}
            candidate = open_candidate(job, engines, stack)
        else:
            candidate = open_on_cpu(typed_graphs, stack)  # engines for other machines
        agreement = None
        if options.verify:
            if job.precision != "fp32" and not job.runs_here:
                progress("look for values that overflow in FP16")
                check_fp16(job.bundle.manifest, reference, job.bundle.graphs, typed_graphs, pictures)
            progress("compare with FP32")
            computed_by = "the engine" if job.runs_here else "ONNX Runtime on the CPU"
            agreement = compare(job.bundle.manifest, reference, candidate, pictures, source, computed_by, progress)
        latency_ms: dict[str, dict[str, float]] = {}
        if job.runs_here:
            progress("time")
            unchanged = [name for name, record in records.items() if record.int8_gemms == 0]
            latency_ms = time_beside_others(job, candidate, unchanged, reference, stack)
        scores: tuple[PrecisionScores, ...] = ()
        if options.data is not None:
            scores = score(job, reference, candidate, progress)
            check_drop(scores, options.max_drop)

    progress("write")
    measured = {name: _add_measurements(record, agreement, latency_ms) for name, record in records.items()}
    paths = write_engines(job.folder, [(measured[name], built[name].data) for name in ENGINE_GRAPHS])
    written = {
        name: BuiltEngine(path, read_record(path), built[name].layers)
        for name, path in zip(ENGINE_GRAPHS, paths, strict=True)
    }
    totals = {precision: sum(by_graph.values()) for precision, by_graph in latency_ms.items()}
    return BuildResult(
        bundle, job.backend, job.precision, written, False, job.runs_here, agreement, totals, scores, notes
    )


def _calibrate(job: BuildJob, progress: Progress) -> tuple[Calibration | None, list[Picture], str]:
    """The calibration of an INT8 build: a file, the bundle's own, or a source that is calibrated on right now.

    Returns the calibration (None if another tool quantized the graph, which then contains its scales), some of the
    pictures that were calibrated on, for verification, and where they come from.
    """
    bundle, wanted = job.bundle, job.options.calib
    if job.precision != "int8" or (wanted is None and Graph(bundle.graphs["encoder"]).is_quantized):
        return None, [], ""
    file = bundle.path / CALIBRATION_NAME if wanted is None else Path(wanted)
    if wanted is None and not file.is_file():
        raise InputError(
            f"INT8 needs a calibration and bundle {bundle.path} has none: name pictures, a video or a camera with "
            f"--calib SOURCE, or make a file with: fsvit-edge calib SOURCE --bundle {bundle.path} --output {file}."
        )
    if wanted is None or file.suffix == ".json":
        calibration = Calibration.load(file)
        calibration.check_fits(bundle)
        return calibration, [], ""
    sample = sample_pictures(wanted)  # `fsvit-edge calib` has options for it
    every, kept = max(1, sample.count // PICTURES), list[Picture]()

    def keeping() -> Iterator[Picture]:
        for number, picture in enumerate(sample):
            if number % every == 0:  # kept at once, because a camera shows each picture only once
                kept.append(picture)
            yield picture

    calibration = collect_ranges(bundle, keeping(), progress=lambda step: progress(f"calibrate: {step}"))
    return calibration, kept[:PICTURES], wanted


def _convert(job: BuildJob, calibration: Calibration | None, progress: Progress) -> dict[str, bytes]:
    """Graph -> the ONNX file in the job's precision that the backend builds from."""
    keep_fp32, quantize = job.options.keep_fp32, job.options.quantize
    check_patterns([job.bundle.graphs[name] for name in ENGINE_GRAPHS], keep_fp32)
    graphs = {}
    for name in ENGINE_GRAPHS:
        progress(f"convert the {name}")
        source = job.bundle.graphs[name]
        model = make_graph(source, name, job.precision, job.backend.name, calibration, keep_fp32, quantize)
        graphs[name] = model.SerializeToString(deterministic=True)
    return graphs


def _digest_of_build(job: BuildJob, name: str, graph: bytes) -> str:
    """The sha256 of everything that a build depends on: graph, backend, targets, sizes and memory."""
    dynamic = {size for spec in job.bundle.manifest.graphs[name].inputs for size in spec.shape if isinstance(size, str)}
    settings = {
        "backend": [job.backend.name, job.backend.version],
        "targets": job.targets,
        "sizes": {size: job.sizes[size] for size in sorted(dynamic)} if job.backend.tensorrt is not None else {},
        "workspace_mib": job.options.workspace_mib,
    }
    return hashlib.sha256(graph + json.dumps(settings).encode()).hexdigest()


def _find_up_to_date(job: BuildJob, built_from: Mapping[str, str]) -> dict[str, BuiltEngine] | None:
    """Graph -> the existing engine that this build would produce; None unless all exist undamaged."""
    if job.options.force or job.options.data is not None:
        return None
    found: dict[str, BuiltEngine] = {}
    for path, record in find_engines(job.folder)[0]:
        is_same = (
            built_from.get(record.graph) == record.built_from_sha256
            and record.precision == job.precision
            and (
                bool(record.targets)
                or all(getattr(record.machine, key) == getattr(job.machine, key) for key in ("arch", "cpu", "gpu"))
            )
            and (bool(record.verification) or not job.options.verify)
        )
        if is_same and record.graph not in found:
            try:
                load_engine(path, record)
            except ArtifactError:  # damaged: build it again
                continue
            found[record.graph] = BuiltEngine(path, record, None)
    return {name: found[name] for name in ENGINE_GRAPHS} if found.keys() == set(ENGINE_GRAPHS) else None


def _recorded_times(job: BuildJob, engines: Mapping[str, BuiltEngine]) -> dict[str, float]:
    """Precision -> time of encoder and head together in ms, as measured when the engines were built."""
    own = [one.record.latency_ms for one in engines.values()]
    fp32 = [one.record.fp32_latency_ms for one in engines.values()]
    return {name: sum(filter(None, times)) for name, times in ((job.precision, own), ("fp32", fp32)) if all(times)}


def _build(job: BuildJob, name: str, graph: bytes, progress: Progress, say: Say) -> BuiltGraph:
    """Check the memory, then let the backend build."""
    # Whatever the plan allows, a run has few supports: the predictor splits larger ones.
    sizes = {**job.usual_sizes, "kept_tokens": job.sizes["kept_tokens"][2]}
    gpu = None if job.backend.tensorrt is None else job.machine.gpu
    check_memory(name, graph, sizes, None if gpu is None else gpu.memory_bytes, say)
    progress(f"build the {name}")
    if job.backend.tensorrt is None:
        return build_for_cpu(graph, name)
    info = job.bundle.manifest.graphs[name]
    shapes = {spec.name: spec.shape for spec in (*info.inputs, *info.outputs)}
    options = job.options
    request = PlanRequest(name, job.sizes, shapes, gpu, job.targets, options.workspace_mib, options.timing_cache)
    return build_plan(job.backend.tensorrt, graph, request, progress, say)


def _describe(
    job: BuildJob, name: str, built: BuiltGraph, calibration: Calibration | None, built_from: str
) -> EngineRecord:
    """The engine's sidecar, without measurements."""
    manifest = job.bundle.manifest
    described = ("method", "pictures", "sha256", "data_sha256")
    return EngineRecord(
        format_version=FORMAT_VERSION,
        graph=name,
        backend=job.backend.name,
        backend_version=job.backend.version,
        precision=job.precision,
        file=engine_name(name, job.backend.name, job.backend.version, job.precision, job.machine, job.targets),
        sha256="",
        size_bytes=len(built.data),
        bundle_name=manifest.name,
        backbone=manifest.backbone,
        head=manifest.head,
        image_size=manifest.image_size,
        onnx_sha256=manifest.graphs[name].sha256,
        opset=manifest.opset,
        preprocessing=manifest.preprocessing,
        inputs=built.inputs,
        outputs=built.outputs,
        profile=built.profile,
        limits=job.limits if name == "head" else {},
        machine=job.machine,
        targets=job.targets,
        calibration=None if calibration is None else {key: getattr(calibration, key) for key in described},
        verification={},
        int8_gemms=built.layers.int8_gemms,
        gemms=built.layers.gemms,
        latency_ms=None,
        fp32_latency_ms=None,
        built_by=f"fsvit-edge {__version__}",
        built_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        build_s=round(built.build_s, 3),
        built_from_sha256=built_from,
    )


def _add_measurements(
    record: EngineRecord, agreement: Agreement | None, latency_ms: Mapping[str, Mapping[str, float]]
) -> EngineRecord:
    """The record with the agreement of its own outputs, and its times."""
    verification = {}
    if agreement is not None:
        verification = asdict(agreement)
        verification["outputs"] = {
            name.removeprefix(f"{record.graph}."): row
            for name, row in agreement.outputs.items()
            if name.startswith(f"{record.graph}.")
        }
    return replace(
        record,
        verification=verification,
        latency_ms=latency_ms.get(record.precision, {}).get(record.graph),
        fp32_latency_ms=latency_ms.get("fp32", {}).get(record.graph),
    )
