"""An orderly end, soon, whatever hangs: the work runs in a thread, the main thread waits for it and for signals."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

TICK_S = 0.1
INTERRUPTED = 130


class StopRequest:
    """Whether the run should end, and since when.

    Attributes:
        since_s: Monotonic seconds of the first request; None before.
        signal_number: The signal that asked; None where something else did.
    """

    def __init__(self) -> None:
        self.since_s: float | None = None
        self.signal_number: int | None = None

    def __call__(self) -> bool:
        """Whether the run should end."""
        return self.since_s is not None

    def request(self, signal_number: int | None = None) -> None:
        """Ask for the end; a later request changes nothing."""
        if self.since_s is None:
            self.signal_number = signal_number
            self.since_s = time.monotonic()

    def left_s(self, within_s: float) -> float | None:
        """Seconds left of those given for the end; None where nobody has asked for it."""
        return None if self.since_s is None else max(0.0, self.since_s + within_s - time.monotonic())


@contextmanager
def stop_on_signals(stop: StopRequest) -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGHUP ask for the end; a second SIGINT ends the process at once. Main thread only."""

    def handle(number: int, _: FrameType | None) -> None:
        if stop() and number == signal.SIGINT:
            os._exit(INTERRUPTED)
        stop.request(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_beside(work: Callable[[], None], stop: StopRequest, tick: Callable[[], None], grace_s: float) -> bool:
    """Run `work` in a thread and `tick` ten times a second here, until the work ends.

    Args:
        work: Should end soon after `stop` was requested.
        stop: See `StopRequest`.
        tick: Must not wait.
        grace_s: Seconds that the work has for its end after the request.

    Returns:
        Whether the work has ended; False where it hangs.

    Raises:
        BaseException: Whatever `work` raised.
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
        if stop.left_s(grace_s) == 0 and thread.is_alive():
            return False
    if raised:
        raise raised[0]
    return True
