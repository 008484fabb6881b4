"""Events: what appeared and left is told once, with the best sighting."""

from dataclasses import replace

import numpy as np
import pytest
from blank import blank_frame

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.zones import parse_zone
from fsvit_edge.live.events import Event, EventDetector, event_record

LEVEL = 0.5


def answer(scores: dict[str, float], present: dict[str, bool] | None = None) -> Prediction:
    """A steady answer in which the class of row i has the pixels of row i."""
    values = np.array(list(scores.values()), np.float32)
    steady = np.array([(present or {}).get(name, scores[name] > LEVEL) for name in scores], np.bool_)
    labels = np.repeat(np.arange(1, len(scores) + 1, dtype=np.uint8)[:, None], 4, axis=1)
    levels = np.full_like(values, LEVEL)
    return Prediction(tuple(scores), values, levels, labels, None, {}, steady_present=steady)


def play(*answers: Prediction) -> list[tuple[float, Event]]:
    """The events of these answers, one per second."""
    detector = EventDetector()
    return [
        (float(index), event)
        for index, one in enumerate(answers)
        for event in detector.update(blank_frame(index, 100.0 + index, value=index), one, float(index))
    ]


def test_a_class_that_stays_is_told_once_and_its_end_once() -> None:
    events = play(*[answer({"cup": score}) for score in (0.1, 0.7, 0.8, 0.9, 0.6, 0.1, 0.1)])

    assert [(at_s, event.kind, event.name) for at_s, event in events] == [
        (1.0, "appeared", "cup"),
        (5.0, "left", "cup"),
    ]
    left = events[1][1]
    assert left.duration_s == 3.0  # from 1 s to 4 s, the last frame above the level
    assert (left.best.score, left.best.sequence, left.best.box_xyxy) == (pytest.approx(0.9), 3, (0, 0, 4, 1))
    assert (left.best.picture == 3).all()


def test_what_is_held_on_between_the_levels_has_not_left() -> None:
    held = answer({"cup": 0.4}, present={"cup": True})
    events = play(answer({"cup": 0.9}), held, held, answer({"cup": 0.1}))
    assert [event.kind for _, event in events] == ["appeared", "left"]
    assert events[1][1].duration_s == 0.0


def test_each_class_has_its_own_events_and_a_removed_class_has_left() -> None:
    events = play(answer({"cup": 0.9, "pen": 0.1}), answer({"cup": 0.9, "pen": 0.9}), answer({"pen": 0.9}))
    assert [(event.kind, event.name) for _, event in events] == [
        ("appeared", "cup"),
        ("appeared", "pen"),
        ("left", "cup"),
    ]


def test_an_event_names_the_zones_in_which_a_class_appeared_and_then_was() -> None:
    zones = (parse_zone("top=0,0,1,0,1,0.4,0,0.4"), parse_zone("bottom=0,0.8,1,0.8,1,1,0,1"))

    def at(rows: slice, score: float = 0.9) -> Prediction:
        labels = np.zeros((100, 100), np.uint8)
        labels[rows, 40:60] = 1
        return replace(answer({"cup": score}), label_map=labels, zones=zones)

    events = play(at(slice(85, 95)), at(slice(50, 60)), at(slice(10, 20)), at(slice(0, 0), score=0.1))
    assert [(event.kind, event.zones) for _, event in events] == [
        ("appeared", ("bottom",)),
        ("left", ("bottom", "top")),
    ]
    assert event_record(events[1][1])["zones"] == ["bottom", "top"]
    removed = replace(at(slice(0, 0), score=0.1), zones=zones[:1])
    assert play(at(slice(85, 95)), removed)[1][1].zones == ("bottom",)
    middle, left = play(at(slice(50, 60)), at(slice(0, 0), score=0.1))
    assert (middle[1].zones, left[1].zones) == ((), ())


def test_an_answer_without_change_tells_nothing() -> None:
    assert play(*[answer({"cup": 0.1})] * 5) == []


def test_the_record_of_an_event_is_plain() -> None:
    appeared, left = (event_record(event) for _, event in play(answer({"cup": 0.9}), answer({"cup": 0.1})))

    assert appeared == {
        "event": "appeared",
        "name": "cup",
        "source": "cam",
        "wall_time_s": 0.0,
        "monotonic_s": 100.0,
        "best_score": 0.9,
        "best_box_xyxy": [0, 0, 4, 1],
        "best_sequence": 0,
        "zones": [],
    }
    assert left == {**appeared, "event": "left", "monotonic_s": 101.0, "duration_s": 0.0}


def test_the_picture_of_a_large_frame_is_small() -> None:
    frame = blank_frame(size_hw=(720, 1280))
    (event,) = EventDetector().update(frame, answer({"cup": 0.9}), 0.0)
    assert event.best.picture.shape == (360, 640, 3)
