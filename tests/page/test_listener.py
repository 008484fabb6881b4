import asyncio
import os
import resource
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from fsvit_edge.page.listener import BoundedListener, most_connections


class Server:
    """An asyncio server that keeps every connection, and what asyncio says of errors."""

    def __init__(self, most: int) -> None:
        self.listener = BoundedListener(socket.AF_INET, most)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(64)
        self.address = self.listener.getsockname()
        self.open = 0
        self.errors: list[object] = []

    def run(self, clients: "Clients", steps: Sequence[tuple[int | None, int]]) -> None:
        """Serve in a thread of its own: the browser of other tests keeps a loop in this one."""
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, self.serve(clients, steps)).result()

    async def serve(self, clients: "Clients", steps: Sequence[tuple[int | None, int]]) -> None:
        """Let so many more clients connect, or None: all leave; each time, so many connections must be open then."""
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.errors.append(context))

        server = await asyncio.get_running_loop().create_server(lambda: Counted(self), sock=self.listener)
        for count, expected in steps:
            clients(self.address, count)
            due_s = time.monotonic() + 60
            while self.open != expected and time.monotonic() < due_s:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.03)
            assert self.open == expected
        clients(self.address, None)
        while self.open:
            await asyncio.sleep(0.01)
        server.close()


class Counted(asyncio.Protocol):
    """A connection that is kept until its client leaves."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def connection_made(self, _: asyncio.BaseTransport) -> None:
        self.server.open += 1

    def connection_lost(self, _: Exception | None) -> None:
        self.server.open -= 1


class Clients:
    """Connections that send nothing."""

    def __init__(self) -> None:
        self.all = ExitStack()

    def __call__(self, address: tuple[str, int], count: int | None) -> None:
        """Open so many more, or close all."""
        if count is None:
            self.all.close()
        for _ in range(count or 0):
            client = self.all.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)


@pytest.fixture
def clients() -> Iterator[Clients]:
    opened = Clients()
    yield opened
    opened.all.close()


def test_no_more_connections_are_open_than_that_and_those_that_end_make_room(clients: Clients) -> None:
    server = Server(most=5)
    server.run(clients, [(4, 4), (20, 5), (None, 0), (3, 3)])
    assert server.errors == []
    server.listener.close()


def test_without_descriptors_connections_are_closed_and_nothing_is_logged(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, refused = Server(most=100), []
    accept = socket.socket.accept

    def lacking(self: socket.socket) -> tuple[socket.socket, object]:
        """As if the spare descriptor were the only one."""
        if isinstance(self, BoundedListener) and self._spare is not None:
            raise OSError(24, "Too many open files")
        refused.append(1)
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", lacking)
    server.run(clients, [(7, 0)])
    assert (len(refused), server.errors) == (7, [])
    server.listener.close()


def test_the_control_without_a_spare_descriptor_asyncio_complains(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(most=100)
    server.listener._free_spare()

    def lacking(_: socket.socket) -> tuple[socket.socket, object]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket.socket, "accept", lacking)
    server.run(clients, [(1, 0)])
    assert server.errors != []
    server.listener.close()


@pytest.mark.parametrize(("limit", "most"), [(1024, 256), (48, 12), (2, 1), (100_000, 300), (-1, 300)])
def test_a_quarter_of_the_descriptors_is_for_connections(
    limit: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert most_connections(300) == most


def test_a_listener_leaves_no_descriptor_behind() -> None:
    before = set(os.listdir("/proc/self/fd"))
    listener = BoundedListener(socket.AF_INET, 1)
    listener.close()
    listener.close()
    assert set(os.listdir("/proc/self/fd")) <= before  # what earlier tests left may be closed meanwhile
