"""`label`: what it prints and writes, its errors, and that a killed command is finished by the same one."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, Cli, contents, is_one_error
from sample_files import colors

from fsvit_edge.runtime.pictures import write_image

THREADS = "--threads 1"


def outputs(folder: Path) -> dict[str, str]:
    """What a reader of the labels sees, by the hash of its bytes."""
    return {name: digest for name, digest in contents(folder).items() if not name.startswith(".")}


def labels(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]


def test_a_folder_is_labeled(cli: Cli, folder: Path) -> None:
    done = cli(f"label album cat1.jpg video.mp4 --every 0.25 -o out --format jsonl --split 0.5/0.5 {THREADS}")
    assert done.code == 0, done.err
    about, *pictures = labels(folder / "out")
    assert about["classes"] == ["cat", "Größe 猫"]
    assert len(about["bank_sha256"]) == len(about["bundle_sha256"]) == 64
    assert [one["path"] for one in pictures] == [
        *(f"album/{index}.jpg" for index in range(3)),
        "cat1.jpg",
        *(f"video.mp4/{index:06}.jpg" for index in (0, 3)),
    ]
    assert "Labeled 6 pictures in " in done.out
    assert "Wrote out (jsonl)" in done.out
    before = outputs(folder / "out")
    again = cli(f"label album cat1.jpg video.mp4 --every 0.25 -o out --format jsonl --split 0.5/0.5 {THREADS}")
    assert again.code == 0
    assert "Labeled 6 pictures by an earlier command" in again.out
    assert "out (jsonl) is complete already; nothing was written" in again.out
    assert "Wrote" not in again.out
    assert outputs(folder / "out") == before


def test_pictures_that_cannot_be_read_are_counted_and_the_exit_code_is_that_of_run(cli: Cli, folder: Path) -> None:
    for name in ("broken.jpg", "gone.jpg"):
        (folder / "album" / name).symlink_to(folder / name)
    done = cli(f"label album -o out --format jsonl {THREADS}")
    assert done.code == cli(f"run album --sink seen/ {THREADS}").code == 1
    said = "2 files could not be labeled; see out/errors.jsonl; the same command tries them again.\n"
    assert done.err.endswith(said)
    assert "Wrote out (jsonl)" in done.out
    failures = [json.loads(line) for line in (folder / "out/errors.jsonl").read_text().splitlines()]
    assert [one["path"] for one in failures] == ["broken.jpg", "gone.jpg"]


@pytest.mark.usefixtures("folder")
def test_nothing_is_called_written_if_no_picture_can_be_read(cli: Cli) -> None:
    done = cli(f"label broken.mp4 garbage --every 1 -o out --format jsonl {THREADS}")
    assert done.code == 1
    assert "out (jsonl) has no labels, because no picture could be read" in done.out
    assert "Wrote" not in done.out
    assert done.err.endswith("2 files could not be labeled; see out/errors.jsonl; the same command tries them again.\n")


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("label none -o out --format jsonl", 6, "The source none does not exist; check the path."),
        ("label album -o album --format jsonl", 2, "album contains other files"),
        ("label album -o out --format voc", 2, "--format must be one of"),
        ("label album -o out --format jsonl --classes cow", 2, "has no class 'cow'; it has: cat, Größe 猫."),
        ("label album -o out --format jsonl --min-score 2", 2, "--min-score must be between 0 and 1"),
        ("label album -o out --format jsonl --split 0.8", 2, "--split '0.8' is no split"),
        (
            "label album -o out --format jsonl --split 1/0",
            2,
            "train, val and perhaps test, each above 0, which add up to 1",
        ),
        ("label video.mp4 -o out --format jsonl", 2, "--every SECONDS"),
        ("label album -o out --format jsonl --bank none.safetensors", 4, "does not exist; make one with"),
        ("label album -o out --format jsonl --bank foreign.safetensors", 4, "encoder"),
    ],
)
def test_an_error_is_one_sentence(cli: Cli, folder: Path, line: str, code: int, text: str) -> None:
    is_one_error(cli(line), code, text)
    assert not (folder / "out").exists()


@pytest.mark.usefixtures("folder")
def test_a_log_gets_a_line_now_and_then(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsvit_edge.cli.label._LINE_PERIOD_S", 0.0)
    done = cli(f"label album -o out --format jsonl {THREADS}")
    assert done.err.splitlines()[0].startswith("33.3%: 1 labeled, ")
    assert done.err.splitlines()[0].endswith(" left")
    assert done.err.splitlines()[-1].endswith("/s, writing the label files")


def start(line: str, folder: Path, wanted: int) -> "subprocess.Popen[str]":
    """Start a command that writes to `out`, and wait for so many lines in its journal."""
    process = subprocess.Popen(
        [*COMMAND, *line.split(), "-o", "out"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    journal = folder / "out" / ".fsvit-edge-label" / "journal.jsonl"
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < wanted):
        time.sleep(0.002)
    return process


def test_ctrl_c_says_how_far_it_was(folder: Path) -> None:
    for index in range(3, 60):
        write_image(folder / "album" / f"{index}.jpg", colors(10 + index, 60, 80))
    process = start(f"label album --format jsonl {THREADS}", folder, 4)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    last = err.splitlines()[-1]  # before it, a note on the engines may be
    assert re.fullmatch(r"Stopped at [0-9.]+%, with [0-9]+ pictures labeled; the same command goes on\.", last)


@pytest.mark.slow(reason="labels twice and starts a process, 6 s")
def test_a_command_that_was_killed_is_finished_by_the_same_one(cli: Cli, folder: Path) -> None:
    for index in range(3, 24):
        write_image(folder / "album" / f"{index}.jpg", colors(10 + index, 60, 80))
    line = f"label album video.mp4 --every 0 --format jsonl {THREADS}"
    assert cli(f"{line} -o whole").code == 0
    for wanted in (4, 20):
        process = start(line, folder, wanted)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (folder / "out/labels.jsonl").exists()  # killed before the end
    done = cli(f"{line} -o out")
    assert done.code == 0
    (said,) = done.err.splitlines()
    assert re.fullmatch(r"Note: [0-9]+ pictures were labeled by an earlier command; .* are left\.", said)
    assert outputs(folder / "out") == outputs(folder / "whole")
    assert len(outputs(folder / "out")) > 6  # the control: frames are among them
