"""Runs a sink in its own thread with a short queue, so that a slow sink delays neither the frames nor other sinks."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.events import Event
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health, SinkStatus
from fsvit_edge.live.sinks.base import Sink, SinkClosedError
from fsvit_edge.runtime.errors import FsvitEdgeError

_FILE_QUEUE = 8
_MAX_REPORTS = 16
_MAX_EVENTS = 256
_RETRY_S = 2.0
_GOOD_S = 5.0
"""A sink whose disk failed works again only after that long: a video notices a full disk a second later."""


class SinkWorker:
    """Gives frames to a sink, and finishes it, in its own thread.

    If the source is live, a new frame replaces its oldest one in a full queue, which counts as dropped. Otherwise the
    new frame waits, and nothing is dropped.

    A file of a live source whose disk fails is tried again every two seconds, because what the source shows does not
    come again; it is a failure if it still fails at the end. `on_end` is called once, from this thread, if the sink
    ends by itself: with the failure, or with None if its reader is gone.
    """

    def __init__(
        self, sink: Sink, name: str, is_live: bool, on_end: Callable[["SinkWorker", FsvitEdgeError | None], None]
    ) -> None:
        self.name, self.source = name, sink.source
        self._sink = sink
        self._waits = not is_live
        self._capacity = sink.queue_frames if is_live else _FILE_QUEUE
        self._on_end = on_end
        self._changed = threading.Condition()
        self._frames: deque[tuple[Frame, Prediction]] = deque()
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)
        self._reports: deque[Health] = deque(maxlen=_MAX_REPORTS)
        self._written = 0
        self._dropped = 0
        self._failure = self._trouble = ""
        self._is_failing = False
        self._failed_s = 0.0
        self._finishing = False
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    @property
    def status(self) -> SinkStatus:
        """The current state of the sink."""
        with self._changed:
            trouble = self._trouble or self._sink.trouble
            skipped = min(self._sink.skipped, self._written)
            written, dropped = self._written - skipped, self._dropped + skipped
            return SinkStatus(self.name, written, dropped, self._failure, trouble)

    @property
    def has_ended(self) -> bool:
        """Whether the sink has ended."""
        return self._has_ended

    def put(self, frame: Frame, prediction: Prediction) -> None:
        """Queue a frame for the sink, if it is of its source; returns at once if the source is live."""
        if self.source not in (None, frame.camera):
            return
        with self._changed:
            while self._waits and len(self._frames) >= self._capacity and not self._has_ended:
                self._changed.wait()
            if self._has_ended:
                return
            self._frames.append((frame, prediction))
            places = [place for place, (other, _) in enumerate(self._frames) if other.camera == frame.camera]
            if len(places) > self._capacity:
                # The frames of this source move up by one, so that it keeps its turn among the others.
                for place, following in itertools.pairwise(places):
                    self._frames[place] = self._frames[following]
                del self._frames[places[-1]]
                self._dropped += 1
            self._changed.notify_all()

    def tell(self, event: Event) -> None:
        """Queue an event for the sink, ahead of the frames; returns at once, and none is dropped before 256 wait."""
        if self.source not in (None, event.source):
            return
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def report(self, health: Health) -> None:
        """Queue the health of the run for the sink; returns at once."""
        with self._changed:
            self._reports.append(health.of(self.source))
            self._changed.notify_all()

    def begin_to_finish(self, in_hurry: bool) -> None:
        """Let the sink take what is queued, without the frames if in a hurry, and finish it; returns at once."""
        with self._changed:
            self._finishing = True
            if in_hurry:
                self._sink.in_hurry = True
                self._frames.clear()  # complete files matter more than the last frames
            self._changed.notify_all()

    def has_finished_within(self, timeout_s: float) -> bool:
        """Wait for a sink that has begun to finish; return whether it has finished."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def finish(self, timeout_s: float | None = None) -> bool:
        """Let the sink take what is queued and finish it; return whether it did.

        With a `timeout_s` in seconds, queued frames are discarded; None waits as long as it takes.
        """
        self.begin_to_finish(in_hurry=timeout_s is not None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        failure: FsvitEdgeError | None = None
        try:
            with self._sink:
                self._serve()
        except SinkClosedError:
            pass
        except FsvitEdgeError as error:
            failure = error
        except Exception as error:
            # A bug in one sink must not end the others.
            failure = FsvitEdgeError(f"{self.name} failed: {type(error).__name__}: {error}")
        with self._changed:
            self._failure, self._has_ended = str(failure or ""), True
            if failure is None:
                self._trouble = ""
            self._frames.clear()
            self._changed.notify_all()
            is_expected = self._finishing and failure is None
        if not is_expected:
            self._on_end(self, failure)

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not (self._reports or self._events or self._frames or self._finishing):
                    self._changed.wait()
                if not (self._reports or self._events or self._frames):
                    break
                report = self._reports.popleft() if self._reports else None
                event = self._events.popleft() if report is None and self._events else None
                item = self._frames.popleft() if report is None and event is None else None
                self._changed.notify_all()
            try:
                if report is not None:
                    self._sink.report(report)
                if event is not None:
                    self._sink.tell(event)
                if item is not None:
                    self._sink.write(*item)
            except (FsvitEdgeError, OSError) as error:
                self._wait_after(error, event, item is not None)
                continue
            if item is None:  # may have written nothing
                continue
            with self._changed:
                self._written += 1
                self._is_failing = False
                if self._trouble and time.monotonic() - self._failed_s >= _GOOD_S:
                    self._trouble = ""
        if self._is_failing:
            raise FsvitEdgeError(self._trouble)

    def _wait_after(self, error: FsvitEdgeError | OSError, event: Event | None, had_frame: bool) -> None:
        """Wait before the next attempt while the queues take what comes; raise the error if there is none."""
        is_of_disk = isinstance(error, OSError) or isinstance(error.__cause__, OSError)
        with self._changed:
            if self._waits or not (self._sink.resumes and is_of_disk):
                raise error
            text = f"{self.name} cannot be written: {error.strerror}." if isinstance(error, OSError) else str(error)
            self._trouble = self._trouble or text
            if self._finishing:
                raise FsvitEdgeError(self._trouble) from error
            self._is_failing, self._failed_s = True, time.monotonic()
            self._dropped += had_frame
            if event is not None:
                self._events.appendleft(event)
            self._changed.wait_for(lambda: self._finishing, _RETRY_S)
