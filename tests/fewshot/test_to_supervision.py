"""A prediction as supervision's Detections, and the pixels of its instances."""

import sys

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsvit_edge import EnvironmentLacksError, Prediction


def found_in(label_map: np.ndarray, *scores: float) -> Prediction:
    values = np.array(scores, np.float32)
    names = tuple(f"class {way}" for way in range(len(scores)))
    return Prediction(names, values, np.full_like(values, 0.5), label_map, None, {})


def two_cups_one_ring() -> Prediction:
    """Class 0 has two parts, one of which is inside the ring that is class 2; class 1 is absent."""
    label_map = np.zeros((60, 80), np.uint8)
    cv2.circle(label_map, (40, 30), 20, 3, 3)
    label_map[25:35, 35:45] = 1
    label_map[2:8, 2:20] = 1
    label_map[50:60, 70:80] = 2
    return found_in(label_map, 0.9, 0.1, 0.75)


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 0.8))
def test_each_instance_has_its_own_pixels(seed: int, share: float) -> None:
    label_map = (np.random.default_rng(seed).random((24, 30)) < share).astype(np.uint8)
    found = found_in(label_map, 0.9)
    _, numbers = cv2.connectedComponents(label_map)
    pixels = found.instance_pixels("class 0")
    assert len(pixels) == len(found.instances("class 0"))
    drawn = []
    for one, inside in zip(found.instances("class 0"), pixels, strict=True):
        left, top, right, bottom = one.box_xyxy
        assert inside.shape == (bottom - top, right - left)
        assert inside.sum() == one.area_px
        (number,) = np.unique(numbers[top:bottom, left:right][inside])
        assert (numbers == number).sum() == one.area_px
        drawn.append(number)
    assert len(set(drawn)) == len(drawn)


def test_the_pixels_of_an_unknown_class_are_an_error_and_those_of_an_absent_one_none() -> None:
    assert two_cups_one_ring().instance_pixels("class 1") == ()
    with pytest.raises(ValueError, match="not in tuple"):
        two_cups_one_ring().instance_pixels("cat")


def test_a_detection_is_an_instance_with_its_mask() -> None:
    pytest.importorskip("supervision")
    found = two_cups_one_ring()
    detections = found.to_supervision()
    assert detections.xyxy.tolist() == [[2, 2, 20, 8], [35, 25, 45, 35], [18, 8, 63, 53]]
    assert detections.class_id.tolist() == [0, 0, 2]
    assert detections.confidence.tolist() == [np.float32(0.9), np.float32(0.9), 0.75]
    assert detections.data["class_name"].tolist() == ["class 0", "class 0", "class 2"]
    assert detections.mask.shape == (3, 60, 80)
    assert np.array_equal(detections.mask[:2].any(axis=0), found.pixels("class 0"))
    assert np.array_equal(detections.mask[2], found.pixels("class 2"))
    assert detections[detections.class_id == 0].area.tolist() == [108, 100]


def test_no_detections_can_be_merged_and_drawn_as_others_can() -> None:
    supervision = pytest.importorskip("supervision")
    empty = found_in(np.zeros((60, 80), np.uint8), 0.1).to_supervision()
    assert len(empty) == 0
    assert len(supervision.Detections.merge([empty, two_cups_one_ring().to_supervision()])) == 3
    picture = np.zeros((60, 80, 3), np.uint8)
    assert not supervision.MaskAnnotator().annotate(picture.copy(), empty).any()
    assert supervision.MaskAnnotator().annotate(picture.copy(), two_cups_one_ring().to_supervision()).any()


def test_without_supervision_one_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(EnvironmentLacksError, match=r'not installed; try: pip install "fsvit-edge\[supervision\]"\.$'):
        two_cups_one_ring().to_supervision()
