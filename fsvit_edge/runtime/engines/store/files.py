"""Engines that were built from a bundle: a file for one graph, with a sidecar that says what it is and where it runs.

The sidecar `<file>.json` is read and the file's sum checked before anything deserializes the file: a TensorRT plan is
as good as native code. The sum finds accidents, not an attacker who writes both files; so engines of the shipped model
lie in a folder that only its user may enter, and no engine is ever fetched from anywhere.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Manifest
from fsvit_edge.runtime.engines.base import TensorSpec
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.gpu import Gpu
from fsvit_edge.runtime.machine import Machine
from fsvit_edge.runtime.storage import (
    TEMPORARY_PREFIX,
    atomic_write,
    locked,
    read_json_object,
    record_from_json,
    user_cache,
)

FORMAT_VERSION = 1
ENGINE_GRAPHS = ("encoder", "head")
"""Graphs that engines are built of; a picture is enrolled once, so `enroll` stays as it is."""
BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime")
PRECISIONS = ("fp32", "fp16", "int8")
SIDECAR_SUFFIX = ".json"
_SUFFIXES = {"tensorrt": ".engine", "tensorrt-rtx": ".engine", "onnxruntime": ".onnx"}
_DIGEST_LENGTH = 8


@dataclass(frozen=True)
class EngineRecord:
    """What a sidecar says.

    Attributes:
        format_version: Of the sidecar.
        graph: One of `ENGINE_GRAPHS`.
        backend: One of `BACKENDS`.
        backend_version: As the backend says it itself; no other version is trusted with the file.
        precision: One of `PRECISIONS`: of the set that this file belongs to.
        file: Name of the engine beside the sidecar.
        sha256: Of that file.
        size_bytes: Of that file.
        bundle_name: What people call the network.
        backbone: Name of the encoder.
        head: Kind of the head.
        image_size: Side of the encoder's input in pixels.
        onnx_sha256: Of the bundle's FP32 graph that this was made of.
        opset: ONNX opset of that graph.
        preprocessing: As in `bundle.json`.
        inputs: With sizes that vary by name, as in `bundle.json`.
        outputs: Likewise.
        profile: By input: "min", "opt" and "max" shapes; {} without.
        limits: Largest value of each size that varies: ways, supports, kept_tokens; {} without limits.
        machine: Where it was built, as `Machine.to_dict` gives it; for plans its GPU counts, for others its processor.
        targets: TensorRT-RTX: kinds of GPU that it was built for, "sm86"; () elsewhere.
        calibration: Of INT8: method, pictures, sha256 of the calibration file, data_sha256; None without.
        verification: Against the FP32 graph: per output max_error and cosine, presence_flips, label_agreement,
            pictures; {} where it was not verified.
        int8_gemms: Matrix products that are truly computed in INT8.
        gemms: All matrix products.
        latency_ms: Median of a run here, when it was built; None where it could not run.
        fp32_latency_ms: The same of the FP32 graph.
        built_by: Name and version of the builder.
        built_at: UTC, "2026-11-25T00:30:00Z".
        build_s: How long the build took.
        built_from_sha256: Of the typed graph that the backend was given, together with the build's own options: equal
            where a second build would give the same engine.
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
    machine: dict[str, Any]
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
    graph: str, backend: str, backend_version: str, precision: str, made_for: Gpu | tuple[str, ...] | str
) -> str:
    """Return an engine's file name, to which `write_engine` adds the first digits of its sum.

    Args:
        graph: One of `ENGINE_GRAPHS`.
        backend: One of `BACKENDS`.
        backend_version: As the backend says it itself.
        precision: One of `PRECISIONS`.
        made_for: tensorrt: the GPU; tensorrt-rtx: kinds of GPU; onnxruntime: the processor's kind.
    """
    if backend == "onnxruntime":
        parts = [_plain(str(made_for)), f"ort{backend_version}"]
    elif backend == "tensorrt-rtx":
        assert isinstance(made_for, tuple)
        parts = [f"rtx{backend_version}", "-".join(made_for)]
    else:
        assert not isinstance(made_for, tuple | str)
        parts = [_plain(made_for.name), made_for.architecture, f"trt{backend_version}"]
    return ".".join([graph, *filter(None, parts), precision]) + _SUFFIXES[backend]


def engine_folder(bundle: Path, manifest: Manifest) -> Path:
    """Return where a bundle's engines lie: beside its graphs; the shipped model's in the user's cache.

    Raises:
        EnvironmentLacksError: There is no home folder for a cache.
    """
    if bundle.resolve() != DEFAULT_BUNDLE.resolve():
        return bundle
    return user_cache("engines") / f"{manifest.name}-{manifest.graphs['encoder'].sha256[:12]}"


def sidecar_of(path: Path) -> Path:
    """Return the sidecar's path, given that of the engine or of the sidecar itself."""
    return path if path.suffix == SIDECAR_SUFFIX else path.with_name(path.name + SIDECAR_SUFFIX)


def write_engines(folder: Path, engines: Sequence[tuple[EngineRecord, bytes]]) -> list[Path]:
    """Write engines that belong together, each with its sidecar, and then remove the older ones of the same names.

    The file's name gets the first digits of its sum, so new and old are four different files: at every moment either
    the old pair is whole, or the new one, or both. A build that is killed leaves a file without a sidecar, which
    nothing reads and the next build removes.

    Args:
        folder: Made where it is missing; in the user's cache only the user may enter it.
        engines: Each record with its engine; `file` as `engine_name` gives it; file, sha256 and size_bytes are filled
            in.

    Returns:
        The engines' paths.

    Raises:
        InputError: The folder's place is taken by a file.
        FsvitEdgeError: The disk is full or the folder cannot be written; the old engines are untouched.
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
            for file in reversed(fresh):  # a sidecar goes before its engine
                with suppress(OSError):
                    file.unlink()
            raise
        for (record, _), path in zip(engines, paths, strict=True):
            _remove_older(path, *os.path.splitext(record.file))
    return paths


def write_engine(folder: Path, record: EngineRecord, data: bytes) -> Path:
    """Write one engine; see `write_engines`."""
    return write_engines(folder, [(record, data)])[0]


def read_record(path: Path) -> EngineRecord:
    """Read the sidecar of an engine; the engine itself is not touched.

    Args:
        path: Of the engine or of the sidecar.

    Raises:
        ArtifactError: The sidecar is missing, damaged, of another version, or has missing, unknown or wrong fields.
    """
    file = sidecar_of(path)
    try:
        values = read_json_object(file, FORMAT_VERSION, "build the engine again with: fsvit-edge build-engine --force")
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{file} does not exist, so nothing says what the engine is; build it with: fsvit-edge build-engine."
        ) from error
    record = record_from_json(EngineRecord, file, values)
    for field, allowed in (("graph", ENGINE_GRAPHS), ("backend", BACKENDS), ("precision", PRECISIONS)):
        if getattr(record, field) not in allowed:
            raise ArtifactError(
                f"{file} is of {field} {getattr(record, field)!r:.40}; expected one of: {', '.join(allowed)}."
            )
    record_from_json(Machine, file, record.machine)
    if sidecar_of(Path(record.file)).name != file.name:
        raise ArtifactError(f"{file} is the sidecar of {record.file!r:.200}, not of the engine beside it.")
    return record


def load_engine(path: Path, record: EngineRecord) -> bytes:
    """Read an engine whose size and sum are those that its sidecar states; check them before it is deserialized.

    Raises:
        ArtifactError: It is missing, cannot be read, or was altered.
    """
    remedy = "build it again with: fsvit-edge build-engine --force"
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != record.size_bytes:
                raise ArtifactError(
                    f"{path} is cut short or altered: {size} bytes, expected {record.size_bytes}; {remedy}."
                )
            data = file.read()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}; {remedy}.") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != record.sha256:
        raise ArtifactError(
            f"{path} was altered or damaged: sha256 {digest:.12}..., expected {record.sha256:.12}...; {remedy}."
        )
    return data


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
    """Remove engines of the same name but for their sum, and what killed builds of it left; sidecars first."""
    name = re.compile(
        rf"(\{TEMPORARY_PREFIX}\w+-)?{re.escape(stem)}\.[0-9a-f]{{{_DIGEST_LENGTH}}}{re.escape(suffix)}({SIDECAR_SUFFIX})?"
    )
    kept = {path.name, sidecar_of(path).name}
    older = [file for file in path.parent.iterdir() if name.fullmatch(file.name) and file.name not in kept]
    for file in sorted(older, key=lambda file: file.suffix != SIDECAR_SUFFIX):
        with suppress(OSError):  # the newest counts, so what cannot be removed does no harm
            file.unlink()
