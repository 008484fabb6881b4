"""The sink `masks:FOLDER/`."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsvit_edge.fewshot.index_mask import index_color
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.run import run_source
from fsvit_edge.live.sinks.base import RecordingOptions
from fsvit_edge.live.sinks.open import open_sink, recording_folder, sinks_of_sources
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.pictures import write_image


def frame(index: int, picture: str = "") -> Frame:
    return Frame(np.zeros((20, 30, 3), np.uint8), index, "test", 0.0, 0.0, 0.0, picture=picture)


def prediction() -> Prediction:
    """Two present classes, and one that is absent but has pixels."""
    label_map = np.zeros((20, 30), np.uint8)
    label_map[2:5, 2:9], label_map[10:12, 3:20], label_map[15:, 25:] = 1, 2, 3
    levels = np.full(3, 0.5, np.float32)
    return Prediction(("cup", "pen", "key"), np.float32([0.9, 0.1, 0.8]), levels, label_map, None, {})


@pytest.mark.parametrize("end", ["/", ""])
def test_a_pixel_of_an_index_mask_is_its_class_if_that_is_present(tmp_path: Path, end: str) -> None:
    with open_sink(f"masks:{tmp_path}/new{end}", 25.0) as sink:
        sink.write(frame(7), prediction())
        sink.write(frame(8, "cat"), prediction())
        sink.write(frame(9, "cat"), prediction())
    assert sorted(os.listdir(tmp_path / "new")) == ["cat-2.png", "cat.png", "frame_000007.png"]
    expected = prediction().label_map.copy()
    expected[expected == 2] = 0
    for path in (tmp_path / "new").iterdir():
        with Image.open(path) as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), expected)
            assert image.convert("RGB").getpixel((29, 19)) == index_color(3)


def test_only_the_newest_masks_are_kept(tmp_path: Path) -> None:
    (tmp_path / "frame_000001.jpg").write_bytes(b"not ours")
    with open_sink(f"masks:{tmp_path}/", 25.0, RecordingOptions(keep=2)) as sink:
        for index in range(4):
            sink.write(frame(index), prediction())
    assert sorted(os.listdir(tmp_path)) == ["frame_000001.jpg", "frame_000002.png", "frame_000003.png"]


def test_masks_do_not_go_between_the_pictures_that_are_read(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(InputError, match="is the source, which it would overwrite"):
        run_source(str(tmp_path), [f"masks:{tmp_path}/"])
    assert recording_folder(f"masks:{tmp_path}/") == recording_folder(f"masks:{tmp_path}") == tmp_path


def test_each_source_has_masks_of_its_own() -> None:
    with pytest.raises(InputError, match=r"as in: --sink masks:out/\{source\}/"):
        sinks_of_sources("masks:out", ["door", "gate"])
    assert sinks_of_sources("masks:{source}/", ["a", "b"]) == [("a", "masks:a/"), ("b", "masks:b/")]


@pytest.mark.parametrize("uri", ["masks:", "masks://host/x/"])
def test_masks_without_a_folder_are_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="Unsupported sink"):
        open_sink(uri, 25.0)
    assert os.listdir(tmp_path) == []
