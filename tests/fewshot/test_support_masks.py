import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fsvit_edge.fewshot.support_masks import mask_from_box, support_window, thing_in_box, thing_of_name
from fsvit_edge.runtime.errors import InputError

HD = (720, 1280)
FACTORS = st.sampled_from((1.0, 1.5, 2.0, 2.5, 3.0, 8.0))


def square(top: int, left: int, size: int, hw: tuple[int, int] = (64, 64)) -> np.ndarray:
    mask = np.zeros(hw, np.bool_)
    mask[top : top + size, left : left + size] = True
    return mask


def objectness_of(*things: np.ndarray) -> np.ndarray:
    """Logits that mark these things."""
    return np.where(np.any(things, axis=0), 5.0, -5.0).astype(np.float32)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("box", [(10, 5, 50, 35), (10, 5, 51, 36), (0, 0, 60, 40), (3, 3, 13, 14)])
def test_the_ellipse_touches_the_four_sides_of_its_box_and_stays_inside(box: tuple[int, int, int, int]) -> None:
    mask = mask_from_box((40, 60), box)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == box
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert 0.6 * area < mask.sum() <= area


def test_a_box_is_cut_off_at_the_edges_of_the_picture() -> None:
    assert np.array_equal(mask_from_box((40, 60), (-20, -9, 30, 400)), mask_from_box((40, 60), (0, 0, 30, 40)))


@pytest.mark.parametrize("box", [(10, 10, 10, 30), (30, 10, 10, 30), (70, 0, 90, 40), (0, 0, 3, 40), (-9, 0, 2, 40)])
def test_a_box_with_next_to_nothing_in_it_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(
        InputError, match=r"contains less than 4 x 4 pixels of the 60 x 40 picture; draw a larger one; a box is left"
    ):
        mask_from_box((40, 60), box)


def test_a_name_means_the_thing_that_the_guess_covers() -> None:
    thing, guess = square(20, 20, 16), square(12, 12, 36)

    assert iou(thing_of_name(objectness_of(thing), guess), thing) > 0.95
    assert iou(guess, thing) < 0.25


@pytest.mark.parametrize("thing", [square(0, 0, 16), square(0, 0, 0), square(20, 20, 4)])  # elsewhere, none, a speck
def test_the_guess_stays_if_objectness_does_not_agree(thing: np.ndarray) -> None:
    guess = square(16, 16, 40)
    assert np.array_equal(thing_of_name(objectness_of(thing), guess), guess)


def test_a_box_means_the_thing_inside_it_and_nothing_outside() -> None:
    thing, box = square(20, 20, 24), (18, 18, 48, 48)
    ellipse = mask_from_box((64, 64), box)
    found = thing_in_box(objectness_of(thing, square(50, 50, 12)), ellipse, box)

    assert iou(found, thing) > 0.9 > iou(ellipse, thing)
    assert not found[48:].any()


def test_the_ellipse_stays_if_objectness_marks_almost_nothing_in_the_box() -> None:
    box = (8, 8, 56, 56)
    ellipse = mask_from_box((64, 64), box)

    assert np.array_equal(thing_in_box(objectness_of(square(20, 20, 8)), ellipse, box), ellipse)


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """A picture's size and a rectangle in it, which may be one pixel or all of it."""
    height, width = draw(st.integers(1, 400)), draw(st.integers(1, 400))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    mask = np.zeros((height, width), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def sizes(window: tuple[slice, slice]) -> tuple[int, int]:
    rows, columns = window
    return rows.stop - rows.start, columns.stop - columns.start


@given(masks(), FACTORS)
def test_a_window_is_in_the_picture_around_the_whole_thing_and_of_the_pictures_aspect(
    mask: np.ndarray, factor: float
) -> None:
    window = support_window(mask, factor)
    assume(window is not None)
    assert window is not None
    for span, length in zip(window, mask.shape, strict=True):
        assert 0 <= span.start < span.stop <= length
        assert span.step is None
    assert mask[window].sum() == mask.sum()
    shares = [size / length for size, length in zip(sizes(window), mask.shape, strict=True)]
    assert abs(shares[0] - shares[1]) <= 0.5 / mask.shape[0] + 0.5 / mask.shape[1] + 1e-9


@given(masks(), FACTORS)
def test_a_window_is_factor_times_the_thing_but_never_under_32_pixels(mask: np.ndarray, factor: float) -> None:
    window = support_window(mask, factor)
    spans = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    share = max((span[-1] - span[0] + 1) / length for span, length in zip(spans, mask.shape, strict=True))
    side = max(factor * share, 32 / min(mask.shape))
    found = mask.shape if window is None else sizes(window)
    wanted = [length if side >= 0.8 else side * length for length in mask.shape]
    assert (window is None) == (side >= 0.8)
    assert all(abs(size - length) <= 0.5 + 1e-9 for size, length in zip(found, wanted, strict=True))
    assert window is None or min(found) >= 32


@given(masks())
def test_without_a_factor_or_a_thing_nothing_is_cropped(mask: np.ndarray) -> None:
    assert support_window(mask, 0.0) is None
    assert support_window(np.zeros_like(mask), 2.0) is None


@pytest.mark.parametrize(
    ("top", "left", "rows", "columns"),
    [
        (350, 630, slice(340, 380), slice(604, 675)),
        (0, 0, slice(0, 40), slice(0, 71)),
        (700, 1260, slice(680, 720), slice(1209, 1280)),
    ],
)
def test_a_window_is_centered_on_the_thing_and_moved_into_the_picture(
    top: int, left: int, rows: slice, columns: slice
) -> None:
    assert support_window(square(top, left, 20, HD), 2.0) == (rows, columns)


def test_things_apart_from_each_other_are_seen_together() -> None:
    one = square(100, 100, 20, HD)
    assert support_window(one | square(600, 1200, 20, HD), 1.5) is None
    assert support_window(one, 1.5) is not None
