"""Steady answers: one frame changes nothing, enough time does, in both directions."""

from dataclasses import replace

import numpy as np
import pytest

from fsvit_edge.fewshot.decide import scene_level
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.steady import GAP_S, OFF_MARGIN, SteadyAnswers, SteadyOptions
from fsvit_edge.runtime.postprocess import log_odds, sigmoid

LEVEL = 0.8
OPTIONS = SteadyOptions(on_s=0.3, off_s=1.0)
FPS = 10


def answer(*leads: float, names: tuple[str, ...] = ("cup", "pen")) -> Prediction:
    """A frame whose classes score this far above the level, in log-odds; class i has the pixels of row i."""
    scores = sigmoid(log_odds(np.full(len(leads), LEVEL, np.float32)) + np.array(leads, np.float32))
    labels = np.repeat(np.arange(1, len(leads) + 1, dtype=np.uint8), 4).reshape(len(leads), 4)
    labels *= np.array(leads)[:, None] > 0
    return Prediction(names[: len(leads)], scores, np.full(len(leads), LEVEL, np.float32), labels, None, {})


def play(steady: SteadyAnswers, leads: list[float], start_s: float = 0.0) -> list[bool]:
    return [bool(steady.update(answer(lead), start_s + index / FPS).present[0]) for index, lead in enumerate(leads)]


def test_a_class_turns_on_after_its_time_and_off_after_its_time() -> None:
    seen = play(SteadyAnswers(OPTIONS), [2.0] * 10 + [-3.0] * 20)
    assert seen.index(True) == 3
    assert seen[3:].index(False) == 10 - 3 + 10


def test_single_frames_change_nothing() -> None:
    assert not any(play(SteadyAnswers(OPTIONS), [2.0, -3.0] * 20))
    assert all(play(SteadyAnswers(OPTIONS), [2.0] * 10 + [-3.0, 2.0] * 20)[3:])


def test_without_times_every_frame_decides() -> None:
    assert play(SteadyAnswers(SteadyOptions(0, 0)), [2.0, -3.0] * 5) == [True, False] * 5


def test_between_the_two_levels_a_class_stays_as_it_is() -> None:
    between = [-OFF_MARGIN / 2] * 50
    assert not any(play(SteadyAnswers(OPTIONS), between))
    assert all(play(SteadyAnswers(OPTIONS), [2.0] * 5 + between)[3:])


@pytest.mark.parametrize("fps", [2, 100])
def test_the_times_are_seconds_not_frames(fps: int) -> None:
    steady = SteadyAnswers(OPTIONS)
    seen = [bool(steady.update(answer(2.0), index / fps).present[0]) for index in range(fps * 2)]
    assert seen.index(True) / fps == pytest.approx(OPTIONS.on_s, abs=0.5 / fps + 0.2)


def test_a_class_that_is_not_on_yet_has_no_pixels_and_others_keep_theirs() -> None:
    steady = SteadyAnswers(OPTIONS)
    for index in range(5):
        steady.update(answer(-3.0, 2.0), index / FPS)

    shown = steady.update(answer(2.0, 2.0), 0.5)

    assert shown.present.tolist() == [False, True]
    assert set(np.unique(shown.label_map)) == {0, 2}
    assert [result.is_present for result in shown.results] == [False, True]
    np.testing.assert_array_equal(shown.scores, answer(2.0, 2.0).scores)


def test_a_class_that_was_removed_and_enrolled_again_starts_off() -> None:
    steady = SteadyAnswers(OPTIONS)
    for index in range(5):
        steady.update(answer(2.0, names=("cup",)), index / FPS)
    steady.update(answer(2.0, names=("pen",)), 0.5)

    assert not steady.update(answer(2.0, names=("cup",)), 0.6).present[0]


def test_a_class_that_a_negative_or_another_class_excludes_turns_off_just_below_its_level() -> None:
    def held(raw_lead: float) -> list[bool]:
        steady = SteadyAnswers(OPTIONS)
        play(steady, [2.0] * 10)
        excluded = replace(answer(-0.25), raw_scores=answer(raw_lead).scores)
        return [bool(steady.update(excluded, 1 + index / FPS).present[0]) for index in range(20)]

    assert not held(raw_lead=2.0)[-1]
    assert held(raw_lead=-0.25)[-1]  # nothing lowered the score: it may be flicker


def test_what_was_seen_before_a_long_gap_does_not_count() -> None:
    steady = SteadyAnswers(OPTIONS)
    steady.update(answer(2.0), 0.0)
    assert not steady.update(answer(2.0), GAP_S + 1).present[0]
    assert steady.update(answer(2.0), GAP_S + 1.01 + OPTIONS.on_s).present[0]


def test_a_class_turns_off_on_a_frame_of_the_scene_that_raised_its_level() -> None:
    on_scene = 0.97
    level = np.array([scene_level(0.5, [on_scene])], np.float32)
    steady = SteadyAnswers(OPTIONS)
    seen = []
    for index in range(30):
        score = np.array([0.999 if index < 10 else on_scene], np.float32)
        frame = replace(answer(0.0, names=("cup",)), scores=score, levels=level)
        seen.append(bool(steady.update(frame, index / FPS).present[0]))
    assert seen[9]
    assert not seen[-1]
