"""What clients can write into the log of a run: nothing, whatever they send; and what the page tells of its faults."""

import socket
import time

import pytest
from served_page import Served

from fsvit_edge.page import access

HEAD = "Host: 127.0.0.1"
JSON = "Content-Type: application/json"
UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eHh4eHh4eHh4"
CHUNKED = "Transfer-Encoding: chunked"


def send(served: Served, *lines: str, body: str = "", leaves: bool = False) -> str:
    """Send a request as it is; return the line with its status."""
    port = served.client.base_url.port
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall("\r\n".join([*lines, "", body]).encode())
        return "" if leaves else client.recv(4096).decode("latin-1").partition("\r\n")[0]


@pytest.mark.parametrize(
    ("lines", "body", "status"),
    [
        pytest.param(["\x16\x03\x01 garbage"], "", "HTTP/1.1 400 ", id="no HTTP"),
        pytest.param(["GET / HTTP/1.1", HEAD, UPGRADE], "", "HTTP/1.1 200 OK", id="a WebSocket"),
        pytest.param(
            ["POST /api/frames HTTP/1.1", HEAD, "Origin: http://[::1"], "", "HTTP/1.1 403 Forbidden", id="origin"
        ),
        pytest.param(
            ["POST /api/frames HTTP/1.1", HEAD, f"Content-Length: {'9' * 5000}"], "", "HTTP/1.1 4", id="a huge number"
        ),
        pytest.param(
            ["POST /api/classes HTTP/1.1", HEAD, JSON, CHUNKED], "5\r\n{", "HTTP/1.1 408 ", id="a chunk that stops"
        ),
        pytest.param(
            ["GET /api/stream.mjpg HTTP/1.1", HEAD, CHUNKED],
            "5\r\n{",
            "HTTP/1.1 200 OK",
            id="a stream with half a chunk",
        ),
    ],
)
def test_an_odd_request_is_answered_and_not_logged(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lines: list[str],
    body: str,
    status: str,
) -> None:
    monkeypatch.setattr(access, "_BODY_TIMEOUT_S", 0.1)
    assert send(served, *lines, body=body).startswith(status)
    time.sleep(0.15)
    assert caplog.text == ""


@pytest.mark.parametrize("path", ["PUT /api/bank", "POST /api/classes", "POST /api/frames"])
def test_a_client_that_leaves_within_its_body_is_not_logged(
    served: Served, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    send(served, f"{path} HTTP/1.1", HEAD, JSON, "Content-Length: 1000", body="abc", leaves=True)
    time.sleep(0.1)
    assert caplog.text == ""


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_folder_for_temporary_files_that_is_full_is_one_sentence(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    answer = served.client.request(method, "/api/bank", content=b"a bank" if method == "PUT" else b"")
    error = "The device has no place for temporary files: No space left on device; make room, or set TMPDIR."
    assert (answer.status_code, answer.json()) == (503, {"error": error})
    assert caplog.text == ""


def test_a_fault_of_our_own_is_one_line(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fsvit_edge.page.app._STATIC", None)
    answer = served.client.get("/docs")
    assert (answer.status_code, answer.json()) == (500, {"error": "The page failed; the log of the run says where."})
    deadline_s = time.monotonic() + 60
    while not caplog.records and time.monotonic() < deadline_s:  # the line follows the answer
        time.sleep(0.01)
    (record,) = caplog.records
    assert record.exc_info is None
    assert "The page failed to answer GET '/docs': TypeError in app.py, line " in record.getMessage()
