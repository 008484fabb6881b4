"""Clients that are many, slow or gone: none of them takes what the camera or others need."""

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served_page import Served, enroll, picture, serve, show

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.page import access, server, state
from fsvit_edge.page.background import give_memory_back
from fsvit_edge.page.routes import live
from fsvit_edge.page.server import PageServer
from fsvit_edge.page.sink import PageSink
from fsvit_edge.runtime.machine import resident_memory_mb

HEAD = b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
BODY = b'{"name": "cup", "frame_id": "gone"}'


def connected(port: int | None, request: bytes) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(60)
    client.connect(("127.0.0.1", port))
    client.sendall(request)
    return client


def posted(served: Served, length: int = len(BODY), begun: bytes = b"") -> socket.socket:
    """A client that has sent the head of a request, and nothing of its body or what it begins with."""
    return connected(served.client.base_url.port, b"POST /api/classes HTTP/1.1\r\n" + HEAD % length + begun)


def watching(served: Served) -> socket.socket:
    return connected(served.client.base_url.port, b"GET /api/stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")


def received(client: socket.socket, over_s: float = 0.0) -> bytes:
    """All that a client gets until the server is done, a megabyte read evenly over this time."""
    started_s, data = time.monotonic(), b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            data += part
            time.sleep(max(0.0, started_s + over_s * len(data) / 1e6 - time.monotonic()))
    return data


def test_banks_are_written_and_read_outside_the_thread_of_the_loop(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a slow disk would hold up the camera."""
    threads: list[threading.Thread] = []

    def noting(method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: (threads.append(threading.current_thread()), method(*given))[1]

    enroll(served)
    loop = served.model.read(lambda _: threading.current_thread())
    monkeypatch.setattr(SupportBank, "save", noting(SupportBank.save))
    monkeypatch.setattr(SupportBank, "load", noting(SupportBank.load))
    for done in (1, 2, 3):
        data = served.client.get("/api/bank").content
        assert served.client.put("/api/bank", content=data).status_code == 200
        assert served.client.post("/api/bank/save").status_code == 200
        assert len(threads) >= 4 * done
    assert loop not in threads
    served.model.read(lambda model: model.bank.save(served.bank))
    assert loop in threads  # the control


def test_one_bank_is_loaded_at_a_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    enroll(served)
    data = served.client.get("/api/bank").content
    monkeypatch.setattr(state, "UPLOAD_WAIT_S", 0.1)
    with served.page._state.uploading:
        refused = served.client.put("/api/bank", content=data)
    assert (refused.status_code, "Another file is being loaded" in refused.json()["error"]) == (503, True)
    assert served.client.put("/api/bank", content=data).status_code == 200  # the control
    assert served.client.put("/api/bank", content=b"damaged").status_code == 409
    assert served.client.put("/api/bank", content=data).status_code == 200


def test_a_file_waits_for_another_that_is_being_loaded(served: Served) -> None:
    enroll(served)
    data = served.client.get("/api/bank").content
    served.page._state.uploading.acquire()
    threading.Timer(0.3, served.page._state.uploading.release).start()
    assert served.client.put("/api/bank", content=data).status_code == 200


def test_requests_are_answered_with_less_of_the_processor_than_the_camera_gets(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or pictures of 40 megapixels would starve it."""

    def niceness(*_: object) -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    seen: list[int] = []
    monkeypatch.setattr(live, "decode_image", lambda *_: (seen.append(niceness()), picture())[1])
    given_back: list[bool] = []
    monkeypatch.setattr(live, "give_memory_back", lambda: given_back.append(True))
    assert served.client.put("/api/frames", content=b"x").status_code == 201
    assert served.client.put("/api/frames", content=b"x").status_code == 201
    loop = served.model.read(niceness)
    assert seen == [min(19, max(10, loop))] * 2
    assert loop == niceness()  # the control
    assert given_back == [True, True]


def test_what_was_freed_goes_back_to_the_system() -> None:
    """The C library keeps blocks of this size after a larger one was freed, as Pillow frees those of a picture."""
    bytearray(31 * 2**20)
    blocks = [bytearray(b"x") * 2**20 for _ in range(200)]
    last = bytearray(b"x") * 2**20  # holds the end of the heap, so that nothing goes back by itself
    del blocks
    kept = resident_memory_mb([os.getpid()])
    give_memory_back()
    assert resident_memory_mb([os.getpid()]) < kept - 150
    assert last[-1] == ord("x")


def test_without_room_for_temporary_files_banks_are_refused_in_a_sentence(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    for answer in (served.client.get("/api/bank"), served.client.put("/api/bank", content=b"")):
        assert answer.status_code == 503
        assert "no place for temporary files: No space left on device; make room" in answer.json()["error"]


def test_an_upload_that_a_kill_cut_off_is_removed_at_the_next_start(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    enroll(served)
    data = served.client.get("/api/bank").content
    uploading: list[Path] = []

    def stopped(path: Path) -> None:
        shutil.copytree(path.parent, tmp_path / (path.parent.name + "-killed"))  # the same, but nobody has locked it
        uploading.append(path.parent)
        with PageSink("http://127.0.0.1:0", served.model, tmp_path / "bank.safetensors"):
            assert list(tmp_path.iterdir()) == [path.parent]

    monkeypatch.setattr(served.page._state, "upload", stopped)
    assert served.client.put("/api/bank", content=data).status_code == 200
    assert len(uploading) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_body_that_trickles_is_cut_off_and_one_that_keeps_coming_is_not(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_BODY_TIMEOUT_S", 0.6)
    trickling = posted(served, 1000)
    answer = b""
    started_s = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while not answer and time.monotonic() - started_s < 60:
            trickling.sendall(b" ")
            trickling.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                answer = trickling.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer.lower()
    monkeypatch.setattr(access, "_SLOWEST_BYTES_S", 1.0)
    steady = posted(served, begun=BODY[:5])
    for start in range(5, len(BODY), 5):  # 0.7 s
        time.sleep(0.12)
        steady.sendall(BODY[start : start + 5])
    assert steady.recv(12) == b"HTTP/1.1 400"  # it is complete: the frame is gone
    trickling.close()
    steady.close()


def test_bodies_that_do_not_come_leave_room_for_those_who_look(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_MAX_BODIES", 2)
    held = [posted(served) for _ in range(2)]
    deadline_s = time.monotonic() + 60
    while (refused := served.client.delete("/api/scene")).status_code == 204:
        assert time.monotonic() < deadline_s
    assert (refused.status_code, refused.headers["connection"]) == (503, "close")
    assert served.client.get("/api/state").status_code == 200
    for client in held:
        client.sendall(BODY)
        assert client.recv(12) == b"HTTP/1.1 400"
        client.close()
    assert served.client.delete("/api/scene").status_code == 204  # the control: the places are free


def test_who_leaves_before_the_first_frame_gives_the_place_back(loaded: FewShotModel, tmp_path: Path) -> None:
    with serve(loaded, tmp_path / "bank.safetensors") as served:
        gone = [watching(served) for _ in range(8)]
        assert {client.recv(12) for client in gone} == {b"HTTP/1.1 200"}
        with watching(served) as refused:
            assert refused.recv(12) == b"HTTP/1.1 503"  # the control
        for client in gone:
            client.close()
        deadline_s = time.monotonic() + 60
        while served.client.head("/api/stream.mjpg").status_code == 503:
            assert time.monotonic() < deadline_s
        with watching(served) as last:
            answer = last.recv(65536)
            show(served, picture())
            while b"\xff\xd8" not in answer:
                answer += last.recv(65536)


def test_to_ask_for_the_head_of_the_stream_takes_no_place(served: Served) -> None:
    for _ in range(12):
        assert served.client.head("/api/stream.mjpg").status_code == 200


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[PageServer]:
    """A server that answers with 1 MB, and disconnects who takes nothing for 0.8 s."""
    monkeypatch.setattr(server, "_STALL_TIMEOUT_S", 0.8)

    async def app(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000000")]})
        await send({"type": "http.response.body", "body": bytes(1_000_000)})

    one = PageServer(app, "127.0.0.1", 0, lambda: None)
    yield one
    one.close()


def test_a_slow_download_is_not_cut_off_and_one_that_nobody_reads_is(large: PageServer) -> None:
    get = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with connected(large.port, get) as slow, connected(large.port, get) as idle:
        started_s = time.monotonic()
        assert len(received(slow, over_s=1.7)) > 1_000_000
        assert time.monotonic() - started_s > 1.6  # twice what a client may pause
        assert len(received(idle)) < 1_000_000  # the control


def test_a_download_may_take_longer_than_a_client_may_wait_before_it_asks_again(
    large: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_KEEP_ALIVE_S", 0)
    monkeypatch.setattr(server, "_HEADER_TIMEOUT_S", 0.8)
    get = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(large.port, get) as slow, connected(large.port, get) as idle:
        started_s = time.monotonic()
        assert len(received(slow, over_s=1.7)) > 1_000_000
        assert time.monotonic() - started_s > 1.6
        assert len(received(idle)) < 1_000_000  # the control
