"""Why an engine cannot run here, found without opening it: one sentence per reason, with the command that helps."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Manifest
from fsvit_edge.runtime.engines.backends import BACKEND_TITLES
from fsvit_edge.runtime.engines.base import TensorSpec
from fsvit_edge.runtime.engines.store.files import EngineRecord
from fsvit_edge.runtime.gpu import Gpu, gpu_missing_reason
from fsvit_edge.runtime.json_records import record_from_json
from fsvit_edge.runtime.machine import Machine

_MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "onnxruntime": ("onnxruntime",),
}
_LOWERED = {("float32", "float16")}
"""Allowed differences of type: that of a bundle's tensor, and that of the engine's tensor in its place."""


def incompatibilities(
    record: EngineRecord, manifest: Manifest | None, machine: Machine, bundle: Path | None = None
) -> list[str]:
    """Return every reason why an engine cannot run here, from its sidecar alone.

    Args:
        record: The engine's sidecar.
        manifest: Manifest of the bundle that it should run; None checks only the machine.
        machine: The machine that it should run on.
        bundle: Folder of the bundle, for the commands; None for the bundled model.
    """
    built_on = record_from_json(Machine, Path(record.file), record.machine)
    rebuild = f"rebuild it here with: {build_command(record.backend, record.precision, bundle)}"
    reasons = list(_bundle_mismatches(record, manifest)) if manifest is not None else []
    reasons += _version_mismatches(record)
    reasons += _platform_mismatches(built_on, machine)
    sentences = [f"{record.file} {reason}; {rebuild}." for reason in reasons]
    if record.backend != "onnxruntime":
        if machine.gpu is None:
            reason = gpu_missing_reason() or "this machine has no GPU"
            sentences.append(f"{record.file} needs a GPU, but {reason}; without a GPU, use --engine onnxruntime.")
        else:
            sentences += [
                f"{record.file} {reason}; {rebuild}." for reason in _gpu_mismatches(record, built_on, machine.gpu)
            ]
    return sentences


def build_command(backend: str | None, precision: str | None = None, bundle: Path | None = None) -> str:
    """Return the command that builds engines here.

    Args:
        backend: One of `BACKENDS`; None for the command's default.
        precision: One of `PRECISIONS`; None for the command's default.
        bundle: Folder of the bundle; None for the bundled model.
    """
    words = ["fsvit-edge", "build-engine"]
    if bundle is not None and bundle.resolve() != DEFAULT_BUNDLE.resolve():
        words.append(str(bundle))
    if backend is not None:
        words += ["--engine", backend]
    if precision is not None:
        words += ["--precision", precision]
    return shlex.join(words)


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

    def same(one: TensorSpec, other: TensorSpec) -> bool:
        dtypes = (other.dtype, one.dtype)
        return (
            one.name == other.name
            and (one.dtype == other.dtype or dtypes in _LOWERED)
            and len(one.shape) == len(other.shape)
            and all(isinstance(want, str) or got == want for got, want in zip(one.shape, other.shape, strict=True))
        )

    return len(engine) == len(graph) and all(map(same, engine, graph))


def _version_mismatches(record: EngineRecord) -> Iterator[str]:
    built_by, installed = (
        f"{BACKEND_TITLES[record.backend]} {record.backend_version}",
        installed_version(record.backend),
    )
    if installed is None:
        yield f"needs {built_by}, which is not installed (see: fsvit-edge doctor)"
    elif installed != record.backend_version:
        yield f"was built by {built_by} and runs in no other version, but {installed} is installed"


def _platform_mismatches(built_on: Machine, machine: Machine) -> Iterator[str]:
    if (built_on.os, built_on.arch) != (machine.os, machine.arch):
        yield f"was built for {built_on.os} on {built_on.arch}, but this is {machine.os} on {machine.arch}"


def _gpu_mismatches(record: EngineRecord, built_on: Machine, gpu: Gpu) -> Iterator[str]:
    here = gpu.architecture
    if record.backend == "tensorrt-rtx":
        if record.targets and here not in record.targets:
            yield f"was built for {', '.join(record.targets)}, but this {gpu.name} is {here}"
        return
    if built_on.gpu is None:
        yield "does not state the GPU that it was built for"
        return
    theirs = built_on.gpu.architecture
    if theirs != here:
        yield f"was built for {built_on.gpu.name} ({theirs}), but this is {gpu.name} ({here})"
    elif built_on.gpu.name != gpu.name:
        yield f"was built for {built_on.gpu.name} and fits no other GPU, but this is {gpu.name}"
    elif built_on.gpu.sm_count != gpu.sm_count:  # Jetsons of different sizes have the same name
        yield f"was built for {built_on.gpu.sm_count} multiprocessors, but this {gpu.name} has {gpu.sm_count}"
