"""What a verdict would teach the model, tried before it is kept."""

import secrets
from dataclasses import dataclass
from functools import partial

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.enrollment import score_next
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.review import Check, CheckedItem
from fsvit_edge.fewshot.review_items import ReviewItem, ReviewItems
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.page import false_alarms
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError

_CHANGED = "The classes changed; try again."


@dataclass(frozen=True)
class Trial:
    """A change that is not kept yet.

    Attributes:
        id: Of the trial; the latest one is the only one that can be kept.
        item: The frame that it learns from.
        check: What it alters on all verdicts.
        bank: The classes as it would leave them.
        revision: `LiveModel.revision` that it started from.
    """

    id: str
    item: ReviewItem
    check: Check
    bank: SupportBank
    revision: int


class Trials:
    """Tries changes, one at a time; a newer one takes the place of an older one.

    Args:
        model: The model of the run.
    """

    def __init__(self, model: LiveModel) -> None:
        self._model = model
        self._latest_id = ""
        self._trial: Trial | None = None

    def start(self, number: int) -> Trial:
        """Try to learn from a judged frame: as a negative of its class, or as a picture of it.

        The empty scene is scored and all verdicts are checked in requests of one frame each, so that the camera's
        picture goes on meanwhile.

        Args:
            number: Of the frame.

        Raises:
            InputError: There is no such frame, it has no verdict, or nothing can be learned from it.
            FsvitEdgeError: The classes changed meanwhile, a newer trial was started, or as `LiveModel.read`.
        """
        self._trial, self._latest_id = None, secrets.token_hex(8)
        started_id = self._latest_id

        def change(model: FewShotModel) -> tuple[ReviewItem, ReviewItems, SupportBank, int]:
            items = model.review.items
            item = next((one for one in items if one.number == number), None)
            if item is None or item.verdict is None:
                raise InputError(f"There is no frame {number} with a verdict; judge it first.")
            bank = model.bank_after(lambda model: _learn(model, item))
            return item, tuple(one for one in items if one.verdict is not None), bank, self._model.revision

        self._model.wait_for_scores()
        item, judged, bank, revision = self._model.read(change)

        def refuse_if_outdated() -> None:
            if self._latest_id != started_id:
                raise FsvitEdgeError("Another change is being tried now; try again.")
            if self._model.revision != revision:
                raise FsvitEdgeError(_CHANGED)

        def score(model: FewShotModel) -> bool:
            refuse_if_outdated()
            return score_next(model.network, bank)

        def check(one: ReviewItem, model: FewShotModel) -> CheckedItem:
            refuse_if_outdated()
            return model.review.check_item(one, bank)

        while self._model.read(score):
            pass
        checked = [self._model.read(partial(check, one)) for one in judged]
        trial = Trial(started_id, item, Check(tuple(checked)), bank, revision)
        if self._latest_id == started_id:
            self._trial = trial
        return trial

    def keep(self, model: FewShotModel, trial_id: str) -> None:
        """Take over the classes of a trial; only in a request of `LiveModel.update`.

        Raises:
            InputError: It is not the latest trial, or was kept or discarded already.
            FsvitEdgeError: The classes changed since it was made, or the verdict that it learned from.
        """
        trial = self._trial
        if trial is None or trial.id != trial_id:
            raise InputError("This change is no longer available; try it again.")
        self._trial = None
        if trial.revision != self._model.revision:
            raise FsvitEdgeError(_CHANGED)
        if not any(one.is_same(trial.item) and one.verdict == trial.item.verdict for one in model.review.items):
            raise FsvitEdgeError("The verdict that this was learned from has changed; try again.")
        trial.bank.review = model.bank.review  # frames and verdicts may have come since
        model.bank = trial.bank

    def discard(self, trial_id: str) -> None:
        """Forget a trial; one that is gone already is no error."""
        if self._latest_id == trial_id:
            self._latest_id, self._trial = "", None


def _learn(model: FewShotModel, item: ReviewItem) -> None:
    if item.verdict == "no":
        false_alarms.reject(model, item.name, item.picture, None)
    else:
        model.enroll(item.name, [item.picture])
