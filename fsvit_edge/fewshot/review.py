"""Review: doubtful frames are kept, a person judges them, and every change is held to the verdicts.

The answers of an item are those of its kept picture, not of the frame that it was made from: a JPEG of the encoder's
size scores a little differently (0.6 in log-odds in one case), so an answer close to its level would seem to change
although nothing did.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.cached_support import ClassSupports, share_a_picture
from fsvit_edge.fewshot.decide import above_level
from fsvit_edge.fewshot.overlay import PALETTE
from fsvit_edge.fewshot.picture_sheet import SHEET_PX, captioned, sheet_of
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.review_items import ReviewItem, ReviewItems, Verdict, with_item, with_judged, with_verdict
from fsvit_edge.fewshot.scene import decode_frame, decode_jpeg, encode_frame
from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.runtime.presence_level import distinct_texts
from fsvit_edge.runtime.storage import editing

_DOUBT_MARGIN = 1.0
"""How close to its level, in log-odds, a score is doubtful."""
_SAME_CELLS = 16
_SAME_LEVELS = 32
"""Two pictures are the same if no cell of 16 x 16 differs by more than this many gray levels: in a video of bottles,
changing light and a shaking camera gave up to 26, and a hand at the edge 80."""

BUSY_S = 3.0
"""How long a person at the page waits for another process that changes the bank."""

Predict = Callable[[Image, Sequence[SupportBank]], list[Prediction]]


@dataclass(frozen=True)
class CheckedItem:
    """A judged item and what the model answers to it.

    Attributes:
        item: The item.
        score_before: P(present) before, in [0, 1].
        was_present: The answer before.
        score: P(present) after, in [0, 1]; 0 if the class was removed.
        is_present: The answer after; False if the class was removed.
    """

    item: ReviewItem
    score_before: float
    was_present: bool
    score: float
    is_present: bool

    @property
    def has_changed(self) -> bool:
        """Whether the answer is another than before."""
        return self.was_present != self.is_present

    @property
    def contradicts(self) -> bool:
        """Whether the answer contradicts the verdict."""
        return self.is_present != (self.item.verdict == "yes")

    def to_dict(self) -> dict[str, Any]:
        """All of it but the picture, as plain values for JSON."""
        return {
            "number": self.item.number,
            "name": self.item.name,
            "verdict": self.item.verdict,
            "wall_time_s": round(self.item.wall_time_s, 3),
            "score_before": round(self.score_before, 4),
            "present_before": self.was_present,
            "score": round(self.score, 4),
            "present": self.is_present,
            "has_changed": self.has_changed,
            "contradicts": self.contradicts,
        }


@dataclass(frozen=True)
class Check:
    """What `Review.check` found; `str()` says it in a line, such as "Answers that change: 2 of 31; that ...: 0.".

    Those that contradict their verdict and do not change are counted apart, because no list of changes has them.

    Attributes:
        items: All items with a verdict, oldest first.
    """

    items: tuple[CheckedItem, ...]

    @property
    def changed(self) -> tuple[CheckedItem, ...]:
        """The items whose answer is another than before."""
        return tuple(one for one in self.items if one.has_changed)

    @property
    def contradicting(self) -> tuple[CheckedItem, ...]:
        """The items whose answer contradicts the verdict."""
        return tuple(one for one in self.items if one.contradicts)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        counts = {"checked": len(self.items), "changed": len(self.changed), "contradicting": len(self.contradicting)}
        return {**counts, "items": [one.to_dict() for one in self.items]}

    def __str__(self) -> str:
        if not self.items:
            return "There are no verdicts to check."
        as_before = sum(not one.has_changed for one in self.contradicting)
        contradicting = f"{len(self.contradicting)}" + (f", of them {as_before} as before" if as_before else "")
        changed = f"{len(self.changed)} of {len(self.items)}"
        return f"Answers that change: {changed}; that contradict their verdict: {contradicting}."


class Review:
    """The doubtful frames of a bank, what a person said of them, and whether the answers agree with it.

    `FewShotModel.review` makes one; it changes the model's bank.

    Args:
        bank: Keeps the frames.
        image_size: The encoder's input size.
        predict: `FewShotModel.predict_with`.
    """

    def __init__(self, bank: SupportBank, image_size: int, predict: Predict) -> None:
        self._bank, self._image_size, self._predict = bank, image_size, predict

    @property
    def items(self) -> ReviewItems:
        """The kept frames, oldest first."""
        return self._bank.review

    def note(
        self,
        rgb: Image,
        prediction: Prediction,
        skip: Collection[str] = (),
        wall_time_s: float | None = None,
    ) -> tuple[ReviewItem, ...]:
        """Keep a frame for each class that its answer leaves in doubt, see `doubts`.

        A frame that looks like one that is kept for the class already is not kept again. Without a doubt, this takes
        some microseconds; a frame that is kept costs a run of the network. If there are 50 items, the oldest goes that
        no person has judged.

        Args:
            rgb: (H, W, 3) uint8 RGB.
            prediction: The answer for it.
            skip: Classes for which no frame is wanted now.
            wall_time_s: When the frame was captured, in seconds since 1970; None: now.

        Returns:
            The new items.
        """
        names = [name for name in doubts(prediction) if name not in skip and name in self._bank.classes]
        if not names:
            return ()
        jpeg = encode_frame(rgb, self._image_size)
        cells = _cells(jpeg)
        names = [name for name in names if not any(_alike(cells, _cells(one.jpeg)) for one in self._items_of(name))]
        if not names:
            return ()
        (answer,) = self._predict(decode_frame(jpeg), [self._bank])
        made_s = time.time() if wall_time_s is None else wall_time_s
        added = []
        for name in names:
            way = answer.classes.index(name)
            score, level = float(answer.scores[way]), float(answer.levels[way])
            item = ReviewItem(0, name, min(max(score, 0.0), 1.0), level, made_s, jpeg)
            self._bank.review = with_item(self._bank.review, item)
            added.append(self._bank.review[-1])
        return tuple(added)

    def judge(self, number: int, verdict: Verdict | None) -> ReviewItem:
        """Set what a person said of an item, and return the item.

        Args:
            number: `ReviewItem.number`.
            verdict: "yes": the class is there, "no": it is not; None takes a verdict back.

        Raises:
            InputError: There is no item of this number, or the verdict is another word.
        """
        self._bank.review = with_verdict(self._bank.review, number, verdict)
        return next(one for one in self.items if one.number == number)

    def check(self, bank: SupportBank | None = None) -> Check:
        """Answer every judged item again, and compare.

        Args:
            bank: A changed bank, as `FewShotModel.bank_after` makes it: its answers are compared with those of the
                present bank. None compares the answers of the present bank with those when the frames were kept.

        Raises:
            ArtifactError: A kept picture cannot be read.
        """
        return Check(tuple(self.check_item(item, bank) for item in self.items if item.verdict is not None))

    def check_item(self, item: ReviewItem, bank: SupportBank | None = None) -> CheckedItem:
        """Answer one item again, as `check` does for all that are judged."""
        if bank is None:
            (after,) = self._predict(item.picture, [self._bank])
            before = (item.score, item.was_present)
        else:
            first, after = self._predict(item.picture, [self._bank, bank])
            before = _answer(first, item.name)
        return CheckedItem(item, *before, *_answer(after, item.name))

    def _items_of(self, name: str) -> ReviewItems:
        return tuple(one for one in self.items if one.name == name)


def doubts(prediction: Prediction) -> tuple[str, ...]:
    """Return the classes that the answer for a frame leaves in doubt.

    These score within 1 of their level, in log-odds, or a surer class claims most of their pixels.
    """
    doubtful = np.abs(above_level(prediction.scores, prediction.levels)) < _DOUBT_MARGIN
    if prediction.contested is not None:
        doubtful |= prediction.contested
    return tuple(name for name, is_doubtful in zip(prediction.classes, doubtful, strict=True) if is_doubtful)


def update_review(
    path: Path, change: Callable[[SupportBank], ReviewItems], limit_s: float | None = None
) -> SupportBank:
    """Change the items in a bank's file, and return the bank.

    One process does this at a time: otherwise a run that adds frames could undo a verdict that was given meanwhile.

    Args:
        path: The file.
        change: Returns the new items of the bank that it gets.
        limit_s: How long to wait for another process that changes the bank; None: as long as it takes.

    Raises:
        BusyError: It takes longer.
        ArtifactError: The file is missing or damaged.
        FsvitEdgeError: The disk is full or the folder is not writable; the file is unchanged.
    """
    with editing(path, limit_s=limit_s) as check_unchanged:
        bank = SupportBank.load(path)
        bank.review = change(bank)
        check_unchanged()
        bank.save(path)
    return bank


def store_verdict(path: Path, judged: ReviewItem, supports: ClassSupports) -> bool:
    """Write the verdict of an item to a bank's file, in which its number may be another one.

    Args:
        path: The file.
        judged: The item.
        supports: Of its class: a class of the same name without any of these pictures is another one.

    Returns:
        False if there is no file yet or it does not have the class; it is then unchanged.

    Raises:
        BusyError: Another process has been changing the bank for `BUSY_S`.
        ArtifactError: The file is damaged.
        FsvitEdgeError: The disk is full or the folder is not writable; the file is unchanged.
    """
    with editing(path, limit_s=BUSY_S) as check_unchanged:
        bank = SupportBank.load(path) if path.is_file() else None
        if bank is None or judged.name not in bank.classes:
            return False
        if not share_a_picture(bank.supports(judged.name), supports):
            return False
        bank.review = with_judged(bank.review, judged)
        check_unchanged()
        bank.save(path)
    return True


def draw_review(items: Sequence[ReviewItem], classes: Sequence[str]) -> Image:
    """Draw items on one sheet, each with its number, class, answer and verdict; (H, W, 3) uint8 RGB.

    Args:
        items: At least one.
        classes: All classes of the bank, in its order, by which they are colored everywhere.
    """
    cells = []
    for one in items:
        picture = np.asarray(cv2.resize(one.picture, (SHEET_PX, SHEET_PX), interpolation=cv2.INTER_AREA), np.uint8)
        score, level = distinct_texts(one.score, one.level)
        answer = f"{'present' if one.was_present else 'absent'}, {score} (level {level})"
        title = (f"{one.number}: {one.name}", classes.index(one.name) % len(PALETTE))
        cells.append(captioned(picture, [title, (answer, None), (f"verdict: {one.verdict or 'none yet'}", None)]))
    return sheet_of(cells)


def _answer(prediction: Prediction, name: str) -> tuple[float, bool]:
    """Score and presence of a class; one that is not enrolled is absent."""
    if name not in prediction.classes:
        return 0.0, False
    way = prediction.classes.index(name)
    return float(prediction.scores[way]), bool(prediction.present[way])


def _cells(jpeg: bytes) -> npt.NDArray[np.int16] | None:
    """The picture in 16 x 16 cells, None if it cannot be read; decoding an eighth of it is several times faster."""
    small = decode_jpeg(jpeg, cv2.IMREAD_REDUCED_COLOR_8)
    if small is None:
        return None
    return np.asarray(cv2.resize(small, (_SAME_CELLS, _SAME_CELLS), interpolation=cv2.INTER_AREA), np.int16)


def _alike(one: npt.NDArray[np.int16] | None, other: npt.NDArray[np.int16] | None) -> bool:
    return one is not None and other is not None and bool(np.abs(one - other).max() <= _SAME_LEVELS)
