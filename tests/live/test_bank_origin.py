"""Banks from a web server, which may be slow, endless, huge, torn or gone, and from a file that others replace."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bank_server import (
    BANK,
    SIGNATURE,
    Act,
    BankServer,
    endless,
    etag_of,
    hang,
    negative_chunk,
    send,
    serving_banks,
    status,
    torn,
    torn_chunks,
    torn_without_length,
    trickle,
    trickle_headers,
)
from web_server import certify

from fsvit_edge.live import bank_origin
from fsvit_edge.live.bank_origin import FileOrigin, NoSignatureError, Origin, OriginError, open_origin
from fsvit_edge.runtime.errors import InputError

DATA = b"bank" * 1000


@pytest.fixture
def server() -> Iterator[BankServer]:
    with serving_banks() as started:
        started.files[BANK] = DATA
        yield started


@pytest.fixture
def origin(server: BankServer) -> Origin:
    return open_origin(server.address, is_signed=True)


def test_a_bank_is_fetched_once_and_again_when_its_etag_changes(server: BankServer, origin: Origin) -> None:
    first = origin.fetch(None, 5)
    assert first is not None
    assert (first.data, first.version) == (DATA, (etag_of(DATA), ""))
    assert origin.fetch(first.version, 5) is None
    server.files[BANK] = b"new"
    second = origin.fetch(first.version, 5)
    assert second is not None
    assert second.data == b"new"
    assert [etag for _, etag in server.gets] == ["", etag_of(DATA), etag_of(DATA)]


def test_without_an_etag_the_time_of_the_last_change_is_asked_for(server: BankServer, origin: Origin) -> None:
    asked: list[str] = []

    def dated(handler: object) -> None:
        asked.append(handler.headers.get("If-Modified-Since", ""))  # type: ignore[attr-defined]
        send(handler, 304 if asked[-1] else 200, DATA, Last_Modified="Sun, 29 Nov 2026 10:00:00 GMT")  # type: ignore[arg-type]

    server.acts[BANK] = dated
    first = origin.fetch(None, 5)
    assert first is not None
    assert origin.fetch(first.version, 5) is None
    assert asked == ["", "Sun, 29 Nov 2026 10:00:00 GMT"]


def test_a_server_that_states_no_version_is_read_each_time(server: BankServer, origin: Origin) -> None:
    server.has_etags = False
    fetched = origin.fetch(None, 5)
    assert fetched is not None
    assert fetched.version is None


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        (status(503), "The server answers 503 Service Unavailable"),
        (status(404), "The server answers 404 Not Found"),
        (status(304), r"The server redirects \(304"),  # nothing was known
        (
            status(302, Location="http://127.0.0.1:1/s3cret"),
            r"The server redirects \(302 Found\), which is not followed",
        ),
        (torn, "The answer of the server broke off after 2,000 of 4,000 bytes"),
        (torn_chunks, "The server does not respond"),
        (hang, r"The server does not respond \(no answer within 0\.5 s\)"),
        (trickle, r"The server does not respond \(no answer within 0\.5 s\)"),
        (endless, "The answer of the server has more than 100,000 bytes"),
        (negative_chunk, r"The server does not respond \(its answer is not HTTP\)"),
        (status(200, Content_Length="100001"), "The answer of the server has more than 100,000 bytes"),
    ],
    ids=["503", "404", "304", "302", "torn", "torn chunks", "hang", "trickle", "endless", "negative chunk", "huge"],
)
def test_what_is_wrong_with_a_server_is_said_in_time(
    server: BankServer, origin: Origin, act: Act, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_origin, "MAX_BANK_BYTES", 100_000)
    server.acts[BANK] = act
    started_s = time.monotonic()
    with pytest.raises(OriginError, match=problem) as failed:
        origin.fetch(None, 0.5 if act in (hang, trickle) else 60)
    assert time.monotonic() - started_s < 20  # a server that hangs does so for 30 s
    assert "127.0.0.1:1" not in str(failed.value)
    del server.acts[BANK]
    assert origin.fetch(None, 60) is not None


def test_half_an_answer_of_unknown_length_is_never_taken_for_a_version(server: BankServer, origin: Origin) -> None:
    server.acts[BANK] = torn_without_length
    half = origin.fetch(None, 5)
    assert half is not None
    assert half.version is None  # so that the other half is fetched next time
    assert len(half.data) < len(DATA)


def test_a_redirect_leads_to_no_other_server(server: BankServer, origin: Origin) -> None:
    with serving_banks() as other:
        other.files[BANK] = DATA
        server.acts[BANK] = status(301, Location=other.address)
        with pytest.raises(OriginError, match="is not followed; give the address it leads to"):
            origin.fetch(None, 5)
        assert other.gets == []


def test_a_server_that_is_gone_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(OriginError, match=r"The server does not respond \(Connection refused\)"):
        open_origin(f"http://127.0.0.1:{port}{BANK}", is_signed=True).fetch(None, 5)


@pytest.mark.parametrize("act", [hang, trickle])
def test_who_waits_for_a_server_can_be_cut_off(server: BankServer, origin: Origin, act: Act) -> None:
    server.acts[BANK] = act
    failed: list[Exception] = []

    def fetch() -> None:
        try:
            origin.fetch(None, 100)
        except OriginError as error:
            failed.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    while not server.gets:
        time.sleep(0.005)
    time.sleep(0.1)
    origin.cut()
    thread.join(20)
    assert not thread.is_alive()


def test_a_name_that_is_looked_up_for_too_long_lets_no_server_drip_on(
    server: BankServer, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = socket.create_connection

    def late(*arguments: object, **named: object) -> socket.socket:
        time.sleep(0.5)  # when the request is to be cut, there is no connection yet
        return connect(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_connection", late)
    server.acts[BANK] = trickle_headers
    started_s = time.monotonic()
    with pytest.raises(OriginError, match=r"no answer within 0\.2 s"):
        origin.fetch(None, 0.2)
    assert time.monotonic() - started_s < 5


def test_a_signature_lies_beside_its_bank(server: BankServer, origin: Origin) -> None:
    with pytest.raises(NoSignatureError, match="404 Not Found"):
        origin.fetch_signature(5)
    server.files[SIGNATURE] = b"x" * 64
    assert origin.fetch_signature(5) == b"x" * 64
    server.acts[SIGNATURE] = status(503)
    with pytest.raises(OriginError, match="503") as failed:
        origin.fetch_signature(5)
    assert not isinstance(failed.value, NoSignatureError)


def test_nothing_of_an_address_that_may_be_secret_is_in_its_name() -> None:
    origin = open_origin("https://me:s3cret@host/banks/shelf.safetensors?token=s3cret", is_signed=False)
    assert origin.name == "https://host/banks/shelf.safetensors"


@pytest.mark.parametrize(
    "address", ["s3://host/s3cret", "https://", "https://host:s3cret/", "https://host/s3cret b", "https://host/#s3cret"]
)
def test_an_address_that_cannot_be_asked_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=r"Invalid address .* of a bank; expected a file or https://"):
        open_origin(address, is_signed=True)


def test_an_unsigned_bank_is_not_taken_from_where_it_could_be_exchanged() -> None:
    with pytest.raises(InputError, match="A bank from http:// could be exchanged on the way; use https://"):
        open_origin("http://host/bank.safetensors", is_signed=False)
    open_origin("http://host/bank.safetensors", is_signed=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, for a certificate")
def test_a_certificate_that_is_not_trusted_is_said(
    server: BankServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = certify(server, tmp_path)
    address = server.address.replace("http:", "https:")
    with pytest.raises(OriginError, match=r"The certificate of the server is not trusted \(self"):
        open_origin(address, is_signed=False).fetch(None, 5)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    fetched = open_origin(address, is_signed=False).fetch(None, 5)
    assert fetched is not None
    assert fetched.data == DATA


def test_a_file_takes_no_more_memory_than_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bank.safetensors").write_bytes(DATA)
    monkeypatch.setattr(bank_origin, "MAX_BANK_BYTES", 2**60)
    fetched = FileOrigin(tmp_path / "bank.safetensors").fetch(None, 5)
    assert fetched is not None
    assert fetched.data == DATA


def test_a_file_is_read_again_when_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bank.safetensors"
    origin = open_origin(str(path), is_signed=False)
    assert isinstance(origin, FileOrigin)
    with pytest.raises(OriginError, match=r"bank\.safetensors cannot be read \(No such file or directory\)"):
        origin.fetch(None, 5)
    path.write_bytes(DATA)
    first = origin.fetch(None, 5)
    assert first is not None
    assert origin.fetch(first.version, 5) is None
    path.write_bytes(DATA + b" ")
    assert origin.fetch(first.version, 5) is not None
    with pytest.raises(NoSignatureError, match=r"there is no .*bank\.safetensors\.sig"):
        origin.fetch_signature(5)
    monkeypatch.setattr(bank_origin, "MAX_BANK_BYTES", 1000)
    with pytest.raises(OriginError, match="has more than 1,000 bytes"):
        origin.fetch(None, 5)


def test_a_pipe_in_place_of_a_file_holds_up_nothing(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "bank.safetensors")
    with pytest.raises(OriginError, match=r"cannot be read \(it is not a regular file\)"):
        open_origin(str(tmp_path / "bank.safetensors"), is_signed=False).fetch(None, 5)


def test_a_signature_that_cannot_be_looked_for_is_said(tmp_path: Path) -> None:
    name = f"{'b' * (255 - len('.safetensors'))}.safetensors"  # as long as a name may be, so that NAME.sig is too long
    (tmp_path / name).write_bytes(DATA)
    with pytest.raises(OriginError, match=r"\.sig cannot be read \(File name too long\)") as failed:
        open_origin(str(tmp_path / name), is_signed=True).fetch_signature(5)
    assert not isinstance(failed.value, NoSignatureError)
