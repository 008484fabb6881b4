"""What a person gives in a file or through a pipe: read to its end, and never waited for without one."""

import logging
import os
import threading
import time
from pathlib import Path

import pytest

from fsvit_edge.runtime import disk_steps, given_text
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.given_text import read_given, read_given_text


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(given_text, "_LIMIT_S", 60.0)
    monkeypatch.setattr(given_text, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(disk_steps, "_told", set())
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def write_later(pipe: Path, *parts: bytes) -> threading.Thread:
    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            for part in parts:
                time.sleep(0.3)
                file.write(part)
            time.sleep(0.3)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def test_a_pipe_is_read_until_its_writer_closes_it(pipe: Path) -> None:
    thread = write_later(pipe, b"mqtt://host", b"/topic\n")
    assert read_given_text(pipe, "The file", 100) == "mqtt://host/topic\n"
    thread.join()


def test_what_was_written_and_closed_before_is_read() -> None:
    """`<(echo secret)` has often ended when we begin."""
    reader, writer = os.pipe()
    os.write(writer, b"secret")
    os.close(writer)
    assert read_given(Path(f"/dev/fd/{reader}"), 100) == b"secret"
    os.close(reader)


def test_a_pipe_that_nobody_writes_into_is_told_and_given_up(
    pipe: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(given_text, "_LIMIT_S", 0.4)
    monkeypatch.setattr(given_text, "_PATIENCE_S", 0.0)
    refused: list[str] = []

    def read() -> None:
        with pytest.raises(InputError) as error:
            read_given_text(pipe, "The file", 100)
        refused.append(str(error.value))

    with caplog.at_level(logging.WARNING):
        reading = threading.Thread(target=read, daemon=True)  # the fault was that this never came back
        reading.start()
        reading.join(60)
    assert refused == [f"The file {pipe} cannot be read: nothing came through this pipe for 0 s."]
    assert caplog.messages == [f"Waiting for what is written into {pipe}."]


def test_of_what_has_no_end_no_more_is_read_than_it_can_have(pipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^The list /dev/zero cannot be read: it is longer than 1,000 bytes\.$"):
        read_given_text(Path("/dev/zero"), "The list", 1000)
    thread = write_later(pipe, b"x" * 1001)
    with pytest.raises(InputError, match="it is longer than 1,000 bytes"):
        read_given_text(pipe, "The file", 1000)
    thread.join()
    (tmp_path / "whole").write_bytes(b"x" * 1000)
    assert len(read_given_text(tmp_path / "whole", "The file", 1000)) == 1000


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file or directory"), (b"\xff", "it is not UTF-8 text")]
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    with pytest.raises(InputError, match=rf"^The list .*list cannot be read: {reason}\.$"):
        read_given_text(tmp_path / "list", "The list", 100)
    (tmp_path / "list").write_bytes("\ufeffGröße".encode())
    assert read_given_text(tmp_path / "list", "The list", 100) == "Größe"
