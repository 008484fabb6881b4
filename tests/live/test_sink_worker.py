import errno
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from blank import blank_frame, health, no_classes, until

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live import sink_worker
from fsvit_edge.live.events import Event, Sighting
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.live.sink_worker import SinkWorker
from fsvit_edge.live.sinks.base import Sink, SinkClosedError
from fsvit_edge.runtime.errors import FsvitEdgeError

PREDICTION = no_classes()


class Gated(Sink):
    """Takes frames only while the gate is open."""

    def __init__(self, fail: Callable[[], None] = lambda: None) -> None:
        self.gate = threading.Event()
        self.taken = threading.Event()
        self.seen: list[int] = []
        self.reports = 0
        self.told: list[str] = []
        self.finished = 0
        self.fail = fail

    def write(self, frame: Frame, prediction: Prediction) -> None:  # noqa: ARG002 - the contract
        self.taken.set()
        self.gate.wait()
        self.fail()
        self.seen.append(frame.index)

    def report(self, health: Health) -> None:  # noqa: ARG002 - the contract
        self.reports += 1

    def tell(self, event: Event) -> None:
        self.told.append(event.name)

    def _finish(self) -> None:
        self.finished += 1


class Ends:
    def __init__(self) -> None:
        self.failures: list[str] = []

    def __call__(self, _: SinkWorker, failure: FsvitEdgeError | None) -> None:
        self.failures.append(str(failure or ""))


def fail_with(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_events_are_not_dropped_with_the_frames_and_go_first() -> None:
    sink, ends = Gated(), Ends()
    worker = SinkWorker(sink, "slow", True, ends)
    worker.put(blank_frame(0), PREDICTION)
    assert sink.taken.wait(60)  # the sink is busy with frame 0
    names = [f"class {number}" for number in range(100)]
    for index, name in enumerate(names, start=1):
        image = blank_frame().image
        best = Sighting(0.9, None, index, image, np.zeros(image.shape[:2], np.bool_))
        worker.tell(Event("appeared", name, "cam", 0.0, 0.0, None, best))
        worker.put(blank_frame(index), PREDICTION)
    sink.gate.set()

    assert worker.finish()
    assert sink.told == names
    assert sink.seen == [0, 100]


def test_a_slow_sink_of_a_live_source_gets_the_newest_frame_and_delays_nothing() -> None:
    sink, ends = Gated(), Ends()
    worker = SinkWorker(sink, "slow", True, ends)
    worker.put(blank_frame(0), PREDICTION)
    assert sink.taken.wait(60)
    started = time.monotonic()
    for index in range(1, 100):
        worker.put(blank_frame(index), PREDICTION)
    assert time.monotonic() - started < 20
    assert worker.status.dropped == 98
    sink.gate.set()
    until(lambda: worker.status.written == 2)
    assert sink.seen == [0, 99]
    assert worker.finish(60)
    assert (sink.finished, ends.failures) == (1, [])


def test_lines_of_a_live_source_wait_in_a_short_queue() -> None:
    sink = Gated()
    sink.queue_frames = 3
    worker = SinkWorker(sink, "lines", True, Ends())
    worker.put(blank_frame(0), PREDICTION)
    assert sink.taken.wait(60)
    for index in range(1, 6):
        worker.put(blank_frame(index), PREDICTION)
    sink.gate.set()
    worker.finish()
    assert sink.seen == [0, 3, 4, 5]
    assert worker.status.dropped == 2


def test_no_frame_of_a_file_is_dropped_however_slow_the_sink() -> None:
    sink = Gated()
    worker = SinkWorker(sink, "file", False, Ends())
    putting = threading.Thread(target=lambda: [worker.put(blank_frame(index), PREDICTION) for index in range(50)])
    putting.start()
    time.sleep(0.05)
    assert putting.is_alive()  # the queue is short, so it waits
    sink.gate.set()
    putting.join(60)
    worker.finish()
    assert sink.seen == list(range(50))
    assert (worker.status.written, worker.status.dropped) == (50, 0)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (FsvitEdgeError("the disk is full"), "the disk is full"),
        (RuntimeError("boom"), "bad failed: RuntimeError: boom"),
        (SinkClosedError("gone"), ""),
    ],
)
def test_a_failed_sink_reports_once_and_takes_no_more_frames(error: Exception, failure: str) -> None:
    sink, ends = Gated(fail_with(error)), Ends()
    sink.gate.set()
    worker = SinkWorker(sink, "bad", False, ends)
    worker.put(blank_frame(0), PREDICTION)
    until(lambda: worker.has_ended)
    for index in range(20):
        worker.put(blank_frame(index), PREDICTION)  # would wait forever for a sink that still counted
    worker.finish()
    until(lambda: ends.failures == [failure])
    assert worker.status.failure == failure
    assert sink.finished == 1


class Disk:
    """Is full until there is room."""

    def __init__(self) -> None:
        self.has_room = False

    def __call__(self) -> None:
        if not self.has_room:
            raise FsvitEdgeError("The disk is full.") from OSError(errno.ENOSPC, "No space left on device")


def test_a_file_of_a_live_source_goes_on_when_its_disk_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_worker, "_RETRY_S", 0.01)
    now_s = 0.0
    monkeypatch.setattr(sink_worker, "time", SimpleNamespace(monotonic=lambda: now_s))
    disk, ends = Disk(), Ends()
    sink = Gated(disk)
    sink.gate.set()
    sink.resumes = True
    worker = SinkWorker(sink, "lines", True, ends)
    worker.put(blank_frame(0), PREDICTION)
    until(lambda: worker.status.trouble == "The disk is full.")
    worker.put(blank_frame(1), PREDICTION)
    until(lambda: worker.status.dropped == 2)
    disk.has_room = True
    worker.put(blank_frame(2), PREDICTION)
    until(lambda: sink.seen == [2])
    assert worker.status.trouble == "The disk is full."  # a video may not know yet
    now_s = sink_worker._GOOD_S
    worker.put(blank_frame(3), PREDICTION)
    until(lambda: worker.status.trouble == "")
    worker.finish()
    assert (worker.status.written, worker.status.dropped, worker.status.failure, ends.failures) == (2, 2, "", [])


def test_a_disk_that_is_full_at_the_end_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_worker, "_RETRY_S", 60.0)
    ends = Ends()
    sink = Gated(Disk())
    sink.gate.set()
    sink.resumes = True
    worker = SinkWorker(sink, "lines", True, ends)
    worker.put(blank_frame(0), PREDICTION)
    until(lambda: worker.status.trouble != "")
    worker.report(health())  # writes nothing, and so is no sign of room
    assert worker.finish(60)
    assert (worker.status.failure, ends.failures) == ("The disk is full.", ["The disk is full."])


@pytest.mark.parametrize(
    ("is_live", "resumes", "error"),
    [(False, True, OSError("full")), (True, False, OSError("full")), (True, True, ValueError("a bug"))],
)
def test_other_failures_end_a_sink(is_live: bool, resumes: bool, error: Exception) -> None:
    ends = Ends()
    sink = Gated(fail_with(error))
    sink.gate.set()
    sink.resumes = resumes
    worker = SinkWorker(sink, "bad", is_live, ends)
    worker.put(blank_frame(0), PREDICTION)
    until(lambda: len(ends.failures) == 1)
    assert worker.has_ended


def test_a_sink_that_cannot_be_finished_has_failed() -> None:
    class Unfinishable(Gated):
        def _finish(self) -> None:
            raise FsvitEdgeError("could not be read back")

    ends = Ends()
    worker = SinkWorker(Unfinishable(), "video", False, ends)
    assert worker.finish()
    until(lambda: ends.failures == ["could not be read back"])


def test_a_hung_sink_is_given_up_after_the_timeout() -> None:
    sink = Gated()
    worker = SinkWorker(sink, "hung", True, Ends())
    worker.put(blank_frame(0), PREDICTION)
    assert sink.taken.wait(60)
    started = time.monotonic()
    assert not worker.finish(0.1)
    assert time.monotonic() - started < 20
    sink.gate.set()
    assert worker.finish(60)


def test_reports_reach_the_sink_before_waiting_frames() -> None:
    sink = Gated()
    worker = SinkWorker(sink, "told", True, Ends())
    worker.report(health())
    until(lambda: sink.reports == 1)
    sink.gate.set()
    worker.finish()
