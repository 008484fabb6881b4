"""Which classes are present: the empty scene, negatives, and classes that compete."""

import numpy as np
import pytest

from fsvit_edge.fewshot.decide import (
    NEGATIVE_MARGIN,
    SCENE_MARGIN,
    SHARE_LEFT,
    compete,
    negative_margin,
    scene_level,
    subtract_negatives,
)
from fsvit_edge.runtime.postprocess import log_odds, sigmoid

LEVELS = np.float32([0.9, 0.5])


def probability(z: float) -> float:
    return float(sigmoid(np.float32([z]))[0])


def z_of(probabilities: float) -> float:
    return float(log_odds(np.float32([probabilities]))[0])


def test_a_scene_that_scores_low_leaves_the_level_alone() -> None:
    assert scene_level(0.9, []) == scene_level(0.9, [0.2, 0.7]) == 0.9


def test_the_highest_score_on_the_scene_plus_the_margin_is_the_level() -> None:
    assert z_of(scene_level(0.9, [0.3, 0.95, 0.1])) == pytest.approx(z_of(0.95) + SCENE_MARGIN, abs=1e-4)
    assert 0.9 < scene_level(0.9, [1.0]) < 1


@pytest.mark.parametrize(("behind", "is_present"), [(-2.0, True), (0.9, True), (1.1, False), (3.0, False)])
def test_a_class_must_not_be_further_behind_its_negative_than_the_margin(behind: float, is_present: bool) -> None:
    z = z_of(0.9) + 1
    scores = np.float32([probability(z), 0.6, probability(z + behind * NEGATIVE_MARGIN)])
    foreground = np.full((3, 4, 4), 0.5, np.float32)

    decided, _ = subtract_negatives(scores, foreground, LEVELS, [(0, NEGATIVE_MARGIN)])

    assert (decided[0] > LEVELS[0]) == is_present
    assert decided[1] == scores[1]  # another class's negative changes nothing
    assert decided[0] <= scores[0]


@pytest.mark.parametrize("lead", [-9.0, -1.0, 0.0, 3.0])
def test_the_margin_lets_no_class_be_present_on_its_own_negative(lead: float) -> None:
    scores = np.array([probability(4.0 + lead), 0.1, probability(4.0)], np.float32)
    foreground = np.random.default_rng(0).random((3, 4, 4), np.float32)
    margin = negative_margin(scores[[0, 2]], foreground[[0, 2]])
    decided, _ = subtract_negatives(scores, foreground, LEVELS, [(0, margin)])

    assert decided[0] < LEVELS[0]
    assert margin <= NEGATIVE_MARGIN


def test_without_negatives_scores_and_pixels_are_the_same_values() -> None:
    scores, foreground = np.float32([0.9, 0.1]), np.random.default_rng(0).random((2, 4, 4), np.float32)

    decided, pixels = subtract_negatives(scores, foreground, LEVELS, [])

    np.testing.assert_array_equal(decided, scores)
    np.testing.assert_array_equal(pixels, foreground)


def test_what_a_negative_claims_counts_against_the_class_and_what_is_beside_it_does_not() -> None:
    level, scores = np.float32([0.5]), np.float32([0.99, 0.99])
    thing, rejected = np.full((2, 4, 10), 0.02, np.float32)
    thing[:, :2], rejected[:, 8:] = 0.98, 0.98

    def decided(of_class: np.ndarray) -> float:
        foreground = np.stack([of_class, rejected])
        return float(subtract_negatives(scores, foreground, level, [(0, NEGATIVE_MARGIN)])[0][0])

    assert decided(thing) > level[0] > decided(rejected)
    assert decided(np.maximum(thing, rejected)) > level[0]


def test_a_pixel_that_the_negative_claims_more_is_lost_and_one_that_it_does_not_is_kept() -> None:
    foreground = np.zeros((3, 1, 3), np.float32)
    foreground[0], foreground[2] = [0.8, 0.8, 0.8], [0.95, 0.6, 0.1]

    _, pixels = subtract_negatives(np.float32([0.99, 0.1, 0.1]), foreground, LEVELS, [(0, NEGATIVE_MARGIN)])

    assert pixels[0, 0, 0] < 0.5 < pixels[0, 0, 1] < 0.8
    assert pixels[0, 0, 2] == np.float32(0.8)


def blocks(*spans: tuple[int, int]) -> np.ndarray:
    """P(foreground) of classes that claim these columns of 10."""
    foreground = np.zeros((len(spans), 4, 10), np.float32)
    for way, (start, stop) in enumerate(spans):
        foreground[way, :, start:stop] = 0.9
    return foreground


def test_of_two_classes_on_the_same_pixels_the_one_further_above_its_level_stays() -> None:
    levels = np.float32([0.9, 0.5])
    decided = compete(np.float32([0.95, 0.94]), blocks((0, 5), (0, 5)), levels)

    assert (decided > levels).tolist() == [False, True]
    assert decided[1] == np.float32(0.94)


def test_classes_beside_each_other_are_both_present() -> None:
    levels = np.float32([0.5, 0.5])
    scores = np.float32([0.95, 0.94])
    np.testing.assert_array_equal(compete(scores, blocks((0, 5), (5, 10)), levels), scores)


@pytest.mark.parametrize(("start", "is_present"), [(2, False), (4, True)])
def test_a_class_needs_its_share_of_pixels_left(start: int, is_present: bool) -> None:
    levels = np.float32([0.5, 0.5])
    spans = ((0, 5), (start, start + 5))  # 3 or 1 of its 5 columns are taken: 0.4 or 0.8 are left
    assert 0.4 < SHARE_LEFT < 0.8
    assert (compete(np.float32([0.95, 0.9]), blocks(*spans), levels) > levels).tolist() == [True, is_present]


def test_an_absent_class_takes_no_pixels() -> None:
    levels = np.float32([0.99, 0.5])
    scores = np.float32([0.98, 0.6])
    np.testing.assert_array_equal(compete(scores, blocks((0, 5), (0, 5)), levels), scores)


def test_a_class_that_was_present_loses_pixels_only_to_others_that_were() -> None:
    levels, scores = np.float32([0.5, 0.5, 0.5]), np.float32([0.7, 0.9, 0.8])
    foreground = blocks((0, 5), (0, 5), (0, 5))

    def present(*before: bool) -> list[bool]:
        return list(compete(scores, foreground, levels, np.array(before) if before else None) > levels)

    assert present() == present(True, True, True) == present(False, False, False) == [False, True, False]  # the control
    assert present(True, False, False) == [True, True, False]  # the new one is surer, so it may turn on
    assert present(True, True, False) == [False, True, False]
    assert present(False, False, True) == [False, True, True]
