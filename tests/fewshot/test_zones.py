"""Zones: how one is written, what is refused, and which of them a class is in."""

import numpy as np
import pytest

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.zones import MAX_ZONES, MIN_SHARE, Zone, _mask, check_zones, parse_zone, without_zone
from fsvit_edge.runtime.errors import InputError

LEFT = parse_zone("left=0,0,0.5,0,0.5,1,0,1")
CORNER = parse_zone("top right=0.6,0,1,0,1,0.4")


def test_a_zone_is_a_name_and_corners() -> None:
    assert Zone("left", ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))) == LEFT
    assert CORNER.name == "top right"
    assert parse_zone("a=b=0,0,1,0,1,1").name == "a=b"
    assert CORNER.corners_px((101, 201)).tolist() == [[120, 0], [200, 0], [200, 40]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("door", "Unsupported zone 'door'; expected NAME=x1,y1,x2,y2,... with at least 3 corners, as shares of the"),
        ("0,0,1,0,1,1", "Unsupported zone"),
        ("door=", "Unsupported zone"),
        ("door=0,0,1,0,one,1", "Unsupported zone 'door=0,0,1,0,one,1'"),
        ("door=0,0,1,0,1", "Unsupported zone"),
        ("door=0,0,1,1", "Zone 'door' has 2 corners; expected"),
        (f"door={'0,0,' * 100}1,1", "Zone 'door' has 101 corners; give at most 100."),
        ("door=0,0,640,0,640,360", "Zone 'door' has 640 in a corner; expected"),
        ("door=0,0,-0.1,0,1,1", "Zone 'door' has -0.1 in a corner"),
        ("door=0,0,nan,0,1,1", "Zone 'door' has nan in a corner"),
        ("door=0,0,0.5,0.5,1,1", "The corners of zone 'door' enclose no area; give them in order around the zone."),
        ("door=0,0,0,0,0,0", "The corners of zone 'door' enclose no area"),
        ("=0,0,1,0,1,1", "A zone name must be 1 to 80 printable characters, got ''."),
        ("a\nb=0,0,1,0,1,1", "A zone name must be 1 to 80 printable characters"),
        (f"{'x' * 81}=0,0,1,0,1,1", "A zone name must be 1 to 80"),
    ],
)
def test_a_bad_zone_is_refused_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_zone(text)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


CROSSED = {
    "a bow tie": "0.6,0.1,0.9,0.9,0.9,0.1,0.6,0.9",
    "a lopsided one": "0.6,0.1,0.9,0.9,0.9,0.1,0.6,0.5",
    "the frame's diagonals": "0,0,1,1,1,0,0,1",
    "a five-pointed star": "0.5,0,0.8,1,0,0.4,1,0.4,0.2,1",
    "a corner used twice": "0,0,0.5,0.5,1,0,1,1,0.5,0.5,0,1",
    "a loop behind a repeated corner": "0.6,0.1,0.6,0.1,0.9,0.9,0.9,0.1,0.6,0.5",
}
ORDERED = {
    "the bow tie's corners in order": "0.6,0.1,0.9,0.1,0.9,0.9,0.6,0.9",
    "the other way around": "0.6,0.9,0.9,0.9,0.9,0.1,0.6,0.1",
    "a dart": "0,0,0.5,0.4,1,0,0.5,1",
    "corners on one line": "0.1,0.1,0.2,0.2,0.3,0.3,0.7,0.7,0.9,0.9,0.9,0.1",
    "corners repeated in a row": "0,0,1,0,1,0,1,1,0,1,0,1,0,0",
    "many corners": ",".join(
        f"{0.5 + 0.5 * np.cos(at)},{0.5 + 0.5 * np.sin(at)}" for at in np.arange(100) * np.pi / 50
    ),
}


@pytest.mark.parametrize("corners", CROSSED.values(), ids=CROSSED)
def test_a_zone_whose_edges_cross_is_refused(corners: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_zone(f"x={corners}")
    assert str(refused.value) == "The edges of zone 'x' cross; give the corners in order around the zone."


@pytest.mark.parametrize("corners", ORDERED.values(), ids=ORDERED)  # the control
def test_a_zone_whose_edges_do_not_cross_is_taken(corners: str) -> None:
    assert parse_zone(f"x={corners}").name == "x"


def test_two_zones_of_one_name_are_refused() -> None:
    check_zones((LEFT, CORNER))
    with pytest.raises(InputError, match="Two zones are named 'left'; give each its own name"):
        check_zones((LEFT, CORNER, parse_zone("left=0,0,1,0,1,1")))


def test_a_zone_is_removed_by_its_name() -> None:
    assert without_zone((LEFT, CORNER), "left") == (CORNER,)
    for zones, known in (((CORNER,), "top right"), ((), "none")):
        with pytest.raises(InputError, match=f"There is no zone 'left'; zones: {known}."):
            without_zone(zones, "left")


def zones_of(pixels: np.ndarray, zones: tuple[Zone, ...]) -> tuple[str, ...]:
    """The zones that a present class with these pixels is in."""
    one, level = np.array([0.9], np.float32), np.array([0.5], np.float32)
    return Prediction(("cup",), one, level, pixels, None, {}, zones=zones).results[0].zones


def strip(columns: slice) -> np.ndarray:
    """Pixels in these of 200 columns."""
    pixels = np.zeros((100, 200), np.uint8)
    pixels[40:60, columns] = 1
    return pixels


def test_a_class_is_in_a_zone_that_holds_enough_of_it() -> None:
    # The left half includes column 100 of 200: of 99 columns, `inside` lie in it.
    enough = round(np.ceil(99 * MIN_SHARE))
    for inside, expected in ((99, ("left",)), (enough, ("left",)), (enough - 1, ()), (0, ())):
        assert zones_of(strip(slice(101 - inside, 200 - inside)), (LEFT, CORNER)) == expected, inside
    assert zones_of(strip(slice(0, 0)), (LEFT, CORNER)) == ()


def test_a_zone_is_a_polygon_and_not_its_box() -> None:
    pixels = np.zeros((100, 200), np.uint8)
    pixels[30:38, 122:150] = 1  # in the triangle's box, below its long edge
    assert zones_of(pixels, (CORNER,)) == ()
    assert zones_of(np.ascontiguousarray(pixels[::-1]), (CORNER,)) == ()
    pixels[2:10, 180:198] = 1
    assert zones_of(pixels, (CORNER,)) == ("top right",)


def test_a_zone_follows_the_size_of_the_frame() -> None:
    for size in ((50, 80), (720, 1280), (50, 80)):
        pixels = np.zeros(size, np.uint8)
        pixels[:, : size[1] // 4] = 1
        assert zones_of(pixels, (LEFT, CORNER)) == ("left",)


def test_only_a_present_class_is_in_a_zone() -> None:
    labels = np.full((40, 60), 1, np.uint8)
    labels[:, 30:] = 2
    scores = np.array([0.4, 0.9], np.float32)
    levels = np.full(2, 0.5, np.float32)
    right = parse_zone("right=0.5,0,1,0,1,1,0.5,1")
    answer = Prediction(("cup", "pen"), scores, levels, labels, None, {}, zones=(LEFT, right))
    assert [result.zones for result in answer.results] == [(), ("right",)]
    held = Prediction(
        ("cup", "pen"), scores, levels, labels, None, {}, steady_present=np.ones(2, np.bool_), zones=(LEFT,)
    )
    assert [result.zones for result in held.results] == [("left",), ()]


def test_the_masks_of_all_zones_are_kept_and_those_of_other_frames_are_not() -> None:
    zones = tuple(Zone(str(number), LEFT.corners) for number in range(MAX_ZONES))
    for height in (*range(2, 20), 20, 20):
        misses = _mask.cache_info().misses
        zones_of(np.ones((height, 30), np.uint8), zones)
        assert _mask.cache_info().currsize <= MAX_ZONES
    assert _mask.cache_info().misses == misses
    zones_of(np.ones((21, 30), np.uint8), zones)
    assert _mask.cache_info().misses == misses + MAX_ZONES  # the control
