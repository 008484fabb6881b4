"""Commands run in this process, as the console script runs them; a folder with something to run them on; a camera."""

import functools
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stub_camera
from command_line import Cli, Result
from sample_files import colors, rectangle, write_video

from fsvit_edge import FewShotModel
from fsvit_edge.cli.main import main
from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.live.sources import open as open_module
from fsvit_edge.live.sources.live import LiveSource, Timeouts
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE
from fsvit_edge.runtime.pictures import read_image, write_image


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command line, with more arguments as they are; give its exit code and what it printed."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Typer sets its own

    def call(line: str, *arguments: str) -> Result:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["fsvit-edge", *shlex.split(line), *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return Result(int(end.value.code or 0), *capfd.readouterr())

    return call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    write_video(folder / "video.mp4", [colors(index, 120, 160) for index in range(6)], 12.0)
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("not a picture")
    (folder / "garbage").mkdir()
    (folder / "garbage" / "x.png").write_bytes(b"garbage")
    (folder / "broken.json").write_text("{")
    (folder / "old.json").write_text('{"ranges": {}, "method": "minmax", "graphs": {}}')
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
def folder(samples: Path, here: Path) -> Path:
    """A copy of the samples in the current folder; the altered bundle is a link."""
    shutil.copytree(samples, here, ignore=shutil.ignore_patterns("altered"), dirs_exist_ok=True)
    (here / "altered").symlink_to(samples / "altered")
    return here


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make camera 0 a stub that plays a scenario."""

    def play(scenario: str) -> None:
        patient = Timeouts(open_s=60, first_frame_s=60, frame_s=60)  # a process that ends is lost all the same
        stub = functools.partial(LiveSource, timeouts=patient, command=stub_camera.command(scenario))
        monkeypatch.setattr(open_module, "LiveSource", stub)
        monkeypatch.setattr(open_module, "check_device", lambda _: None)

    return play
