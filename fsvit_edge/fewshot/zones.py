"""Zones: named parts of the frame, and which of them a class is in."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.names import check_name, composed, quoted, resolved
from fsvit_edge.fewshot.support_masks import Box
from fsvit_edge.runtime.errors import ArtifactError, InputError

MAX_ZONES = 16
"""Of one camera; each is drawn on every frame, and every present class is compared with it."""
MAX_CORNERS = 100
MIN_SHARE = 0.2
"""Share of a class's pixels that must lie in a zone.

Outlines are larger than the things: on pascal10-coseg, 17 % of the zones without the thing get a pixel of its outline,
and 2 % a fifth of it; 2 % of the zones with more than half of the thing get less (`benchmarks/parts.py`).
"""

_EXPECTED = "expected NAME=x1,y1,x2,y2,... with at least 3 corners, as shares of the frame from 0 to 1"
_KEY = "zones"  # in a bank's header


@dataclass(frozen=True)
class Zone:
    """A polygon in the frame.

    Attributes:
        name: 1 to 80 printable characters.
        corners: 3 to 100 (x, y), in order around the zone, as shares of the frame's width and height in [0, 1].

    Raises:
        InputError: The name or a corner is impossible, the edges cross, or the corners enclose no area.
    """

    name: str
    corners: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        name = self.name
        check_name(name, "zone")
        if len(self.corners) < 3:
            raise InputError(f"Zone {quoted(name)} has {len(self.corners)} corners; {_EXPECTED}.")
        if len(self.corners) > MAX_CORNERS:
            raise InputError(f"Zone {quoted(name)} has {len(self.corners)} corners; give at most {MAX_CORNERS}.")
        for value in (value for corner in self.corners for value in corner):
            if not 0 <= value <= 1:
                raise InputError(f"Zone {quoted(name)} has {value:g} in a corner; {_EXPECTED}.")
        if _edges_cross(self.corners):
            raise InputError(f"The edges of zone {quoted(name)} cross; give the corners in order around the zone.")
        xs, ys = np.array(self.corners).T
        if abs(np.dot(xs, np.roll(ys, -1)) - np.dot(ys, np.roll(xs, -1))) < 1e-6:
            raise InputError(f"The corners of zone {quoted(name)} enclose no area; give them in order around the zone.")

    def corners_px(self, size_hw: tuple[int, int]) -> npt.NDArray[np.int32]:
        """Return the corners in pixels of a frame of this height and width, (corners, 2) as (x, y)."""
        return np.asarray(np.round(np.array(self.corners) * (np.array(size_hw[::-1]) - 1)), np.int32)


def _edges_cross(corners: tuple[tuple[float, float], ...]) -> bool:
    """Whether two edges that are not neighbors meet; a corner that is repeated in a row counts once."""
    before = (corners[-1], *corners[:-1])
    start = np.array([corner for corner, last in zip(corners, before, strict=True) if corner != last]).reshape(-1, 2)
    end = np.roll(start, -1, axis=0)

    def side_of_edge(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(edge, point): -1, 0 or 1."""
        ahead, away = (end - start)[:, None], points[None] - start[:, None]
        return np.asarray(np.sign(ahead[..., 0] * away[..., 1] - ahead[..., 1] * away[..., 0]), np.float64)

    straddles = side_of_edge(start) * side_of_edge(end) <= 0
    low, high = np.minimum(start, end), np.maximum(start, end)
    # Of edges on one line, rounding decides on which side of each other they are.
    overlap = ((low[:, None] <= high[None]) & (low[None] <= high[:, None])).all(axis=2)
    places = np.arange(len(start))
    distance = (places[:, None] - places[None]) % max(1, len(start))
    neighbors = (distance <= 1) | (distance == len(start) - 1)
    return bool((straddles & straddles.T & overlap & ~neighbors).any())


def parse_zone(text: str) -> Zone:
    """Read NAME=x1,y1,x2,y2,...

    Raises:
        InputError: It is not one.
    """
    name, equals, numbers = text.rpartition("=")
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        values = []
    if not equals or not values or len(values) % 2:
        raise InputError(f"Unsupported zone {quoted(text)}; {_EXPECTED}.")
    return Zone(composed(name.strip()), tuple(zip(values[::2], values[1::2], strict=True)))


def check_zones(zones: tuple[Zone, ...]) -> None:
    """Refuse more than `MAX_ZONES` zones and two of one name, with an InputError."""
    if len(zones) > MAX_ZONES:
        raise InputError(f"There can be at most {MAX_ZONES} zones, got {len(zones)}; remove one first.")
    names = [zone.name for zone in zones]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Two zones are named {quoted(name)}; give each its own name.")


def without_zone(zones: tuple[Zone, ...], name: str) -> tuple[Zone, ...]:
    """Remove the zone of this name; an InputError if there is none."""
    names = [zone.name for zone in zones]
    name = resolved(name, names)
    if name not in names:
        raise InputError(f"There is no zone {quoted(name)}; zones: {', '.join(names) or 'none'}.")
    return tuple(zone for zone in zones if zone.name != name)


def zones_header(zones: tuple[Zone, ...]) -> dict[str, Any]:
    """The part of a bank's header that describes its zones; nothing if there are none."""
    return {_KEY: [asdict(zone) for zone in zones]} if zones else {}


def read_zones(path: Path, header: Mapping[str, Any]) -> tuple[Zone, ...]:
    """Read the zones of a bank's file.

    Raises:
        ArtifactError: They are not a list of names and corners.
        InputError: A zone is impossible.
    """
    listed = header.get(_KEY, [])
    if not isinstance(listed, list):
        raise ArtifactError(f"Bank {path} is damaged: its zones are {listed!r:.120}, not a list.")
    for place, facts in enumerate(listed):
        if not _is_zone(facts):
            raise ArtifactError(f"Bank {path} is damaged: its zone {place} is {facts!r:.120}.")
    return tuple(Zone(facts["name"], tuple((x, y) for x, y in facts["corners"])) for facts in listed)


def _is_zone(facts: Any) -> bool:
    return (
        isinstance(facts, dict)
        and facts.keys() == {"name", "corners"}
        and isinstance(facts["name"], str)
        and isinstance(facts["corners"], list)
        and all(isinstance(corner, list) and len(corner) == 2 for corner in facts["corners"])
        and all(type(value) in (int, float) for corner in facts["corners"] for value in corner)
        and all(not abs(value) > 1e6 for corner in facts["corners"] for value in corner)  # or it is no float
    )


def zones_of(pixels: npt.NDArray[np.uint8], box_xyxy: Box, area_px: int, zones: tuple[Zone, ...]) -> tuple[str, ...]:
    """Name the zones that hold at least `MIN_SHARE` of the pixels of a map, (H, W) uint8, 0 or 1, with box and area."""
    if not zones or area_px == 0:
        return ()
    left, top, right, bottom = box_xyxy
    inside = np.s_[top:bottom, left:right]
    names = []
    for zone in zones:
        shared = cv2.bitwise_and(pixels[inside], _mask(zone, (pixels.shape[0], pixels.shape[1]))[inside])
        if cv2.countNonZero(shared) >= MIN_SHARE * area_px:
            names.append(zone.name)
    return tuple(names)


@lru_cache(maxsize=MAX_ZONES)  # of one size of frames; at 4K, 8 MB each
def _mask(zone: Zone, size_hw: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return the zone at a frame's size, (H, W) uint8, 255 inside."""
    mask = np.zeros(size_hw, np.uint8)
    return np.asarray(cv2.fillPoly(mask, [zone.corners_px(size_hw)], (255,)), np.uint8)
