"""Who has the pixels of a frame: with presence decided over time, the classes that are on, and no others."""

from types import SimpleNamespace

import numpy as np
import pytest

from fsvit_edge.fewshot.answer import answer_frame
from fsvit_edge.fewshot.decide import Flags, Scores, compete
from fsvit_edge.fewshot.heads import HeadAnswer
from fsvit_edge.fewshot.outlines import recognized, sharpen
from fsvit_edge.fewshot.prediction import Prediction, StageClock
from fsvit_edge.runtime.postprocess import label_map

SIZE_HW = (40, 60)
LEVELS = np.float32([0.5, 0.5])
OBJECTNESS = np.random.default_rng(0).normal(0, 2, (4, 4)).astype(np.float32)
WEIGHTS = np.float32([0.5, 1.0])
LEFT_HALF = np.zeros((8, 8), np.float32)
LEFT_HALF[:, :4] = 1
BOTH = np.stack([0.8 * LEFT_HALF, 0.95 * LEFT_HALF])
"""Two classes on the same pixels; the second is surer of each."""


class Decided:
    """Presence that is known beforehand."""

    def __init__(self, *present: bool) -> None:
        self.present = np.array(present)

    def before(self, classes: tuple[str, ...]) -> Flags:
        assert classes == ("cup", "pen")
        return self.present

    def decide(self, classes: tuple[str, ...], scores: Scores, raw_scores: Scores, levels: Scores) -> Flags:
        assert (classes, len(scores), len(raw_scores)) == (("cup", "pen"), 2, 2)
        np.testing.assert_array_equal(levels, LEVELS)
        return self.present


def answer(
    scores: tuple[float, float],
    over_time: Decided | None = None,
    foreground: np.ndarray = BOTH,
    objectness: np.ndarray | None = OBJECTNESS,
    exclusive: bool = False,
) -> Prediction:
    weights = np.zeros(2, np.float32) if foreground is BOTH else WEIGHTS
    bank = SimpleNamespace(zones=(), classes=("cup", "pen"), negative_margins=(), objectness_weights=weights)
    found = HeadAnswer(np.float32(scores), lambda wanted: foreground * wanted[:, None, None])
    given = found, objectness, exclusive, StageClock()
    return answer_frame(SIZE_HW, bank, LEVELS, *given, over_time=over_time)  # type: ignore[arg-type]


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("objectness", [OBJECTNESS, None], ids=["sharp", "plain"])
def test_a_class_that_is_not_yet_on_takes_no_pixel_of_one_that_is(
    objectness: np.ndarray | None, exclusive: bool
) -> None:
    options = {"objectness": objectness, "exclusive": exclusive}
    scores = (0.7, 0.9)
    alone = label_map(BOTH[:1], SIZE_HW)

    frame = answer(scores, **options)
    emptied = np.where(frame.label_map == 2, 0, frame.label_map)
    assert alone.any()
    assert not emptied.any()  # the control: emptying it afterward leaves a hole where the cup is

    steady = answer(scores, Decided(True, False), **options)
    np.testing.assert_array_equal(steady.label_map, alone)
    assert steady.present.tolist() == [True, False]
    assert [one.area_px > 0 for one in steady.results] == [True, False]
    np.testing.assert_array_equal(steady.scores, np.float32(scores))
    np.testing.assert_array_equal(steady.contested, frame.contested)


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_class_that_is_on_keeps_its_pixels_for_a_moment_below_its_level(exclusive: bool) -> None:
    scores = (0.4, 0.1)
    assert not answer(scores).label_map.any()  # the control

    steady = answer(scores, Decided(True, False), exclusive=exclusive)
    np.testing.assert_array_equal(steady.label_map, label_map(BOTH[:1], SIZE_HW))
    assert steady.instances("cup")
    np.testing.assert_array_equal(steady.scores, np.float32(scores))


def test_a_class_that_turned_on_takes_pixels_as_in_a_single_frame() -> None:
    np.testing.assert_array_equal(answer((0.7, 0.9), Decided(True, True)).label_map, answer((0.7, 0.9)).label_map)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("objectness", [OBJECTNESS, None], ids=["sharp", "plain"])
def test_a_frame_alone_is_answered_in_the_written_order(objectness: np.ndarray | None, exclusive: bool) -> None:
    """To the bit: competing classes, objectness, absent classes out of sharp outlines, labels."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        foreground = rng.random((2, 8, 8), np.float32)
        given = rng.random(2, np.float32)
        found = answer(tuple(given), None, foreground, objectness, exclusive)
        scores = compete(given, foreground, LEVELS) if exclusive else given
        shown = foreground
        if objectness is not None:
            shown = sharpen(foreground, objectness, WEIGHTS * recognized(foreground, objectness))
            shown = shown * (scores > LEVELS)[:, None, None]
        np.testing.assert_array_equal(found.scores, scores)
        np.testing.assert_array_equal(found.label_map, label_map(shown, SIZE_HW))
        np.testing.assert_array_equal(found.present, scores > LEVELS)
        assert found.steady_present is None
