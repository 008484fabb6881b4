"""Snapshots: one picture for each appearance, in the end the best one, and no more than are kept."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from blank import blank_frame

from fsvit_edge.fewshot.names import MAX_NAME_LENGTH
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.events import Event, EventDetector, EventKind, Sighting
from fsvit_edge.live.sinks.base import EventOptions, Sink
from fsvit_edge.live.sinks.open import open_event_sinks
from fsvit_edge.live.sinks.snapshots import SnapshotSink
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.pictures import read_image

AT_S = 1_700_000_000.25  # 2023-11-14 22:13:20.25 UTC


def event(kind: EventKind = "appeared", name: str = "cup", at_s: float = AT_S, gray: int = 50) -> Event:
    mask = np.zeros((48, 64), np.bool_)
    mask[20:40, 10:30] = True
    best = Sighting(0.9, (10, 20, 30, 40), 7, blank_frame(value=gray).image, mask)
    return Event(kind, name, "cam", at_s, 1.0, 1.0 if kind == "left" else None, best)


def grays(folder: Path) -> dict[str, int]:
    """The gray of each picture, away from what is drawn in."""
    return {path.name: int(read_image(path)[44, 60, 0]) for path in sorted(folder.iterdir())}


def test_a_picture_is_written_when_a_class_appears_and_replaced_by_the_best_when_it_leaves(tmp_path: Path) -> None:
    with SnapshotSink(tmp_path, 10) as sink:
        sink.tell(event(gray=50))
        assert grays(tmp_path) == {"20231114T221320.250Z-cup.jpg": pytest.approx(50, abs=3)}
        sink.tell(event("left", at_s=AT_S + 60, gray=200))
        assert grays(tmp_path) == {"20231114T221320.250Z-cup.jpg": pytest.approx(200, abs=3)}
        sink.tell(event(at_s=AT_S + 90))
        assert len(grays(tmp_path)) == 2


def test_the_outline_and_the_name_are_drawn(tmp_path: Path) -> None:
    with SnapshotSink(tmp_path, 10) as sink:
        sink.tell(event())
    (path,) = tmp_path.iterdir()
    drawn = read_image(path).astype(int)
    is_colored = np.ptp(drawn, axis=2) > 30
    assert is_colored[22:38, 12:28].mean() > 0.9
    assert is_colored[:18].any()  # the plate with the name is above it
    assert not is_colored[44:].any()


def test_a_large_frame_has_its_outline_where_the_class_is(tmp_path: Path) -> None:
    frame = blank_frame(size_hw=(720, 1280), value=50)
    labels = np.zeros((720, 1280), np.uint8)
    labels[400:600, 800:1200] = 2
    scores = np.array([0.1, 0.9], np.float32)
    prediction = Prediction(("pen", "cup"), scores, np.full(2, 0.5, np.float32), labels, None, {})
    (one,) = EventDetector().update(frame, prediction, 0.0)
    with SnapshotSink(tmp_path, 10) as sink:
        sink.tell(one)
    (path,) = tmp_path.iterdir()
    drawn = read_image(path).astype(int)
    assert drawn.shape == (360, 640, 3)
    is_colored = np.ptp(drawn, axis=2) > 30
    assert is_colored[205:295, 405:595].mean() > 0.95
    assert not is_colored[200:, :390].any()


@pytest.mark.parametrize(
    "name", ["a/b", "..", "-rf *", "x" * MAX_NAME_LENGTH, "猫" * MAX_NAME_LENGTH, "😀" * MAX_NAME_LENGTH]
)
def test_any_name_of_a_class_gives_a_safe_name_of_a_file(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "snapshots"
    folder.mkdir()
    with SnapshotSink(folder, 10) as sink:
        sink.tell(event(name=name))
        assert sink.trouble == ""
    assert os.listdir(tmp_path) == ["snapshots"]
    (written,) = os.listdir(folder)
    assert re.fullmatch(r"20231114T221320\.250Z-[\w-]*\.jpg", written)
    assert len(os.fsencode(written)) < 200


def test_two_classes_in_one_frame_have_two_pictures_even_if_their_names_are_alike(tmp_path: Path) -> None:
    with SnapshotSink(tmp_path, 10) as sink:
        sink.tell(event(name="a/b", gray=50))
        sink.tell(event(name="a b", gray=100))
        sink.tell(event("left", name="a/b", at_s=AT_S + 9, gray=200))
    assert grays(tmp_path) == {
        "20231114T221320.250Z-a_b.jpg": pytest.approx(200, abs=3),
        "20231114T221320.250Z-a_b-2.jpg": pytest.approx(100, abs=3),
    }


def test_the_oldest_are_deleted_also_those_of_an_earlier_run_and_no_other_file(tmp_path: Path) -> None:
    for name in ("holiday.jpg", "20231114T221320.250Z-cup.png"):
        (tmp_path / name).write_text("mine")
    with SnapshotSink(tmp_path, 3) as sink:
        for number in range(4):
            sink.tell(event(at_s=AT_S + number))
    for age, path in enumerate(sorted(tmp_path.glob("*-cup.jpg"), reverse=True)):
        os.utime(path, (AT_S - age, AT_S - age))
    with SnapshotSink(tmp_path, 3) as sink:
        for name in ("pen", "/", "猫"):  # whatever the name, it is found again
            sink.tell(event(name=name, at_s=0.0))  # the clock of a device without a battery
    with SnapshotSink(tmp_path, 2) as sink:
        sink.tell(event(name="last", at_s=1.0))
    left = {path.name for path in tmp_path.iterdir()}
    assert {"holiday.jpg", "20231114T221320.250Z-cup.png", "19700101T000001.000Z-last.jpg"} < left
    assert len(left) == 4


def test_a_full_disk_is_trouble_in_one_sentence_until_it_has_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _data: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    with SnapshotSink(tmp_path, 10) as sink:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            sink.tell(event(name="cup"))
            said = sink.trouble
            sink.tell(event(name="pen"))
            assert sink.trouble == said  # the run prints what has changed, so it is printed once
        assert said == (
            f"No snapshot can be written to {tmp_path}: No space left on device; it is tried again at the next event."
        )
        assert os.listdir(tmp_path) == []
        sink.tell(event("left", name="cup"))
        assert sink.trouble == ""
    assert len(os.listdir(tmp_path)) == 1


def test_the_folder_is_made_again_if_it_was_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    ((_, sink),) = open_event_sinks(EventOptions(snapshots=folder))
    with sink:
        shutil.rmtree(folder)
        sink.tell(event())
        assert sink.trouble == ""
    assert len(os.listdir(folder)) == 1


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"file cannot be a folder: .*file is a file"):
        next(open_event_sinks(EventOptions(snapshots=tmp_path / "file")))
    with pytest.raises(InputError, match="--keep-snapshots must be at least 1 picture, got 0"):
        EventOptions(snapshots=tmp_path, keep_snapshots=0)


def test_a_folder_that_cannot_be_made_is_an_error() -> None:
    with pytest.raises(FsvitEdgeError, match="The folder /proc/snapshots cannot be created: No such file"):
        next(open_event_sinks(EventOptions(snapshots=Path("/proc/snapshots"))))


def test_names_of_event_sinks_are_safe_to_print(tmp_path: Path) -> None:
    named: list[tuple[str, Sink]] = list(
        open_event_sinks(EventOptions(webhooks=("https://me:secret@host/secret?secret",), snapshots=tmp_path))
    )
    for _, sink in named:
        with sink:
            pass
    assert [name for name, _ in named] == ["https://host", str(tmp_path)]
