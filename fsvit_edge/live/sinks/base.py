"""What every sink offers, and the options it takes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from types import MappingProxyType

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.events import Event
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import ALL_WELL, Condition, Health
from fsvit_edge.remote.status import BoxCondition
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError


class SinkClosedError(Exception):
    """The reader of a sink is gone, as `head` is after ten lines: a clean end of the run, not a failure."""


@dataclass(frozen=True)
class RecordingOptions:
    """How much a recording may write.

    Attributes:
        segment_s: Seconds per file; None: everything goes into one file.
        keep: Maximum number of files or pictures; the oldest are deleted. None keeps all.

    Raises:
        InputError: A value is out of range.
    """

    segment_s: float | None = None
    keep: int | None = None

    def __post_init__(self) -> None:
        if self.segment_s is not None and not (isfinite(self.segment_s) and self.segment_s >= 1):
            raise InputError(f"--segment must be at least 1 second, got {self.segment_s:g}.")
        if self.keep is not None and self.keep < 1:
            raise InputError(f"--keep must be at least 1 file, got {self.keep}.")


@dataclass(frozen=True)
class EventOptions:
    """Who is told about events.

    Attributes:
        webhooks: Addresses, http://... or https://..., to which each event is posted as JSON; see `WebhookSink`.
        cooldown_s: Seconds after the "appeared" of a class in which no other one of it is posted.
        snapshots: Folder for one picture per appearance of a class; None writes none. See `SnapshotSink`.
        keep_snapshots: Maximum number of these pictures; the oldest are deleted.

    Raises:
        InputError: A value is out of range.
    """

    webhooks: tuple[str, ...] = field(default=(), repr=False)  # an address often is a secret
    cooldown_s: float = 10.0
    snapshots: Path | None = None
    keep_snapshots: int = 1000

    def __post_init__(self) -> None:
        if not (isfinite(self.cooldown_s) and self.cooldown_s >= 0):
            raise InputError(f"--cooldown must be at least 0 seconds, got {self.cooldown_s:g}.")
        if self.keep_snapshots < 1:
            raise InputError(f"--keep-snapshots must be at least 1 picture, got {self.keep_snapshots}.")

    @property
    def are_wanted(self) -> bool:
        """Whether anyone is told."""
        return bool(self.webhooks) or self.snapshots is not None


class Sink(ABC):
    """Takes the frames and predictions of one run; use it as a context manager, so that its file is finished."""

    queue_frames = 1  # how many frames of a live source may wait for it; older ones are dropped
    trouble = ""  # what is wrong for now, in one sentence; a sink that gives up raises instead
    resumes = False  # whether it can be written to again after a failure of its disk
    skipped = 0  # frames that it has taken and could not deliver
    in_hurry = False  # the run has been told to stop, so finish in well under a second
    source: str | None = None  # of several sources, the only one that it is told of; None: all
    _conditions: Mapping[str, tuple[Condition, BoxCondition]] = MappingProxyType({})  # of each source, as last written

    def __enter__(self) -> "Sink":
        return self

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        """Finish what was written; an error in that does not hide one that is already on its way."""
        try:
            self._finish()
        except FsvitEdgeError:
            if error is None:
                raise

    @abstractmethod
    def write(self, frame: Frame, prediction: Prediction) -> None:
        """Take one frame and its prediction.

        Raises:
            InputError: The frame does not fit the ones before.
            FsvitEdgeError: The disk is full, or it cannot be written for another reason.
            SinkClosedError: The reader is gone; the run should end quietly.
        """

    def tell(self, event: Event) -> None:  # noqa: B027 - not every sink shows them
        """Take an event, before the frame that caused it."""

    def report(self, health: Health) -> None:
        """Take the health of the run: about once per second, and after every change in its condition."""
        for one in health.by_source():
            if one.condition != self._conditions.get(one.source, ALL_WELL):
                self._conditions = {**self._conditions, one.source: one.condition}
                self._write_state(one)

    def _write_state(self, health: Health) -> None:  # noqa: B027 - not every sink shows it
        """Record that the condition of the source, or of the box, has changed."""

    @abstractmethod
    def _finish(self) -> None:
        """Complete and close what was written; called once."""
