import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.zones import parse_zone
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.sinks.base import Sink
from fsvit_edge.live.sinks.json_lines import frame_record, json_line
from fsvit_edge.live.sinks.open import open_sink
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError, SourceError
from fsvit_edge.runtime.pictures import read_image


def frame(index: int = 0, height: int = 48, width: int = 64) -> Frame:
    image = np.full((height, width, 3), 100 + index, np.uint8)
    return Frame(image, index, "test", 1_700_000_000.123456, 12.3456789, 1.23456)


def prediction(height: int = 48, width: int = 64) -> Prediction:
    label_map = np.zeros((height, width), np.uint8)
    label_map[34:46, 5:35] = 2
    label_map[40:41, 60:61] = 2
    scores = np.array([0.123456, 0.9, 0.5], np.float32)
    return Prediction(
        ("cat", "Größe 猫", "dog"),
        scores,
        np.array([0.5, 0.7, 0.5], np.float32),
        label_map,
        None,
        {"encode": 2.0, "head": 0.5},
    )


# Runs in its own process: writes `count` frames to the sink `uri` with a limit on file sizes.
WRITER = """
import resource, sys
import numpy as np
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.sinks.base import SinkClosedError
from fsvit_edge.live.sinks.open import open_sink
from fsvit_edge.live.frame import Frame
uri, limit, count, is_live = sys.argv[1], *map(int, sys.argv[2:5])
noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
scores = np.array([0.9], np.float32)
prediction = Prediction(("cat",), scores, np.full_like(scores, 0.5), np.ones((96, 128), np.uint8), None, {})
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with open_sink(uri, 25.0, is_live=bool(is_live)) as sink:
        written = 0
        try:
            for i in range(count):
                sink.write(Frame(np.roll(noise, i), i, "test", 0.0, 0.0, 0.0), prediction)
                written += 1
        except SinkClosedError:
            pass
        print(written, file=sys.stderr)
except FsvitEdgeError as error:
    print(type(error).__name__, error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


# With buffering, what is left in the buffer can fail when Python exits.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def write_in_process(
    uri: str, limit_bytes: int, count: int = 60, is_live: bool = False
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WRITER, uri, str(limit_bytes), str(count), str(int(is_live))]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_record_describes_the_frame() -> None:
    zones = (parse_zone("floor=0,0.6,1,0.6,1,1,0,1"), parse_zone("shelf=0,0,1,0,1,0.5"))
    said = frame_record(frame(7), replace(prediction(), zones=zones))
    assert said == {
        "event": "frame",
        "sequence": 7,
        "source": "test",
        "wall_time_s": 1_700_000_000.123,
        "monotonic_s": 12.346,
        "media_time_s": None,
        "age_ms": 0.0,
        "is_frozen": False,
        "size_hw": [48, 64],
        "classes": [
            {
                "name": "cat",
                "score": 0.1235,
                "raw_score": 0.1235,
                "level": 0.5,
                "present": False,
                "area_px": 0,
                "box_xyxy": None,
                "instances": [],
                "zones": [],
            },
            {
                "name": "Größe 猫",
                "score": 0.9,
                "raw_score": 0.9,
                "level": 0.7,
                "present": True,
                "area_px": 361,
                "box_xyxy": [5, 34, 61, 46],
                "instances": [{"area_px": 360, "box_xyxy": [5, 34, 35, 46]}],
                "zones": ["floor"],
            },
            {
                "name": "dog",
                "score": 0.5,
                "raw_score": 0.5,
                "level": 0.5,
                "present": False,
                "area_px": 0,
                "box_xyxy": None,
                "instances": [],
                "zones": [],
            },
        ],
        "latency_ms": {"decode": 1.23, "encode": 2.0, "head": 0.5},
    }
    assert list(said["latency_ms"]) == ["decode", "encode", "head"]
    assert json.loads(json.dumps(said)) == said


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_a_number_never_becomes_json(wrong: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line({"score": wrong})
    assert json_line({"score": 0.5}) == b'{"score": 0.5}\n'


def test_every_frame_is_a_complete_json_line_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    with open_sink(str(path), 25.0) as sink:
        for index in range(3):
            sink.write(frame(index), prediction())
            lines = path.read_text(encoding="utf-8").split("\n")
            assert lines.pop() == ""
            assert [json.loads(line) for line in lines] == [
                frame_record(frame(i), prediction()) for i in range(index + 1)
            ]
    assert "猫" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("before", [b"", b'{"whole": 1}\n', b'{"whole": 1}\n{"torn'])
def test_lines_of_a_live_source_are_appended_and_an_incomplete_one_spoils_no_other(
    tmp_path: Path, before: bytes
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(before)
    for index in range(2):
        with open_sink(str(path), 25.0, is_live=True) as sink:
            sink.write(frame(index), prediction())
    lines = path.read_bytes().splitlines()
    assert lines[:-2] == before.splitlines()
    assert [json.loads(line)["sequence"] for line in lines[-2:]] == [0, 1]


def test_the_lines_of_a_file_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for index in range(2):
        with open_sink(str(path), 25.0) as sink:
            sink.write(frame(index), prediction())
    assert [json.loads(line)["sequence"] for line in path.read_bytes().splitlines()] == [1]


def test_a_full_disk_keeps_the_lines_of_earlier_runs(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"whole": 1}\n')
    run = write_in_process(str(path), limit_bytes=100, is_live=True)
    assert run.stderr == f"FsvitEdgeError {path} ends after 0 lines: File too large; free some space.\n"
    assert path.read_bytes() == b'{"whole": 1}\n'


def test_standard_output_gets_the_same_lines(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with open_sink("-", 25.0) as sink:
        sink.write(frame(0), prediction())
        sink.write(frame(1), prediction())
    lines = capfdbinary.readouterr().out.decode("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [frame_record(frame(i), prediction()) for i in range(2)]


@pytest.mark.parametrize("make_first", [True, False])
def test_a_folder_gets_one_picture_per_frame_named_by_its_index(tmp_path: Path, make_first: bool) -> None:
    folder = tmp_path / "made" / "pictures"
    if make_first:
        folder.mkdir(parents=True)
    with open_sink(str(folder) if make_first else f"{folder}/", 25.0) as sink:
        sink.write(frame(1), prediction())
        sink.write(frame(2, 30, 40), prediction(30, 40))  # pictures may differ in size
    assert sorted(os.listdir(folder)) == ["frame_000001.jpg", "frame_000002.jpg"]
    drawn = read_image(folder / "frame_000001.jpg").astype(int)
    assert np.abs(drawn[40, 48] - 101).max() < 6
    assert np.abs(drawn[40, 20] - (94, 137, 160)).max() < 10  # tinted with the second color


def test_pictures_keep_their_names_and_replace_none(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"a photo")
    (tmp_path / "dog.jpg").symlink_to("gone.jpg")
    (tmp_path / "frame_000001.jpg").write_bytes(b"of an earlier run")
    for _ in range(2):
        with open_sink(f"{tmp_path}/", 25.0) as sink:
            sink.write(replace(frame(0), picture="cat"), prediction())
            sink.write(replace(frame(1), picture="dog"), prediction())
            sink.write(frame(1), prediction())
    stems = [f"{stem}{number}" for stem in ("cat", "dog", "frame_000001") for number in ("", "-2", "-3")]
    assert sorted(os.listdir(tmp_path)) == sorted(f"{stem}.jpg" for stem in stems)
    assert (tmp_path / "cat.jpg").read_bytes() == b"a photo"
    assert not (tmp_path / "gone.jpg").exists()


@pytest.mark.parametrize("size_hw", [(48, 64), (47, 63), (360, 640)])
def test_a_video_contains_every_frame_and_appears_only_when_it_is_complete(
    tmp_path: Path, size_hw: tuple[int, int]
) -> None:
    path = tmp_path / "new" / "out.mp4"
    with open_sink(str(path), 12.5) as sink:
        for index in range(7):
            sink.write(frame(index, *size_hw), prediction(*size_hw))
        assert not path.exists()
    assert os.listdir(path.parent) == ["out.mp4"]
    with open_source(str(path)) as source:
        assert source.fps == 12.5
        images = [item.image for item in source]
    assert len(images) == 7
    assert images[0].shape[:2] == (size_hw[0] & -2, size_hw[1] & -2)
    assert np.abs(images[6][-3, -20].astype(int) - 106).max() < 12
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_video_replaces_an_old_one_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    with open_sink(str(path), 25.0) as sink:
        sink.write(frame(), prediction())
        assert path.read_bytes() == b"old"
    assert len(path.read_bytes()) > 100


def test_a_video_without_frames_leaves_nothing(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "out.mp4"), 25.0):
        pass
    assert os.listdir(tmp_path) == []


def test_a_failed_run_keeps_the_video_so_far(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with pytest.raises(SourceError), open_sink(str(path), 25.0) as sink:  # noqa: PT012  # closing is the point
        sink.write(frame(), prediction())
        sink.write(frame(1), prediction())
        raise SourceError("the camera is gone")
    assert len(list(open_source(str(path)))) == 2


def test_the_first_error_is_raised_if_closing_fails_too() -> None:
    class Unfinishable(Sink):
        def write(self, frame: Frame, prediction: Prediction) -> None:
            pass

        def _finish(self) -> None:
            raise FsvitEdgeError("the disk is full")

    with pytest.raises(SourceError, match="the camera is gone"), Unfinishable():
        raise SourceError("the camera is gone")
    with pytest.raises(FsvitEdgeError, match="the disk is full"), Unfinishable():
        pass


def test_a_frame_of_another_size_does_not_fit_into_a_video(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    reason = r"A frame has 40x30 pixels, but the video .*out\.mp4 started with 64x48; write .* to a folder instead"
    with open_sink(str(path), 25.0) as sink:
        sink.write(frame(), prediction())
        with pytest.raises(InputError, match=reason):
            sink.write(frame(1, 30, 40), prediction(30, 40))
    assert len(list(open_source(str(path)))) == 1


def test_a_video_that_cannot_be_started_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reason = r"out\.mp4 cannot be started with frames of 1x1 pixels at 25 frames per second; write to a folder"
    with pytest.raises(FsvitEdgeError, match=reason), open_sink(str(tmp_path / "out.mp4"), 25.0) as sink:
        sink.write(frame(0, 1, 1), prediction(1, 1))
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("", "Unsupported sink ''; expected a folder"),
        (
            "out.avi",
            r"Unsupported sink 'out\.avi'; expected a folder \(ending in /\), masks:FOLDER/, \*\.mp4, \*\.jsonl, - for",
        ),
        ("http://127.0.0.1:8080", "Unsupported sink"),
        ("ftp://me:secret@host/out.mp4", r"Unsupported sink 'ftp://host/out\.mp4'"),
        ("file/", "file cannot be a folder: file is a file"),
        ("file/deeper/", "cannot be a folder: file"),
        ("file/out.mp4", "file cannot be a folder: file is a file"),
        ("file/out.jsonl", "file cannot be a folder: file is a file"),
    ],
)
def test_an_unsupported_sink_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, reason: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=reason):
        open_sink(uri, 25.0)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["out.mp4", "out.jsonl"])
def test_a_sink_that_cannot_be_written_is_an_error(name: str) -> None:
    with pytest.raises(FsvitEdgeError, match=r"^/proc/out.* cannot be written: No such file"):
        open_sink(f"/proc/{name}", 25.0)


def test_a_full_disk_leaves_the_old_video_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    run = write_in_process(str(path), limit_bytes=100_000)  # less than the first second
    assert run.returncode == 1
    assert run.stderr == f"FsvitEdgeError {path} ends after 0 frames: File too large; free some space.\n"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize("count", [120, 70])  # the disk is full while frames come, and when the video is finished
def test_a_disk_that_fills_up_ends_the_video_after_its_last_complete_second(tmp_path: Path, count: int) -> None:
    path = tmp_path / "out.mp4"
    whole = write_in_process(str(path), 0, 60)
    assert whole.stderr == "60\n"
    run = write_in_process(str(path), limit_bytes=path.stat().st_size, count=count)
    assert (
        run.stderr.splitlines()[-1] == f"FsvitEdgeError {path} ends after 50 frames: File too large; free some space."
    )
    assert len(list(open_source(str(path)))) == 50
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_a_full_disk_leaves_only_complete_lines(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    run = write_in_process(str(path), limit_bytes=5000)
    lines = path.read_text().split("\n")
    assert lines.pop() == ""
    assert [json.loads(line)["sequence"] for line in lines] == list(range(len(lines)))
    assert 10 < len(lines) < 60
    assert run.stderr == f"FsvitEdgeError {path} ends after {len(lines)} lines: File too large; free some space.\n"
    assert run.returncode == 1


def test_a_full_device_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").symlink_to("/dev/full")
    with (
        pytest.raises(FsvitEdgeError, match="ends after 0 lines: No space left on device; free some space"),
        open_sink(str(tmp_path / "out.jsonl"), 25.0) as sink,
    ):
        sink.write(frame(), prediction())


def test_a_full_disk_is_an_error_that_names_the_picture(tmp_path: Path) -> None:
    run = write_in_process(f"{tmp_path}/pictures/", limit_bytes=1000)
    picture = tmp_path / "pictures" / "frame_000000.jpg"
    assert run.stderr == f"FsvitEdgeError {picture} cannot be written: File too large; nothing was changed.\n"
    assert os.listdir(picture.parent) == []


def test_a_full_standard_output_is_an_error_without_a_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", WRITER, "-", "0", "5", "0"]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=BUFFERED)
    assert run.stderr == "FsvitEdgeError Standard output cannot be written to: No space left on device.\n"
    assert run.returncode == 1


def test_a_reader_that_leaves_ends_the_run_cleanly() -> None:
    command = [sys.executable, "-c", WRITER, "-", "0", "100000", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=BUFFERED) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert json.loads(run.stdout.readline())["sequence"] == 0
        run.stdout.close()
        said = run.stderr.read()
    assert run.returncode == 0
    assert 0 < int(said) < 100_000  # only the number of frames, no traceback


def test_writing_a_video_leaves_opencv_and_the_environment_as_they_were(tmp_path: Path) -> None:
    logging = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 moved it
    logging.setLogLevel(3)
    before = dict(os.environ)
    with open_sink(str(tmp_path / "out.mp4"), 25.0) as sink:
        sink.write(frame(), prediction())
    assert logging.getLogLevel() == 3
    assert dict(os.environ) == before
