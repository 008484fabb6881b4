"""What every sink offers."""

from abc import ABC, abstractmethod
from types import TracebackType

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.prediction import Prediction


class SinkClosedError(Exception):
    """Whoever read a sink has gone, as `head` does after ten lines: a clean end of the run, not a failure."""


class Sink(ABC):
    """Takes the frames and predictions of one run; use it as a context manager so that its file is finished.

    Attributes:
        queue_frames: Frames of a live source that may wait for it, the newest ones; more are dropped.
        trouble: What keeps it from its work for now, in one sentence; empty where nothing does. A sink that gives up
            raises instead.
    """

    queue_frames = 1
    trouble = ""

    def __enter__(self) -> "Sink":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what was written.

        Raises:
            FsvitEdgeError: It could not be finished; not raised where another exception is on its way already.
        """
        try:
            self._finish()
        except FsvitEdgeError:
            if error is None:
                raise

    @abstractmethod
    def write(self, frame: Frame, prediction: Prediction) -> None:
        """Take one frame and the prediction made for it.

        Raises:
            InputError: The frame does not fit what came before.
            FsvitEdgeError: The disk is full or something else keeps it from being written.
            SinkClosedError: The reader has gone; the run should end quietly.
        """

    def report(self, health: Health) -> None:  # noqa: B027 - most sinks have no place for it
        """Take how the run fares: after every change of the source's state, and about once a second.

        A sink that has no place for it ignores it.

        Raises:
            FsvitEdgeError: As of `write`.
            SinkClosedError: As of `write`.
        """

    @abstractmethod
    def _finish(self) -> None:
        """Complete and close what was written; called once."""
