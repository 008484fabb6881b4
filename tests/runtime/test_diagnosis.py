import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import cv2
import pytest

from fsvit_edge.runtime import diagnosis
from fsvit_edge.runtime.diagnosis import Diagnosis, Finding, diagnose


def found(subject: str, bundle: Path | None = None) -> Finding:
    (finding,) = [finding for finding in diagnose(bundle).findings if finding.subject == subject]
    return finding


def uninstall(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    version = diagnosis.version

    def without(package: str) -> str:
        if package in packages:
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(diagnosis, "version", without)


def test_this_machine_can_run_the_tests() -> None:
    diagnosed = diagnose()
    assert diagnosed.usable
    subjects = [finding.subject for finding in diagnosed.findings]
    assert len(subjects) == len(set(subjects))
    assert {"python", "numpy", "onnxruntime", "engine cpu", "OpenCV FFMPEG", "cameras", "bundle"} <= set(subjects)
    assert found("bundle").text.endswith("files whole")
    assert found("engine cpu").ok


def test_a_needed_package_that_is_missing_makes_the_machine_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall(monkeypatch, "safetensors")
    assert found("safetensors") == Finding("safetensors", False, True, "not installed; pip install safetensors")
    assert not diagnose().usable


@pytest.mark.parametrize(
    ("package", "text"),
    [
        ("torch", 'only for fsvit-edge export: pip install "fsvit-edge[export]"'),
        ("scikit-image", 'only for fsvit-edge run demo: pip install "fsvit-edge[demo]"'),
    ],
)
def test_an_optional_package_is_missing_for_one_purpose_only(
    package: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall(monkeypatch, package)
    assert found(package) == Finding(package, False, False, text)
    assert diagnose().usable


def test_an_opencv_of_another_distribution_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall(monkeypatch, "opencv-python-headless")
    assert found("opencv-python-headless") == Finding("opencv-python-headless", True, True, cv2.__version__)


def test_a_back_end_that_opencv_lacks_is_named_with_its_use(monkeypatch: pytest.MonkeyPatch) -> None:
    information = (
        "  Video I/O:\n    FFMPEG:                      NO\n    v4l/v4l2:                    YES (linux/videodev2.h)\n"
    )
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: information)
    assert found("OpenCV FFMPEG") == Finding(
        "OpenCV FFMPEG", False, False, "not in this OpenCV, needed for video files and rtsp://"
    )
    assert found("OpenCV v4l/v4l2").ok
    assert "apt install python3-opencv" in found("OpenCV GStreamer").text


@pytest.mark.parametrize(
    ("devices", "ok", "text"),
    [
        ([], False, "no /dev/video*; plug one in for --camera"),
        (["/dev/video2", "/dev/video0"], True, "/dev/video0, /dev/video2"),
    ],
)
def test_cameras_are_listed(devices: list[str], ok: bool, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: [Path(device) for device in devices])
    assert found("cameras") == Finding("cameras", ok, False, text)


def test_a_bundle_that_is_not_whole_is_told(tmp_path: Path) -> None:
    finding = found("bundle", tmp_path)
    assert (finding.ok, finding.needed) == (False, True)
    assert finding.text == f"{tmp_path} is not a bundle: it has no bundle.json."
    assert not diagnose(tmp_path).usable


def test_the_findings_are_plain_values() -> None:
    finding = Finding("numpy", False, True, "not installed")
    values = json.loads(json.dumps(Diagnosis((finding,)).to_dict()))
    assert values == {
        "usable": False,
        "findings": [{"subject": "numpy", "ok": False, "needed": True, "text": "not installed"}],
    }
