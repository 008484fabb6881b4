"""Engines for tests: sidecars of the bundled model that fit the machine of the tests."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime

from fsvit_edge.runtime.bundle import (
    CPU_GRAPH_NAMES,
    DEFAULT_BUNDLE,
    GRAPH_NAMES,
    INT8_ENCODER,
    Manifest,
    read_manifest,
)
from fsvit_edge.runtime.engines.base import TensorSpec
from fsvit_edge.runtime.engines.files import EngineRecord, engine_name, write_engines
from fsvit_edge.runtime.gpu import Gpu
from fsvit_edge.runtime.machine import Machine

MANIFEST: Manifest = read_manifest(DEFAULT_BUNDLE)
GPU = Gpu("NVIDIA L4", (8, 9), 58, 24 * 2**30, "13.0")
MACHINE = Machine("Linux", "x86_64", "Fast CPU", GPU, None)
VERSIONS = {"tensorrt": "10.13.0", "tensorrt-rtx": "1.7.1.116", "onnxruntime": onnxruntime.__version__}


def with_batch_one(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, shape=tuple(1 if size == "batch" else size for size in spec.shape)) for spec in specs)


def record(
    graph: str = "encoder", backend: str = "onnxruntime", precision: str = "int8", **changes: Any
) -> EngineRecord:
    info = MANIFEST.graphs[graph]
    is_plan = backend != "onnxruntime"
    targets = ("sm86", "sm89") if backend == "tensorrt-rtx" else ()
    values: dict[str, Any] = {
        "format_version": 1,
        "graph": graph,
        "backend": backend,
        "backend_version": VERSIONS[backend],
        "precision": precision,
        "file": engine_name(graph, backend, VERSIONS[backend], precision, MACHINE, targets),
        "sha256": "",
        "size_bytes": 0,
        "bundle_name": MANIFEST.name,
        "backbone": MANIFEST.backbone,
        "head": MANIFEST.head,
        "image_size": MANIFEST.image_size,
        "onnx_sha256": info.sha256,
        "opset": MANIFEST.opset,
        "preprocessing": MANIFEST.preprocessing,
        "inputs": with_batch_one(info.inputs) if is_plan else info.inputs,
        "outputs": with_batch_one(info.outputs) if is_plan else info.outputs,
        "profile": {"image": {"min": [1], "opt": [1], "max": [1]}} if is_plan else {},
        "limits": {"ways": 10, "supports": 50} if is_plan and graph == "head" else {},
        "machine": MACHINE,
        "targets": targets,
        "calibration": {"method": "minmax", "pictures": 64} if precision == "int8" else None,
        "verification": {"outputs": {"tokens": {"cosine": 0.99}}, "pictures": 12, "label_agreement": 0.998},
        "int8_gemms": 24 if precision == "int8" else 0,
        "gemms": 24,
        "latency_ms": 5.0,
        "fp32_latency_ms": 10.0,
        "built_by": "fsvit-edge 0.1.0",
        "built_at": "2026-11-25T00:30:00Z",
        "build_s": 1.5,
    }
    return EngineRecord(**values | changes)


def write_engine(folder: Path, record: EngineRecord, data: bytes) -> Path:
    """Write one engine with its sidecar."""
    return write_engines(folder, [(record, data)])[0]


def write_set(folder: Path, backend: str = "onnxruntime", precision: str = "int8", **changes: Any) -> dict[str, Path]:
    """Write an engine for each graph; those for ONNX Runtime are the bundle's own graphs, so they run."""
    return {
        graph: write_engine(
            folder, record(graph, backend, precision, **changes), (DEFAULT_BUNDLE / f"{graph}.onnx").read_bytes()
        )
        for graph in ("encoder", "head")
    }


def copy_bundle(path: Path) -> Path:
    """Copy the bundled model, so that its engines are beside it and not in the cache."""
    path.mkdir(parents=True)
    for name in ("bundle.json", *(f"{graph}.onnx" for graph in (*GRAPH_NAMES, *CPU_GRAPH_NAMES, INT8_ENCODER))):
        shutil.copy(DEFAULT_BUNDLE / name, path)
    return path


def edit(sidecar: Path, **changes: Any) -> None:
    """Change fields of a sidecar; None removes them."""
    values = json.loads(sidecar.read_text())
    for name, value in changes.items():
        if value is None:
            del values[name]
        else:
            values[name] = value
    sidecar.write_text(json.dumps(values))
