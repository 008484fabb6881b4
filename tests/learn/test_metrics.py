"""The metrics against numbers computed by hand and against torchmetrics."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from fsvit_edge.learn import metrics
from fsvit_edge.learn.metrics import Score, Tally, count_pixels, score

NAMES = {3: "cat", 1: "dog", 7: "fox"}


def labels(*rows: str) -> np.ndarray:
    """A label map, one digit per pixel; x is ignored."""
    return np.array([[255 if digit == "x" else int(digit) for digit in row] for row in rows], np.uint8)


@pytest.mark.parametrize(
    ("prediction", "truth", "intersections", "unions"),
    [
        (["110", "122"], ["100", "x20"], [1, 1], [2, 2]),  # the pixel under the x does not count
        (["110", "122"], ["100", "020"], [1, 1], [3, 2]),
        (["1122"], ["1100"], [2, 0], [2, 2]),  # the false alarms of an absent class are in the union
        (["1112"], ["1222"], [1, 1], [3, 3]),  # a confused class counts against both
    ],
)
def test_intersections_and_unions_of_small_maps_equal_those_counted_by_hand(
    prediction: list[str], truth: list[str], intersections: list[int], unions: list[int]
) -> None:
    counted = count_pixels(labels(*prediction), labels(*truth), 2)
    assert [part.tolist() for part in counted] == [intersections, unions]


def tally() -> Tally:
    """Three episodes of two ways.

    ways        (cat, dog)        (dog, cat)       (dog, fox)
    shown       (yes, no)         (no, yes)        (yes, no)
    judged      (yes, no) right   (no, no) wrong   (yes, yes) wrong
    """
    return Tally(
        ways=np.array([[3, 1], [1, 3], [1, 7]]),
        shown=np.array([[True, False], [False, True], [True, False]]),
        predicted=np.array([[True, False], [False, False], [True, True]]),
        intersections=np.array([[6, 0], [0, 3], [5, 0]]),
        unions=np.array([[8, 2], [0, 12], [8, 0]]),
    )


def values(scores: Iterable[Score | None]) -> list[float]:
    """NaN in place of None."""
    return [math.nan if score is None else score.value for score in scores]


def test_the_scores_of_three_episodes_equal_those_computed_by_hand() -> None:
    scores = score(tally(), {**NAMES, 9: "owl"})
    # Cat: (6 + 3) / (8 + 12), not the mean of 6 / 8 and 3 / 12: pixels are summed first. Dog: (0 + 5) / (2 + 8).
    # The fox is neither shown nor predicted, and the owl never asked about: no IoU, so the mean is over the other two.
    assert values(c.iou for c in scores.classes) == pytest.approx([45, 50, math.nan, math.nan], nan_ok=True)
    # One episode of three has no wrong answer.
    assert values([scores.exact_ratio, scores.miou]) == pytest.approx([100 / 3, 47.5])
    assert [(c.label, c.name, c.asked, c.shown) for c in scores.classes] == [
        (3, "cat", 2, 2),
        (1, "dog", 3, 1),
        (7, "fox", 1, 0),
        (9, "owl", 0, 0),
    ]
    assert values(c.presence for c in scores.classes) == pytest.approx([50, 100, 0, math.nan], nan_ok=True)


def test_without_any_mask_there_is_no_miou() -> None:
    nothing = np.zeros((3, 2), np.int64)
    scores = score(replace(tally(), intersections=nothing, unions=nothing), NAMES)
    assert scores.miou is None
    assert scores.exact_ratio.value == pytest.approx(100 / 3)


def random_tally(episodes: int, seed: int = 0) -> Tally:
    rng = np.random.default_rng(seed)
    ways = np.array([rng.permutation([3, 1, 7])[:2] for _ in range(episodes)])
    shown = rng.random((episodes, 2)) < 0.5
    judged = shown ^ (rng.random((episodes, 2)) < 0.2)
    intersections = rng.integers(0, 100, (episodes, 2)) * shown
    return Tally(ways, shown, judged, intersections, intersections + rng.integers(1, 100, (episodes, 2)))


def test_intervals_equal_those_of_a_plain_resampling_loop() -> None:
    full = random_tally(60)
    scores = score(full, NAMES)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(1500):
        rows = rng.integers(0, 60, 60)
        part = Tally(*(getattr(full, field)[rows] for field in vars(full)))
        exact = 100 * (part.shown == part.predicted).all(axis=1).mean()
        ious = [
            100 * part.intersections[part.ways == label].sum() / part.unions[part.ways == label].sum()
            for label in NAMES
        ]
        drawn.append((exact, np.mean(ious), ious[0]))
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    cat = scores.classes[0].iou
    assert scores.miou is not None
    assert cat is not None
    for index, ours in enumerate((scores.exact_ratio, scores.miou, cat)):
        assert ours.low < ours.value < ours.high
        width = high[index] - low[index]
        assert ours.low == pytest.approx(low[index], abs=0.1 * width)
        assert ours.high == pytest.approx(high[index], abs=0.1 * width)


def test_intervals_are_reproducible_and_narrower_with_more_episodes() -> None:
    assert score(random_tally(50), NAMES) == score(random_tally(50), NAMES)
    few, many = (score(random_tally(episodes), NAMES).exact_ratio for episodes in (40, 4000))
    assert many.high - many.low < (few.high - few.low) / 5


def test_resampling_in_parts_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(random_tally(50), NAMES)
    monkeypatch.setattr(metrics, "CELLS_AT_ONCE", 50 * 7)
    assert score(random_tally(50), NAMES) == whole


def test_torchmetrics_gives_the_same_scores_on_random_episodes() -> None:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # imports of torchmetrics warn about their dependencies
        classification = pytest.importorskip("torchmetrics").classification
    # The data set's labels 1 to 3 are the network's classes; each episode asks about two of them.
    jaccard = classification.MulticlassJaccardIndex(4, average=None, ignore_index=255)
    exact = classification.MultilabelExactMatch(2)
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(40):
        ways = rng.permutation([1, 2, 3])[:2]
        truth = rng.choice([0, 1, 2, 255], (8, 8), p=[0.4, 0.25, 0.25, 0.1]).astype(np.uint8)
        prediction = np.where(rng.random((8, 8)) < 0.3, rng.integers(0, 3, (8, 8)), truth % 255).astype(np.uint8)
        shown, judged = rng.random((2, 2)) < 0.6
        names = np.zeros(256, np.int64)
        names[[1, 2, 255]] = [*ways, 255]
        jaccard.update(torch.from_numpy(names[prediction])[None], torch.from_numpy(names[truth])[None])
        exact.update(torch.from_numpy(judged)[None].int(), torch.from_numpy(shown)[None].int())
        rows.append((ways, shown, judged, *count_pixels(prediction, truth, 2)))
    scores = score(Tally(*(np.stack(column) for column in zip(*rows, strict=True))), {1: "a", 2: "b", 3: "c"})
    ious = [one.iou.value for one in scores.classes if one.iou]
    np.testing.assert_allclose(ious, 100 * jaccard.compute()[1:].numpy(), rtol=1e-5)
    assert scores.exact_ratio.value == pytest.approx(100 * float(exact.compute()), rel=1e-5)
