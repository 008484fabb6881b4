"""Events as a run tells them, and frames with steady answers, for the tests of the page's events."""

import time
from dataclasses import replace

import numpy as np
from served_page import Served, health, picture

from fsvit_edge.live.events import Event, EventKind, Sighting
from fsvit_edge.live.frame import Frame


def event(
    kind: EventKind = "appeared",
    name: str = "cup",
    at_s: float = 1_700_000_000.0,
    *,
    duration_s: float = 4.0,
    zones: tuple[str, ...] = (),
    gray: int = 50,
    score: float = 0.9,
) -> Event:
    """An event whose picture is gray, 320 x 180, with the class in a box in the middle."""
    mask = np.zeros((180, 320), np.bool_)
    mask[80:120, 120:200] = True
    best = Sighting(score, (120, 80, 200, 120), 7, np.full((180, 320, 3), gray, np.uint8), mask)
    return Event(kind, name, "cam", at_s, 1.0, duration_s if kind == "left" else None, best, zones)


def visit(name: str, at_s: float, duration_s: float = 19.0, zones: tuple[str, ...] = ()) -> tuple[Event, Event]:
    """What a run tells of a visit; that the class has left is decided a second later."""
    left = event("left", name, at_s + duration_s + 1, duration_s=duration_s, zones=zones, gray=150, score=0.97)
    return event("appeared", name, at_s, zones=zones[:1]), left


def show_frame(served: Served, is_steady: bool = True) -> None:
    image = picture()
    answer = served.model.read(lambda model: model.predict(image))
    if is_steady:
        answer = replace(answer, steady_present=answer.present)
    served.page.write(Frame(image, 6, "cam", 0.0, time.monotonic(), 1.0), answer)
    served.page.report(replace(health(), sinks=()))
