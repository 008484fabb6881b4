"""Which doubtful frames stay when there are too many, and what can be said of them."""

import pytest

from fsvit_edge.fewshot.review_items import (
    MAX_ITEMS,
    ReviewItem,
    ReviewItems,
    Verdict,
    with_item,
    with_judged,
    with_verdict,
    with_verdicts_of,
)
from fsvit_edge.runtime.errors import ArtifactError, InputError


def item(name: str = "cat") -> ReviewItem:
    return ReviewItem(0, name, 0.5, 0.25, 0.0, b"no picture")


def full() -> ReviewItems:
    items: ReviewItems = ()
    for _ in range(MAX_ITEMS):
        items = with_item(items, item())
    return items


def numbers(items: ReviewItems) -> list[int]:
    return [one.number for one in items]


def test_items_are_numbered_for_good() -> None:
    items = full()
    assert numbers(items) == list(range(50))
    assert numbers(with_item(items, item("dog"))) == list(range(1, 51))


def test_the_oldest_that_nobody_judged_goes_first() -> None:
    items = full()
    for number in (0, 1, 3):
        items = with_verdict(items, number, "no")
    items = with_item(with_item(items, item()), item())
    assert numbers(items) == [0, 1, 3, *range(5, 52)]
    assert [one.verdict for one in items[:4]] == ["no", "no", "no", None]


def test_a_full_review_of_verdicts_still_takes_new_frames() -> None:
    items = full()
    for number in range(50):
        items = with_verdict(items, number, "yes")
    items = with_item(with_item(items, item()), item())
    assert numbers(items) == [*range(1, 50), 51]  # one verdict went, and then the frame before


def test_a_verdict_can_be_changed_and_taken_back() -> None:
    items = with_item((), item())
    for verdict in ("yes", "no", None):
        items = with_verdict(items, 0, verdict)
        assert items[0].verdict == verdict
    assert items[0] == item()


@pytest.mark.parametrize(
    ("number", "verdict", "reason"),
    [
        (7, "yes", "The bank keeps doubtful frames 0 to 1, and none with number 7"),
        (-1, "yes", "none with number -1"),
        (0, "maybe", "A verdict must be yes or no, got 'maybe'."),
        (0, "", "A verdict must be yes or no, got ''."),
    ],
)
def test_an_impossible_verdict_is_refused(number: int, verdict: str, reason: str) -> None:
    items = with_item(with_item((), item()), item())
    with pytest.raises(InputError, match=reason):
        with_verdict(items, number, verdict)
    with pytest.raises(InputError, match="keeps no doubtful frames; collect"):
        with_verdict((), 0, "yes")


def test_a_damaged_picture_is_named() -> None:
    with pytest.raises(ArtifactError, match=r"The picture of review item 0 \('cat'\) cannot be read"):
        _ = item().picture


def judged(jpeg: bytes, verdict: Verdict | None, name: str = "cat", number: int = 0) -> ReviewItem:
    return ReviewItem(number, name, 0.5, 0.25, 0.0, jpeg, verdict)


def listed(items: ReviewItems) -> list[tuple[int, str, bytes, str | None]]:
    return [(one.number, one.name, one.jpeg, one.verdict) for one in items]


def test_a_verdict_finds_its_frame_by_class_and_picture() -> None:
    items = (judged(b"1", None, number=3), judged(b"2", None, number=4), judged(b"2", None, "dog", number=5))
    after = with_judged(items, judged(b"2", "no", number=77))
    assert [one.verdict for one in after] == [None, "no", None]
    assert listed(with_judged(items, judged(b"3", "yes")))[3:] == [(6, "cat", b"3", "yes")]
    assert with_judged(items, judged(b"3", None)) == items  # nothing to take back
    assert [one.verdict for one in with_judged(after, judged(b"2", None))] == [None, None, None]


def test_verdicts_of_others_are_taken_over() -> None:
    mine = (judged(b"1", None), judged(b"2", "yes", number=1), judged(b"3", None, number=2))
    theirs = (
        judged(b"1", "no", number=7),
        judged(b"2", "no", number=8),
        judged(b"3", None, number=9),
        judged(b"4", "yes", number=10),
        judged(b"5", None, number=11),
        judged(b"6", "yes", "gone", number=12),
    )
    assert listed(with_verdicts_of(mine, theirs, ("cat",))) == [
        (0, "cat", b"1", "no"),
        (1, "cat", b"2", "no"),
        (2, "cat", b"3", None),
        (3, "cat", b"4", "yes"),
    ]


def test_a_full_review_of_verdicts_loses_none_to_those_of_others() -> None:
    items: ReviewItems = ()
    for number in range(MAX_ITEMS):
        items = with_item(items, judged(bytes([number]), "yes"))
    theirs = (judged(b"theirs", "no"),)
    assert with_verdicts_of(items, theirs, ("cat",)) == items
    with_room = with_verdict(items, 7, None)
    assert with_verdicts_of(with_room, theirs, ("cat",))[-1].jpeg == b"theirs"  # the control
