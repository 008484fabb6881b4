"""The model of a run, used by the loop and changed by other threads while it runs."""

import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.bank import LevelSource, SupportBank
from fsvit_edge.fewshot.cached_support import ClassSupports
from fsvit_edge.fewshot.decide import PresenceOverTime
from fsvit_edge.fewshot.enrollment import score_next
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.review_items import ReviewItems
from fsvit_edge.fewshot.zones import Zone
from fsvit_edge.runtime.engines.choose import EngineChoice
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError

_Answer = TypeVar("_Answer")
_TIMEOUT_S = 30.0
PATIENCE_S = 600.0
"""For a thread that no person waits for."""
_MAX_WAITING = 8
_BUDGET_S = 0.25
"""For requests between two frames; one that takes longer is the last."""
_SHARE = 0.08
"""Of the time, for requests while frames come: clients that ask without a pause must not starve the camera."""
_SAVED_S, _OWED_S = 0.5, 2.0
"""Unused time of requests that is kept for later ones, and that one may use ahead, at most: longer ones are rare.

With 3 s, the request after a long one would wait 37 s, which is longer than anybody waits for one."""
_IDLE_S = 1.0
"""After so long without a frame there is none to hold up."""


@dataclass(frozen=True)
class Enrolled:
    """What is enrolled after a change: by class, in the order of enrollment."""

    supports: dict[str, ClassSupports]
    negatives: dict[str, ClassSupports]
    level_sources: dict[str, LevelSource]
    scene_frames: int  # pictures of the empty scene
    zones: tuple[Zone, ...]


class LiveModel:
    """Runs requests of other threads between two frames in the thread of the loop: a model is not thread-safe.

    The classes that a change leaves to be scored on the empty scene are scored on one picture after each frame: on all
    in one request, a large network would hold up the frames for 20 s.

    A lock would starve the other threads: if a frame is always waiting, the loop takes the lock again before they wake
    up. While frames come, requests and scores get a twelfth of the time. The caller closes the model.

    Args:
        model: The model.
        zones_of_run: Zones that replace those of the bank in every answer of the run, unless there are none.
        bank_origin: Where the classes come from if they are followed, and so cannot be changed here; safe to print.
    """

    box: None = None

    def __init__(self, model: FewShotModel, zones_of_run: tuple[Zone, ...] = (), bank_origin: str = "") -> None:
        self._model = model
        self.zones_of_run = zones_of_run
        self.bank_origin = bank_origin
        self._waiting: queue.Queue[tuple[Callable[[FewShotModel], Any], Future[Any], bool]] = queue.Queue(_MAX_WAITING)
        self._closed = threading.Event()
        model.scores_later = True
        self._enrolled = _enrolled(model)
        self._is_unscored = False
        self._revision = self._changes = 0
        self._left_s, self._counted_s, self._frame_s = _SAVED_S, time.monotonic(), -math.inf
        self._done = 0
        self._done_before_change = 0
        self._is_busy = False

    @property
    def name(self) -> str:
        """Name of the network."""
        return self._model.manifest.name

    @property
    def choice(self) -> EngineChoice:
        """The engine and precision that run it."""
        return self._model.choice

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the enrolled classes."""
        return tuple(self._enrolled.supports)

    @property
    def enrolled(self) -> Enrolled:
        """What is enrolled after the latest change; reading it does not wait for a frame."""
        return self._enrolled

    @property
    def scene_frames(self) -> int:
        """Pictures of the empty scene that the bank has."""
        return self._enrolled.scene_frames

    @property
    def review(self) -> ReviewItems:
        """The doubtful frames that are kept, oldest first; reading them does not wait for a frame."""
        return self._model.bank.review

    @property
    def changes(self) -> int:
        """Number of changes that were asked for so far; new scores on the empty scene are none."""
        return self._changes

    @property
    def revision(self) -> int:
        """Number of changes to the classes so far, and of times that their levels were scored after one."""
        return self._revision

    def predict(self, rgb: npt.NDArray[np.uint8], over_time: PresenceOverTime | None = None) -> Prediction:
        """Process one frame like `FewShotModel.predict`; only from the thread of the loop."""
        self._is_busy = True
        try:
            prediction = self._model.predict(rgb, over_time=over_time)
            return replace(prediction, zones=self.zones_of_run) if self.zones_of_run else prediction
        finally:
            self._is_busy = False
            self._done += 1
            self._frame_s = time.monotonic()

    @property
    def processing(self) -> int | None:
        """Number of the frame being processed; None if there is none."""
        return self._done if self._is_busy else None

    @property
    def steps(self) -> int:
        """Grows with each step of a frame's work."""
        return self._model.network.steps

    @property
    def is_first_frame(self) -> bool:
        """Whether no frame has been processed since the classes changed."""
        return self._done == self._done_before_change

    def run_requests(self) -> None:
        """Run the requests of other threads; only from the thread of the loop, between two frames."""
        started_s = time.monotonic()
        self._left_s = min(_SAVED_S, self._left_s + _SHARE * (started_s - self._counted_s))
        self._counted_s = started_s
        if started_s - self._frame_s > _IDLE_S:
            self._run_until(started_s + _BUDGET_S)
        elif self._left_s > 0:
            self._run_until(started_s + min(_BUDGET_S, self._left_s))
            self._left_s = max(-_OWED_S, self._left_s - (time.monotonic() - started_s))

    def _run_until(self, due_s: float) -> None:
        if self._is_unscored:
            score_next(self._model.network, self._model.bank)
            if not self._model.bank.unscored_frames:
                self._count_change()
        # Not those that come meanwhile: many short requests in a row must not hold up the frames, nor the end of a run.
        for count in range(self._waiting.qsize()):
            if count > 0 and time.monotonic() >= due_s:
                return
            try:
                request, answer, is_change = self._waiting.get_nowait()
            except queue.Empty:  # `close` has answered them
                return
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                result = self._change(request) if is_change else request(self._model)
                if is_change:
                    # Before the answer is set, so that the thread that waits for it sees the new classes.
                    self._count_change()
                    self._changes += 1
                    self._done_before_change = self._done
                answer.set_result(result)
            except Exception as error:  # any error belongs to the thread that asked, not to the loop
                answer.set_exception(error)

    def _count_change(self) -> None:
        self._enrolled, self._revision = _enrolled(self._model), self._revision + 1
        self._is_unscored = bool(self._model.bank.unscored_frames)

    def _change(self, request: Callable[[FewShotModel], _Answer]) -> _Answer:
        """Run a request on a copy of the classes, which counts only if nothing fails on the way."""
        answers: list[_Answer] = []
        self._model.bank = self._model.bank_after(lambda model: answers.append(request(model)))
        return answers[0]

    def read(self, request: Callable[[FewShotModel], _Answer], limit_s: float | None = None) -> _Answer:
        """Let the loop run a request that changes no class, and wait for its answer; from any other thread.

        Args:
            request: Takes the model.
            limit_s: How long to wait, at most; None: as long as a person would.

        Raises:
            FsvitEdgeError: The run has ended, or too many requests are waiting, or the time is over: then it never
                runs, unless it has begun, as the sentence says.
        """
        return self._ask(request, is_change=False, limit_s=limit_s)

    def update(self, request: Callable[[FewShotModel], _Answer]) -> _Answer:
        """Like `read`, for a request that changes the classes; if it fails, they stay as they were.

        Raises:
            InputError: As `refuse_changes`.
        """
        self.refuse_changes()
        return self._ask(request, is_change=True)

    def refuse_changes(self) -> None:
        """Raise an InputError if the classes cannot be changed here."""
        if self.bank_origin:
            raise InputError(
                f"The classes come from {self.bank_origin}, so they cannot be changed here; change that bank, and this "
                "run takes it over."
            )

    def replace_bank(self, bank: SupportBank) -> None:
        """Take over a bank of this model between two frames, also where people may not; raises like `read`."""
        self._ask(lambda model: model.use_bank(bank), is_change=True, limit_s=PATIENCE_S)

    def wait_for_scores(self) -> None:
        """Wait until the classes are scored on all of the empty scene; from any other thread. Raises like `read`."""
        left, due_s = 0, time.monotonic()
        while unscored := self.read(lambda model: len(model.bank.unscored_frames)):
            if unscored != left:  # it goes on
                left, due_s = unscored, time.monotonic() + _TIMEOUT_S
            if time.monotonic() >= due_s:
                raise FsvitEdgeError("The classes are still being compared with the empty scene; try again.")

    def _ask(
        self, request: Callable[[FewShotModel], _Answer], is_change: bool, limit_s: float | None = None
    ) -> _Answer:
        answer: Future[_Answer] = Future()
        limit_s, room_s = (_TIMEOUT_S, 0.0) if limit_s is None else (limit_s, limit_s)
        if self._closed.is_set():
            raise FsvitEdgeError("The run has ended; start it again.")
        try:
            self._waiting.put((request, answer, is_change), timeout=room_s)
        except queue.Full:
            raise FsvitEdgeError("Too many requests are waiting for the model; try again in a moment.") from None
        if self._closed.is_set() and answer.cancel():  # since the check above; `close` may not have seen this one
            raise FsvitEdgeError("The run has ended; start it again.")
        try:
            return answer.result(limit_s)
        except FutureTimeoutError:
            if answer.cancel():
                raise FsvitEdgeError(f"The model was busy for {limit_s:g} s; try again.") from None
            if answer.done():  # just now
                return answer.result()
            raise FsvitEdgeError(
                f"The model has not finished this within {limit_s:g} s, but still may; look later whether it did."
            ) from None

    def close(self) -> None:
        """Refuse all waiting and future requests, because the loop has ended."""
        self._closed.set()
        while True:
            try:
                _, answer, _ = self._waiting.get_nowait()
            except queue.Empty:
                return
            if answer.set_running_or_notify_cancel():  # not one that timed out
                answer.set_exception(FsvitEdgeError("The run has ended; start it again."))


def _enrolled(model: FewShotModel) -> Enrolled:
    names, bank = model.classes, model.bank
    return Enrolled(
        supports={name: bank.supports(name) for name in names},
        negatives={name: tuple(one.support for one in bank.negatives(name)) for name in names},
        level_sources={name: bank.level_source(name) for name in names},
        scene_frames=len(bank.scene),
        zones=bank.zones,
    )
