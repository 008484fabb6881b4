"""What the test of kills says when one of its processes stands still or ends too soon."""

import re
import time
from pathlib import Path

import killed
import pytest
from killed import Killed

SLEEPER = """
import time
def work():
    say("first")
    time.sleep(1000)
"""


def test_each_round_has_a_process_of_its_own(tmp_path: Path) -> None:
    with Killed(tmp_path, SLEEPER) as sleepers:
        assert sleepers.lines(1, 0.0) == sleepers.lines(1, 0.0) == ["first"]


def test_a_process_that_stands_still_fails_the_test_which_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Killed(tmp_path, SLEEPER) as sleepers:
        sleepers.lines(1, 0.0)
        monkeypatch.setattr(killed, "SILENT_S", 1.0)
        with pytest.raises(pytest.fail.Exception) as failure:
            sleepers.lines(2, 0.0)
    said = str(failure.value)
    assert said.startswith("Too late: line 1 of process ")
    assert re.search(r"\n1 rounds are done; the slowest took \d+\.\d\d s\.\n", said)
    assert said.count("State:\tS (sleeping), wchan: ") == 2
    assert "in work" in said
    assert "in <module>" in said


def test_rounds_that_take_too_long_together_fail_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killed, "WHOLE_S", 2.0)
    started_s = time.monotonic()
    with Killed(tmp_path, SLEEPER) as sleepers, pytest.raises(pytest.fail.Exception, match="Too late"):
        list(iter(lambda: sleepers.lines(1, 0.1), ["never"]))
    assert time.monotonic() - started_s < 60


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit('no network')", "no network"),
        (
            "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
            "2 threads before a fork",
        ),
        (
            "import os\ndef work():\n    os.kill(os.getppid(), 9)\n    os.kill(os.getpid(), 9)",
            "They wrote to stderr:\n",
        ),
    ],
)
def test_processes_that_end_too_soon_fail_the_test_which_says_why(tmp_path: Path, code: str, said: str) -> None:
    with (
        Killed(tmp_path, code) as processes,
        pytest.raises(pytest.fail.Exception, match="Every process has ended") as failure,
    ):
        processes.lines(1, 0.0)
    assert said in str(failure.value)


TALKER = """
def work():
    while True:
        {}
"""


def test_a_kill_while_a_line_is_written_leaves_whole_lines(tmp_path: Path) -> None:
    with Killed(tmp_path, TALKER.format("say('a line')")) as talkers:
        for _ in range(10):
            assert set(talkers.lines(1, 0.02)) == {"a line"}  # by then the pipe is full


def test_a_line_that_is_written_in_two_parts_joins_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    monkeypatch.setattr(killed, "SILENT_S", 2.0)
    with (
        Killed(tmp_path, TALKER.format("print('a line')")) as talkers,
        pytest.raises(pytest.fail.Exception, match=r"^Too late: the end of process"),
    ):
        list(iter(lambda: talkers.lines(0, 0.02), ["never"]))
