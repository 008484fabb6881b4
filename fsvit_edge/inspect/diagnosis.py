"""What this machine has: packages, engines, OpenCV's backends and cameras; and whether a bundle is intact."""

import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import chain, permutations
from pathlib import Path
from typing import Any

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle, read_manifest
from fsvit_edge.runtime.engines.base import TENSORRT_BACKENDS
from fsvit_edge.runtime.engines.files import engine_folder, find_engines, folder_problem
from fsvit_edge.runtime.engines.fitting import build_command, fitting_sets, installed_version
from fsvit_edge.runtime.engines.openvino import OPENVINO, openvino_version, usable_precisions
from fsvit_edge.runtime.engines.trial import known_trial
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError
from fsvit_edge.runtime.gpu import gpu_missing_reason
from fsvit_edge.runtime.limits import free_memory, usable_cores
from fsvit_edge.runtime.machine import Machine

_NEEDED = ("av", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "safetensors")
_OPTIONAL = {
    "torch": "export",
    "timm": "export",
    "onnx": "build",
    "onnxsim": "export",
    "onnxscript": "export",
    "scikit-image": "demo",
}
_MODULES = {"opencv-python-headless": "cv2", "pillow": "PIL", "scikit-image": "skimage"}
_IMPORT = """
import importlib, sys
name, *sys.path = sys.argv[1:]
print(getattr(importlib.import_module(name), "__version__", ""))
"""
_IMPORT_LIMIT_S = 300.0  # a cold disk and a busy machine take a minute for torch
_USES = {"demo": "run demo", "build": "export, calib and build-engine"}


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    subject: str  # what was checked
    ok: bool  # whether it was found
    needed: bool  # whether nothing works without it
    text: str  # its version or properties; or what needs it and how to install it


@dataclass(frozen=True)
class Diagnosis:
    """The results of all checks."""

    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        """Whether everything that is needed was found."""
        return all(finding.ok for finding in self.findings if finding.needed)

    @property
    def exit_code(self) -> int:
        """0 if everything that is needed was found, 4 if only the bundle is damaged, else 3."""
        if self.usable:
            return 0
        lacking = {finding.subject for finding in self.findings if finding.needed and not finding.ok}
        return ArtifactError.exit_code if lacking == {"bundle"} else EnvironmentLacksError.exit_code

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"usable": self.usable, "findings": [asdict(finding) for finding in self.findings]}


def diagnose(bundle: Path | None = None) -> Diagnosis:
    """Check this machine and a bundle (None: the bundled model)."""
    path = DEFAULT_BUNDLE if bundle is None else bundle
    checks = (
        *(_packages(), _providers(), _openvino(), _gpu(), _gpu_packages(), _opencv(), _cameras()),
        *(_bundle(path), _engines(path)),
    )
    return Diagnosis(tuple(chain.from_iterable(checks)))


def _packages() -> Iterator[Finding]:
    free = free_memory()
    memory = "" if free is None else f", {free / 1e6:,.0f} MB of memory free"
    python = f"{platform.python_version()} on {platform.machine()}, may use {usable_cores()} CPUs{memory}"
    yield Finding("python", True, True, python)
    for package in _NEEDED:
        found = _version(package)
        hint = f"not installed; try: pip install {package}"
        yield _loaded(package, found) or Finding(package, found is not None, True, found or hint)
    for package, extra in _OPTIONAL.items():
        found = _version(package)
        if found is not None and (broken := _loaded(package, found)) is not None:
            yield broken
            continue
        hint = f'not installed, needed only for fsvit-edge {_USES.get(extra, extra)}: pip install "fsvit-edge[{extra}]"'
        yield Finding(package, found is not None, False, found or hint)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        # JetPack's OpenCV and GPU builds of ONNX Runtime have other distribution names, so ask the module.
        is_named_otherwise = package in ("opencv-python-headless", "onnxruntime")
        return _imports().get(_module(package), _Import()).version if is_named_otherwise else None


def _module(package: str) -> str:
    return _MODULES.get(package, package)


def _loaded(package: str, found: str | None) -> Finding | None:
    """The finding that a package is there and does not load; None if it loads, or is not there at all."""
    problem = _imports().get(_module(package), _Import()).problem
    if not problem or (found is None and not find_spec(_module(package))):
        return None
    text = f"{found or 'installed'}, but it cannot be loaded: {problem}"
    return Finding(package, False, package in _NEEDED, text)


@dataclass(frozen=True)
class _Import:
    """What came of importing a module."""

    version: str | None = None
    problem: str = ""  # why it cannot be imported; empty if it can


@cache
def _imports() -> dict[str, _Import]:
    """Import each package in a process of its own, all at once: an import may crash, or take seconds (torch)."""
    modules = [_module(package) for package in (*_NEEDED, *_OPTIONAL)]
    running = {
        module: subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-c", _IMPORT, module, *sys.path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for module in modules
    }
    return {module: _outcome(process) for module, process in running.items()}


def _outcome(process: "subprocess.Popen[str]") -> _Import:
    try:
        said, errors = process.communicate(timeout=_IMPORT_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return _Import(problem=f"importing it took more than {_IMPORT_LIMIT_S:.0f} s")
    if process.returncode == 0:
        return _Import(said.strip() or None)
    if process.returncode < 0:
        return _Import(problem=f"importing it crashes ({signal.Signals(-process.returncode).name})")
    return _Import(problem=(errors.strip().splitlines() or ["importing it ends Python"])[-1])


def _providers() -> Iterator[Finding]:
    if _imports()["onnxruntime"].problem:
        return
    try:
        from fsvit_edge.runtime.engines.onnx_runtime import ENGINE_PROVIDERS, installed_providers

        installed = installed_providers()
    except ImportError:
        return
    for name, provider in ENGINE_PROVIDERS.items():
        hint = "not in this ONNX Runtime; for a GPU: pip install onnxruntime-gpu (on a Jetson: NVIDIA's own wheel)"
        text = f"use it with --engine {name}" if provider in installed else hint
        yield Finding(f"engine {name}", provider in installed, provider == "cpu", text)


def _openvino() -> Iterator[Finding]:
    subject, found = f"engine {OPENVINO}", openvino_version()
    if found is None:
        hint = (
            'not installed, needed only for --engine openvino and --precision bf16: pip install "fsvit-edge[openvino]"'
        )
        yield Finding(subject, False, False, hint)
        return
    try:
        precisions = usable_precisions()
    except FsvitEdgeError as error:
        yield Finding(subject, False, False, f"{found} cannot be used: {error}")
        return
    without = "" if "bf16" in precisions else "; this processor does not multiply BF16"
    text = f"{found}; use it with --engine {OPENVINO} --precision {' or '.join(precisions)}{without}"
    yield Finding(subject, True, False, text)


def _gpu() -> Iterator[Finding]:
    machine = Machine.here()
    if machine.l4t is not None:
        text = f"{machine.l4t}, a Jetson: TensorRT comes with JetPack, see docs/how-to/jetson.md"
        yield Finding("L4T", True, False, text)
    gpu = machine.gpu
    if gpu is None:
        use = "needed for --engine onnxruntime-cuda, tensorrt and tensorrt-rtx"
        yield Finding("GPU", False, False, f"{gpu_missing_reason()}; {use}: install the NVIDIA driver")
        return
    memory = f"{gpu.memory_bytes / 2**30:.1f} GiB"
    yield Finding("GPU", True, False, f"{gpu.name}, {gpu.architecture}, {gpu.sm_count} multiprocessors, {memory}")
    yield Finding("GPU driver", True, False, f"supports CUDA up to {gpu.driver}")


def _gpu_packages() -> Iterator[Finding]:
    for backend in TENSORRT_BACKENDS:
        found = installed_version(backend)
        hint = f'not installed, needed only for --engine {backend}: pip install "fsvit-edge[{backend}]"'
        if backend == "tensorrt":
            hint += " (on a Jetson, create the environment with --system-site-packages to use JetPack's own)"
        yield Finding(backend, found is not None, False, found or hint)
    # Either is enough. They are not imported: pycuda's driver fails without a GPU.
    for package, other in permutations(("pycuda", "cuda-bindings")):
        found = _version(package)
        hint = f"not installed; --engine tensorrt and tensorrt-rtx need it or {other}: pip install {package}"
        if found is None and _version(other) is not None:
            continue
        yield Finding(package, found is not None, False, found or hint)


def _engines(path: Path) -> Iterator[Finding]:
    """The engines that build-engine made from the bundle, and whether more can be written."""
    try:
        manifest = read_manifest(path)
        folder = engine_folder(path, manifest)
    except ArtifactError:
        return  # reported by _bundle
    except EnvironmentLacksError as error:
        yield Finding("engine folder", False, False, str(error))
        return
    problem = folder_problem(folder)
    text = f"{folder} cannot be written: {problem}; needed for fsvit-edge build-engine" if problem else str(folder)
    yield Finding("engine folder", not problem, False, text)
    built, unusable = find_engines(folder)
    for number, sentence in enumerate(unusable, 1):
        yield Finding(f"sidecar {number}", False, False, sentence)
    if not built:
        yield Finding("engines", False, False, f"none built; one may be faster: {build_command(None, None, path)}")
        return
    fitting = fitting_sets(built, manifest, Machine.here(), path)
    for one in fitting.sets:
        yield Finding(f"engines {one.record.backend} {one.record.precision}", True, False, one.description)
    for (backend, precision), reason in fitting.reasons.items():
        yield Finding(f"engines {backend} {precision}", False, False, reason)


def _timing(bundle: Bundle) -> Iterator[Finding]:
    """What was measured of OpenVINO's encoder, by which "auto" chooses."""
    if openvino_version() is None:
        return
    trial = known_trial(bundle)
    if trial is None:
        yield Finding("OpenVINO timing", False, False, "not timed yet beside ONNX Runtime; the next run does")
        return
    reasons = "".join(f"; {reason.rstrip('.')}" for reason in trial.refused.values())
    yield Finding("OpenVINO timing", True, False, f"the encoder took {trial}{reasons}")


def _opencv() -> Iterator[Finding]:
    if _imports()["cv2"].problem:
        return
    import cv2

    information = cv2.getBuildInformation()
    uses = {"FFMPEG": "video files and rtsp://", "v4l/v4l2": "USB cameras", "GStreamer": "CSI cameras on a Jetson"}
    for name, use in uses.items():
        has = re.search(rf"{re.escape(name)}:\s+YES", information) is not None
        hint = "" if name != "GStreamer" else "; use the system's OpenCV: apt install python3-opencv"
        text = f"for {use}" if has else f"not in this OpenCV, needed for {use}{hint}"
        yield Finding(f"OpenCV {name}", has, False, text)


def _cameras() -> Iterator[Finding]:
    cameras = ", ".join(sorted(map(str, Path("/dev").glob("video*"))))
    yield Finding("cameras", bool(cameras), False, cameras or "no /dev/video*; plug in a camera for --camera")


def _bundle(path: Path) -> Iterator[Finding]:
    try:
        bundle = Bundle.load(path)
    except FsvitEdgeError as error:
        yield Finding("bundle", False, True, str(error))
    else:
        manifest = bundle.manifest
        yield from _timing(bundle)
        text = f"{manifest.name}, {manifest.backbone}, {manifest.image_size} px, files intact"
        yield Finding("bundle", True, True, text)
