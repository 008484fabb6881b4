"""The doubtful frames that a bank keeps for a person to judge, in memory and in the bank's file."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.names import quoted
from fsvit_edge.fewshot.scene import decode_frame, read_jpeg
from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.presence_level import check_level

MAX_ITEMS = 50
_END_OF_TIME_S = 2.5e11  # after the year 9,000 no calendar function works
Verdict = Literal["yes", "no"]
_KEY = "review"
_FACTS = ("number", "name", "score", "level", "wall_time_s", "verdict")


@dataclass(frozen=True)
class ReviewItem:
    """A frame in which the model was not sure of a class.

    Attributes:
        number: Of the item in its bank; it stays the same while others come and go.
        name: The class.
        score: P(present) of the class on the kept picture when it was kept, in [0, 1].
        level: The score above which the class was present then, in (0, 1).
        wall_time_s: When it was captured, in seconds since 1970 (UTC).
        jpeg: The frame as a JPEG of the encoder's input size.
        verdict: What a person said: "yes", the class is there; "no"; None: nothing yet.
    """

    number: int
    name: str
    score: float
    level: float
    wall_time_s: float
    jpeg: bytes
    verdict: Verdict | None = None

    @property
    def was_present(self) -> bool:
        """What the model answered when the frame was kept."""
        return self.score > self.level

    def is_same(self, other: "ReviewItem") -> bool:
        """Whether it is the same picture for the same class; in another bank, its number may be another one."""
        return self.name == other.name and self.jpeg == other.jpeg

    def to_dict(self) -> dict[str, Any]:
        """Everything but the picture, as plain values for JSON."""
        return {
            "number": self.number,
            "name": self.name,
            "verdict": self.verdict,
            "score": round(self.score, 8),  # doubtful ones are close to their level
            "level": round(self.level, 8),
            "present": self.was_present,
            "wall_time_s": round(self.wall_time_s, 3),
        }

    @property
    def picture(self) -> Image:
        """The kept picture, (S, S, 3) uint8 RGB; an ArtifactError if it cannot be read."""
        try:
            return decode_frame(self.jpeg)
        except ArtifactError as error:
            raise ArtifactError(
                f"The picture of review item {self.number} ({quoted(self.name)}) cannot be read; use a copy of "
                "the bank."
            ) from error


ReviewItems = tuple[ReviewItem, ...]
"""Oldest first, with rising numbers."""


def with_item(items: ReviewItems, item: ReviewItem) -> ReviewItems:
    """Add an item, which gets the next number. If there are too many, the oldest goes that no person has judged."""
    kept = list(items)
    if len(kept) >= MAX_ITEMS:
        kept.pop(next((place for place, one in enumerate(kept) if one.verdict is None), 0))
    return (*kept, replace(item, number=items[-1].number + 1 if items else 0))


def with_verdict(items: ReviewItems, number: int, verdict: Verdict | None) -> ReviewItems:
    """Set what a person said of an item; an InputError if there is none of this number, or no such verdict."""
    if verdict is not None and verdict not in get_args(Verdict):
        raise InputError(f"A verdict must be {' or '.join(get_args(Verdict))}, got {verdict!r:.40}.")
    if not items:
        raise InputError("The bank keeps no doubtful frames; collect some with: fsvit-edge run --review.")
    if all(one.number != number for one in items):
        raise InputError(
            f"The bank keeps doubtful frames {items[0].number} to {items[-1].number}, and none with number {number}; "
            "it may have made room for a newer one."
        )
    return tuple(replace(one, verdict=verdict) if one.number == number else one for one in items)


def with_judged(items: ReviewItems, judged: ReviewItem) -> ReviewItems:
    """Take over the verdict of an item, whose number may be another one here; add the item if it is not here."""
    if any(one.is_same(judged) for one in items):
        return tuple(replace(one, verdict=judged.verdict) if one.is_same(judged) else one for one in items)
    return items if judged.verdict is None else with_item(items, judged)


def with_verdicts_of(items: ReviewItems, others: ReviewItems, classes: Collection[str]) -> ReviewItems:
    """Take over the verdicts of other items; those that have none change nothing.

    Args:
        items: They keep their verdicts where others have none.
        others: From the bank's file; those of other classes do not count.
        classes: Names of the classes that both have.
    """
    for other in others:
        if other.verdict is None or other.name not in classes:
            continue
        has_room = len(items) < MAX_ITEMS or any(one.verdict is None for one in items)
        if has_room or any(one.is_same(other) for one in items):
            items = with_judged(items, other)
    return items


def review_header(items: ReviewItems) -> dict[str, Any]:
    """The part of a bank's header that describes the items; nothing if there are none."""
    return {_KEY: [{fact: getattr(one, fact) for fact in _FACTS} for one in items]} if items else {}


def review_tensors(items: ReviewItems) -> dict[str, npt.NDArray[np.uint8]]:
    """The pictures of the items, named by their place."""
    return {f"{_KEY}.{place}": np.frombuffer(one.jpeg, np.uint8) for place, one in enumerate(items)}


def read_review(
    path: Path, header: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]], classes: Sequence[str]
) -> ReviewItems:
    """Read the items of a bank's file.

    Raises:
        ArtifactError: A picture or a fact is missing, or a fact makes no sense.
    """
    listed = header.get(_KEY, [])
    if not isinstance(listed, list) or len(listed) > MAX_ITEMS:
        raise ArtifactError(f"Bank {path} is damaged: its review is not a list of at most {MAX_ITEMS} items.")
    items: list[ReviewItem] = []
    for place, facts in enumerate(listed):
        last = items[-1].number if items else -1
        if not isinstance(facts, dict) or facts.keys() != set(_FACTS) or not _make_sense(facts, last, classes):
            raise ArtifactError(f"Bank {path} is damaged: item {place} of its review is {facts!r:.120}.")
        items.append(ReviewItem(**facts, jpeg=read_jpeg(path, tensors, f"{_KEY}.{place}")))
    return tuple(items)


def _make_sense(facts: Mapping[str, Any], last_number: int, classes: Sequence[str]) -> bool:
    try:
        check_level(facts["level"])
    except InputError:
        return False
    score, time_s = facts["score"], facts["wall_time_s"]
    return (
        type(facts["number"]) is int
        and facts["number"] > last_number
        and facts["name"] in classes
        and type(score) in (int, float)
        and 0 <= score <= 1
        and type(time_s) in (int, float)
        and 0 <= time_s < _END_OF_TIME_S
        and (facts["verdict"] is None or facts["verdict"] in get_args(Verdict))
    )
