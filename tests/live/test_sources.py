import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import stub_camera
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from fsvit_edge.calib.pictures import sample_pictures
from fsvit_edge.enroll.support_files import read_supports
from fsvit_edge.live import opencv
from fsvit_edge.live.sinks.open import open_sink, sink_name
from fsvit_edge.live.sources import demo, files
from fsvit_edge.live.sources.base import Flip, SourceOptions
from fsvit_edge.live.sources.live import FILE_TIMEOUTS, LiveSource, Timeouts
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.live.uri import SourceAddress, is_address, parse_source, printable_address
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError, InputError, SourceError


def save_picture(path: Path, value: int) -> None:
    Image.new("RGB", (20, 10), (value, 0, 0)).save(path)


def save_video(path: Path, frames: int, fourcc: str = "MJPG", fps: float = 10.0) -> None:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*fourcc), fps, (64, 48))
    for index in range(frames):
        writer.write(np.full((48, 64, 3), (0, 0, 100 + 10 * index), np.uint8))  # red, as BGR
    writer.release()


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
    assert [one.picture for one in frames] == ["cat"]
    frame = frames[0]
    assert frame.image.shape == (10, 20, 3)
    assert frame.image.dtype == np.uint8
    assert tuple(frame.image[0, 0]) == (200, 0, 0)
    assert (frame.index, frame.source) == (0, str(path))
    assert before <= frame.wall_time_s <= time.time()
    assert 0 < frame.monotonic_s <= time.monotonic()
    assert 0 < frame.decode_ms < 1000


def test_only_the_pictures_of_a_folder_are_read_in_natural_order(tmp_path: Path) -> None:
    for value, name in enumerate(["frame10.png", "frame2.png", "Frame1.png", "a.jpeg", "frame2b.png"]):
        save_picture(tmp_path / name, value)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "._frame2.png").write_bytes(b"made by macOS")
    frames = list(open_source(str(tmp_path)))
    names = [Path(frame.source).name for frame in frames]
    assert names == ["Frame1.png", "a.jpeg", "frame2.png", "frame2b.png", "frame10.png"]
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]


def damage_pictures(folder: Path) -> None:
    (folder / "2.png").write_bytes(b"garbage")
    (folder / "3.png").touch()
    (folder / "4.png").symlink_to("gone.png")
    (folder / "5.jpg").mkdir()


def test_pictures_that_cannot_be_read_do_not_end_a_folder(tmp_path: Path) -> None:
    damage_pictures(tmp_path)
    for value in (1, 6):
        save_picture(tmp_path / f"{value}.png", value)
    with open_source(str(tmp_path)) as source:
        frames = list(source)
        assert [(frame.index, Path(frame.source).name) for frame in frames] == [(0, "1.png"), (1, "6.png")]
        assert (source.status.captured, source.status.left_out) == (2, 4)
        assert source.problem == (
            f"Left out, and 3 more of 6 pictures of {tmp_path}: {tmp_path}/2.png is damaged or not a PNG, JPEG, BMP, "
            "WebP, TIFF, GIF, AVIF or HEIC picture."
        )


def test_a_folder_of_which_no_picture_can_be_read_is_refused(tmp_path: Path) -> None:
    damage_pictures(tmp_path)
    with open_source(str(tmp_path)) as source, pytest.raises(InputError, match=r"2\.png is damaged"):
        next(source)


def test_a_folder_of_nothing_but_videos_is_refused_with_one_to_give(tmp_path: Path) -> None:
    def refused(command: Callable[[], object]) -> str:
        with pytest.raises(InputError, match="contains no picture") as error:
            command()
        return str(error.value).partition(";")[2]

    def all_refused() -> list[str]:
        commands = (open_source, sample_pictures, lambda folder: read_supports([Path(folder)]))
        return [refused(partial(command, str(tmp_path))) for command in commands]

    assert all_refused() == ["", "", ""]
    (tmp_path / "b.gif").touch()
    given = f" give its video {tmp_path}/b.gif"
    assert all_refused() == [f"{given}.", f"{given}.", f"{given} and one of its frames with --frame NUMBER."]
    (tmp_path / "a.MTS").touch()
    assert all_refused()[0] == f" give one of its 2 videos, as {tmp_path}/a.MTS."


def test_a_whole_folder_has_no_problem_and_says_what_else_is_in_it(tmp_path: Path) -> None:
    save_picture(tmp_path / "1.png", 1)
    with open_source(str(tmp_path)) as source:
        assert (source.notes, len(list(source)), source.problem, source.status.left_out) == ((), 1, "", 0)
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "clip.MTS").touch()
    assert open_source(str(tmp_path)).notes == (
        f"{tmp_path} has 2 folders that are not read, as {tmp_path}/a; give them as a source too.",
        f"{tmp_path} has 1 video that is not read, as {tmp_path}/clip.MTS; give it as a source too.",
    )


def test_a_video_of_too_many_pixels_is_refused_before_a_frame_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_video(tmp_path / "clip.avi", 1)
    with open_source(str(tmp_path / "clip.avi")) as source:
        assert len(list(source)) == 1
    monkeypatch.setattr(opencv, "MAX_PICTURE_PX", 64 * 48 - 1)
    monkeypatch.setattr(files, "read_rgb", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match="has frames of 64x48 pixels, more than the 0 megapixels allowed"):
        open_source(str(tmp_path / "clip.avi"))


@pytest.mark.parametrize(
    ("name", "fourcc"), [("clip.avi", "MJPG"), ("clip.mp4", "mp4v"), ("clip: 1.MP4", "mp4v"), ("a.MTS", "MPG2")]
)
def test_a_video_is_read_as_rgb(tmp_path: Path, name: str, fourcc: str) -> None:
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


def test_a_colon_in_a_relative_name_does_not_make_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_video(tmp_path / "concat.avi", frames=2)
    (tmp_path / "concat.avi").rename(tmp_path / "concat:a.avi")
    monkeypatch.chdir(tmp_path)
    assert len(list(open_source("concat:a.avi"))) == 2


@pytest.mark.parametrize("options", [opencv.RTSP_OPTIONS, None], ids=["as a control, any format", "formats of files"])
def test_a_playlist_with_the_name_of_a_video_plays_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str | None
) -> None:
    save_video(tmp_path / "private.mp4", frames=2, fourcc="mp4v")
    (tmp_path / "clip.mp4").write_text("ffconcat version 1.0\nfile private.mp4\n")
    if options is not None:
        monkeypatch.setattr(opencv, "_FILE", options)
        assert len(list(open_source(str(tmp_path / "clip.mp4")))) == 2
        return
    with pytest.raises(SourceError, match=r"clip\.mp4 cannot be opened"):
        open_source(str(tmp_path / "clip.mp4"))


@pytest.mark.parametrize("place", ["in a folder", "by its own name", "while realtime"])
def test_a_video_below_a_name_that_is_not_text_is_read(tmp_path: Path, place: str) -> None:
    save_video(tmp_path / "clip.mp4", frames=3, fourcc="mp4v")
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4" if place == "by its own name" else b"caf\xe9/clip.mp4")
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "clip.mp4").rename(path)
    with open_source(str(path), SourceOptions(realtime=place == "while realtime")) as source:
        assert source.name.endswith("caf\\udce9.mp4" if place == "by its own name" else "caf\\udce9/clip.mp4")
        assert next(source).image.shape == (48, 64, 3)


def test_an_animated_gif_is_a_video(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (20, 10), (value, 0, 0)) for value in (50, 150, 250)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:], duration=100)
    assert len(list(open_source(str(tmp_path / "a.gif")))) == 3


def test_the_demo_is_a_source_without_end() -> None:
    pytest.importorskip("skimage")
    with open_source("demo") as source:
        frames = [next(source) for _ in range(3)]
        assert (source.name, source.fps, source.is_live) == ("demo", 25.0, False)
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert frames[0].image.shape == (360, 640, 3)


def test_the_demo_without_scikit_image_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    demo.photo_strip.cache_clear()
    demo.photograph.cache_clear()
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(EnvironmentLacksError, match="The demo needs scikit-image"):
        open_source("demo")


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/hostname",
        "concat:a.mp4|b.mp4",
        "subfile,,start,0,end,0,,:a.mp4",
        "rtsp:host",
        "udp://host:1",
    ],
)
def test_other_schemes_are_refused_with_a_list_of_the_supported_kinds(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: pytest.fail("it reached OpenCV"))
    with pytest.raises(InputError, match=r"^Unsupported source .*; expected .*rtsp://\.\.\., .*, or demo\.$"):
        open_source(uri)


@pytest.mark.parametrize(
    ("uri", "kind", "reason"),
    [
        ("", InputError, "Unsupported source ''; expected a picture"),
        ("a\nb.mp4", InputError, r"Unsupported source 'a\\nb.mp4'"),
        ("a\0b.mp4", InputError, "Unsupported source"),
        ("-", SourceError, "cannot be opened: No such file or directory; check the path"),
        ("gone.mp4", SourceError, r"The source gone\.mp4 cannot be opened: No such file or directory; check the path"),
        ("gone/", SourceError, "The source gone/ cannot be opened: No such file"),
        ("notes.txt", InputError, r"notes\.txt is not a picture or video; expected a name that ends in \.png"),
        ("/dev/null", InputError, "/dev/null is not a picture or video"),
        ("empty", InputError, r"The folder empty contains no pictures \(\.png"),
        ("garbage.mp4", SourceError, r"The video garbage\.mp4 cannot be opened; it is damaged"),
        ("headless.mp4", SourceError, r"The video headless\.mp4 cannot be opened; it is damaged"),
        ("pipe.mp4", InputError, r"pipe\.mp4 is not a regular file; give a video file"),
        ("pipe.png", InputError, r"pipe\.png is not a regular file"),
        ("x" * 5000, SourceError, "File name too long"),
        ("987", SourceError, "Camera /dev/video987 does not exist; plug it in"),
        ("/dev/video987", SourceError, "Camera /dev/video987 does not exist; plug it in"),
        ("usb-camera", SourceError, "Camera usb-camera does not exist; plug it in"),
        ("rtsp://", InputError, "Invalid stream address rtsp://; expected rtsp://HOST/PATH"),
        ("rtsp://[::1", InputError, "Invalid stream address"),
        ("rtsp://host/a b", InputError, "Invalid stream address"),
    ],
)
def test_a_source_that_cannot_be_opened_is_an_error_of_one_sentence(
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
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(kind, match=reason) as raised:
        next(open_source(uri))
    assert "\n" not in str(raised.value)


def test_a_video_without_a_frame_is_an_error(tmp_path: Path) -> None:
    save_video(tmp_path / "clip.avi", 1)
    header, _, _ = (tmp_path / "clip.avi").read_bytes().partition(b"movi")
    (tmp_path / "clip.avi").write_bytes(header + b"movi")
    reason = "contains no frame .* cannot decode its encoding, MJPG: convert it with: ffmpeg -i "
    with open_source(str(tmp_path / "clip.avi")) as source, pytest.raises(SourceError, match=reason):
        next(source)


def test_opencv_and_ffmpeg_print_nothing_and_no_password_is_printed(tmp_path: Path, closed_port: int) -> None:
    (tmp_path / "garbage.mp4").write_bytes(b"no video" * 999)
    # In its own process: the first video that a process opens settles FFmpeg's log level.
    code = f"""
import time
from fsvit_edge.runtime.errors import SourceError
from fsvit_edge.live.sources.open import open_source
for uri in ("garbage.mp4", "987"):
    try:
        open_source(uri)
    except SourceError as error:
        print(error)
with open_source("rtsp://user:S3cr3t@127.0.0.1:{closed_port}/cam?password=S3cr3t") as source:
    while not source.status.message:
        time.sleep(0.01)
    print(source.status, source.name)
"""
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stderr == ""
    assert "S3cr3t" not in answer.stdout
    reason = "cannot be opened; check the address and the password, and that the camera is on."
    assert f"rtsp://127.0.0.1:{closed_port}/cam {reason}" in answer.stdout.splitlines()[2]


@given(before=st.text(max_size=8), after=st.text(max_size=8), tail=st.text("/cam?=#@:.", max_size=8))
@example(before="a/b", after="@", tail="")
@example(before="?", after="#", tail="/x@y")
def test_no_password_is_ever_printable(before: str, after: str, tail: str) -> None:
    for uri in (
        f"rtsp://user:{before}S3cr3t{after}@host:554/{tail}",
        f"rtsp://host/cam?user={tail}&password=S3cr3t{after}",
        f"rtsp://host/user=admin_password=S3cr3t{after}.sdp",
    ):
        assert "S3cr3t" not in printable_address(uri)


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("rtsp://host/cam/1", "rtsp://host/cam/1"),
        ("rtsp://user:pass@host:8554/cam", "rtsp://host:8554/cam"),
        ("rtsp://host/cam?channel=1", "rtsp://host/cam"),
        ("rtsp://host/user=a_password=b", "rtsp://host/***"),
        ("rtsp://user:pa/ss@host/cam", "rtsp://***"),
        ("rtsp://host/user:pass/cam", "rtsp://host/***"),
        ("rtsp://host/cam;pass", "rtsp://host/***"),
        ("rtsp://host/ca%6d", "rtsp://host/***"),
        ("rtsp://user:pass/cam", "rtsp://***"),
        ("rtsp://user:pass", "rtsp://***"),
        (" rtsp://user:pass@host/cam", "***"),
    ],
)
def test_the_printable_address_keeps_harmless_parts(uri: str, name: str) -> None:
    assert printable_address(uri) == name


MISTYPED = (
    *(" {}://u:S3cr3t@host/cam", "{}//u:S3cr3t@host/cam", '"{}://u:S3cr3t@host/cam"', "<{}://u:S3cr3t@host/cam>"),
    *("{}:/u:S3cr3t@host/cam", "{} ://u:S3cr3t@host/cam", "\u200b{}://u:S3cr3t@host/cam", "{};//u:S3cr3t@host"),
    *("{}:\\\\u:S3cr3t@host/cam", "//u:S3cr3t@host/cam", "u:S3cr3t@host/cam", "{}//host/cam?pw=S3cr3t"),
    *("{}://u:S3cr3t@host/cam\n", "{}//u:S3cr3t@host/cam/", "{}//u:S3cr3t@host/cam.jsonl"),
)


@pytest.mark.parametrize(
    "spelled", [*MISTYPED, "192.168.1.9/cam?user=a&password=S3cr3t", "host/user=a&password=S3cr3t"]
)
def test_a_mistyped_address_is_refused_without_its_password(spelled: str) -> None:
    with pytest.raises(InputError, match="expected a picture") as refused:
        parse_source(spelled.format("rtsp"))
    assert "S3cr3t" not in str(refused.value)


@pytest.mark.parametrize("spelled", [one for one in MISTYPED if "\n" not in one])
def test_a_mistyped_address_is_not_taken_for_the_name_of_a_file_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="expected a folder") as refused:
        open_sink(spelled.format("mqtt"), 25.0)
    assert "S3cr3t" not in str(refused.value) + sink_name(spelled.format("mqtt"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["me@home.jsonl", "12:30.jsonl", "./u:x@y.jsonl", "192.168.1.9.jsonl", "rtsp/a.jsonl"])
def test_a_file_may_have_a_name_like_a_part_of_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_sink(name, 25.0):
        assert (tmp_path / name).is_file()
    assert sink_name(name) == name
    assert parse_source(name).name == name


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SourceError, match=r"me@home\.mp4 cannot be opened: No such file"):
        open_source("me@home.mp4")


@pytest.mark.parametrize(
    "uri", ["rtsp://host/caf\udce9", "rtsp://caf\udce9/x", "http://a..b/x", f"rtsp://{'a' * 64}/x"]
)
def test_an_address_that_no_library_takes_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match="Invalid stream address"):
        parse_source(uri)


def test_a_name_with_invalid_bytes_still_fits_into_json(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"bad\xff.png")
    save_picture(Path(os.fsdecode(path)), 1)
    with open_source(os.fsdecode(path)) as source:
        frame = next(source)
        for name in (frame.source, source.name):
            assert name.endswith(r"bad\udcff.png")
            json.dumps(name, ensure_ascii=False).encode()


def test_opening_restores_opencv_and_the_environment(tmp_path: Path) -> None:
    save_video(tmp_path / "clip.avi", 1)
    logging = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 moved it
    logging.setLogLevel(3)
    before = dict(os.environ)
    list(open_source(str(tmp_path / "clip.avi")))
    assert logging.getLogLevel() == 3
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("uri", "kind", "target", "name"),
    [
        ("0", "camera", "/dev/video0", "0"),
        ("007", "camera", "/dev/video7", "007"),
        ("/dev/video12", "camera", "/dev/video12", "/dev/video12"),
        ("csi://0", "csi", "0", "csi://0"),
        ("CSI://1", "csi", "1", "csi://1"),
        ("RTSP://user:pw@host:8554/a", "rtsp", "rtsp://user:pw@host:8554/a", "rtsp://host:8554/a"),
        ("rtsps://host/a", "rtsp", "rtsps://host/a", "rtsps://host/a"),
        ("http://user:pw@host/cam.mjpg?x=1", "http", "http://user:pw@host/cam.mjpg?x=1", "http://host/cam.mjpg"),
        ("demo", "demo", "demo", "demo"),
        ("a b.mp4", "path", "a b.mp4", "a b.mp4"),
    ],
)
def test_a_source_string_is_parsed(uri: str, kind: str, target: str, name: str) -> None:
    address = parse_source(uri)
    assert (address.kind, address.target, address.name) == (kind, target, name)
    assert kind in ("camera", "demo") or "pw" not in repr(address)


@pytest.mark.parametrize(
    ("uri", "options", "reason"),
    [
        ("demo", {"width": 640}, "--width and --height are for cameras; demo has a fixed size"),
        ("rtsp://host/cam", {"height": 9}, "rtsp://host/cam has a fixed size"),
        ("demo", {"fps": 5.0}, "--fps is for cameras, and for files with --realtime; demo has its own frame rate"),
        ("rtsp://me:secret@host/cam", {"loop": True}, "--loop and --realtime are for files and the demo; rtsp://host"),
        ("987", {"realtime": True}, "--loop and --realtime are for files and the demo; 987 is always live"),
    ],
)
def test_an_option_that_a_source_lacks_is_refused(uri: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        open_source(uri, SourceOptions(**options))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"flip": "left"}, "--flip must be one of none, horizontal, vertical, both, got 'left'"),
        ({"width": 0}, "--width must be 1 to 16384 pixels, got 0"),
        ({"height": 99999}, "--height must be 1 to 16384 pixels"),
        ({"fps": 0.0}, "--fps must be 0.01 to 1000 frames per second, got 0"),
        ({"fps": float("nan")}, "--fps must be 0.01 to 1000"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        SourceOptions(**options)


def test_a_csi_camera_without_gstreamer_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GStreamer:                   NO\n")
    with pytest.raises(
        EnvironmentLacksError, match=r"csi://0 needs OpenCV with GStreamer, .* sudo apt install python3-opencv"
    ):
        open_source("csi://0")


def test_a_loop_repeats_without_end(tmp_path: Path) -> None:
    save_video(tmp_path / "clip.avi", 3)
    with open_source(str(tmp_path / "clip.avi"), SourceOptions(loop=True)) as source:
        shades = [int(next(source).image[0, 0, 0]) for _ in range(7)]
        assert source.num_frames is None
    assert shades[:3] == shades[3:6]
    assert shades[6] == shades[0]


@pytest.mark.parametrize(
    ("flip", "corner"), [("none", (0, 0)), ("horizontal", (0, 19)), ("vertical", (9, 0)), ("both", (9, 19))]
)
def test_a_flip_moves_the_corner(tmp_path: Path, flip: Flip, corner: tuple[int, int]) -> None:
    image = np.zeros((10, 20, 3), np.uint8)
    image[0, 0] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    with open_source(str(tmp_path / "a.png"), SourceOptions(flip=flip)) as source:
        assert next(source).image[corner].max() == 255


@pytest.mark.slow(reason="a pause that a camera could not make, 4 s")
def test_a_file_in_real_time_that_is_slow_to_read_is_played_to_its_end(tmp_path: Path) -> None:
    save_video(tmp_path / "clip.avi", 10, fps=20.0)
    with open_source(str(tmp_path / "clip.avi"), SourceOptions(realtime=True)) as source:
        next(source)
        assert isinstance(source, LiveSource)
        reading = psutil.Process(source.process_id)
        reading.suspend()
        time.sleep(Timeouts().frame_s + 0.3)
        reading.resume()
        frames = list(source)
    assert frames[-1].index == 9


def test_a_file_that_cannot_be_read_is_no_camera() -> None:
    timeouts = replace(FILE_TIMEOUTS, open_s=0.1)
    file = SourceAddress("path", "clip.avi", "clip.avi")
    said = r"^clip\.avi does not respond; check the disk that it is on\.$"
    with (
        LiveSource(file, SourceOptions(), timeouts=timeouts, command=stub_camera.command("mute")) as source,
        pytest.raises(SourceError, match=said),
    ):
        next(source)


def test_a_file_in_real_time_keeps_its_speed_and_is_live(tmp_path: Path) -> None:
    save_video(tmp_path / "clip.avi", 10, fps=20.0)
    started = time.monotonic()
    with open_source(str(tmp_path / "clip.avi"), SourceOptions(realtime=True)) as source:
        assert (source.is_live, source.fps) == (True, 20.0)
        time.sleep(0.3)  # while a model loads, the video waits
        ready_s = time.monotonic()
        frames = list(source)
        status = source.status
    assert time.monotonic() - started > 0.4
    gaps = np.diff([frame.monotonic_s for frame in frames]) / np.diff([frame.index for frame in frames])
    assert len(frames) + status.dropped == status.captured == 10
    assert frames[0].monotonic_s - frames[0].index / 20 > ready_s - 0.02
    assert 0.03 < np.median(gaps) < 0.1


def test_an_address_is_told_from_a_path() -> None:
    assert is_address("s3://bucket/a")
    assert is_address("gs://bucket")
    for path in ("photos/", "/s3://a", "s3:/a", "a:b", "./s3://a"):
        assert not is_address(path)
