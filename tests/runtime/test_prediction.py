import numpy as np
import pytest

from fsvit_edge.runtime.prediction import ClassResult, Prediction


def prediction() -> Prediction:
    labels = np.zeros((40, 60), np.uint8)
    labels[10:20, 5:30] = 1
    labels[15, 50] = 1
    labels[30:, :] = 3
    return Prediction(
        ("cup", "pen", "desk"), np.float32([0.75, 0.25, 0.5]), np.float32([0.5, 0.5, 0.5]), labels, None, {}
    )


def test_a_result_has_score_area_and_box_of_its_class() -> None:
    assert prediction().results == (
        ClassResult("cup", 0.75, 0.75, 0.5, True, 251, 251 / 2400, (5, 10, 51, 20)),
        ClassResult("pen", 0.25, 0.25, 0.5, False, 0, 0.0, None),
        ClassResult("desk", 0.5, 0.5, 0.5, False, 600, 0.25, (0, 30, 60, 40)),  # a score at the level is not above it
    )
    assert prediction().present.tolist() == [one.is_present for one in prediction().results]


def test_the_pixels_of_a_class_are_those_of_its_label() -> None:
    assert np.array_equal(prediction().pixels("desk"), prediction().label_map == 3)
    assert prediction().pixels("pen").dtype == np.bool_
    with pytest.raises(ValueError, match="not in tuple"):
        prediction().pixels("cat")


def test_without_a_class_there_are_no_results() -> None:
    empty = np.zeros(0, np.float32)
    assert Prediction((), empty, empty, np.zeros((4, 4), np.uint8), None, {}).results == ()
