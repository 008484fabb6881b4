"""TensorRT in a thread of its own, so that Ctrl-C ends a build and not the process.

Only the main thread hears Ctrl-C, and TensorRT calls our Python back (its log, its progress) wherever it works. There
an exception would go through TensorRT's own frames, which ends the process; in a thread no callback ever sees one.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

_REPORT_EVERY_S = 1.0
_Result = TypeVar("_Result")


class Watch:
    """What the thread that builds and the one that waits tell each other.

    Attributes:
        cancelled: Set when the build shall end.
        phases: That have begun and not ended, the innermost last.
        said: Lines that the waiting thread passes on.
    """

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.phases: list[str] = []
        self.said: list[str] = []

    def monitor(self, trt: Any) -> Any:
        """Return an `IProgressMonitor` of a TensorRT module that notes phases, and says no once it is cancelled."""
        base: Any = trt.IProgressMonitor
        phases, cancelled = self.phases, self.cancelled

        class Monitor(base):  # type: ignore[misc]  # the module is only known at run time
            def __init__(self) -> None:
                base.__init__(self)

            def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002 - TensorRT's
                phases.append(phase)

            def step_complete(self, phase: str, step: int) -> bool:  # noqa: ARG002 - TensorRT's
                return not cancelled.is_set()

            def phase_finish(self, phase: str) -> None:
                if phase in phases:
                    phases.remove(phase)

        return Monitor()


def run_watched(work: Callable[[Watch], _Result], name: str, progress: Callable[[str], None]) -> _Result:
    """Work in a thread until it is done, telling its phases; what it raises is raised here.

    Args:
        work: What to do; on Ctrl-C it is cancelled and waited for.
        name: What is built.
        progress: Is told the phases.
    """
    watch = Watch()
    outcome: list[_Result] = []
    failure: list[Exception] = []
    # Python 3.11 takes a thread for ended when Ctrl-C interrupts `join` (bpo-45274), so the thread says so itself.
    has_begun, has_ended = threading.Event(), threading.Event()

    def run() -> None:
        has_begun.set()
        try:
            outcome.append(work(watch))
        except Exception as error:  # goes to the thread that waits
            failure.append(error)
        finally:
            has_ended.set()

    thread = threading.Thread(target=run, name=f"build {name}", daemon=True)
    told, told_at = "", time.monotonic()
    with _stdout_on_stderr():
        try:
            thread.start()
            is_over = False
            while not is_over:
                is_over = has_ended.wait(0.1)
                while watch.said:
                    progress(watch.said.pop(0))
                phase = "".join(watch.phases[-1:])
                if phase not in ("", told) and time.monotonic() - told_at > _REPORT_EVERY_S:
                    told, told_at = phase, time.monotonic()
                    progress(f"{name}: {phase[0].lower()}{phase[1:]}")
        except BaseException:
            # A thread that is still in TensorRT when Python ends takes the process down with it.
            watch.cancelled.set()
            if has_begun.wait(1.0):  # Ctrl-C may come while it starts
                has_ended.wait()
            raise
    if failure:
        raise failure[0]
    return outcome[0]


@contextlib.contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Have what TensorRT's compiler prints on the standard output appear among the messages: stdout is our results'."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is none
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
