"""Inspect a file without executing anything in it: what it is, whether it is intact, and whether it runs here."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.bank_file import METADATA_KEY
from fsvit_edge.fewshot.bank_signature import (
    PUBLIC_SUFFIX,
    SIGNATURE_BYTES,
    SIGNATURE_SUFFIX,
    TrustedKey,
    is_public_key,
    signature_of,
    signature_problem,
)
from fsvit_edge.fewshot.names import escaped
from fsvit_edge.fewshot.network import ExportedNetwork
from fsvit_edge.inspect.file_headers import pickled_facts, read_onnx_header, safetensors_facts
from fsvit_edge.runtime.bundle import (
    DEFAULT_BUNDLE,
    MANIFEST_NAME,
    MAX_GRAPH_BYTES,
    OBJECTNESS,
    Bundle,
    GraphInfo,
    Manifest,
    read_graph,
    read_manifest,
)
from fsvit_edge.runtime.engines.base import BACKEND_TITLES, TensorSpec
from fsvit_edge.runtime.engines.files import (
    SIDECAR_SUFFIX,
    EngineRecord,
    engine_folder,
    find_engines,
    load_engine,
    read_record,
    sidecar_of,
)
from fsvit_edge.runtime.engines.fitting import incompatibilities
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.engines.open_graphs import open_graphs
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.json_records import MAX_JSON_BYTES
from fsvit_edge.runtime.machine import Machine, has_vnni_here
from fsvit_edge.runtime.onnx_file import tensor_with_nan
from fsvit_edge.runtime.storage import read_file

_PLANS = {b"ftrt": "TensorRT", b"vtrt": "TensorRT-RTX"}
_PLAN_SUFFIXES = (".engine", ".plan", ".trt")
_PICKLED = (".ckpt", ".pth", ".pt")
_KNOWN = "an engine, an ONNX graph, a bundle, a bank, its signature or public key, a calibration or a checkpoint"


@dataclass(frozen=True)
class Inspection:
    """What was found out about a file."""

    path: str
    kind: str  # engine, plan without sidecar, ONNX graph, bundle, bank, signature, public key, calibration, checkpoint
    facts: dict[str, Any]  # its properties by name, for people
    runs_here: bool | None  # on this machine, be it only in part; None for files that do not run by themselves
    problems: tuple[str, ...]  # sentences: what is damaged, or why it does not run here

    @property
    def exit_code(self) -> int:
        """0 without problems, else 4."""
        return ArtifactError.exit_code if self.problems else 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def inspect_file(path: Path, trusted: TrustedKey | None = None) -> Inspection:
    """Inspect a file. Plans are never deserialized, checkpoints never unpickled, and nothing is downloaded.

    Args:
        path: The file, or the folder of a bundle.
        trusted: The key that must have signed it, if it is a bank.

    Raises:
        InputError: The file does not exist, is not a regular file or folder, or is of an unknown kind; or it is no
            bank, and a key is given.
    """
    found = _inspect(path)
    if found.kind == "bank":
        return _with_signature(found, path, trusted)
    if trusted is not None:
        raise InputError(f"--trust is for a bank, and {path} is of another kind: {found.kind}.")
    return found


def _inspect(path: Path) -> Inspection:
    if not path.exists():
        raise InputError(f"{path} does not exist; give {_KNOWN}.")
    if not path.is_file() and not path.is_dir():  # reading a pipe would wait for its writer
        raise InputError(f"{path} is not a regular file; give {_KNOWN}.")
    if path.is_dir() or path.name == MANIFEST_NAME:
        return _inspect_bundle(path if path.is_dir() else path.parent)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    if path.name.endswith(tuple(suffix + SIDECAR_SUFFIX for suffix in (*_PLAN_SUFFIXES, ".onnx"))):
        return _inspect_engine(path.with_suffix(""))
    if path.suffix in (*_PLAN_SUFFIXES, ".onnx") and sidecar_of(path).exists():
        return _inspect_engine(path)
    if start[:4] in _PLANS or path.suffix in _PLAN_SUFFIXES:
        return _inspect_bare_plan(path, start)
    if path.suffix == ".onnx":
        return _inspect_graph(path)
    if path.suffix == ".safetensors":
        return _inspect_tensors(path)
    if path.suffix == ".json":
        return _inspect_json(path)
    if path.suffix in _PICKLED:
        return _inspect_pickled(path)
    if path.suffix == SIGNATURE_SUFFIX:
        return _inspect_signature(path)
    if path.suffix == PUBLIC_SUFFIX and is_public_key(text := start.decode("ascii", "replace").strip()):
        return Inspection(str(path), "public key", {"of": "banks, for run --trust", "key": text}, None, ())
    raise InputError(f"{path} is a file of an unknown kind; give {_KNOWN}.")


def _inspect_engine(path: Path) -> Inspection:
    try:
        record = read_record(path)
    except ArtifactError as error:
        return Inspection(str(path), "engine", {}, False, (str(error),))
    problems: list[str] = []
    try:
        load_engine(path, record)
        checksum = "correct"
        if path.suffix == ".onnx" and (problem := _nan_problem(path)):
            problems.append(problem)
    except ArtifactError as error:
        checksum = "wrong" if path.exists() else "the engine is missing"
        problems.append(str(error))
    bundle, manifest, bundle_name = _bundle_of(path)
    facts: dict[str, Any] = {"checksum": checksum, **_engine_facts(record), "bundle": bundle_name}
    problems += incompatibilities(record, manifest, Machine.here(), bundle)
    return Inspection(str(path), "engine", facts, not problems, tuple(problems))


def _engine_facts(record: EngineRecord) -> dict[str, Any]:
    built_on = record.machine
    if record.backend == "onnxruntime":
        runs_on = f"{built_on.arch}, measured on {built_on.cpu}"
    elif record.targets:
        runs_on = ", ".join(record.targets)
    else:
        runs_on = "unknown" if built_on.gpu is None else f"{built_on.gpu.name} ({built_on.gpu.architecture})"
    latency = "not measured" if record.latency_ms is None else f"{record.latency_ms:.2f} ms"
    if record.latency_ms is not None and record.fp32_latency_ms is not None:
        latency += f", FP32 {record.fp32_latency_ms:.2f} ms"
    return {
        "graph": record.graph,
        "network": f"{record.bundle_name}, {record.backbone}, {record.head} head, {record.image_size} px",
        "precision": record.precision,
        "backend": f"{BACKEND_TITLES[record.backend]} {record.backend_version}",
        "runs on": runs_on,
        "size": f"{record.size_bytes / 1e6:.1f} MB",
        "INT8 matrix multiplications": f"{record.int8_gemms} of {record.gemms}",
        "limits": ", ".join(f"{key} {value}" for key, value in record.limits.items()) or "none",
        "inputs": _tensors(record.inputs),
        "outputs": _tensors(record.outputs),
        "calibration": _listed(record.calibration or {}) or "none",
        "compared with FP32": _listed({k: v for k, v in record.verification.items() if k != "outputs"}) or "no",
        "latency": latency,
        "built": f"{record.built_at} by {record.built_by} in {record.build_s:.1f} s",
    }


def _bundle_of(path: Path) -> tuple[Path | None, Manifest | None, str]:
    """The bundle that an engine belongs to, by the engine's folder: folder, manifest, and a name for people."""
    folder = path.resolve().parent
    try:
        default = read_manifest(DEFAULT_BUNDLE)
        if folder == engine_folder(DEFAULT_BUNDLE, default).resolve():
            return None, default, f"{default.name}, the bundled model"
    except EnvironmentLacksError:
        pass  # without a home folder there is no cache
    if not (folder / MANIFEST_NAME).exists():
        return None, None, "none in the same folder, so only this machine was checked"
    try:
        manifest = read_manifest(folder)
    except ArtifactError:
        return None, None, "the one in the same folder is damaged, so only this machine was checked"
    return folder, manifest, f"{manifest.name}, in the same folder"


def _inspect_bare_plan(path: Path, start: bytes) -> Inspection:
    facts: dict[str, Any] = {"size": _size(path)}
    built_by = _PLANS.get(start[:4])
    if built_by is None:
        problem = "is damaged or not a TensorRT plan"
    else:
        problem = f"has no sidecar {sidecar_of(path).name}, so its network is unknown and it is never opened"
        if len(start) >= 28:
            facts["built by"] = f"{built_by} {'.'.join(map(str, start[24:28]))}"
    sentence = f"{path} {problem}; build one with: fsvit-edge build-engine."
    return Inspection(str(path), "plan without sidecar", facts, False, (sentence,))


def _inspect_graph(path: Path) -> Inspection:
    facts: dict[str, Any] = {"size": _size(path)}
    try:
        header = read_onnx_header(read_file(path, MAX_GRAPH_BYTES))
    except (ValueError, OSError) as error:
        problem = f"{path} is damaged or not an ONNX graph: {error}."
        return Inspection(str(path), "ONNX graph", facts, False, (problem,))
    most = [f"{count} {name}" for name, count in list(header.operators.items())[:6]]
    facts |= {
        "precision": header.precision,
        "opset": header.opset,
        "created by": header.producer or "unknown",
        "operators": f"{sum(header.operators.values())}: {', '.join(most)}",
    }
    try:
        if (path.parent / MANIFEST_NAME).exists():
            for info in read_manifest(path.parent).all_graphs.values():
                if info.file == path.name:
                    read_graph(path.parent, info)
                    facts["checksum"] = "correct, as in its bundle"
        with OnnxRuntimeEngine(path, threads=1) as engine:
            facts |= {"inputs": _tensors(engine.inputs), "outputs": _tensors(engine.outputs)}
    except FsvitEdgeError as error:
        return Inspection(str(path), "ONNX graph", facts, False, (str(error),))
    return Inspection(str(path), "ONNX graph", facts, True, ())


def _inspect_bundle(path: Path) -> Inspection:
    if not (path / MANIFEST_NAME).exists():
        raise InputError(f"{path} is a folder without {MANIFEST_NAME}, so it is not a bundle; give {_KNOWN}.")
    try:
        manifest = read_manifest(path)
    except ArtifactError as error:
        return Inspection(str(path), "bundle", {}, False, (str(error),))
    files = {name: path / graph.file for name, graph in manifest.all_graphs.items()}
    facts: dict[str, Any] = {
        "network": f"{manifest.name}, {manifest.backbone}, {manifest.head} head, {manifest.image_size} px",
        "precision": manifest.precision,
        "opset": manifest.opset,
        "created by": manifest.created_by,
        "graphs": ", ".join(f"{name} {_size(file)}" for name, file in files.items() if file.is_file()),
        "objectness": _objectness(manifest),
        "difference from torch": f"{max(manifest.parity.values()):.1e}" if manifest.parity else "not measured",
    }
    try:
        bundle = Bundle.load(path)
    except ArtifactError as error:
        return Inspection(str(path), "bundle", facts, False, (str(error),))
    facts |= {"checksums": "correct"} | _engines_of(path, manifest)
    own, int8 = _problem(bundle, None), _problem(bundle, manifest.int8_encoder)
    nan = tuple(filter(None, map(_nan_problem, files.values())))
    runs_here = (own is None or (int8 is None and has_vnni_here())) and not nan
    problems = tuple(dict.fromkeys((*filter(None, (own, int8)), *nan)))
    return Inspection(str(path), "bundle", facts, runs_here, problems)


def _problem(bundle: Bundle, int8_encoder: GraphInfo | None) -> str | None:
    """Why a bundle cannot be opened with this encoder, as a run opens it, or with its own; None if it can."""
    try:
        ExportedNetwork(bundle.manifest, open_graphs(bundle, None, "cpu", 1, int8_encoder)).close()
    except FsvitEdgeError as error:
        return str(error)
    return None


def _nan_problem(graph: Path) -> str | None:
    """Why a graph that can be opened gives no answers: weights are NaN where a training or a conversion has failed."""
    with suppress(ValueError, OSError):  # told by what opens it
        if (name := tensor_with_nan(read_file(graph, MAX_GRAPH_BYTES))) is not None:
            return f"{graph} has a NaN in the tensor '{escaped(name):.80}', so its answers are none; export it again."
    return None


def _objectness(manifest: Manifest) -> str:
    if OBJECTNESS in manifest.graphs:
        return "from its own graph, for sharp outlines"
    return "from the encoder, for sharp outlines" if manifest.has_objectness else "none, so outlines are plain"


def _engines_of(path: Path, manifest: Manifest) -> dict[str, Any]:
    """The engines of a bundle. An engine that does not fit is not a problem of the bundle, which runs without it."""
    try:
        built, unusable = find_engines(engine_folder(path, manifest))
    except EnvironmentLacksError:
        return {}
    facts: dict[str, Any] = {f"sidecar {number}": sentence for number, sentence in enumerate(unusable, 1)}
    machine = Machine.here() if built else None
    for file, record in built:
        assert machine is not None
        reasons = incompatibilities(record, manifest, machine, path)
        facts[f"engine {file.name}"] = reasons[0].removeprefix(f"{record.file} ") if reasons else "fits"
    return facts or {"engines": "none built"}


def _inspect_tensors(path: Path) -> Inspection:
    try:
        metadata, tensors = safetensors_facts(path)
    except ValueError as error:
        problem = f"{path} is damaged or not a .safetensors file: {error}."
        return Inspection(str(path), "bank or checkpoint", {"size": _size(path)}, None, (problem,))
    if METADATA_KEY not in metadata:
        return _checkpoint(path, tensors)
    try:
        bank = SupportBank.load(path)
    except FsvitEdgeError as error:
        return Inspection(str(path), "bank", {"size": _size(path)}, None, (str(error),))
    identity = bank.identity
    default = read_manifest(DEFAULT_BUNDLE).graphs["encoder"].sha256
    facts = {
        "size": _size(path),
        "checksum": "correct",
        "classes": ", ".join(f"{name} ({len(bank.supports(name))})" for name in bank.classes) or "none",
        "enrolled with": f"{identity.name}, {identity.image_size} px, in {identity.precision}",
        "encoder": f"sha256 {identity.encoder_sha256!s:.12}..."
        + (", that of the bundled model" if identity.encoder_sha256 == default else ""),
    }
    return Inspection(str(path), "bank", facts, None, ())


def _inspect_signature(path: Path) -> Inspection:
    bank, size = path.with_suffix(""), path.stat().st_size
    problem = f"{path} is no signature of a bank: it has {size} bytes, expected {SIGNATURE_BYTES}; sign the bank again."
    facts = {"of": f"{bank}, see: fsvit-edge inspect {bank} --trust KEY" if bank.exists() else f"{bank}, not here"}
    return Inspection(str(path), "signature", facts, None, () if size == SIGNATURE_BYTES else (problem,))


def _with_signature(found: Inspection, path: Path, trusted: TrustedKey | None) -> Inspection:
    if trusted is not None:
        problem = signature_problem(path, trusted)
        text, problems = "wrong" if problem else "of these bytes, by the trusted key", (problem,) if problem else ()
    else:
        file, problems = signature_of(path), ()
        text = f"{file.name}, not checked: that takes --trust" if file.exists() else "none"
    return replace(found, facts={**found.facts, "signature": text}, problems=(*found.problems, *problems))


def _inspect_pickled(path: Path) -> Inspection:
    try:
        return _checkpoint(path, pickled_facts(path))
    except (ValueError, OSError) as error:
        problem = f"{path} is damaged or not a checkpoint: {error}."
        return Inspection(str(path), "checkpoint", {"size": _size(path)}, None, (problem,))


def _checkpoint(path: Path, tensors: dict[str, Any]) -> Inspection:
    return Inspection(str(path), "checkpoint", {"size": _size(path), **tensors}, None, ())


def _inspect_json(path: Path) -> Inspection:
    try:
        values: Any = json.loads(read_file(path, MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON: {error}.") from error
    if isinstance(values, dict) and "weight_map" in values:
        return _checkpoint(
            path, {"contains": "the list of a checkpoint in several files; export takes one file with all of them"}
        )
    if not isinstance(values, dict) or not {"ranges", "method", "graphs"} <= values.keys():
        raise InputError(f"{path} is JSON of an unknown kind; give {_KNOWN}.")
    facts = {"size": _size(path)}
    facts |= {key: f"{values.get(key)!s:.60}" for key in ("model_name", "image_size", "method", "pictures", "banked")}
    beside = path.parent if (path.parent / MANIFEST_NAME).exists() else DEFAULT_BUNDLE
    with suppress(ArtifactError):
        manifest = read_manifest(beside)
        graphs = values["graphs"] if isinstance(values["graphs"], dict) else {}
        fits = bool(graphs) and all(
            manifest.graphs[name].sha256 == graphs[name] for name in graphs.keys() & manifest.graphs.keys()
        )
        facts["fits"] = f"{manifest.name}: {'yes' if fits else 'no, it was made from other graphs'}"
    facts["created by"] = f"{values.get('created_by')!s:.60}"
    return Inspection(str(path), "calibration", facts, None, ())


def _tensors(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in specs)


def _listed(values: dict[str, Any]) -> str:
    short = {key: f"{value:.5g}" if isinstance(value, float) else f"{value!s:.40}" for key, value in values.items()}
    return ", ".join(f"{key} {value}" for key, value in short.items())


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f} MB"
