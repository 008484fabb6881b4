"""Recordings: H.264 in MP4 at any rate and size, which can be read after a kill and plays in a real browser."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from blank import blank_frame, no_classes
from playwright.sync_api import Page, sync_playwright
from sample_files import write_video

from fsvit_edge.live.sinks.base import RecordingOptions
from fsvit_edge.live.sinks.json_lines import frame_record
from fsvit_edge.live.sinks.open import open_sink
from fsvit_edge.live.sinks.video_file import VideoFile
from fsvit_edge.live.sources.base import SourceOptions
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.runtime.errors import EnvironmentLacksError
from fsvit_edge.runtime.pictures import write_image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SIZE_HW = (96, 128)


def picture(index: int = 0) -> np.ndarray:
    """One gray per frame."""
    return np.full((*SIZE_HW, 3), 40 + index, np.uint8)


def record(path: Path, fps: float = 10.0, count: int = 25) -> None:
    with open_sink(str(path), fps) as sink:
        for index in range(count):
            sink.write(blank_frame(index, 0.0, SIZE_HW, 40 + index), no_classes(SIZE_HW))


def times_s(path: Path) -> list[float]:
    """When each frame is shown; opened by Python, which knows every name of a file."""
    with path.open("rb") as file, av.open(file) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def duration_s(path: Path) -> float:
    with path.open("rb") as file, av.open(file) as container:
        assert container.duration is not None
        return container.duration / 1e6


def test_a_recording_is_h264_with_an_index_and_opencv_reads_it(tmp_path: Path) -> None:
    record(tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, stream.frames, stream.average_rate) == ("h264", "yuv420p", 25, 10)
        assert container.duration == 2_500_000
        colors = [(frame.colorspace, frame.color_range) for frame in container.decode(stream)]
        container.seek(0)
        keys = [
            packet.pts * packet.time_base for packet in container.demux(stream) if packet.is_keyframe and packet.size
        ]
    assert set(colors) == {(6, 1)}  # BT.601, limited
    assert keys == [0, 1, 2]
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"), cv2.CAP_FFMPEG)
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (25, 10)
    for index in range(25):
        ok, shown = capture.read()
        assert ok
        assert np.abs(shown.astype(int) - 40 - index).max() <= 2
    assert not capture.read()[0]


def test_colors_come_back(tmp_path: Path) -> None:
    file = VideoFile(tmp_path / "out.mp4", tmp_path / "out.mp4", 10.0)
    file.write(np.full((*SIZE_HW, 3), (200, 40, 20), np.uint8), 0.1)
    file.finish()
    _, bgr = cv2.VideoCapture(str(tmp_path / "out.mp4"), cv2.CAP_FFMPEG).read()
    assert np.abs(bgr[20, 20].astype(int) - (20, 40, 200)).max() <= 6


@pytest.mark.parametrize("size_hw", [(66, 130), (90, 854), (97, 131)])
def test_every_size_is_kept_in_its_place(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    """FFmpeg's rows are longer than those of some of these pictures."""
    height, width = size_hw[0] & -2, size_hw[1] & -2
    quarters = np.array([[(200, 40, 20), (20, 120, 200)], [(240, 240, 240), (30, 140, 40)]], np.uint8)
    shown = cv2.resize(quarters, size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    file = VideoFile(tmp_path / "out.mp4", tmp_path / "out.mp4", 10.0)
    for _ in range(3):
        file.write(shown, 0.1)
    file.finish()
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(height, width, 3)] * 3
    error = np.abs(frames[-1].astype(int) - shown[:height, :width])
    assert error.mean() <= 5  # at the edges of the colors


@pytest.mark.parametrize("fps", [0.5, 8.6, 24000 / 1001, 29.97, 66.667, 196.263, 1000.0])
def test_every_rate_is_kept(tmp_path: Path, fps: float) -> None:
    record(tmp_path / "out.mp4", fps, 12)
    assert times_s(tmp_path / "out.mp4") == pytest.approx([index / fps for index in range(12)], abs=1e-5)
    assert duration_s(tmp_path / "out.mp4") == pytest.approx(12 / fps, abs=1e-3)
    rate = cv2.VideoCapture(str(tmp_path / "out.mp4"), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FPS)
    assert rate == pytest.approx(fps, rel=2e-3)


def test_a_file_with_uneven_times_keeps_them_and_tells_them(tmp_path: Path) -> None:
    source_s = [0, 0.1, 0.15, 2.5, 2.6]
    file = VideoFile(tmp_path / "in.mp4", tmp_path / "in.mp4", 10.0)
    for index, after_s in enumerate(np.diff([0, *source_s])):
        file.write(picture(index), after_s)
    file.finish()
    assert times_s(tmp_path / "in.mp4") == pytest.approx(source_s, abs=1e-4)
    told_s = []
    with (
        open_source(str(tmp_path / "in.mp4"), SourceOptions(loop=True)) as source,
        open_sink(str(tmp_path / "out.mp4"), 10.0) as sink,
    ):
        for frame in itertools.islice(source, 7):
            sink.write(frame, no_classes(SIZE_HW))
            told_s.append(frame_record(frame, no_classes(SIZE_HW))["media_time_s"])
    assert told_s == [*source_s, 0, 0.1]
    assert times_s(tmp_path / "out.mp4") == pytest.approx([*source_s, 2.7, 2.8], abs=1e-3)


def test_pictures_have_no_time(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", picture())
    with open_source(str(tmp_path)) as source:
        assert [frame.media_time_s for frame in source] == [None]


def test_opencv_could_not_even_start_one_of_these_rates(tmp_path: Path) -> None:
    """The control."""
    fourcc = cv2.VideoWriter.fourcc(*"mp4v")
    assert not cv2.VideoWriter(str(tmp_path / "out.mp4"), cv2.CAP_FFMPEG, fourcc, 196.263, (128, 96)).isOpened()


def test_pictures_at_the_same_time_follow_one_another(tmp_path: Path) -> None:
    file = VideoFile(tmp_path / "out.mp4", tmp_path / "out.mp4", 10.0)
    for index, after_s in enumerate([0.0, 0.0, -3.0, 0.5]):
        file.write(picture(index), after_s)
    file.finish()
    shown_s = times_s(tmp_path / "out.mp4")
    assert len(shown_s) == 4
    assert all(now < later for now, later in itertools.pairwise(shown_s))
    assert shown_s[3] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("name", ["Größe 猫.mp4", os.fsdecode(b"caf\xe9.mp4"), "a:b|c%d.MP4"])
def test_every_name_of_a_file_can_be_written(tmp_path: Path, name: str) -> None:
    record(tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    assert len(times_s(tmp_path / name)) == 25


WRITER = """
import sys
import numpy as np
from blank import blank_frame, no_classes
from fsvit_edge.live.sinks.base import RecordingOptions
from fsvit_edge.live.sinks.open import open_sink
segment_s = float(sys.argv[2]) or None
with open_sink(sys.argv[1], 10.0, RecordingOptions(segment_s)) as sink:
    for index in range(36):
        sink.write(blank_frame(index, index / 10, (96, 128), 40 + index), no_classes((96, 128)))
    print("written", flush=True)
    sys.stdin.read()
"""
OPENCV_WRITER = """
import sys
import cv2, numpy as np
writer = cv2.VideoWriter(sys.argv[1], cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (128, 96))
for index in range(36):
    writer.write(np.full((96, 128, 3), 40 + index, np.uint8))
print("written", flush=True)
sys.stdin.read()
"""


def write_and_kill(code: str, path: Path, segment_s: float = 0) -> None:
    """Let another process write 36 frames, 10 per second, and kill it before it finishes the file."""
    command = [sys.executable, "-c", code, str(path), str(segment_s)]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env={**os.environ, "PYTHONPATH": paths}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.kill()
        process.wait()


@pytest.mark.parametrize("segment_s", [0, 60])
def test_a_killed_run_leaves_all_but_the_last_second(tmp_path: Path, segment_s: float) -> None:
    (tmp_path / "out.mp4").write_bytes(b"old")
    write_and_kill(WRITER, tmp_path / "out.mp4", segment_s)
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 2
    assert (tmp_path / "out.mp4").read_bytes() == b"old"
    left = tmp_path / next(name for name in names if name != "out.mp4")
    assert left.name == "out-000001.mp4" if segment_s else left.name.startswith("out-unfinished-")
    assert 36 - 10 <= len(times_s(left)) <= 36
    capture = cv2.VideoCapture(str(left), cv2.CAP_FFMPEG)
    assert sum(iter(lambda: capture.read()[0], False)) == len(times_s(left))
    with open_sink(str(tmp_path / "out.mp4"), 10.0) as sink:  # the next run to one file takes it for that of the last
        sink.write(blank_frame(0, 0.0, SIZE_HW), no_classes(SIZE_HW))
    assert left.exists() == bool(segment_s)


def test_opencv_left_nothing_that_can_be_read(tmp_path: Path) -> None:
    """The control."""
    write_and_kill(OPENCV_WRITER, tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").exists()
    with pytest.raises(av.FFmpegError):
        times_s(tmp_path / "out.mp4")


def test_numbered_files_have_their_name_from_the_start_and_count_as_kept(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "out.mp4"), 10.0, RecordingOptions(1, keep=2)) as sink:
        for index in range(35):
            sink.write(blank_frame(index, index / 10, SIZE_HW), no_classes(SIZE_HW))
        assert sorted(os.listdir(tmp_path)) == ["out-000003.mp4", "out-000004.mp4"]


def test_an_encoder_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"h264", "mpeg4"})
    with pytest.raises(EnvironmentLacksError, match=r"This av was built without libx264, .* pip install"):
        record(tmp_path / "out.mp4")
    assert os.listdir(tmp_path) == []


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(EnvironmentLacksError, match=r"A video needs av, which is not installed; .*: pip install av"):
        open_sink(str(tmp_path / "out.mp4"), 10.0)
    assert os.listdir(tmp_path) == []


def test_a_package_that_is_installed_and_does_not_load_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "av.py").write_text("raise ImportError('libavcodec.so.61: no such file')")
    monkeypatch.delitem(sys.modules, "av")
    monkeypatch.syspath_prepend(tmp_path / "broken")
    said = (
        r"A video needs av, which is installed and cannot be loaded \(libavcodec\.so\.61: no such file\); see: .*doctor"
    )
    with pytest.raises(EnvironmentLacksError, match=said):
        open_sink(str(tmp_path / "out.mp4"), 10.0)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield browser.new_page()
        browser.close()


PLAY = """name => new Promise(tell => {
  const video = document.createElement("video");
  video.muted = true;
  video.src = name;
  video.ontimeupdate = () => video.currentTime > 0 && tell([video.videoWidth, video.videoHeight]);
  video.onerror = () => tell("refused, error " + video.error.code);
  video.play().catch(() => {});
})"""


def played(page: Page, path: Path) -> object:
    """What Chromium says of a file: its size once it plays, or why it does not."""
    path.with_name("page.html").write_text("<!doctype html><title>A video</title>")
    page.goto(path.with_name("page.html").as_uri())
    return page.evaluate(PLAY, path.as_uri())


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: sudo apt install chromium")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # playwright leaves its loop's sockets to the collector
def test_a_browser_plays_a_finished_and_a_killed_recording_and_refuses_mpeg_4_part_2(
    tmp_path: Path, page: Page
) -> None:
    record(tmp_path / "out.mp4")
    assert played(page, tmp_path / "out.mp4") == [128, 96]
    (tmp_path / "killed").mkdir()
    write_and_kill(WRITER, tmp_path / "killed" / "out.mp4")
    (left,) = (tmp_path / "killed").iterdir()
    assert played(page, left) == [128, 96]
    write_video(tmp_path / "old.mp4", [picture(index) for index in range(25)], 10.0)
    assert played(page, tmp_path / "old.mp4") == "refused, error 4"  # the control
