"""A bundle -> the engines of one backend and one precision: graphs, plans, comparison, files."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

import onnx

from fsvit_edge import __version__
from fsvit_edge.calib.onnx_graph import Graph
from fsvit_edge.calib.precision import PrecisionOptions, check_patterns, make_graph
from fsvit_edge.export.backend import Backend, choose_backend
from fsvit_edge.export.build_result import BuildOptions, BuildResult, BuiltEngine, PrecisionScores
from fsvit_edge.export.calibrate import Calibrated, find_calibration
from fsvit_edge.export.candidate import check_drop, open_candidate, open_stand_ins, score, time_beside_others
from fsvit_edge.export.compare import Agreement, check_fp16, compare, demo_pictures
from fsvit_edge.export.cpu_builder import build_for_cpu
from fsvit_edge.export.job import Job
from fsvit_edge.export.memory_budget import estimate
from fsvit_edge.export.plan_builder import BuiltGraph, PlanOptions, build_plan, choose_targets
from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine, refuse_fp16_on_cpu
from fsvit_edge.runtime.engines.store.files import (
    ENGINE_GRAPHS,
    FORMAT_VERSION,
    PRECISIONS,
    EngineRecord,
    engine_folder,
    load_engine,
    read_record,
    write_engines,
)
from fsvit_edge.runtime.engines.store.sets import find_engines
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, InputError
from fsvit_edge.runtime.machine import Machine

DEFAULT_WAYS_MAX, DEFAULT_SHOTS_MAX = 10, 5
_USUAL_SUPPORTS = 5
_USUAL_MASK_COVER = 0.3

Progress = Callable[[str], None]


def build_engines(
    bundle: Path,
    options: BuildOptions,
    progress: Progress = lambda _: None,
    say: Progress = lambda _: None,
) -> BuildResult:
    """Build encoder and head, compare them with the FP32 graphs, and write them whole or not at all.

    Engines that are there and were built from the same graphs by the same backend are left as they are.

    Args:
        bundle: The bundle's folder.
        options: See there.
        progress: Is told the step that begins.
        say: Is told what a person should see before the end, a line each: what builds, why, the memory that it needs.

    Raises:
        InputError: Options contradict each other, or the bundle has no calibration.
        EnvironmentLacksError: The backend, its GPU, or the pictures to verify on are not here.
        ArtifactError: The bundle or the calibration is damaged, or the backend cannot read the graph.
        AccuracyGateError: An output is not finite, or too much is lost on the data set; nothing is written.
        FsvitEdgeError: The build failed or the disk is full; the engines that were there are as they were.
    """
    job = _plan_job(bundle, options)
    pictures = demo_pictures() if options.verify and not _is_source(options) else []
    calibrated = _calibrate(job, progress)
    say(f"Building {job.precision.upper()} with {job.backend.title}: {job.backend.reason}.")
    typed = _typed_graphs(job, calibrated, progress)
    digests = {name: _built_from(job, name, graph) for name, graph in typed.items()}
    notes = tuple(calibrated.calibration.warnings()) if calibrated is not None else ()
    there = None if options.force or options.data is not None else _find_same(job, digests)
    if there is not None:
        return BuildResult(
            bundle, job.backend, job.precision, there, True, job.runs_here, None, _stated_times(job, there), (), notes
        )
    built = {name: _build(job, name, graph, progress, say) for name, graph in typed.items()}
    records = {name: _record(job, name, one, calibrated, digests[name]) for name, one in built.items()}
    source = "scikit-image's photographs"
    if calibrated is not None and calibrated.pictures:
        pictures, source = list(calibrated.pictures), calibrated.source
    agreement: Agreement | None = None
    scores: tuple[PrecisionScores, ...] = ()
    with ExitStack() as stack:
        reference = {
            name: stack.enter_context(OnnxRuntimeEngine(graph, "cpu")) for name, graph in job.bundle.graphs.items()
        }
        plans = {name: (one.data, records[name]) for name, one in built.items()}
        candidate = open_candidate(job, plans, stack) if job.runs_here else open_stand_ins(typed, stack)
        if options.verify:
            if job.precision != "fp32" and not job.runs_here:
                progress("look for values that FP16 cannot hold")
                check_fp16(job.bundle.manifest, reference, job.bundle.graphs, typed, pictures)
            progress("compare with FP32")
            computed_by = "the engine" if job.runs_here else "ONNX Runtime on the CPU"
            agreement = compare(job.bundle.manifest, reference, candidate, pictures, source, computed_by, progress)
        latency_ms = {}
        if job.runs_here:
            progress("time")
            unchanged = [name for name, record in records.items() if record.int8_gemms == 0]
            latency_ms = time_beside_others(job, candidate, unchanged, reference, stack)
        if options.data is not None:
            scores = score(job, reference, candidate, progress)
            check_drop(scores, options.max_drop)
    records = {name: _with_figures(record, agreement, latency_ms) for name, record in records.items()}
    progress("write")
    paths = write_engines(job.folder, [(records[name], built[name].data) for name in ENGINE_GRAPHS])
    engines = {
        name: BuiltEngine(path, read_record(path), built[name].layers)
        for name, path in zip(ENGINE_GRAPHS, paths, strict=True)
    }
    totals = {name: sum(times.values()) for name, times in latency_ms.items()}
    return BuildResult(
        bundle, job.backend, job.precision, engines, False, job.runs_here, agreement, totals, scores, notes
    )


def _plan_job(path: Path, options: BuildOptions) -> Job:
    """Check everything that can be checked before work begins."""
    if options.precision not in (None, *PRECISIONS):
        raise InputError(f"Precision {options.precision!r} is unknown; choose one of: {', '.join(PRECISIONS)}.")
    if options.max_drop is not None and options.data is None:
        raise InputError("--max-drop says how much may be lost on a data set; name it with --data DIR.")
    machine = Machine.here()
    backend = choose_backend(options.engine, machine.gpu, bool(options.targets))
    precision = options.precision or backend.default_precision
    _refuse_idle_options(options, backend, precision)
    targets = () if backend.api is None else choose_targets(backend.api, options.targets, precision, machine.gpu)
    bundle = Bundle.load(path)
    folder = engine_folder(path, bundle.manifest)
    _check_writable(folder)
    supports = (options.ways_max or DEFAULT_WAYS_MAX) * (options.shots_max or DEFAULT_SHOTS_MAX)
    ways = options.ways_max or DEFAULT_WAYS_MAX
    grid = bundle.manifest.support_grid**2
    sizes = {
        "batch": (1, 1, 1),
        "supports": (1, min(_USUAL_SUPPORTS, supports), supports),
        "ways": (1, min(_USUAL_SUPPORTS, ways), ways),
        "kept_tokens": (1, 1 + round(_USUAL_MASK_COVER * grid), 1 + grid),
    }
    return Job(bundle, folder, options, backend, precision, targets, machine, sizes)


def _refuse_idle_options(options: BuildOptions, backend: Backend, precision: str) -> None:
    """Refuse what would have no effect.

    Raises:
        InputError: An option has none with this backend or precision.
    """
    name = backend.name
    idle = {
        "--calib": options.calib is not None and precision != "int8" and "a calibration belongs to --int8",
        "--quantize": options.quantize and precision != "int8" and "it chooses what --int8 quantizes",
        "--keep-fp32": options.keep_fp32 and precision == "fp32" and "all is FP32",
        "--target": options.targets and name != "tensorrt-rtx" and f"it belongs to tensorrt-rtx, not to {name}",
        "--timing-cache": options.timing_cache and name != "tensorrt" and f"it belongs to tensorrt, not to {name}",
        "--workspace": options.workspace_mib and name == "onnxruntime" and "it belongs to TensorRT",
        "--ways-max": options.ways_max and name == "onnxruntime" and "ONNX Runtime takes any number",
        "--shots-max": options.shots_max and name == "onnxruntime" and "ONNX Runtime takes any number",
    }
    for option, reason in idle.items():
        if reason:
            raise InputError(
                f"{option} has no effect here: {reason} ({backend.title}, {backend.reason}); leave it out."
            )
    if name == "onnxruntime":
        refuse_fp16_on_cpu(precision)


def _check_writable(folder: Path) -> None:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise FsvitEdgeError(
            f"Engines cannot be written to {folder}: no permission in {existing}; copy the bundle to a folder of "
            "yours, or for the shipped model name another cache with: export XDG_CACHE_HOME=/path."
        )


def _is_source(options: BuildOptions) -> bool:
    return options.calib is not None and not options.calib.endswith(".json")


def _calibrate(job: Job, progress: Progress) -> Calibrated | None:
    if job.precision != "int8":
        return None
    if job.options.calib is None and Graph(job.bundle.graphs["encoder"]).is_quantized:
        return None  # quantized elsewhere, with its scales inside
    return find_calibration(job.bundle, job.options.calib, progress)


def _typed_graphs(job: Job, calibrated: Calibrated | None, progress: Progress) -> dict[str, bytes]:
    """The graphs that the backend is given."""
    options = PrecisionOptions(job.options.keep_fp32, job.options.quantize)
    check_patterns([job.bundle.graphs[name] for name in ENGINE_GRAPHS], options)
    calibration = None if calibrated is None else calibrated.calibration
    graphs = {}
    for name in ENGINE_GRAPHS:
        progress(f"convert the {name}")
        model = make_graph(job.bundle.graphs[name], name, job.precision, job.backend.name, calibration, options)
        graphs[name] = model.SerializeToString(deterministic=True)
    return graphs


def _built_from(job: Job, name: str, graph: bytes) -> str:
    varying = {size for spec in job.bundle.manifest.graphs[name].inputs for size in spec.shape if isinstance(size, str)}
    told = {
        "backend": [job.backend.name, job.backend.version],
        "targets": job.targets,
        "sizes": {size: job.sizes[size] for size in sorted(varying)} if job.backend.api is not None else {},
        "workspace_mib": job.options.workspace_mib,
    }
    return hashlib.sha256(graph + json.dumps(told).encode()).hexdigest()


def _find_same(job: Job, digests: Mapping[str, str]) -> dict[str, BuiltEngine] | None:
    """The engines that this build would give, where they are whole."""
    found: dict[str, BuiltEngine] = {}
    here = job.machine.to_dict()
    for path, record in find_engines(job.folder)[0]:
        is_same = (
            digests.get(record.graph) == record.built_from_sha256
            and record.precision == job.precision
            and (bool(record.targets) or all(record.machine[key] == here[key] for key in ("arch", "cpu", "gpu")))
            and (bool(record.verification) or not job.options.verify)
        )
        if is_same and record.graph not in found:
            try:
                load_engine(path, record)
            except ArtifactError:  # damaged: build it again
                continue
            found[record.graph] = BuiltEngine(path, record, None)
    return {name: found[name] for name in ENGINE_GRAPHS} if found.keys() == set(ENGINE_GRAPHS) else None


def _stated_times(job: Job, engines: Mapping[str, BuiltEngine]) -> dict[str, float]:
    own = [one.record.latency_ms for one in engines.values()]
    fp32 = [one.record.fp32_latency_ms for one in engines.values()]
    return {name: sum(filter(None, times)) for name, times in ((job.precision, own), ("fp32", fp32)) if all(times)}


def _build(job: Job, name: str, graph: bytes, progress: Progress, say: Progress) -> BuiltGraph:
    # A run takes a few supports at a time, whatever the plan allows: the predictor splits what would grow too large.
    sizes = {**job.usual(), "kept_tokens": job.sizes["kept_tokens"][2]}
    gpu_bytes = job.machine.gpu.memory_bytes if job.backend.api is not None and job.machine.gpu is not None else None
    budget = estimate(onnx.load_from_string(graph), sizes, gpu_bytes)
    asked = f" with {sizes['supports']} supports at once" if name == "head" else ""
    say(f"Memory of the {name}{asked}: {budget}.")
    budget.check(name)
    progress(f"build the {name}")
    if job.backend.api is None:
        return build_for_cpu(graph, name)
    info = job.bundle.manifest.graphs[name]
    names = {spec.name: spec.shape for spec in (*info.inputs, *info.outputs)}
    options = PlanOptions(job.targets, job.options.workspace_mib, job.options.timing_cache)
    return build_plan(job.backend.api, graph, name, job.sizes, names, options, job.machine.gpu, progress)


def _record(job: Job, name: str, built: BuiltGraph, calibrated: Calibrated | None, digest: str) -> EngineRecord:
    manifest = job.bundle.manifest
    calibration = None
    if calibrated is not None:
        made = calibrated.calibration
        calibration = {
            "method": made.method,
            "pictures": made.pictures,
            "sha256": made.sha256,
            "data_sha256": made.data_sha256,
        }
    return EngineRecord(
        format_version=FORMAT_VERSION,
        graph=name,
        backend=job.backend.name,
        backend_version=job.backend.version,
        precision=job.precision,
        file=job.file_name(name),
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
        machine=job.machine.to_dict(),
        targets=job.targets,
        calibration=calibration,
        verification={},
        int8_gemms=built.layers.int8_gemms,
        gemms=built.layers.gemms,
        latency_ms=None,
        fp32_latency_ms=None,
        built_by=f"fsvit-edge {__version__}",
        built_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        build_s=round(built.build_s, 3),
        built_from_sha256=digest,
    )


def _with_figures(
    record: EngineRecord, agreement: Agreement | None, latency_ms: Mapping[str, Mapping[str, float]]
) -> EngineRecord:
    """Fill in what was found out about an engine."""
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
