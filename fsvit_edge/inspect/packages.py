"""Which packages this machine has, and whether they load; none is imported here: one that fails may end Python."""

import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError
from fsvit_edge.runtime.limits import free_memory, usable_cores

_NEEDED = ("av", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "safetensors")
_OPTIONAL = {
    "torch": "export",
    "timm": "export",
    "onnx": "build",
    "onnxsim": "export",
    "onnxscript": "export",
    "lightning": "train",
    "torchmetrics": "train",
    "scikit-image": "demo",
    "fastapi": "web",
    "h11": "web",
    "prometheus-client": "web",
    "segno": "web",
    "starlette": "web",
    "uvicorn": "web",
    "paho-mqtt": "mqtt",
    "pillow-heif": "heic",
    "cryptography": "sign",
    "tritonclient": "triton",
    "ray": "ray",
    "supervision": "supervision",
}
_MODULES = {
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "scikit-image": "skimage",
    "prometheus-client": "prometheus_client",
    "paho-mqtt": "paho.mqtt.enums",  # the oldest that we can use is the first that has it
    "pillow-heif": "pillow_heif",
    "cryptography": "cryptography.hazmat.primitives.asymmetric.ed25519",
}
_IMPORT = """
import importlib, sys
name, *sys.path = sys.argv[1:]
print(getattr(importlib.import_module(name), "__version__", ""))
"""
_IMPORT_LIMIT_S = 300.0  # a cold disk and a busy machine take a minute for torch
_USES = {
    "demo": "fsvit-edge run demo",
    "build": "fsvit-edge export, calib and build-engine",
    "export": "fsvit-edge export",
    "train": "fsvit-edge train and build-engine --data",
    "web": "the page (--sink http://...)",
    "mqtt": "sinks of mqtt://",
    "heic": "HEIC pictures",
    "sign": "signed banks (run --trust, bank sign)",
    "triton": "--engine triton://",
    "ray": "label --ray",
    "supervision": "Prediction.to_supervision in Python",
}


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


def package_findings() -> Iterator[Finding]:
    """Check Python and each package, without importing any here."""
    free = free_memory()
    memory = "" if free is None else f", {free / 1e6:,.0f} MB of memory free"
    python = f"{platform.python_version()} on {platform.machine()}, may use {usable_cores()} CPUs{memory}"
    yield Finding("python", True, True, python)
    for package in _NEEDED:
        found = package_version(package)
        hint = f"not installed; try: pip install {package}"
        yield _loaded(package, found) or Finding(package, found is not None, True, found or hint)
    for package, extra in _OPTIONAL.items():
        found = package_version(package)
        if found is not None and (broken := _loaded(package, found)) is not None:
            yield broken
            continue
        hint = f'not installed, needed only for {_USES[extra]}: pip install "fsvit-edge[{extra}]"'
        yield Finding(package, found is not None, False, found or hint)


def package_version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        # JetPack's OpenCV and GPU builds of ONNX Runtime have other distribution names, so ask the module.
        is_named_otherwise = package in ("opencv-python-headless", "onnxruntime")
        return _imports().get(_module(package), _Import()).version if is_named_otherwise else None


def import_problem(package: str) -> str:
    """Why a package cannot be imported; empty if it can."""
    return _imports().get(_module(package), _Import()).problem


def _module(package: str) -> str:
    return _MODULES.get(package, package)


def _loaded(package: str, found: str | None) -> Finding | None:
    """The finding that a package is there and does not load; None if it loads, or is not there at all."""
    problem = import_problem(package)
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
    # Not those of train: each imports torch once more, for 5 s.
    modules = [_module(one) for one in (*_NEEDED, *(one for one, extra in _OPTIONAL.items() if extra != "train"))]
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
