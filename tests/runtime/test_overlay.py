import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

from fsvit_edge.runtime import overlay
from fsvit_edge.runtime.overlay import PALETTE, draw
from fsvit_edge.runtime.prediction import Prediction

GREY = 100


def grey_frame(height: int = 360, width: int = 640) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def prediction(
    names: list[str], scores: list[float], size_hw: tuple[int, int] = (360, 640), label: int = 1
) -> Prediction:
    """The last quarter of the frame, below and right of the legend, belongs to the class of `label`."""
    label_map = np.zeros(size_hw, np.uint8)
    label_map[size_hw[0] * 3 // 4 :, size_hw[1] * 3 // 4 :] = label
    values = np.array(scores, np.float32)
    return Prediction(tuple(names), values, np.full_like(values, 0.5), label_map, None, {})


def test_the_frame_itself_is_not_touched() -> None:
    frame = grey_frame()
    drawn = draw(frame, prediction(["cat"], [0.9]))
    assert (frame == GREY).all()
    assert (drawn.shape, drawn.dtype) == (frame.shape, np.uint8)


def test_the_pixels_of_a_present_class_lean_to_its_colour_and_no_others_change() -> None:
    answer = prediction(["cat", "dog"], [0.9, 0.9], label=2)
    drawn = draw(grey_frame(), answer)
    blue = PALETTE[1]
    assert tuple(drawn[-20, -20]) == tuple(round(0.55 * GREY + 0.45 * part) for part in blue)
    assert (drawn[-20, 100:400] == GREY).all()


def test_the_outline_is_drawn_in_the_full_colour() -> None:
    drawn = draw(grey_frame(), prediction(["cat"], [0.9]))
    assert tuple(drawn[270, 560]) == PALETTE[0]


@pytest.mark.parametrize(("only_present", "tinted"), [(True, False), (False, True)])
def test_the_pixels_of_an_absent_class_are_drawn_only_on_demand(only_present: bool, tinted: bool) -> None:
    drawn = draw(grey_frame(), prediction(["cat"], [0.2]), only_present=only_present)
    assert (drawn[-20, -20] != GREY).any() == tinted


def test_present_classes_are_bright_in_the_legend_and_absent_ones_dim() -> None:
    absent = draw(grey_frame(), prediction(["cat"], [0.49]))[:40, :200].astype(int)
    present = draw(grey_frame(), prediction(["cat"], [0.51]))[:40, :200].astype(int)
    assert present.max() == 255
    assert absent.max() < 170


def test_the_bar_grows_with_the_score() -> None:
    def bar_px(score: float) -> int:
        legend = draw(grey_frame(), prediction(["cat"], [score]))[:40, 40:200]
        return int((legend == PALETTE[0]).all(axis=2).sum())

    assert 0 < bar_px(0.6) < bar_px(0.8) < bar_px(1.0)


def test_a_tick_stands_on_the_bar_where_the_level_is() -> None:
    def drawn(level: float) -> np.ndarray:
        return draw(grey_frame(), replace(prediction(["cat"], [0.9]), levels=np.array([level], np.float32)))

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
def test_every_frame_size_is_drawn_and_stays_visible(size_hw: tuple[int, int], ways: int) -> None:
    names = [f"a rather long name of class {index}" for index in range(ways)]
    drawn = draw(grey_frame(*size_hw), prediction(names, [0.9] * ways, size_hw))
    assert drawn.shape == (*size_hw, 3)
    unchanged = (drawn == GREY).all(axis=2).mean()
    assert 0.3 < unchanged < 1


def test_the_text_grows_with_the_frame() -> None:
    small = draw(grey_frame(360, 640), prediction(["cat"], [0.2]))
    large = draw(grey_frame(1440, 2560), prediction(["cat"], [0.2], (1440, 2560)))
    dark = [int((picture[:, 0] != GREY).any(axis=1).sum()) for picture in (small, large)]
    assert 3.5 < dark[1] / dark[0] < 4.5


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
@pytest.mark.parametrize(("one", "other"), [("猫", "犬"), ("Größe", "Grüße"), ("кот", "дом"), ("cat", "dog")])
def test_names_in_any_script_are_told_apart(one: str, other: str) -> None:
    pictures = [draw(grey_frame(), prediction([name], [0.9]))[:40, 20:] for name in (one, other, "?" * len(one))]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_the_colours_are_distinct() -> None:
    colours = np.array(PALETTE, int)
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 999 * np.eye(len(colours), dtype=int)
    assert distances.min() > 60


def test_drawing_a_camera_frame_takes_at_most_3_ms() -> None:
    frame, answer = grey_frame(), prediction(["cat", "coffee", "astronaut", "rocket"], [0.9, 0.1, 0.7, 0.2])
    times = []
    for _ in range(30):
        started = time.perf_counter()
        draw(frame, answer)
        times.append(time.perf_counter() - started)
    assert min(times) < 3e-3
