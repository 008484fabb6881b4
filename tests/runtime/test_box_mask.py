import numpy as np
import pytest

from fsvit_edge.runtime.box_mask import mask_from_box
from fsvit_edge.runtime.errors import InputError


@pytest.mark.parametrize("box", [(10, 5, 50, 35), (10, 5, 51, 36), (0, 0, 60, 40), (3, 3, 13, 14)])
def test_the_ellipse_touches_the_four_sides_of_its_box_and_stays_inside(box: tuple[int, int, int, int]) -> None:
    mask = mask_from_box((40, 60), box)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == box
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert 0.6 * area < mask.sum() <= area


def test_what_lies_outside_the_picture_is_cut_off() -> None:
    assert np.array_equal(mask_from_box((40, 60), (-20, -9, 30, 400)), mask_from_box((40, 60), (0, 0, 30, 40)))


@pytest.mark.parametrize("box", [(10, 10, 10, 30), (30, 10, 10, 30), (70, 0, 90, 40), (0, 0, 3, 40), (-9, 0, 2, 40)])
def test_a_box_with_next_to_nothing_in_it_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(InputError, match=r"holds less than 4 x 4 pixels of the 60 x 40 picture; draw a larger one"):
        mask_from_box((40, 60), box)
