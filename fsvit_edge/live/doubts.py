"""Doubtful frames of a run are kept in its bank, for a person to judge."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.review import update_review
from fsvit_edge.fewshot.review_items import ReviewItem, ReviewItems, with_item
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.loop import OnFrame
from fsvit_edge.live.sources.base import Source
from fsvit_edge.live.statistics import RunStatistics
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.messages import Say, command_line
from fsvit_edge.runtime.storage import BusyError

_EVERY_S = 10.0
"""Between two frames of one class, from a live source."""
_EVERY_S_OF_FILE = 1.0
"""The same in a video, in its own time; of a folder, every picture counts."""
_IDLE_RATIO = 100.0
"""Keeping a frame takes as long as answering one; after that, nothing is kept for this many times as long (1 %)."""
_WRITE_EVERY_S = 5.0
_MOST_WAITING = 50
_BUSY_S = 0.4
"""How long to wait for another process that changes the bank, twice at the end: a run stops within 2 s."""


class DoubtKeeper:
    """Keeps the doubtful frames of a run in the model's bank; a context manager writes the last ones.

    Args:
        source: What the run reads; from a live one, frames are kept so seldom that they take 1 % of the time at most.
        model: The model of the run.
        path: The bank's file, to which a thread adds new frames every few seconds; None keeps them in memory only.
        say: Takes a line for the person at the device.
        clock: Seconds, never jumping back.
    """

    def __init__(
        self,
        source: Source,
        model: FewShotModel,
        path: Path | None,
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._model, self._say, self._clock = source, model, say, clock
        self._path = path
        self._is_failing = False
        self._free_s = self._write_s = 0.0
        self._due_s: dict[tuple[str, str], float] = {}  # by source and class
        self._new: list[ReviewItem] = []
        self._waiting = 0  # frames in the file that wait for a verdict, since this run has added some
        self._writer: threading.Thread | None = None

    def before(self, on_frame: OnFrame | None) -> OnFrame:
        """Return what `LiveRun` calls after each frame: `offer`, then `on_frame`."""

        def after_frame(frame: Frame, prediction: Prediction, statistics: RunStatistics) -> None:
            self.offer(frame, prediction)
            if on_frame is not None:
                on_frame(frame, prediction, statistics)

        return after_frame

    def offer(self, frame: Frame, prediction: Prediction) -> None:
        """Keep a frame if it is in doubt, and not too much time was spent on others; in the thread of the model."""
        now_s = self._clock()
        if now_s >= self._free_s:
            source = self._source.parts[frame.camera] if frame.camera else self._source
            is_live, fps = source.is_live, source.fps
            at_s = now_s if is_live else frame.index / (fps or _EVERY_S_OF_FILE)
            early = [name for (camera, name), due_s in self._due_s.items() if camera == frame.camera and at_s < due_s]
            added = self._model.review.note(frame.image, prediction, skip=early, wall_time_s=frame.wall_time_s)
            due_s = at_s + (_EVERY_S if is_live else _EVERY_S_OF_FILE)
            self._due_s.update(((frame.camera, item.name), due_s) for item in added)
            if is_live:
                self._free_s = now_s + _IDLE_RATIO * (self._clock() - now_s)
            if self._path is not None:
                self._new += added
        if self._new and now_s >= self._write_s and (self._writer is None or not self._writer.is_alive()):
            self._write_s = now_s + _WRITE_EVERY_S
            self._write()

    def __enter__(self) -> "DoubtKeeper":
        return self

    def __exit__(self, *_: object) -> None:
        """Write what is not yet in the file, and say how to judge it."""
        if self._writer is not None:
            self._writer.join()
        if self._new:
            self._write()
            assert self._writer is not None
            self._writer.join()
        if self._new and not self._is_failing:
            self._say(f"The last doubtful frames are not kept: another program is changing {self._path}.")
        if self._waiting:
            look = command_line("bank", "review", self._path, "--preview", "doubtful.png")
            self._say(f"Doubtful frames that wait for a verdict: {self._waiting}; see them with: {look}")

    def _write(self) -> None:
        new, self._new = tuple(self._new), []
        self._writer = threading.Thread(target=self._add_to_file, args=(new,), name="review", daemon=True)
        self._writer.start()

    def _add_to_file(self, new: ReviewItems) -> None:
        if self._path is None:
            return

        def added(bank: SupportBank) -> ReviewItems:
            items = bank.review
            for one in new:
                # Not of a class that is not saved yet, nor a frame that the page added with its verdict.
                if one.name in bank.classes and not any(other.is_same(one) for other in items):
                    items = with_item(items, one)
            return items

        try:
            bank = update_review(self._path, added, _BUSY_S)
        except BusyError:
            self._new[:0] = new  # for the next time
        except FsvitEdgeError as error:
            self._new[:0] = new[-_MOST_WAITING:]
            if not self._is_failing:  # said once: a full disk must not fill the log as well
                self._say(f"Doubtful frames cannot be kept, which is tried again: {error}")
            self._is_failing = True
        else:
            self._waiting = sum(one.verdict is None for one in bank.review)
            if self._is_failing:
                self._is_failing = False
                self._say("Doubtful frames are kept again.")
