"""`fsvit-edge run` with several sources."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import COMMAND, Cli, count_frames, is_one_error, json_lines
from sample_files import colors, write_video

from fsvit_edge.runtime import given_text
from fsvit_edge.runtime.errors import InputError


@pytest.fixture
def clips(folder: Path) -> Path:
    for name, frames in (("door", 2), ("hall", 4)):
        write_video(folder / f"{name}.mp4", [colors(seed, 48, 64) for seed in range(frames)], 10.0)
    return folder


def test_two_videos_go_to_their_own_files_and_into_shared_lines(clips: Path, cli: Cli) -> None:
    sinks = ["--sink", "out-{source}.mp4", "--sink", "all.jsonl", "--snapshots", "shots/{source}"]
    result = cli("run door.mp4 hall.mp4 --health health.json --json", *sinks)
    assert result.code == 0, result.err
    assert {name: count_frames(clips / f"out-{name}.mp4") for name in ("door", "hall")} == {"door": 2, "hall": 4}
    records = [one for one in json_lines((clips / "all.jsonl").read_text()) if one["event"] == "frame"]
    order = [(one["source"], one["sequence"]) for one in records]
    assert order == [*(("door", 0), ("hall", 0), ("door", 1), ("hall", 1)), ("hall", 2), ("hall", 3)]
    summary = json.loads(result.out)
    assert [(one["name"], one["frames"]) for one in summary["sources"]] == [("door", 2), ("hall", 4)]
    assert (summary["source"], summary["frames"]) == ("door, hall", 6)
    assert {one["name"] for one in json.loads((clips / "health.json").read_text())["sources"]} == {"door", "hall"}
    assert sorted(result.err.splitlines())[-3:] == ["Wrote all.jsonl", "Wrote out-door.mp4", "Wrote out-hall.mp4"]


def test_without_a_sink_each_source_has_its_answer_and_its_row(clips: Path, cli: Cli) -> None:
    (clips / "cameras.txt").write_text("entry = door.mp4  # the first\nhall.mp4\n")
    result = cli("run photo.jpg --cameras cameras.txt")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert [line.split(":")[0] for line in lines[:6]] == [
        *["photo, last frame"] * 2,
        *["entry, last frame"] * 2,
        *["hall, last frame"] * 2,
    ]
    rows = [line.split()[:2] for line in lines[lines.index("Sources") :]]
    assert [row for row in rows if row and row[0] in ("photo", "entry", "hall")] == [
        ["photo", "1"],
        ["entry", "2"],
        ["hall", "4"],
    ]


def test_one_source_may_have_a_name_and_a_place_for_it(clips: Path, cli: Cli) -> None:
    (clips / "cameras.txt").write_text("entry = door.mp4\n")
    assert cli("run --cameras cameras.txt --sink {source}.jsonl").code == 0
    assert {one["source"] for one in json_lines((clips / "entry.jsonl").read_text())} == {"entry"}
    assert cli("run door.mp4 --sink {source}.jsonl").code == 0
    assert {one["source"] for one in json_lines((clips / "door.jsonl").read_text())} == {"door.mp4"}


def test_the_demo_among_others_ends_after_a_round_and_frames_can_be_limited(clips: Path, cli: Cli) -> None:
    assert (clips / "door.mp4").is_file()
    result = cli("run demo door.mp4 --max-frames 5 --json --sink -")
    assert [one["source"] for one in json_lines(result.out)[:-1]] == ["demo", "door", "demo", "door", "demo"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run door.mp4 hall.mp4 --sink out.mp4", "2 sources would write to out.mp4"),
        ("run door.mp4 hall.mp4 --sink mqtt://host/topic", "2 sources would write to mqtt://host/topic"),
        ("run door.mp4 hall.mp4 --snapshots shots", "2 sources would write to shots"),
        ("run door.mp4 photo.jpg --steady", "pictures have no time"),
        ("run door.mp4 --camera", "--camera reads a camera, but SOURCE is 'door.mp4'"),
        ("run --cameras none.txt", "The list of cameras none.txt cannot be read"),
        ("run door.mp4 none.mp4", "The source none.mp4 cannot be opened"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(clips: Path, cli: Cli, words: str, said: str) -> None:
    before = sorted(clips.iterdir())
    result = cli(words)
    is_one_error(result, result.code, said)
    assert result.code in (2, 6)
    assert sorted(clips.iterdir()) == before


def test_what_is_secret_can_be_in_a_file(folder: Path, cli: Cli) -> None:
    (folder / "sink.txt").write_text("\n  out.jsonl \n")
    (folder / "token.txt").write_text("a-token-of-mine\n")
    result = cli("run photo.jpg --sink @sink.txt --sink http://127.0.0.1:0 --token @token.txt")
    assert result.code == 0
    assert "Wrote out.jsonl\n" in result.err
    assert "The page is at http://127.0.0.1:" in result.err
    assert "a-token-of-mine" not in result.err


@pytest.mark.parametrize(
    ("words", "is_terminal", "is_shown"),
    [
        ("--token @token.txt", True, False),
        ("--token a-token-of-mine", False, False),  # into a log, as that of a service
        ("--token a-token-of-mine", True, True),
        ("", False, True),  # a random one: it is told nowhere else
    ],
)
def test_a_token_is_printed_only_where_it_is_no_secret_or_known_to_nobody(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, words: str, is_terminal: bool, is_shown: bool
) -> None:
    def note(*_: object, shows_token: bool, **__: object) -> None:
        raise InputError(f"shown: {shows_token}")

    (folder / "token.txt").write_text("a-token-of-mine\n")
    monkeypatch.setattr("fsvit_edge.cli.run._open_page", note)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    assert f"shown: {is_shown}" in cli(f"run photo.jpg --sink http://127.0.0.1:0 {words}").err


@pytest.mark.parametrize(("text", "got"), [("", 0), ("out.jsonl\nmore.jsonl\n", 2)])
def test_a_file_with_a_secret_has_one_line(folder: Path, cli: Cli, text: str, got: int) -> None:
    (folder / "sink.txt").write_text(text)
    is_one_error(cli("run photo.jpg --sink @sink.txt"), 2, f"The file sink.txt must have one line, got {got}.")


@pytest.mark.parametrize("option", ["--sink", "--token", "--webhook"])
def test_no_more_is_read_of_a_secret_than_it_can_have(folder: Path, cli: Cli, option: str) -> None:
    """Of /dev/zero, the rest would fill the memory."""
    (folder / "long.txt").write_bytes(bytes(10_001))
    result = cli(f"run photo.jpg {option} @long.txt")
    is_one_error(result, 2, "The file long.txt cannot be read: it is longer than 10,000 bytes.")


@pytest.mark.parametrize("option", ["--sink", "--token", "--webhook", "--bank", "--trust", "--cameras"])
def test_a_pipe_that_nobody_writes_into_is_one_sentence(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(given_text, "_LIMIT_S", 0.1)
    os.mkfifo(folder / "pipe")
    given = "pipe" if option == "--cameras" else "@pipe"
    result = cli(f"run photo.jpg {option} {given}")
    is_one_error(result, 2, "pipe cannot be read: nothing came through this pipe for 0 s.")


def test_what_is_secret_can_come_through_a_pipe(folder: Path) -> None:
    command = f"{shlex.join(COMMAND)} run photo.jpg --sink @<(sleep 0.2; echo out.jsonl)"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("Wrote out.jsonl\n")
