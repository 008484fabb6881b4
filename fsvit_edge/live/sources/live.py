"""A source that does not wait: the newest frame of a process that reads it, watched, and started again for ever."""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.sources.base import EndOfSourceError, Source, SourceState, SourceStatus
from fsvit_edge.live.sources.frame_memory import SAFE_FRAMES, FrameReader
from fsvit_edge.live.sources.options import SourceOptions
from fsvit_edge.live.uri import SourceAddress
from fsvit_edge.runtime.errors import SourceError

_COMMAND = (sys.executable, "-m", "fsvit_edge.live.sources.capture_process")
_DELAYS_S = (1.0, 2.0, 5.0, 10.0)
_POLL_S = 0.1
_KNOCK_S = 0.5
_REAP_S = 0.3  # a killed process is gone within milliseconds
_DEFAULT_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}


@dataclass(frozen=True)
class Timeouts:
    """How long each step of a live source may take, in seconds.

    Attributes:
        open_s: From the start of the process to the open source.
        first_frame_s: From there to the first frame: an RTSP camera sends a whole picture only every few seconds.
        frame_s: From frame to frame; a source of less than a frame a second is given three periods.
        delays_s: Between one end of the process and its next start; the last one for ever, all anew after a frame.
    """

    open_s: float = 5.0
    first_frame_s: float = 10.0
    frame_s: float = 2.8
    delays_s: tuple[float, ...] = _DELAYS_S


@dataclass(frozen=True)
class _Announced:
    """A frame that lies in the shared memory."""

    number: int  # in its process, for the check that it was not overwritten
    index: int  # in the source
    offset: int
    size_hw: tuple[int, int]
    captured_s: float
    decode_ms: float
    is_frozen: bool


class _Child:
    """One process that reads the source, its shared memory and its pipe."""

    def __init__(self, command: Sequence[str], request: bytes) -> None:
        memory = os.memfd_create("fsvit-edge-frames", os.MFD_CLOEXEC)
        self.pipe, write_end = os.pipe()
        os.set_blocking(self.pipe, False)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module; no text of the user's is in the command
                [*command, str(memory), str(write_end)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # FFmpeg prints addresses
                pass_fds=(memory, write_end),
                start_new_session=True,  # Ctrl-C is for the parent, which ends the child
            )
        except OSError:
            os.close(memory)
            os.close(self.pipe)
            raise
        finally:
            os.close(write_end)
        self.reader = FrameReader(memory)
        self._rest = b""
        self.has_ended = False
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.has_ended = True

    @property
    def pid(self) -> int:
        return self._process.pid

    def messages(self) -> list[dict[str, Any]]:
        """What has been announced since the last call; never waits."""
        while not self.has_ended:
            try:
                data = os.read(self.pipe, 65536)
            except BlockingIOError:
                break
            self.has_ended = not data
            self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in lines]

    def kill(self) -> None:
        """End the process, however it hangs, and give back what it held."""
        self._process.kill()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        os.close(self.pipe)
        self.reader.close()

    def has_gone(self, within_s: float) -> bool:
        """Whether the process is no more; in a driver that hangs, not even SIGKILL ends it."""
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True


class LiveSource(Source):
    """A camera, a stream, or a file that plays as one.

    A thread of its own watches the process: it sees the end of the process at once and silence by the monotonic clock,
    kills what hangs, and starts it again after 1, 2, 5, 10, 10, ... seconds, or as soon as what had vanished is back.

    Args:
        address: What to read.
        options: What to ask of it.
        fps: Frames per second that a file declares; a camera tells when it is open.
        timeouts: How long each step may take.
        command: The process, which is given two descriptors; see `capture_process`.
    """

    is_live = True
    num_frames = None

    def __init__(
        self,
        address: SourceAddress,
        options: SourceOptions,
        fps: float | None = None,
        timeouts: Timeouts = Timeouts(),
        command: Sequence[str] = _COMMAND,
    ) -> None:
        self.name = address.name
        self.fps = fps
        self._address = address
        self._timeouts = timeouts
        self._command = command
        self._request = json.dumps({"address": asdict(address), "options": asdict(options)}).encode()
        self._fresh = threading.Condition()
        self._status = SourceStatus("connecting", time.monotonic())
        self._newest: _Announced | None = None
        self._child: _Child | None = None
        self._first_index = 0  # of the present process's frames
        self._last_number = -1
        self._frame_s = timeouts.frame_s
        self._reason = ""
        self._failure = ""
        self._ended = False
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="source", daemon=True)
        # A file begins when somebody is ready to see it; a camera takes its time to open, so it begins at once.
        self._is_file = address.kind in ("path", "demo")
        self._waits_for_reader = self._is_file
        if not self._waits_for_reader:
            self._watcher.start()

    @property
    def status(self) -> SourceStatus:
        """See `Source.status`."""
        with self._fresh:
            return self._status

    @property
    def process_id(self) -> int | None:
        """See `Source.process_id`; None between two processes."""
        with self._fresh:
            return None if self._child is None else self._child.pid

    def read(self, timeout_s: float) -> Frame | None:
        """See `Source.read`."""
        if self._waits_for_reader and not self._closing.is_set():
            self._waits_for_reader = False
            self._watcher.start()
        deadline = time.monotonic() + timeout_s
        with self._fresh:
            while True:
                self._take_in()
                announced, self._newest = self._newest, None
                if announced is not None and self._child is not None:
                    height, width = announced.size_hw
                    image = self._child.reader.copy(announced.offset, height, width)
                    self._take_in()
                    if self._last_number - announced.number < SAFE_FRAMES:
                        now_s, now_wall_s = time.monotonic(), time.time()
                        return Frame(
                            image,
                            announced.index,
                            self.name,
                            now_wall_s - (now_s - announced.captured_s),
                            announced.captured_s,
                            announced.decode_ms,
                            announced.is_frozen,
                        )
                    # The process has overwritten it meanwhile, which takes a reader that was kept from running.
                    self._status = replace(self._status, dropped=self._status.dropped + 1)
                    continue
                if self._ended:
                    raise EndOfSourceError
                if self._failure:
                    raise SourceError(self._failure)
                left_s = deadline - time.monotonic()
                if left_s <= 0 or self._closing.is_set():
                    return None
                self._fresh.wait(left_s)

    def close(self) -> None:
        """See `Source.close`."""
        self._closing.set()
        with self._fresh:
            self._fresh.notify_all()
        if not self._waits_for_reader:
            self._watcher.join()

    def _watch(self) -> None:
        failures = 0
        while not self._closing.is_set():
            before = self.status.captured
            self._follow()
            if self._closing.is_set() or self._ended:
                return
            if self._is_file:  # it will not get better by trying again
                with self._fresh:
                    self._failure = self._status.message
                    self._fresh.notify_all()
                return
            failures = 1 if self.status.captured > before else failures + 1
            self._pause(self._timeouts.delays_s[min(failures, len(self._timeouts.delays_s)) - 1])
            with self._fresh:
                self._status = replace(self._status, reconnects=self._status.reconnects + 1)

    def _follow(self) -> None:
        """Run one process to its end, whatever brings it about."""
        try:
            child = _Child(self._command, self._request)
        except OSError as error:
            self._lose(f"{self.name} cannot be read: no process can be started ({error.strerror}).")
            return
        with self._fresh:
            self._child, self._reason, self._last_number = child, "", -1
            self._first_index = self._status.captured
            self._deadline_s = time.monotonic() + self._timeouts.open_s
        try:
            while not self._closing.is_set():
                select.select([child.pipe], [], [], _POLL_S)
                with self._fresh:
                    self._take_in()
                    if self._ended and self._newest is not None:
                        self._fresh.wait(_POLL_S)  # a file's last frame is not lost for the process having ended
                        continue
                    if child.has_ended or self._ended or self._reason:
                        break
                    if time.monotonic() >= self._deadline_s:
                        silence = "has stopped delivering frames" if self._last_number >= 0 else "does not answer"
                        self._reason = f"{self.name} {silence}; check the camera and its connection."
                        break
        finally:
            with self._fresh:
                self._drop_newest()
                self._child = None
            child.kill()
        has_gone = child.has_gone(_REAP_S)
        if not self._closing.is_set() and not self._ended:
            self._lose(self._reason or f"The process that read {self.name} has ended.")
        while not has_gone and not self._closing.is_set():
            # A second process would hang in the same driver.
            self._lose(f"{self.name} hangs in its driver; unplug the camera and plug it in again, or restart.")
            has_gone = child.has_gone(_POLL_S)

    def _take_in(self) -> None:
        """Take in what the process has announced; the lock is held."""
        child = self._child
        if child is None:
            return
        for message in child.messages():
            now_s = time.monotonic()
            if "frame" in message:
                self._take_frame(message, now_s)
            elif "opened" in message:
                self.fps = message["opened"] or self.fps
                self._frame_s = max(self._timeouts.frame_s, 3.0 / (self.fps or 25.0))
                self._deadline_s = now_s + max(self._timeouts.first_frame_s, self._frame_s)
            elif "error" in message:
                self._reason = message["error"]
            elif "end" in message:
                self._ended = True
                self._fresh.notify_all()

    def _take_frame(self, message: dict[str, Any], now_s: float) -> None:
        number = message["frame"]
        missed = number - self._last_number - 1  # announcements that the process could not make
        self._last_number = number
        self._deadline_s = now_s + self._frame_s
        self._drop_newest()
        status = self._status
        if status.state != "live":
            status = replace(status, state="live", since_s=now_s, message="")
        height, width = message["hw"]
        self._newest = _Announced(
            number,
            self._first_index + number,
            message["at"],
            (height, width),
            message["captured_ns"] / 1e9,
            message["decode_ms"],
            message["frozen"],
        )
        self._status = replace(
            status,
            captured=status.captured + missed + 1,
            dropped=status.dropped + missed,
            is_frozen=message["frozen"],
        )
        self._fresh.notify_all()

    def _drop_newest(self) -> None:
        if self._newest is not None:
            self._newest = None
            self._status = replace(self._status, dropped=self._status.dropped + 1)

    def _lose(self, reason: str) -> None:
        with self._fresh:
            state: SourceState = "connecting" if self._status.captured == 0 else "lost"
            since_s = self._status.since_s if self._status.state == state else time.monotonic()
            self._status = replace(self._status, state=state, since_s=since_s, is_frozen=False, message=reason)
            self._fresh.notify_all()

    def _pause(self, delay_s: float) -> None:
        """Wait for the next start; shorter where what had gone away is seen to come back."""
        until = time.monotonic() + delay_s
        knock = _is_reachable(self._address)
        was_away = knock is not None and not knock()
        while not self._closing.wait(min(_KNOCK_S, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                return
            if knock is not None:
                if not knock():
                    was_away = True
                elif was_away:
                    return


def _is_reachable(address: SourceAddress) -> Callable[[], bool] | None:
    """A cheap test of whether anybody is there; None where there is none."""
    if address.kind == "camera":
        return lambda: os.path.exists(address.target)
    if address.kind not in ("rtsp", "http"):
        return None
    parts = urlsplit(address.target)
    host, port = parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme]

    def connect() -> bool:
        try:
            socket.create_connection((host, port), timeout=_KNOCK_S).close()
        except OSError:
            return False
        return True

    return connect


def check_device(device: str) -> None:
    """Refuse a camera that cannot be right from the start.

    Raises:
        SourceError: There is none, or it may not be read.
    """
    if not os.path.exists(device):
        raise SourceError(f"There is no camera {device}; plug it in, or list the cameras with: ls /dev/video*")
    if not os.access(device, os.R_OK | os.W_OK):
        raise SourceError(f"You may not read the camera {device}; join its group: sudo usermod -aG video $USER")
