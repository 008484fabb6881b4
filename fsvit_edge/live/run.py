"""A whole run: source, loop, sinks and signals put together, and how it fares told to whoever should know."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.hang_watch import HangWatch
from fsvit_edge.live.health import Health
from fsvit_edge.live.loop import run_loop
from fsvit_edge.live.service_manager import notify
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.live.shutdown import INTERRUPTED, TICK_S, StopRequest, run_beside, stop_on_signals
from fsvit_edge.live.sink_worker import SinkWorker
from fsvit_edge.live.sinks.base import Sink
from fsvit_edge.live.sources.base import Source, SourceStatus
from fsvit_edge.live.statistics import RunStatistics
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.machine import resident_memory_mb
from fsvit_edge.runtime.prediction import Prediction
from fsvit_edge.runtime.storage import atomic_write

_REPORT_S = 1.0
_LOOP_GRACE_S = 1.0
_END_WITHIN_S = 1.6  # of the 2 s that an end may take; closing the capture process takes the rest
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class RunOptions:
    """How a run is done.

    Attributes:
        max_frames: Frames after which to stop; None goes on to the end of the source.
        stats_s: Seconds between two lines of statistics; None prints none.
        health: File that holds how the run fares, as JSON, made anew every second; None writes none.
    """

    max_frames: int | None = None
    stats_s: float | None = None
    health: Path | None = None


@dataclass(frozen=True)
class RunResult:
    """How a run went.

    Attributes:
        health: At its end.
        statistics: Counts and times.
        exit_code: 0; 1 where a sink failed; 130 where Ctrl-C ended it. SIGTERM and SIGHUP are an orderly end, 0: a
            service that was stopped has not failed.
    """

    health: Health
    statistics: RunStatistics
    exit_code: int


class LiveRun:
    """One run; call `run` once, in the main thread.

    Args:
        source: The frames; it stays its opener's to close.
        model: Judges them.
        sinks: Their names, fit to print, and the sinks, which are finished by the run.
        options: How it is done.
        say: Takes a line for the person at the device.
        on_frame: Called after each frame, in the loop's thread, for a display.
    """

    def __init__(
        self,
        source: Source,
        model: LiveModel,
        sinks: Sequence[tuple[str, Sink]],
        options: RunOptions,
        say: Callable[[str], None],
        on_frame: Callable[[Frame, Prediction, RunStatistics], None] | None = None,
    ) -> None:
        self._source = source
        self._model = model
        self._options = options
        self._say = say
        self._on_frame = on_frame
        self._stop = StopRequest()
        self._statistics = RunStatistics()
        self._boot_id = _boot_id()
        self._workers = [SinkWorker(sink, name, source.is_live, self._on_sink_end) for name, sink in sinks]
        self._seen: tuple[str, bool, str] = ("live", False, "")
        self._reported_s = 0.0
        self._stats_due_s = time.monotonic() + (options.stats_s or 0.0)
        self._health_failed = False
        self._troubles = [""] * len(self._workers)
        self._hang_watch = HangWatch(TICK_S)
        self._model_hangs = False
        self._last_failure: FsvitEdgeError | None = None

    def health(self) -> Health:
        """How the run fares now."""
        now_s = time.monotonic()
        statistics = self._statistics
        description = self._model.description
        child = self._source.process_id
        return Health(
            wall_time_s=time.time(),
            monotonic_s=now_s,
            boot_id=self._boot_id,
            uptime_s=now_s - statistics.started_s,
            source=self._source.name,
            source_status=self._source.status,
            model=description.name,
            engine=description.engine,
            precision=description.precision,
            classes=self._model.classes,
            frames=statistics.frames,
            fps=statistics.recent_fps,
            age_ms=statistics.age_ms,
            latency_ms=statistics.latency_ms,
            memory_mb=resident_memory_mb([os.getpid(), *([child] if child else [])]),
            sinks=tuple(worker.status for worker in self._workers),
        )

    def run(self) -> RunResult:
        """Run until the source ends, `max_frames` is reached, a signal comes, or no sink is left.

        Ends the process, after everything that can be finished was, where the loop or a sink hangs on the way out.

        Raises:
            FsvitEdgeError: Whatever the source or the predictor raised, or the last sink, where all have failed.
        """
        with stop_on_signals(self._stop):
            notify("READY=1")
            has_ended = True
            try:
                has_ended = run_beside(self._loop, self._stop, self._tick, _LOOP_GRACE_S)
                self._tick()
            finally:
                notify("STOPPING=1")
                hanging = [] if has_ended else ["the model"]
                hanging += [worker.name for worker in self._workers if not worker.finish(self._left_s())]
                if hanging:
                    self._end_without(hanging)
            if self._last_failure is not None:
                raise self._last_failure
            return RunResult(self.health(), self._statistics, self._exit_code())

    def _left_s(self) -> float | None:
        return self._stop.left_s(_END_WITHIN_S)

    def _end_without(self, hanging: list[str]) -> None:
        # What hangs cannot be waited for, and Python would wait for the interpreter's end.
        self._say(f"Ending without {' and '.join(hanging)}, which did not end in time.")
        self._source.close()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self._exit_code())

    def _loop(self) -> None:
        try:
            run_loop(
                self._source,
                self._model.predict,
                self._deliver,
                self._statistics,
                self._stop,
                self._model.run_requests,
                self._options.max_frames,
            )
        finally:
            self._model.close()

    def _deliver(self, frame: Frame, prediction: Prediction) -> None:
        for worker in self._workers:
            worker.put(frame, prediction)
        if self._on_frame is not None:
            self._on_frame(frame, prediction, self._statistics)

    def _tick(self) -> None:
        if self._hang_watch.check(self._model.processing, self._model.is_first_frame) and not self._model_hangs:
            # Nothing can be done about it in this process: whoever started the run can start it again.
            self._model_hangs = True
            self._say("The model does not answer any more, so the run ends with code 1; start it again.")
            self._stop.request()
        status = self._source.status
        now_s = time.monotonic()
        seen = (status.state, status.is_frozen, status.message)
        is_change = seen != self._seen
        if is_change:
            self._say_change(status)
            self._seen = seen
        if is_change or now_s - self._reported_s >= _REPORT_S:
            self._reported_s = now_s
            health = self.health()
            for worker in self._workers:
                worker.report(health)
            self._say_troubles(health)
            self._write_health(health)
            notify("WATCHDOG=1", f"STATUS={statistics_line(health)}")
        if self._options.stats_s is not None and now_s >= self._stats_due_s:
            self._stats_due_s = now_s + self._options.stats_s
            self._say(statistics_line(self.health()))

    def _say_change(self, status: SourceStatus) -> None:
        if status.state != "live":
            if status.message:
                self._say(f"{self._source.name} is {status.state}: {status.message}")
        elif status.is_frozen:
            self._say(f"{self._source.name} is frozen: its frames have held the same pixels for seconds.")
        elif self._seen[0] != "live" or self._seen[1]:
            self._say(f"{self._source.name} is live.")

    def _say_troubles(self, health: Health) -> None:
        for sink, before in zip(health.sinks, self._troubles, strict=True):
            if sink.trouble != before:
                self._say(f"{sink.name}: {sink.trouble or 'it works again.'}")
        self._troubles = [sink.trouble for sink in health.sinks]

    def _write_health(self, health: Health) -> None:
        if self._options.health is None or self._health_failed:
            return
        try:
            atomic_write(self._options.health, json.dumps(health.as_json(), ensure_ascii=False).encode() + b"\n")
        except FsvitEdgeError as error:
            self._health_failed = True  # told once; a full disk must not fill the log as well
            self._say(f"The health is not written any more: {error}")

    def _on_sink_end(self, worker: SinkWorker, failure: FsvitEdgeError | None) -> None:
        if failure is not None and all(one.status.failure for one in self._workers):
            self._last_failure = failure
        elif failure is not None:
            self._say(f"{worker.name} stops, the rest goes on: {failure}")
        # A reader that has gone, as `head` does after ten lines, ends the run; so does the end of the last sink.
        if failure is None or all(one.has_ended for one in self._workers):
            self._stop.request()

    def _exit_code(self) -> int:
        if self._stop.signal_number == signal.SIGINT:
            return INTERRUPTED
        return 1 if self._model_hangs or any(worker.status.failure for worker in self._workers) else 0


def statistics_line(health: Health) -> str:
    """How a run fares, in one line."""
    status = health.source_status
    parts = [
        f"{health.source}: {status.state}{' (frozen)' if status.is_frozen else ''}",
        f"{health.frames} frames",
        f"{health.fps:.1f} frames/s",
        f"{status.dropped} dropped",
    ]
    if health.age_ms is not None:
        parts.append(f"age p50/p95/p99 {health.age_ms.p50:.0f}/{health.age_ms.p95:.0f}/{health.age_ms.p99:.0f} ms")
    parts += [f"{stage} {one.p50:.1f}" for stage, one in health.latency_ms.items()]
    parts.append(f"{health.memory_mb:.0f} MB")
    stopped = [sink.name for sink in health.sinks if sink.failure]
    if stopped:
        parts.append(f"stopped: {', '.join(stopped)}")
    return ", ".join(parts)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
