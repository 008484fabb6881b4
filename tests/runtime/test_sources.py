import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from fsvit_edge.runtime import demo, sources
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError, InputError, SourceError
from fsvit_edge.runtime.sources.open import open_source


def save_picture(path: Path, value: int) -> None:
    Image.new("RGB", (20, 10), (value, 0, 0)).save(path)


def save_video(path: Path, frames: int, fourcc: str = "MJPG", fps: float = 10.0) -> None:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*fourcc), fps, (64, 48))
    for index in range(frames):
        writer.write(np.full((48, 64, 3), (0, 0, 100 + 10 * index), np.uint8))  # red, in OpenCV's order
    writer.release()


class FakeCapture:
    """A camera that delivers three frames and then does what `then` says."""

    made: list["FakeCapture"]

    def __init__(self, then: Callable[[], tuple[bool, np.ndarray | None]], opens: bool = True, fps: float = 30) -> None:
        self.then = then
        self.opens = opens
        self.fps = fps
        self.reads = 0
        self.released = False

    def __call__(self, *arguments: object) -> "FakeCapture":
        self.arguments = arguments
        self.transport = os.environ.get("OPENCV_FFMPEG_CAPTURE_OPTIONS")
        return self

    def isOpened(self) -> bool:  # noqa: N802
        return self.opens

    def get(self, _: int) -> float:
        return self.fps

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.reads += 1
        return (True, np.full((4, 6, 3), (1, 2, 3), np.uint8)) if self.reads <= 3 else self.then()

    def release(self) -> None:
        self.released = True


def gone() -> tuple[bool, np.ndarray | None]:
    return False, None


def frozen() -> tuple[bool, np.ndarray | None]:
    time.sleep(0.05)
    return True, np.zeros((4, 6, 3), np.uint8)


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as held:  # bound but not listening: connections are refused
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_one_picture_is_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "cat.PNG"
    save_picture(path, 200)
    before = time.time()
    with open_source(str(path)) as source:
        frames = list(source)
        assert (source.name, source.is_live, source.fps) == (str(path), False, None)
    assert len(frames) == 1
    frame = frames[0]
    assert frame.image.shape == (10, 20, 3)
    assert frame.image.dtype == np.uint8
    assert tuple(frame.image[0, 0]) == (200, 0, 0)
    assert (frame.index, frame.source) == (0, str(path))
    assert before <= frame.wall_time_s <= time.time()
    assert 0 < frame.monotonic_s <= time.monotonic()
    assert 0 < frame.decode_ms < 1000


def test_a_folder_is_read_in_natural_order_and_only_its_pictures(tmp_path: Path) -> None:
    for value, name in enumerate(["frame10.png", "frame2.png", "Frame1.png", "a.jpeg", "frame2b.png"]):
        save_picture(tmp_path / name, value)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "._frame2.png").write_bytes(b"macOS leaves these behind")
    frames = list(open_source(str(tmp_path)))
    names = [Path(frame.source).name for frame in frames]
    assert names == ["Frame1.png", "a.jpeg", "frame2.png", "frame2b.png", "frame10.png"]
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]


def test_a_damaged_picture_in_a_folder_is_named(tmp_path: Path) -> None:
    save_picture(tmp_path / "1.png", 1)
    (tmp_path / "2.png").write_bytes(b"garbage")
    source = open_source(str(tmp_path))
    next(source)
    with pytest.raises(InputError, match=r"2\.png is damaged"):
        next(source)


@pytest.mark.parametrize(("name", "fourcc"), [("clip.avi", "MJPG"), ("clip.mp4", "mp4v"), ("clip: 1.MP4", "mp4v")])
def test_a_video_gives_its_frames_in_rgb(tmp_path: Path, name: str, fourcc: str) -> None:
    path = tmp_path / name
    save_video(tmp_path / f"made{path.suffix.lower()}", frames=5, fourcc=fourcc)
    (tmp_path / f"made{path.suffix.lower()}").rename(path)
    with open_source(str(path)) as source:
        assert (source.fps, source.num_frames, source.is_live) == (10.0, 5, False)
        frames = list(source)
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    red, green, blue = frames[3].image[20, 20].astype(int)
    assert abs(red - 130) < 12
    assert max(green, blue) < 12


def test_a_video_with_a_colon_in_a_relative_name_is_a_file_not_a_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_video(tmp_path / "concat.avi", frames=2)
    (tmp_path / "concat.avi").rename(tmp_path / "concat:a.avi")
    monkeypatch.chdir(tmp_path)
    assert len(list(open_source("concat:a.avi"))) == 2


def test_an_animated_gif_is_a_video(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (20, 10), (value, 0, 0)) for value in (50, 150, 250)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:], duration=100)
    assert len(list(open_source(str(tmp_path / "a.gif")))) == 3


def test_the_demo_is_a_source_that_goes_on() -> None:
    pytest.importorskip("skimage")
    with open_source("demo") as source:
        frames = [next(source) for _ in range(3)]
        assert (source.name, source.fps, source.is_live) == ("demo", 25.0, False)
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert frames[0].image.shape == (360, 640, 3)


def test_the_demo_without_scikit_image_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    demo._strip.cache_clear()
    demo._photograph.cache_clear()
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(EnvironmentLacksError, match="The demo needs scikit-image"):
        open_source("demo")


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1/clip.mp4",
        "https://example.org/a.png",
        "file:///etc/hostname",
        "concat:a.mp4|b.mp4",
        "subfile,,start,0,end,0,,:a.mp4",
        "csi://0",
        "rtsp:host",
    ],
)
def test_other_schemes_are_refused_and_the_known_kinds_listed(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: pytest.fail("it reached OpenCV"))
    with pytest.raises(InputError, match=r"is not a kind of source; give .*rtsp://\.\.\., or demo\.$"):
        open_source(uri)


@pytest.mark.parametrize(
    ("uri", "kind", "reason"),
    [
        ("", InputError, "'' is no source; give a picture"),
        ("a\nb.mp4", InputError, r"'a\\nb.mp4' is no source"),
        ("a\0b.mp4", InputError, r"is no source"),
        ("-", SourceError, "cannot be opened: No such file or directory; check the path"),
        ("gone.mp4", SourceError, r"The source gone\.mp4 cannot be opened: No such file or directory; check the path"),
        ("gone/", SourceError, "The source gone/ cannot be opened: No such file"),
        ("notes.txt", InputError, r"notes\.txt is no picture and no video: its name ends in none of \.png"),
        ("/dev/null", InputError, "/dev/null is no picture and no video"),
        ("empty", InputError, r"The folder empty holds no picture \(\.png"),
        ("garbage.mp4", SourceError, r"The video garbage\.mp4 cannot be opened; it is damaged"),
        ("headless.mp4", SourceError, r"The video headless\.mp4 cannot be opened; it is damaged"),
        ("x" * 5000, SourceError, "File name too long"),
        ("987", SourceError, "There is no camera /dev/video987; plug it in"),
        ("/dev/video987", SourceError, "There is no camera /dev/video987; plug it in"),
        ("usb-camera", SourceError, "There is no camera /dev/video987; plug it in"),
        ("rtsp://", InputError, "rtsp:// is no stream address; give rtsp://HOST/PATH"),
        ("rtsp://[::1", InputError, "is no stream address"),
        ("rtsp://host/a b", InputError, "is no stream address"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, kind: type[FsvitEdgeError], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "garbage.mp4").write_bytes(b"no video" * 999)
    save_video(tmp_path / "headless.mp4", 5, "mp4v")
    whole = (tmp_path / "headless.mp4").read_bytes()
    (tmp_path / "headless.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "usb-camera").symlink_to("/dev/video987")
    with pytest.raises(kind, match=reason) as raised:
        open_source(uri)
    assert "\n" not in str(raised.value)


def test_a_video_without_a_frame_is_an_error(tmp_path: Path) -> None:
    save_video(tmp_path / "clip.avi", 1)
    header, _, _ = (tmp_path / "clip.avi").read_bytes().partition(b"movi")
    (tmp_path / "clip.avi").write_bytes(header + b"movi")
    with open_source(str(tmp_path / "clip.avi")) as source, pytest.raises(SourceError, match="holds no frame"):
        next(source)


def test_a_camera_that_is_there_but_does_not_open_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os.path, "exists", lambda _: True)
    with pytest.raises(SourceError, match="The camera /dev/video987 cannot be opened; it is in use"):
        open_source("987")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("uri", "name"), [("987", "987"), ("/dev/video987", "/dev/video987")])
def test_a_camera_is_opened_as_v4l2_only_and_gives_rgb(monkeypatch: pytest.MonkeyPatch, uri: str, name: str) -> None:
    camera = FakeCapture(gone)
    monkeypatch.setattr(os.path, "exists", lambda _: True)
    monkeypatch.setattr(cv2, "VideoCapture", camera)
    with open_source(uri) as source:
        assert (source.name, source.is_live, source.fps) == (name, True, 30.0)
        assert tuple(next(source).image[0, 0]) == (3, 2, 1)
        assert not camera.released
    assert camera.released
    assert camera.arguments[:2] == ("/dev/video987", cv2.CAP_V4L2)


def test_a_stream_goes_over_tcp_with_both_timeouts_set(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = FakeCapture(gone, fps=0.0)
    monkeypatch.setattr(cv2, "VideoCapture", camera)
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "mine")
    with open_source("RTSP://user:secret@host:554/cam") as source:
        assert (source.name, source.is_live, source.fps) == ("rtsp://host:554/cam", True, None)
    target, backend, options = camera.arguments
    assert (target, backend) == ("rtsp://user:secret@host:554/cam", cv2.CAP_FFMPEG)
    pairs = dict(zip(options[::2], options[1::2], strict=True))  # type: ignore[index]
    assert pairs == {cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: 5000, cv2.CAP_PROP_READ_TIMEOUT_MSEC: 5000}
    assert camera.transport == "rtsp_transport;tcp"
    assert os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] == "mine"
    assert "OPENCV_FFMPEG_LOGLEVEL" not in os.environ


@pytest.mark.parametrize("then", [gone, frozen])
def test_a_live_source_that_stops_or_freezes_is_an_error(
    monkeypatch: pytest.MonkeyPatch, then: Callable[[], tuple[bool, np.ndarray | None]]
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture(then))
    monkeypatch.setattr(sources, "_STALL_MS", 40)
    with open_source("rtsp://host/cam") as source:
        assert [next(source).index for _ in range(3)] == [0, 1, 2]
        with pytest.raises(SourceError, match="rtsp://host/cam stopped delivering frames; check the camera"):
            next(source)


def test_a_silent_address_is_given_up_after_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_OPEN_TIMEOUT_MS", 300)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        started = time.monotonic()
        with pytest.raises(SourceError, match=r"The stream rtsp://127\.0\.0\.1:\d+/cam cannot be opened"):
            open_source(f"rtsp://127.0.0.1:{deaf.getsockname()[1]}/cam")
        assert 0.25 < time.monotonic() - started < 2


def test_opencv_and_ffmpeg_say_nothing_of_their_own_and_no_password_is_said(tmp_path: Path, closed_port: int) -> None:
    (tmp_path / "garbage.mp4").write_bytes(b"no video" * 999)
    # In a process of its own: FFmpeg's level is settled by the first video that a process opens.
    code = f"""
import os
from fsvit_edge.runtime.errors import SourceError
from fsvit_edge.runtime.sources.open import open_source
os.path.exists = lambda _: True
for uri in ("garbage.mp4", "987", "rtsp://user:S3cr3t@127.0.0.1:{closed_port}/cam?password=S3cr3t"):
    try:
        open_source(uri)
    except SourceError as error:
        print(error)
"""
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stderr == ""
    assert answer.stdout.splitlines()[2] == (
        f"The stream rtsp://127.0.0.1:{closed_port}/cam cannot be opened; check the address, the password and that "
        "the camera is on."
    )


@given(before=st.text(max_size=8), after=st.text(max_size=8), tail=st.text("/cam?=#@:.", max_size=8))
@example(before="a/b", after="@", tail="")
@example(before="?", after="#", tail="/x@y")
def test_no_password_is_ever_printable(before: str, after: str, tail: str) -> None:
    for uri in (
        f"rtsp://user:{before}S3cr3t{after}@host:554/{tail}",
        f"rtsp://host/cam?user={tail}&password=S3cr3t{after}",
        f"rtsp://host/user=admin_password=S3cr3t{after}.sdp",
    ):
        assert "S3cr3t" not in sources._printable_stream(uri)


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("rtsp://host/cam/1", "rtsp://host/cam/1"),
        ("rtsp://user:pass@host:8554/cam", "rtsp://host:8554/cam"),
        ("rtsp://host/cam?channel=1", "rtsp://host/cam"),
        ("rtsp://host/user=a_password=b", "rtsp://host/***"),
        ("rtsp://user:pa/ss@host/cam", "rtsp://***"),
    ],
)
def test_the_printable_address_keeps_what_is_harmless(uri: str, name: str) -> None:
    assert sources._printable_stream(uri) == name


def test_a_name_that_is_no_text_still_fits_into_json(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"bad\xff.png")
    save_picture(Path(os.fsdecode(path)), 1)
    with open_source(os.fsdecode(path)) as source:
        frame = next(source)
        for name in (frame.source, source.name):
            assert name.endswith(r"bad\udcff.png")
            json.dumps(name, ensure_ascii=False).encode()


def test_opening_leaves_opencv_and_the_environment_as_they_were(tmp_path: Path) -> None:
    save_video(tmp_path / "clip.avi", 1)
    logging = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 moved it
    logging.setLogLevel(3)
    before = dict(os.environ)
    list(open_source(str(tmp_path / "clip.avi")))
    assert logging.getLogLevel() == 3
    assert dict(os.environ) == before
