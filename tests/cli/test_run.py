"""`fsvit-edge run`: what it prints and writes from pictures, videos, cameras and the demo."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
from command_line import COMMAND, STAGES, Cli, contents, count_frames, is_one_error, json_lines
from sample_files import colors, write_video
from web_server import SECRET, serving, status

from fsvit_edge import FewShotModel
from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.live.sources.demo import DEMO_CLASSES
from fsvit_edge.runtime.pictures import read_image, write_image
from fsvit_edge.runtime.presence_level import score_text

CLASSES = ["cat", "Größe 猫"]
Play = Callable[[str], None]


def is_record(record: dict[str, Any], sequence: int, classes: list[str]) -> None:
    """Assert that a JSON line has the documented fields, and that those of each class agree with each other."""
    times = ["wall_time_s", "monotonic_s", "media_time_s", "age_ms"]
    assert list(record) == ["event", "sequence", "source", *times, "is_frozen", "size_hw", "classes", "latency_ms"]
    assert (record["event"], record["is_frozen"]) == ("frame", False)
    assert 0 < record["age_ms"] < 60_000
    assert record["sequence"] == sequence
    assert abs(record["wall_time_s"] - time.time()) < 600
    height, width = record["size_hw"]
    assert [entry["name"] for entry in record["classes"]] == classes
    for entry in record["classes"]:
        assert list(entry) == [
            *("name", "score", "raw_score", "level", "present", "area_px", "box_xyxy", "instances", "zones")
        ]
        assert 0 <= entry["score"] <= 1
        assert entry["present"] == (entry["score"] > entry["level"])
        assert 0 <= entry["area_px"] <= height * width
        assert (entry["box_xyxy"] is None) == (entry["area_px"] == 0)
        left, top, right, bottom = entry["box_xyxy"] or (0, 0, width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert entry["area_px"] <= (right - left) * (bottom - top)
        assert sum(part["area_px"] for part in entry["instances"]) <= entry["area_px"]
        assert bool(entry["instances"]) == (entry["present"] and entry["area_px"] > 0)
    assert list(record["latency_ms"]) == STAGES[:-1]


def test_one_picture_goes_to_several_sinks(folder: Path, cli: Cli) -> None:
    result = cli("run photo.jpg --sink result/ --sink out.mp4 --sink out.jsonl --sink -")
    assert result.code == 0
    (printed,) = json_lines(result.out)
    (written,) = json_lines((folder / "out.jsonl").read_text())
    assert printed == written
    is_record(printed, 0, CLASSES)
    assert (printed["source"], printed["size_hw"]) == ("photo.jpg", [121, 163])
    assert read_image(folder / "result" / "photo.jpg").shape == (121, 163, 3)
    assert count_frames(folder / "out.mp4") == 1
    assert "photo.jpg with " in result.err
    assert "Wrote result/\nWrote out.mp4\nWrote out.jsonl\n" in result.err


def test_results_say_which_classes_are_in_a_zone(folder: Path, cli: Cli) -> None:
    plain = cli("run photo.jpg --sink -")
    zones = ["--zone", "all of it=0,0,1,0,1,1,0,1", "--zone", "dot=0,0,0.01,0,0,0.01"]
    result = cli("run photo.jpg --level 0.01 --sink - --sink marked/", *zones)
    assert result.code == 0
    found = [entry for entry in json_lines(result.out)[0]["classes"] if entry["area_px"]]
    assert found
    assert all(entry["present"] and entry["zones"] == ["all of it"] for entry in found)
    assert all(entry["zones"] == [] for entry in json_lines(plain.out)[0]["classes"])
    assert (folder / "marked" / "photo.jpg").is_file()
    printed = cli("run photo.jpg --level 0.01", *zones).out.splitlines()
    assert sum(line.endswith("%, in all of it") for line in printed) == len(found)


def test_zones_of_the_bank_are_in_results_and_those_of_the_command_line_replace_them(folder: Path, cli: Cli) -> None:
    bank = folder / "bank.safetensors"
    assert cli("bank zone bank.safetensors 'the bank=0,0,1,0,1,1,0,1'").code == 0
    before = bank.read_bytes()

    def zones(*given: str) -> set[str]:
        (record,) = json_lines(cli("run photo.jpg --level 0.01 --sink -", *given).out)
        return {name for entry in record["classes"] for name in entry["zones"]}

    assert zones() == {"the bank"}
    assert zones("--zone", "the line=0,0,1,0,1,1,0,1") == {"the line"}
    assert bank.read_bytes() == before


@pytest.mark.parametrize(
    ("zones", "said"),
    [
        (["--zone", "door=0,0,640,0,640,360"], "Zone 'door' has 640 in a corner"),
        (["--zone", "door=0,0,1,0,1,1", "--zone", "door=0,0,1,0,0,1"], "Two zones are named 'door'"),
        (["--zone", "0,0,1,0,1,1"], "Unsupported zone '0,0,1,0,1,1'; expected NAME=x1,y1,x2,y2,..."),
    ],
)
def test_a_bad_zone_is_an_error_before_anything_is_written(folder: Path, cli: Cli, zones: list[str], said: str) -> None:
    before = contents(folder)
    is_one_error(cli("run photo.jpg --sink new/", *zones), 2, said)
    assert contents(folder) == before


def test_a_folder_becomes_one_picture_per_picture(folder: Path, cli: Cli) -> None:
    result = cli("run album --sink result/ --sink deep/er/out.jsonl")
    assert result.code == 0
    assert sorted(path.name for path in (folder / "result").iterdir()) == [f"{i}.jpg" for i in range(3)]
    records = json_lines((folder / "deep/er/out.jsonl").read_text())
    for index, one in enumerate(records):
        is_record(one, index, CLASSES)
        assert (one["source"], one["size_hw"]) == (f"album/{index}.jpg", [60 + index, 80])
    assert "album with " in result.out
    assert ": 3 frames in " in result.out
    assert result.err == "Wrote result/\nWrote deep/er/out.jsonl\n"


def test_a_video_becomes_a_video_of_the_same_speed(folder: Path, cli: Cli) -> None:
    result = cli("run video.mp4 --sink out.mp4 --threads 1 --engine onnxruntime")
    assert result.code == 0
    assert count_frames(folder / "out.mp4") == 6
    capture = cv2.VideoCapture(str(folder / "out.mp4"), cv2.CAP_FFMPEG)
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12, abs=0.1)
    capture.release()


def test_a_run_without_a_sink_prints_a_summary(folder: Path, cli: Cli) -> None:
    before = contents(folder)
    result = cli("run video.mp4 --max-frames 4")
    assert (result.code, result.err) == (0, "")
    assert ": 4 frames in " in result.out
    assert [line.rpartition(":")[0] for line in result.out.splitlines()[:2]] == [
        f"video.mp4, last frame: {name}" for name in CLASSES
    ]
    rows = [line.split() for line in result.out.splitlines()[3:]]
    assert [row[0] for row in rows if len(row) == 3 and row[0] != "stage"] == STAGES
    assert contents(folder) == before


@pytest.mark.usefixtures("folder")
def test_a_run_without_a_sink_prints_the_answer_for_each_picture_and_class(cli: Cli) -> None:
    cli("bank level bank.safetensors cat 0.0001")
    cli("bank level bank.safetensors", "Größe 猫", "0.9999")
    lines = cli("run album").out.splitlines()
    expected = []
    for record in json_lines(cli("run album --sink -").out):
        height, width = record["size_hw"]
        present, absent = record["classes"]
        assert (present["present"], absent["present"]) == (True, False)
        area = present["area_px"] / (height * width)
        expected += [
            f"{record['source']}: cat: present, score {score_text(present['score'])} (level 0.00), area {area:.1%}",
            f"{record['source']}: Größe 猫: absent, score {score_text(absent['score'])} (level 0.9999)",
        ]
    assert lines[:6] == expected
    assert lines[6].startswith("album with ")
    assert cli("run photo.jpg").out.startswith("photo.jpg: cat: present, ")


@pytest.mark.usefixtures("folder")
def test_with_sinks_the_answer_is_printed_for_one_picture_and_not_for_many(cli: Cli) -> None:
    plain = cli("run photo.jpg").out.splitlines()[: len(CLASSES)]
    assert [line.startswith(f"photo.jpg: {name}: ") for line, name in zip(plain, CLASSES, strict=True)] == [True, True]
    assert cli("run photo.jpg --sink result/ --sink out.jsonl").out.splitlines()[: len(CLASSES)] == plain
    printed = cli("run photo.jpg --sink -")
    assert len(printed.out.splitlines()) == 1  # its line of JSON
    assert cli("run album --sink many/").out.startswith("album with ")


@pytest.mark.usefixtures("folder")
def test_the_summary_in_json_contains_the_same_numbers(cli: Cli) -> None:
    result = cli("run video.mp4 --json")
    assert (result.code, result.err) == (0, "")
    (summary,) = json_lines(result.out)
    counts = ["frames", "declared_frames", "left_out", "dropped", "reconnects"]
    times = ["elapsed_s", "fps", "age_ms", "latency_ms"]
    assert list(summary) == ["source", "model", "engine", "precision", *counts, *times, "memory_mb"]
    assert (summary["dropped"], summary["reconnects"]) == (0, 0)
    assert 0 < summary["age_ms"]["p50"] <= summary["age_ms"]["p99"]
    assert (summary["source"], summary["frames"]) == ("video.mp4", 6)
    assert list(summary["latency_ms"]) == STAGES
    for stage in summary["latency_ms"].values():
        assert 0 <= stage["p50"] <= stage["p95"]
    assert summary["fps"] == pytest.approx(6 / summary["elapsed_s"], rel=0.05)


@pytest.mark.usefixtures("folder")
def test_another_bank_is_chosen_with_the_option(cli: Cli) -> None:
    assert cli("enroll other cat1.jpg --bank sub/other.safetensors").code == 0
    result = cli("run photo.jpg --bank sub/other.safetensors --sink -")
    is_record(json_lines(result.out)[0], 0, ["other"])


def test_the_demo_writes_a_video_and_prints_the_next_step(here: Path, cli: Cli) -> None:
    result = cli("run demo --max-frames 5")
    assert result.code == 0
    assert contents(here).keys() == {"demo.mp4"}
    assert count_frames(here / "demo.mp4") == 5
    assert ": 5 frames in " in result.out
    *enrolled, wrote, comes_next = result.err.splitlines()
    assert {line.split("'")[1] for line in enrolled} == set(DEMO_CLASSES)
    assert any(line.endswith(" with a mask") for line in enrolled)
    assert any(line.endswith(" without a mask") for line in enrolled)
    assert wrote == "Wrote demo.mp4"
    assert comes_next.endswith("Next: fsvit-edge enroll NAME IMAGE")


@pytest.mark.usefixtures("folder")
def test_the_demo_uses_its_own_classes_unless_a_bank_is_given(cli: Cli) -> None:
    own = cli("run demo --max-frames 1 --sink -")
    is_record(json_lines(own.out)[0], 0, list(DEMO_CLASSES))
    ours = cli("run demo --max-frames 1 --sink - --bank bank.safetensors")
    is_record(json_lines(ours.out)[0], 0, CLASSES)


def test_a_run_uses_the_levels_of_the_bank_or_one_for_all_classes(folder: Path, cli: Cli) -> None:
    cli("bank level bank.safetensors cat 0.3")

    def classes(*options: str) -> list[dict[str, Any]]:
        return list(json.loads(cli("run photo.jpg --sink -", *options).out.splitlines()[0])["classes"])

    before = SupportBank.load(folder / "bank.safetensors")
    assert [one["level"] for one in classes()] == [0.3, round(before.level("Größe 猫"), 4)]
    for level in (0.0001, 0.9999):
        answers = classes("--level", str(level))
        assert [one["level"] for one in answers] == [level] * 2
        assert [one["present"] for one in answers] == [one["score"] > level for one in answers]
    assert SupportBank.load(folder / "bank.safetensors").level("cat") == 0.3


def test_a_camera_without_a_bank_uses_the_classes_of_the_demo(here: Path, cli: Cli, camera: Play) -> None:
    camera("steady")
    result = cli("run --camera --max-frames 3")
    assert result.code == 0
    assert (
        "No bank found, so the classes of the demo are used; enroll yours: fsvit-edge enroll NAME IMAGE\n" in result.err
    )
    assert "0 with " in result.out
    assert ": 3 frames in " in result.out
    assert contents(here) == {}


@pytest.mark.parametrize("source", ["--camera", "0", "/dev/video0", "--camera 0"])
def test_a_camera_uses_the_bank_in_the_current_folder(folder: Path, cli: Cli, camera: Play, source: str) -> None:
    camera("steady")
    result = cli(f"run {source} --sink - --sink out.mp4 --max-frames 4")
    assert result.code == 0
    records = [one for one in json_lines(result.out) if one["event"] == "frame"]
    assert [one["classes"][0]["name"] for one in records] == [CLASSES[0]] * len(records)
    sequence = [one["sequence"] for one in records]
    assert sequence == sorted(set(sequence))
    assert 1 <= len(records) <= 4
    assert count_frames(folder / "out.mp4") >= 1


def test_a_missing_camera_is_an_error(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda _: False)
    is_one_error(cli("run --camera"), 6, "Camera /dev/video0 does not exist; plug it in, or list the cameras with: ls")
    assert contents(here) == {}


def test_ctrl_c_ends_the_demo_with_its_summary_and_a_complete_video(here: Path) -> None:
    command = [*COMMAND, "run", "demo", "--sink", "demo.mp4", "--sink", "demo.jsonl"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = here / "demo.jsonl"
    deadline = time.monotonic() + 60
    while not lines.exists() or lines.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    records = json_lines(lines.read_text())
    assert len(records) >= 3
    assert abs(count_frames(here / "demo.mp4") - len(records)) <= 1
    assert f"demo with {FewShotModel.load().manifest.name}: " in out
    assert " frames in " in out
    assert contents(here).keys() == {"demo.mp4", "demo.jsonl"}


@pytest.mark.slow(reason="plays for 3 s, 4 s")
def test_a_file_plays_as_a_camera_into_segments_with_statistics_and_health(here: Path, cli: Cli) -> None:
    write_video("clip.avi", [colors(index) for index in range(5)], 10.0, "MJPG")
    enrolled = cli("enroll it clip.avi")
    assert enrolled.code == 2  # a video needs --frame or --at
    write_image(here / "it.png", colors(9))
    assert cli("enroll it it.png").code == 0
    options = ("--realtime", "--loop", "--fps", "20", "--flip", "horizontal", "--max-frames", "60")
    sinks = ("--sink", "out.mp4", "--sink", "out.jsonl", "--segment", "1", "--keep", "2")
    result = cli("run clip.avi", *options, *sinks, "--stats", "0.5", "--health", "health.json", "--json")
    assert result.code == 0
    summary = json.loads(result.out)
    assert summary["frames"] == 60
    assert summary["reconnects"] == 0
    assert "clip.avi: live, " in result.err
    assert "Wrote out.mp4 in numbered segments" in result.err
    health = json.loads((here / "health.json").read_text())
    assert health["source"] == "clip.avi"
    assert health["classes"] == ["it"]
    names = sorted(path.name for path in here.glob("out-*"))
    assert sum(name.endswith(".mp4") for name in names) == 2
    assert sum(name.endswith(".jsonl") for name in names) == 2


@pytest.mark.usefixtures("here")
def test_a_camera_that_stops_is_reported_and_waited_for(cli: Cli, camera: Play) -> None:
    camera("three")
    result = cli("run 0 --max-frames 4 --sink -")
    assert result.code == 0
    assert "0 is lost: The process that reads 0 has ended (exit code 0)." in result.err
    assert "0 is live." in result.err
    lines = json_lines(result.out)
    assert [line["event"] for line in lines].count("frame") == 4
    assert "lost" in [line.get("state") for line in lines]


def test_events_are_posted_and_pictured_and_the_address_is_not_printed(folder: Path, cli: Cli) -> None:
    cli("bank remove bank.safetensors", CLASSES[1])
    cli("bank level bank.safetensors cat 0.0001")
    with serving() as server:
        told = cli(f"run video.mp4 --webhook {server.uri} --cooldown 0 --snapshots events --keep-snapshots 5 --sink -")
        server.usual = status(500)
        failed = cli(f"run video.mp4 --webhook {server.uri} --health health.json")
    assert told.code == 0
    assert [one["event"] for one in json_lines(told.out)].count("appeared") == 1
    assert server.told[0] == ("appeared", "cat")
    (picture,) = (folder / "events").iterdir()
    assert picture.name.endswith("Z-cat.jpg")
    assert failed.code == 0
    assert f"http://127.0.0.1:{server.server_port}: The run has ended, and 1 event could not be sent.\n" in failed.err
    assert SECRET not in told.out + told.err + failed.out + failed.err + (folder / "health.json").read_text()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--webhook hooks.example/s3cret", "Invalid webhook *** (the rest is not shown); expected http://HOST/PATH"),
        ("--sink https://hooks.example/s3cret", "Unsupported sink 'https://hooks.example'; post events there with"),
        ("--snapshots photo.jpg", "photo.jpg cannot be a folder: photo.jpg is a file."),
        ("album --snapshots album/", "The folder album is the source, too; give another one with --snapshots."),
        ("--cooldown -1 --snapshots events", "--cooldown must be at least 0 seconds, got -1."),
        ("--keep-snapshots 0", "--keep-snapshots must be at least 1 picture, got 0."),
        ("--snapshots events --no-steady", "Events need steady answers; leave out --no-steady, or --webhook"),
    ],
)
def test_what_cannot_be_told_about_events_is_refused(folder: Path, cli: Cli, options: str, reason: str) -> None:
    before = contents(folder)
    result = cli(f"run {options}" if options.startswith("album") else f"run video.mp4 {options}")
    is_one_error(result, 2, reason)
    assert SECRET not in result.err
    assert contents(folder) == before


def test_a_run_removes_the_unfinished_files_of_a_killed_one(folder: Path, cli: Cli) -> None:
    folders = [folder / name for name in ("health", "pictures", "results", "videos")]
    for one in folders:
        one.mkdir()
        (one / ".fsvit-edge-1_abc-out").write_bytes(b"half")
    sinks = "--sink results/ --sink pictures --sink videos/out.mp4"
    assert cli(f"run photo.jpg {sinks} --health health/health.json").code == 0
    assert [left for one in folders for left in one.glob(".fsvit-edge-*")] == []


def test_a_demo_without_a_bank_says_what_comes_next_and_one_with_a_bank_does_not(folder: Path, cli: Cli) -> None:
    told = "The demo runs a small demonstration model. Next: fsvit-edge enroll NAME IMAGE"
    for options, is_told in (
        ("", True),
        ("--bank bank.safetensors", False),
        ("--bank bank.safetensors --poll 9", False),
    ):
        ran = cli(f"run demo --max-frames 1 --sink out.jsonl {options}")
        assert (ran.code, told in ran.err) == (0, is_told)
    assert (folder / "out.jsonl").exists()
