"""What this machine has: packages, engines, OpenCV's back-ends, cameras, and whether a bundle is whole."""

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.errors import ArtefactError, EnvironmentLacksError, FsvitEdgeError

_NEEDED = ("numpy", "onnxruntime", "opencv-python-headless", "pillow", "safetensors")
_OPTIONAL = {
    "torch": "export",
    "timm": "export",
    "onnx": "export",
    "onnxsim": "export",
    "onnxscript": "export",
    "scikit-image": "demo",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What.
        ok: Whether it is there.
        needed: Whether nothing works without it.
        text: Its version or number, or what is missing for what and how to get it.
    """

    subject: str
    ok: bool
    needed: bool
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """All findings."""

    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        """Whether everything that is needed is there."""
        return all(finding.ok for finding in self.findings if finding.needed)

    @property
    def exit_code(self) -> int:
        """0 where everything that is needed is there, 4 where only the bundle is not whole, else 3."""
        if self.usable:
            return 0
        lacking = {finding.subject for finding in self.findings if finding.needed and not finding.ok}
        return ArtefactError.exit_code if lacking == {"bundle"} else EnvironmentLacksError.exit_code

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"usable": self.usable, "findings": [asdict(finding) for finding in self.findings]}


def diagnose(bundle: Path | None = None) -> Diagnosis:
    """Look at this machine and at a bundle (None: the one that is shipped)."""
    findings = [
        Finding("python", True, True, f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} CPUs")
    ]
    findings.extend(_packages())
    findings.extend(_providers())
    findings.extend(_opencv())
    findings.append(_cameras())
    findings.append(_bundle(DEFAULT_BUNDLE if bundle is None else bundle))
    return Diagnosis(tuple(findings))


def _packages() -> Iterator[Finding]:
    for package in _NEEDED:
        found = _version(package)
        yield Finding(package, found is not None, True, found or f"not installed; pip install {package}")
    for package, extra in _OPTIONAL.items():
        found = _version(package)
        hint = f'only for fsvit-edge {"run demo" if extra == "demo" else extra}: pip install "fsvit-edge[{extra}]"'
        yield Finding(package, found is not None, False, found or hint)


def _version(package: str) -> str | None:
    # A system's OpenCV (JetPack's) and GPU builds of ONNX Runtime go by other distribution names: ask the module.
    modules = {"opencv-python-headless": "cv2", "onnxruntime": "onnxruntime"}
    try:
        return version(package)
    except PackageNotFoundError:
        if package not in modules:
            return None
    try:
        return str(__import__(modules[package]).__version__)
    except ImportError:
        return None


def _providers() -> Iterator[Finding]:
    try:
        from fsvit_edge.runtime.engines.onnx_runtime import PROVIDERS, installed_providers

        installed = installed_providers()
    except ImportError:
        return
    for name in PROVIDERS:
        hint = "not in this ONNX Runtime; on a GPU: pip install onnxruntime-gpu (on a Jetson: NVIDIA's own wheel)"
        text = f"--engine {name}" if name in installed else hint
        yield Finding(f"engine {name}", name in installed, name == "cpu", text)


def _opencv() -> Iterator[Finding]:
    try:
        import cv2
    except ImportError:
        return
    information = cv2.getBuildInformation()
    uses = {"FFMPEG": "video files and rtsp://", "v4l/v4l2": "USB cameras", "GStreamer": "CSI cameras on a Jetson"}
    for name, use in uses.items():
        has = re.search(rf"{re.escape(name)}:\s+YES", information) is not None
        hint = "" if name != "GStreamer" else "; use the system's OpenCV: apt install python3-opencv"
        yield Finding(f"OpenCV {name}", has, False, use if has else f"not in this OpenCV, needed for {use}{hint}")


def _cameras() -> Finding:
    cameras = sorted(str(path) for path in Path("/dev").glob("video*"))
    return Finding("cameras", bool(cameras), False, ", ".join(cameras) or "no /dev/video*; plug one in for --camera")


def _bundle(path: Path) -> Finding:
    try:
        manifest = Bundle.load(path).manifest
    except FsvitEdgeError as error:
        return Finding("bundle", False, True, str(error))
    return Finding("bundle", True, True, f"{manifest.name}, {manifest.backbone}, {manifest.image_size} px, files whole")
