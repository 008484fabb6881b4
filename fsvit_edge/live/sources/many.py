"""Several sources as one, which offers the frame of the source that has waited longest."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import SourceState, SourceStatus
from fsvit_edge.live.sources.base import EndOfSourceError, Source
from fsvit_edge.runtime.errors import FsvitEdgeError

_WORST_LAST: tuple[SourceState, ...] = ("live", "connecting", "lost")


class NamedSource(Source):
    """One of several sources, under a name of its own; it ends alone, also if it fails.

    Args:
        name: Its name.
        source: The source, which it closes.
        max_frames: Number of frames after which it ends; None: at the end of the source.
    """

    def __init__(self, name: str, source: Source, max_frames: int | None = None) -> None:
        self.name, self.is_live, self.fps, self.num_frames = name, source.is_live, source.fps, source.num_frames
        self.notes = source.notes
        self.failure: FsvitEdgeError | None = None  # why it has ended, if it has failed
        self._source, self._left = source, max_frames

    def wake_with(self, woken: threading.Event) -> None:
        """Let an event be set when there may be something to read."""
        self._source.woken = woken

    def read(self, timeout_s: float) -> Frame | None:
        """Read like the source; a failure is an end, too."""
        if self._left == 0:
            self.has_ended = True
        if self.has_ended:
            raise EndOfSourceError
        try:
            frame = self._source.read(timeout_s)
        except EndOfSourceError:
            self.has_ended = True
            raise
        except FsvitEdgeError as error:
            self.failure, self.has_ended, self.has_failed = error, True, True
            raise EndOfSourceError from error
        if frame is None:
            return None
        self.fps = self._source.fps  # a camera declares it when it is open
        if self._left is not None:
            self._left -= 1
        # A picture of a folder keeps its path.
        source = self.name if frame.source == self._source.name else frame.source
        return replace(frame, source=source, camera=self.name)

    def waiting_since_s(self) -> float | None:
        """See `Source.waiting_since_s`; None after the end."""
        return None if self.has_ended else self._source.waiting_since_s()

    @property
    def status(self) -> SourceStatus:
        """That of the source; "lost" if it has failed."""
        status = self._source.status
        return status if self.failure is None else replace(status, state="lost", message=str(self.failure))

    @property
    def problem(self) -> str:
        """See `Source.problem`."""
        return self._source.problem

    @property
    def process_id(self) -> int | None:
        """ID of the process that reads the source."""
        return self._source.process_id

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class ManySources(Source):
    """Reads several sources in turn: always the one that has waited longest.

    A source waits from its first frame since it was last read, and then offers its newest one. So each is read as often
    as the others while it has frames, however many it has, and no frame is older than it has to be. (By the age of the
    newest frames alone, cameras in step with the model would starve others for as long as that lasts.) A source that is
    silent holds up no other.

    Args:
        sources: At least one, each with a name of its own.

    """

    num_frames = None

    def __init__(self, *sources: NamedSource) -> None:
        self.name = ", ".join(one.name for one in sources)
        self.is_live, self.fps = any(one.is_live for one in sources), None
        self._sources = {one.name: one for one in sources}
        self._changed = threading.Event()
        for one in sources:
            one.wake_with(self._changed)

    def read(self, timeout_s: float) -> Frame | None:
        """Read a frame of the source that has waited longest; None if no source has one in time.

        Raises:
            EndOfSourceError: All sources have ended.
            FsvitEdgeError: All have failed; this is the failure of the last.
        """
        until_s = time.monotonic() + timeout_s
        while True:
            self._changed.clear()  # before looking, so that nothing is missed
            for source in self._in_turn():
                try:
                    frame = source.read(0.0)
                except EndOfSourceError:
                    self._raise_if_all_failed(source)
                    continue
                if frame is not None:
                    return frame
            if all(one.has_ended for one in self._sources.values()):
                raise EndOfSourceError
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return None
            self._changed.wait(left_s)

    def _in_turn(self) -> list[NamedSource]:
        """The sources with something to read, by how long it has waited."""
        since_s = {name: source.waiting_since_s() for name, source in self._sources.items()}
        waiting = sorted((at_s, place) for place, at_s in enumerate(since_s.values()) if at_s is not None)
        sources = list(self._sources.values())
        return [sources[place] for _, place in waiting]

    def _raise_if_all_failed(self, last: NamedSource) -> None:
        if last.failure is not None and all(one.failure is not None for one in self._sources.values()):
            raise last.failure

    def waiting_since_s(self) -> float | None:
        """Since when the source that has waited longest has waited."""
        since_s = (one.waiting_since_s() for one in self._sources.values())
        return min((at_s for at_s in since_s if at_s is not None), default=None)

    @property
    def status(self) -> SourceStatus:
        """The worst state with the message of its first source, and the sums of all numbers."""
        statuses = [(one.name, one.status) for one in self._sources.values()]
        name, worst = max(statuses, key=lambda one: _WORST_LAST.index(one[1].state))
        return SourceStatus(
            worst.state,
            worst.since_s,
            captured=sum(one.captured for _, one in statuses),
            dropped=sum(one.dropped for _, one in statuses),
            reconnects=sum(one.reconnects for _, one in statuses),
            is_frozen=any(one.is_frozen for _, one in statuses),
            message=worst.message and f"{name}: {worst.message}",
            left_out=sum(one.left_out for _, one in statuses),
        )

    @property
    def parts(self) -> Mapping[str, Source]:
        """The sources by name."""
        return self._sources

    def close(self) -> None:
        """Close all sources."""
        with ThreadPoolExecutor(len(self._sources)) as pool:  # at once: each may take as long as a run that stops has
            for closing in [pool.submit(one.close) for one in self._sources.values()]:
                closing.result()
