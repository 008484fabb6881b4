"""Recordings over weeks: segments, how many are kept, the clock of a live video, and states in every sink."""

import json
import math
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from blank import blank_frame, health, no_classes

from fsvit_edge.fewshot.overlay import draw_state
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.live.sinks.base import RecordingOptions, Sink
from fsvit_edge.live.sinks.open import open_sink
from fsvit_edge.live.sinks.segments import Segments
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.pictures import read_image

FPS = 10.0


def frame(index: int, at_s: float, size_hw: tuple[int, int] = (48, 64)) -> Frame:
    return blank_frame(index, at_s, size_hw, 60 + index % 100)


def length(path: Path) -> int:
    with open_source(str(path)) as source:
        return len(list(source))


@pytest.mark.parametrize("suffix", ["mp4", "jsonl"])
def test_segments_are_numbered_and_the_oldest_are_deleted(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"other-000001.{suffix}").write_bytes(b"not ours")
    (tmp_path / f"out-1.{suffix}").write_bytes(b"not ours")
    options = RecordingOptions(segment_s=1.0, keep=2)
    with open_sink(str(tmp_path / f"out.{suffix}"), FPS, options) as sink:
        for index in range(45):
            sink.write(frame(index, 100 + index / FPS), no_classes())
    names = sorted(os.listdir(tmp_path))
    assert names == [
        f"other-000001.{suffix}", f"out-000004.{suffix}", f"out-000005.{suffix}", f"out-1.{suffix}",
    ]  # fmt: skip
    if suffix == "mp4":
        assert [length(tmp_path / name) for name in names[1:3]] == [10, 5]
    else:
        lines = [(tmp_path / name).read_text().splitlines() for name in names[1:3]]
        assert [json.loads(one)["sequence"] for part in lines for one in part] == list(range(30, 45))
    with open_sink(str(tmp_path / f"out.{suffix}"), FPS, options) as sink:
        sink.write(frame(0, 5.0), no_classes())  # after a restart of the machine, its clock is behind
    assert (tmp_path / f"out-000006.{suffix}").exists()


def test_a_frame_of_another_size_starts_a_new_segment(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "out.mp4"), FPS, RecordingOptions(segment_s=60)) as sink:
        sink.write(frame(0, 1.0), no_classes())
        sink.write(frame(1, 1.1, (32, 40)), no_classes((32, 40)))
    assert [length(tmp_path / f"out-00000{number}.mp4") for number in (1, 2)] == [1, 1]


@contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """No file may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("options", [RecordingOptions(), RecordingOptions(segment_s=60.0)])
def test_lines_go_on_when_there_is_room_again(tmp_path: Path, options: RecordingOptions) -> None:
    path = tmp_path / ("out.jsonl" if options.segment_s is None else "out-000001.jsonl")
    with open_sink(str(tmp_path / "out.jsonl"), FPS, options, is_live=True) as sink:
        for index in range(4):
            if index == 2:
                with full_disk(path.stat().st_size + 10), pytest.raises(FsvitEdgeError, match="ends after 2 lines"):
                    sink.write(frame(index, index / FPS), no_classes())
            else:
                sink.write(frame(index, index / FPS), no_classes())
    assert [json.loads(line)["sequence"] for line in path.read_text().splitlines()] == [0, 1, 3]
    assert os.listdir(tmp_path) == [path.name]


def write_frames(sink: Sink, first: int, count: int) -> None:
    for index in range(first, first + count):
        sink.write(frame(index, index / FPS), no_classes())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (RecordingOptions(), {"out.mp4": 10, "out-000001.mp4": 15}),
        (RecordingOptions(segment_s=60.0), {"out-000001.mp4": 10, "out-000002.mp4": 15}),
    ],
)
def test_a_video_goes_on_in_a_numbered_file_when_there_is_room_again(
    tmp_path: Path, options: RecordingOptions, expected: dict[str, int]
) -> None:
    with open_sink(str(tmp_path / "out.mp4"), FPS, options, is_live=True) as sink:
        write_frames(sink, 0, 11)
        for _ in range(3):  # numbers of files in which there is nothing are used again
            with full_disk(100), pytest.raises(FsvitEdgeError, match="free some space"):
                write_frames(sink, 11, 30)
        write_frames(sink, 41, 15)
    assert {name: length(tmp_path / name) for name in os.listdir(tmp_path)} == expected


def leave_unfinished(folder: Path, name: str, frames: int, written_s: float) -> None:
    """What a killed run leaves of out.mp4."""
    with open_sink(str(folder / "made" / "out.mp4"), FPS) as sink:
        write_frames(sink, 0, frames)
        (unfinished,) = (folder / "made").glob("out-unfinished-*")
        (folder / name).write_bytes(unfinished.read_bytes())
    shutil.rmtree(folder / "made")
    os.utime(folder / name, (written_s, written_s))


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ({"out-unfinished-a.mp4": (25, 200.0)}, {"out.mp4": 20}),
        ({"out-unfinished-a.mp4": (25, 200.0), "out-unfinished-b.mp4": (35, 100.0)}, {"out.mp4": 20}),
        ({"out-unfinished-a.mp4": (5, 200.0)}, {"out.mp4": -1}),  # no fragment is complete
        ({"out-unfinished-a.mp4": (25, 10.0)}, {"out.mp4": -1}),  # a later run has ended
        ({"out2-unfinished-a.mp4": (25, 200.0)}, {"out.mp4": -1, "out2-unfinished-a.mp4": 20}),
    ],
)
def test_the_next_run_finishes_what_a_killed_one_left(
    tmp_path: Path, left: dict[str, tuple[int, float]], expected: dict[str, int]
) -> None:
    for name, (frames, written_s) in left.items():
        leave_unfinished(tmp_path, name, frames, written_s)
    (tmp_path / "out.mp4").write_bytes(b"old")
    os.utime(tmp_path / "out.mp4", (50, 50))
    with open_sink(str(tmp_path / "out.mp4"), FPS):
        found = {one.name: -1 if one.read_bytes() == b"old" else length(one) for one in tmp_path.iterdir()}
    assert found == expected


def test_a_recording_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "out.mp4"), FPS) as sink:
        write_frames(sink, 0, 15)
        (before,) = os.listdir(tmp_path)
        with open_sink(str(tmp_path / "out.mp4"), FPS):
            assert os.listdir(tmp_path) == [before]
    assert length(tmp_path / "out.mp4") == 15


def test_only_the_newest_pictures_are_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.jpg").write_bytes(b"not ours")
    (tmp_path / "frame_000099.jpg").write_bytes(b"of an earlier run")
    os.utime(tmp_path / "frame_000099.jpg", (1, 1))
    with open_sink(f"{tmp_path}/", FPS, RecordingOptions(keep=3)) as sink:
        for index in range(5):
            sink.write(frame(index, index / FPS), no_classes())
    expected = ["frame_000002.jpg", "frame_000003.jpg", "frame_000004.jpg", "mine.jpg"]
    assert sorted(os.listdir(tmp_path)) == expected


@pytest.mark.parametrize(
    ("times_s", "expected"),
    [
        ([0, 0.1, 0.2, 0.3], [0, 0.1, 0.2, 0.3]),  # as fast as it was declared
        ([0, 0.5, 1.0, 1.73], [0, 0.5, 1.0, 1.73]),  # slower
        ([0, 0.01, 0.02, 0.5], [0, 0.01, 0.02, 0.5]),  # faster
        ([0, 60.0, 60.1], [0, 1.0, 1.1]),  # a gap is cut to a second
    ],
)
def test_frames_of_a_live_video_are_shown_when_they_were_captured(
    tmp_path: Path, times_s: list[float], expected: list[float]
) -> None:
    with open_sink(str(tmp_path / "out.mp4"), FPS, is_live=True) as sink:
        for index, at_s in enumerate(times_s):
            sink.write(frame(index, 50 + at_s), no_classes())
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.duration == pytest.approx(1e6 * (expected[-1] + 1 / FPS), abs=1000)
        assert [one.time for one in container.decode(video=0)] == pytest.approx(expected, abs=1e-4)


def send(sink_uri: str, reports: list[Health]) -> None:
    with open_sink(sink_uri, FPS, is_live=True) as sink:
        sink.write(frame(0, 10.0), no_classes())
        for report in reports:
            sink.report(report)


OUT = "The plug is out."
REPORTS = [
    *(health("live", 10.5), health("lost", 11.0, message=OUT), health("lost", 12.0, message=OUT)),
    *(health("live", 13.0), health("live", 14.0), health("live", 15.0, frozen=True)),
]


def test_json_lines_contain_each_change_once(tmp_path: Path) -> None:
    send(str(tmp_path / "out.jsonl"), REPORTS)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["frame", "state", "state", "state"]
    assert [(line["state"], line["is_frozen"], line["message"]) for line in lines[1:]] == [
        ("lost", False, "The plug is out."),
        ("live", False, ""),
        ("live", True, ""),
    ]
    assert (lines[1]["boot_id"], lines[1]["captured"], lines[1]["dropped"]) == ("boot", 5, 2)


def test_pictures_and_videos_show_that_the_source_is_lost(tmp_path: Path) -> None:
    send(f"{tmp_path}/pictures/", REPORTS)
    assert sorted(os.listdir(tmp_path / "pictures")) == ["frame_000000.jpg", "frame_000000_lost.jpg"]
    assert read_image(tmp_path / "pictures" / "frame_000000_lost.jpg").mean() < 60
    send(str(tmp_path / "out.mp4"), REPORTS)
    with open_source(str(tmp_path / "out.mp4")) as source:
        images = [one.image for one in source]
    assert len(images) >= 2
    assert images[0].mean() > 40 > images[-1].mean()


def test_a_state_picture_is_gray_and_contains_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((240, 320, 3), np.uint8)
    image[..., 0] = 200
    empty, full = draw_state(image, "lost", ""), draw_state(image, "lost", "The camera has stopped delivering frames.")
    assert np.array_equal(empty[..., 0], empty[..., 2])
    assert (empty > 150).sum() > 100  # the letters
    assert (full > 100).sum() > (empty > 100).sum()
    assert image[0, 0, 0] == 200
    monkeypatch.setattr(cv2, "FontFace", None)
    monkeypatch.delattr(cv2, "FontFace")
    for size in ((8, 8), (1, 1), (40, 500)):
        assert draw_state(np.zeros((*size, 3), np.uint8), "connecting", "a " * 200).shape == (*size, 3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"segment_s": 0.5}, "--segment must be at least 1 second, got 0.5"),
        ({"segment_s": math.nan}, "--segment must be at least 1 second, got nan"),
        ({"segment_s": math.inf}, "--segment must be at least 1 second, got inf"),
        ({"keep": 0}, "--keep must be at least 1 file, got 0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        RecordingOptions(**options)


def test_segments_continue_beyond_a_million(tmp_path: Path) -> None:
    for number in (999_998, 999_999):
        (tmp_path / f"out-{number}.mp4").write_bytes(b"x")
    for expected in ("out-1000000.mp4", "out-1000001.mp4"):
        segments = Segments(tmp_path / "out.mp4", RecordingOptions(segment_s=1, keep=2))
        segments.start(0.0).write_bytes(b"x")
        segments.delete_old()
        assert expected in os.listdir(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["out-1000000.mp4", "out-1000001.mp4"]


def test_without_a_limit_nothing_is_deleted(tmp_path: Path) -> None:
    segments = Segments(tmp_path / "out.mp4", RecordingOptions(segment_s=1))
    for now_s in range(5):
        segments.start(now_s).write_bytes(b"x")
        segments.delete_old()
    assert len(os.listdir(tmp_path)) == 5
    assert segments.is_full(5.0)
    assert not segments.is_full(4.5)
