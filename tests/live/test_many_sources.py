"""Several sources in one run: whose turn it is, what ends alone, and what must not mix."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stub_camera
from blank import film
from test_live_run import NoModel

from fsvit_edge.fewshot.decide import PresenceOverTime
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.events import Event
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health, SourceStatus
from fsvit_edge.live.loop import LiveRun
from fsvit_edge.live.sinks.base import RecordingOptions, Sink
from fsvit_edge.live.sinks.json_lines import JsonLinesSink
from fsvit_edge.live.sources.base import EndOfSourceError, Source, SourceOptions
from fsvit_edge.live.sources.files import FileSource
from fsvit_edge.live.sources.live import LiveSource, Timeouts
from fsvit_edge.live.sources.many import ManySources, NamedSource
from fsvit_edge.live.uri import SourceAddress
from fsvit_edge.runtime.errors import SourceError

MODEL_S = 0.1


class Clock:
    now_s = 0.0


class Ticking(Source):
    """A camera of a clock that a test sets: frame n is captured at n / fps, and only the newest can be read."""

    is_live, num_frames = True, None

    def __init__(self, clock: Clock, fps: float, name: str = "cam", last: int = 10**9) -> None:
        self.name, self.fps = name, fps
        self._clock, self._next, self._last = clock, 0, last

    def _newest(self) -> int:
        assert self.fps is not None
        return min(int(self._clock.now_s * self.fps + 1e-9), self._last)

    def read(self, timeout_s: float) -> Frame | None:  # noqa: ARG002 - the clock stands still
        newest = self._newest()
        if newest < self._next:
            if newest == self._last:
                raise EndOfSourceError
            return None
        self._next = newest + 1
        assert self.fps is not None
        return Frame(np.zeros((4, 4, 3), np.uint8), newest, self.name, 0.0, newest / self.fps, 0.0)

    def waiting_since_s(self) -> float | None:
        assert self.fps is not None
        if self._newest() >= self._next:
            return self._next / self.fps
        return 0.0 if self._next > self._last else None

    @property
    def status(self) -> SourceStatus:
        return SourceStatus("live", 0.0)

    def close(self) -> None:
        pass


class InOrder(ManySources):
    """The control: whoever is listed first and has a frame."""

    def _in_turn(self) -> list[NamedSource]:
        return [one for one in self._sources.values() if one.waiting_since_s() is not None]


class ByNewest(ManySources):
    """Another one: whose newest frame is oldest."""

    def _in_turn(self) -> list[NamedSource]:
        now_s = self.clock.now_s  # type: ignore[attr-defined]
        waiting = [one for one in self._sources.values() if one.waiting_since_s() is not None]
        return sorted(waiting, key=lambda one: -((now_s * (one.fps or 1)) % 1) / (one.fps or 1))


def turns(many: ManySources, clock: Clock, seconds: float = 20.0) -> tuple[list[str], dict[str, float]]:
    """Whose frame was taken each time, and the greatest age of a frame of each when it was."""
    taken, oldest_s = [], dict.fromkeys(many.parts, 0.0)
    while clock.now_s < seconds:
        frame = many.read(0.0)
        if frame is None:
            clock.now_s += 0.001
            continue
        taken.append(frame.camera)
        oldest_s[frame.camera] = max(oldest_s[frame.camera], clock.now_s - frame.monotonic_s)
        clock.now_s += MODEL_S
    return taken, oldest_s


@pytest.mark.parametrize(("scheduler", "share"), [(ManySources, 0.2), (InOrder, 0.0)])
def test_a_fast_camera_does_not_starve_a_slow_one(scheduler: type[ManySources], share: float) -> None:
    clock = Clock()
    many = scheduler(NamedSource("fast", Ticking(clock, 100)), NamedSource("slow", Ticking(clock, 2)))
    clock.now_s = 0.6
    taken, oldest_s = turns(many, clock)
    assert taken.count("slow") / len(taken) == pytest.approx(share, abs=0.02)  # each of its 2 frames/s of 10
    if share:
        assert oldest_s["slow"] <= 2 * MODEL_S + 0.01  # the frame in process, and one of the fast camera
        assert oldest_s["fast"] <= 0.011


@pytest.mark.parametrize(("scheduler", "least"), [(ManySources, 0.24), (ByNewest, 0.0)])
def test_cameras_in_step_with_the_model_share_it_evenly(scheduler: type[ManySources], least: float) -> None:
    # A frame of the model takes as long as two of the cameras, so their newest frames keep their ages.
    clock = Clock()
    cameras = [NamedSource(f"cam{number}", Ticking(clock, 20)) for number in range(4)]
    many = scheduler(*cameras)
    many.clock = clock  # type: ignore[attr-defined]
    taken, _ = turns(many, clock)
    shares = [taken.count(one.name) / len(taken) for one in cameras]
    assert (min(shares) >= least) if least else (min(shares) < 0.05)


def test_a_source_that_ends_ends_alone_and_the_last_one_ends_the_run() -> None:
    sources = [NamedSource("short", film(3)), NamedSource("long", film(8))]
    frames = list(ManySources(*sources))
    assert [(one.camera, one.index) for one in frames[:6]] == [
        *(("short", 0), ("long", 0), ("short", 1), ("long", 1), ("short", 2), ("long", 2))
    ]
    assert [one.camera for one in frames[6:]] == ["long"] * 5
    assert {one.source for one in frames} == {"short", "long"}


def test_a_source_ends_after_its_own_number_of_frames() -> None:
    many = ManySources(NamedSource("tour", film(100), max_frames=2), NamedSource("clip", film(4)))
    assert [one.camera for one in many].count("tour") == 2


class Told(Sink):
    def __init__(self, source: str | None = None) -> None:
        self.source = source
        self.frames: list[tuple[str, int]] = []
        self.events: list[tuple[str, str]] = []
        self.present: dict[str, list[bool]] = {}
        self.healths: list[Health] = []
        self.finished_s = 0.0

    def write(self, frame: Frame, prediction: Prediction) -> None:
        self.frames.append((frame.camera, frame.index))
        if len(prediction.present):
            self.present.setdefault(frame.camera, []).append(bool(prediction.present[0]))

    def tell(self, event: Event) -> None:
        self.events.append((event.source, event.kind))

    def report(self, health: Health) -> None:
        self.healths.append(health)

    def _finish(self) -> None:
        self.finished_s = time.monotonic()


def run(sources: list[NamedSource], sinks: list[Sink]) -> tuple[Any, list[str]]:
    said: list[str] = []
    named = [(f"sink {number}", sink) for number, sink in enumerate(sinks)]
    live_run = LiveRun(ManySources(*sources), NoModel(), named, said.append)
    return live_run.run(), said


def test_each_sink_gets_the_frames_and_the_health_of_its_source_and_is_finished_with_it() -> None:
    both, short, long = Told(), Told("short"), Told("long")
    # Longer than a tick of the run, which reports its health.
    sources = [NamedSource("short", film(3, pause_s=0.15)), NamedSource("long", film(40, pause_s=0.04))]
    result, _ = run(sources, [both, short, long])
    assert short.frames == [("short", index) for index in range(3)]
    assert long.frames == [("long", index) for index in range(40)]
    assert sorted(both.frames) == sorted(short.frames + long.frames)
    assert {health.source for health in short.healths} == {"short"}
    assert {health.source for health in both.healths} == {"short, long"}
    assert 0 < short.finished_s < long.finished_s - 0.5
    assert result.exit_code == 0
    assert [(one.name, one.frames, one.has_ended) for one in result.health.sources] == [
        ("short", 3, True),
        ("long", 40, True),
    ]
    assert [one["name"] for one in result.to_dict()["sources"]] == ["short", "long"]
    assert "sources" not in run([NamedSource("one", film(1))], [Told()])[0].to_dict()


def test_a_source_that_fails_is_reported_and_the_others_continue() -> None:
    broken = NamedSource("broken", film(2, SourceError("the film is damaged")))
    sink = Told()
    result, said = run([broken, NamedSource("good", film(20, pause_s=0.01))], [sink])
    assert said == ["broken is lost: the film is damaged"]
    assert sum(camera == "good" for camera, _ in sink.frames) == 20
    assert result.exit_code == 1
    assert result.health.source_status.message == "broken: the film is damaged"
    assert result.health.not_live == ("broken",)
    assert [one.not_live for one in result.health.by_source()] == [("broken",), ()]


def test_the_failure_of_the_last_source_is_raised_if_all_have_failed() -> None:
    broken = [NamedSource(name, film(count, SourceError(f"{name} is damaged"))) for name, count in (("a", 1), ("b", 3))]
    with pytest.raises(SourceError, match="b is damaged"):
        run(broken, [Told()])


@pytest.mark.parametrize("scenario", ["mute", "three"])
def test_a_camera_that_is_silent_or_lost_holds_up_no_other_and_comes_back_alone(scenario: str) -> None:
    timeouts = Timeouts(open_s=60, first_frame_s=60, frame_s=60, delays_s=(0.2,))

    def camera(name: str) -> LiveSource:
        address = SourceAddress("csi", "0", name)
        return LiveSource(address, SourceOptions(), timeouts=timeouts, command=stub_camera.command(name))

    with ManySources(NamedSource("good", camera("steady")), NamedSource("bad", camera(scenario))) as many:
        taken: list[str] = []
        started_s = time.monotonic()
        while not (taken.count("good") >= 30 and (scenario == "mute" or many.parts["bad"].status.reconnects >= 1)):
            frame = many.read(0.2)
            taken += [frame.camera] if frame is not None else []
            assert time.monotonic() - started_s < 120
        states = {name: part.status.state for name, part in many.parts.items()}
        assert states["good"] == "live"
        assert many.parts["good"].status.reconnects == 0
        assert (taken.count("bad") == 0) == (scenario == "mute")
        if scenario == "mute":
            assert (states["bad"], many.status.state) == ("connecting", "connecting")


def test_a_wait_ends_when_any_source_has_a_frame() -> None:
    address = SourceAddress("csi", "0", "steady")
    timeouts = Timeouts(open_s=60, first_frame_s=60, frame_s=60)
    with LiveSource(address, SourceOptions(), timeouts=timeouts, command=stub_camera.command("steady")) as camera:
        many = ManySources(NamedSource("camera", camera))
        assert many.read(60) is not None
        waits_s = []
        for _ in range(5):
            started_s = time.monotonic()
            assert many.read(60) is not None
            waits_s.append(time.monotonic() - started_s)
    assert min(waits_s) < 1


class SeenByOne(NoModel):
    """Finds the cup in bright frames."""

    def predict(self, rgb: np.ndarray, over_time: PresenceOverTime | None = None) -> Prediction:
        score = np.array([0.9 if rgb.mean() > 100 else 0.1], np.float32)
        names, level = ("cup",), np.array([0.5], np.float32)
        steady = None if over_time is None else over_time.decide(names, score, score, level)
        present = bool(score[0] > 0.5 if steady is None else steady[0])
        labels = np.full(rgb.shape[:2], present, np.uint8)
        return Prediction(names, score, level, labels, None, {}, steady_present=steady)


def gray(value: int, count: int = 20) -> Source:
    source = FileSource((("film", np.full((4, 4, 3), value, np.uint8), None) for _ in range(count)), name="film")
    source.fps = 10.0
    return source


@pytest.mark.parametrize("is_mixed", [False, True])
def test_steady_answers_and_events_of_sources_do_not_mix(is_mixed: bool) -> None:
    told = Told()
    many = ManySources(NamedSource("bright", gray(200)), NamedSource("dark", gray(0)))
    live_run = LiveRun(many, SeenByOne(), [("sink", told)], print, steady=True)
    if is_mixed:  # the control: one state for both
        live_run._watched["dark"].steady = live_run._watched["bright"].steady
        live_run._watched["dark"].events = live_run._watched["bright"].events
    live_run.run()
    is_right = told.events == [("bright", "appeared")] and not any(told.present["dark"]) and told.present["bright"][-1]
    assert is_right == (not is_mixed)


def test_without_a_wish_only_live_sources_have_steady_answers() -> None:
    clock = Clock()
    many = ManySources(NamedSource("cam", Ticking(clock, 20)), NamedSource("clip", film(2)))
    live_run = LiveRun(many, NoModel(), [], print, steady=None)
    assert {name: one.steady is not None for name, one in live_run._watched.items()} == {"cam": True, "clip": False}


def test_states_of_each_source_are_in_the_json_lines_of_all(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "all.jsonl", RecordingOptions(), is_live=False)
    broken = NamedSource("broken", film(1, SourceError("the film is damaged")))
    run([broken, NamedSource("good", film(20, pause_s=0.02))], [sink])
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    states = [(one["source"], one["state"], one["message"]) for one in lines if one["event"] == "state"]
    assert states == [("broken", "lost", "the film is damaged")]
    assert {one["source"] for one in lines if one["event"] == "frame"} == {"broken", "good"}


def test_all_sources_are_closed_at_once() -> None:
    all_at_it = threading.Barrier(6)
    closed: list[str] = []

    class Slow(Ticking):
        def close(self) -> None:
            all_at_it.wait(60)  # raises if one is closed only after another
            closed.append(self.name)

    ManySources(*(NamedSource(str(number), Slow(Clock(), 1)) for number in range(6))).close()
    assert len(closed) == 6
