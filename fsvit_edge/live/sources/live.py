"""A live source: always the newest frame of a process that captures it, which is watched and restarted forever."""

import json
import math
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import SourceState, SourceStatus
from fsvit_edge.live.sources.base import DEFAULT_FPS, EndOfSourceError, Source, SourceOptions
from fsvit_edge.live.sources.frame_channel import SAFE_FRAMES, CaptureChild, SharedFrame
from fsvit_edge.live.uri import SourceAddress
from fsvit_edge.runtime.errors import SourceError

# Not "-m": Python would look for every module in the user's working folder first, and run a json.py there. What holds
# this package comes last, for a package that is not installed.
_START = (
    "import sys; sys.path[:] = [*filter(None, sys.path), sys.argv.pop(1)]; "
    "from fsvit_edge.live.sources.capture_process import main; main()"
)
_COMMAND = (sys.executable, "-c", _START, str(Path(__file__).parents[3]))
_POLL_S = 0.1
_PROBE_S = 0.5
_REAP_S = 0.3  # a killed process is gone within milliseconds
_DEFAULT_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}


@dataclass(frozen=True)
class Timeouts:
    """How long each step of a live source may take, in seconds."""

    start_s: float = 60.0  # of the process, which says nothing of the camera; 0.5 s on a machine that is not busy
    open_s: float = 5.0  # from then until the source is open
    first_frame_s: float = 10.0  # from then
    key_frame_s: float = 60.0  # the same of an RTSP camera, some of which send a whole picture only once a minute
    patience_s: float = 3.0  # how long one may wait for that before it is said
    frame_s: float = 2.8  # from frame to frame; a source with less than one frame per second gets three periods
    delays_s: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0)  # before each restart; the last repeats, a frame starts again
    # The same if the camera refused the password: some lock the account after five tries, for half an hour.
    refused_s: tuple[float, ...] = (60.0, 300.0)


FILE_TIMEOUTS = Timeouts(open_s=60.0, first_frame_s=60.0, frame_s=60.0)
"""Of a file, which is not opened again: one that a busy machine is slow to read is no camera that is silent."""


class LiveSource(Source):
    """A camera, a stream, or a file that plays like one.

    A thread watches the capture process: it notices its end at once and silence by the monotonic clock, kills a process
    that hangs, and restarts it after 1, 2, 5, 10, 10, ... seconds, or as soon as a camera that was gone is back;
    if the camera refused the password, after 1, 5, 5, ... minutes, without a look at it meanwhile.
    """

    is_live = True
    num_frames = None

    def __init__(
        self,
        address: SourceAddress,
        options: SourceOptions,
        fps: float | None = None,  # of a file; a camera declares it when it is open
        timeouts: Timeouts = Timeouts(),
        command: Sequence[str] = _COMMAND,
    ) -> None:
        self.name = address.name
        self.fps = fps
        self._address = address
        self._timeouts = timeouts
        self._command = command
        self._request = json.dumps({"address": asdict(address), "options": asdict(options)}).encode()
        self._changed = threading.Condition()
        self._status = SourceStatus("connecting", time.monotonic())
        self._newest: SharedFrame | None = None
        self._waiting_since_s: float | None = None
        self._child: CaptureChild | None = None
        self._first_index = 0  # in the source, of the first frame of the present process
        self._last_number = -1
        self._deadline_s, self._say_waits_s = 0.0, math.inf
        self._frame_s = timeouts.frame_s
        self._reason, self._is_refused, self._has_started = "", False, False
        self._failure = ""
        self._ended, self._problem = False, ""
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="source", daemon=True)
        # A file starts when somebody is ready to see it; a camera takes time to open, so it starts at once.
        self._waits_for_reader = address.is_stored
        if not self._waits_for_reader:
            self._watcher.start()

    @property
    def status(self) -> SourceStatus:
        """The current state; safe to read from any thread."""
        with self._changed:
            return self._status

    @property
    def problem(self) -> str:
        """See `Source.problem`; that of a file."""
        return self._problem

    @property
    def process_id(self) -> int | None:
        """ID of the capture process; None between two of them."""
        with self._changed:
            return None if self._child is None else self._child.pid

    def read(self, timeout_s: float) -> Frame | None:
        """Read the newest frame that was not read yet; None if there was none in time."""
        self._start()
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                self._receive()
                shared, self._newest, self._waiting_since_s = self._newest, None, None
                if shared is not None and self._child is not None:
                    frame = self._copy(shared, self._child)
                    if frame is not None:
                        return frame
                    continue
                if self._ended:
                    raise EndOfSourceError
                if self._failure:
                    raise SourceError(self._failure)
                left_s = deadline - time.monotonic()
                if left_s <= 0 or self._closing.is_set():
                    return None
                self._changed.wait(left_s)

    def waiting_since_s(self) -> float | None:
        """Since the first frame after the last read was captured, or since ever if there are no more."""
        self._start()
        with self._changed:
            self._receive()
            return 0.0 if self._newest is None and (self._ended or self._failure) else self._waiting_since_s

    def _start(self) -> None:
        if self._waits_for_reader and not self._closing.is_set():
            self._waits_for_reader = False
            self._watcher.start()

    def _notify(self) -> None:
        """Wake up who waits for a change; the lock is held."""
        self._changed.notify_all()
        if self.woken is not None:
            self.woken.set()

    def close(self) -> None:
        """Stop the capture process; a second call does nothing."""
        self._closing.set()
        with self._changed:
            self._notify()
        if not self._waits_for_reader:
            self._watcher.join()

    def _copy(self, shared: SharedFrame, child: CaptureChild) -> Frame | None:
        """Copy a frame; None if the process has overwritten it meanwhile. The lock is held."""
        image = child.copy(shared)
        self._receive()
        if self._last_number - shared.number >= SAFE_FRAMES:  # this thread was suspended for that long
            self._status = replace(self._status, dropped=self._status.dropped + 1)
            return None
        captured_s = shared.captured_ns / 1e9
        wall_time_s = time.time() - (time.monotonic() - captured_s)
        index = self._first_index + shared.number
        return Frame(image, index, self.name, wall_time_s, captured_s, shared.decode_ms, shared.is_frozen)

    def _watch(self) -> None:
        failures = 0
        while not self._closing.is_set():
            before = self.status.captured
            self._run_child()
            if self._closing.is_set() or self._ended:
                return
            if self._address.is_stored:  # trying again would not help
                with self._changed:
                    self._failure = self._status.message
                    self._notify()
                return
            failures = 1 if self.status.captured > before else failures + 1
            delays_s = self._timeouts.refused_s if self._is_refused else self._timeouts.delays_s
            delay_s = delays_s[min(failures, len(delays_s)) - 1]
            if self._is_refused:
                self._closing.wait(delay_s)
            else:
                self._pause(delay_s)
            with self._changed:
                self._status = replace(self._status, reconnects=self._status.reconnects + 1)

    def _run_child(self) -> None:
        """Run one capture process until it ends, fails, or has to be killed."""
        try:
            child = CaptureChild(self._command, self._request)
        except OSError as error:
            self._set_lost(f"{self.name} cannot be read: no process can be started ({error.strerror}).")
            return
        with self._changed:
            self._child, self._reason, self._is_refused, self._last_number = child, "", False, -1
            self._first_index, self._say_waits_s = self._status.captured, math.inf
            self._has_started, self._deadline_s = False, time.monotonic() + self._timeouts.start_s
        try:
            while not self._closing.is_set():
                select.select([child.pipe], [], [], _POLL_S)
                with self._changed:
                    self._receive()
                    if self._ended and self._newest is not None:
                        self._changed.wait(_POLL_S)  # the last frame of a file is kept until it is read
                        continue
                    if child.has_ended or self._ended or self._reason:
                        break
                    if time.monotonic() >= self._say_waits_s:
                        self._say_waits_s = math.inf
                        self._set_lost(
                            f"{self.name} is open and waits for a key frame, a whole picture; if that takes long, let "
                            "the camera send one each second or two."
                        )
                    if time.monotonic() >= self._deadline_s:
                        self._reason = self._silence()
                        break
        finally:
            with self._changed:
                self._drop_newest()
                self._child = self._waiting_since_s = None
            child.kill()
        is_gone = child.is_gone(_REAP_S)
        if not self._closing.is_set() and not self._ended:
            self._set_lost(self._reason or f"The process that reads {self.name} has ended ({child.end}).")
        while not is_gone and not self._closing.is_set():
            # A second process would hang in the same driver.
            self._set_lost(f"{self.name} hangs in its driver; plug the camera in again, or restart the machine.")
            is_gone = child.is_gone(_POLL_S)

    def _silence(self) -> str:
        """What it means that nothing came in time, and what to do."""
        if not self._has_started:
            return f"{self.name} cannot be read yet: the machine is too busy to start the process that reads it."
        problem = "stopped delivering frames" if self._last_number >= 0 else "does not respond"
        place = "the disk that it is on" if self._address.is_stored else "the camera and its connection"
        return f"{self.name} {problem}; check {place}."

    def _receive(self) -> None:
        """Process the messages from the capture process; the lock is held."""
        child = self._child
        if child is None:
            return
        for message in child.messages():
            now_s = time.monotonic()
            if "frame" in message:
                self._receive_frame(message["frame"], now_s)
            elif "started" in message:
                self._has_started, self._deadline_s = True, now_s + self._timeouts.open_s
            elif "opened" in message:
                self.fps = message["opened"] or self.fps
                self._frame_s = max(self._timeouts.frame_s, 3.0 / (self.fps or DEFAULT_FPS))
                is_rtsp, timeouts = self._address.kind == "rtsp", self._timeouts
                first_s = timeouts.key_frame_s if is_rtsp else timeouts.first_frame_s
                self._deadline_s = now_s + max(first_s, self._frame_s)
                self._say_waits_s = now_s + timeouts.patience_s if is_rtsp else math.inf
            elif "error" in message:
                self._reason, self._is_refused = message["error"], message.get("is_refused", False)
            elif "end" in message or "problem" in message:
                self._ended, self._problem = "end" in message, message.get("problem", "")
                self._status = replace(self._status, left_out=message.get("left_out", 0))
                self._notify()

    def _receive_frame(self, message: dict[str, Any], now_s: float) -> None:
        frame = SharedFrame(**message)
        missed = frame.number - self._last_number - 1  # frames that could not be announced
        self._last_number = frame.number
        self._deadline_s, self._say_waits_s = now_s + self._frame_s, math.inf
        self._drop_newest()
        status = self._status
        if status.state != "live":
            status = replace(status, state="live", since_s=now_s, message="")
        self._newest = frame
        if self._waiting_since_s is None:
            self._waiting_since_s = frame.captured_ns / 1e9
        self._status = replace(
            status,
            captured=status.captured + missed + 1,
            dropped=status.dropped + missed,
            is_frozen=frame.is_frozen,
        )
        self._notify()

    def _drop_newest(self) -> None:
        if self._newest is not None:
            self._newest = None
            self._status = replace(self._status, dropped=self._status.dropped + 1)

    def _set_lost(self, reason: str) -> None:
        with self._changed:
            state: SourceState = "connecting" if self._status.captured == 0 else "lost"
            since_s = self._status.since_s if self._status.state == state else time.monotonic()
            self._status = replace(self._status, state=state, since_s=since_s, is_frozen=False, message=reason)
            self._notify()

    def _pause(self, delay_s: float) -> None:
        """Wait for the next start, but not after a camera that was gone is back."""
        until = time.monotonic() + delay_s
        was_gone = is_reachable(self._address) is False
        while not self._closing.wait(min(_PROBE_S, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                return
            reachable = is_reachable(self._address)
            if reachable and was_gone:
                return
            was_gone = was_gone or reachable is False


def is_reachable(address: SourceAddress) -> bool | None:
    """Whether a camera is plugged in, or the host of a stream accepts connections; None if there is no cheap test."""
    if address.kind == "camera":
        return os.path.exists(address.target)
    if address.kind not in ("rtsp", "http"):
        return None
    parts = urlsplit(address.target)
    try:
        socket.create_connection((parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme]), _PROBE_S).close()
    except OSError:
        return False
    return True
