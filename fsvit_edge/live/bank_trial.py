"""A bank that comes from elsewhere, tried by the model that shall use it before it answers a frame."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.enrollment import score_next
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.review import Review
from fsvit_edge.fewshot.review_items import ReviewItem
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, InputError

_Answer = TypeVar("_Answer")


class BankRefusedError(FsvitEdgeError):
    """The bank itself cannot be used, and asking again for the same one would not help."""


class Ask(Protocol):
    """Runs requests on a model, as `LiveModel.read`."""

    def __call__(self, request: Callable[[FewShotModel], _Answer]) -> _Answer:
        """Return the answer to a request, which should take no longer than a frame."""


def try_bank(path: Path, ask: Ask) -> SupportBank:
    """Read a bank and score its classes on its empty scene, frame by frame.

    Raises:
        BankRefusedError: It is damaged, of another encoder, or has too many classes.
        FsvitEdgeError: As `ask`.
    """
    try:
        bank = SupportBank.load(path, *ask(lambda model: model.rules_of_banks))
        ask(lambda model: model.network.check_ways(len(bank.classes)))
    except (ArtifactError, InputError) as error:
        raise BankRefusedError(str(error)) from error
    while ask(lambda model: score_next(model.network, bank)):
        pass
    return bank


def check_verdicts(bank: SupportBank, ask: Ask) -> None:
    """Answer the frames with a verdict that a bank keeps, each in a request of its own.

    Raises:
        BankRefusedError: An answer contradicts its verdict, or a frame cannot be read.
        FsvitEdgeError: As `ask`.
    """

    def contradicts(item: ReviewItem) -> bool:
        def check(model: FewShotModel) -> bool:
            return Review(bank, model.manifest.image_size, model.predict_with).check_item(item).contradicts

        return ask(check)

    judged = [item for item in bank.review if item.verdict is not None]
    try:
        wrong = [str(item.number) for item in judged if contradicts(item)]
    except ArtifactError as error:
        raise BankRefusedError(str(error)) from error
    if wrong:
        raise BankRefusedError(
            f"its answers here contradict {len(wrong)} of its {len(judged)} verdicts ({', '.join(wrong):.80}); see: "
            "fsvit-edge bank check"
        )
