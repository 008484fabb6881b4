"""Keeps a run safe: it stops on signals within 2 s whatever hangs, notices a hung model, and reports to systemd."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

TICK_S = 0.1  # between two checks of a run
INTERRUPTED = 130  # exit code after Ctrl-C
HANG_MIN_S = 10.0  # what takes less is never a hang
HANG_PER_CLASS_S = 1.0  # the outlines of 255 classes in a frame of 3840x2160 took 23 s on a third of a processor
HANG_FACTOR = 10.0  # times the slowest step so far: a large model may need seconds for one
# TensorRT-RTX compiles and CUDA loads at the first frame, and TensorRT-RTX again for another number of classes.
HANG_FIRST_S = 300.0
_LOOP_GRACE_S = 1.0


class StopRequest:
    """Whether the run should stop, since when (monotonic seconds), and the signal that requested it, if one did."""

    def __init__(self) -> None:
        self.since_s: float | None = None
        self.signal_number: int | None = None

    @property
    def is_requested(self) -> bool:
        """Whether the run should stop."""
        return self.since_s is not None

    def request(self, signal_number: int | None = None) -> None:
        """Request the stop; later requests change nothing."""
        if self.since_s is None:
            self.signal_number = signal_number
            self.since_s = time.monotonic()

    def left_s(self, within_s: float) -> float | None:
        """Seconds left until `within_s` after the request, at least 0; None if there was no request."""
        return None if self.since_s is None else max(0.0, self.since_s + within_s - time.monotonic())


@contextlib.contextmanager
def stop_on_signals(stop: StopRequest) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP request the stop; a second SIGINT exits at once. Main thread only."""

    def handle(number: int, _: FrameType | None) -> None:
        if stop.is_requested and number == signal.SIGINT:
            os._exit(INTERRUPTED)
        stop.request(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_with_ticks(work: Callable[[], None], stop: StopRequest, tick: Callable[[], None]) -> bool:
    """Run `work` in a thread and call `tick`, which must not block, ten times per second here until the work ends.

    Signals reach only the main thread, and a call into OpenCV or an engine would hold them up, so the work runs in
    another one. Raises what `work` raises; returns False if the work hangs: 1 s after the stop request, it still runs.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="loop", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(TICK_S)
        tick()
        if stop.left_s(_LOOP_GRACE_S) == 0 and thread.is_alive():
            return False
    if raised:
        raise raised[0]
    return True


class ModelWatchdog:
    """Tells a hung model from a slow one, which makes steps; a call into an engine cannot be interrupted.

    Time is counted in checks, one per TICK_S, not by a clock: a process that was stopped or a device that slept must
    not look hung.

    Args:
        compiles: Whether the engine may compile at the first frame with some classes, so that the time of this tells
            nothing about later ones.
    """

    def __init__(self, compiles: bool = False) -> None:
        self._compiles = compiles
        self._seen: tuple[int | None, int] = (None, 0)
        self._is_first = True
        self._checks = 0
        self._max_checks = 0

    def is_hung(self, frame: int | None, is_first: bool, steps: int = 0, classes: int = 0) -> bool:
        """Check once: whether a step has taken more than 10 s, 1 s for each class, and 10 times as long as any before.

        `frame` is the number of the frame in process, or None, and `steps` grows with each of its steps; if the frame
        `is_first` with the present classes, the limit is 300 s at least.
        """
        if (frame, steps) != self._seen:
            if self._seen[0] is not None and not (self._is_first and self._compiles):
                self._max_checks = max(self._max_checks, self._checks)
            self._seen, self._is_first, self._checks = (frame, steps), is_first, 0
        elif frame is not None:
            self._checks += 1
        limit_s = max(
            HANG_FIRST_S if self._is_first else HANG_MIN_S,
            HANG_PER_CLASS_S * classes,
            HANG_FACTOR * self._max_checks * TICK_S,
        )
        return self._checks * TICK_S > limit_s


def notify_systemd(*assignments: str) -> None:
    """Send assignments such as "READY=1", one line each, to the service manager; without one, do nothing.

    Never blocks and never raises, because a manager that does not read must not disturb the run; the sdnotify package
    blocks. The protocol is in sd_notify(3).
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    lines = "\n".join(" ".join(assignment.splitlines()) for assignment in assignments)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(lines.encode(errors="replace"), address)
