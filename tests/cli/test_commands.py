"""The commands as a user types them: what they print, which files they write, and how they end."""

import errno
import functools
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import stub_camera
import typer
from safetensors.numpy import load_file, save_file

from fsvit_edge import FewShotModel, __version__
from fsvit_edge.cli import terminal
from fsvit_edge.cli.main import app, main
from fsvit_edge.enroll.fit import Fit
from fsvit_edge.live.sources import open as open_module
from fsvit_edge.live.sources.demo import DEMO_CLASSES
from fsvit_edge.live.sources.live import LiveSource
from fsvit_edge.runtime.bank import SupportBank
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, GRAPH_NAMES, Bundle, read_manifest
from fsvit_edge.runtime.pictures import read_image, write_image

COMMAND = (sys.executable, "-m", "fsvit_edge.cli.main")
BUNDLED_LEVEL = read_manifest(DEFAULT_BUNDLE).presence_level
STAGES = ["decode", "preprocess", "encoder", "head", "postprocess", "sinks"]


class Result(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Any]


def spawn(*arguments: str, cwd: Path, **options: Any) -> Result:
    """Run a command in its own process."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    done = subprocess.run([*COMMAND, *arguments], cwd=cwd, text=True, check=False, **options)
    return Result(done.returncode, done.stdout or "", done.stderr or "")


def contents(folder: Path) -> dict[str, str]:
    """Every file in a folder with the hash of its bytes; every folder with an empty one."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
        if not path.is_symlink()
    }


def is_one_error(result: Result, code: int, text: str) -> None:
    """Assert that a command printed one error of one sentence and nothing else."""
    assert "Traceback" not in result.err
    assert result.err.startswith("Error: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    assert text in result.err
    assert result.out == ""
    assert result.code == code


def colors(seed: int, height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return small.repeat(-(-height // 4), axis=0).repeat(-(-width // 5), axis=1)[:height, :width].copy()


def rectangle(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width, 3), np.uint8)
    mask[height // 4 : -height // 4, width // 4 : -width // 4] = 255
    return mask


def write_video(path: Path, frames: int, fps: float = 12.0) -> None:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), fps, (160, 120))
    for index in range(frames):
        writer.write(colors(index, 120, 160))
    writer.release()


def count_frames(path: Path) -> int:
    """Decode a video to its end."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = 0
    while capture.read()[0]:
        frames += 1
    capture.release()
    return frames


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, masks, a video, damaged versions of each, and a bank with two classes."""
    folder = tmp_path_factory.mktemp("samples")
    write_image(folder / "cat1.jpg", colors(1, 120, 160))
    write_image(folder / "cat1_mask.png", rectangle(120, 160))
    write_image(folder / "cat2.png", colors(2, 90, 60))
    write_image(folder / "cat2_mask.png", rectangle(90, 60))
    write_image(folder / "photo.jpg", colors(3, 121, 163))
    write_image(folder / "black.png", np.zeros((120, 160, 3), np.uint8))
    for index in range(3):
        write_image(folder / "album" / f"{index}.jpg", colors(10 + index, 60 + index, 80))
    write_video(folder / "video.mp4", 6)
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("not a picture")
    (folder / "broken.jpg").write_bytes((folder / "cat1.jpg").read_bytes()[:-400])
    (folder / "broken.mp4").write_bytes((folder / "video.mp4").read_bytes()[:500])
    with FewShotModel.load(threads=1) as model:
        model.enroll("cat", [read_image(folder / "cat1.jpg")], [rectangle(120, 160)[..., 0]])
        model.enroll("Größe 猫", [read_image(folder / "cat2.png")])
        model.save_bank(folder / "bank.safetensors")
        foreign = SupportBank(replace(model.bank.identity, encoder_sha256="ab" * 32))
        foreign.add("cat", model.bank.supports("cat"))
        foreign.save(folder / "foreign.safetensors")
    (folder / "broken.safetensors").write_bytes((folder / "bank.safetensors").read_bytes()[:-1])
    altered = folder / "altered"
    shutil.copytree(DEFAULT_BUNDLE, altered, ignore=shutil.ignore_patterns("*.safetensors"))
    data = bytearray((altered / "head.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (altered / "head.onnx").write_bytes(data)
    return folder


@pytest.fixture
def folder(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the samples in the current folder; the altered bundle is a link."""
    for path in samples.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
        elif path.name == "altered":
            (tmp_path / path.name).symlink_to(path)
        else:
            shutil.copytree(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines_of(text: str) -> list[dict[str, Any]]:
    return [
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in text.splitlines()
    ]


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        # 2: an input cannot be used
        (("run", "photo.jpg", "--xyzzy"), 2, "No such option: --xyzzy; fsvit-edge run has --camera, "),
        (("run", "photo.jpg", "--num", "5"), 2, "--max-frames, --stats, --health, --token, --allow-host, --json; see"),
        (("fly",), 2, "No such command 'fly'; see: fsvit-edge --help"),
        (("bank", "fly"), 2, "No such command 'fly'; see: fsvit-edge bank --help"),
        (("enroll",), 2, "Missing argument"),
        (("enroll", "cat"), 2, "Missing argument"),
        (("run", "photo.jpg", "--max-frames", "0"), 2, "--max-frames"),
        (("run", "photo.jpg", "--max-frames", "few"), 2, "--max-frames"),
        (("run", "photo.jpg", "--sink"), 2, "--sink"),
        (("bench", "--ways", "256"), 2, "--ways"),
        (("enroll", "cat", "broken.jpg"), 2, "broken.jpg is damaged or cut short"),
        (("enroll", "cat", "none.jpg"), 2, "The picture none.jpg cannot be read: No such file"),
        (("enroll", "cat", "notes.txt"), 2, "notes.txt is damaged or not a PNG"),
        (("enroll", "cat", "cat1.jpg", "cat2.png", "--mask", "cat1_mask.png"), 2, "2 pictures but 1 masks: give one"),
        (("enroll", "cat", "cat1.jpg", "--mask", "cat1_mask.png", "--mask", "black.png"), 2, "1 pictures but 2 masks"),
        (("enroll", "cat", "cat1.jpg", "--mask", "black.png"), 2, "The mask black.png marks no pixel"),
        (("enroll", "cat", "cat2.png", "--mask", "cat1_mask.png"), 2, "is 160x120 pixels, but its picture is 60x90"),
        (("enroll", "cat", "cat1.jpg", "--level", "1"), 2, "must be between 0 and 1, both excluded; got 1.0"),
        (("run", "photo.jpg", "--level", "0"), 2, "must be between 0 and 1, both excluded; got 0.0"),
        (("run", "photo.jpg", "--level", "nan"), 2, "must be between 0 and 1, both excluded; got nan"),
        (("bank", "level", "bank.safetensors", "cat", "1.5"), 2, "must be between 0 and 1, both excluded; got 1.5"),
        (("bank", "level", "bank.safetensors", "dog", "0.5"), 2, "'dog' is not enrolled"),
        (("enroll", " cat", "cat1.jpg"), 2, "A class name must be 1 to 80 printable characters, got ' cat'"),
        (("enroll", "cat", "cat1.jpg", "--bank", "bank.pt"), 2, "A bank must be a .safetensors file, got bank.pt"),
        (("enroll", "cat", "cat1.jpg", "--bank", "notes.txt/bank.safetensors"), 2, "is a file, not a folder"),
        (("bank", "list", "notes.txt"), 2, "A bank must be a .safetensors file, got notes.txt"),
        (("bank", "remove", "bank.safetensors", "dog"), 2, "'dog' is not enrolled; enrolled: cat, Größe 猫"),
        (("bank", "rename", "bank.safetensors", "dog", "x"), 2, "'dog' is not enrolled"),
        (("bank", "rename", "bank.safetensors", "cat", ""), 2, "A class name must be"),
        (("bank", "rename", "bank.safetensors", "cat", "Größe 猫"), 2, "'Größe 猫' already exists"),
        (("run",), 2, "Give a source"),
        (("run", ""), 2, "Unsupported source ''; expected a picture"),
        (("run", "notes.txt"), 2, "notes.txt is not a picture or video"),
        (("run", "broken.jpg"), 2, "broken.jpg is damaged or cut short"),
        (("run", "empty"), 2, "The folder empty contains no pictures"),
        (("run", "ftp://127.0.0.1/video.mp4"), 2, "Unsupported source ftp:...; expected a picture"),
        (("run", "--camera", "photo.jpg"), 2, "--camera reads a camera, but SOURCE is 'photo.jpg'"),
        (("run", "photo.jpg", "--sink", "notes.txt/"), 2, "notes.txt cannot be a folder: notes.txt is a file"),
        (("run", "photo.jpg", "--sink", "out.avi"), 2, "Unsupported sink 'out.avi'"),
        (("run", "photo.jpg", "--engine", "gpu"), 2, "Engine 'gpu' is unknown; choose one of: auto, onnxruntime"),
        (("run", "photo.jpg", "--sink", "photo.jpg"), 2, "The sink photo.jpg is the source, which it would overwrite"),
        (
            ("run", "video.mp4", "--sink", "./video.mp4"),
            2,
            "is the source, which it would overwrite; give another name",
        ),
        (("run", "album", "--sink", "album/"), 2, "The sink album/ is the source, which it would overwrite"),
        (("build-engine", "--engine", "cpu", "--int8"), 2, "Engine 'cpu' is now called 'onnxruntime'"),
        (("run", "photo.jpg", "--engine", "cpu"), 2, "Engine 'cpu' is now called 'onnxruntime'"),
        (
            ("run", "photo.jpg", "--engine", "nv-tensorrt-rtx"),
            2,
            "choose one of: auto, onnxruntime, onnxruntime-cuda, tensorrt, tensorrt-rtx",
        ),
        (
            ("run", "photo.jpg", "--precision", "fp64"),
            2,
            "Precision 'fp64' is unknown; choose one of: auto, fp32, fp16",
        ),
        (
            ("run", "photo.jpg", "--engine", "onnxruntime-cuda", "--precision", "int8"),
            2,
            "--engine onnxruntime-cuda runs the bundle's own FP32",
        ),
        (
            ("enroll", "cat", "cat1.jpg", "--precision", "fp16", "--engine", "onnxruntime"),
            2,
            "use --precision fp32 or int8",
        ),
        (("run", "photo.jpg", "--bank", "bank"), 2, "A bank must be a .safetensors file, got bank"),
        (("export", "--backbone", "vit_small_patch16_224.dino"), 2, "A backbone has no head"),
        (("export", "--pretrained"), 2, "A backbone has no head"),
        (("build-engine", "--int8", "--fp16"), 2, "Build one precision at a time, got fp16, int8"),
        (("build-engine", "--max-drop", "1"), 2, "--max-drop limits the loss on a data set; name the data set with"),
        (("build-engine", "--fp16", "--calib", "album"), 2, "--calib has no effect here"),
        # 3: something is missing on this machine
        (("build-engine", "--engine", "tensorrt"), 3, "--engine tensorrt needs tensorrt, which is not installed"),
        (("run", "photo.jpg", "--engine", "tensorrt"), 3, "--engine tensorrt needs a GPU, but no NVIDIA driver"),
        (("run", "photo.jpg", "--precision", "fp16"), 3, "--precision fp16 needs a GPU, but no NVIDIA driver"),
        (("bench", "--engine", "tensorrt-rtx"), 3, "--engine tensorrt-rtx needs a GPU, but no NVIDIA driver"),
        (
            ("enroll", "cat", "cat1.jpg", "--engine", "onnxruntime-cuda"),
            3,
            "--engine onnxruntime-cuda needs ONNX Runtime's CUDA",
        ),
        # 4: an artifact is damaged or does not fit
        (("run", "photo.jpg", "--bundle", "altered"), 4, "head.onnx was altered or damaged: sha256"),
        (("enroll", "cat", "cat1.jpg", "--bundle", "altered"), 4, "head.onnx was altered or damaged: sha256"),
        (("bench", "--bundle", "altered"), 4, "head.onnx was altered or damaged: sha256"),
        (("build-engine", "altered"), 4, "head.onnx was altered or damaged: sha256"),
        (("build-engine", "--int8", "--calib", "none.json"), 4, "The calibration none.json does not exist"),
        (("bench", "--precision", "int8"), 4, "with: fsvit-edge build-engine --engine onnxruntime --precision int8"),
        (("run", "photo.jpg", "--bundle", "album"), 4, "album is not a bundle: it has no bundle.json"),
        (("enroll", "cat", "cat1.jpg", "--bundle", "none"), 4, "Bundle none does not exist"),
        (("run", "photo.jpg", "--bank", "foreign.safetensors"), 4, "was made with a different encoder: abababababab"),
        (("enroll", "dog", "cat1.jpg", "--bank", "foreign.safetensors"), 4, "was made with a different encoder"),
        (("run", "photo.jpg", "--bank", "broken.safetensors"), 4, "Bank broken.safetensors is damaged"),
        (("run", "photo.jpg", "--bank", "none.safetensors"), 4, "make one with: fsvit-edge enroll"),
        (("bank", "list", "broken.safetensors"), 4, "Bank broken.safetensors is damaged"),
        (("bank", "remove", "none.safetensors", "cat"), 4, "Bank none.safetensors does not exist"),
        # 6: a source cannot be reached
        (("run", "987"), 6, "Camera /dev/video987 does not exist; plug it in"),
        (("run", "--camera", "987"), 6, "Camera /dev/video987 does not exist"),
        (("run", "--camera", "/dev/video987"), 6, "Camera /dev/video987 does not exist"),
        (("run", "none.mp4"), 6, "The source none.mp4 cannot be opened: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_error_is_one_sentence_and_changes_no_file(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, text: str
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("fsvit_edge.runtime.gpu._LIBRARY", "no-driver.so.1")
    before = contents(folder)
    is_one_error(cli(*arguments), code, text)
    assert contents(folder) == before


def test_the_error_for_a_damaged_video_has_no_output_of_ffmpeg(folder: Path) -> None:
    # In its own process: the first video that a process opens settles FFmpeg's log level.
    is_one_error(spawn("run", "broken.mp4", cwd=folder), 6, "The video broken.mp4 cannot be opened; it is damaged")


def test_a_file_cannot_be_processed_without_a_bank(folder: Path, cli: Cli) -> None:
    (folder / "bank.safetensors").unlink()
    before = contents(folder)
    is_one_error(
        cli("run", "photo.jpg", "--sink", "out.jsonl"), 2, "No classes are enrolled; enroll one with: fsvit-edge enroll"
    )
    assert contents(folder) == before


def test_an_error_during_a_run_keeps_finished_results(folder: Path, cli: Cli) -> None:
    shutil.copy("broken.jpg", "album/1.jpg")
    before = contents(folder)
    sinks = ("--sink", "out.mp4", "--sink", "out.jsonl", "--sink", "pictures/")
    is_one_error(cli("run", "album", *sinks), 2, "album/1.jpg is damaged or cut short")
    new = contents(folder).keys() - before.keys()
    assert new == {"out.mp4", "out.jsonl", "pictures", "pictures/frame_000000.jpg"}
    assert count_frames(folder / "out.mp4") == 1
    assert len(lines_of((folder / "out.jsonl").read_text())) == 1


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)


@pytest.mark.parametrize(
    "arguments",
    [
        ("enroll", "dog", "cat1.jpg"),
        ("enroll", "dog", "cat1.jpg", "--bank", "new.safetensors"),
        ("bank", "remove", "bank.safetensors", "cat"),
        ("bank", "rename", "bank.safetensors", "cat", "dog"),
        ("run", "photo.jpg", "--sink", "pictures/"),
    ],
    ids=" ".join,
)
def test_a_full_disk_is_a_failure_and_changes_nothing(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    (folder / "pictures").mkdir()
    before = contents(folder)
    fill_disk(monkeypatch)
    is_one_error(cli(*arguments), 1, "cannot be written: No space left on device; nothing was changed")
    assert contents(folder) == before


def environment(is_buffered: bool) -> dict[str, str]:
    """This process's environment, in which Python's output is buffered or not."""
    others = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return others if is_buffered else {**others, "PYTHONUNBUFFERED": "1"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device that is always full")
@pytest.mark.parametrize("arguments", [("doctor",), ("--help",), ("bank", "list", "bank.safetensors")], ids=" ".join)
@pytest.mark.parametrize("is_buffered", [True, False], ids=["buffered", "unbuffered"])
def test_a_full_standard_output_is_an_error_of_one_sentence(
    folder: Path, arguments: tuple[str, ...], is_buffered: bool
) -> None:
    with open("/dev/full", "w") as full:
        result = spawn(*arguments, cwd=folder, stdout=full, env=environment(is_buffered))
    is_one_error(result, 1, "Standard output cannot be written to: No space left on device")


@pytest.mark.parametrize(
    ("arguments"), [("doctor",), ("doctor", "--json"), ("run", "album", "--sink", "-")], ids=" ".join
)
def test_a_reader_that_leaves_early_is_not_an_error(folder: Path, arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = spawn(*arguments, cwd=folder, stdout=writer, env=environment(is_buffered=True))
    os.close(writer)
    assert result.code == 0
    assert "rror" not in result.err
    assert "Traceback" not in result.err
    assert "Exception" not in result.err


@pytest.mark.parametrize("missing", ["torch", "onnxsim"])
def test_an_export_without_its_packages_names_them(
    empty_folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    find_spec = terminal.find_spec
    monkeypatch.setattr(terminal, "find_spec", lambda name: None if name == missing else find_spec(name))
    result = cli("export")
    is_one_error(result, 3, f"fsvit-edge export needs {missing}, ")
    assert 'pip install "fsvit-edge[export]"' in result.err
    assert contents(empty_folder) == {}


@pytest.mark.usefixtures("folder")
def test_ctrl_c_before_the_run_exits_with_130_and_prints_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FewShotModel, "load", interrupt)
    result = cli("enroll", "dog", "cat1.jpg")
    assert (result.code, result.out, result.err) == (130, "", "")


def test_ctrl_c_ends_the_demo_with_its_summary_and_a_complete_video(empty_folder: Path) -> None:
    command = [sys.executable, "-m", "fsvit_edge.cli.main", "run", "demo", "--sink", "demo.mp4", "--sink", "demo.jsonl"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = empty_folder / "demo.jsonl"
    deadline = time.monotonic() + 60
    while not lines.exists() or lines.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    records = lines_of(lines.read_text())
    assert len(records) >= 3
    assert abs(count_frames(empty_folder / "demo.mp4") - len(records)) <= 1
    assert f"demo with {FewShotModel.load().manifest.name}: " in out
    assert " frames in " in out
    assert contents(empty_folder).keys() == {"demo.mp4", "demo.jsonl"}


# ------------------------------------------------------------------------------------------------------------ the help


def commands() -> dict[tuple[str, ...], Any]:
    root = typer.main.get_command(app)
    found: dict[tuple[str, ...], Any] = {(): root}
    for name, command in root.commands.items():
        found[(name,)] = command
        for inner, nested in getattr(command, "commands", {}).items():
            found[name, inner] = nested
    return found


def test_the_commands_are_known() -> None:
    assert sorted(" ".join(path) for path in commands()) == [
        "",
        "bank",
        "bank level",
        "bank list",
        "bank remove",
        "bank rename",
        "bench",
        "build-engine",
        "calib",
        "doctor",
        "enroll",
        "eval",
        "export",
        "inspect",
        "run",
        "train",
    ]


def time_of_processes_s() -> float:
    """CPU time of the processes that have ended, which other tests beside this one lengthen little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("path", commands(), ids=lambda path: " ".join(path) or "fsvit-edge")
def test_help_is_fast_and_mentions_every_option(path: tuple[str, ...], tmp_path: Path) -> None:
    limit_s = 0.6  # 0.3 s on an idle machine
    for _ in range(3):
        before_s = time_of_processes_s()
        result = spawn(*path, "--help", cwd=tmp_path)
        took_s = time_of_processes_s() - before_s
        assert (result.code, result.err) == (0, "")
        if took_s < limit_s:
            break
    assert took_s < limit_s
    command = commands()[path]
    assert command.help
    assert " ".join(command.help.split())[:40] in " ".join(result.out.split())
    for parameter in command.params:
        shown = [*parameter.opts, *parameter.secondary_opts]
        assert all(name in result.out for name in shown), shown
        assert parameter.help, parameter.name


def test_a_command_group_without_a_command_shows_its_help(cli: Cli) -> None:
    for arguments in ((), ("bank",)):
        result = cli(*arguments)
        assert result.code == 2
        assert result.err.startswith("Usage: fsvit-edge")
        assert result.out == ""


def test_the_version_is_printed(cli: Cli) -> None:
    assert cli("--version") == Result(0, f"fsvit-edge {__version__}\n", "")


def test_the_console_script_calls_main() -> None:
    (script,) = [entry for entry in entry_points(group="console_scripts") if entry.name == "fsvit-edge"]
    assert script.load() is main


# ---------------------------------------------------------------------------------------------------- enroll, edit, run


def test_classes_are_enrolled_listed_renamed_and_removed(folder: Path, cli: Cli) -> None:
    (folder / "bank.safetensors").unlink()
    first = cli("enroll", "cat", "cat1.jpg", "cat2.png", "--mask", "cat1_mask.png", "--mask", "cat2_mask.png")
    assert first.code == 0
    fit = re.compile(r"fit on its own picture: IoU [01]\.\d\d, outline \d+\.\d x the mask's area$", re.MULTILINE)
    assert fit.sub("FIT", first.out).splitlines() == [
        "cat1.jpg: mask covers 25% of the picture and keeps 36 tokens",
        "cat1.jpg: FIT",
        "cat2.png: mask covers 25% of the picture and keeps 36 tokens",
        "cat2.png: FIT",
        "Enrolled 'cat' with 2 supports; bank.safetensors contains: cat.",
        first.out.splitlines()[-1],
    ]
    assert re.fullmatch(
        r"Its level, the score above which it is present: 0\.\d\d \(own pictures\)\.", first.out.splitlines()[-1]
    )
    assert first.err.splitlines()[-1] == "Next: fsvit-edge run --camera --bank bank.safetensors"
    second = cli("enroll", "thing", "cat2.png")
    assert second.code == 0
    assert "cat2.png: guessed mask covers " in second.out
    assert "Enrolled 'thing' with 1 support; bank.safetensors contains: cat, thing." in second.out
    assert f"Its level, the score above which it is present: {BUNDLED_LEVEL:.2f} (default)." in second.out
    third = cli("enroll", "cat", "photo.jpg")
    assert "Enrolled 'cat' with 3 supports; bank.safetensors contains: cat, thing." in third.out

    listed = json.loads(cli("bank", "list", "bank.safetensors", "--json").out)
    assert listed["encoder"]["encoder_sha256"] == Bundle.load(DEFAULT_BUNDLE).manifest.graphs["encoder"].sha256
    assert [(c["name"], c["shots"], c["masks"]) for c in listed["classes"]] == [("cat", 3, 2), ("thing", 1, 0)]
    for entry in listed["classes"]:
        assert len(entry["kept_tokens"]) == entry["shots"]
        assert entry["bytes"] > 0
    table = cli("bank", "list", "bank.safetensors")
    assert (table.code, table.err) == (0, "")
    rows = [line.split()[:3] for line in table.out.splitlines()]
    assert ["cat", "3", "2"] in rows
    assert ["thing", "1", "0"] in rows

    renamed = cli("bank", "rename", "bank.safetensors", "cat", "Katze 猫")
    assert renamed == Result(0, "Renamed 'cat' to 'Katze 猫'; bank.safetensors contains: Katze 猫, thing.\n", "")
    removed = cli("bank", "remove", "bank.safetensors", "thing")
    assert removed == Result(0, "Removed 'thing'; bank.safetensors contains: Katze 猫.\n", "")
    last = cli("bank", "remove", "bank.safetensors", "Katze 猫")
    assert last.out == "Removed 'Katze 猫'; bank.safetensors contains: no class.\n"
    assert SupportBank.load(folder / "bank.safetensors").classes == ()


def test_a_level_can_be_set_listed_and_reset(folder: Path, cli: Cli) -> None:
    (folder / "bank.safetensors").unlink()

    def listed() -> list[tuple[float, str]]:
        entries = json.loads(cli("bank", "list", "bank.safetensors", "--json").out)["classes"]
        return [(entry["level"], entry["level_source"]) for entry in entries]

    first = cli("enroll", "cat", "cat1.jpg", "--level", "0.7")
    assert first.out.splitlines()[-1] == "Its level, the score above which it is present: 0.70 (by hand)."
    cli("enroll", "thing", "cat1.jpg")
    assert (
        cli("enroll", "cat", "cat2.png").out.splitlines()[-1]
        == "Its level, the score above which it is present: 0.70 (by hand)."
    )
    assert listed() == [(0.7, "by hand"), (BUNDLED_LEVEL, "default")]
    table = cli("bank", "list", "bank.safetensors").out
    assert "0.70 (by hand)" in table
    assert f"{BUNDLED_LEVEL:.2f} (default)" in table
    back = cli("bank", "level", "bank.safetensors", "cat")
    level, source = listed()[0]
    assert source == "own pictures"
    assert back.out == f"The level of 'cat' is now {level:.2f} (own pictures).\n"
    assert (
        cli("bank", "level", "bank.safetensors", "thing", "0.3").out == "The level of 'thing' is now 0.30 (by hand).\n"
    )
    assert listed()[1] == (0.3, "by hand")


def test_a_run_uses_the_levels_of_the_bank_or_one_for_all_classes(folder: Path, cli: Cli) -> None:
    cli("bank", "level", "bank.safetensors", "cat", "0.3")

    def classes(*options: str) -> list[dict[str, Any]]:
        return list(json.loads(cli("run", "photo.jpg", "--sink", "-", *options).out.splitlines()[0])["classes"])

    before = SupportBank.load(folder / "bank.safetensors")
    assert [one["level"] for one in classes()] == [0.3, round(before.level("Größe 猫"), 4)]
    for level in (0.0001, 0.9999):
        answers = classes("--level", str(level))
        assert [one["level"] for one in answers] == [level] * 2
        assert [one["present"] for one in answers] == [one["score"] > level for one in answers]
    assert SupportBank.load(folder / "bank.safetensors").level("cat") == 0.3


@pytest.mark.usefixtures("folder")
def test_poor_masks_cause_a_warning(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    enroll = FewShotModel.enroll
    good, absent = Fit(0.7, 1.2, True), Fit(0.7, 1.2, False)
    for cover, fit, expected in (
        (0.999, good, ["Warning: cat1.jpg: The guessed mask covers almost the whole picture; give a mask or a box."]),
        (0.4, good, []),
        (
            0.4,
            absent,
            [
                "Warning: cat1.jpg: The class is not found in its own picture; give a tighter mask or box, or add "
                "another picture."
            ],
        ),
    ):
        changed = {"mask_cover": (cover,)}
        monkeypatch.setattr(FewShotModel, "enroll", lambda *given, c=changed: replace(enroll(*given), **c))
        monkeypatch.setattr("fsvit_edge.enroll.enroll_pictures.measure_fit", lambda *_, f=fit: f)
        result = cli("enroll", "cat", "cat1.jpg")
        assert result.code == 0
        assert [line for line in result.err.splitlines() if line.startswith("Warning: ")] == expected
        assert f"cat1.jpg: fit on its own picture: {fit}\n" in result.out


def is_record(record: dict[str, Any], sequence: int, classes: list[str]) -> None:
    """Assert that a JSON line has the documented fields, and that those of each class agree with each other."""
    times = ["wall_time_s", "monotonic_s", "age_ms"]
    assert list(record) == ["event", "sequence", "source", *times, "is_frozen", "size_hw", "classes", "latency_ms"]
    assert (record["event"], record["is_frozen"]) == ("frame", False)
    assert 0 < record["age_ms"] < 60_000
    assert record["sequence"] == sequence
    assert abs(record["wall_time_s"] - time.time()) < 600
    height, width = record["size_hw"]
    assert [entry["name"] for entry in record["classes"]] == classes
    for entry in record["classes"]:
        assert list(entry) == ["name", "score", "level", "present", "area_px", "box_xyxy"]
        assert 0 <= entry["score"] <= 1
        assert entry["present"] == (entry["score"] > entry["level"])
        assert 0 <= entry["area_px"] <= height * width
        assert (entry["box_xyxy"] is None) == (entry["area_px"] == 0)
        left, top, right, bottom = entry["box_xyxy"] or (0, 0, width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert entry["area_px"] <= (right - left) * (bottom - top)
    assert list(record["latency_ms"]) == STAGES[:-1]


CLASSES = ["cat", "Größe 猫"]


def test_one_picture_goes_to_several_sinks(folder: Path, cli: Cli) -> None:
    sinks = ["--sink", "result/", "--sink", "out.mp4", "--sink", "out.jsonl", "--sink", "-"]
    result = cli("run", "photo.jpg", *sinks)
    assert result.code == 0
    (printed,) = lines_of(result.out)
    (written,) = lines_of((folder / "out.jsonl").read_text())
    assert printed == written
    is_record(printed, 0, CLASSES)
    assert (printed["source"], printed["size_hw"]) == ("photo.jpg", [121, 163])
    assert read_image(folder / "result" / "frame_000000.jpg").shape == (121, 163, 3)
    assert count_frames(folder / "out.mp4") == 1
    assert "photo.jpg with " in result.err
    assert "Wrote result/\nWrote out.mp4\nWrote out.jsonl\n" in result.err


def test_a_folder_becomes_one_picture_per_picture(folder: Path, cli: Cli) -> None:
    result = cli("run", "album", "--sink", "result/", "--sink", "deep/er/out.jsonl")
    assert result.code == 0
    assert sorted(path.name for path in (folder / "result").iterdir()) == [f"frame_00000{i}.jpg" for i in range(3)]
    records = lines_of((folder / "deep/er/out.jsonl").read_text())
    for index, one in enumerate(records):
        is_record(one, index, CLASSES)
        assert (one["source"], one["size_hw"]) == (f"album/{index}.jpg", [60 + index, 80])
    assert "album with " in result.out
    assert ": 3 frames in " in result.out
    assert result.err == "Wrote result/\nWrote deep/er/out.jsonl\n"


def test_a_video_becomes_a_video_of_the_same_speed(folder: Path, cli: Cli) -> None:
    result = cli("run", "video.mp4", "--sink", "out.mp4", "--threads", "1", "--engine", "onnxruntime")
    assert result.code == 0
    assert count_frames(folder / "out.mp4") == 6
    capture = cv2.VideoCapture(str(folder / "out.mp4"), cv2.CAP_FFMPEG)
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12, abs=0.1)
    capture.release()


def test_a_run_without_a_sink_prints_a_summary(folder: Path, cli: Cli) -> None:
    before = contents(folder)
    result = cli("run", "video.mp4", "--max-frames", "4")
    assert (result.code, result.err) == (0, "")
    assert ": 4 frames in " in result.out
    rows = [line.split() for line in result.out.splitlines()[1:]]
    assert [row[0] for row in rows if len(row) == 3 and row[0] != "stage"] == STAGES
    assert contents(folder) == before


@pytest.mark.usefixtures("folder")
def test_the_summary_in_json_contains_the_same_numbers(cli: Cli) -> None:
    result = cli("run", "video.mp4", "--json")
    assert (result.code, result.err) == (0, "")
    (summary,) = lines_of(result.out)
    counts = ["frames", "dropped", "reconnects"]
    times = ["elapsed_s", "fps", "age_ms", "latency_ms"]
    assert list(summary) == ["source", "model", "engine", "precision", *counts, *times, "memory_mb"]
    assert (summary["dropped"], summary["reconnects"]) == (0, 0)
    assert 0 < summary["age_ms"]["p50"] <= summary["age_ms"]["p99"]
    assert (summary["source"], summary["frames"]) == ("video.mp4", 6)
    assert list(summary["latency_ms"]) == STAGES
    for stage in summary["latency_ms"].values():
        assert 0 <= stage["p50"] <= stage["p95"]
    assert summary["fps"] == pytest.approx(6 / summary["elapsed_s"], rel=0.05)


@pytest.mark.usefixtures("folder")
def test_another_bank_is_chosen_with_the_option(cli: Cli) -> None:
    assert cli("enroll", "other", "cat1.jpg", "--bank", "sub/other.safetensors").code == 0
    result = cli("run", "photo.jpg", "--bank", "sub/other.safetensors", "--sink", "-")
    is_record(lines_of(result.out)[0], 0, ["other"])


def test_the_demo_writes_a_video_and_prints_the_next_step(empty_folder: Path, cli: Cli) -> None:
    result = cli("run", "demo", "--max-frames", "5")
    assert result.code == 0
    assert contents(empty_folder).keys() == {"demo.mp4"}
    assert count_frames(empty_folder / "demo.mp4") == 5
    assert ": 5 frames in " in result.out
    *enrolled, wrote, comes_next = result.err.splitlines()
    assert {line.split("'")[1] for line in enrolled} == set(DEMO_CLASSES)
    assert any(line.endswith(" with a mask") for line in enrolled)
    assert any(line.endswith(" without a mask") for line in enrolled)
    assert wrote == "Wrote demo.mp4"
    assert comes_next.endswith("Next: fsvit-edge enroll NAME IMAGE")


@pytest.mark.usefixtures("folder")
def test_the_demo_uses_its_own_classes_unless_a_bank_is_given(cli: Cli) -> None:
    own = cli("run", "demo", "--max-frames", "1", "--sink", "-")
    is_record(lines_of(own.out)[0], 0, list(DEMO_CLASSES))
    ours = cli("run", "demo", "--max-frames", "1", "--sink", "-", "--bank", "bank.safetensors")
    is_record(lines_of(ours.out)[0], 0, CLASSES)


# ------------------------------------------------------------------------------------------------------------- cameras


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """Camera 0, which delivers frames without end."""
    stub = functools.partial(LiveSource, command=stub_camera.command("steady"))
    monkeypatch.setattr(open_module, "LiveSource", stub)
    monkeypatch.setattr(open_module, "check_device", lambda _: None)


@pytest.mark.usefixtures("camera")
def test_a_camera_without_a_bank_uses_the_classes_of_the_demo(empty_folder: Path, cli: Cli) -> None:
    result = cli("run", "--camera", "--max-frames", "3")
    assert result.code == 0
    assert (
        "No bank found, so the classes of the demo are used; enroll yours: fsvit-edge enroll NAME IMAGE\n" in result.err
    )
    assert "0 with " in result.out
    assert ": 3 frames in " in result.out
    assert contents(empty_folder) == {}


@pytest.mark.usefixtures("camera")
@pytest.mark.parametrize("arguments", [("--camera",), ("0",), ("/dev/video0",), ("--camera", "0")], ids=" ".join)
def test_a_camera_uses_the_bank_in_the_current_folder(folder: Path, cli: Cli, arguments: tuple[str, ...]) -> None:
    result = cli("run", *arguments, "--sink", "-", "--sink", "out.mp4", "--max-frames", "4")
    assert result.code == 0
    records = [one for one in lines_of(result.out) if one["event"] == "frame"]
    assert [one["classes"][0]["name"] for one in records] == [CLASSES[0]] * len(records)
    sequence = [one["sequence"] for one in records]
    assert sequence == sorted(set(sequence))
    assert 1 <= len(records) <= 4
    assert count_frames(folder / "out.mp4") >= 1


def test_a_missing_camera_is_an_error(empty_folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda _: False)
    is_one_error(
        cli("run", "--camera"), 6, "Camera /dev/video0 does not exist; plug it in, or list the cameras with: ls"
    )
    assert contents(empty_folder) == {}


# ---------------------------------------------------------------------------------------------------- bench and doctor


def test_the_benchmark_prints_a_table_or_json(empty_folder: Path, cli: Cli) -> None:
    table = cli("bench", "--ways", "2", "--frames", "3", "--no-growth", "--threads", "1")
    assert (table.code, table.err) == (0, "")
    assert "2 ways x 1 shots, 1280 x 720 frames: " in table.out
    assert "Growth" not in table.out
    for stage in ("preprocess", "encoder", "head", "postprocess", "total"):
        assert f"\n {stage} " in table.out
    result = cli("bench", "--ways", "1", "--shots", "2", "--frames", "2", "--no-growth", "--json")
    assert (result.code, result.err) == (0, "")
    (measured,) = lines_of(result.out)
    assert (measured["ways"], measured["shots"], measured["frames"], measured["growth"]) == (1, 2, 2, [])
    assert measured["fps"] == pytest.approx(1000 / measured["latency_ms"]["total"][0])
    assert contents(empty_folder) == {}


def test_the_benchmark_measures_growth(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsvit_edge.inspect.benchmark.GROWTH_WAYS", (1, 3))
    result = cli("bench", "--ways", "1", "--frames", "1", "--json")
    (measured,) = lines_of(result.out)
    assert [(m["ways"], m["frames"]) for m in measured["growth"]] == [(1, 5), (3, 5)]
    assert "Growth" in cli("bench", "--ways", "1", "--frames", "1").out


def test_the_doctor_finds_no_problem_on_this_machine(empty_folder: Path, cli: Cli) -> None:
    result = cli("doctor")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert all(line.startswith(("ok       ", "missing  ")) for line in lines)
    assert any(line.split()[:2] == ["ok", "bundle"] for line in lines)
    listed = json.loads(cli("doctor", "--json").out)
    assert listed["usable"] is True
    assert len(listed["findings"]) == len(lines)
    assert contents(empty_folder) == {}


@pytest.mark.usefixtures("folder")
def test_the_doctor_finds_a_damaged_bundle(cli: Cli) -> None:
    result = cli("doctor", "--bundle", "altered")
    assert result.code == 4
    assert "head.onnx was altered or damaged" in result.out
    assert json.loads(cli("doctor", "--bundle", "altered", "--json").out)["usable"] is False


# -------------------------------------------------------------------------------------------------------------- export


exports = pytest.mark.slow(reason="traces the bundled model in a process of its own, 25 s")


@pytest.fixture(scope="module")
def bare_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """`fsvit-edge export` without options in an empty folder."""
    folder = tmp_path_factory.mktemp("bare")
    return folder, spawn("export", cwd=folder)


@exports
def test_an_export_without_options_writes_a_bundle_and_prints_the_next_step(bare_export: tuple[Path, Result]) -> None:
    folder, result = bare_export
    assert result.code == 0, result.err
    assert contents(folder).keys() == {"bundle", "bundle/bundle.json", *(f"bundle/{n}.onnx" for n in GRAPH_NAMES)}
    assert result.out.startswith("torch compared with ONNX Runtime\n")
    assert "\nWrote bundle: " in result.out
    log = result.err.splitlines()
    assert log[-1] == "Next: fsvit-edge enroll NAME IMAGE --bundle bundle"
    assert all(" s] Export: " in line for line in log[:-1])
    for step in ("load torch", "trace encoder", "simplify head", "check enroll", "compare torch with", "write"):
        assert f"Export: {step}" in result.err


@exports
def test_an_exported_bundle_predicts_like_the_bundled_one(bare_export: tuple[Path, Result], samples: Path) -> None:
    predictions = []
    for bundle in (None, bare_export[0] / "bundle"):
        with FewShotModel.load(bundle, threads=1) as model:
            model.enroll("cat", [read_image(samples / "cat1.jpg")], [rectangle(120, 160)[..., 0]])
            model.enroll("thing", [read_image(samples / "cat2.png")])
            predictions.append(model.predict(read_image(samples / "photo.jpg"), probabilities=True))
    bundled, exported = predictions
    assert bundled.foreground is not None
    np.testing.assert_allclose(exported.scores, bundled.scores, atol=1e-3)
    np.testing.assert_allclose(exported.foreground, bundled.foreground, atol=1e-2)


@exports
def test_a_bundle_is_used_from_enrollment_to_a_run(bare_export: tuple[Path, Result], folder: Path, cli: Cli) -> None:
    bundle = str(bare_export[0] / "bundle")
    (folder / "bank.safetensors").unlink()
    enrolled = cli("enroll", "cat", "cat1.jpg", "--bundle", bundle)
    assert enrolled.code == 0
    assert enrolled.err.endswith(f"Next: fsvit-edge run --camera --bank bank.safetensors --bundle {bundle}\n")
    result = cli("run", "photo.jpg", "--bundle", bundle, "--sink", "-")
    is_record(lines_of(result.out)[0], 0, ["cat"])
    assert cli("doctor", "--bundle", bundle).code == 0


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the bundled graphs, because tracing takes half a minute."""
    import onnx

    from fsvit_edge.export import pipeline

    names = {"tokens": "encoder", "support": "enroll", "presence": "head"}
    monkeypatch.setattr(pipeline, "trace", lambda spec, _: onnx.load(DEFAULT_BUNDLE / f"{names[spec.outputs[0]]}.onnx"))


def is_failed_export(result: Result, code: int, text: str) -> None:
    """Assert that an export printed its steps and then an error of one sentence."""
    *steps, last = result.err.splitlines()
    assert "Traceback" not in result.err
    assert all(" s] Export: " in step for step in steps)
    assert last.startswith("Error: ")
    assert text in last
    assert result.out == ""
    assert result.code == code


@pytest.mark.usefixtures("traced")
def test_an_export_that_misses_its_tolerance_writes_nothing(
    empty_folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsvit_edge.export import parity

    with monkeypatch.context() as patch:
        patch.setattr(parity, "SCALE_TOLERANCE", 0.0)
        is_failed_export(cli("export"), 5, "ONNX Runtime differs from torch in encoder.tokens by ")
    assert contents(empty_folder) == {}
    assert cli("export", "--no-simplify").code == 0  # with the real tolerance, the same export succeeds
    assert Bundle.load(empty_folder / "bundle").manifest.parity


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--output", "cat1.jpg"), 2, "cat1.jpg is a file; give the name of a folder"),
        (("--output", "album"), 2, "album contains other files and no bundle.json; choose an empty or a new folder"),
        (("--output", "notes.txt/bundle"), 2, "notes.txt is a file, not a folder"),
        (("--opset", "12"), 2, "The opset must be from 20 to 22, got 12"),
        (("--checkpoint", "none.ckpt"), 4, "none.ckpt does not exist"),
        (("--checkpoint", "notes.txt"), 4, "notes.txt "),
        (("--checkpoint", "bank.safetensors"), 4, "contains no head: expected tensors named learner.*"),
        (("--checkpoint", "broken.safetensors"), 4, "is not a readable safetensors file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_export_that_fails_changes_no_file(
    folder: Path, cli: Cli, arguments: tuple[str, ...], code: int, text: str
) -> None:
    before = contents(folder)
    is_failed_export(cli("export", "--no-verify", *arguments), code, text)
    assert contents(folder) == before


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("part", ["backbone", "learner"])
def test_weights_with_nan_are_refused(empty_folder: Path, cli: Cli, part: str) -> None:
    state = load_file(DEFAULT_BUNDLE / "cst-nano.safetensors")
    name = min(name for name in state if name.startswith(part))
    state[name] = state[name].copy()
    state[name].flat[0] = np.nan
    save_file(state, empty_folder / "nan.safetensors")
    shutil.copy(DEFAULT_BUNDLE / "cst-nano.json", empty_folder / "nan.json")
    before = contents(empty_folder)
    result = cli("export", "--checkpoint", "nan.safetensors", "--no-verify")
    is_failed_export(
        result, 4, f"tensor {name.partition('.')[2]!r} contains NaN or infinite values; the file is damaged"
    )
    assert contents(empty_folder) == before


@pytest.mark.usefixtures("traced")
def test_a_full_disk_keeps_the_old_bundle(empty_folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("export", "--no-verify").code == 0
    (empty_folder / "bundle" / "note").write_text("of the old bundle")
    before = contents(empty_folder)
    fill_disk(monkeypatch)
    is_failed_export(
        cli("export", "--no-verify"), 1, "bundle cannot be written: No space left on device; nothing was changed"
    )
    assert contents(empty_folder) == before
