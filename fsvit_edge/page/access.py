"""Access control of the page, checked before any route runs.

A page on loopback is open; a page that others can reach requires an access token. The Host header reveals a browser
that another site lured here by DNS rebinding, the Origin header a request made by another site. Bodies are limited in
size and time.
"""

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

from fastapi import HTTPException, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_COOKIE = "fsvit_edge_token"
_MAX_JSON_BYTES = 4_000_000
_MAX_BANK_BYTES = 256_000_000

_SAFE_METHODS = ("GET", "HEAD")
_BODY_TIMEOUT_S = 10.0
WRONG_TOKEN_DELAY_S = 0.5
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Access:
    """Middleware that refuses requests without permission, and limits the bodies of all others.

    Args:
        app: The application to protect.
        token: Access token that every request needs; None: no token is needed.
        hosts: Host names of the page, in addition to localhost, this machine's name and any IP address.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Iterable[str]) -> None:
        self._app = app
        self._token = token
        self._hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            if refusal.status_code == 401:
                await asyncio.sleep(WRONG_TOKEN_DELAY_S)
            refusal.headers.update(_HEADERS)
            await refusal(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if scope["method"] == "HEAD":  # as `wget --spider` asks /health; FastAPI's GET routes refuse it
            scope = {**scope, "method": "GET"}
        await self._app(scope, _limited(receive, _limit_bytes(scope)), send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        method = scope["method"]
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_own_host(hosts[0]):
            return _error(421, "Unknown host name; if it is this machine's, allow it with --allow-host NAME.")
        origin = headers.get("origin")
        if method not in _SAFE_METHODS and (
            (origin is not None and urlsplit(origin).netloc.lower() != hosts[0].lower())
            or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        ):
            return _error(403, "Requests from another site are not allowed.")
        length = headers.get("content-length", "0")
        limit = _limit_bytes(scope)
        if not length.isdecimal() or int(length) > limit:
            return _error(413, f"Body is larger than {limit / 1e6:g} MB.")
        return None if self._token is None else self._token_refusal(scope, headers)

    def _is_own_host(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        try:
            # DNS rebinding needs a name; an address cannot be rebound.
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self._hosts
        return True

    def _token_refusal(self, scope: Scope, headers: Headers) -> Response | None:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if self._is_token(query.get("token", [""])[0]):
            if scope["path"] != "/" or scope["method"] not in _SAFE_METHODS:
                return None
            # Takes the token out of the address bar, the history and the referrer.
            rest = urlencode({name: values[0] for name, values in query.items() if name != "token"})
            response = RedirectResponse(f"/?{rest}" if rest else "/", 303)
            assert self._token is not None
            response.set_cookie(_COOKIE, self._token, httponly=True, samesite="strict", path="/")
            return response
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_token(bearer) or self._is_token(_cookie(headers)):
            return None
        return _error(401, "Access token required; open the address that the run printed.")

    def _is_token(self, presented: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(presented.encode(), self._token.encode())


def _limit_bytes(scope: Scope) -> int:
    return _MAX_BANK_BYTES if scope["path"] == "/api/bank" else _MAX_JSON_BYTES


def is_loopback(host: str) -> bool:
    """Whether an address can be reached only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(_COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _limited(receive: Receive, limit: int) -> Receive:
    received = 0
    is_complete = False

    async def receive_limited() -> Message:
        nonlocal received, is_complete
        if is_complete:
            return await receive()  # the next message is the disconnect, which may take hours
        try:
            message = await asyncio.wait_for(receive(), _BODY_TIMEOUT_S)
        except asyncio.TimeoutError:  # not the built-in one before Python 3.11
            raise HTTPException(408, f"Body did not arrive within {_BODY_TIMEOUT_S:g} s.") from None
        received += len(message.get("body", b""))
        is_complete = not message.get("more_body", False)
        if received > limit:
            raise HTTPException(413, f"Body is larger than {limit / 1e6:g} MB.")
        return message

    return receive_limited


def _error(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status)
