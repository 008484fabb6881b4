"""What this machine has: packages, engines, OpenCV's backends and cameras; and whether a bundle is intact."""

import re
from collections.abc import Iterator
from itertools import chain, permutations
from pathlib import Path

from fsvit_edge.inspect.packages import Diagnosis, Finding, import_problem, package_findings, package_version
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle, read_manifest
from fsvit_edge.runtime.engines.base import TENSORRT_BACKENDS
from fsvit_edge.runtime.engines.files import engine_folder, find_engines, folder_problem
from fsvit_edge.runtime.engines.fitting import build_command, fitting_sets, installed_version
from fsvit_edge.runtime.engines.openvino import OPENVINO, openvino_version, usable_precisions
from fsvit_edge.runtime.engines.trial import known_trial
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError
from fsvit_edge.runtime.gpu import gpu_missing_reason
from fsvit_edge.runtime.machine import Machine


def diagnose(bundle: Path | None = None) -> Diagnosis:
    """Check this machine and a bundle (None: the bundled model)."""
    path = DEFAULT_BUNDLE if bundle is None else bundle
    checks = (
        *(package_findings(), _providers(), _openvino(), _gpu(), _gpu_packages(), _opencv(), _cameras()),
        *(_bundle(path), _engines(path)),
    )
    return Diagnosis(tuple(chain.from_iterable(checks)))


def _providers() -> Iterator[Finding]:
    if import_problem("onnxruntime"):
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
        found = package_version(package)
        hint = f"not installed; --engine tensorrt and tensorrt-rtx need it or {other}: pip install {package}"
        if found is None and package_version(other) is not None:
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
    if import_problem("opencv-python-headless"):
        return
    import cv2

    information = cv2.getBuildInformation()
    uses = {"FFMPEG": "video files and rtsp://", "v4l/v4l2": "USB cameras", "GStreamer": "CSI cameras on a Jetson"}
    for name, use in uses.items():
        has = re.search(rf"{re.escape(name)}:\s+YES", information) is not None
        hint = "" if name != "GStreamer" else "; use the system's OpenCV: apt install python3-opencv"
        text = f"for {use}" if has else f"not in this OpenCV, needed for {use}{hint}"
        yield Finding(f"OpenCV {name}", has, False, text)


def connected_cameras() -> list[str]:
    """Return the devices of the cameras that are plugged in, as "/dev/video0"."""
    return sorted(map(str, Path("/dev").glob("video*")))


def _cameras() -> Iterator[Finding]:
    cameras = ", ".join(connected_cameras())
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
