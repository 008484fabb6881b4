"""Which built engines fit a bundle and a machine, found without opening them.

Each reason why one does not fit is a sentence with the command that helps.
"""

import importlib.util
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, GraphInfo, Manifest, read_graph
from fsvit_edge.runtime.engines.base import BACKEND_TITLES, TensorSpec, fits
from fsvit_edge.runtime.engines.files import ENGINE_GRAPHS, EngineRecord, StoredEngine
from fsvit_edge.runtime.gpu import Gpu, gpu_missing_reason
from fsvit_edge.runtime.machine import Machine
from fsvit_edge.runtime.messages import command_line

_MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "onnxruntime": ("onnxruntime",),
}


class EngineSet(NamedTuple):
    """The newest encoder and head that fit, of one backend and precision."""

    encoder: StoredEngine
    head: StoredEngine

    @property
    def record(self) -> EngineRecord:
        """Sidecar of the encoder, whose backend, precision and machine are those of the set."""
        return self.encoder.record

    @property
    def latency_ms(self) -> float | None:
        """Time of encoder and head together, as measured at the build; None if it was not."""
        return _sum(self.encoder.record.latency_ms, self.head.record.latency_ms)

    @property
    def fp32_latency_ms(self) -> float | None:
        """Time of the FP32 graphs in the same measurement; None if it was not measured."""
        return _sum(self.encoder.record.fp32_latency_ms, self.head.record.fp32_latency_ms)

    @property
    def description(self) -> str:
        """In words, for people: INT8 in ONNX Runtime 1.32.0, built 2026-11-25."""
        record = self.record
        return (
            f"{record.precision.upper()} in {BACKEND_TITLES[record.backend]} {record.backend_version}, "
            f"built {record.built_at[:10]}"
        )


class Fitting(NamedTuple):
    """Complete sets; and by backend and precision without one, the sentence that explains why."""

    sets: tuple[EngineSet, ...]
    reasons: dict[tuple[str, str], str]


def fitting_sets(
    built: Collection[StoredEngine], manifest: Manifest, machine: Machine, bundle: Path | None = None
) -> Fitting:
    """Pair the newest encoder and head of each backend and precision that fit the bundle and the machine.

    `built` is sorted newest first; `bundle` is the bundle's folder for the commands, None for the bundled model.
    """
    sets = []
    reasons: dict[tuple[str, str], str] = {}
    for kind in dict.fromkeys((record.backend, record.precision) for _, record in built):
        chosen: dict[str, StoredEngine] = {}
        refusals: dict[str, str] = {}
        for engine in built:
            record = engine.record
            if (record.backend, record.precision) == kind and record.graph not in chosen:
                refused = incompatibilities(record, manifest, machine, bundle)
                if refused:
                    refusals.setdefault(record.graph, refused[0])
                else:
                    chosen[record.graph] = engine
        missing = [graph for graph in ENGINE_GRAPHS if graph not in chosen]
        if not missing:
            sets.append(EngineSet(**chosen))
            continue
        backend, precision = kind
        incomplete = (
            f"The {precision.upper()} engines for {BACKEND_TITLES[backend]} have no {missing[0]}; build it with: "
            f"{build_command(backend, precision, bundle)}."
        )
        reasons[kind] = refusals.get(missing[0], incomplete)
    return Fitting(tuple(sets), reasons)


def incompatibilities(
    record: EngineRecord, manifest: Manifest | None, machine: Machine, bundle: Path | None = None
) -> list[str]:
    """Return every reason why an engine cannot run here, from its sidecar alone.

    A manifest of None checks only the machine. `bundle` is its folder for the commands, None for the bundled model.
    """
    rebuild = f"rebuild it here with: {build_command(record.backend, record.precision, bundle)}"
    reasons = list(_bundle_mismatches(record, manifest)) if manifest is not None else []
    reasons += _version_mismatches(record)
    built_on = record.machine
    if (built_on.os, built_on.arch) != (machine.os, machine.arch):
        reasons.append(f"was built for {built_on.os} on {built_on.arch}, but this is {machine.os} on {machine.arch}")
    is_plan = record.backend != "onnxruntime"
    if is_plan and machine.gpu is not None:
        reasons += _gpu_mismatches(record, machine.gpu)
    sentences = [f"{record.file} {reason}; {rebuild}." for reason in reasons]
    if is_plan and machine.gpu is None:
        reason = gpu_missing_reason() or "this machine has no GPU"
        sentences.append(f"{record.file} needs a GPU, but {reason}; without a GPU, use --engine onnxruntime.")
    return sentences


def build_command(backend: str | None, precision: str | None = None, bundle: Path | None = None) -> str:
    """Return the command that builds engines here; None for the command's default, or for the bundled model."""
    words = ["build-engine"]
    if bundle is not None and bundle.resolve() != DEFAULT_BUNDLE.resolve():
        words.append(str(bundle))
    if backend is not None:
        words += ["--engine", backend]
    if precision is not None:
        words += ["--precision", precision]
    return command_line(*words)


def read_int8_encoder(bundle: Path, info: GraphInfo) -> bytes:
    """Read the INT8 encoder of a bundle, which no export makes; raises like `read_graph`."""
    command = build_command("onnxruntime", "int8", bundle)
    return read_graph(
        bundle, info, f"a run without --precision int8 uses another encoder; to build one in INT8: {command}"
    )


def installed_version(backend: str) -> str | None:
    """Return the version of an installed backend; None if it is not installed.

    The module is not imported but its source read: an import loads gigabytes, and fails if a library is missing.
    """
    for module in _MODULES[backend]:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):  # a module in sys.modules that has no spec
            continue
        if spec is None or spec.origin is None:
            continue
        try:
            stated = re.search(r"""^__version__\s*=\s*["']([^"']+)["']""", Path(spec.origin).read_text(), re.MULTILINE)
        except (OSError, UnicodeDecodeError):
            continue
        if stated:
            return stated[1]
    return None


def _bundle_mismatches(record: EngineRecord, manifest: Manifest) -> Iterator[str]:
    info = manifest.graphs[record.graph]
    if record.onnx_sha256 != info.sha256:
        yield (
            f"was built from a different {info.file} (sha256 {record.onnx_sha256:.12}...) than that of {manifest.name} "
            f"({info.sha256:.12}...)"
        )
    for field, what in (("backbone", "backbone"), ("head", "head"), ("image_size", "image size")):
        theirs, ours = getattr(record, field), getattr(manifest, field)
        if theirs != ours:
            yield f"was built for the {what} {theirs}, but {manifest.name} has {ours}"
    if record.preprocessing != manifest.preprocessing:
        yield f"was built for a different preprocessing than that of {manifest.name}"
    if not (_same_tensors(record.inputs, info.inputs) and _same_tensors(record.outputs, info.outputs)):
        yield f"has different inputs or outputs than {info.file}"


def _same_tensors(engine: tuple[TensorSpec, ...], graph: tuple[TensorSpec, ...]) -> bool:
    """Whether an engine's tensors can replace a graph's: a variable size may be fixed, and FP32 may be FP16."""
    return len(engine) == len(graph) and all(
        one.name == other.name
        and (one.dtype == other.dtype or (other.dtype, one.dtype) == ("float32", "float16"))
        and fits(one.shape, other.shape)
        for one, other in zip(engine, graph, strict=True)
    )


def _version_mismatches(record: EngineRecord) -> Iterator[str]:
    built_by = f"{BACKEND_TITLES[record.backend]} {record.backend_version}"
    installed = installed_version(record.backend)
    if installed is None:
        yield f"needs {built_by}, which is not installed (see: fsvit-edge doctor)"
    elif installed != record.backend_version:
        yield f"was built by {built_by} and runs in no other version, but {installed} is installed"


def _gpu_mismatches(record: EngineRecord, gpu: Gpu) -> Iterator[str]:
    built_on, here = record.machine.gpu, gpu.architecture
    if record.backend == "tensorrt-rtx":
        if record.targets and here not in record.targets:
            yield f"was built for {', '.join(record.targets)}, but this {gpu.name} is {here}"
        return
    if built_on is None:
        yield "does not state the GPU that it was built for"
        return
    if built_on.architecture != here:
        yield f"was built for {built_on.name} ({built_on.architecture}), but this is {gpu.name} ({here})"
    elif built_on.name != gpu.name:
        yield f"was built for {built_on.name} and fits no other GPU, but this is {gpu.name}"
    elif built_on.sm_count != gpu.sm_count:  # Jetsons of different sizes have the same name
        yield f"was built for {built_on.sm_count} multiprocessors, but this {gpu.name} has {gpu.sm_count}"


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
