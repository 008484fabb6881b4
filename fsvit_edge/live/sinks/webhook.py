"""Events posted to a web server: http[s]://[user:password@]host[:port]/path."""

import re
import ssl
import threading
import time
from collections import deque
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import SplitResult

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.events import Event, event_record
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.live.sinks.base import Sink
from fsvit_edge.live.sinks.json_lines import json_line
from fsvit_edge.live.web_request import WEB_ERRORS, WebRequest, answer_text, parse_web_address, redirect_problem
from fsvit_edge.runtime.errors import InputError

_PAUSES_S = (1.0, 3.0, 10.0, 30.0, 60.0)  # before each further try of an event
_TIMEOUT_S = 5.0  # for a whole try: a server that sends a byte per second must not hold it for hours
_MAX_WAITING = 100
_LAST_S, _LAST_IN_HURRY_S = 5.0, 0.5  # at the end of a run, for what is not yet sent
_TRANSIENT = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
_KEPT = f"events are tried again, and the newest {_MAX_WAITING} wait."

_Key = tuple[str, str]
"""The source and the class of an event."""


class _Problem(NamedTuple):
    text: str
    is_final: bool  # trying again would not help


class WebhookSink(Sink):
    """Posts each event as JSON, see `event_record`, in its own thread, so that no server delays a frame.

    Within `cooldown_s` seconds of an "appeared" that was let through, no other one of its class and source is: it
    is held back until then, and dropped together with its "left" if the class leaves before. So a "left" is let through
    exactly if its "appeared" was.

    A server that does not respond is trouble, not a failure. An event is tried 6 times in about two minutes; meanwhile
    100 newer ones wait, of which the oldest are dropped first. One that the server refuses (4xx) is not tried again. A
    redirect is not followed: a post would arrive as an empty GET. Of the address only scheme, host and port are ever
    printed, because its path or query often is the secret.

    Raises:
        InputError: The address is invalid.
    """

    def __init__(
        self,
        uri: str,
        cooldown_s: float = 10.0,
        *,
        pauses_s: tuple[float, ...] = _PAUSES_S,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._parts = _parse(uri)
        self._cooldown_s, self._pauses_s, self._timeout_s = cooldown_s, pauses_s, timeout_s
        self._tls = ssl.create_default_context() if self._parts.scheme == "https" else None
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._held: dict[_Key, tuple[float, bytes]] = {}  # from which monotonic second on it may be posted
        self._posted_s: dict[_Key, float] = {}  # when the last "appeared" was
        self._unsent = 0  # waiting or being tried
        self._lost = 0
        self._loss = ""  # what was lost, until the run has said it
        self._finishing = self._is_over = False
        self._request: WebRequest | None = None
        self._thread = threading.Thread(target=self._send, name=f"webhook {webhook_name(uri)}", daemon=True)
        self._thread.start()

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """Only events are posted."""

    def tell(self, event: Event) -> None:
        """Let the event be posted, or hold it back; returns at once."""
        body = json_line(event_record(event))
        with self._changed:
            self._release_held()
            if event.kind == "appeared":
                self._appear((event.source, event.name), body)
            elif self._held.pop((event.source, event.name), None) is None:
                self._add(body)
            self._changed.notify_all()

    def report(self, health: Health) -> None:
        """Forget what was lost once the run knows it."""
        if self._loss and self._loss in [sink.trouble for sink in health.sinks]:
            if self.trouble == self._loss:
                self.trouble = ""
            self._loss = ""

    def _appear(self, key: _Key, body: bytes) -> None:
        now_s = time.monotonic()
        until_s = self._posted_s.get(key, -self._cooldown_s) + self._cooldown_s
        if now_s < until_s:
            self._held[key] = (until_s, body)
        else:
            self._posted_s[key] = now_s
            self._add(body)

    def _release_held(self) -> float | None:
        """Let through what was held back for long enough; return the seconds until the next one is due."""
        now_s = time.monotonic()
        for key in [key for key, (until_s, _) in self._held.items() if until_s <= now_s]:
            self._posted_s[key] = now_s
            self._add(self._held.pop(key)[1])
        return min((until_s - now_s for until_s, _ in self._held.values()), default=None)

    def _add(self, body: bytes) -> None:
        if len(self._waiting) >= _MAX_WAITING:
            self._waiting.popleft()
            self._unsent -= 1
            self._lost += 1
        self._waiting.append(body)
        self._unsent += 1

    def _send(self) -> None:
        while (body := self._next()) is not None:
            is_sent = self._try(body)
            with self._changed:
                if self._is_over:
                    return
                self._unsent -= 1
                self._lost += not is_sent

    def _next(self) -> bytes | None:
        """Wait for an event to post; None at the end."""
        with self._changed:
            while True:
                due_s = self._release_held()
                if self._waiting and not self._is_over:
                    return self._waiting.popleft()
                if self._finishing:
                    return None
                self._changed.wait(due_s)

    def _try(self, body: bytes) -> bool:
        """Post an event, several times if necessary; return whether the server took it."""
        for pause_s in (0.0, *self._pauses_s):
            with self._changed:
                self._changed.wait_for(lambda: self._finishing, pause_s)
                if self._is_over:
                    return False
            problem = self._post(body)
            if self._is_over:
                return False
            if problem is None:
                with self._changed:
                    lost, self._lost = self._lost, 0
                if lost:
                    self._loss = f"The server responds again, but {_events(lost)} could not be sent."
                self.trouble = self._loss
                return True
            self.trouble = problem.text
            if problem.is_final or self._finishing:
                return False
        return False

    def _post(self, body: bytes) -> _Problem | None:
        """Try once; return what is wrong, in words that contain nothing of the address or of the answer."""
        with WebRequest(self._parts, self._tls, self._timeout_s) as request:
            self._request = request
            try:
                with request.send("POST", {"Content-Type": "application/json"}, body) as response:
                    return _answer_problem(response.status)
            except WEB_ERRORS as error:
                return _Problem(f"{request.problem(error)}; {_KEPT}", False)
            finally:
                self._request = None

    def _finish(self) -> None:
        """Try what waits once more, for 5 s, or 0.5 s if the run has been told to stop."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
        started_s = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.05)
            if time.monotonic() - started_s > (_LAST_IN_HURRY_S if self.in_hurry else _LAST_S):
                break
        with self._changed:
            self._is_over = True
            request, unsent = self._request, self._unsent + self._lost
        if request is not None:
            request.cut()
            self._thread.join(0.1)  # it is a daemon: one that looks up a name for long is left behind
        if unsent:
            self.trouble = f"The run has ended, and {_events(unsent)} could not be sent."


def webhook_name(uri: str) -> str:
    """Scheme, host and port of a webhook: what is safe to print."""
    scheme, separator, rest = uri.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    host = authority.rpartition("@")[2]
    # A password may contain / ? or #, so that its @ seems to be in the path: show less.
    is_safe = "@" not in rest[len(authority) :] and re.fullmatch(
        r"[A-Za-z0-9._~-]+(:[0-9]*)?|\[[0-9a-fA-F:.]+\](:[0-9]*)?", host
    )
    if not separator or scheme.lower() not in ("http", "https"):
        return "***"
    return f"{scheme.lower()}://{host if is_safe else '***'}"


def _parse(uri: str) -> SplitResult:
    parts = parse_web_address(uri)
    if parts is None:
        raise InputError(
            f"Invalid webhook {webhook_name(uri)} (the rest is not shown); expected http://HOST/PATH or "
            "https://HOST/PATH, with other characters than letters, digits and punctuation as %XX, and # as %23."
        )
    return parts


def _answer_problem(status: int) -> _Problem | None:
    if 200 <= status < 300:
        return None
    answer = answer_text(status)
    if 300 <= status < 400:
        return _Problem(f"{redirect_problem(status)}.", True)
    if 400 <= status < 500 and status not in _TRANSIENT:
        return _Problem(f"The server refuses events ({answer}); check the address.", True)
    return _Problem(f"The server answers {answer}; {_KEPT}", False)


def _events(count: int) -> str:
    return f"{count} event{'' if count == 1 else 's'}"
