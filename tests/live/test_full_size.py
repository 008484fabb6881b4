"""Index masks and JSON lines of a picture file that was read smaller are in the pixels of the file."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsvit_edge.fewshot.full_size import enlarged, place_in_file
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.sinks.open import open_sink
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.runtime import pictures

ONE = np.array([0.9], np.float32)


def answer(size_hw: tuple[int, ...]) -> Prediction:
    """Two parts, one of them in the last corner, that together have a hole."""
    label_map = np.zeros(size_hw[:2], np.uint8)
    label_map[3:12, 2:15] = 1
    label_map[6:8, 5:9] = 0
    label_map[-9:, -11:] = 1
    return Prediction(("cup",), ONE, ONE / 2, label_map, None, {})


def read(folder: Path, size: tuple[int, int]) -> Frame:
    Image.new("RGB", size, "gray").save(folder / "photo.jpg")
    with open_source(str(folder / "photo.jpg")) as source:
        frame = source.read(1.0)
    assert frame is not None
    return frame


@pytest.mark.parametrize(("size", "scale"), [((81, 57), 2), ((80, 62), 2), ((163, 121), 4), ((70, 50), 1)])
def test_masks_and_json_have_the_size_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], scale: int
) -> None:
    monkeypatch.setattr(pictures, "MAX_PICTURE_PX", 80 * 50)
    frame = read(tmp_path, size)
    assert frame.image.shape[:2] == (-(-size[1] // scale), -(-size[0] // scale))
    prediction = answer(frame.image.shape)
    for uri in (f"masks:{tmp_path}/masks/", str(tmp_path / "out.jsonl")):
        with open_sink(uri, 25.0) as sink:
            sink.write(frame, prediction)
    with Image.open(tmp_path / "masks" / "photo.png") as image:
        assert image.size == size
        mask = np.asarray(image)
    record = json.loads((tmp_path / "out.jsonl").read_text())
    assert record["size_hw"] == list(size[::-1])
    (found,) = record["classes"]
    rows, columns = np.nonzero(mask)
    assert found["area_px"] == rows.size
    assert found["box_xyxy"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert sum(part["area_px"] for part in found["instances"]) == rows.size
    for part in found["instances"]:
        left, top, right, bottom = part["box_xyxy"]
        assert np.count_nonzero(mask[top:bottom, left:right]) == part["area_px"]


def test_an_absent_class_has_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PICTURE_PX", 80 * 50)
    frame = read(tmp_path, (81, 57))
    nothing = Prediction(("cup",), ONE / 4, ONE / 2, answer(frame.image.shape).label_map, None, {})
    with open_sink(str(tmp_path / "out.jsonl"), 25.0) as sink:
        sink.write(frame, nothing)
    (found,) = json.loads((tmp_path / "out.jsonl").read_text())["classes"]
    assert (found["area_px"], found["box_xyxy"], found["instances"]) == (0, None, [])


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_an_area_is_that_of_the_enlarged_pixels(scale: int) -> None:
    random = np.random.default_rng(scale)
    for _ in range(50):
        height, width = (int(side) for side in random.integers(3, 20, 2))
        size_hw = (height * scale - int(random.integers(scale)), width * scale - int(random.integers(scale)))
        whole = random.random((height, width)) < 0.5
        left, top = int(random.integers(width)), int(random.integers(height))
        right, bottom = int(random.integers(left, width)) + 1, int(random.integers(top, height)) + 1
        area, box = place_in_file((left, top, right, bottom), whole[top:bottom, left:right], scale, size_hw)
        inside = np.zeros_like(whole)
        inside[top:bottom, left:right] = whole[top:bottom, left:right]
        assert area == np.count_nonzero(enlarged(inside, scale, size_hw))
        assert box == (left * scale, top * scale, min(right * scale, size_hw[1]), min(bottom * scale, size_hw[0]))
