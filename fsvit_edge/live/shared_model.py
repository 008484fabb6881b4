"""One model, driven by the loop, that others change while it runs."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.cached_support import CachedSupport
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.prediction import Prediction
from fsvit_edge.runtime.predictor import FewShotModel

_Answer = TypeVar("_Answer")
_MOST_WAITING = 8
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class ModelDescription:
    """What judges.

    Attributes:
        name: Of the network.
        engine: What computes.
        precision: What it computes in.
    """

    name: str
    engine: str
    precision: str


class LiveModel:
    """Requests of other threads run between two frames in the loop's thread, for a model is not made for two at once.

    A lock would starve them: where a frame is always waiting, the loop takes the lock again before anybody wakes up.

    Args:
        model: The model; it stays its opener's to close.
    """

    def __init__(self, model: FewShotModel) -> None:
        self._model = model
        self._waiting: queue.Queue[tuple[Callable[[FewShotModel], Any], Future[Any], bool]] = queue.Queue(_MOST_WAITING)
        self._closed = threading.Event()
        self._supports = _supports(model)
        self._revision = 0
        self._judged = 0
        self._judged_before_change = 0
        self._is_judging = False

    @property
    def description(self) -> "ModelDescription":
        """What judges."""
        choice = self._model.choice
        return ModelDescription(self._model.manifest.name, choice.engine, choice.precision)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the enrolled classes."""
        return tuple(self._supports)

    @property
    def supports(self) -> dict[str, tuple[CachedSupport, ...]]:
        """The supports of each class as of the latest change, to be read only; nobody waits for a frame to see them."""
        return self._supports

    @property
    def revision(self) -> int:
        """Counts the changes: what was learned of the classes before is out of date."""
        return self._revision

    def predict(self, rgb: npt.NDArray[np.uint8]) -> Prediction:
        """Judge one frame; see `FewShotModel.predict`. The loop's thread only."""
        self._is_judging = True
        try:
            return self._model.predict(rgb)
        finally:
            self._is_judging = False
            self._judged += 1

    @property
    def processing(self) -> int | None:
        """The number of the frame that is being judged; None where none is."""
        return self._judged if self._is_judging else None

    @property
    def is_first_frame(self) -> bool:
        """Whether none was judged before it by the classes as they are now."""
        return self._judged == self._judged_before_change

    def run_requests(self) -> None:
        """Do what other threads have asked for. The loop's thread only, between two frames."""
        while True:
            try:
                request, answer, is_change = self._waiting.get_nowait()
            except queue.Empty:
                return
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                result = request(self._model)
                if is_change:
                    # Before the answer is known, so that whoever waits for it finds its outcome.
                    self._supports, self._revision = _supports(self._model), self._revision + 1
                    self._judged_before_change = self._judged
                answer.set_result(result)
            except Exception as error:  # whatever it is, it belongs to the one who asked, not to the loop
                answer.set_exception(error)

    def read(self, request: Callable[[FewShotModel], _Answer], timeout_s: float = _TIMEOUT_S) -> _Answer:
        """Have the loop do something with the model that changes no class, and wait for it. Any other thread.

        Args:
            request: Is given the model; frames wait meanwhile.
            timeout_s: Seconds to wait; a request that has not begun by then is never done.

        Returns:
            What the request returns.

        Raises:
            FsvitEdgeError: The run has ended, too many requests wait, or the time is over.
        """
        return self._ask(request, timeout_s, is_change=False)

    def update(self, request: Callable[[FewShotModel], _Answer], timeout_s: float = _TIMEOUT_S) -> _Answer:
        """The same for a request that changes the classes; see `look`."""
        return self._ask(request, timeout_s, is_change=True)

    def _ask(self, request: Callable[[FewShotModel], _Answer], timeout_s: float, is_change: bool) -> _Answer:
        answer: Future[_Answer] = Future()
        if self._closed.is_set():
            raise FsvitEdgeError("The run has ended; start it again.")
        try:
            self._waiting.put_nowait((request, answer, is_change))
        except queue.Full:
            raise FsvitEdgeError("Too many requests wait for the model; try again in a moment.") from None
        try:
            return answer.result(timeout_s)
        except FutureTimeoutError:
            answer.cancel()
            raise FsvitEdgeError(f"The model did not get to it within {timeout_s:g} s; try again.") from None

    def close(self) -> None:
        """Refuse what waits and what comes, for the loop has ended."""
        self._closed.set()
        while True:
            try:
                _, answer, _ = self._waiting.get_nowait()
            except queue.Empty:
                return
            answer.set_exception(FsvitEdgeError("The run has ended; start it again."))


def _supports(model: FewShotModel) -> dict[str, tuple[CachedSupport, ...]]:
    return {name: model.bank.supports(name) for name in model.classes}
