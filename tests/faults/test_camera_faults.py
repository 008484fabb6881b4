"""A camera that dies, freezes, is silent or too fast."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
from breakage import FPS, FakeCamera, age_s

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.opencv import open_stream
from fsvit_edge.live.sources.base import Source
from fsvit_edge.live.sources.open import open_source

pytestmark = pytest.mark.faults

ROUNDS = 5
KILLED_WITHIN_S = 1.0
FROZEN_WITHIN_S = 3.0
BACK_WITHIN_S = 5.0
AGE_WITHIN_S = 0.5


def fresh_frame(source: Source, within_s: float = 15) -> Frame:
    deadline = time.monotonic() + within_s
    while (frame := source.read(0.05)) is None:
        assert time.monotonic() < deadline, source.status
    return frame


def until_lost(source: Source) -> float:
    """Seconds until the source is lost; until then, every frame must be fresh."""
    started = time.monotonic()
    while source.status.state == "live":
        frame = source.read(0.01)
        assert frame is None or age_s(frame.image) < 1, "an old frame was delivered as a fresh one"
        assert time.monotonic() - started < 15
    return time.monotonic() - started


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("fault", "within_s"), [("kill", KILLED_WITHIN_S), ("freeze", FROZEN_WITHIN_S)])
def test_a_lost_camera_and_its_return_are_noticed_in_time(camera: FakeCamera, fault: str, within_s: float) -> None:
    lost_s, back_s = [], []
    with open_source(camera.address) as source:
        fresh_frame(source)
        for _ in range(ROUNDS):
            settled = time.monotonic() + 0.3
            while time.monotonic() < settled:
                source.read(0.05)
            camera.kill() if fault == "kill" else camera.freeze()
            lost_s.append(until_lost(source))
            assert source.status.message.startswith(f"{camera.address} ")
            time.sleep(0.3)
            camera.start() if fault == "kill" else camera.thaw()
            started = time.monotonic()
            frame = fresh_frame(source)
            back_s.append(time.monotonic() - started)
            assert age_s(frame.image) < 1
        status = source.status
    print(f"{fault}: noticed within {max(lost_s):.2f} s, back within {max(back_s):.2f} s, {ROUNDS} rounds")
    assert status.reconnects >= ROUNDS
    assert max(lost_s) <= within_s
    assert max(back_s) <= BACK_WITHIN_S


def test_plain_opencv_does_not_notice(camera: FakeCamera) -> None:
    """The control: with plain OpenCV, a dead camera stays open, and reading fails forever."""
    capture = open_stream(camera.address)
    assert capture.read()[0]
    camera.kill()
    deadline = time.monotonic() + 10
    while capture.read()[0]:
        assert time.monotonic() < deadline
    camera.start()
    time.sleep(1)
    assert not any(capture.read()[0] for _ in range(100))  # the camera is back, and this capture never notices
    assert capture.isOpened()
    capture.release()


def ages_s(read: Callable[[], np.ndarray | None], seconds: float) -> list[float]:
    """Ages of the frames that a reader gets at a third of the frame rate of the camera."""
    ages = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        image = read()
        time.sleep(3 / FPS)  # the model
        if image is not None:
            ages.append(age_s(image))
    return ages


def test_a_slow_model_gets_fresh_frames_and_the_others_are_counted_as_dropped(camera: FakeCamera) -> None:
    with open_source(camera.address) as source:
        first = fresh_frame(source)
        taken = [first.index]

        def read() -> np.ndarray | None:
            frame = source.read(1)
            if frame is None:
                return None
            taken.append(frame.index)
            return frame.image

        ages = ages_s(read, seconds=5)
        status = source.status
        waiting = status.captured - status.dropped - len(taken)
    print(f"age p99 {np.percentile(ages, 99) * 1e3:.0f} ms, {len(taken)} taken, {status.dropped} dropped")
    assert np.percentile(ages, 99) <= AGE_WITHIN_S
    assert waiting in (0, 1)  # one may be waiting unread
    assert status.dropped > len(taken)
    assert taken == sorted(set(taken))


def test_frames_in_a_queue_grow_old(camera: FakeCamera) -> None:
    """The control: the same model with the queue of OpenCV misses the same limit."""
    capture = open_stream(camera.address)
    ages = ages_s(lambda: capture.read()[1], seconds=4)
    capture.release()
    assert np.percentile(ages, 99) > AGE_WITHIN_S


def test_a_black_hole_is_given_up_in_time_with_its_name(black_hole: str) -> None:
    started = time.monotonic()
    with open_source(black_hole) as source:
        while not source.status.message:
            assert time.monotonic() - started < 8
            time.sleep(0.02)
        taken_s = time.monotonic() - started
        assert source.status.state == "connecting"
        assert black_hole in source.status.message
    assert taken_s <= 5.5


def mjpeg_server(stop: threading.Event) -> Iterator[int]:
    """An HTTP camera: yields its port, then serves until the stop."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.2)
        yield listening.getsockname()[1]
        number = 0
        while not stop.is_set():
            with contextlib.suppress(OSError):
                client, _ = listening.accept()
                with client:
                    client.recv(4096)
                    head = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
                    client.sendall(head)
                    while not stop.is_set():
                        number += 1
                        shade = np.full((48, 64, 3), number * 10 % 256, np.uint8)
                        jpeg = cv2.imencode(".jpg", shade)[1].tobytes()
                        part = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                        client.sendall(part.encode() + jpeg + b"\r\n")
                        time.sleep(0.05)


def test_an_http_camera_is_read() -> None:
    stop = threading.Event()
    serving = mjpeg_server(stop)
    port = next(serving)
    thread = threading.Thread(target=lambda: list(serving))
    thread.start()
    try:
        with open_source(f"http://127.0.0.1:{port}/cam.mjpg") as source:
            shades = {int(fresh_frame(source).image.mean()) for _ in range(5)}
        assert len(shades) >= 4
    finally:
        stop.set()
        thread.join()


def test_a_server_cannot_make_ffmpeg_read_a_file() -> None:
    """A playlist with a local file is not a stream of JPEGs, whatever its content type is."""
    requests = []
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"

        def serve() -> None:
            client, _ = listening.accept()
            with client:
                requests.append(client.recv(4096))
                head = b"HTTP/1.0 200 OK\r\nContent-Type: application/vnd.apple.mpegurl\r\n\r\n"
                client.sendall(head + playlist)

        thread = threading.Thread(target=serve)
        thread.start()
        with open_source(f"http://127.0.0.1:{listening.getsockname()[1]}/cam.m3u8") as source:
            while not source.status.message:
                time.sleep(0.02)
            assert source.status.captured == 0
        thread.join()
    assert len(requests) == 1
