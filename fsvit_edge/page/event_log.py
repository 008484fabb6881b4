"""The latest events of a run for the page: their records and their pictures, ready to send."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fsvit_edge.fewshot.overlay import PALETTE
from fsvit_edge.live.events import Event, event_record
from fsvit_edge.live.sinks.snapshots import draw_event
from fsvit_edge.page.frame_hub import encode_jpeg
from fsvit_edge.runtime.errors import InputError

MAX_EVENTS = 50


@dataclass(frozen=True)
class KeptEvent:
    """An event without its raw picture, which would take up to 20 times the memory of the JPEG."""

    number: int  # from 1, in the order in which they were told
    record: dict[str, Any]  # see `event_record`
    way: int  # index of the class when it was told, which decides the color
    jpeg: bytes


class EventLog:
    """Keeps the latest 50 events; written by the sink's thread, read by the server's."""

    def __init__(self) -> None:
        self._kept: tuple[KeptEvent, ...] = ()  # replaced as a whole, so that readers need no lock
        self._ways: dict[
            tuple[str, str], int
        ] = {}  # by source, of the classes that are present: one that is removed keeps its color

    @property
    def newest_number(self) -> int:
        """Number of the newest event; 0 before the first."""
        return self._kept[-1].number if self._kept else 0

    def add(self, event: Event, classes: Sequence[str]) -> None:
        """Keep an event and draw its picture; `classes` are the enrolled ones in their order."""
        key = event.source, event.name
        way = classes.index(event.name) if event.name in classes else self._ways.get(key, 0)
        if event.kind == "appeared":
            self._ways[key] = way
        else:
            self._ways.pop(key, None)
        jpeg = encode_jpeg(draw_event(event, way))
        kept = KeptEvent(self.newest_number + 1, event_record(event), way, jpeg)
        self._kept = (*self._kept, kept)[-MAX_EVENTS:]

    def newest_first(self) -> tuple[KeptEvent, ...]:
        """Return the kept events."""
        return self._kept[::-1]

    def picture(self, number: int) -> bytes:
        """Return the picture of an event as a JPEG, at most 640 pixels wide.

        Raises:
            InputError: There is no such event, or it is no longer kept.
        """
        for kept in self._kept:
            if kept.number == number:
                return kept.jpeg
        raise InputError(f"Event {number} is not one of the latest {MAX_EVENTS}; GET /api/events lists them.")


def hex_color(way: int) -> str:
    """The color of a class by its index, as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*PALETTE[way % len(PALETTE)])
