"""What the tests of the commands share: the type of `cli`, checks of results."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import pytest

COMMAND = (sys.executable, "-m", "fsvit_edge.cli.main")
STAGES = ["decode", "preprocess", "encoder", "head", "postprocess", "sinks"]


class Result(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


def spawn(*arguments: str, cwd: Path, command: tuple[str, ...] = COMMAND, **options: Any) -> Result:
    """Run a command in its own process."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    done = subprocess.run([*command, *arguments], cwd=cwd, text=True, check=False, **options)
    return Result(done.returncode, done.stdout or "", done.stderr or "")


def is_one_error(result: Result, code: int, text: str, steps: str = "") -> None:
    """Assert that a command printed one error of one sentence, and before it nothing but steps under a title."""
    *before, last = result.err.splitlines()
    assert all(steps and f" s] {steps}: " in line for line in before), result.err
    assert result.err.endswith("\n")
    assert last.startswith("Error: ")
    assert text in last
    assert (result.out, result.code) == ("", code)


def contents(folder: Path) -> dict[str, str]:
    """Every file in a folder with the hash of its bytes; every folder with an empty one."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
        if not path.is_symlink()
    }


def json_lines(text: str) -> list[dict[str, Any]]:
    return [
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in text.splitlines()
    ]


def count_frames(path: Path) -> int:
    """Decode a video to its end."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = 0
    while capture.read()[0]:
        frames += 1
    capture.release()
    return frames


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", fail)
