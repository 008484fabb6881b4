"""Steady answers: one frame changes nothing, enough time does, in both directions."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from fsvit_edge.fewshot.decide import Scores, compete, scene_level
from fsvit_edge.fewshot.steady import GAP_S, OFF_MARGIN, ON_S, SteadyAnswers, SteadyState
from fsvit_edge.runtime.json_records import record_from_json
from fsvit_edge.runtime.postprocess import log_odds, sigmoid

LEVEL = 0.8
FPS = 10
CUP = ("cup",)


def score(*above_level: float) -> Scores:
    """Scores this far above the level, in log-odds."""
    return sigmoid(log_odds(np.full(len(above_level), LEVEL, np.float32)) + np.array(above_level, np.float32))


def decide(
    steady: SteadyAnswers, now_s: float, scores: Scores, raw: Scores | None = None, names: tuple[str, ...] = CUP
) -> list[bool]:
    levels = np.full(len(scores), LEVEL, np.float32)
    present = steady.at(now_s).decide(names, scores, scores if raw is None else raw, levels)
    assert present.dtype == np.bool_
    np.testing.assert_array_equal(steady.before(names), present)
    return list(present)


def play(steady: SteadyAnswers, above_level: list[float], start_s: float = 0.0) -> list[bool]:
    return [decide(steady, start_s + index / FPS, score(above))[0] for index, above in enumerate(above_level)]


def test_a_class_turns_on_after_its_time_and_off_after_its_time() -> None:
    seen = play(SteadyAnswers(), [2.0] * 10 + [-3.0] * 20)
    assert seen.index(True) == 3
    assert seen[3:].index(False) == 10 - 3 + 10


def test_single_frames_change_nothing() -> None:
    assert not any(play(SteadyAnswers(), [2.0, -3.0] * 20))
    assert all(play(SteadyAnswers(), [2.0] * 10 + [-3.0, 2.0] * 20)[3:])


def test_without_times_every_frame_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ON_S", "OFF_S"):
        monkeypatch.setattr(f"fsvit_edge.fewshot.steady.{name}", 0.0)
    assert play(SteadyAnswers(), [2.0, -3.0] * 5) == [True, False] * 5


def test_between_the_two_levels_a_class_stays_as_it_is() -> None:
    between = [-OFF_MARGIN / 2] * 50
    assert not any(play(SteadyAnswers(), between))
    assert all(play(SteadyAnswers(), [2.0] * 5 + between)[3:])


@pytest.mark.parametrize("fps", [2, 100])
def test_the_times_are_seconds_not_frames(fps: int) -> None:
    steady = SteadyAnswers()
    seen = [decide(steady, index / fps, score(2.0))[0] for index in range(fps * 2)]
    assert seen.index(True) / fps == pytest.approx(ON_S, abs=0.5 / fps + 0.2)


def test_each_class_has_its_own_time() -> None:
    steady, names = SteadyAnswers(), ("cup", "pen")
    for index in range(5):
        decide(steady, index / FPS, score(-3.0, 2.0), names=names)
    assert decide(steady, 0.5, score(2.0, 2.0), names=names) == [False, True]
    assert decide(steady, 0.9, score(2.0, 2.0), names=names) == [True, True]


def test_a_class_that_was_removed_and_enrolled_again_starts_off() -> None:
    steady = SteadyAnswers()
    for index in range(5):
        decide(steady, index / FPS, score(2.0))
    decide(steady, 0.5, score(2.0), names=("pen",))

    assert steady.before(("cup", "pen")).tolist() == [False, False]
    assert decide(steady, 0.6, score(2.0)) == [False]


def test_a_class_that_a_negative_or_another_class_excludes_turns_off_just_below_its_level() -> None:
    def held(raw: float) -> list[bool]:
        steady = SteadyAnswers()
        play(steady, [2.0] * 10)
        return [decide(steady, 1 + index / FPS, score(-0.25), score(raw))[0] for index in range(20)]

    assert not held(raw=2.0)[-1]
    assert held(raw=-0.25)[-1]  # nothing lowered the score: it may be flicker


def play_competing(frames: list[tuple[float, float, float]], known_first: bool) -> list[list[bool]]:
    """Three classes on the same pixels, the first of which is on; these are its frames after that."""
    steady, names = SteadyAnswers(), ("cup", "pen", "key")
    foreground, levels = np.full((3, 4, 4), 0.9, np.float32), np.full(3, LEVEL, np.float32)
    seen = []
    for index, frame in enumerate([(1.0, -3.0, -3.0)] * 5 + frames):
        raw = score(*frame)
        before = steady.at(index / FPS).before(names) if known_first else None
        seen.append(decide(steady, index / FPS, compete(raw, foreground, levels, before), raw, names))
    return seen[5:]


def test_classes_that_are_not_on_push_out_none_that_is() -> None:
    by_turns = [(1.0, 2.0, -3.0)] * 2 + [(1.0, -3.0, 2.0)] * 2
    assert play_competing(by_turns * 10, known_first=True) == [[True, False, False]] * 40
    # The control: if they could, none would be on.
    assert play_competing(by_turns * 10, known_first=False)[-1] == [False, False, False]


def test_a_surer_class_that_stays_takes_the_place_of_one_that_is_on() -> None:
    seen = play_competing([(1.0, 2.0, -3.0)] * 20, known_first=True)
    assert seen.index([True, True, False]) == 3
    assert seen.index([False, True, False]) in (3 + 1 + 10, 3 + 1 + 11)  # 1.0 s may be a rounding more than ten frames
    assert seen[-1] == [False, True, False]


def test_what_was_seen_before_a_long_gap_does_not_count() -> None:
    steady = SteadyAnswers()
    decide(steady, 0.0, score(2.0))
    assert decide(steady, GAP_S + 1, score(2.0)) == [False]
    assert decide(steady, GAP_S + 1.01 + ON_S, score(2.0)) == [True]


def test_a_class_turns_off_on_a_frame_of_the_scene_that_raised_its_level() -> None:
    on_scene = 0.97
    level = np.array([scene_level(0.5, [on_scene])], np.float32)
    steady = SteadyAnswers()
    seen = []
    for index in range(30):
        found = np.array([0.999 if index < 10 else on_scene], np.float32)
        seen.append(bool(steady.at(index / FPS).decide(CUP, found, found, level)[0]))
    assert seen[9]
    assert not seen[-1]


def test_what_is_remembered_can_go_on_elsewhere_at_any_frame() -> None:
    """As with a box, which gets it with each frame, in JSON."""
    whole = SteadyAnswers()
    carried: SteadyState | None = None
    for index in range(40):
        found = score(2.0 if index % 25 in range(4, 14) else -2.0)
        other = SteadyAnswers()
        if carried is not None:
            other.take(carried)
        seen = [decide(steady, index / FPS, found) for steady in (whole, other)]
        assert seen[0] == seen[1]
        values = json.loads(json.dumps(asdict(other.state)))
        carried = record_from_json(SteadyState, Path("it"), values)
        assert carried == whole.state
    assert whole.state.classes
