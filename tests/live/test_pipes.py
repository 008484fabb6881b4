"""JSON lines into a named pipe, whose reader may be missing, leave and come back."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
from test_sinks import frame, prediction

from fsvit_edge.live.sink_worker import SinkWorker
from fsvit_edge.live.sinks.base import RecordingOptions
from fsvit_edge.live.sinks.json_lines import JsonLinesSink
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "out.jsonl"
    os.mkfifo(path)
    return path


@pytest.fixture
def reader(pipe: Path) -> int:
    """The descriptor of somebody who reads; the test closes it."""
    return os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)


def open_lines(pipe: Path, is_live: bool = False) -> JsonLinesSink:
    return JsonLinesSink(pipe, RecordingOptions(), is_live)


@pytest.mark.parametrize("is_live", [False, True])
def test_a_pipe_that_nobody_reads_is_refused_at_once(pipe: Path, is_live: bool) -> None:
    refused: list[str] = []

    def begin() -> None:
        with pytest.raises(InputError) as error:
            open_lines(pipe, is_live)
        refused.append(str(error.value))

    opening = threading.Thread(target=begin, daemon=True)  # the fault was that this never came back
    opening.start()
    opening.join(60)
    assert refused == [f"{pipe} is a pipe that nobody reads; start its reader first."]


def test_a_reader_gets_complete_lines_and_one_that_leaves_is_named(pipe: Path, reader: int) -> None:
    with open_lines(pipe) as sink:
        for index in range(3):
            sink.write(frame(index), prediction())
        assert [json.loads(line)["sequence"] for line in os.read(reader, 65536).splitlines()] == [0, 1, 2]
        os.close(reader)
        with pytest.raises(FsvitEdgeError) as error:
            sink.write(frame(3), prediction())
    assert str(error.value) == f"The reader of {pipe} has closed it after 3 lines."


def test_a_live_run_goes_on_without_the_reader_and_with_the_next(pipe: Path, reader: int) -> None:
    worker = SinkWorker(open_lines(pipe, is_live=True), "out.jsonl", True, lambda *_: None)
    os.close(reader)
    worker.put(frame(0), prediction())
    deadline_s = time.monotonic() + 60
    while "has closed it" not in worker.status.trouble:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    again = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    got = b""
    while not got and time.monotonic() < deadline_s:
        worker.put(frame(1), prediction())
        time.sleep(0.05)
        try:
            got = os.read(again, 65536)
        except BlockingIOError:
            continue
    assert json.loads(got.splitlines()[0])["sequence"] == 1
    assert worker.finish(60)
    os.close(again)
