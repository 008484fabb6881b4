import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsvit_edge.live.service_manager import notify


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd listens with."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@fsvit-edge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1))
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listening


def test_assignments_arrive_one_a_line(manager: socket.socket) -> None:
    notify("READY=1", "STATUS=a\nMAINPID=1 \udc80")
    assert manager.recv(1000) == b"READY=1\nSTATUS=a MAINPID=1 ?"


def test_a_manager_that_takes_nothing_holds_up_nobody(manager: socket.socket) -> None:
    for _ in range(5000):
        notify("WATCHDOG=1")
    assert manager.recv(1000) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "vsock:2:1234", "@nobody-listens"])
def test_no_manager_is_no_matter(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")
