"""One request to a web server, http[s]://[user:password@]host[:port]/path, that ends in time whatever that does."""

import base64
import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult, unquote, urlsplit

from fsvit_edge.live.uri import is_host

WEB_ERRORS = (OSError, http.client.HTTPException, ValueError)
"""What a request raises if it fails; a ValueError if it was cut between two steps."""
_SELF_SIGNED = (18, 19, 20, 21)
"""OpenSSL's codes of a certificate that no known authority has signed."""


def parse_web_address(uri: str) -> SplitResult | None:
    """Return the parts of an address; None if it is invalid."""
    try:
        parts = urlsplit(uri)
        is_valid = parts.scheme in ("http", "https") and is_host(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    # urlsplit drops line ends, and http.client would show the address in its own message.
    return parts if is_valid and "#" not in uri and re.fullmatch("[!-~]+", uri) else None


def answer_text(status: int) -> str:
    """Name a status; not in the server's words, which may repeat the address."""
    return f"{status} {http.client.responses.get(status, '')}".rstrip()


def redirect_problem(status: int) -> str:
    """Say that a redirect is not followed."""
    return f"The server redirects ({answer_text(status)}), which is not followed; give the address it leads to"


class WebRequest:
    """A context manager; `send` within it once.

    Args:
        parts: Of the address; a user and password are sent as Basic authorization.
        tls: For https://.
        limit_s: How long all of it may take: a server that sends a byte per second must not hold it for hours.
        stall_s: How long the server may say nothing; None: `limit_s`.
    """

    def __init__(
        self, parts: SplitResult, tls: ssl.SSLContext | None, limit_s: float, stall_s: float | None = None
    ) -> None:
        self._parts, self._limit_s = parts, limit_s
        self._stall_s = limit_s if stall_s is None else min(stall_s, limit_s)
        host, port = parts.hostname or "", parts.port
        self._connection: http.client.HTTPConnection
        if tls is None:
            self._connection = http.client.HTTPConnection(host, port, timeout=self._stall_s)
        else:
            self._connection = http.client.HTTPSConnection(host, port, timeout=self._stall_s, context=tls)
        self._timer = threading.Timer(limit_s, self.cut)
        self._timer.daemon = True
        self._started_s = time.monotonic()
        self._socket: socket.socket | None = None

    def __enter__(self) -> "WebRequest":
        self._started_s = time.monotonic()
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._connection.close()

    @property
    def is_late(self) -> bool:
        """Whether the time is over, so that an end of the answer is not the server's."""
        return time.monotonic() - self._started_s >= self._limit_s

    def send(self, method: str, headers: dict[str, str], body: bytes | None = None) -> http.client.HTTPResponse:
        """Send the request and return the answer, whose body is not read yet; raises `WEB_ERRORS`."""
        target = (self._parts.path or "/") + (f"?{self._parts.query}" if self._parts.query else "")
        own = {"User-Agent": "fsvit-edge"}
        if self._parts.username is not None:
            user = f"{unquote(self._parts.username)}:{unquote(self._parts.password or '')}"
            own["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        self._connection.connect()
        self._socket = self._connection.sock  # which the connection forgets when an answer that ends with it begins
        if self.is_late:  # `cut` has come and found nothing to cut: the name was looked up, or TLS began
            raise TimeoutError
        self._connection.request(method, target, body, {**own, **headers})
        return self._connection.getresponse()

    def cut(self) -> None:
        """End the connection, on which another thread may wait."""
        opened = self._socket or self._connection.sock
        if opened is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(opened, socket.SHUT_RDWR)  # under TLS too, whose own takes its state away

    def problem(self, error: Exception) -> str:
        """Say which of `WEB_ERRORS` it was, in words that contain nothing of the address or of the answer."""
        if isinstance(error, ssl.SSLCertVerificationError):
            own = "; if it is yours, name it with SSL_CERT_FILE=FILE" if error.verify_code in _SELF_SIGNED else ""
            return f"The certificate of the server is not trusted ({error.verify_message}){own}"
        return f"The server does not respond ({self._reason(error)})"

    def _reason(self, error: Exception) -> str:
        if self.is_late:
            return f"no answer within {self._limit_s:g} s"
        if isinstance(error, TimeoutError):
            return f"no answer within {self._stall_s:g} s"
        if isinstance(error, ssl.SSLError):
            return f"TLS: {(error.reason or 'failed').replace('_', ' ').lower()}"
        if isinstance(error, http.client.RemoteDisconnected):
            return "it closed the connection"
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        return "its answer is not HTTP" if isinstance(error, http.client.HTTPException) else type(error).__name__
