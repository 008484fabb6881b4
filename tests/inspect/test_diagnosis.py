import os
import re
import sys
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import cv2
import pytest
from engine_records import MACHINE, VERSIONS, copy_bundle, write_set

from fsvit_edge.inspect import diagnosis, packages
from fsvit_edge.inspect.diagnosis import diagnose
from fsvit_edge.inspect.packages import Diagnosis, Finding
from fsvit_edge.runtime.engines import fitting
from fsvit_edge.runtime.engines.trial import Trial
from fsvit_edge.runtime.errors import EnvironmentLacksError
from fsvit_edge.runtime.machine import Machine


def found(subject: str, bundle: Path | None = None) -> Finding:
    (finding,) = [finding for finding in diagnose(bundle).findings if finding.subject == subject]
    return finding


def uninstall(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    version = packages.version

    def without(package: str) -> str:
        if package in names:
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(packages, "version", without)


def test_this_machine_can_run_the_tests() -> None:
    diagnosed = diagnose()
    assert diagnosed.usable
    subjects = [finding.subject for finding in diagnosed.findings]
    assert len(subjects) == len(set(subjects))
    expected = {"python", "numpy", "onnxruntime", "engine onnxruntime", "OpenCV FFMPEG", "cameras", "bundle"}
    assert expected <= set(subjects)
    assert found("bundle").text.endswith("files intact")
    assert found("engine onnxruntime").ok


@pytest.mark.parametrize(
    ("package", "needed", "text"),
    [
        ("safetensors", True, "not installed; try: pip install safetensors"),
        ("torch", False, 'not installed, needed only for fsvit-edge export: pip install "fsvit-edge[export]"'),
        ("scikit-image", False, 'not installed, needed only for fsvit-edge run demo: pip install "fsvit-edge[demo]"'),
        (
            "fastapi",
            False,
            'not installed, needed only for the page (--sink http://...): pip install "fsvit-edge[web]"',
        ),
    ],
)
def test_a_missing_package_is_named_with_its_use(
    package: str, needed: bool, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall(monkeypatch, package)
    assert found(package) == Finding(package, False, needed, text)
    assert diagnose().usable == (not needed)


def test_the_packages_of_each_extra_that_a_user_installs_are_looked_for() -> None:
    extras: dict[str, set[str]] = {}
    for one in requires("fsvit-edge") or ():
        name, _, extra = one.partition("; extra == ")
        if extra and not name.startswith("fsvit-edge"):
            extras.setdefault(extra.strip("\"'"), set()).add(re.split(r"[^\w-]", name)[0])
    engines = {"tensorrt", "tensorrt-rtx", "openvino"}  # which diagnose() asks for themselves
    for extra in extras.keys() - engines - {"docs", "dev"}:
        assert extras[extra] <= packages._OPTIONAL.keys(), extra


def put_opencv(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Put an OpenCV before the real one that does what `code` does when it is imported."""
    (folder / "cv2.py").write_text(code)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setattr(packages, "_imports", cache(packages._imports.__wrapped__))  # other tests keep theirs


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("raise ImportError('libX.so.1: no such file')", "ImportError: libX.so.1: no such file"),
        ("import os; os.abort()", "importing it crashes (SIGABRT)"),
        ("raise SystemExit(1)", "importing it ends Python"),
    ],
)
def test_a_package_that_is_installed_and_does_not_load_is_not_ok(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, problem: str
) -> None:
    monkeypatch.setattr(packages, "_OPTIONAL", {})
    put_opencv(monkeypatch, tmp_path, code)
    one = found("opencv-python-headless")
    assert (one.ok, one.needed) == (False, True)
    assert one.text.endswith(f", but it cannot be loaded: {problem}")
    diagnosed = diagnose()
    assert diagnosed.exit_code == 3
    assert not any(finding.subject.startswith("OpenCV ") for finding in diagnosed.findings)


def test_an_opencv_of_another_distribution_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall(monkeypatch, "opencv-python-headless")
    assert found("opencv-python-headless") == Finding("opencv-python-headless", True, True, cv2.__version__)


def test_openvino_is_reported_with_the_precisions_of_this_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "openvino_version", lambda: None)
    hint = 'not installed, needed only for --engine openvino and --precision bf16: pip install "fsvit-edge[openvino]"'
    assert found("engine openvino") == Finding("engine openvino", False, False, hint)
    monkeypatch.setattr(diagnosis, "openvino_version", lambda: "2026.4.1")
    monkeypatch.setattr(diagnosis, "usable_precisions", lambda: ("fp32", "bf16"))
    assert found("engine openvino").text == "2026.4.1; use it with --engine openvino --precision fp32 or bf16"
    monkeypatch.setattr(diagnosis, "usable_precisions", lambda: ("fp32",))
    assert found("engine openvino").text.endswith("--precision fp32; this processor does not multiply BF16")

    def broken() -> tuple[str, ...]:
        raise EnvironmentLacksError("No library.")

    monkeypatch.setattr(diagnosis, "usable_precisions", broken)
    broken_text = "2026.4.1 cannot be used: No library."
    assert found("engine openvino") == Finding("engine openvino", False, False, broken_text)
    assert diagnose().usable


def test_the_timing_of_openvino_is_reported_with_why_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Trial(1, "", {}, {}, 37.21, {"fp32": 34.4, "bf16": 21.6}, {"bf16": "BF16 is not used: it differs."}, None)
    monkeypatch.setattr(diagnosis, "openvino_version", lambda: "2026.4.1")
    monkeypatch.setattr(diagnosis, "known_trial", lambda _: timed)
    assert found("OpenVINO timing").text == (
        "the encoder took 37.2 ms in ONNX Runtime in FP32; in OpenVINO 34.4 ms in FP32, 21.6 ms in BF16; BF16 is not "
        "used: it differs"
    )
    monkeypatch.setattr(diagnosis, "known_trial", lambda _: None)
    assert not found("OpenVINO timing").ok
    monkeypatch.setattr(diagnosis, "openvino_version", lambda: None)
    assert "OpenVINO timing" not in [finding.subject for finding in diagnose().findings]


def test_a_back_end_missing_in_opencv_is_named_with_its_use(monkeypatch: pytest.MonkeyPatch) -> None:
    information = "  Video I/O:\n    FFMPEG:            NO\n    v4l/v4l2:          YES (linux/videodev2.h)\n"
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: information)
    text = "not in this OpenCV, needed for video files and rtsp://"
    assert found("OpenCV FFMPEG") == Finding("OpenCV FFMPEG", False, False, text)
    assert found("OpenCV v4l/v4l2").ok
    assert "apt install python3-opencv" in found("OpenCV GStreamer").text


@pytest.mark.parametrize(
    ("devices", "ok", "text"),
    [
        ([], False, "no /dev/video*; plug in a camera for --camera"),
        (["/dev/video2", "/dev/video0"], True, "/dev/video0, /dev/video2"),
    ],
)
def test_cameras_are_listed(devices: list[str], ok: bool, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: [Path(device) for device in devices])
    assert found("cameras") == Finding("cameras", ok, False, text)


def test_a_damaged_bundle_is_reported(tmp_path: Path) -> None:
    finding = found("bundle", tmp_path)
    assert (finding.ok, finding.needed) == (False, True)
    assert finding.text == f"{tmp_path} is not a bundle: it has no bundle.json."
    assert not diagnose(tmp_path).usable


def pretend(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: machine))


def test_a_gpu_is_reported_with_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, MACHINE)
    assert found("GPU") == Finding("GPU", True, False, "NVIDIA L4, sm89, 58 multiprocessors, 24.0 GiB")
    assert found("GPU driver").text == "supports CUDA up to 13.0"
    assert "L4T" not in [finding.subject for finding in diagnose().findings]
    pretend(monkeypatch, replace(MACHINE, l4t="36.4.3"))
    assert found("L4T").text.startswith("36.4.3, a Jetson")


def test_without_a_gpu_the_reason_and_the_use_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, replace(MACHINE, gpu=None))
    monkeypatch.setattr(diagnosis, "gpu_missing_reason", lambda: "the NVIDIA driver finds no GPU")
    use = "needed for --engine onnxruntime-cuda, tensorrt and tensorrt-rtx: install the NVIDIA driver"
    assert found("GPU") == Finding("GPU", False, False, f"the NVIDIA driver finds no GPU; {use}")
    assert diagnose().usable


def test_gpu_packages_are_found_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"tensorrt": "10.3.0"}
    monkeypatch.setattr(diagnosis, "installed_version", versions.get)
    uninstall(monkeypatch, "pycuda")
    assert found("tensorrt") == Finding("tensorrt", True, False, "10.3.0")
    assert 'pip install "fsvit-edge[tensorrt-rtx]"' in found("tensorrt-rtx").text
    monkeypatch.setattr(diagnosis, "package_version", lambda package: "13.5" if package == "cuda-bindings" else None)
    packages = [one for one in diagnose().findings if one.subject in ("pycuda", "cuda-bindings")]
    assert packages == [Finding("cuda-bindings", True, False, "13.5")]  # which is enough
    monkeypatch.setattr(diagnosis, "package_version", lambda _: None)
    assert found("pycuda").text.endswith("need it or cuda-bindings: pip install pycuda")
    assert found("cuda-bindings").text.endswith("need it or pycuda: pip install cuda-bindings")
    versions.clear()
    assert "--system-site-packages" in found("tensorrt").text


def test_the_engines_of_a_bundle_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, MACHINE)
    monkeypatch.setattr(fitting, "installed_version", VERSIONS.get)
    bundle = copy_bundle(tmp_path / "bundle")
    assert found("engine folder", bundle) == Finding("engine folder", True, False, str(bundle))
    assert found("engines", bundle).text == f"none built; one may be faster: fsvit-edge build-engine {bundle}"
    write_set(bundle, "tensorrt", "fp16")
    write_set(bundle, "tensorrt-rtx", "int8", targets=("sm120",))
    (bundle / "x.engine.json").write_text("{")
    assert found("engines tensorrt fp16", bundle).text == "FP16 in TensorRT 10.13.0, built 2026-11-25"
    refused = found("engines tensorrt-rtx int8", bundle)
    assert not refused.ok
    assert "was built for sm120, but this NVIDIA L4 is sm89; rebuild it here with: " in refused.text
    assert "x.engine.json is not readable JSON" in found("sidecar 1", bundle).text
    assert diagnose(bundle).usable


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert found("engine folder").ok
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        folder = found("engine folder")
    assert (folder.ok, folder.needed) == (False, False)
    assert f"cannot be written: no permission in {tmp_path}; needed for fsvit-edge build-engine" in folder.text
    (tmp_path / "cache").write_text("a file")
    assert f"cannot be written: {tmp_path / 'cache'} is a file" in found("engine folder").text

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert "There is no home folder" in found("engine folder").text


def test_a_diagnosis_becomes_json() -> None:
    values = {"subject": "numpy", "ok": False, "needed": True, "text": "not installed"}
    assert Diagnosis((Finding(**values),)).to_dict() == {"usable": False, "findings": [values]}
