import base64
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest

from fsvit_edge.live import opencv
from fsvit_edge.live.sources.mjpeg import AccessRefusedError, MjpegStream
from fsvit_edge.live.uri import SourceAddress
from fsvit_edge.runtime.errors import InputError, SourceError

HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
Serve = Callable[..., SourceAddress]


def jpeg(shade: int) -> bytes:
    return cv2.imencode(".jpg", np.full((48, 64, 3), shade, np.uint8))[1].tobytes()


def part(content: bytes, header: bytes = b"", has_length: bool = True) -> bytes:
    length = b"Content-Length: %d\r\n" % len(content) if has_length else b""
    return b"--frame\r\n" + header + length + b"\r\n" + content + b"\r\n"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Answer every request that has `needs` in it with the same bytes."""
    listening = socket.create_server(("127.0.0.1", 0))

    def start(answer: bytes, needs: bytes = b"") -> SourceAddress:
        def run() -> None:
            try:
                while True:
                    client, _ = listening.accept()
                    with client:
                        is_known = needs in client.recv(65536)
                        client.sendall(answer if is_known else REFUSED)
            except OSError:
                pass

        threading.Thread(target=run, daemon=True).start()
        target = f"http://me:p%40ss@127.0.0.1:{listening.getsockname()[1]}/cam?a=1#x"
        return SourceAddress("http", target, "cam")

    yield start
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


REFUSED = b'HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic realm="camera"\r\n\r\n'


def shades(stream: MjpegStream) -> list[int]:
    found = []
    while (image := stream.read()) is not None:
        assert (image.shape, image.dtype) == ((48, 64, 3), np.uint8)
        found.append(round(float(image.mean()), -1))
    return [int(one) for one in found]


@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize(
    "header",
    [b"Content-Type: image/jpeg\r\n", b"Content-Type: image/jpg\r\n", b"Content-type: image/jpeg;size=9\r\n", b""],
)
def test_the_content_of_a_part_decides_and_not_its_type(serve: Serve, header: bytes, has_length: bool) -> None:
    parts = [part(jpeg(shade), header, has_length) for shade in (50, 100, 150)]
    assert shades(MjpegStream(serve(HEAD + b"".join(parts) + b"--frame--\r\n"))) == [50, 100, 150]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(part(b"hello", b"Content-Type: text/plain\r\n"), id="text"),
        pytest.param(part(b"\xff\xd8" + bytes(range(256))), id="noise"),
        pytest.param(part(jpeg(0)[:300]), id="cut short"),
        pytest.param(part(b""), id="empty"),
        pytest.param(b"--frame\r\nContent-Length: many\r\n\r\n\xff\xd8\r\n", id="length"),
    ],
)
def test_a_bad_part_is_skipped(serve: Serve, bad: bytes) -> None:
    assert shades(MjpegStream(serve(HEAD + part(jpeg(50)) + bad + part(jpeg(100))))) == [50, 100]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>", "sends no stream of JPEGs .* but 'text/html'"),
        (b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg(9), "but 'image/jpeg'; give the address of the"),
        (HEAD, "sends no stream of JPEGs"),
        (b"HTTP/1.0 404 no\r\n\r\n", "it answers 404 Not Found; check the address and the password"),
        (b"HTTP/1.0 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "cam cannot be opened"),
        (b"SSH-2.0\r\n", "cannot be opened; check the address"),
    ],
)
def test_what_is_no_stream_is_told(serve: Serve, answer: bytes, reason: str) -> None:
    with pytest.raises(SourceError, match=reason) as raised:
        MjpegStream(serve(answer))
    assert "p%40ss" not in str(raised.value)


def test_a_stream_of_other_pictures_is_told(serve: Serve) -> None:
    png = cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    other = part(png, b"Content-Type: image/png\r\n")
    with pytest.raises(SourceError, match="cam sends no JPEGs, but parts of the type 'image/png'; set the camera to"):
        MjpegStream(serve(HEAD + 3 * other + part(jpeg(50)))).read()


def test_a_stream_whose_first_parts_are_damaged_is_read(serve: Serve) -> None:
    assert shades(MjpegStream(serve(HEAD + 2 * part(b"") + part(jpeg(50)) + 9 * part(b"") + part(jpeg(100))))) == [
        50,
        100,
    ]


@pytest.mark.parametrize("scheme", [b"Basic", b"Digest"])
@pytest.mark.parametrize("status", [b"401 Unauthorized", b"403 Forbidden"])
def test_a_wrong_password_is_sent_once(status: bytes, scheme: bytes) -> None:
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    with client:
                        received.append(client.recv(65536))
                        ask = b'WWW-Authenticate: %b realm="cam", nonce="%d", qop="auth"' % (scheme, len(received))
                        client.sendall(b"HTTP/1.0 " + status + b"\r\n" + ask + b"\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        address = SourceAddress("http", f"http://me:wrong@127.0.0.1:{listening.getsockname()[1]}/cam", "cam")
        with pytest.raises(AccessRefusedError, match=f"it answers {status.decode()}"):
            MjpegStream(address)
        listening.shutdown(socket.SHUT_RDWR)
    assert sum(b"Authorization" in one for one in received) == (1 if status.startswith(b"401") else 0)


def test_a_camera_gets_its_password_when_it_asks(serve: Serve) -> None:
    needs = b"Authorization: Basic " + base64.b64encode(b"me:p@ss")
    assert shades(MjpegStream(serve(HEAD + part(jpeg(50)), needs))) == [50]
    with pytest.raises(SourceError, match="it answers 401 Unauthorized; check the address and the password"):
        MjpegStream(serve(HEAD, b"another"))


def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opencv, "MAX_PICTURE_PX", 64 * 48 - 1)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match="cam has frames of 64x48 pixels, more than"):
        MjpegStream(serve(HEAD + part(jpeg(50)) + b"--frame--\r\n")).read()
