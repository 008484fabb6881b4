"""A complete run in this process: what it prints, what it reports, and how it ends."""

import json
import os
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stub_camera
from blank import film, no_classes

from fsvit_edge.fewshot.decide import PresenceOverTime
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.zones import Zone, parse_zone
from fsvit_edge.live import loop
from fsvit_edge.live.events import Event
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health, Percentiles, SourceStatus
from fsvit_edge.live.loop import LiveRun
from fsvit_edge.live.run import RunOptions, run_source
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.live.sinks.base import Sink, SinkClosedError
from fsvit_edge.live.sources.base import Source, SourceOptions
from fsvit_edge.live.sources.demo import DEMO_CLASSES
from fsvit_edge.live.sources.live import LiveSource, Timeouts
from fsvit_edge.live.uri import SourceAddress
from fsvit_edge.runtime.engines.choose import EngineChoice
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError, SourceError
from fsvit_edge.runtime.machine import resident_memory_mb


class NoModel(LiveModel):
    """Finds nothing, at once."""

    name = "stub"
    choice = EngineChoice("none", "fp32", "no engine")
    classes = ()
    steps = 0

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(classes=(), bank=SimpleNamespace(scene=(), zones=())))  # type: ignore[arg-type]

    def predict(self, rgb: np.ndarray, over_time: PresenceOverTime | None = None) -> Prediction:  # noqa: ARG002
        return replace(no_classes(rgb.shape[:2]), latency_ms={"encoder": 1.0})


class Collect(Sink):
    def __init__(self, fail_at: int | None = None, error: Exception | None = None) -> None:
        self.seen: list[int] = []
        self.healths: list[Health] = []
        self.fail_at = fail_at
        self.error = error

    def write(self, frame: Frame, prediction: Prediction) -> None:  # noqa: ARG002 - the contract
        if frame.index == self.fail_at and self.error is not None:
            raise self.error
        self.seen.append(frame.index)

    def report(self, health: Health) -> None:
        self.healths.append(health)

    def _finish(self) -> None:
        pass


def run(source: Source, sinks: list[Sink], **options: Any) -> tuple[LiveRun, list[str]]:
    said: list[str] = []
    named = [(f"sink {number}", sink) for number, sink in enumerate(sinks)]
    return LiveRun(source, NoModel(), named, said.append, **options), said


def test_every_frame_of_a_file_reaches_every_sink() -> None:
    sinks = [Collect(), Collect()]
    live_run, said = run(film(50), list(sinks))
    result = live_run.run()
    assert [sink.seen for sink in sinks] == [list(range(50))] * 2
    assert (result.exit_code, result.statistics.frames, said) == (0, 50, [])
    assert [(one.written, one.dropped, one.failure) for one in result.health.sinks] == [(50, 0, "")] * 2


class Flickers(NoModel):
    """Finds the cup in every other of the first 20 frames, and in all later ones."""

    def __init__(self) -> None:
        super().__init__()
        self._frames = 0

    def predict(self, rgb: np.ndarray, over_time: PresenceOverTime | None = None) -> Prediction:
        self._frames += 1
        score = np.array([0.9 if self._frames % 2 or self._frames > 20 else 0.1], np.float32)
        names, level = ("cup",), np.array([0.5], np.float32)
        steady_present = None if over_time is None else over_time.decide(names, score, score, level)
        present = score > level if steady_present is None else steady_present
        labels = np.full(rgb.shape[:2], present[0], np.uint8)
        return Prediction(names, score, level, labels, None, {}, steady_present=steady_present, zones=self.zones_of_run)


@pytest.mark.parametrize("steady", [False, True])
def test_with_steady_answers_flicker_reaches_no_sink(steady: bool) -> None:
    class Answers(Collect):
        def write(self, frame: Frame, prediction: Prediction) -> None:
            super().write(frame, prediction)
            present.append(bool(prediction.present[0]))

    present: list[bool] = []
    source = film(50)
    source.fps = 10.0
    LiveRun(source, Flickers(), [("sink", Answers())], print, steady=steady).run()

    changes = int(np.abs(np.diff(present)).sum())
    assert changes == (1 if steady else 20)
    assert present.index(True) in ((23, 24) if steady else (0,))


@pytest.mark.parametrize("zones", [(), (parse_zone("all=0,0,1,0,1,1,0,1"),)])
def test_zones_reach_every_sink_as_events_and_answers(zones: tuple[Zone, ...]) -> None:
    class Zones(Collect):
        def tell(self, event: Event) -> None:
            told.append((event.kind, event.zones))

        def write(self, frame: Frame, prediction: Prediction) -> None:
            super().write(frame, prediction)
            found.add((prediction.results[0].is_present, prediction.results[0].zones))

    told: list[tuple[str, tuple[str, ...]]] = []
    found: set[tuple[bool, tuple[str, ...]]] = set()
    source = film(40)
    source.fps = 10.0
    model = Flickers()
    model.zones_of_run = zones
    LiveRun(source, model, [("sink", Zones())], print, steady=True).run()

    names = tuple(zone.name for zone in zones)
    assert told == [("appeared", names)]
    assert found == {(False, ()), (True, names)}


def test_a_failed_sink_is_reported_once_and_the_run_continues() -> None:
    good = Collect()
    live_run, said = run(film(50), [Collect(10, FsvitEdgeError("the disk is full")), good])
    result = live_run.run()
    assert good.seen == list(range(50))
    assert said == ["sink 0 has stopped; the run continues: the disk is full"]
    assert result.exit_code == 1
    assert [one.failure for one in result.health.sinks] == ["the disk is full", ""]


def test_trouble_of_a_sink_is_reported_when_it_starts_and_ends() -> None:
    sink = Collect()
    live_run, said = run(film(30, pause_s=0.1), [sink])
    threading.Timer(0.3, setattr, (sink, "trouble", "The broker is gone.")).start()
    threading.Timer(1.6, setattr, (sink, "trouble", "")).start()
    live_run.run()
    assert said == ["sink 0: The broker is gone.", "sink 0: It is working again."]
    assert "The broker is gone." in [one.sinks[0].trouble for one in sink.healths]


def test_the_failure_of_the_last_sink_ends_the_run() -> None:
    live_run, said = run(film(100_000), [Collect(10, FsvitEdgeError("the disk is full"))])
    with pytest.raises(FsvitEdgeError, match="the disk is full"):
        live_run.run()
    assert said == []
    assert live_run.health().frames < 100_000


def test_a_reader_that_is_gone_ends_the_run_quietly() -> None:
    live_run, said = run(film(100_000), [Collect(10, SinkClosedError()), Collect()])
    result = live_run.run()
    assert (result.exit_code, said) == (0, [])
    assert result.statistics.frames < 100_000


def test_an_error_of_the_source_is_raised_after_the_sinks_are_finished() -> None:
    sink = Collect()
    live_run, _ = run(film(5, SourceError("the film is damaged")), [sink])
    with pytest.raises(SourceError, match="the film is damaged"):
        live_run.run()
    assert sink.seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
def test_a_signal_stops_the_run_and_the_handlers_are_restored(number: int, code: int) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    signalled_s: list[float] = []

    def kill(frame: Frame, *_: object) -> None:
        if frame.index == 20:
            signalled_s.append(time.monotonic())
            os.kill(os.getpid(), number)

    live_run, _ = run(film(100_000, pause_s=0.005), [Collect()], on_frame=kill)
    result = live_run.run()
    assert time.monotonic() - signalled_s[0] < 20  # the film takes 500 s
    assert result.exit_code == code
    assert 0 < result.statistics.frames < 100_000
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_states_and_health_are_reported_while_no_frame_arrives(tmp_path: Path) -> None:
    sink = Collect()
    address = SourceAddress("csi", "0", "stub")
    timeouts = Timeouts(open_s=60, first_frame_s=60, frame_s=60, delays_s=(0.3,))
    with LiveSource(address, SourceOptions(), timeouts=timeouts, command=stub_camera.command("three")) as source:
        options = {"max_frames": 5, "stats_s": 0.2, "health_file": tmp_path / "health.json"}
        live_run, said = run(source, [sink], **options)
        result = live_run.run()
    states = [health.source_status.state for health in sink.healths]
    changes = [state for state, before in zip(states, [None, *states], strict=False) if state != before]
    assert changes[changes[0] == "connecting" :][:3] == ["live", "lost", "live"]
    assert "stub is lost: The process that reads stub has ended (exit code 0)." in said
    assert "stub is live." in said
    assert any(line.startswith("stub: live, ") for line in said)
    written = json.loads((tmp_path / "health.json").read_text())
    assert written["source_status"]["reconnects"] >= 0
    assert written["model"] == "stub"
    assert result.health.frames == 5
    assert result.health.age_ms is not None
    assert result.health.memory_mb > 20


@pytest.mark.parametrize(("frames", "bound"), [(0, 1.0), (16, 0.171)])
def test_health_has_the_empty_scene_and_what_it_promises(frames: int, bound: float) -> None:
    class Learned(NoModel):
        def __init__(self) -> None:
            super().__init__()
            self._enrolled = replace(self._enrolled, scene_frames=frames)

    health = LiveRun(film(1), Learned(), [("sink", Collect())], print).run().health.to_dict()
    assert (health["scene_frames"], health["false_alarm_bound"]) == (frames, bound)


def test_a_health_file_that_cannot_be_written_is_tried_again_and_said_once_each_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_REPORT_S", 0.1)
    (tmp_path / "in").write_text("a file where the folder must be")
    file = tmp_path / "in" / "health.json"

    def make_room(frame: Frame, *_: object) -> None:
        if frame.index == 60:
            (tmp_path / "in").unlink()

    live_run, said = run(film(120, pause_s=0.006), [Collect()], on_frame=make_room, health_file=file)
    assert live_run.run().exit_code == 0
    assert [line.partition(":")[0] for line in said] == [
        "The health file cannot be written, which is tried again every second",
        "The health file is written again.",
    ]
    assert json.loads(file.read_text())["frames"] > 60


def test_health_prints_as_one_line_of_statistics() -> None:
    status = SourceStatus("live", 0.0, captured=30, dropped=20, is_frozen=True)
    age = Percentiles(10.4, 20.0, 30.0)
    health = Health(0, 0, "", 5, "cam", status, "m", "e", "p", (), 10, 2.0, age, {"head": age}, 123.4)
    assert str(health) == (
        "cam: live (frozen), 10 frames, 2.0 frames/s, 20 dropped, age p50/p95/p99 10/20/30 ms, head 10.4, 123 MB"
    )


def test_memory_is_the_sum_over_the_given_processes() -> None:
    own = resident_memory_mb([os.getpid()])
    assert own > 20
    assert resident_memory_mb([os.getpid(), os.getpid()]) == pytest.approx(2 * own, rel=0.1)
    assert resident_memory_mb([2**30]) == 0


def test_systemd_receives_the_state_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        live_run, _ = run(film(15, pause_s=0.1), [Collect()])
        live_run.run()
        received = [systemd.recv(1000).decode()]
        while received[-1] != "STOPPING=1":
            received.append(systemd.recv(1000).decode())
    assert received[0] == "READY=1"
    assert len(received) >= 4
    assert all(one.startswith("WATCHDOG=1\nSTATUS=film: live, ") for one in received[1:-1])


def test_a_python_user_runs_a_source_in_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    seen: list[int] = []
    options = RunOptions(threads=1, max_frames=3)
    result = run_source(
        "demo", ["out.jsonl"], options, say=said.append, on_frame=lambda frame, *_: seen.append(frame.index)
    )
    assert seen == [0, 1, 2]
    assert (result.exit_code, result.statistics.frames, result.health.classes) == (0, 3, DEMO_CLASSES)
    assert len(Path("out.jsonl").read_text().splitlines()) == 3
    assert {line.split("'")[1] for line in said} == set(DEMO_CLASSES)
    summary = result.to_dict()
    assert (summary["source"], summary["frames"], summary["precision"]) == ("demo", 3, "fp32")
    assert summary["age_ms"] == result.health.to_dict()["age_ms"]


def test_the_page_is_opened_by_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = Collect()
    opened: list[tuple[str, tuple[str, ...], Path]] = []

    def open_page(uri: str, model: LiveModel, bank: Path) -> Sink:
        opened.append((uri, model.classes, bank))
        return page

    options = RunOptions(threads=1, max_frames=2, bank=Path("new.safetensors"))
    with pytest.raises(InputError, match=r"The page http://127\.0\.0\.1:0 needs open_page"):
        run_source("demo", ["http://127.0.0.1:0"], options)
    run_source("demo", ["http://127.0.0.1:0"], options, open_page=open_page)
    assert opened == [("http://127.0.0.1:0", DEMO_CLASSES, Path("new.safetensors"))]
    assert page.seen == [0, 1]
