"""Processes that are killed again and again; when one stands still, the failure says where."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

SILENT_S = 60.0
WHOLE_S = 240.0

# Forks for each line of its input, and says when that process is killed: a fork is there at once, a start takes 0.3 s.
# A lock that another thread holds during a fork stays locked in the new process, so there must be no other thread.
# With PYTHONUNBUFFERED, `print` writes a text and the end of its line one after the other. A kill between the two made
# "class 7killed" of two lines, and the test waited for "killed" until its timeout: a line must be one write.
FORKER = """
import faulthandler
import os
import signal
import sys
from pathlib import Path
faulthandler.register(signal.SIGUSR1)
path = Path(sys.argv[1])
def say(what):
    os.write(1, f"{{what}}\\n".encode())
{code}
for _ in sys.stdin:
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{{threads}} threads before a fork"
    child = os.fork()
    if not child:
        say(os.getpid())
        work()
    os.waitpid(child, 0)
    say("killed")
"""


class Killed:
    """What a process says until it is killed; each time, a new one begins.

    Its code defines `work`, which knows `path` and says lines with `say`. The test fails if nothing is said for
    `SILENT_S`, or if all rounds take longer than `WHOLE_S`.
    """

    def __init__(self, path: Path, code: str) -> None:
        self._end_s = time.monotonic() + WHOLE_S
        self._rounds, self._slowest_s, self._rest = 0, 0.0, b""
        self._errors = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - `__exit__` closes it
        self._forker = subprocess.Popen(
            [sys.executable, "-c", FORKER.format(code=code), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # or numpy starts threads when it is loaded
            start_new_session=True,
        )
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        self._input, self._output = self._forker.stdin, self._forker.stdout

    def __enter__(self) -> "Killed":
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._forker.pid, signal.SIGKILL)
        self._forker.wait()
        for file in (self._input, self._output, self._errors):
            file.close()

    def lines(self, first: int, then_s: float) -> list[str]:
        """Let a process say some lines, wait, kill it, and return all that it said."""
        started_s = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # the first line says why
            os.write(self._input.fileno(), b"\n")
        process = int(self._line("the number of the next process"))
        said = [self._line(f"line {number} of process {process}") for number in range(first)]
        time.sleep(then_s)
        os.kill(process, signal.SIGKILL)
        said.extend(iter(lambda: self._line(f"the end of process {process}"), "killed"))
        self._rounds += 1
        self._slowest_s = max(self._slowest_s, time.monotonic() - started_s)
        return said

    def _line(self, what: str) -> str:
        due_s = min(time.monotonic() + SILENT_S, self._end_s)
        while b"\n" not in self._rest:
            if not select.select([self._output], [], [], max(0.0, due_s - time.monotonic()))[0]:
                pytest.fail(f"Too late: {what}.\n{self._where()}")
            data = os.read(self._output.fileno(), 65536)
            if not data:
                pytest.fail(f"Every process has ended before {what}.\n{self._where()}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def _where(self) -> str:
        """How far it came, and where each process is, in the kernel and in Python."""
        lines = [f"{self._rounds} rounds are done; the slowest took {self._slowest_s:.2f} s."]
        with contextlib.suppress(psutil.NoSuchProcess):
            forker = psutil.Process(self._forker.pid)
            lines.extend(line for one in (forker, *forker.children()) for line in _in_kernel(one.pid))
            for one in (*forker.children(), forker):
                before, due_s = os.fstat(self._errors.fileno()).st_size, time.monotonic() + 20
                one.send_signal(signal.SIGUSR1)
                while os.fstat(self._errors.fileno()).st_size == before and time.monotonic() < due_s:
                    time.sleep(0.01)
                time.sleep(0.3)  # until it has written all: two at once mixed their letters
        self._errors.seek(0)
        return "\n".join([*lines, "They wrote to stderr:", self._errors.read().decode(errors="replace")])


def _in_kernel(process: int) -> list[str]:
    """For each thread of a process, its state and what it waits for; only root may read the stack."""
    lines = []
    for thread in Path(f"/proc/{process}/task").glob("*"):
        state = next(line for line in _read(thread / "status").splitlines() if line.startswith(("State", "(")))
        waits = ", ".join(f"{name}: {_read(thread / name)}" for name in ("wchan", "syscall", "stack"))
        lines.append(f"process {process}, thread {thread.name}: {state}, {waits}")
    return lines


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        return f"({error.strerror})"
