"""What the fault tests break: an RTSP camera that can be killed, frozen and restarted, and a run of the command."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

SYSTEM_PYTHON = "/usr/bin/python3"
SCRIPT = Path(__file__).with_name("fake_camera.py")
FPS = 15
CAMERA_PACKAGES = (
    *("gir1.2-gst-rtsp-server-1.0", "python3-gi", "python3-gst-1.0"),
    *(f"gstreamer1.0-plugins-{kind}" for kind in ("base", "good", "bad", "ugly")),
)


def has_gstreamer_server() -> bool:
    """Whether the Python of the system can serve RTSP."""
    code = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    try:
        return subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class FakeCamera:
    """An RTSP camera on loopback in its own process, from `fake_camera.py`."""

    def __init__(self, fps: int = FPS) -> None:
        self.fps = fps
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.address = f"rtsp://127.0.0.1:{self.port}/cam"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [SYSTEM_PYTHON, str(SCRIPT), str(self.port), str(self.fps)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"READY\n"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def age_s(image: np.ndarray) -> float:
    """Seconds since the fake camera made a frame, from the time stamp in its pixels."""
    made_ms = sum(int(image[8, 10 * bit + 5].mean() > 128) << bit for bit in range(48))
    return time.monotonic() - made_ms / 1e3


class Run:
    """A `fsvit-edge run` in its own folder."""

    def __init__(self, folder: Path, *arguments: str, code: str = "") -> None:
        self.folder = folder
        self.log = folder / "stderr.log"
        # `code` runs first in the same process and causes a fault that no option can.
        program = f"{code}\nfrom fsvit_edge.cli.main import main\nmain()"
        command = [sys.executable, "-c", program, "run", *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=log)

    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, condition: Callable[[], bool], within_s: float = 30) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def lines(self, name: str = "out.jsonl") -> list[dict[str, Any]]:
        """The complete lines of a results file."""
        path = self.folder / name
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []

    def processed(self, at_least: int) -> Callable[[], bool]:
        """A condition: at least this many frames were processed."""
        return lambda: sum(line["event"] == "frame" for line in self.lines()) >= at_least

    def page(self) -> str:
        """The address of the page, as soon as it is printed."""
        self.wait_for(lambda: "The page is at" in self.said())
        line = next(line for line in self.said().splitlines() if line.startswith("The page is at"))
        return line.split()[-1].rstrip("/")

    def end(self, signal_number: int = signal.SIGTERM, within_s: float = 2.0) -> float:
        """Stop the run; return the seconds it took."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        started = time.monotonic()
        self.process.send_signal(signal_number)
        self.process.wait(within_s + 5)
        taken_s = time.monotonic() - started
        assert taken_s <= within_s, f"{taken_s:.2f} s\n{self.said()}"
        _, alive = psutil.wait_procs(children, 0.5)
        # An orphan that has ended is a zombie until the first process of the system notices.
        assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
        return taken_s

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".fsvit-edge-") or "-unfinished-" in name]
