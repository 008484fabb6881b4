"""Engine files: one file per graph, with a sidecar that states what it is and where it runs.

The sidecar `<file>.json` is read and the file's checksum verified before anything deserializes the file, because a
TensorRT plan can run native code. The checksum detects accidents, not an attacker who can write both files. That is why
engines of the bundled model are in a folder that only its user may enter, and why no engine is ever downloaded.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Manifest, refuse_data_elsewhere
from fsvit_edge.runtime.disk_steps import TEMPORARY_PREFIX
from fsvit_edge.runtime.engines.base import BACKENDS, TENSORRT_BACKENDS, TensorSpec
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.json_records import read_json_object, record_from_json
from fsvit_edge.runtime.machine import Machine
from fsvit_edge.runtime.storage import atomic_write, locked, open_regular, remove_leftovers, user_cache

FORMAT_VERSION = 1
ENGINE_GRAPHS = ("encoder", "head")
"""The graphs that engines are built from. `enroll` runs once per picture, so it needs none."""
PRECISIONS = ("fp32", "fp16", "int8")
SIDECAR_SUFFIX = ".json"
_SUFFIXES = {"tensorrt": ".engine", "tensorrt-rtx": ".engine", "onnxruntime": ".onnx"}
_DIGEST_LENGTH = 8


@dataclass(frozen=True)
class EngineRecord:
    """The content of a sidecar.

    Attributes:
        format_version: Version of the sidecar's format.
        graph: One of `ENGINE_GRAPHS`.
        backend: One of `BACKENDS`.
        backend_version: Exact version of the backend; no other version may open the file.
        precision: One of `PRECISIONS`: precision of the set that this file belongs to.
        file: Name of the engine file beside the sidecar.
        sha256: Checksum of that file.
        size_bytes: Size of that file.
        bundle_name: Name of the bundle.
        backbone: Name of the encoder.
        head: Kind of the head.
        image_size: Side of the encoder's input in pixels.
        onnx_sha256: Checksum of the bundle's FP32 graph that the engine was built from.
        opset: ONNX opset of that graph.
        preprocessing: As in `bundle.json`.
        inputs: As in `bundle.json`: a name stands for a variable size.
        outputs: As in `bundle.json`.
        profile: "min", "opt" and "max" shapes by input; {} for ONNX Runtime.
        limits: Largest value of each variable size: ways, supports, kept_tokens; {} without limits.
        machine: Where it was built; a plan needs the same GPU, measurements the same processor.
        targets: TensorRT-RTX: the GPU architectures that it was built for, such as "sm86"; () for other backends.
        calibration: For INT8: method, pictures, sha256 of the calibration file, data_sha256; else None.
        verification: Comparison with the FP32 graph: max_error and cosine per output, presence_flips, label_agreement,
            pictures; {} if it was not verified.
        int8_gemms: Number of matrix products that are computed in INT8.
        gemms: Number of all matrix products.
        latency_ms: Median time of a run on the machine that built it; None if it could not run there.
        fp32_latency_ms: Median time of the FP32 graph in the same measurement.
        built_by: Name and version of the builder.
        built_at: UTC, "2026-11-25T00:30:00Z".
        build_s: Duration of the build in seconds.
        built_from_sha256: Checksum of the typed graph and the build options; equal if a second build would give the
            same engine.
    """

    format_version: int
    graph: str
    backend: str
    backend_version: str
    precision: str
    file: str
    sha256: str
    size_bytes: int
    bundle_name: str
    backbone: str
    head: str
    image_size: int
    onnx_sha256: str
    opset: int
    preprocessing: dict[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: dict[str, dict[str, list[int]]]
    limits: dict[str, int]
    machine: Machine
    targets: tuple[str, ...]
    calibration: dict[str, Any] | None
    verification: dict[str, Any]
    int8_gemms: int
    gemms: int
    latency_ms: float | None
    fp32_latency_ms: float | None
    built_by: str
    built_at: str
    build_s: float
    built_from_sha256: str = ""

    def to_json(self) -> str:
        """Return indented JSON text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def engine_name(
    graph: str, backend: str, backend_version: str, precision: str, machine: Machine, targets: tuple[str, ...] = ()
) -> str:
    """Return an engine's file name, to which `write_engines` adds the first digits of its checksum."""
    if backend == "onnxruntime":
        parts = [_plain(machine.arch), f"ort{backend_version}"]
    elif backend == "tensorrt-rtx":
        parts = [f"rtx{backend_version}", "-".join(targets)]
    else:
        assert machine.gpu is not None, "TensorRT builds on a GPU"
        parts = [_plain(machine.gpu.name), machine.gpu.architecture, f"trt{backend_version}"]
    return ".".join([graph, *filter(None, parts), precision]) + _SUFFIXES[backend]


def engine_folder(bundle: Path, manifest: Manifest) -> Path:
    """Return the folder of a bundle's engines: the bundle itself, or the user's cache for the bundled model.

    Raises EnvironmentLacksError if there is no home folder for a cache.
    """
    if bundle.resolve() != DEFAULT_BUNDLE.resolve():
        return bundle
    return user_cache("engines") / f"{manifest.name}-{manifest.graphs['encoder'].sha256[:12]}"


def folder_problem(folder: Path) -> str | None:
    """Return why engines cannot be written to a folder, which need not exist, as a clause; None if they can."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        return f"{existing} is a file"
    return None if os.access(existing, os.W_OK | os.X_OK) else f"no permission in {existing}"


def sidecar_of(path: Path) -> Path:
    """Return the path of the sidecar, given the engine or the sidecar itself."""
    return path if path.suffix == SIDECAR_SUFFIX else path.with_name(path.name + SIDECAR_SUFFIX)


def write_engines(folder: Path, engines: Sequence[tuple[EngineRecord, bytes]]) -> list[Path]:
    """Write engines that belong together, each with its sidecar, and then remove older ones with the same names.

    The first digits of the checksum are part of a file's name, so old and new files are never the same: at any moment
    the old pair is complete, or the new one, or both. A killed build leaves a file without a sidecar, which nothing
    reads and the next build removes.

    The folder is created if missing; only the user may enter it if it is in the user's cache. `record.file` is the name
    from `engine_name`; the written record gets the final file, sha256 and size_bytes. If the disk is full or the folder
    cannot be written, the old engines are untouched. Returns the engines' paths.
    """
    _make_folder(folder)
    paths: list[Path] = []
    fresh: list[Path] = []
    with locked(folder, required=False):
        try:
            for record, data in engines:
                digest = hashlib.sha256(data).hexdigest()
                stem, suffix = os.path.splitext(record.file)
                path = folder / f"{stem}.{digest[:_DIGEST_LENGTH]}{suffix}"
                filled = replace(record, file=path.name, sha256=digest, size_bytes=len(data))
                fresh += [file for file in (path, sidecar_of(path)) if not file.exists()]
                atomic_write(path, data)
                atomic_write(sidecar_of(path), filled.to_json().encode())
                paths.append(path)
        except BaseException:
            for file in reversed(fresh):  # a sidecar before its engine
                with suppress(OSError):
                    file.unlink()
            raise
        for (record, _), path in zip(engines, paths, strict=True):
            _remove_older(path, *os.path.splitext(record.file))
    return paths


def read_record(path: Path) -> EngineRecord:
    """Read the sidecar of an engine, given either path; the engine itself is not opened.

    Raises ArtifactError if it is missing, damaged, of another version, or has missing, unknown or wrong fields.
    """
    file = sidecar_of(path)
    try:
        values = read_json_object(file, FORMAT_VERSION, "rebuild the engine with: fsvit-edge build-engine --force")
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{file} does not exist, so the engine is unknown; rebuild it with: fsvit-edge build-engine."
        ) from error
    record = record_from_json(EngineRecord, file, values)
    for field, allowed in (("graph", ENGINE_GRAPHS), ("backend", BACKENDS), ("precision", PRECISIONS)):
        if getattr(record, field) not in allowed:
            raise ArtifactError(
                f"{file} has {field} {getattr(record, field)!r:.40}; expected one of: {', '.join(allowed)}."
            )
    if sidecar_of(Path(record.file)).name != file.name:
        raise ArtifactError(f"{file} is the sidecar of {record.file!r:.200}, not of the engine beside it.")
    return record


def load_engine(path: Path, record: EngineRecord) -> bytes:
    """Read an engine and verify it before anything deserializes it: size, checksum, and that all values are in it."""
    remedy = "rebuild it with: fsvit-edge build-engine --force"
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != record.size_bytes:
                raise ArtifactError(
                    f"{path} is truncated or altered: {size} bytes, expected {record.size_bytes}; {remedy}."
                )
            data = file.read()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}; {remedy}.") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != record.sha256:
        raise ArtifactError(
            f"{path} was altered or damaged: sha256 {digest:.12}..., expected {record.sha256:.12}...; {remedy}."
        )
    if record.backend not in TENSORRT_BACKENDS:  # it is an ONNX graph
        refuse_data_elsewhere(path, data, remedy)
    return data


class StoredEngine(NamedTuple):
    """An engine's file and its sidecar."""

    path: Path
    record: EngineRecord


def find_engines(folder: Path) -> tuple[list[StoredEngine], list[str]]:
    """Read the sidecars in a folder; the engines themselves are not opened.

    Returns the engines, newest first, and one sentence per sidecar that cannot be used.
    """
    built, problems = [], []
    for sidecar in sorted(folder.glob(f"*{SIDECAR_SUFFIX}")):
        if sidecar.with_suffix("").suffix not in _SUFFIXES.values() or sidecar.name.startswith(TEMPORARY_PREFIX):
            continue
        try:
            built.append(StoredEngine(sidecar.with_suffix(""), read_record(sidecar)))
        except ArtifactError as error:  # the other sidecars are still useful
            problems.append(str(error))
    return sorted(built, key=lambda engine: engine.record.built_at, reverse=True), problems


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")


def _make_folder(folder: Path) -> None:
    cache = user_cache("engines")
    with suppress(OSError):  # atomic_write will say why
        if cache in folder.parents:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        else:
            folder.mkdir(parents=True, exist_ok=True)


def _remove_older(path: Path, stem: str, suffix: str) -> None:
    """Remove engines whose names differ only in the checksum, and leftovers of killed builds; sidecars first."""
    remove_leftovers(path.parent)
    name = re.compile(rf"{re.escape(stem)}\.[0-9a-f]{{{_DIGEST_LENGTH}}}{re.escape(suffix)}({SIDECAR_SUFFIX})?")
    kept = {path.name, sidecar_of(path).name}
    older = [file for file in path.parent.iterdir() if name.fullmatch(file.name) and file.name not in kept]
    for file in sorted(older, key=lambda file: file.suffix != SIDECAR_SUFFIX):
        with suppress(OSError):  # harmless, because the newest engine is used
            file.unlink()
