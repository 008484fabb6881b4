import numpy as np
import pytest

from fsvit_edge.enroll.fit import Fit, draw_fit, measure_fit
from fsvit_edge.fewshot.overlay import PALETTE
from fsvit_edge.fewshot.prediction import Prediction


def square(top: int, left: int, side: int, size_hw: tuple[int, int] = (60, 80)) -> np.ndarray:
    mask = np.zeros(size_hw, np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def answer(found: np.ndarray, score: float = 0.9) -> Prediction:
    """The class "cup" has what was found, "other" the first column."""
    labels = np.zeros(found.shape, np.uint8)
    labels[:, 0] = 1
    labels[found] = 2
    scores = np.array([0.7, score], np.float32)
    return Prediction(("other", "cup"), scores, np.full_like(scores, 0.5), labels, None, {})


@pytest.mark.parametrize(
    ("found", "iou", "ratio"),
    [
        pytest.param(square(10, 10, 20), 1.0, 1.0, id="the same"),
        pytest.param(square(10, 10, 40), 0.25, 4.0, id="too large"),
        pytest.param(square(10, 10, 10), 0.25, 0.25, id="too small"),
        pytest.param(square(35, 50, 20), 0.0, 1.0, id="elsewhere"),
        pytest.param(square(0, 0, 0), 0.0, 0.0, id="nothing"),
    ],
)
def test_the_outline_is_compared_with_the_mask(found: np.ndarray, iou: float, ratio: float) -> None:
    fit = measure_fit(answer(found), "cup", square(10, 10, 20))
    assert fit == Fit(pytest.approx(iou), pytest.approx(ratio), True)
    assert str(fit) == f"IoU {iou:.2f}, outline {ratio:.1f} x the mask's area"


def test_an_empty_mask_is_no_division_by_zero() -> None:
    nothing = square(0, 0, 0)
    assert measure_fit(answer(nothing), "cup", nothing) == Fit(0.0, 0.0, True)
    assert measure_fit(answer(square(10, 10, 20)), "cup", nothing) == Fit(0.0, 400.0, True)


def test_the_drawing_shows_what_is_found_in_color_and_the_mask_as_a_white_line() -> None:
    picture = np.full((600, 800, 3), 90, np.uint8)
    mask, found = square(300, 400, 200, (600, 800)), square(100, 100, 200, (600, 800))
    drawn = draw_fit(picture, answer(found), "cup", mask)
    assert drawn.shape == (360, 480, 3)
    assert (picture == 90).all()
    tinted = drawn[120, 120].astype(int) - 90
    assert (np.sign(tinted) == np.sign(np.array(PALETTE[1]) - 90)).all()
    assert (drawn[240, 300] == 90).all()  # inside the mask, where nothing is found
    assert drawn[178:183, 250:350].max(axis=(0, 2)).min() > 200  # its upper edge
