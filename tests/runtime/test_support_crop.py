import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsvit_edge.runtime.support_crop import support_window

FACTORS = st.sampled_from((1.0, 1.5, 2.0, 2.5, 3.0, 8.0))


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """A picture's size and a rectangle in it, which may be one pixel or all of it."""
    height, width = draw(st.integers(1, 400)), draw(st.integers(1, 400))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    mask = np.zeros((height, width), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def small(height: int, width: int, top: int, left: int, side: int = 20) -> np.ndarray:
    mask = np.zeros((height, width), np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def sizes(window: tuple[slice, slice]) -> tuple[int, int]:
    rows, columns = window
    return rows.stop - rows.start, columns.stop - columns.start


@given(masks(), FACTORS)
def test_a_window_lies_in_the_picture_and_holds_the_whole_thing(mask: np.ndarray, factor: float) -> None:
    window = support_window(mask, factor)
    if window is None:
        return
    for span, length in zip(window, mask.shape, strict=True):
        assert 0 <= span.start < span.stop <= length
        assert span.step is None
    assert mask[window].sum() == mask.sum()


@given(masks(), FACTORS)
def test_a_window_has_the_aspect_of_its_picture(mask: np.ndarray, factor: float) -> None:
    window = support_window(mask, factor)
    if window is None:
        return
    shares = [size / length for size, length in zip(sizes(window), mask.shape, strict=True)]
    assert abs(shares[0] - shares[1]) <= 0.5 / mask.shape[0] + 0.5 / mask.shape[1] + 1e-9


@given(masks(), FACTORS)
def test_a_window_is_factor_times_the_thing_but_never_under_32_pixels(mask: np.ndarray, factor: float) -> None:
    window = support_window(mask, factor)
    spans = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    share = max((span[-1] - span[0] + 1) / length for span, length in zip(spans, mask.shape, strict=True))
    side = max(factor * share, 32 / min(mask.shape))
    assert (window is None) == (side >= 0.8)
    if window is not None:
        for size, length in zip(sizes(window), mask.shape, strict=True):
            assert abs(size - side * length) <= 0.5 + 1e-9
        assert min(sizes(window)) >= 32


@given(masks())
def test_without_a_factor_or_a_thing_nothing_is_cropped(mask: np.ndarray) -> None:
    assert support_window(mask, 0.0) is None
    assert support_window(np.zeros_like(mask), 2.0) is None


@pytest.mark.parametrize(
    ("top", "left", "rows", "columns"),
    [
        pytest.param(350, 630, slice(340, 380), slice(604, 675), id="in the middle"),
        pytest.param(0, 0, slice(0, 40), slice(0, 71), id="in the first corner"),
        pytest.param(700, 1260, slice(680, 720), slice(1209, 1280), id="in the last corner"),
    ],
)
def test_a_window_is_centered_on_the_thing_and_moved_into_the_picture(
    top: int, left: int, rows: slice, columns: slice
) -> None:
    assert support_window(small(720, 1280, top, left), 2.0) == (rows, columns)


def test_things_apart_from_each_other_are_seen_together() -> None:
    mask = small(720, 1280, 100, 100) | small(720, 1280, 600, 1200)
    assert support_window(mask, 1.5) is None
    assert support_window(small(720, 1280, 100, 100), 1.5) is not None
