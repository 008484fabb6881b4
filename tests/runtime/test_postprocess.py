import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsvit_edge.runtime.postprocess import interpolation_matrix, label_map, log_odds, upsample_foreground

UNDECIDED = 1e-3
"""Log-odds closer than this may be decided either way: float32 against float64."""


def plain_log_odds(foreground: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Enlarge the log-odds pixel by pixel, bilinear with align_corners."""
    clipped = np.clip(foreground.astype(np.float64), 1 / 2**23, 1 - 1 / 2**23)
    odds = np.log(clipped / (1 - clipped))
    (ways, rows, columns), (height, width) = odds.shape, size_hw
    enlarged = np.zeros((ways, height, width))
    for y in range(height):
        for x in range(width):
            row = y * (rows - 1) / (height - 1) if height > 1 else 0.0
            column = x * (columns - 1) / (width - 1) if width > 1 else 0.0
            top, left = math.floor(row), math.floor(column)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            down, across = row - top, column - left
            enlarged[:, y, x] = (1 - down) * ((1 - across) * odds[:, top, left] + across * odds[:, top, right]) + (
                down * ((1 - across) * odds[:, bottom, left] + across * odds[:, bottom, right])
            )
    return enlarged


def plain_labels(odds: np.ndarray) -> np.ndarray:
    if not len(odds):
        return np.zeros(odds.shape[1:], np.uint8)
    return np.where(odds.max(axis=0) >= 0, odds.argmax(axis=0) + 1, 0).astype(np.uint8)


def decided(odds: np.ndarray) -> np.ndarray:
    """Where neither the threshold nor the runner-up is close to the highest log-odds."""
    if not len(odds):
        return np.ones(odds.shape[1:], np.bool_)
    ordered = np.sort(odds, axis=0)[::-1]
    clear = np.abs(ordered[0]) > UNDECIDED
    if len(odds) > 1:
        clear &= (ordered[0] - ordered[1] > UNDECIDED) | (ordered[0] < -UNDECIDED)
    return clear


@st.composite
def maps(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int]]:
    ways = draw(st.integers(0, 4))
    cells = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    size_hw = draw(st.integers(1, 80)), draw(st.integers(1, 33))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # A high power leaves few cells above 0.5, here and there: the case that the shortcut is for.
    foreground = rng.random((ways, *cells)) ** draw(st.sampled_from([0.2, 1, 4, 20]))
    if draw(st.booleans()):
        foreground = np.round(foreground)
    return foreground.astype(np.float32), size_hw


@settings(max_examples=150)
@given(maps())
def test_labels_and_probabilities_are_those_of_the_plain_computation(case: tuple[np.ndarray, tuple[int, int]]) -> None:
    foreground, size_hw = case
    odds = plain_log_odds(foreground, size_hw)
    labels = label_map(foreground, size_hw)
    assert (labels.dtype, labels.shape) == (np.uint8, size_hw)
    clear = decided(odds)
    assert np.array_equal(labels[clear], plain_labels(odds)[clear])
    enlarged = upsample_foreground(foreground, size_hw)
    assert (enlarged.dtype, enlarged.shape) == (np.float32, (len(foreground), *size_hw))
    np.testing.assert_allclose(enlarged, 1 / (1 + np.exp(-odds)), atol=1e-5)


def test_most_pixels_of_a_typical_map_are_clear() -> None:
    odds = plain_log_odds(np.random.default_rng(0).random((3, 8, 8)).astype(np.float32), (40, 50))
    assert decided(odds).mean() > 0.99


@pytest.mark.parametrize("ways", [1, 3])
@pytest.mark.parametrize("size_hw", [(120, 239), (360, 640), (481, 119), (31, 16)])
def test_skipping_classes_in_bands_changes_nothing(ways: int, size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(ways)
    foreground = np.full((ways, 32, 32), 0.01, np.float32)
    for way in range(ways):
        top, left = rng.integers(0, 28, 2)
        foreground[way, top : top + 4, left : left + 4] = 0.5 + 0.5 * rng.random((4, 4))
    foreground[0, 31, 31] = foreground[0, 0, 31] = 0.99
    labels = label_map(foreground, size_hw)
    # Elsewhere numpy may add the same two products in another way; at the threshold that decides.
    probability = upsample_foreground(foreground, size_hw)
    odds = np.log(probability / (1 - probability))
    plain, clear = plain_labels(odds), decided(odds)
    assert clear.mean() > 0.99
    assert 0 < (plain > 0).mean() < 0.5
    assert np.array_equal(labels[clear], plain[clear])


@pytest.mark.parametrize("cells", [1, 32])
@pytest.mark.parametrize("pixels", [1, 2, 16, 31, 60, 119, 120, 121, 216, 240, 448, 720, 1080])
def test_a_class_that_fills_the_frame_fills_it_to_the_last_row_and_column(pixels: int, cells: int) -> None:
    foreground = np.full((1, cells, cells), 0.9, np.float32)
    assert (label_map(foreground, (pixels, 50)) == 1).all()
    assert (label_map(foreground, (50, pixels)) == 1).all()


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_for_one_shot_it_equals_resizing_the_logits_before_the_softmax(
    seed: int, cells: int, size_hw: tuple[int, int]
) -> None:
    logits = np.random.default_rng(seed).uniform(-3, 3, (2, cells, cells))
    foreground = np.exp(logits[1]) / np.exp(logits).sum(axis=0)
    # Interpolation is linear, so the plain computation enlarges logits too, if it is given their log-odds.
    large = [plain_log_odds(1 / (1 + np.exp(-values[None])), size_hw)[0] for values in logits]
    published = np.exp(large[1]) / (np.exp(large[0]) + np.exp(large[1]))
    ours = upsample_foreground(foreground[None].astype(np.float32), size_hw)[0]
    np.testing.assert_allclose(ours, published, atol=1e-5)


@pytest.mark.parametrize("ways", [1, 5, 20])
def test_bands_give_the_labels_of_whole_maps(ways: int) -> None:
    foreground = np.random.default_rng(ways).random((ways, 50, 50), np.float32)
    size_hw = (360, 643)  # no multiples of a band
    rows, columns = (interpolation_matrix(50, pixels).astype(np.float64) for pixels in size_hw)
    odds = rows @ log_odds(foreground).astype(np.float64) @ columns.T
    clear = decided(odds)
    assert clear.mean() > 0.99
    labels = label_map(foreground, size_hw)
    assert np.array_equal(labels[clear], plain_labels(odds)[clear])
    shifted = plain_labels(rows[::-1] @ log_odds(foreground) @ columns.T)
    assert not np.array_equal(labels[clear], shifted[clear])


def test_resizing_the_probabilities_instead_gives_other_labels() -> None:
    foreground = np.array([[[0.001, 0.9]]], np.float32)
    halfway = upsample_foreground(foreground, (1, 3))[0, 0, 1]
    assert halfway < 0.1
    assert foreground.mean() > 0.4


def test_exactly_one_half_is_foreground_and_the_first_of_equals_wins() -> None:
    for ways, probability, label in ((1, 0.5, 1), (3, 0.5, 1), (3, 0.8, 1), (3, 0.499, 0)):
        assert (label_map(np.full((ways, 4, 4), probability, np.float32), (9, 9)) == label).all()
    last = np.full((255, 2, 2), 0.1, np.float32)
    last[254] = 0.9
    assert (label_map(last, (5, 5)) == 255).all()


def test_certain_probabilities_stay_finite_and_weigh_the_same() -> None:
    foreground = np.array([[[0.0, 1.0]]], np.float32)
    enlarged = upsample_foreground(foreground, (1, 5))[0, 0]
    assert np.isfinite(enlarged).all()
    assert enlarged[0] < 1e-6
    assert enlarged[2] == pytest.approx(0.5, abs=1e-6)
    np.testing.assert_allclose(enlarged + enlarged[::-1], 1, atol=1e-6)
