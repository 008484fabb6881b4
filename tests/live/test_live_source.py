import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import stub_camera
from blank import until
from PIL import Image

from fsvit_edge.live import opencv
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import SourceStatus
from fsvit_edge.live.sources import capture_process, frame_channel, live
from fsvit_edge.live.sources.base import EndOfSourceError, SourceOptions
from fsvit_edge.live.sources.frame_channel import SAFE_FRAMES, FrameReader, FrameSender
from fsvit_edge.live.sources.live import LiveSource, Timeouts
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.live.uri import SourceAddress
from fsvit_edge.runtime.errors import InputError, SourceError

CAM = SourceAddress("rtsp", "x", "cam")
NO_OPTIONS = SourceOptions()
Captured = tuple[list[dict[str, Any]], str]
Capture = Callable[..., Captured]
ADDRESS = SourceAddress("csi", "0", "stub")
QUICK = Timeouts(open_s=60, first_frame_s=60, frame_s=60, delays_s=(0.05, 0.1))  # only to start again


def open_stub(scenario: str, timeouts: Timeouts = QUICK) -> LiveSource:
    return LiveSource(ADDRESS, SourceOptions(), timeouts=timeouts, command=stub_camera.command(scenario))


def next_frame(source: LiveSource) -> Frame:
    frame = source.read(60)
    assert frame is not None, source.status
    return frame


def status_when(source: LiveSource, holds: Callable[[SourceStatus], bool]) -> SourceStatus:
    """Wait for a status, which may change again soon."""
    due_s = time.monotonic() + 60
    while not holds(status := source.status):
        assert time.monotonic() < due_s, status
        time.sleep(0.002)
    return status


def test_only_the_newest_frame_can_be_read_and_all_others_are_counted_as_dropped() -> None:
    with open_stub("steady") as source:
        first = next_frame(source)
        until(lambda: source.status.captured >= first.index + 10)
        capturing = psutil.Process(source.process_id)
        capturing.suspend()  # or another frame may come while we look
        until(lambda: capturing.status() == psutil.STATUS_STOPPED)
        later = next_frame(source)
        status = source.status
        capturing.resume()
        assert later.index - first.index > 8
        assert np.all(later.image == later.index % 256)
        assert 0 < time.monotonic() - later.monotonic_s < 60
        assert abs((time.time() - later.wall_time_s) - (time.monotonic() - later.monotonic_s)) < 0.5
        assert (status.state, source.fps, source.is_live) == ("live", 30.0, True)
        assert status.captured == later.index + 1
        assert status.dropped == status.captured - 2


def test_a_process_that_ends_is_noticed_at_once_and_restarted() -> None:
    with open_stub("three") as source:
        while next_frame(source).index < 2:
            pass
        lost = status_when(source, lambda status: status.state == "lost")
        assert lost.message == "The process that reads stub has ended (exit code 0)."
        back = status_when(source, lambda status: status.state == "live")
        assert (back.message, back.reconnects) == ("", 1)
        assert next_frame(source).index >= 3  # numbers continue


def test_no_module_of_the_working_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for module in ("json", "numpy", "cv2", "fsvit_edge", "threading", "typing", "random"):
        (tmp_path / f"{module}.py").write_text("open('was-run', 'w').close()")
    Image.new("RGB", (20, 10)).save("cat.png")
    with open_source("cat.png", SourceOptions(realtime=True)) as source:
        assert next(source).image.shape == (10, 20, 3)
    assert not (tmp_path / "was-run").exists()


def test_python_alone_would_run_a_module_of_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("open('was-run', 'w').close()")
    subprocess.run([sys.executable, "-c", "import json"], cwd=tmp_path, check=True)
    assert (tmp_path / "was-run").exists()


def test_a_silent_process_is_killed_and_restarted() -> None:
    with open_stub("hangs", dataclasses.replace(QUICK, frame_s=0.4)) as source:
        next_frame(source)
        first = source.process_id
        lost = status_when(source, lambda status: status.state == "lost")
        assert lost.message == "stub stopped delivering frames; check the camera and its connection."
        assert first is not None
        until(lambda: not psutil.pid_exists(first))
        assert next_frame(source).image.shape == (12, 16, 3)


@pytest.mark.parametrize("scenario", ["mute", "dark"])
def test_a_source_that_does_not_respond_stays_connecting_with_a_reason(scenario: str) -> None:
    with open_stub(scenario, dataclasses.replace(QUICK, open_s=0.6, first_frame_s=0.4, frame_s=0.4)) as source:
        said = ("connecting", "stub does not respond; check the camera and its connection.")
        # Not the first message: on a busy machine a killed process was not gone in time, once, and that was said.
        until(lambda: (source.status.state, source.status.message) == said)
        assert source.status.captured == 0
        until(lambda: source.status.reconnects >= 2)


@pytest.mark.slow
def test_a_process_that_starts_slowly_is_not_taken_for_a_camera_that_does_not_respond() -> None:
    with open_stub("late", dataclasses.replace(QUICK, open_s=2.5)) as source:
        next_frame(source)
        assert source.status.reconnects == 0
    with open_stub("late", dataclasses.replace(QUICK, start_s=0.2)) as source:  # the control
        status = status_when(source, lambda status: status.reconnects > 0)
    assert status.message == "stub cannot be read yet: the machine is too busy to start the process that reads it."


def test_an_rtsp_camera_may_send_its_first_whole_picture_late_and_it_is_said() -> None:
    timeouts = dataclasses.replace(QUICK, key_frame_s=1.2, first_frame_s=0.4, frame_s=0.4, patience_s=0.1)
    address = SourceAddress("rtsp", "rtsp://127.0.0.1:9/x", "cam")
    started_s = time.monotonic()
    with LiveSource(address, SourceOptions(), timeouts=timeouts, command=stub_camera.command("dark")) as source:
        said = status_when(source, lambda status: status.message != "")
        assert said.state == "connecting"
        assert said.message.startswith("cam is open and waits for a key frame, a whole picture;")
        until(lambda: "does not respond" in source.status.message)
        assert time.monotonic() - started_s > 1.2  # any other source waits for 0.4 s


@pytest.fixture
def no_kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[psutil.Process]]]:
    """A driver that hangs ignores SIGKILL. Gives the capture processes, without the browser of other tests."""
    others = psutil.Process().children()
    monkeypatch.setattr(frame_channel.subprocess.Popen, "kill", lambda _: None)

    def started() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child not in others]

    yield started
    kill(started())


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, 60)


LEFT_BEHIND = pytest.mark.filterwarnings("ignore:Exception ignored in. <function Popen.__del__")


@LEFT_BEHIND
def test_no_second_process_starts_while_the_first_cannot_be_killed(
    no_kill: Callable[[], list[psutil.Process]],
) -> None:
    timeouts = dataclasses.replace(QUICK, open_s=0.2)
    with open_stub("undead", timeouts) as source:
        until(lambda: "hangs in its driver" in source.status.message)
        assert source.status.state == "connecting"
        assert len(no_kill()) == 1
        assert source.status.reconnects == 0
        kill(no_kill())
        until(lambda: source.status.reconnects > 0)


@LEFT_BEHIND
@pytest.mark.usefixtures("no_kill")
def test_closing_does_not_wait_for_a_process_that_cannot_be_killed() -> None:
    source = open_stub("undead")
    until(lambda: source.process_id is not None)
    started = time.monotonic()
    source.close()
    assert time.monotonic() - started < 20


def test_the_error_of_the_process_is_the_reason() -> None:
    with open_stub("refused") as source:
        until(lambda: source.status.reconnects >= 2)
        assert source.status.message == "rtsp://host/cam cannot be opened; check the address."
        assert source.status.state == "connecting"


@pytest.mark.parametrize(("scenario", "delay_s", "resets"), [("refused", 3.0, False), ("three", 60.0, True)])
def test_the_second_delay_is_longer_unless_a_frame_came_before(scenario: str, delay_s: float, resets: bool) -> None:
    started_s = time.monotonic()
    with open_stub(scenario, dataclasses.replace(QUICK, delays_s=(0.05, delay_s))) as source:
        until(lambda: source.status.reconnects == 2)
        assert (time.monotonic() - started_s < delay_s) == resets


def test_a_camera_that_is_back_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, False])
    monkeypatch.setattr(live, "is_reachable", lambda _: next(answers, True))
    with open_stub("refused", dataclasses.replace(QUICK, delays_s=(100,))) as source:
        until(lambda: source.status.reconnects == 1)


def test_a_camera_that_was_always_there_does_not_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_s: list[float] = []
    monkeypatch.setattr(live, "is_reachable", lambda _: (looked_s.append(time.monotonic()), True)[1])
    with open_stub("refused", dataclasses.replace(QUICK, delays_s=(1.2,))) as source:
        until(lambda: source.status.reconnects == 1)
        assert time.monotonic() - looked_s[0] > 1.1  # the first look is when the wait begins


@pytest.mark.parametrize(("scenario", "refused_s", "waits"), [("locked", 1.5, True), ("refused", 60.0, False)])
def test_a_camera_that_refuses_the_password_is_not_asked_again_soon(
    scenario: str, refused_s: float, waits: bool
) -> None:
    assert Timeouts().refused_s[0] >= 60
    started_s = time.monotonic()
    with open_stub(scenario, dataclasses.replace(QUICK, refused_s=(refused_s,))) as source:
        until(lambda: source.status.reconnects == 1)
        assert (time.monotonic() - started_s > refused_s) == waits


@pytest.mark.parametrize(("scenario", "looks"), [("locked", False), ("refused", True)])
def test_a_camera_that_refuses_the_password_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, scenario: str, looks: bool
) -> None:
    """A look whether it is there is a connection: two a second, all night."""
    looked: list[object] = []
    monkeypatch.setattr(live, "is_reachable", looked.append)
    with open_stub(scenario, dataclasses.replace(QUICK, refused_s=(1.2,), delays_s=(1.2,))) as source:
        until(lambda: source.status.reconnects == 1)
    assert bool(looked) == looks


def test_frames_may_change_their_size() -> None:
    sizes = [(10, 20), (40, 80), (20, 40), (90, 180), (10, 20)]
    with open_stub("grows") as source:
        frame = None
        while frame is None or frame.index < len(sizes) - 1:  # a busy machine may miss one between
            frame = next_frame(source)
            assert frame.image.shape[:2] == sizes[frame.index]


def test_a_burst_gives_an_intact_newest_frame() -> None:
    with open_stub("burst") as source:
        until(lambda: source.status.captured == 40)
        frame = next_frame(source)
        assert frame.index == 39
        assert np.all(frame.image == 39)
        assert source.status.dropped == 39


def test_frozen_frames_are_flagged_and_still_delivered() -> None:
    with open_stub("frozen") as source:
        until(lambda: next_frame(source).is_frozen)
        assert source.status.is_frozen
        assert source.status.state == "live"


def test_the_only_frame_of_a_file_is_not_lost_at_its_end() -> None:
    with open_stub("film") as source:
        time.sleep(0.5)
        assert next_frame(source).index == 0
        with pytest.raises(EndOfSourceError):
            source.read(5)


def test_a_file_that_fails_is_an_error_and_not_tried_again() -> None:
    address = SourceAddress("path", "album", "album")
    with LiveSource(address, SourceOptions(), command=stub_camera.command("refused")) as source:
        with pytest.raises(SourceError, match="cannot be opened; check the address"):
            next(source)
        assert source.status.reconnects == 0


def test_closing_is_quick_and_leaves_no_process_and_no_descriptor() -> None:
    before = set(os.listdir("/proc/self/fd"))
    source = open_stub("dark")
    until(lambda: source.process_id is not None)
    child = source.process_id
    started = time.monotonic()
    source.close()
    assert time.monotonic() - started < 20
    assert child is not None
    assert not psutil.pid_exists(child)
    assert source.read(0) is None
    assert set(os.listdir("/proc/self/fd")) <= before | {"3"}


def test_iterating_does_not_wait_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsvit_edge.live.sources.base.MAX_WAIT_S", 0.5)
    with open_stub("refused") as source:
        until(lambda: source.status.message != "")
        with pytest.raises(SourceError, match="cannot be opened; check the address"):
            next(source)


def test_a_slot_stays_intact_for_the_promised_number_of_frames(pipe: tuple[int, int]) -> None:
    memory = os.memfd_create("test")
    sender, reader = FrameSender(memory, pipe[1]), FrameReader(memory)
    for number in range(SAFE_FRAMES + 2):
        sender.slot(3, 5)[:] = number
        if number == SAFE_FRAMES:
            assert np.all(reader.copy(0, 3, 5) == 0)
    assert np.all(reader.copy(0, 3, 5) == SAFE_FRAMES + 1)  # and not longer: readers must check
    reader.close()


# ------------------------------------------------------------------------------------------- the capture process


class FakeCapture:
    """A camera that delivers some frames and then calls `then`."""

    def __init__(self, frames: int, then: Callable[[], tuple[bool, np.ndarray | None]], pause_s: float = 0.02) -> None:
        self.left = frames
        self.then = then
        self.pause_s = pause_s
        self.set_values: dict[int, float] = {}
        self.values = {cv2.CAP_PROP_FPS: 30.0}

    def __call__(self, *arguments: object) -> "FakeCapture":
        self.arguments = arguments
        self.transport = os.environ.get("OPENCV_FFMPEG_CAPTURE_OPTIONS")
        return self

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def get(self, name: int) -> float:
        return self.values.get(name, 0.0)

    def set(self, name: int, value: float) -> bool:
        self.set_values[name] = value
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        if self.left == 0:
            return self.then()
        self.left -= 1
        time.sleep(self.pause_s)
        return True, np.full((4, 6, 3), (1, 2, 3), np.uint8)


def gone() -> tuple[bool, np.ndarray | None]:
    return False, None


def late() -> tuple[bool, np.ndarray | None]:
    time.sleep(0.06)
    return True, np.zeros((4, 6, 3), np.uint8)


class Clock:
    """Time in which nothing takes any but a sleep."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def monotonic(self) -> float:
        return self.now_s

    def monotonic_ns(self) -> int:
        return int(self.now_s * 1e9)


def broken() -> tuple[bool, np.ndarray | None]:
    raise cv2.error("driver")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]) -> Capture:
    """Run the loop of the capture process here; return its messages and how it ended."""

    def run(fake: object, address: SourceAddress = CAM, options: SourceOptions = NO_OPTIONS) -> Captured:
        monkeypatch.setattr(cv2, "VideoCapture", fake)
        memory = os.memfd_create("test")
        ended = ""
        try:
            capture_process.capture(address, options, FrameSender(memory, pipe[1]))
        except (SourceError, cv2.error) as error:
            ended = str(error)
        os.set_blocking(pipe[0], False)
        said = [json.loads(line) for line in os.read(pipe[0], 1 << 16).splitlines()]
        os.close(memory)
        return said, ended

    return run


@pytest.mark.parametrize("then", [gone, late])
def test_a_read_that_fails_or_is_late_ends_the_source(
    monkeypatch: pytest.MonkeyPatch, capture: Capture, then: Callable[[], tuple[bool, np.ndarray | None]]
) -> None:
    clock = Clock()
    monkeypatch.setattr(capture_process, "time", clock)
    monkeypatch.setitem(globals(), "time", clock)
    monkeypatch.setattr(capture_process, "STALL_S", 0.05)
    said, ended = capture(FakeCapture(3, then))
    assert [message["frame"]["number"] for message in said[1:]] == [0, 1, 2]
    assert ended == "cam stopped delivering frames; check the camera and its connection."


def test_frames_of_too_many_pixels_end_the_capture(monkeypatch: pytest.MonkeyPatch, capture: Capture) -> None:
    monkeypatch.setattr(opencv, "MAX_PICTURE_PX", 4 * 6 - 1)
    with pytest.raises(InputError, match="cam has frames of 6x4 pixels, more than"):
        capture(FakeCapture(1, gone))


def test_a_driver_that_raises_ends_the_capture(capture: Capture) -> None:
    _, ended = capture(FakeCapture(1, broken), SourceAddress("camera", "x", "cam"))
    assert "driver" in ended


def test_old_frames_that_arrive_in_a_rush_are_skipped(monkeypatch: pytest.MonkeyPatch, capture: Capture) -> None:
    rush = FakeCapture(200, gone, pause_s=0.0)
    rush.values[cv2.CAP_PROP_FPS] = 1.0  # on a busy machine a read took half the time between frames of 30 a second
    monkeypatch.setattr(capture_process, "CATCH_UP_S", 60.0)
    said, _ = capture(rush)
    assert said == [{"opened": 1.0}]
    said, _ = capture(FakeCapture(4, gone))
    assert len(said) == 5  # no frame is skipped that had to be waited for


def test_identical_pixels_are_frozen_after_five_seconds_until_they_change() -> None:
    is_frozen = capture_process.FrozenDetector().is_frozen
    still, other = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
    second = 10**9
    assert [is_frozen(still, t * second) for t in (0, 3, 4, 5, 9)] == [False, False, False, True, True]
    assert not is_frozen(other, 10 * second)
    assert not is_frozen(still, 11 * second)
    assert is_frozen(still, 16 * second)


def test_the_capture_process_has_no_threads_of_opencv_that_spin(
    monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int], tmp_path: Path
) -> None:
    address = SourceAddress("path", str(tmp_path / "none.mp4"), "film")
    request = json.dumps({"address": dataclasses.asdict(address), "options": {}}).encode()
    memory, threads = os.memfd_create("test"), cv2.getNumThreads()
    monkeypatch.setattr(sys, "argv", ["", str(memory), str(pipe[1])])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(request)))
    monkeypatch.setattr(os, "_exit", lambda _: None)
    cv2.setNumThreads(2)
    try:
        capture_process.main()
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(threads)
        os.close(memory)


def test_a_change_in_any_row_tells_that_a_camera_is_not_frozen() -> None:
    second = 10**9
    for changing in range(40):
        detector, frame = capture_process.FrozenDetector(), np.zeros((40, 4, 3), np.uint8)
        for t in range(12):
            frame[changing, 3, 2] = t  # a clock in a dark picture
            assert not detector.is_frozen(frame, t * second), changing
        assert [detector.is_frozen(frame, t * second) for t in (12, 15, 16, 17)] == [False, False, True, True]


def test_a_camera_is_opened_with_v4l2_only_at_the_requested_size_and_rate(capture: Capture) -> None:
    fake = FakeCapture(1, gone)
    options = SourceOptions(width=1280, height=720, fps=15)
    capture(fake, SourceAddress("camera", "/dev/video9", "9"), options)
    assert fake.arguments == ("/dev/video9", cv2.CAP_V4L2)
    assert fake.set_values[cv2.CAP_PROP_FRAME_WIDTH] == 1280
    assert fake.set_values[cv2.CAP_PROP_FRAME_HEIGHT] == 720
    assert fake.set_values[cv2.CAP_PROP_FPS] == 15
    assert cv2.CAP_PROP_FOURCC not in fake.set_values


class UsbCamera(FakeCapture):
    """30 frames/s of raw pixels up to 640x480, 10 at 1280x720; 30 of JPEGs at any size, if it has them."""

    def __init__(self, has_jpeg: bool) -> None:
        super().__init__(1, gone)
        self.has_jpeg = has_jpeg
        self.is_jpeg = False
        self.values = {cv2.CAP_PROP_FRAME_WIDTH: 640, cv2.CAP_PROP_FRAME_HEIGHT: 480, cv2.CAP_PROP_FPS: 30.0}

    def set(self, name: int, value: float) -> bool:
        if name == cv2.CAP_PROP_FOURCC:
            self.is_jpeg = self.has_jpeg
            return self.is_jpeg
        if name in self.values:
            self.values[name] = value
            most = 30.0 if self.is_jpeg or self.values[cv2.CAP_PROP_FRAME_WIDTH] <= 640 else 10.0
            self.values[cv2.CAP_PROP_FPS] = min(most, value) if name == cv2.CAP_PROP_FPS else most
        return True


@pytest.mark.parametrize(
    ("options", "has_jpeg", "is_jpeg", "rate"),
    [
        (SourceOptions(), True, False, 30.0),
        (SourceOptions(width=1280, height=720), True, True, 30.0),
        (SourceOptions(width=1280, height=720), False, False, 10.0),
        (SourceOptions(width=1280, height=720, fps=10), True, False, 10.0),
        (SourceOptions(width=640, height=480, fps=15), True, False, 15.0),
    ],
)
def test_jpegs_are_requested_if_raw_pixels_are_too_slow(
    monkeypatch: pytest.MonkeyPatch, options: SourceOptions, has_jpeg: bool, is_jpeg: bool, rate: float
) -> None:
    fake = UsbCamera(has_jpeg)
    monkeypatch.setattr(cv2, "VideoCapture", fake)
    opencv.open_camera("/dev/video9", options.width, options.height, options.fps)
    assert (fake.is_jpeg, fake.values[cv2.CAP_PROP_FPS]) == (is_jpeg, rate)
    assert fake.values[cv2.CAP_PROP_FRAME_WIDTH] == (options.width or 640)


def test_a_stream_is_opened_with_ffmpeg_and_timeouts_and_the_environment_is_restored(
    monkeypatch: pytest.MonkeyPatch, capture: Capture
) -> None:
    target = "rtsp://user:secret@host/cam"
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "mine")
    fake = FakeCapture(1, gone)
    capture(fake, SourceAddress("rtsp", target, "cam"))
    assert fake.arguments[:2] == (target, cv2.CAP_FFMPEG)
    limits = fake.arguments[2]
    assert isinstance(limits, list)
    pairs = dict(zip(limits[::2], limits[1::2], strict=True))
    assert pairs == {cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: 4500, cv2.CAP_PROP_READ_TIMEOUT_MSEC: 60_000}
    assert fake.transport is not None
    assert fake.transport.startswith("rtsp_transport;tcp|analyzeduration;1000000")
    assert os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] == "mine"
    assert "OPENCV_FFMPEG_LOGLEVEL" not in os.environ


def test_only_numbers_enter_a_pipeline() -> None:
    pipeline = opencv.csi_pipeline(1, 1920, 1080, 29.97)
    assert "sensor-id=1 " in pipeline
    assert "width=1920,height=1080,framerate=2997/100" in pipeline
    with pytest.raises(ValueError, match="invalid literal"):
        opencv.csi_pipeline("0 ! filesink location=/tmp/x", None, None, None)  # type: ignore[arg-type]
