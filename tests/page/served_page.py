"""A page on loopback beside a loop that runs requests but no frames, and how tests talk to it."""

import base64
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import httpx
import numpy as np

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health, Percentiles, SinkStatus, SourceStatus
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.page.sink import PageSink

HEIGHT, WIDTH = 96, 128


def picture() -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    image[30:70, 40:90] = (200, 40, 20)
    return image


def health(state: str = "live") -> Health:
    status = SourceStatus(state, 0.0, captured=9, dropped=2)  # type: ignore[arg-type]
    sinks = (SinkStatus('out "1".mp4', 7, 1), SinkStatus("b\\c", 0, 0, "full"))
    age = Percentiles(10.0, 20.0, 30.0)
    return Health(
        *(1.0, 2.0, "boot", 3.0, "cam", status, "m", "e", "p", ("cup",), 7, 12.5, age, {"head": age}, 100.0, sinks)
    )


class Served(NamedTuple):
    page: PageSink
    model: LiveModel
    client: httpx.Client
    bank: Path


@contextmanager
def serve(loaded: FewShotModel, bank: Path) -> Iterator[Served]:
    """A page without classes, beside a loop that runs requests but no frames."""
    for name in loaded.classes:
        loaded.remove(name)
    loaded.forget_scene()
    loaded.bank.zones = ()
    model = LiveModel(loaded)
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(0.002):
            model.run_requests()

    looping = threading.Thread(target=loop)
    looping.start()
    try:
        with PageSink("http://127.0.0.1:0", model, bank) as page, client_of(page.address) as client:
            yield Served(page, model, client, bank)
    finally:
        stop.set()
        looping.join()
        model.close()


def client_of(address: str) -> httpx.Client:
    return httpx.Client(base_url=address, timeout=40, trust_env=False)


def show(served: Served, image: np.ndarray, index: int = 5) -> None:
    prediction = served.model.read(lambda model: model.predict(image))
    served.page.write(Frame(image, index, "cam", 0.0, time.monotonic(), 1.0), prediction)
    served.page.report(health())


@contextmanager
def filming(served: Served, image: np.ndarray) -> Iterator[None]:
    """A camera that sees a still scene, with a little noise: frames that are the same count once."""

    def shoot(index: int) -> None:
        noise = np.random.default_rng(index).integers(0, 8, image.shape)
        show(served, np.clip(image + noise, 0, 255).astype(np.uint8), index)

    with shooting(shoot, 0.02):
        yield


@contextmanager
def shooting(shoot: Callable[[int], None], every_s: float) -> Iterator[None]:
    """Call `shoot` with the index of each frame, in a thread of its own, until the block ends."""
    stop = threading.Event()

    def film() -> None:
        for index in itertools.count():
            shoot(index)
            if stop.wait(every_s):
                return

    thread = threading.Thread(target=film)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def streamed(client: httpx.Client, query: str = "") -> bytes:
    """The first picture of the stream, a JPEG."""
    with client.stream("GET", f"/api/stream.mjpg{query}") as stream:
        received = b""
        for chunk in stream.iter_raw():
            received += chunk
            if b"\r\n--frame" in received:
                break
    return received[received.index(b"\xff\xd8") :].partition(b"\r\n--frame")[0]


def freeze(served: Served) -> str:
    frozen = served.client.post("/api/frames")
    assert frozen.status_code == 201
    return str(frozen.json()["id"])


def enroll(served: Served, name: str = "cup", **how: Any) -> httpx.Response:
    return served.client.post("/api/classes", json={"name": name, "frame_id": freeze(served), **how})


def png(mask: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", mask)[1].tobytes()).decode()
