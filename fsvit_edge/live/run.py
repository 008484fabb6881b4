"""A complete run: from the name of a source to the sinks, watched until it ends.

`run_source` opens everything and is what a Python user calls; `LiveRun` runs parts that are already open.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import HEALTHY, Health, SourceStatus, read_boot_id
from fsvit_edge.live.loop import run_loop
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.live.sink_worker import SinkWorker
from fsvit_edge.live.sinks.base import RecordingOptions, Sink
from fsvit_edge.live.sinks.json_lines import json_line
from fsvit_edge.live.sinks.open import is_page, open_sink, recording_folder, sink_name
from fsvit_edge.live.sources.base import DEFAULT_FPS, Source, SourceOptions
from fsvit_edge.live.sources.demo import demo_length, demo_supports
from fsvit_edge.live.sources.open import open_source
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
from fsvit_edge.runtime.engines.choose import EngineChoice
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.machine import resident_memory_mb
from fsvit_edge.runtime.prediction import Prediction
from fsvit_edge.runtime.predictor import FewShotModel
from fsvit_edge.runtime.presence_level import check_level
from fsvit_edge.runtime.storage import atomic_write, remove_leftovers

DEFAULT_BANK = Path("bank.safetensors")

_REPORT_S = 1.0
_LOOP_GRACE_S = 1.0
_STOP_WITHIN_S = 1.6  # of the 2 s that stopping may take; closing the capture process takes the rest
_SUMMARY_FIELDS = (
    *("source", "model", "engine", "precision", "frames", "dropped", "reconnects"),
    *("elapsed_s", "fps", "age_ms", "latency_ms", "memory_mb"),
)

Say = Callable[[str], None]
OnFrame = Callable[[Frame, Prediction, RunStatistics], None]
OpenPage = Callable[[str, LiveModel, Path], Sink]


@dataclass(frozen=True)
class RunOptions:
    """How to run a source.

    Attributes:
        source: How to read the source.
        recording: How much a recording may write.
        bundle: Folder of the bundle; None: the bundled model.
        engine: Engine that runs the model, as in `FewShotModel.load`.
        precision: Precision of the engine, as in `FewShotModel.load`.
        threads: Threads of the engine; None: every core.
        bank: File with the enrolled classes; None: `DEFAULT_BANK` in the current folder, if it exists.
        level: Score above which a class is present, for all classes; None: the level of each class.
        max_frames: Number of frames after which to stop; None continues to the end of the source, or for the demo to
            the end of one round.
        stats_s: Seconds between two lines of statistics; None prints none.
        health_file: JSON file with the health of the run, replaced every second; None writes none.
    """

    source: SourceOptions = field(default_factory=SourceOptions)
    recording: RecordingOptions = field(default_factory=RecordingOptions)
    bundle: Path | None = None
    engine: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    bank: Path | None = None
    level: float | None = None
    max_frames: int | None = None
    stats_s: float | None = None
    health_file: Path | None = None


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        health: The health at the end.
        statistics: Counts and times.
        choice: The engine and precision that ran the model.
        exit_code: 0; 1 if a sink failed or the model hung; 130 after Ctrl-C. SIGTERM and SIGHUP are a normal end, 0: a
            service that was stopped has not failed.
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
        return {name: values[name] for name in _SUMMARY_FIELDS}


def _print_line(text: str) -> None:
    print(text, file=sys.stderr)


def run_source(
    source: str,
    sinks: Sequence[str] = (),
    options: RunOptions = RunOptions(),
    *,
    say: Say = _print_line,
    on_frame: OnFrame | None = None,
    open_page: OpenPage | None = None,
) -> RunResult:
    """Find and segment the classes of a bank in every frame of a source.

    Without a bank, the demo and a camera show the classes of the demo; with a page, the run starts without classes.
    Call it in the main thread, which receives the signals that stop it.

    Args:
        source: As `open_source` takes it.
        sinks: As `open_sink` takes them, or "http://ADDRESS:PORT" for the page.
        options: How to run it.
        say: Takes a line for the person at the device; by default, it goes to standard error.
        on_frame: Called after each frame in the thread of the loop, for a display.
        open_page: Opens the page from its URI, the model and the bank to save to, as `PageSink` does.

    Raises:
        InputError: The source, a sink or an option cannot be used, or a file has no enrolled classes to look for.
        EnvironmentLacksError: A package, engine or device is missing.
        ArtifactError: The bundle or bank is missing, damaged or does not fit.
        SourceError: The source cannot be opened or read.
        FsvitEdgeError: All sinks have failed.
    """
    if options.level is not None:
        check_level(options.level)
    is_demo, has_page = source == "demo", any(map(is_page, sinks))
    if is_demo and options.max_frames is None:
        if has_page:  # a camera to try the page with
            options = replace(options, source=replace(options.source, loop=True, realtime=True))
        else:
            options = replace(options, max_frames=demo_length())
    _refuse_to_overwrite(source, sinks)
    bank = _bank_to_load(options.bank, is_demo, has_page)
    bank_to_save = options.bank or DEFAULT_BANK
    for folder in {*filter(None, map(recording_folder, sinks)), bank_to_save.parent}:
        remove_leftovers(folder)
    with ExitStack() as stack:
        frames = stack.enter_context(open_source(source, options.source))
        if bank is None and not (is_demo or has_page or frames.is_live):
            raise InputError(
                "No classes are enrolled; enroll one with: fsvit-edge enroll NAME IMAGE, or choose a bank with --bank "
                "FILE (to try it without a bank: fsvit-edge run demo)."
            )
        model = stack.enter_context(
            FewShotModel.load(options.bundle, options.engine, options.precision, options.threads)
        )
        for note in model.choice.notes:
            say(f"Note: {note}")
        if bank is not None:
            model.load_bank(bank)
        elif is_demo or not has_page:
            if not is_demo:
                say("No bank found, so the classes of the demo are used; enroll yours: fsvit-edge enroll NAME IMAGE")
            _enroll_demo(model, say)
        model.set_level_for_all(options.level)
        live_model = LiveModel(model)
        opened: list[tuple[str, Sink]] = []
        with ExitStack() as unfinished:  # if a sink is refused, finishes the ones before
            for uri in sinks:
                if not is_page(uri):
                    sink = open_sink(uri, frames.fps or DEFAULT_FPS, options.recording, frames.is_live)
                elif open_page is None:
                    raise InputError(f"The page {uri} needs open_page, such as fsvit_edge.page.sink.PageSink.")
                else:
                    sink = open_page(uri, live_model, bank_to_save)
                opened.append((sink_name(uri), unfinished.enter_context(sink)))
            unfinished.pop_all()  # from here on, the run finishes them
        live_run = LiveRun(
            frames,
            live_model,
            opened,
            say,
            on_frame,
            max_frames=options.max_frames,
            stats_s=options.stats_s,
            health_file=options.health_file,
        )
        return live_run.run()


def _refuse_to_overwrite(source: str, sinks: Sequence[str]) -> None:
    """Refuse a sink that would write over the pictures or the video that the run reads."""
    read = Path(source).resolve()
    for uri in sinks:
        if recording_folder(uri) is not None and Path(uri).resolve() == read and read.exists():
            raise InputError(f"The sink {uri} is the source, which it would overwrite; give another name with --sink.")


def _bank_to_load(bank: Path | None, is_demo: bool, has_page: bool) -> Path | None:
    if bank is None:
        return DEFAULT_BANK if DEFAULT_BANK.is_file() and not is_demo else None
    # The page creates a bank that does not exist yet; without a page, loading it raises.
    return bank if bank.exists() or not has_page else None


def _enroll_demo(model: FewShotModel, say: Say) -> None:
    for support in demo_supports():
        model.enroll(support.name, [support.image], [support.mask])
        say(f"Enrolled {support.name!r} from one picture {'without' if support.mask is None else 'with'} a mask")


class LiveRun:
    """One run of an open source, model and sinks; call `run` once, in the main thread.

    Args:
        source: The frames; the caller closes it.
        model: Processes them.
        sinks: The sinks, which the run finishes, and their names, safe to print.
        say: Takes a line for the person at the device.
        on_frame: Called after each frame in the thread of the loop, for a display.
        max_frames: Number of frames after which to stop; None continues to the end of the source.
        stats_s: Seconds between two lines of statistics; None prints none.
        health_file: As in `RunOptions`.
    """

    def __init__(
        self,
        source: Source,
        model: LiveModel,
        sinks: Sequence[tuple[str, Sink]],
        say: Say,
        on_frame: OnFrame | None = None,
        *,
        max_frames: int | None = None,
        stats_s: float | None = None,
        health_file: Path | None = None,
    ) -> None:
        self._source = source
        self._model = model
        self._say = say
        self._on_frame = on_frame
        self._stop = StopRequest()
        self._statistics = RunStatistics()
        self._boot_id = read_boot_id()
        self._workers = [SinkWorker(sink, name, source.is_live, self._on_sink_end) for name, sink in sinks]
        self._condition = HEALTHY
        self._reported_s = 0.0
        self._stats_due_s = time.monotonic() + (stats_s or 0.0)
        self._stats_s = stats_s
        self._max_frames = max_frames
        self._health_file = health_file
        self._troubles = [""] * len(self._workers)
        self._watchdog = ModelWatchdog(TICK_S)
        self._model_hangs = False
        self._last_failure: FsvitEdgeError | None = None

    def health(self) -> Health:
        """The current health."""
        now_s = time.monotonic()
        statistics, choice = self._statistics, self._model.choice
        child = self._source.process_id
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
            memory_mb=resident_memory_mb([os.getpid(), *([child] if child else [])]),
            sinks=tuple(worker.status for worker in self._workers),
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
                has_ended = run_with_ticks(self._loop, self._stop, self._tick, _LOOP_GRACE_S)
                self._tick()
            finally:
                notify_systemd("STOPPING=1")
                hung = [] if has_ended else ["the model"]
                hung += [worker.name for worker in self._workers if not worker.finish(self._left_s())]
                if hung:
                    self._exit_without(hung)
            if self._last_failure is not None:
                raise self._last_failure
            return RunResult(self.health(), self._statistics, self._model.choice, self._exit_code())

    def _left_s(self) -> float | None:
        return self._stop.left_s(_STOP_WITHIN_S)

    def _exit_without(self, hung: list[str]) -> None:
        # A hung thread cannot be stopped, and a normal exit of Python would wait for it.
        self._say(f"Exiting although {' and '.join(hung)} did not stop in time.")
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
                lambda: self._stop.is_requested,
                self._model.run_requests,
                self._max_frames,
            )
        finally:
            self._model.close()

    def _deliver(self, frame: Frame, prediction: Prediction) -> None:
        for worker in self._workers:
            worker.put(frame, prediction)
        if self._on_frame is not None:
            self._on_frame(frame, prediction, self._statistics)

    def _tick(self) -> None:
        if self._watchdog.is_hung(self._model.processing, self._model.is_first_frame) and not self._model_hangs:
            # Nothing in this process can end the call, but the service that started the run can start it again.
            self._model_hangs = True
            self._say("The model stopped responding, so the run ends with exit code 1; start it again.")
            self._stop.request()
        status = self._source.status
        now_s = time.monotonic()
        has_changed = status.condition != self._condition
        if has_changed:
            self._say_condition(status)
            self._condition = status.condition
        if has_changed or now_s - self._reported_s >= _REPORT_S:
            self._reported_s = now_s
            health = self.health()
            for worker in self._workers:
                worker.report(health)
            self._say_troubles(health)
            self._write_health(health)
            notify_systemd("WATCHDOG=1", f"STATUS={health}")
        if self._stats_s is not None and now_s >= self._stats_due_s:
            self._stats_due_s = now_s + self._stats_s
            self._say(str(self.health()))

    def _say_condition(self, status: SourceStatus) -> None:
        if status.state != "live":
            if status.message:
                self._say(f"{self._source.name} is {status.state}: {status.message}")
        elif status.is_frozen:
            self._say(f"{self._source.name} is frozen: it has sent identical frames for several seconds.")
        elif self._condition.state != "live" or self._condition.is_frozen:
            self._say(f"{self._source.name} is live.")

    def _say_troubles(self, health: Health) -> None:
        for sink, before in zip(health.sinks, self._troubles, strict=True):
            if sink.trouble != before:
                self._say(f"{sink.name}: {sink.trouble or 'It is working again.'}")
        self._troubles = [sink.trouble for sink in health.sinks]

    def _write_health(self, health: Health) -> None:
        if self._health_file is None:
            return
        try:
            atomic_write(self._health_file, json_line(health.to_dict()))
        except FsvitEdgeError as error:
            self._health_file = None  # reported once: a full disk must not fill the log as well
            self._say(f"The health file is no longer written: {error}")

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
        return 1 if self._model_hangs or any(worker.status.failure for worker in self._workers) else 0
