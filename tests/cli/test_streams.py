"""Standard streams that are closed, full, without a reader, or of an old encoding."""

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import COMMAND, Cli, spawn

from fsvit_edge.cli.streams import Log

LOST = "messages were lost before this line, because the log could not be written.\n"


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that holds 4 kB; its ends are closed here."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, 1031, 4096)  # F_SETPIPE_SZ
    yield reader, writer
    for end in (reader, writer):
        os.close(end)


def test_a_log_whose_disk_is_full_loses_lines_and_says_how_many(tmp_path: Path) -> None:
    full, path = os.open("/dev/full", os.O_WRONLY), tmp_path / "log.txt"
    with pytest.raises(OSError, match="No space"), os.fdopen(full, "w", closefd=False) as plain:
        print("as a control", file=plain)
    with os.fdopen(full, "w", closefd=False) as stream:
        log = Log(stream)
        for number in range(3):
            print("lost", number, file=log)
        with path.open("w") as file:
            os.dup2(file.fileno(), full)
        print("kept", file=log)
        log.finish()
        until(lambda: path.read_text() == f"kept\n3 {LOST}")
    os.close(full)


def test_a_log_whose_reader_sleeps_blocks_nobody_and_is_complete_but_for_what_was_lost(pipe: tuple[int, int]) -> None:
    with os.fdopen(pipe[1], "w", closefd=False) as stream:
        log = Log(stream)
        started = time.monotonic()
        for number in range(30):
            print(f"{number:4999d}", file=log)
        assert time.monotonic() - started < 20
        read = bytearray()
        os.set_blocking(pipe[0], False)

        def ends() -> bool:
            try:
                read.extend(os.read(pipe[0], 1 << 16))
            except BlockingIOError:
                return False
            return read.decode().endswith(LOST)

        until(ends)
        *lines, last = read.decode().splitlines()
        assert [int(line) for line in lines] == list(range(len(lines)))
        assert last.startswith(f"{30 - len(lines)} messages")
        print("kept", file=log)
        until(lambda: os.read(pipe[0], 99) == b"kept\n")


def test_a_log_whose_reader_is_gone_raises_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        log = Log(stream)
        for _ in range(3):
            print("lost", file=log)
        log.finish()


ENROLL = "enroll dog cat1.jpg --bank new.safetensors"


@pytest.mark.parametrize(
    ("line", "closed"), [("--version", ">&-"), (ENROLL, "2>&-"), (ENROLL, "<&- >&-"), (ENROLL, "<&- >&- 2>&-")]
)
def test_a_closed_stream_is_like_dev_null(folder: Path, line: str, closed: str) -> None:
    done = spawn(f'exec "$@" {closed}', "bash", *COMMAND, *line.split(), cwd=folder, command=("bash", "-c"))
    assert done.code == 0, done.err
    assert "Error" not in done.err
    assert "Next: " not in done.out
    assert (folder / "new.safetensors").is_file() == (line == ENROLL)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_results_can_be_read_whatever_letters_a_stream_has(folder: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for line in ("bank list bank.safetensors", "bank list bank.safetensors --json"):
        done = spawn(*line.split(), cwd=folder, env=environment, encoding=encoding)
        assert done.code == 0, done.err
    assert [one["name"] for one in json.loads(done.out)["classes"]] == ["cat", "Größe 猫"]


def test_a_command_gives_standard_error_back(cli: Cli) -> None:
    before = sys.stderr
    assert cli("--version").code == 0
    assert sys.stderr is before
