from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from engine_records import GPU, MACHINE, MANIFEST, VERSIONS, record, with_batch_one

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE
from fsvit_edge.runtime.engines import fitting as module
from fsvit_edge.runtime.engines.base import TensorSpec
from fsvit_edge.runtime.engines.fitting import build_command, incompatibilities, installed_version
from fsvit_edge.runtime.machine import Machine


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Which versions are installed; change it."""
    versions = dict(VERSIONS)
    monkeypatch.setattr(module, "installed_version", versions.get)
    return versions


@pytest.mark.parametrize("graph", ["encoder", "head"])
@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt", "tensorrt-rtx"])
def test_an_engine_built_here_fits(backend: str, graph: str) -> None:
    for precision in ("fp32", "fp16", "int8"):
        assert incompatibilities(record(graph, backend, precision), MANIFEST, MACHINE) == []


def half(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, dtype="float16") if spec.dtype == "float32" else spec for spec in specs)


ENCODER = MANIFEST.graphs["encoder"]


def on(**changes: Any) -> dict[str, Any]:
    return {"machine": replace(MACHINE, **changes)}


def gpu(**changes: Any) -> dict[str, Any]:
    return on(gpu=replace(GPU, **changes))


@pytest.mark.parametrize(
    ("backend", "changes"),
    [
        ("tensorrt", {"outputs": half(with_batch_one(ENCODER.outputs))}),
        ("tensorrt", {"bundle_name": "renamed"}),
        ("tensorrt", gpu(memory_bytes=1, driver="12.4")),  # a plan does not depend on these
        ("tensorrt", on(cpu="Slow CPU", l4t="36.4")),
        ("tensorrt-rtx", on(gpu=None)),  # built where there is no GPU
        ("tensorrt-rtx", {"targets": ()}),  # get_engine_validity judges it
        ("onnxruntime", on(cpu="Slow CPU", gpu=None)),
        ("onnxruntime", {"latency_ms": None, "verification": {}, "calibration": None}),
    ],
)
def test_differences_that_do_not_matter_are_accepted(backend: str, changes: dict[str, Any]) -> None:
    assert incompatibilities(record(backend=backend, **changes), MANIFEST, MACHINE) == []


OTHER_TENSORS = "has different inputs or outputs than encoder.onnx"
OTHER_ARCH = "was built for Linux on aarch64, but this is Linux on x86_64"
BACKBONE = "was built for the backbone vit_b, but cst-nano has vit_nano_patch16_hybrid_256"
H100 = {"name": "NVIDIA H100", "compute_capability": (9, 0)}
ONLY = "and runs in no other version, but"


def image(size: int, dtype: str) -> dict[str, Any]:
    return {"inputs": (TensorSpec("image", (1, size, size, 3), dtype),)}


@pytest.mark.parametrize(
    ("backend", "changes", "reason"),
    [
        (
            "tensorrt",
            {"onnx_sha256": "ab" * 32},
            "built from a different encoder.onnx (sha256 abababababab...) than that",
        ),
        ("tensorrt", {"backbone": "vit_b"}, BACKBONE),
        ("tensorrt", {"head": "prototype"}, "was built for the head prototype, but cst-nano has cst"),
        ("tensorrt", {"image_size": 400}, "was built for the image size 400, but cst-nano has 256"),
        ("tensorrt", {"preprocessing": {}}, "was built for a different preprocessing than that of cst-nano"),
        ("tensorrt", {"inputs": ()}, OTHER_TENSORS),
        ("tensorrt", {"outputs": with_batch_one(ENCODER.outputs)[::-1]}, OTHER_TENSORS),
        ("tensorrt", image(400, "uint8"), OTHER_TENSORS),
        ("tensorrt", image(256, "float16"), OTHER_TENSORS),
        ("tensorrt", {"backend_version": "10.3.0"}, f"was built by TensorRT 10.3.0 {ONLY} 10.13.0 is installed"),
        (
            "tensorrt-rtx",
            {"backend_version": "1.6.0"},
            f"was built by TensorRT-RTX 1.6.0 {ONLY} 1.7.1.116 is installed",
        ),
        ("onnxruntime", {"backend_version": "1.20.0"}, f"was built by ONNX Runtime 1.20.0 {ONLY}"),
        ("tensorrt", on(os="Windows"), "was built for Windows on x86_64, but this is Linux on x86_64"),
        ("tensorrt-rtx", on(arch="aarch64"), OTHER_ARCH),
        ("onnxruntime", on(arch="aarch64"), OTHER_ARCH),
        ("tensorrt", gpu(**H100), "for NVIDIA H100 (sm90), but this is NVIDIA L4 (sm89)"),
        ("tensorrt", gpu(name="NVIDIA L40"), "for NVIDIA L40 and fits no other GPU, but this is NVIDIA L4"),
        ("tensorrt", gpu(sm_count=16), "was built for 16 multiprocessors, but this NVIDIA L4 has 58"),
        ("tensorrt", on(gpu=None), "does not state the GPU that it was built for"),
        ("tensorrt-rtx", {"targets": ("sm86", "sm120")}, "was built for sm86, sm120, but this NVIDIA L4 is sm89"),
    ],
)
def test_each_mismatch_has_its_sentence_and_the_command_that_helps(
    backend: str, changes: dict[str, Any], reason: str
) -> None:
    one = record(backend=backend, **changes)
    (sentence,) = incompatibilities(one, MANIFEST, MACHINE)
    assert sentence.startswith(f"{one.file} ")
    assert reason in sentence
    assert sentence.endswith(f"; rebuild it here with: fsvit-edge build-engine --engine {backend} --precision int8.")
    assert "\n" not in sentence


def test_every_mismatch_is_reported() -> None:
    one = record("encoder", "tensorrt", onnx_sha256="ab" * 32, backend_version="9", **on(arch="arm", gpu=None))
    assert len(incompatibilities(one, MANIFEST, MACHINE)) == 4


def test_a_backend_that_is_not_installed_is_named(installed: dict[str, str]) -> None:
    del installed["tensorrt"]
    (sentence,) = incompatibilities(record(backend="tensorrt"), MANIFEST, MACHINE)
    assert "needs TensorRT 10.13.0, which is not installed (see: fsvit-edge doctor)" in sentence


def test_without_a_gpu_a_plan_needs_one_and_a_graph_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gpu_missing_reason", lambda: "the NVIDIA driver finds no GPU")
    bare = replace(MACHINE, gpu=None)
    for backend in ("tensorrt", "tensorrt-rtx"):
        (sentence,) = incompatibilities(record(backend=backend), MANIFEST, bare)
        assert "needs a GPU, but the NVIDIA driver finds no GPU; without a GPU, use --engine onnxruntime." in sentence
    assert incompatibilities(record(), MANIFEST, bare) == []


def test_without_a_bundle_only_the_machine_is_checked() -> None:
    one = record(onnx_sha256="ab" * 32)
    assert incompatibilities(one, None, MACHINE) == []
    assert len(incompatibilities(one, None, Machine("Linux", "aarch64", "", None, None))) == 1


def test_the_command_names_the_bundle_unless_it_is_the_bundled_model(tmp_path: Path) -> None:
    assert build_command("tensorrt", "fp16") == "fsvit-edge build-engine --engine tensorrt --precision fp16"
    assert build_command("tensorrt", None, DEFAULT_BUNDLE) == "fsvit-edge build-engine --engine tensorrt"
    folder = tmp_path / "my model"
    assert build_command(None, "int8", folder) == f"fsvit-edge build-engine '{folder}' --precision int8"
    (sentence,) = incompatibilities(record(onnx_sha256="ab" * 32), MANIFEST, MACHINE, folder)
    assert f"build-engine '{folder}' --engine onnxruntime" in sentence


def test_a_version_is_read_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_version("onnxruntime") == onnxruntime.__version__
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(module, "_MODULES", {"tensorrt": ("trt_fake", "trt_fake_bindings")})
    assert installed_version("tensorrt") is None
    package = tmp_path / "trt_fake"
    package.mkdir()
    assert installed_version("tensorrt") is None  # a folder without code
    (package / "__init__.py").write_text("raise SystemExit('imported')\nfrom trt_fake_bindings import __version__\n")
    assert installed_version("tensorrt") is None
    (tmp_path / "trt_fake_bindings.py").write_text('raise SystemExit("imported")\n__version__ = "10.3.0"\n')
    assert installed_version("tensorrt") == "10.3.0"
    (package / "__init__.py").write_text("__version__ = '11.0.1'\nraise SystemExit('imported')\n")
    assert installed_version("tensorrt") == "11.0.1"
    (package / "__init__.py").write_bytes(b"\xff\xfe__version__ = '1'")
    assert installed_version("tensorrt") == "10.3.0"
