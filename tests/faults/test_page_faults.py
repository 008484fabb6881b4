"""Clients that stall, stop halfway or send garbage; frames keep coming, and memory does not grow."""

import contextlib
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
from breakage import Run

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.live.sink_worker import SinkWorker
from fsvit_edge.page.sink import PageSink

pytestmark = pytest.mark.faults

MAX_P95_PUBLISH_S, MAX_PUBLISH_S = 0.005, 0.1
MIN_RATE = 0.95
MAX_GROWTH_BYTES = 10_000_000
FPS, SECONDS = 30, 8


@pytest.fixture
def model() -> Iterator[LiveModel]:
    with FewShotModel.load(threads=1) as loaded:
        yield LiveModel(loaded)


def noisy_frame(index: int) -> tuple[Frame, Prediction]:
    rng = np.random.default_rng(index)
    image = rng.integers(0, 256, (360, 640, 3), dtype=np.uint8)
    nothing = Prediction((), np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros((360, 640), np.uint8), None, {})
    return Frame(image, index, "test", 0.0, time.monotonic(), 0.0), nothing


FRAMES = [noisy_frame(index) for index in range(8)]


def publish(put: Callable[[Frame, Prediction], None], seconds: float) -> tuple[float, list[float]]:
    """Publish at the camera's rate; return the rate reached and the sorted seconds that each call took."""
    took_s: list[float] = []
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        before = time.monotonic()
        put(*FRAMES[len(took_s) % len(FRAMES)])
        took_s.append(time.monotonic() - before)
        time.sleep(max(0.0, started + len(took_s) / FPS - time.monotonic()))
    return len(took_s) / (time.monotonic() - started), sorted(took_s)


def never_waits(took_s: list[float]) -> bool:
    """Whether publishing never waits for a client.

    On a quiet machine the longest of 240 calls took 0.1 ms. With both cores busy with other processes it took up to
    5.1 ms with clients and 4.8 ms without, so one call in twenty may be delayed by the scheduler, but none by as much
    as the timeout of a socket.
    """
    return float(np.percentile(took_s, 95)) <= MAX_P95_PUBLISH_S and took_s[-1] <= MAX_PUBLISH_S


def port_of(page: PageSink) -> int:
    port = urlsplit(page.address).port
    assert port is not None
    return port


def stalled_viewer(port: int) -> socket.socket:
    """A client that requests the stream and never reads it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(b"GET /api/stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return client


def half_sent(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(b"GET / HTTP/1.1\r\nHost: local")
    return client


def is_closed(client: socket.socket) -> bool:
    client.settimeout(0.01)
    try:
        while client.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def test_stalled_and_half_sent_requests_cost_nothing_and_are_disconnected(model: LiveModel, tmp_path: Path) -> None:
    page = PageSink("http://127.0.0.1:0", model, tmp_path / "bank.safetensors")
    port = port_of(page)
    worker = SinkWorker(page, "page", True, lambda *_: None)
    good: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        with httpx.stream("GET", f"{page.address}api/stream.mjpg", timeout=10, trust_env=False) as stream:
            for _ in stream.iter_raw():
                good.append(time.monotonic())
                if stop.is_set():
                    return

    watching = threading.Thread(target=watch)
    watching.start()
    quiet_rate, _ = publish(worker.put, SECONDS)
    process = psutil.Process()
    before = process.memory_info().rss
    clients = [stalled_viewer(port) for _ in range(2)] + [half_sent(port) for _ in range(100)]
    good.clear()
    rate, took_s = publish(worker.put, SECONDS)
    growth = process.memory_info().rss - before
    stop.set()
    publish(worker.put, 0.2)
    watching.join()
    gaps = np.diff(good)
    closed = [is_closed(client) for client in clients]
    threads = threading.active_count()
    for client in clients:
        client.close()
    worker.finish()
    print(
        f"publish at most {took_s[-1] * 1e3:.1f} ms, rate {rate / quiet_rate:.1%}, memory {growth / 1e6:+.1f} MB, good "
        f"client's longest gap {gaps.max():.2f} s, {sum(closed)} of {len(clients)} disconnected, {threads} threads"
    )
    assert never_waits(took_s)
    assert rate >= MIN_RATE * quiet_rate
    assert growth <= MAX_GROWTH_BYTES
    assert gaps.max() <= 0.5
    assert all(closed)
    assert threads < 20


def test_a_server_that_sends_to_one_client_after_another_waits() -> None:
    """The control: a simple server that sends each frame to each client before the next frame."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        stalled = stalled_viewer(listening.getsockname()[1])
        client, _ = listening.accept()
        client.settimeout(0.3)  # without a timeout it would never return

        def put(frame: Frame, _: Prediction) -> None:
            with contextlib.suppress(TimeoutError):
                client.sendall(frame.image.tobytes())

        _, took_s = publish(put, 1)
        client.close()
        stalled.close()
    assert not never_waits(took_s)


def test_garbage_never_stops_the_server(model: LiveModel, tmp_path: Path) -> None:
    rng = random.Random(0)
    whole = (
        b"POST /api/classes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 33\r\n\r\n"
        b'{"name": "cup", "frame_id": "0a"}'
    )
    statuses: dict[int, int] = {}
    with PageSink("http://127.0.0.1:0", model, tmp_path / "bank.safetensors") as page:
        for _ in range(3000):
            raw = bytearray(whole)
            for _ in range(rng.randrange(1, 6)):
                at = rng.randrange(len(raw))
                raw[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(4))
            address = ("127.0.0.1", port_of(page))
            with socket.create_connection(address, timeout=5) as client, contextlib.suppress(OSError):
                client.sendall(raw)
                client.shutdown(socket.SHUT_WR)
                found = re.match(rb"HTTP/1\.1 ([0-9]{3})", client.recv(4096))
                if found:
                    statuses[int(found[1])] = statuses.get(int(found[1]), 0) + 1
        assert httpx.get(f"{page.address}api/state", trust_env=False).status_code == 200
    print(f"answers to garbage: {dict(sorted(statuses.items()))}")
    assert sum(statuses.values()) > 1000
    assert all(400 <= status < 500 for status in statuses)
    assert model.classes == ()


def test_a_run_with_an_empty_token_is_refused(start_run: Callable[..., Run]) -> None:
    run = start_run("demo", "--sink", "http://0.0.0.0:0", "--token", "")
    assert run.process.wait(30) == 2
    assert "--token must be 8 to 128 letters" in run.said()


def classes_per_frame(run: Run) -> list[list[str]]:
    """Names of the classes of each frame processed so far."""
    return [[one["name"] for one in line["classes"]] for line in run.lines() if line["event"] == "frame"]


def test_the_next_frames_of_a_real_run_have_the_enrolled_class(start_run: Callable[..., Run]) -> None:
    run = start_run("demo", "--sink", "http://127.0.0.1:0", "--sink", "out.jsonl", "--threads", "1")
    with httpx.Client(base_url=run.page(), trust_env=False, timeout=10) as client:
        run.wait_for(run.processed(3))
        frame_id = client.post("/api/frames").json()["id"]
        asked = {"name": "new", "frame_id": frame_id, "box_xyxy": [100, 50, 500, 300]}
        assert client.post("/api/classes", json=asked).status_code == 201
        so_far = len(classes_per_frame(run))
        run.wait_for(lambda: len(classes_per_frame(run)) >= so_far + 3)
    names = classes_per_frame(run)
    assert "new" not in names[0]
    assert "new" in names[so_far + 1]  # one frame may have been in process
    run.end()
