"""Access control of the page, checked before any route runs.

A page on loopback is open; a page that others can reach requires an access token. The Host header reveals a browser
that another site lured here by DNS rebinding, the Origin header a request made by another site. Bodies are limited in
size and time.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import socket
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlencode

from fastapi import HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fsvit_edge.runtime.pictures import MAX_PICTURE_BYTES

_log = logging.getLogger(__name__)  # without handlers, Python prints its errors to stderr
_COOKIE = "fsvit_edge_token"
_MAX_JSON_BYTES = 4_000_000
_MAX_FILE_BYTES = {("PUT", "/api/bank"): 256_000_000, ("PUT", "/api/frames"): MAX_PICTURE_BYTES}
_MAX_DIGITS = 19  # of a length; from 4,300 on, Python refuses to read a number

_SAFE_METHODS = ("GET", "HEAD")
_BODY_TIMEOUT_S = 10.0
_SLOWEST_BYTES_S = 100_000.0
_MAX_BODIES = 32
WRONG_TOKEN_DELAY_S = 0.5
FAILURE = "The page failed; the log of the run says where."
# What a browser shows in place of the page; it must say nothing of the run, and its style is in it, because files are
# for those who have the token.
_ENTRY_STYLE = """
body { margin: 0; min-height: 100vh; min-height: 100dvh; display: grid; place-items: center; font: 16px/1.45 system-ui, sans-serif; }
form { box-sizing: border-box; width: min(26rem, 100vw - 2rem); display: grid; gap: .75rem; padding: 1.25rem; border: 1px solid GrayText; border-radius: .6rem; }
input, button { font: inherit; box-sizing: border-box; min-height: 2.75rem; padding: .5rem .8rem; border: 1px solid GrayText; border-radius: .5rem; }
button { background: #1d5fd1; border-color: #1d5fd1; color: #fff; font-weight: 600; cursor: pointer; }
:focus-visible { outline: 3px solid #6ea2ff; outline-offset: 2px; }
"""  # noqa: E501 - a style
_ENTRY_FORM = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Access token</title>
<style>{}</style>
</head>
<body>
<form action="/">
<label for="token">{}</label>
<input id="token" name="token" required autofocus autocomplete="off" autocapitalize="none" spellcheck="false">
<button>Open</button>
</form>
</body>
</html>
"""
_ENTRY_STYLE_SUM = b64encode(hashlib.sha256(_ENTRY_STYLE.encode()).digest()).decode()
_WRONG = "/?token="  # without the wrong token: the address bar and the history must not keep what may be a near miss
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
    f"form-action 'self'; base-uri 'none'; style-src 'self' 'sha256-{_ENTRY_STYLE_SUM}'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Access:
    """Middleware that refuses requests without permission, and limits the bodies of all others.

    No token is needed if it is None. `hosts` are allowed in addition to localhost, this machine's name and any address.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Iterable[str]) -> None:
        self._app = app
        self._token = token
        self._hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}
        self._bodies = 0  # requests with a body, most of which would be waiting for it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on; what goes wrong in it is one line of the log."""
        if scope["type"] != "http":
            return
        has_begun = False

        is_head = scope["method"] == "HEAD"  # as `wget --spider` asks /health; FastAPI's GET routes refuse it

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                MutableHeaders(scope=message).update(_HEADERS)
                await send(message)
                if is_head:  # the stream of pictures has no end to wait for
                    await send({"type": "http.response.body", "body": b""})
            elif not is_head:
                await send(message)

        try:
            refusal = self._refusal(Request(scope))
            if refusal is not None:
                if refusal.status_code == 401 or refusal.headers.get("location") == _WRONG:
                    await asyncio.sleep(WRONG_TOKEN_DELAY_S)
                await refusal(scope, receive, send_with_headers)
                return
            if is_head:
                scope = {**scope, "method": "GET"}
            has_body = scope["method"] not in _SAFE_METHODS
            self._bodies += has_body
            try:
                await self._app(scope, _limited(receive, _limit_bytes(scope), lambda: has_begun), send_with_headers)
            finally:
                self._bodies -= has_body
        except Exception as error:  # our mistake; uvicorn would print 80 lines for each request
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}"
            _log.error("The page failed to answer %s %r: %s.", scope["method"], scope["path"], what)
            if not has_begun:
                await _error(500, FAILURE)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        hosts, headers = request.headers.getlist("host"), request.headers
        if len(hosts) != 1 or not self._is_own_host(hosts[0]):
            return _error(421, "Unknown host name; if it is this machine's, allow it with --allow-host NAME.")
        origin = headers.get("origin")
        if request.method not in _SAFE_METHODS and (
            (origin is not None and origin.lower().partition("://")[2] != hosts[0].lower())
            or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        ):
            return _error(403, "Requests from another site are not allowed.")
        length, limit = headers.get("content-length", "0"), _limit_bytes(request.scope)
        if not length.isdecimal() or len(length) > _MAX_DIGITS or int(length) > limit:
            return _error(413, f"Body is larger than {limit / 1e6:g} MB.")
        refusal = None if self._token is None else _token_refusal(request, self._token)
        if refusal is None and request.method not in _SAFE_METHODS and self._bodies >= _MAX_BODIES:
            return _error(503, f"{_MAX_BODIES} requests are being handled; try again in a moment.", close=True)
        return refusal

    def _is_own_host(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        try:
            # DNS rebinding needs a name; an address cannot be rebound.
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self._hosts
        return True


def _token_refusal(request: Request, token: str) -> Response | None:
    query = dict(request.query_params)
    if _equal(query.pop("token", "").strip(), token):  # keyboards of phones add a blank to what they suggest
        if request.scope["path"] != "/" or request.method not in _SAFE_METHODS:
            return None
        # Takes the token out of the address bar, the history and the referrer.
        response = RedirectResponse(f"/?{urlencode(query)}" if query else "/", 303)
        # Not "strict": after a link on another site, browsers would not send it to where this leads. What changes
        # anything is refused if another site asks for it.
        response.set_cookie(_COOKIE, token, httponly=True, samesite="lax", path="/")
        return response
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
    if _equal(bearer, token) or _equal(request.cookies.get(_COOKIE, ""), token):
        return None
    if request.method in _SAFE_METHODS and "text/html" in request.headers.get("accept", ""):
        if request.query_params.get("token"):
            return RedirectResponse(_WRONG, 303)
        said = "This is not the access token" if "token" in request.query_params else "Access token required"
        text = f"{said}: it is the end of the address that the run printed, after token=."
        return HTMLResponse(_ENTRY_FORM.format(_ENTRY_STYLE, text), 401)
    return _error(401, "Access token required; open the address that the run printed.")


def _equal(presented: str, token: str) -> bool:
    return hmac.compare_digest(presented.encode(), token.encode())


def _limit_bytes(scope: Scope) -> int:
    return _MAX_FILE_BYTES.get((scope["method"], scope["path"]), _MAX_JSON_BYTES)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _limited(receive: Receive, limit: int, has_begun: Callable[[], bool]) -> Receive:
    received = 0
    is_complete = False
    started_s: float | None = None

    async def receive_limited() -> Message:
        nonlocal received, is_complete, started_s
        if is_complete:
            return await receive()  # the next message is the disconnect, which may take hours
        now_s = asyncio.get_running_loop().time()
        started_s = now_s if started_s is None else started_s
        limit_s = _BODY_TIMEOUT_S + received / _SLOWEST_BYTES_S
        try:
            message = await asyncio.wait_for(receive(), started_s + limit_s - now_s)
        except asyncio.TimeoutError:  # not the built-in one before Python 3.11
            if has_begun():  # a stream, which did not wait for its body
                return {"type": "http.disconnect"}
            text = f"Body did not arrive within {limit_s:.0f} s."
            raise HTTPException(408, text, {"Connection": "close"}) from None
        received += len(message.get("body", b""))
        is_complete = not message.get("more_body", False)
        if received > limit:
            raise HTTPException(413, f"Body is larger than {limit / 1e6:g} MB.")
        return message

    return receive_limited


def _error(status: int, text: str, close: bool = False) -> JSONResponse:
    return JSONResponse({"error": text}, status, {"Connection": "close"} if close else None)
