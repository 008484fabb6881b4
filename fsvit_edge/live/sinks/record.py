"""Results and states as JSON objects."""

import json
from typing import Any

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.runtime.prediction import Prediction


def record(frame: Frame, prediction: Prediction) -> dict[str, Any]:
    """Say in JSON's terms what a frame shows.

    Returns:
        "event": "frame"; "sequence": index of the frame, of which a live source's dropped frames leave gaps; "source";
        "wall_time_s" and "monotonic_s": when it came, in seconds; "age_ms": from then to the result, in milliseconds;
        "is_frozen": whether the camera repeats itself; "size_hw": its height and width in pixels; "classes": for each
        enrolled class its "name", "score" in [0, 1], "level" (the score above which it is present), "present",
        "area_px" and "box_xyxy" (left, top, right, bottom; right and bottom are exclusive; null without a pixel), area
        and box being those of the label map, whether the class is present or not; "latency_ms": milliseconds of each
        stage, "decode" first.
    """
    classes = [
        {
            "name": one.name,
            "score": round(one.score, 4),
            "level": round(one.level, 4),
            "present": one.is_present,
            "area_px": one.area_px,
            "box_xyxy": one.box_xyxy and list(one.box_xyxy),
        }
        for one in prediction.results
    ]
    return {
        "event": "frame",
        "sequence": frame.index,
        "source": frame.source,
        "wall_time_s": round(frame.wall_time_s, 3),
        "monotonic_s": round(frame.monotonic_s, 3),
        "age_ms": round(frame.age_ms, 1),
        "is_frozen": frame.is_frozen,
        "size_hw": list(frame.image.shape[:2]),
        "classes": classes,
        "latency_ms": {
            stage: round(float(ms), 2) for stage, ms in {"decode": frame.decode_ms, **prediction.latency_ms}.items()
        },
    }


def state_record(health: Health) -> dict[str, Any]:
    """Say in JSON's terms how a live source fares.

    Returns:
        "event": "state"; "state": "connecting", "live" or "lost"; "is_frozen"; "message": what is wrong, or empty;
        "source"; "wall_time_s" and "monotonic_s": now; "boot_id": which start of the machine the latter counts from;
        "captured", "dropped" and "reconnects" so far; "frames": those that were judged.
    """
    status = health.source_status
    return {
        "event": "state",
        "state": status.state,
        "is_frozen": status.is_frozen,
        "message": status.message,
        "source": health.source,
        "wall_time_s": round(health.wall_time_s, 3),
        "monotonic_s": round(health.monotonic_s, 3),
        "boot_id": health.boot_id,
        "captured": status.captured,
        "dropped": status.dropped,
        "reconnects": status.reconnects,
        "frames": health.frames,
    }


class StateChanges:
    """Tells a change of the source's state from the reports between; a file, always live, never changes."""

    def __init__(self) -> None:
        self._last = ("live", False, "")

    def has_changed(self, health: Health) -> bool:
        """Whether this report differs from the one before in state, frozen frames or message."""
        status = health.source_status
        now = (status.state, status.is_frozen, status.message)
        changed, self._last = now != self._last, now
        return changed


def json_line(said: dict[str, Any]) -> bytes:
    """Make one line of UTF-8 text."""
    return json.dumps(said, ensure_ascii=False).encode() + b"\n"
