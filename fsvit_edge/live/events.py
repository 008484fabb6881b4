"""Events: a class has appeared, or has left, told once each."""

from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.prediction import ClassResult, Prediction
from fsvit_edge.fewshot.support_masks import Box, Image
from fsvit_edge.live.frame import Frame

EventKind = Literal["appeared", "left"]

_PICTURE_PX = 640
_PICTURE_EVERY_S = 0.5
"""Between two pictures of one class; scaling one takes a millisecond."""


@dataclass(frozen=True)
class Sighting:
    """The frame in which a class scored highest since it appeared."""

    score: float  # in [0, 1]
    box_xyxy: Box | None  # in pixels of the frame, right and bottom exclusive; None if the class had no pixel
    sequence: int  # index of the frame
    picture: Image = field(compare=False, repr=False)  # the frame, at most 640 px wide
    mask: npt.NDArray[np.bool_] = field(compare=False, repr=False)  # where the class is, at the size of the picture


@dataclass(frozen=True)
class Event:
    """A class has appeared or left.

    Attributes:
        kind: "appeared" or "left".
        name: The class.
        source: Name of the source, safe to print.
        wall_time_s: Seconds since 1970 (UTC) when the frame that decided it was captured.
        monotonic_s: The same moment on a clock that never jumps.
        duration_s: Seconds from the appearance to the last frame above the level; None if the class has just appeared.
        best: The best sighting so far.
        zones: Names of the zones in which it appeared, or if it left, of all in which it was, the first first.
    """

    kind: EventKind
    name: str
    source: str
    wall_time_s: float
    monotonic_s: float
    duration_s: float | None
    best: Sighting
    zones: tuple[str, ...] = ()


@dataclass
class _Presence:
    since_s: float
    last_s: float
    best: Sighting
    pictured_s: float
    zones: dict[str, None]  # an ordered set: a zone may be removed before the class leaves


class EventDetector:
    """Compares each steady answer with the one before."""

    def __init__(self) -> None:
        self._present: dict[str, _Presence] = {}

    def update(self, frame: Frame, prediction: Prediction, now_s: float) -> tuple[Event, ...]:
        """Return what has changed since the frame before; classes that were removed have left.

        `now_s` is the time of the frame in seconds, from which durations are counted: in a file, its own time.
        """
        events = []
        shown = {result.name: result for result in prediction.results if result.is_present}
        for name in [name for name in self._present if name not in shown]:
            gone = self._present.pop(name)
            events.append(self._event("left", name, frame, gone.best, gone.last_s - gone.since_s, tuple(gone.zones)))
        for name, result in shown.items():
            known = self._present.get(name)
            if known is None:
                best = _sighting(frame, prediction, result)
                self._present[name] = _Presence(now_s, now_s, best, now_s, dict.fromkeys(result.zones))
                events.append(self._event("appeared", name, frame, best, None, result.zones))
                continue
            known.zones |= dict.fromkeys(result.zones)
            if result.score > result.level:
                known.last_s = now_s
            if result.score > known.best.score and now_s - known.pictured_s >= _PICTURE_EVERY_S:
                known.best, known.pictured_s = _sighting(frame, prediction, result), now_s
        return tuple(events)

    def _event(
        self,
        kind: EventKind,
        name: str,
        frame: Frame,
        best: Sighting,
        duration_s: float | None,
        zones: tuple[str, ...],
    ) -> Event:
        return Event(kind, name, frame.source, frame.wall_time_s, frame.monotonic_s, duration_s, best, zones)


def event_record(event: Event) -> dict[str, Any]:
    """Describe an event in plain values for JSON.

    Returns:
        "event": "appeared" or "left"; "name": the class; "source"; "wall_time_s" and "monotonic_s": when the frame that
        decided it was captured: for "appeared" 0.3 s after the first frame above the level, for "left" 1 s or more
        after the last; "duration_s": for "left", seconds from the time of "appeared" to the last frame above the level,
        so less than the two times differ by, and in a file by its own time; "best_score", "best_box_xyxy" and
        "best_sequence": the best sighting so far, with the index of its frame;
        "zones": names of the zones in which it appeared, or if it left, of all in which it was.
    """
    record: dict[str, Any] = {
        "event": event.kind,
        "name": event.name,
        "source": event.source,
        "wall_time_s": round(event.wall_time_s, 3),
        "monotonic_s": round(event.monotonic_s, 3),
    }
    if event.duration_s is not None:
        record["duration_s"] = round(event.duration_s, 3)
    box = event.best.box_xyxy
    return {
        **record,
        "best_score": round(event.best.score, 4),
        "best_box_xyxy": box and list(box),
        "best_sequence": event.best.sequence,
        "zones": list(event.zones),
    }


def _sighting(frame: Frame, prediction: Prediction, result: ClassResult) -> Sighting:
    height, width = frame.image.shape[:2]
    size = (min(width, _PICTURE_PX), max(1, round(height * min(1.0, _PICTURE_PX / width))))
    picture = np.asarray(cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA), np.uint8)
    labels = cv2.resize(prediction.label_map, size, interpolation=cv2.INTER_NEAREST)
    mask = np.asarray(labels == prediction.classes.index(result.name) + 1, np.bool_)
    return Sighting(result.score, result.box_xyxy, frame.index, picture, mask)
