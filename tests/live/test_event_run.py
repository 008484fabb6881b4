"""Whole runs that tell about events: what is posted and written, and how such a run ends."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from blank import film, until
from test_live_run import Flickers
from web_server import SECRET, Server, hang, serving, status

from fsvit_edge import FewShotModel
from fsvit_edge.live.loop import LiveRun, RunResult
from fsvit_edge.live.run import RunOptions, run_source
from fsvit_edge.live.sinks.base import EventOptions
from fsvit_edge.live.sinks.open import open_event_sinks
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.pictures import read_image, write_image


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as started:
        yield started


def run(count: int, options: EventOptions, pause_s: float = 0.0) -> tuple[RunResult, list[str]]:
    said: list[str] = []
    source = film(count, pause_s=pause_s)
    source.fps = 10.0
    return LiveRun(source, Flickers(), list(open_event_sinks(options)), said.append, steady=True).run(), said


def test_each_event_reaches_the_server_and_the_folder(server: Server, tmp_path: Path) -> None:
    result, said = run(60, EventOptions((server.uri,), 0.0, tmp_path))
    assert server.told == [("appeared", "cup")]
    assert len(list(tmp_path.glob("*-cup.jpg"))) == 1
    assert (result.exit_code, said) == (0, [])
    assert [(one.name, one.trouble, one.failure) for one in result.health.sinks] == [
        (f"http://127.0.0.1:{server.server_port}", "", ""),
        (str(tmp_path), "", ""),
    ]


def test_a_server_that_fails_and_a_full_disk_are_said_and_do_not_end_the_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _data: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    server.usual = status(404)
    result, said = run(60, EventOptions((server.uri,), 0.0, tmp_path), pause_s=0.03)
    assert (result.exit_code, result.statistics.frames) == (0, 60)
    name = f"http://127.0.0.1:{server.server_port}"
    everything = "\n".join(said) + json.dumps(result.health.to_dict()) + str(result.health)
    assert f"{tmp_path}: No snapshot can be written to {tmp_path}: No space left on device" in everything
    assert f"{name}: The run has ended, and 1 event could not be sent." in said
    assert SECRET not in everything


@pytest.mark.parametrize("servers", [1, 3])
def test_a_run_stops_soon_whatever_the_servers_do(server: Server, servers: int) -> None:
    server.usual = hang
    stopped_s: list[float] = []

    def stop() -> None:
        until(lambda: len(server.posts) == servers)
        stopped_s.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    result, said = run(100_000, EventOptions((server.uri,) * servers), pause_s=0.005)
    stopper.join()
    assert time.monotonic() - stopped_s[0] < 4.0  # a try takes up to 5 s
    assert result.exit_code == 0
    assert sum("1 event could not be sent" in line for line in said) == servers
    assert SECRET not in "\n".join(said)


def test_a_signal_at_the_end_of_a_file_ends_the_wait_for_a_server(server: Server) -> None:
    server.usual = hang
    stopped_s: list[float] = []

    def stop() -> None:
        until(lambda: len(server.posts) == 1)
        time.sleep(1.0)  # the film has ended long ago, and the server has 5 s
        stopped_s.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    stopper = threading.Thread(target=stop)
    stopper.start()
    result, said = run(60, EventOptions((server.uri,)))
    stopper.join()
    assert time.monotonic() - stopped_s[0] < 3.0
    assert (result.exit_code, result.statistics.frames) == (130, 60)
    assert said[-1].endswith("The run has ended, and 1 event could not be sent.")


@pytest.mark.usefixtures("here")
def test_events_make_the_answers_of_a_file_steady(server: Server) -> None:
    """The demo shows its classes for seconds; without steady answers there are no events."""
    options = RunOptions(threads=1, max_frames=20, events=EventOptions((server.uri,), 0.0, Path("events")))
    run_source("demo", ["out.jsonl"], options, say=lambda _: None)
    lines: list[dict[str, Any]] = list(map(json.loads, Path("out.jsonl").read_text().splitlines()))
    told = [(line["event"], line["name"]) for line in lines if line["event"] != "frame"]
    assert told
    assert server.told == told
    pictures = list(Path("events").iterdir())
    assert len(pictures) == len({name for _, name in told})
    assert all(np.ptp(cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY)) > 50 for path in pictures)


@pytest.mark.parametrize("options", [EventOptions(("http://host/secret",)), EventOptions(snapshots=Path("events"))])
def test_events_without_steady_answers_are_refused(here: Path, options: EventOptions) -> None:
    with pytest.raises(InputError, match="Events need steady answers; leave out --no-steady, or --webhook and"):
        run_source("demo", [], RunOptions(steady=False, events=options))
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (RunOptions(events=EventOptions(snapshots=Path("events"))), r"Events \(--webhook, --snapshots\) need"),
        (RunOptions(events=EventOptions(("http://host/secret",))), r"Events \(--webhook, --snapshots\) need"),
        (RunOptions(steady=True), "--steady needs"),
    ],
)
def test_pictures_have_no_time_for_steady_answers(here: Path, options: RunOptions, asked: str) -> None:
    """What is in a picture would be absent, because it is never on for 0.3 s."""
    cup = skimage.data.coffee()
    write_image(here / "cup.jpg", cup)
    with FewShotModel.load(threads=1) as model:
        model.enroll("cup", [cup])
        model.save_bank(here / "bank.safetensors")
    with pytest.raises(InputError, match=f"{asked} a video, a camera or a stream: pictures have no time"):
        run_source("cup.jpg", [], options)
    assert not (here / "events").exists()
    shown: list[bool] = []
    run_source(
        "cup.jpg", [], RunOptions(threads=1), on_frame=lambda _, answer, __: shown.append(bool(answer.present[0]))
    )
    assert shown == [True]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
