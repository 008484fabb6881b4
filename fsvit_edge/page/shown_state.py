"""Everything that the page shows, as JSON that is worked out once for all who ask while nothing changes."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, fields

from fsvit_edge.fewshot.cached_support import ClassSupports
from fsvit_edge.fewshot.prediction import ClassResult, Prediction
from fsvit_edge.fewshot.review_items import ReviewItems
from fsvit_edge.fewshot.scene import false_alarm_bound
from fsvit_edge.fewshot.zones import Zone
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.live.shared_model import Enrolled
from fsvit_edge.page import schemas
from fsvit_edge.page.event_log import hex_color


class ShownState:
    """The newest answers of /api/state, one for each source.

    It takes long with many classes, so it is made in the thread of the first request after a change; the server only
    sends it.
    """

    def __init__(self) -> None:
        self._making = threading.Lock()
        self._made: dict[str, tuple[Seen, bytes]] = {}

    def json(self, source: str, look: Callable[[str], "Seen"]) -> bytes:
        """Return `schemas.State` as JSON, of what there is to see when those who asked before have their answer."""
        with self._making:
            seen, made = look(source), self._made.get(source)
            if made is None or not seen.is_same(made[0]):
                made = self._made[source] = (seen, _state(seen).model_dump_json().encode())
            return made[1]


@dataclass(frozen=True)
class Seen:
    """What a state is made of; objects are replaced as a whole when they change."""

    source: str
    health: Health | None
    newest: tuple[Frame, Prediction] | None
    enrolled: Enrolled
    zones_of_run: tuple[Zone, ...]
    scene_check: schemas.SceneCheck | None
    newest_event: int
    review: ReviewItems
    run_id: str
    revision: int
    bank_file: str
    is_there: bool
    is_saved: bool
    is_followed: bool

    def is_same(self, other: "Seen") -> bool:
        """Whether nothing was replaced; numbers and texts are compared by value."""
        return all(
            mine == theirs if isinstance(mine, (int, str)) else mine is theirs
            for mine, theirs in ((getattr(self, one.name), getattr(other, one.name)) for one in fields(self))
        )


def _state(seen: Seen) -> schemas.State:
    health, newest, enrolled = seen.health, seen.newest, seen.enrolled
    classes = {}
    for index, name in enumerate(enrolled.supports):
        classes[name] = schemas.ClassState(
            name=name,
            color=hex_color(index),
            level_source=enrolled.level_sources[name],
            supports=_support_states(enrolled.supports[name]),
            negatives=_support_states(enrolled.negatives[name]),
        )
    frame = None
    if newest is not None:
        shown, prediction = newest
        size_hw = (shown.image.shape[0], shown.image.shape[1])
        frame = schemas.FrameState(sequence=shown.index, size_hw=size_hw, is_frozen=shown.is_frozen)
        for result in prediction.results:
            if one := classes.get(result.name):
                _set_result(one, result, prediction)
    return schemas.State(
        health=None if health is None else health.of(seen.source).to_dict(),
        source=seen.source,
        sources=[
            schemas.SourceState(
                name=one.name, state=one.status.state, is_frozen=one.status.is_frozen, has_ended=one.has_ended
            )
            for one in (() if health is None or len(health.sources) < 2 else health.sources)
        ],
        frame=frame,
        classes=list(classes.values()),
        zones=_zone_states(seen),
        zones_are_fixed=bool(seen.zones_of_run),
        scene_frames=enrolled.scene_frames,
        scene_check=seen.scene_check,
        false_alarm_bound=round(false_alarm_bound(enrolled.scene_frames), 4),
        events=schemas.EventsState(
            are_told=newest is not None and newest[1].steady_present is not None, newest=seen.newest_event
        ),
        run_id=seen.run_id,
        review=schemas.ReviewCounts(
            doubtful=sum(one.verdict is None for one in seen.review),
            judged=sum(one.verdict is not None for one in seen.review),
        ),
        revision=revision_text(seen.run_id, seen.revision),
        bank=schemas.BankState(
            file=seen.bank_file, is_there=seen.is_there, is_saved=seen.is_saved, is_followed=seen.is_followed
        ),
    )


def revision_text(run_id: str, revision: int) -> str:
    """Return what changes when the classes change, and in a new run."""
    return f"{run_id}-{revision}"


def found_classes(prediction: Prediction) -> list[schemas.FoundClass]:
    """Describe what was found of each class in a frame, in the order and the colors of the state."""
    found = [schemas.FoundClass(name=name, color=hex_color(index)) for index, name in enumerate(prediction.classes)]
    for one, result in zip(found, prediction.results, strict=True):
        _set_result(one, result, prediction)
    return found


def _set_result(one: schemas.FoundClass, result: ClassResult, prediction: Prediction) -> None:
    one.score, one.raw_score = round(result.score, 4), round(result.raw_score, 4)
    one.level = round(result.level, 4)
    one.present, one.area = result.is_present, round(result.area, 4)
    one.instances = [
        schemas.InstanceState(box_xyxy=part.box_xyxy, area=round(part.area_px / prediction.label_map.size, 4))
        for part in prediction.instances(result.name)
    ]


def _support_states(supports: ClassSupports) -> list[schemas.SupportState]:
    return [schemas.SupportState(has_mask=one.has_mask, key=one.thumbnail_key) for one in supports]


def _zone_states(seen: Seen) -> list[schemas.ZoneState]:
    results = () if seen.newest is None else seen.newest[1].results
    return [
        schemas.ZoneState(
            name=zone.name,
            corners=list(zone.corners),
            classes=[result.name for result in results if zone.name in result.zones],
        )
        for zone in seen.zones_of_run or seen.enrolled.zones
    ]
