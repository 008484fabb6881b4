from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsvit_edge.fewshot.prediction import (
    CRUMB_OF_FRAME,
    CRUMB_OF_LARGEST,
    ClassResult,
    Instance,
    Prediction,
)
from fsvit_edge.fewshot.regions import find_regions


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
        ClassResult("desk", 0.5, 0.5, 0.5, False, 0, 0.0, None),  # a score at the level is not above it
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


def parts(*sizes: int) -> Prediction:
    """A cup of squares of these sizes, one below another, in a frame of 600 times 500 pixels."""
    labels = np.zeros((600, 500), np.uint8)
    top = 0
    for size in sizes:
        labels[top : top + size, 10 : 10 + size] = 1
        top += size + 1
    return Prediction(("cup", "pen"), np.float32([0.9, 0.1]), np.float32([0.5, 0.5]), labels, None, {})


def test_each_connected_part_of_a_class_is_an_instance() -> None:
    assert parts(40, 60).instances("cup") == (
        Instance(3600, (10, 41, 70, 101)),
        Instance(1600, (10, 0, 50, 40)),
    )
    assert parts(40, 60).instances("pen") == ()
    with pytest.raises(ValueError, match="not in tuple"):
        parts(40).instances("cat")


def test_parts_that_touch_at_a_corner_are_one() -> None:
    both = parts(100)
    both.label_map[100:150, 110:160] = 1
    assert [one.area_px for one in both.instances("cup")] == [12500]
    both.label_map[99, 109] = 0
    both = replace(both)  # nothing that it remembers
    assert [one.area_px for one in both.instances("cup")] == [9999, 2500]


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
    st.sampled_from([0, 1]),
)
def test_the_parts_are_the_connected_components(size_hw: tuple[int, int], seed: int, share: float, blur: int) -> None:
    noise = np.random.default_rng(seed).random(size_hw, np.float32)
    pixels = ((cv2.GaussianBlur(noise, (0, 0), 1.2) if blur else noise) <= share).view(np.uint8)
    _, _, plain, _ = cv2.connectedComponentsWithStats(pixels)
    parts = [part for region in find_regions(pixels, [1]).values() for part in region.parts()]
    boxes = ((x, y, right - x, bottom - y, area) for area, (x, y, right, bottom) in parts)
    assert sorted(boxes) == sorted(map(tuple, plain[1:].tolist()))


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 0.7), st.sampled_from([0.6, 1.2, 3.0]))
def test_results_and_instances_are_those_of_the_whole_label_map(seed: int, share: float, blur: float) -> None:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((40, 60), np.float32), (0, 0), blur)
    labels = np.where(noise <= np.quantile(noise, share), 1 + np.arange(60) // 20, 0).astype(np.uint8)
    labels[:7] = labels[:, :5] = 0  # what is labeled starts inside of the frame
    values = np.full(4, 0.9, np.float32)
    found = Prediction(("a", "b", "c", "d"), values, np.full_like(values, 0.5), labels, None, {})
    for way, result in enumerate(found.results):
        ys, xs = np.nonzero(labels == way + 1)
        box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1) if len(xs) else None
        assert (result.area_px, result.box_xyxy) == (len(xs), box)
        _, _, stats, _ = cv2.connectedComponentsWithStats((labels == way + 1).view(np.uint8))
        areas = sorted((int(area) for area in stats[1:, cv2.CC_STAT_AREA]), reverse=True)
        least = min(areas[0], max(CRUMB_OF_FRAME * labels.size, CRUMB_OF_LARGEST * areas[0])) if areas else 0
        assert [one.area_px for one in found.instances(result.name)] == [area for area in areas if area >= least]


def test_small_parts_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found, drawn = parts(100, 3, 3, 3), []
    draw = cv2.drawContours
    monkeypatch.setattr(cv2, "drawContours", lambda *given, **named: drawn.append(1) or draw(*given, **named))
    assert len(found.instances("cup")) == len(found.instances("cup")) == len(drawn) == 1
    assert len(found.regions[0].parts()) == len(drawn) - 1 == 4  # the control


@pytest.mark.parametrize("largest", [40, 400])  # the least share of the frame decides, and that of the largest part
def test_crumbs_are_no_instances(largest: int) -> None:
    least = int(np.ceil(np.sqrt(max(CRUMB_OF_FRAME * 600 * 500, CRUMB_OF_LARGEST * largest**2))))
    assert [one.area_px for one in parts(largest, least, least - 1).instances("cup")] == [largest**2, least**2]


def test_the_largest_part_is_no_crumb() -> None:
    assert [one.area_px for one in parts(2, 1).instances("cup")] == [4]


def test_an_absent_class_has_no_instances_area_or_box_although_it_has_pixels() -> None:
    found = parts(40)
    absent = Prediction(("cup",), np.float32([0.1]), np.float32([0.5]), found.label_map, None, {})
    assert (len(found.instances("cup")), absent.instances("cup")) == (1, ())
    assert [(one.results[0].area_px, one.results[0].box_xyxy) for one in (found, absent)] == [
        (1600, (10, 0, 50, 40)),
        (0, None),
    ]
