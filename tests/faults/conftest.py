"""Fixtures of the fault tests."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from breakage import CAMERA_PACKAGES, FPS, FakeCamera, Run, has_gstreamer_server


@pytest.fixture
def camera(request: pytest.FixtureRequest) -> Iterator[FakeCamera]:
    """A camera; parametrize it indirectly for another frame rate."""
    if not has_gstreamer_server():
        pytest.skip("needs an RTSP server: sudo apt install " + " ".join(CAMERA_PACKAGES))
    fake = FakeCamera(getattr(request, "param", FPS))
    fake.start()
    yield fake
    fake.kill()


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The address of a stream that accepts connections and sends nothing."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(64)
        yield f"rtsp://127.0.0.1:{deaf.getsockname()[1]}/cam"


@pytest.fixture
def start_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(*arguments: str, code: str = "") -> Run:
        runs.append(Run(tmp_path, *arguments, code=code))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()
