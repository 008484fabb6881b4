"""A run of open parts: frames in, predictions out to the sinks, watched and reported until it ends."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.scene import false_alarm_bound
from fsvit_edge.fewshot.steady import SteadyAnswers
from fsvit_edge.live.bank_follower import BankFollower
from fsvit_edge.live.events import EventDetector
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import HEALTHY, BankStatus, Health, SourceHealth, names_not_live, read_boot_id
from fsvit_edge.live.run_model import RunModel
from fsvit_edge.live.sink_worker import SinkWorker
from fsvit_edge.live.sinks.base import Sink
from fsvit_edge.live.sinks.json_lines import json_line
from fsvit_edge.live.sources.base import DEFAULT_FPS, EndOfSourceError, Source
from fsvit_edge.live.statistics import RunStatistics
from fsvit_edge.live.supervision import (
    INTERRUPTED,
    TICK_S,
    ModelWatchdog,
    StopRequest,
    notify_systemd,
    run_with_ticks,
    stop_on_signals,
)
from fsvit_edge.remote.status import BoxCondition
from fsvit_edge.runtime.engines.choose import CPU_ENGINES, EngineChoice
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.machine import resident_memory_mb
from fsvit_edge.runtime.messages import Say
from fsvit_edge.runtime.storage import atomic_write

_WAIT_S = 0.1  # for the next frame of a live source, between two checks for stops and requests
_REPORT_S = 1.0
_STOP_WITHIN_S = 1.6  # of the 2 s that stopping may take; closing the capture process takes the rest
_SUMMARY_FIELDS = (
    *("source", "model", "engine", "precision", "frames", "declared_frames", "left_out", "dropped", "reconnects"),
    *("elapsed_s", "fps", "age_ms", "latency_ms", "memory_mb"),
)

OnFrame = Callable[[Frame, Prediction, RunStatistics], None]


def run_loop(
    source: Source,
    predict: Callable[[Frame], Prediction | None],
    deliver: Callable[[Frame, Prediction], None],
    statistics: RunStatistics,
    should_stop: Callable[[], bool] = lambda: False,
    between_frames: Callable[[], None] = lambda: None,
    max_frames: int | None = None,
) -> None:
    """Process the frames of a source one by one until it ends, `max_frames` is reached, or the run should stop.

    `deliver` must not wait, or frames grow old. `should_stop` and `between_frames` are called before each frame, and
    ten times per second while none comes. A frame that gets no prediction is tried again, unless its source is live,
    where a newer one comes instead.
    """
    waiting: Frame | None = None
    while not should_stop() and (max_frames is None or statistics.frames < max_frames):
        between_frames()
        frame, waiting = waiting, None
        if frame is None:
            try:
                frame = source.read(_WAIT_S)
            except EndOfSourceError:
                return
        if frame is None:
            continue
        prediction = predict(frame)
        if prediction is None:
            waiting = None if source.parts[frame.camera].is_live else frame
            continue
        predicted_s = time.monotonic()
        frame = replace(frame, age_ms=(predicted_s - frame.monotonic_s) * 1e3)
        deliver(frame, prediction)
        sinks_ms = (time.monotonic() - predicted_s) * 1e3
        stage_ms = {"decode": frame.decode_ms, **prediction.latency_ms, "sinks": sinks_ms}
        statistics.add(stage_ms, frame.age_ms)


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        health: The health at the end.
        statistics: Counts and times.
        choice: The engine and precision that ran the model.
        exit_code: 0; 1 if a sink or one of several sources failed, a part of a source could not be read, or the model
            hung; 130 after Ctrl-C. SIGTERM and SIGHUP are a normal end, 0: a service that was stopped has not failed.
    """

    health: Health
    statistics: RunStatistics
    choice: EngineChoice
    exit_code: int

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain values for JSON; here "fps" is the mean over the whole run."""
        values = self.health.to_dict()
        values.update(values["source_status"])
        values.update(elapsed_s=round(self.statistics.elapsed_s, 3), fps=round(self.statistics.fps, 3))
        of_each = ("sources",) if len(self.health.sources) > 1 else ()
        return {name: values[name] for name in (*_SUMMARY_FIELDS, *of_each)}


class _Watched:
    """A source of the run, and what depends on the order of its frames."""

    def __init__(self, source: Source, steady: bool) -> None:
        self.source = source
        self.steady = SteadyAnswers() if steady else None
        self.events = EventDetector()
        self.statistics = RunStatistics()
        self.condition = HEALTHY

    def time_s(self, frame: Frame) -> float:
        """When a frame was captured; in a file, by its own time."""
        return frame.monotonic_s if self.source.is_live else frame.index / (self.source.fps or DEFAULT_FPS)

    def health(self) -> SourceHealth:
        source, statistics = self.source, self.statistics
        return SourceHealth(
            source.name, source.status, source.has_ended, statistics.frames, statistics.recent_fps, statistics.age_ms
        )

    def new_condition(self) -> str | None:
        """What to say of a change in the condition of the source, which may be nothing; None if there was none."""
        status, name, before = self.source.status, self.source.name, self.condition
        if status.condition == before:
            return None
        self.condition = status.condition
        if status.state != "live":
            return f"{name} is {status.state}: {status.message}" if status.message else ""
        if status.is_frozen:
            return f"{name} is frozen: it has sent identical frames for several seconds."
        return f"{name} is live." if before.state != "live" or before.is_frozen else ""


class LiveRun:
    """One run of an open source, model and sinks; call `run` once, in the main thread.

    The caller closes the source; the run finishes the sinks, whose names are safe to print. Options as in `run_source`,
    where `steady` of None means: for the sources that are live.
    """

    def __init__(
        self,
        source: Source,
        model: RunModel,
        sinks: Sequence[tuple[str, Sink]],
        say: Say,
        on_frame: OnFrame | None = None,
        *,
        steady: bool | None = False,
        max_frames: int | None = None,
        stats_s: float | None = None,
        health_file: Path | None = None,
        follower: BankFollower | None = None,
    ) -> None:
        self._source, self._model = source, model
        self._say, self._on_frame = say, on_frame
        self._watched = {
            name: _Watched(part, part.is_live if steady is None else steady) for name, part in source.parts.items()
        }
        self._stop = StopRequest()
        self._statistics = RunStatistics()
        self._boot_id = read_boot_id()
        self._workers = [
            SinkWorker(sink, name, source.parts.get(sink.source or "", source).is_live, self._on_sink_end)
            for name, sink in sinks
        ]
        self._reported_s = 0.0
        self._stats_due_s = time.monotonic() + (stats_s or 0.0)
        self._stats_s, self._max_frames, self._health_file = stats_s, max_frames, health_file
        self._is_health_unwritten = False
        self._troubles = [""] * len(self._workers)
        self._follower = follower
        self._told_bank: BankStatus | None = None
        self._told_box = self._box_condition()
        self._watchdog = ModelWatchdog(compiles=model.choice.engine not in CPU_ENGINES)
        self._model_hangs = False
        self._last_failure: FsvitEdgeError | None = None

    def health(self) -> Health:
        """The current health; safe from any thread."""
        now_s, children = time.monotonic(), [one.process_id for one in self._source.parts.values()]
        statistics, choice, scene_frames = self._statistics, self._model.choice, self._model.scene_frames
        sources, box = tuple(one.health() for one in self._watched.values()), self._model.box
        return Health(
            wall_time_s=time.time(),
            monotonic_s=now_s,
            boot_id=self._boot_id,
            uptime_s=now_s - statistics.started_s,
            source=self._source.name,
            source_status=self._source.status,
            model=self._model.name,
            engine=choice.engine,
            precision=choice.precision,
            classes=self._model.classes,
            frames=statistics.frames,
            fps=statistics.recent_fps,
            age_ms=statistics.age_ms,
            latency_ms=statistics.latency_ms,
            memory_mb=resident_memory_mb([os.getpid(), *filter(None, children)]),
            sinks=tuple(worker.status for worker in self._workers),
            scene_frames=scene_frames,
            false_alarm_bound=false_alarm_bound(scene_frames),
            sources=sources,
            not_live=names_not_live(sources, box),
            bank=None if self._follower is None else self._follower.status,
            box=box,
        )

    def run(self) -> RunResult:
        """Run until the source ends, `max_frames` is reached, a signal arrives, or no sink is left.

        If the loop or a sink hangs at the end, finishes everything else and exits the process.

        Raises:
            FsvitEdgeError: Whatever the source or the model raised, or the last sink if all have failed.
        """
        with stop_on_signals(self._stop):
            notify_systemd("READY=1")
            has_ended = True
            try:
                has_ended = run_with_ticks(self._loop, self._stop, self._tick)
                self._tick()
            finally:
                notify_systemd("STOPPING=1")
                hung = [] if has_ended else ["the model"]
                for worker in self._workers:  # all at once: they share the time
                    worker.begin_to_finish(self._stop.is_requested)
                for worker in self._workers:  # as long as it takes, unless a signal arrives
                    while not (self._stop.is_requested or worker.has_finished_within(TICK_S)):
                        pass
                hung += [
                    worker.name for worker in self._workers if not worker.finish(self._stop.left_s(_STOP_WITHIN_S))
                ]
                if hung:
                    self._exit_without(hung)
            if self._last_failure is not None:
                raise self._last_failure
            self._say_troubles(self.health())
            for one in self._watched.values():
                if one.source.problem:
                    self._say(one.source.problem)
            return RunResult(self.health(), self._statistics, self._model.choice, self._exit_code())

    def _exit_without(self, hung: list[str]) -> None:
        # A hung thread cannot be stopped, and a normal exit of Python would wait for it.
        self._say(f"Exiting although {' and '.join(hung)} did not stop in time.")
        self._say_troubles(self.health())
        self._source.close()
        with suppress(OSError):
            sys.stderr.flush()  # not standard output, whose reader may be what hangs
        os._exit(self._exit_code())

    def _loop(self) -> None:
        try:
            run_loop(
                self._source,
                self._predict,
                self._deliver,
                self._statistics,
                lambda: self._stop.is_requested,
                self._model.run_requests,
                self._max_frames,
            )
        finally:
            if self._follower is not None:
                self._follower.stop()
            self._model.close()

    def _predict(self, frame: Frame) -> Prediction | None:
        watched = self._watched[frame.camera]
        over_time = None if watched.steady is None else watched.steady.at(watched.time_s(frame))
        return self._model.predict(frame.image, over_time)

    def _deliver(self, frame: Frame, prediction: Prediction) -> None:
        watched = self._watched[frame.camera]
        watched.statistics.add({}, frame.age_ms)
        if watched.steady is not None:
            for event in watched.events.update(frame, prediction, watched.time_s(frame)):
                for worker in self._workers:
                    worker.tell(event)
        for worker in self._workers:
            worker.put(frame, prediction)
        if self._on_frame is not None:
            self._on_frame(frame, prediction, self._statistics)

    def _tick(self) -> None:
        work = (self._model.processing, self._model.is_first_frame, self._model.steps, len(self._model.classes))
        if self._watchdog.is_hung(*work) and not self._model_hangs:
            # Nothing in this process can end the call, but the service that started the run can start it again.
            self._model_hangs = True
            self._say("The model stopped responding, so the run ends with exit code 1; start it again.")
            self._stop.request()
        now_s = time.monotonic()
        changes = [text for one in self._watched.values() if (text := one.new_condition()) is not None]
        for text in filter(None, changes):
            self._say(text)
        for worker in self._workers:
            if worker.source in self._watched and self._watched[worker.source].source.has_ended:
                worker.begin_to_finish(in_hurry=False)  # a video is complete when its source ends, not with the run
        box_condition = self._box_condition()
        if changes or box_condition != self._told_box or now_s - self._reported_s >= _REPORT_S:
            self._reported_s, self._told_box = now_s, box_condition
            health = self.health()
            for worker in self._workers:
                worker.report(health)
            self._say_troubles(health)
            self._write_health(health)
            notify_systemd("WATCHDOG=1", f"STATUS={health}")
        if self._stats_s is not None and now_s >= self._stats_due_s:
            self._stats_due_s = now_s + self._stats_s
            health = self.health()
            for one in (health, *(health.sources if len(health.sources) > 1 else ())):
                self._say(str(one))

    def _box_condition(self) -> BoxCondition | None:
        return None if self._model.box is None else self._model.box.condition

    def _say_troubles(self, health: Health) -> None:
        for number, sink in enumerate(health.sinks):
            if sink.trouble != self._troubles[number]:
                self._troubles[number] = sink.trouble
                text = sink.trouble or "It is working again."
                self._say(text if text.startswith(sink.name) else f"{sink.name}: {text}")
        if health.bank is not None:
            for line in health.bank.news(self._told_bank):
                self._say(line)
            self._told_bank = health.bank

    def _write_health(self, health: Health) -> None:
        if self._health_file is None:
            return
        try:
            atomic_write(self._health_file, json_line(health.to_dict()))
        except FsvitEdgeError as error:
            if not self._is_health_unwritten:  # said once: a full disk must not fill the log as well
                self._say(f"The health file cannot be written, which is tried again every second: {error}")
            self._is_health_unwritten = True
            return
        if self._is_health_unwritten:
            self._is_health_unwritten = False
            self._say("The health file is written again.")

    def _on_sink_end(self, worker: SinkWorker, failure: FsvitEdgeError | None) -> None:
        if failure is not None and all(other.status.failure for other in self._workers):
            self._last_failure = failure
        elif failure is not None:
            self._say(f"{worker.name} has stopped; the run continues: {failure}")
        # A reader that is gone, as `head` is after ten lines, ends the run; so does the end of the last sink.
        if failure is None or all(other.has_ended for other in self._workers):
            self._stop.request()

    def _exit_code(self) -> int:
        if self._stop.signal_number == signal.SIGINT:
            return INTERRUPTED
        has_failed = self._model_hangs or any(worker.status.failure for worker in self._workers)
        sources = [one.source for one in self._watched.values()]
        return 1 if has_failed or any(one.has_failed or one.problem for one in sources) else 0
