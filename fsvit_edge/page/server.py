"""The page's server: uvicorn in a thread, which disconnects clients that keep it waiting."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from fsvit_edge.page.listener import BoundedListener, is_lack_of_descriptors, most_connections
from fsvit_edge.runtime.errors import FsvitEdgeError

_HEADER_TIMEOUT_S = 5.0
_STALL_TIMEOUT_S = 3.0
_STALL_BYTES = 4096  # a client that takes less in that time does not read
_SEND_BUFFER_BYTES = 65_536  # of the system: what it takes at once must not look like a pause
_KEEP_ALIVE_S = 5
_MAX_CONNECTIONS = 256
_STOP_TIMEOUT_S = 1.0


class _ImpatientProtocol(H11Protocol):
    """Disconnects clients that send half a header or do not read; uvicorn waits for them forever."""

    _request_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it too
        super().connection_made(transport)
        self._request_timer = self.loop.call_later(_HEADER_TIMEOUT_S, self._end_without_request)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._request_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._request_timer is not None:
            self._request_timer.cancel()
        self._request_timer = self.loop.call_later(_KEEP_ALIVE_S + _HEADER_TIMEOUT_S, self._end_without_request)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    def _watch_reader(self, unsent_before: int | None = None) -> None:
        """Disconnect a client that took nothing since the last time; a large answer may take a slow one minutes."""
        unsent = self.transport.get_write_buffer_size()
        if unsent_before is not None and unsent_before - unsent < _STALL_BYTES:
            self.transport.abort()
        else:
            self._stall_timer = self.loop.call_later(_STALL_TIMEOUT_S, self._watch_reader, unsent)

    def _end_without_request(self, unsent_before: int | None = None) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            return
        unsent = self.transport.get_write_buffer_size()  # an answer is complete when it is in this buffer
        if unsent and (unsent_before is None or unsent_before - unsent >= _STALL_BYTES):
            self._request_timer = self.loop.call_later(_STALL_TIMEOUT_S, self._end_without_request, unsent)
        else:
            self.transport.abort()


class PageServer:
    """Serves an application until it is closed. `on_stop` is called in its thread before it stops.

    Raises:
        FsvitEdgeError: The address is not one of this machine, or the port is in use.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, on_stop: Callable[[], None]) -> None:
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]  # another than the given one if that is 0
        self._on_stop = on_stop
        config = uvicorn.Config(
            app,
            http=_ImpatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.CRITICAL,  # any client can cause its warnings; `Access` tells of our own mistakes
            access_log=False,  # its lines would contain tokens
            server_header=False,
            date_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=16_384,
            backlog=128,
        )
        self._server = uvicorn.Server(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), name="page", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the server, even if clients are connected."""
        self._server.should_exit = self._server.force_exit = True
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._stop)
        self._thread.join(_STOP_TIMEOUT_S)
        self._socket.close()

    def _stop(self) -> None:
        self._on_stop()
        for one in tuple(self._server.server_state.connections):
            if one.transport.get_write_buffer_size():  # it would be waited for, and its end be logged with a traceback
                one.transport.abort()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_ignore_lost_clients)
        await self._server.serve(sockets=[self._socket])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = BoundedListener(family, most_connections(_MAX_CONNECTIONS))
    except OSError as error:
        raise FsvitEdgeError(f"The page cannot be served at {host}: {error.strerror or error}.") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise FsvitEdgeError(
            f"The page cannot be served at {host}:{port}: {error.strerror or error}; choose another port in --sink."
        ) from error
    return listening


def _ignore_lost_clients(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if not isinstance(error, (ConnectionError, asyncio.CancelledError)) and not is_lack_of_descriptors(error):
        loop.default_exception_handler(context)
