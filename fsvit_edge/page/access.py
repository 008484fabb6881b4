"""Who may use the page, and how much of it: checked before any handler runs.

Loopback alone is open. A page that others can reach asks for a token. A browser that was lured to us by another site is
told by the Host it names (DNS rebinding) and by the Origin it comes from. What is sent in is bounded.
"""

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "fsvit_edge_token"
LARGEST_JSON_BYTES = 4_000_000
LARGEST_BANK_BYTES = 256_000_000

_READING = ("GET", "HEAD")
_BODY_TIMEOUT_S = 10.0
_WRONG_TOKEN_DELAY_S = 0.5
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Access:
    """Stands before the application.

    Args:
        app: What is protected.
        token: What must be presented; None asks for nothing.
        hosts: Names, beside addresses and localhost, by which the page is known.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Iterable[str]) -> None:
        self._app = app
        self._token = token
        self._hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on with bounds."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            if refusal.status_code == 401:
                await asyncio.sleep(_WRONG_TOKEN_DELAY_S)
            refusal.headers.update(_HEADERS)
            await refusal(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, _bounded(receive, _limit_bytes(scope)), send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        method = scope["method"]
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return _error(421, "This page is not known by that name; name it with --allow-host NAME.")
        origin = headers.get("origin")
        if method not in _READING and (
            (origin is not None and urlsplit(origin).netloc.lower() != hosts[0].lower())
            or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        ):
            return _error(403, "Another site's page may not change anything here.")
        length = headers.get("content-length", "0")
        limit = _limit_bytes(scope)
        if not length.isdecimal() or int(length) > limit:
            return _error(413, f"More than {limit / 1e6:g} MB would be sent; send less.")
        return None if self._token is None else self._refusal_by_token(scope, headers)

    def _is_own(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        try:
            # An address cannot be rebound to another machine, a name can.
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self._hosts
        return True

    def _refusal_by_token(self, scope: Scope, headers: Headers) -> Response | None:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if self._fits(query.get("token", [""])[0]):
            if scope["path"] != "/" or scope["method"] not in _READING:
                return None
            # The token leaves the address bar, the history and the referrer at once.
            rest = urlencode({name: values[0] for name, values in query.items() if name != "token"})
            response = RedirectResponse(f"/?{rest}" if rest else "/", 303)
            assert self._token is not None
            response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict", path="/")
            return response
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if self._fits(bearer) or self._fits(_cookie(headers)):
            return None
        return _error(401, "A token is needed; open the address that the run has printed.")

    def _fits(self, presented: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(presented.encode(), self._token.encode())


def _limit_bytes(scope: Scope) -> int:
    return LARGEST_BANK_BYTES if scope["path"] == "/api/bank" else LARGEST_JSON_BYTES


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _bounded(receive: Receive, limit: int) -> Receive:
    received = 0
    is_complete = False

    async def bounded() -> Message:
        nonlocal received, is_complete
        if is_complete:
            return await receive()  # what comes now is the client's going, which may take hours
        try:
            message = await asyncio.wait_for(receive(), _BODY_TIMEOUT_S)
        except asyncio.TimeoutError:  # before Python 3.11 not the built-in one
            raise HTTPException(408, f"Nothing was sent for {_BODY_TIMEOUT_S:g} s.") from None
        received += len(message.get("body", b""))
        is_complete = not message.get("more_body", False)
        if received > limit:
            raise HTTPException(413, f"More than {limit / 1e6:g} MB were sent; send less.")
        return message

    return bounded


def _error(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status)
