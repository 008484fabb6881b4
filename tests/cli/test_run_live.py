"""`fsvit-edge run` with live sources; the rest is in test_commands.py."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import stub_camera

from fsvit_edge.cli import terminal
from fsvit_edge.live.sources import open as open_module
from fsvit_edge.live.sources.live import LiveSource

Cli = Callable[..., Any]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("demo", "--flip", "left"), 2, "--flip must be one of none, horizontal, vertical, both, got 'left'."),
        (("demo", "--width", "640"), 2, "--width and --height are for cameras; demo has a fixed size."),
        (
            ("rtsp://me:S3cret@host/cam", "--loop"),
            2,
            "--loop and --realtime are for files and the demo; rtsp://host/cam",
        ),
        (("demo", "--segment", "0.1", "--sink", "x.mp4"), 2, "--segment must be at least 1 second, got 0.1."),
        (("demo", "--keep", "0", "--sink", "x/"), 2, "--keep must be at least 1 file, got 0."),
        (("csi://0",), 3, "csi://0 needs OpenCV with GStreamer, which pip's OpenCV lacks"),
        (("demo", "--sink", "http://127.0.0.1:0", "--token", ""), 2, "--token must be 8 to 128 letters"),
        (("demo", "--sink", "http://203.0.113.7:80"), 1, "The page cannot be served at 203.0.113.7:80: Cannot assign"),
        (("demo", "--sink", "out.mp4", "--sink", "out.avi"), 2, "Unsupported sink 'out.avi'"),
        (("demo", "--sink", "mqtt://me:S3cret@host"), 2, "Invalid MQTT address mqtt://host; expected"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_run_that_cannot_start_is_an_error_of_one_sentence(
    cli: Cli, arguments: tuple[str, ...], code: int, text: str
) -> None:
    result = cli("run", *arguments)
    assert result.code == code
    assert text in result.err
    assert "S3cret" not in result.err
    assert "Traceback" not in result.err
    assert list(Path().iterdir()) == []


@pytest.mark.usefixtures("here")
def test_the_page_without_its_packages_names_the_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    found = terminal.find_spec
    monkeypatch.setattr(terminal, "find_spec", lambda name: None if name == "fastapi" else found(name))
    result = cli("run", "demo", "--sink", "http://127.0.0.1:0")
    assert result.code == 3
    assert 'The page needs fastapi, which is not installed; try: pip install "fsvit-edge[web]"' in result.err


def test_a_file_plays_as_a_camera_into_segments_with_statistics_and_health(here: Path, cli: Cli) -> None:
    writer = cv2.VideoWriter("clip.avi", cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for index in range(5):
        writer.write(np.full((48, 64, 3), 40 * index, np.uint8))
    writer.release()
    enrolled = cli("enroll", "it", "clip.avi")
    assert enrolled.code == 2  # a video needs --frame or --at
    cv2.imwrite("it.png", np.full((48, 64, 3), 90, np.uint8))
    assert cli("enroll", "it", "it.png").code == 0
    options = ("--realtime", "--loop", "--fps", "20", "--flip", "horizontal", "--max-frames", "60")
    sinks = ("--sink", "out.mp4", "--sink", "out.jsonl", "--segment", "1", "--keep", "2")
    result = cli("run", "clip.avi", *options, *sinks, "--stats", "0.5", "--health", "health.json", "--json")
    assert result.code == 0
    summary = json.loads(result.out)
    assert summary["frames"] == 60
    assert summary["reconnects"] == 0
    assert "clip.avi: live, " in result.err
    assert "Wrote out.mp4 in numbered segments" in result.err
    health = json.loads((here / "health.json").read_text())
    assert health["source"] == "clip.avi"
    assert health["classes"] == ["it"]
    names = sorted(path.name for path in here.glob("out-*"))
    assert sum(name.endswith(".mp4") for name in names) == 2
    assert sum(name.endswith(".jsonl") for name in names) == 2


@pytest.mark.usefixtures("here")
def test_a_camera_that_stops_is_reported_and_waited_for(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = functools.partial(LiveSource, command=stub_camera.command("three"))
    monkeypatch.setattr(open_module, "LiveSource", stub)
    monkeypatch.setattr(open_module, "check_device", lambda _: None)
    result = cli("run", "0", "--max-frames", "4", "--sink", "-")
    assert result.code == 0
    assert "0 is lost: The process that reads 0 has ended." in result.err
    assert "0 is live." in result.err
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["event"] for line in lines].count("frame") == 4
    assert "lost" in [line.get("state") for line in lines]
