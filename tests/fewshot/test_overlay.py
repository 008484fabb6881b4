import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsvit_edge.fewshot import overlay
from fsvit_edge.fewshot.overlay import PALETTE, draw
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.zones import parse_zone

GRAY = 100


def gray_frame(height: int = 360, width: int = 640) -> np.ndarray:
    return np.full((height, width, 3), GRAY, np.uint8)


def prediction(
    names: list[str], scores: list[float], size_hw: tuple[int, int] = (360, 640), label: int = 1
) -> Prediction:
    """The last quarter of the frame, below and right of the list, belongs to the class of `label`."""
    label_map = np.zeros(size_hw, np.uint8)
    label_map[size_hw[0] * 3 // 4 :, size_hw[1] * 3 // 4 :] = label
    return judged(names, scores, label_map)


def judged(names: list[str], scores: list[float], label_map: np.ndarray) -> Prediction:
    values = np.array(scores, np.float32)
    return Prediction(tuple(names), values, np.full_like(values, 0.5), label_map, None, {})


def plate_at(drawn: np.ndarray, answer: Prediction, index: int) -> tuple[int, int, int, int] | None:
    """Where the class's name stands, as (x0, y0, x1, y1); None unless every pixel of its plate is seen."""
    plate = overlay._plate(answer, index, drawn.shape[:2])
    height, width = plate.shape[:2]
    _, _, (x, y), _ = cv2.minMaxLoc(cv2.matchTemplate(drawn, plate, cv2.TM_SQDIFF))
    is_whole = np.array_equal(drawn[y : y + height, x : x + width], plate)
    return (x, y, x + width, y + height) if is_whole else None


def test_the_pixels_of_a_present_class_are_tinted_and_no_others_change() -> None:
    frame = gray_frame()
    drawn = draw(frame, prediction(["cat", "dog"], [0.9, 0.9], label=2))
    blue = PALETTE[1]
    assert tuple(drawn[-20, -20]) == tuple(round(0.55 * GRAY + 0.45 * part) for part in blue)
    assert tuple(drawn[270, 560]) == blue  # the outline
    assert (drawn[-20, 100:400] == GRAY).all()
    assert (drawn.shape, drawn.dtype) == (frame.shape, np.uint8)
    assert (frame == GRAY).all()


@pytest.mark.parametrize(("size_hw", "thickness"), [((180, 320), 1), ((360, 640), 3), ((1080, 1920), 3)])
def test_the_outline_is_a_smooth_line_that_grows_with_the_frame(size_hw: tuple[int, int], thickness: int) -> None:
    row = draw(gray_frame(*size_hw), prediction(["cat"], [0.9], size_hw))[-9, :-9]  # one edge
    assert (np.abs(row - np.array(PALETTE[0], int)) < 10).all(axis=1).sum() == thickness
    tinted = tuple(round(0.55 * GRAY + 0.45 * part) for part in PALETTE[0])
    is_pure = np.any([(row == color).all(axis=1) for color in (PALETTE[0], tinted, (GRAY,) * 3)], axis=0)
    assert not is_pure.all()  # antialiased: some pixels are between two of the colors


@pytest.mark.parametrize(("score", "is_drawn"), [(0.49, False), (0.51, True)])
@pytest.mark.parametrize("label", [0, 1])
def test_nothing_is_drawn_of_an_absent_class(score: float, is_drawn: bool, label: int) -> None:
    drawn = draw(gray_frame(), prediction(["cat"], [score], label=label))
    assert (drawn != GRAY).any() == is_drawn


def test_a_name_is_above_the_middle_of_the_top_of_the_largest_region() -> None:
    label_map = np.zeros((360, 640), np.uint8)
    label_map[40:60, 40:60] = 1
    label_map[200:340, 400:480] = 1
    label_map[300:340, 300:480] = 1
    answer = judged(["cat"], [0.93], label_map)
    found = plate_at(draw(gray_frame(), answer), answer, 0)
    assert found is not None
    x0, _, x1, y1 = found
    assert (x0 + x1) / 2 == pytest.approx(440, abs=2)
    assert 190 <= y1 < 200


@pytest.mark.parametrize("corner_yx", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
@pytest.mark.parametrize("size_hw", [(180, 320), (1080, 1920), (640, 360), (40, 30)])
def test_a_name_stays_inside_the_frame(size_hw: tuple[int, int], corner_yx: tuple[int, int]) -> None:
    label_map = np.zeros(size_hw, np.uint8)
    label_map[corner_yx] = 1
    answer = judged(["a name as long as a bank takes it: " + 45 * "n"], [0.93], label_map)
    assert plate_at(draw(gray_frame(*size_hw), answer), answer, 0) is not None


@st.composite
def crowds(draw_one: st.DrawFn) -> Prediction:
    ways = draw_one(st.integers(1, 4))
    size_hw = draw_one(st.integers(180, 400)), draw_one(st.integers(320, 700))
    label_map = np.zeros(size_hw, np.uint8)
    for label in draw_one(st.lists(st.integers(1, ways), max_size=8)):
        center = draw_one(st.integers(0, size_hw[1])), draw_one(st.integers(0, size_hw[0]))
        cv2.circle(label_map, center, draw_one(st.integers(0, 90)), label, cv2.FILLED)
    letters = st.characters().filter(lambda letter: letter.isprintable() and letter != " ")
    names = draw_one(st.lists(st.text(letters, min_size=1, max_size=80), min_size=ways, max_size=ways, unique=True))
    return judged(names, draw_one(st.lists(st.floats(0, 1), min_size=ways, max_size=ways)), label_map)


@settings(max_examples=60)
@given(crowds())
def test_the_name_of_each_class_with_pixels_is_drawn_in_full(answer: Prediction) -> None:
    drawn = draw(gray_frame(*answer.label_map.shape), answer)
    for index, is_present in enumerate(answer.present):
        is_seen = bool(is_present) and (answer.label_map == index + 1).any()
        assert (plate_at(drawn, answer, index) is not None) == is_seen


def nested(ways: int) -> Prediction:
    """All classes begin at the same place of the upper edge."""
    label_map = np.zeros((360, 640), np.uint8)
    for label in range(1, ways + 1):
        label_map[: 340 - 10 * label, 200 + 5 * label : 440 - 5 * label] = label
        label_map[: 340 - 10 * label, 205 + 5 * label : 435 - 5 * label] = 0
    return judged([f"class number {index}" for index in range(ways)], [0.9] * ways, label_map)


def test_names_at_the_same_place_are_moved_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = nested(4)
    drawn = draw(gray_frame(), answer)
    places = [plate_at(drawn, answer, index) for index in range(4)]
    assert None not in places
    monkeypatch.setattr(overlay, "_free_place", lambda wanted, *_: tuple(int(part) for part in np.maximum(wanted, 0)))
    piled = draw(gray_frame(), answer)
    assert [plate_at(piled, answer, index) is not None for index in range(4)] == [False, False, False, True]


def test_a_name_without_space_is_listed_and_no_name_covers_the_list() -> None:
    label_map = np.zeros((90, 160), np.uint8)
    for label in range(1, 41):
        label_map[2 * label, :] = label
    answer = judged([f"class number {index}" for index in range(40)], [0.9] * 40, label_map)
    drawn = draw(gray_frame(90, 160), answer)
    places = [plate_at(drawn, answer, index) for index in range(40)]
    standing = [place for place in places if place is not None]
    assert 2 <= len(standing) < 40
    listed = [index for index, place in enumerate(places) if place is None]
    panel = overlay._corner_list(gray_frame(90, 160), answer, listed)
    assert all(x0 >= panel.shape[1] or y0 >= panel.shape[0] for x0, y0, _, _ in standing)
    letters = panel > 150
    assert letters.sum() > 100
    assert (drawn[: panel.shape[0], : panel.shape[1]][letters] > 100).all()


def test_letters_are_black_or_white_whichever_contrasts_more() -> None:
    for index, color in enumerate(PALETTE):
        answer = prediction(["cat"] * 10, [0.9] * 10)
        plate = overlay._plate(answer, index, (1080, 1920)).reshape(-1, 3)
        lights = np.where(plate / 255 <= 0.04045, plate / 255 / 12.92, ((plate / 255 + 0.055) / 1.055) ** 2.4)
        light = lights @ (0.2126, 0.7152, 0.0722)
        own = light[(plate == color).all(axis=1)].mean()
        letter = max((light.max() + 0.05) / (own + 0.05), (own + 0.05) / (light.min() + 0.05))
        assert letter > 4.5  # what WCAG asks of text


def test_the_bar_grows_with_the_score() -> None:
    def bar_px(score: float) -> int:
        listed = draw(gray_frame(), prediction(["cat"], [score], label=0))[:40, 40:200]
        return int((listed == PALETTE[0]).all(axis=2).sum())

    assert 0 < bar_px(0.6) < bar_px(0.8) < bar_px(1.0)


def test_a_tick_marks_the_level_on_the_bar() -> None:
    def drawn(level: float) -> np.ndarray:
        return draw(gray_frame(), replace(prediction(["cat"], [0.9], label=0), levels=np.array([level], np.float32)))

    leftmost = drawn(1e-6)
    places = []
    for level in (0.25, 0.5, 0.75):
        columns = np.flatnonzero((drawn(level) != leftmost).any(axis=(0, 2)))
        assert len(columns) == 4  # two of the tick, two where the other one stood
        places.append(int(columns[2] - columns[0]))
    assert places[0] > 4
    np.testing.assert_allclose(np.diff(places), places[0], atol=1)


@pytest.mark.parametrize("size_hw", [(64, 64), (64, 640), (640, 64), (120, 160), (1080, 1920), (2160, 3840)])
@pytest.mark.parametrize("ways", [1, 5, 40])
def test_frames_of_every_size_are_drawn_and_stay_visible(size_hw: tuple[int, int], ways: int) -> None:
    names = [f"a rather long name of class {index}" for index in range(ways)]
    drawn = draw(gray_frame(*size_hw), prediction(names, [0.9] * ways, size_hw))
    assert drawn.shape == (*size_hw, 3)
    unchanged = (drawn == GRAY).all(axis=2).mean()
    assert 0.25 < unchanged < 1


def test_the_text_grows_with_the_frame() -> None:
    heights = []
    for size_hw in [(180, 320), (360, 640), (1440, 2560)]:
        answer = prediction(["cat"], [0.9], size_hw)
        found = plate_at(draw(gray_frame(*size_hw), answer), answer, 0)
        assert found is not None
        heights.append(found[3] - found[1])
        listed = draw(gray_frame(*size_hw), prediction(["cat"], [0.9], size_hw, label=0))
        assert heights[-1] < (listed[:, 0] != GRAY).any(axis=1).sum() < 2 * heights[-1]
    assert heights[0] >= 16
    assert 3.5 < heights[2] / heights[1] < 4.5


@pytest.fixture(params=["OpenCV 5", "OpenCV 4"])
def opencv(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "OpenCV 4":
        monkeypatch.delattr(cv2, "FontFace", raising=False)
    elif not hasattr(cv2, "FontFace"):
        pytest.skip("this OpenCV has no letters beyond ASCII")
    overlay._text.cache_clear()
    overlay.fitting_text.cache_clear()
    return str(request.param)


@pytest.mark.usefixtures("opencv")
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("pair", ["猫 犬", "Größe Grüße", "кот дом", "cat dog", "แมว หมา", "😀 🚀", "e\u0301 e\u0300"])
def test_names_in_any_script_look_different(pair: str, label: int) -> None:
    one, other = pair.split()
    pictures = [draw(gray_frame(), prediction([name], [0.9], label=label)) for name in (one, other, "?" * len(one))]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


@pytest.mark.usefixtures("opencv")
@pytest.mark.parametrize("letter", ["n", "W", "猫", "ß", "😀"])
def test_long_names_are_cut_with_dots(letter: str) -> None:
    answers = [prediction([letter * count], [0.9]) for count in (1, 79, 80)]
    plates = [overlay._plate(answer, 0, (180, 320)) for answer in answers]
    assert plates[0].shape[1] < plates[1].shape[1] < 200
    assert np.array_equal(plates[1], plates[2])
    own = [(plate == PALETTE[0]).all(axis=2) for plate in plates]
    assert all(plate[:, :4].all() and plate[:, -4:].all() for plate in own)  # nothing runs into the edge


def test_the_colors_are_distinct() -> None:
    colors = np.array(PALETTE, int)
    distances = np.abs(colors[:, None] - colors[None]).sum(axis=2) + 999 * np.eye(len(colors), dtype=int)
    assert distances.min() > 60


def test_drawing_a_camera_frame_takes_at_most_3_ms() -> None:
    frame, answer = gray_frame(), prediction(["cat", "coffee", "astronaut", "rocket"], [0.9, 0.1, 0.7, 0.2])
    times = []
    for _ in range(30):
        started = time.perf_counter()
        draw(frame, answer)
        times.append(time.perf_counter() - started)
    assert min(times) < 3e-3


def test_a_zone_is_a_thin_line_below_the_classes_with_its_name() -> None:
    answer = prediction(["cat"], [0.9])
    zoned = replace(answer, zones=(parse_zone("door=0.2,0.2,0.9,0.2,0.9,0.9,0.2,0.9"),))
    frame = gray_frame()
    drawn, without = draw(frame, zoned), draw(frame, answer)
    row = drawn[200, 100:160]  # across the left edge, which is at column 128
    changed = np.flatnonzero((row != GRAY).any(axis=1))
    assert 3 <= len(changed) <= 5
    assert np.array_equal(row[28], (255, 255, 255))
    assert row[changed[0]].max() < GRAY
    assert np.array_equal(drawn[200, 135:570], without[200, 135:570])  # nothing inside
    assert tuple(drawn[270, 560]) == PALETTE[0]  # the outline of the class
    plate = drawn[73:80, 132:180]
    assert plate.min() < GRAY / 2  # the name, light on dark
    assert plate.max() > GRAY


def test_a_zone_in_a_corner_of_a_tiny_frame_is_drawn() -> None:
    for size in ((8, 8), (1, 1), (40, 20)):
        answer = replace(prediction(["cat"], [0.1], size), zones=(parse_zone("a long name=1,1,0.9,1,1,0.9"),))
        assert draw(gray_frame(*size), answer).shape == (*size, 3)
