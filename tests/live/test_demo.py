import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from fsvit_edge.live.sources import demo
from fsvit_edge.live.sources.demo import (
    DEMO_CLASSES,
    DEMO_FPS,
    DEMO_SIZE_HW,
    demo_frame,
    demo_length,
    demo_supports,
    demo_truth,
)
from fsvit_edge.runtime.errors import EnvironmentLacksError

pytest.importorskip("skimage")


@pytest.fixture
def fresh() -> Iterator[None]:
    def forget() -> None:
        demo.photo_strip.cache_clear()
        demo.photograph.cache_clear()

    forget()
    yield
    forget()


def corners(matrix: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    height, width = size_hw
    frame = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1]])
    return frame @ matrix.T


@pytest.mark.usefixtures("fresh")
def test_the_same_number_gives_the_same_frame() -> None:
    first = [demo_frame(index) for index in (0, 100, 333)]
    demo.photo_strip.cache_clear()
    assert all(np.array_equal(demo_frame(index), frame) for index, frame in zip((0, 100, 333), first, strict=True))


def test_a_round_takes_twelve_to_twenty_seconds_and_repeats() -> None:
    assert 12 <= demo_length() / DEMO_FPS <= 20
    assert np.array_equal(demo_frame(7), demo_frame(7 + demo_length()))
    assert np.array_equal(demo_truth(7), demo_truth(7 + 2 * demo_length()))


def test_frames_and_truth_have_the_documented_shape() -> None:
    assert (demo_frame(0).shape, demo_frame(0).dtype) == ((*DEMO_SIZE_HW, 3), np.uint8)
    assert (demo_truth(0).shape, demo_truth(0).dtype) == (DEMO_SIZE_HW, np.uint8)


def test_the_camera_moves_without_a_jump_even_into_the_next_round() -> None:
    strip = demo.photo_strip()
    centers = np.array([corners(matrix, DEMO_SIZE_HW).mean(axis=0) for matrix in (*strip.path, strip.path[0])])
    steps = np.diff(centers, axis=0)
    width = strip.rgb.shape[1]
    steps[:, 0] = (steps[:, 0] + width / 2) % width - width / 2
    assert np.hypot(*steps.T).max() < 120
    last, first = (demo_frame(index).astype(int) for index in (demo_length() - 1, 0))
    assert np.abs(last - first).mean() < 20
    assert np.abs(demo_frame(demo_length() // 2).astype(int) - first).mean() > 30


def test_the_camera_never_looks_past_the_photographs() -> None:
    strip = demo.photo_strip()
    rows = np.array([corners(matrix, DEMO_SIZE_HW)[:, 1] for matrix in strip.path])
    assert rows.min() >= 0
    assert rows.max() <= strip.rgb.shape[0] - 1
    for wanted in demo.SUPPORT_VIEWS:
        view, (height, width) = wanted.view, wanted.size_hw
        seen = corners(
            demo.camera_map(view.x, view.y, view.width / width, view.angle, (height, width)), (height, width)
        )
        photo = demo.photograph(wanted.photo or demo.OUTLINES[wanted.name][0])
        assert (seen >= 0).all(), wanted.name
        assert (seen <= (photo.shape[1] - 1, photo.shape[0] - 1)).all(), wanted.name


def test_the_tour_shows_every_class_and_pictures_without_one() -> None:
    truths = [demo_truth(index) for index in range(demo_length())]
    for label in range(1, len(DEMO_CLASSES) + 1):
        assert sum((truth == label).mean() > 0.03 for truth in truths) > 2 * DEMO_FPS, DEMO_CLASSES[label - 1]
    assert sum(not truth.any() for truth in truths) > 3 * DEMO_FPS
    assert max(truth.max() for truth in truths) == len(DEMO_CLASSES)


def test_the_outlines_fit_the_objects() -> None:
    # The tank is red (so is a box on the shelf), the suit is orange, the rocket is brighter than the night: a shifted
    # outline would miss that.
    for name, photo_says in {
        "motorcycle": lambda rgb: (rgb[..., 0] - rgb[..., 1] > 100) & (np.indices(rgb.shape[:2])[1] < 500),
        "astronaut": lambda rgb: (rgb[..., 0] > 180) & (rgb[..., 2] < 90),
        "rocket": lambda rgb: (rgb.min(axis=2) > 110) & (np.indices(rgb.shape[:2])[0] < 330),
    }.items():
        rgb = demo.photograph(demo.OUTLINES[name][0]).astype(int)
        inside = demo.outline_mask(name, rgb.shape[:2], scale=1.0) > 0
        found = photo_says(rgb)
        assert found[inside].mean() > 8 * found[~inside].mean(), name


def test_the_supports_cover_each_class_and_only_the_motorcycle_has_no_mask() -> None:
    supports = demo_supports()
    assert tuple(dict.fromkeys(support.name for support in supports)) == DEMO_CLASSES
    assert {support.name for support in supports if support.mask is None} == {"motorcycle"}
    for support in supports:
        assert support.image.dtype == np.uint8
        assert support.image.ndim == 3
        if support.mask is not None:
            assert support.mask.shape == support.image.shape[:2]
            assert support.mask.dtype == np.bool_
            assert 0.05 < support.mask.mean() < 0.8, support.name


def test_no_support_is_a_frame_of_the_tour() -> None:
    shapes = {support.image.shape for support in demo_supports()}
    assert (*DEMO_SIZE_HW, 3) not in shapes


@pytest.mark.usefixtures("fresh")
def test_the_demo_does_not_use_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the demo used the network")

    monkeypatch.setattr(socket, "socket", refuse)
    demo_frame(0)
    demo_supports()


def test_scikit_image_is_read_but_not_imported() -> None:
    use = "from fsvit_edge.live.sources.demo import demo_frame; demo_frame(0)"
    code = f"import sys; {use}; print('skimage' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"


@pytest.mark.usefixtures("fresh")
def test_a_missing_scikit_image_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    for call in (demo_length, demo_supports):
        with pytest.raises(EnvironmentLacksError) as raised:
            call()
        assert str(raised.value) == 'The demo needs scikit-image; install it with: pip install "fsvit-edge[demo]"'


@pytest.mark.usefixtures("fresh")
def test_a_missing_photograph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TOUR", (demo.Stop("gone.png", 1.0, demo.View(0, 0, 1), demo.View(0, 0, 1)),))
    with pytest.raises(EnvironmentLacksError, match=r"needs the photograph gone\.png, .* reinstall it with"):
        demo_length()
