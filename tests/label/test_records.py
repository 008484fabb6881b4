import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from label_records import parts_of

from fsvit_edge.label.records import pixels_in_box, pixels_of, run_lengths


@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_pixels_come_back_from_their_run_lengths_whole_and_in_their_box(
    size_hw: tuple[int, int], seed: int, share: float
) -> None:
    pixels = np.random.default_rng(seed).random(size_hw) < share
    counts = run_lengths(pixels)
    assert sum(counts) == pixels.size
    assert np.array_equal(pixels_of(counts, size_hw), pixels)
    drawn = np.zeros(size_hw, np.bool_)
    for part in parts_of(pixels):
        left, top, right, bottom = part.box_xyxy
        inside = pixels_in_box(part, size_hw[0])
        assert inside.shape == (bottom - top, right - left)
        assert int(inside.sum()) == part.area_px
        drawn[top:bottom, left:right] |= inside
    assert np.array_equal(drawn, pixels)
