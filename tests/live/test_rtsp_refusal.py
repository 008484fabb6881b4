"""An RTSP camera that refuses the password: it is told, and tried once, for cameras lock accounts after a few tries."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fsvit_edge.live.sources.base import SourceOptions
from fsvit_edge.live.sources.live import LiveSource
from fsvit_edge.live.uri import SourceAddress

Requests = list[bytes]


@contextlib.contextmanager
def camera(status: str) -> Iterator[tuple[SourceAddress, Requests]]:
    """A camera that answers everything with a status, and what it was asked; b"" is a connection."""
    asked: Requests = []

    def answer(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                asked.append(data)
                number = re.search(rb"CSeq: *(\d+)", data)
                client.sendall(
                    f"RTSP/1.0 {status}\r\nCSeq: {number[1].decode() if number else 0}\r\n"
                    'WWW-Authenticate: Digest realm="cam", nonce="5"\r\n\r\n'.encode()
                )

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listening.accept()
                asked.append(b"")
                threading.Thread(target=answer, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield SourceAddress("rtsp", f"rtsp://me:wr0ng@127.0.0.1:{listening.getsockname()[1]}/cam", "cam"), asked
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("status", "said", "tries"),
    [
        (
            "401 Unauthorized",
            "cam cannot be opened: it answers 401 Unauthorized; check the address and the password",
            1,
        ),
        ("403 Forbidden", "cam cannot be opened: it answers 403 Forbidden; check the address and the password", 0),
    ],
)
def test_a_refused_password_is_told_and_sent_once(status: str, said: str, tries: int) -> None:
    with camera(status) as (address, asked), LiveSource(address, SourceOptions()) as source:
        due_s = time.monotonic() + 60
        while not source.status.message and time.monotonic() < due_s:
            time.sleep(0.05)
        assert source.status.message.startswith(said)
        assert "wr0ng" not in source.status.message
        time.sleep(2.5)  # after a failure of another kind, the next try comes after 1 s, and two looks a second
        assert sum(b"Authorization" in one for one in asked) == tries
        assert asked.count(b"") == 1
        assert source.status.reconnects == 0


def test_a_camera_with_another_trouble_is_tried_again() -> None:
    with camera("404 Not Found") as (address, asked), LiveSource(address, SourceOptions()) as source:
        due_s = time.monotonic() + 60
        while source.status.reconnects < 2 and time.monotonic() < due_s:
            time.sleep(0.05)
        assert source.status.message.startswith("cam cannot be opened; check the address and the password, and that")
        assert asked.count(b"") > 2
