import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsvit_edge.live.supervision import ModelWatchdog, notify_systemd


def checks_until_hung(watchdog: ModelWatchdog, frame: int, is_first: bool = False) -> int:
    for count in range(1, 100_000):
        if watchdog.is_hung(frame, is_first):
            return count
    raise AssertionError("never")


def process(watchdog: ModelWatchdog, frames: int, checks_each: int) -> None:
    for frame in range(frames):
        assert not any(watchdog.is_hung(frame, frame == 0) for _ in range(checks_each))


def test_a_fast_model_hangs_after_ten_seconds() -> None:
    watchdog = ModelWatchdog()
    process(watchdog, 5, 1)
    assert 100 <= checks_until_hung(watchdog, 5) <= 103


def test_a_slow_model_hangs_after_ten_times_its_slowest_step() -> None:
    watchdog = ModelWatchdog()
    process(watchdog, 3, 80)
    assert 780 <= checks_until_hung(watchdog, 3) <= 805


@pytest.mark.parametrize(("compiles", "limit"), [(False, 10_000), (True, 100)])
def test_the_first_frame_may_take_minutes_and_counts_if_nothing_compiles_in_it(compiles: bool, limit: int) -> None:
    watchdog = ModelWatchdog(compiles)
    assert not any(watchdog.is_hung(0, True) for _ in range(1001))
    assert limit <= checks_until_hung(watchdog, 1) <= limit + 3
    assert 3000 <= checks_until_hung(ModelWatchdog(compiles), 0, is_first=True) <= 3003


def test_a_model_that_makes_steps_is_slow_and_does_not_hang() -> None:
    watchdog = ModelWatchdog()
    process(watchdog, 2, 1)
    assert not any(watchdog.is_hung(2, False, steps=check // 90) for check in range(9000))
    assert 850 <= checks_until_hung(watchdog, 3) <= 903


@pytest.mark.parametrize(("classes", "limit"), [(5, 100), (255, 2550)])
def test_a_step_may_take_longer_with_many_classes(classes: int, limit: int) -> None:
    watchdog = ModelWatchdog()
    process(watchdog, 2, 1)
    count = next(count for count in range(10_000) if watchdog.is_hung(2, False, 7, classes))
    assert limit <= count <= limit + 3


def test_a_model_without_a_frame_does_not_hang() -> None:
    watchdog = ModelWatchdog()
    process(watchdog, 2, 1)
    assert not any(watchdog.is_hung(None, False) for _ in range(10_000))


def test_each_frame_starts_the_count_again() -> None:
    watchdog = ModelWatchdog()
    process(watchdog, 2, 1)
    assert not any(watchdog.is_hung(2 + check // 50, False) for check in range(10_000))


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket like the one on which systemd listens."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@fsvit-edge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1))
        listening.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listening


def test_systemd_receives_one_assignment_per_line(systemd: socket.socket) -> None:
    notify_systemd("READY=1", "STATUS=a\nMAINPID=1 \udc80")
    assert systemd.recv(1000) == b"READY=1\nSTATUS=a MAINPID=1 ?"


def test_systemd_that_does_not_read_delays_nothing(systemd: socket.socket) -> None:
    for _ in range(5000):
        notify_systemd("WATCHDOG=1")
    assert systemd.recv(1000) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "vsock:2:1234", "@nobody-listens", None])
def test_nothing_happens_without_systemd(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify_systemd("READY=1")
