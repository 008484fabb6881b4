import numpy as np
import pytest

from fsvit_edge.runtime.box_mask import mask_from_box
from fsvit_edge.runtime.outlines import objectness_weight, recognized
from fsvit_edge.runtime.thing_mask import thing_in_box, thing_of_name

SIDE = 64
SURE = 5.0


def square(top: int, left: int, size: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[top : top + size, left : left + size] = True
    return mask


def told(*things: np.ndarray) -> np.ndarray:
    return np.where(np.any(things, axis=0), SURE, -SURE).astype(np.float32)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_objectness_counts_fully_for_a_thing_and_not_at_all_for_stuff() -> None:
    thing, picture = square(16, 16, 24), np.zeros((SIDE, SIDE), np.bool_)

    assert objectness_weight(told(thing), thing) == 1.0
    assert objectness_weight(told(picture), square(40, 0, 24)) == 0.0
    road = ~square(16, 16, 24)  # around a thing that stands on it
    assert objectness_weight(told(thing), road) == 0.0
    assert objectness_weight(told(thing), picture) == 0.0


def test_a_half_known_thing_counts_in_part_and_more_is_never_less() -> None:
    mask = square(8, 8, 40)
    weights = [objectness_weight(told(square(8, 8, size)), mask) for size in range(0, 41, 4)]

    assert weights == sorted(weights)
    assert any(0 < weight < 1 for weight in weights)


def test_the_weight_does_not_depend_on_the_mask_s_resolution() -> None:
    mask = square(8, 8, 40)
    large = mask.repeat(5, axis=0).repeat(7, axis=1)

    assert objectness_weight(told(square(8, 8, 28)), large) == objectness_weight(told(square(8, 8, 28)), mask)


def test_a_name_means_the_thing_that_the_guess_covers() -> None:
    thing, guess = square(20, 20, 16), square(12, 12, 36)

    assert iou(thing_of_name(told(thing), guess), thing) > 0.95
    assert iou(guess, thing) < 0.25


@pytest.mark.parametrize(
    "objectness",
    [
        pytest.param(told(square(0, 0, 16)), id="a thing elsewhere"),
        pytest.param(told(square(0, 0, 0)), id="no thing"),
        pytest.param(told(square(20, 20, 4)), id="a speck"),
    ],
)
def test_the_guess_stays_where_objectness_does_not_agree(objectness: np.ndarray) -> None:
    guess = square(16, 16, 40)

    assert np.array_equal(thing_of_name(objectness, guess), guess)


def test_a_box_means_the_thing_inside_it_and_nothing_outside() -> None:
    thing, box = square(20, 20, 24), (18, 18, 48, 48)
    ellipse = mask_from_box((SIDE, SIDE), box)
    found = thing_in_box(told(thing, square(50, 50, 12)), ellipse, box)

    assert iou(found, thing) > 0.9 > iou(ellipse, thing)
    assert not found[48:].any()


def test_the_ellipse_stays_where_the_box_holds_next_to_no_thing() -> None:
    box = (8, 8, 56, 56)
    ellipse = mask_from_box((SIDE, SIDE), box)

    assert np.array_equal(thing_in_box(told(square(20, 20, 8)), ellipse, box), ellipse)


def test_objectness_that_does_not_know_the_thing_in_this_frame_is_left_out() -> None:
    here, elsewhere = square(8, 8, 20), square(40, 40, 20)
    foreground = np.where(np.stack([here, elsewhere, here | elsewhere]), 0.9, 0.1).astype(np.float32)

    assert recognized(foreground, told(here)).tolist()[:2] == [1.0, 0.0]
    assert recognized(foreground, told(here, elsewhere)).tolist() == [1.0, 1.0, 1.0]
    assert recognized(foreground[:0], told(here)).shape == (0,)
