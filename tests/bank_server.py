"""A web server with files and their ETags, which may be slow, endless, huge or torn, redirect or be gone; and banks."""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import skimage.data
from web_server import HeldServer, running

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.review_items import ReviewItem, Verdict
from fsvit_edge.fewshot.scene import encode_frame

CAT, COFFEE = skimage.data.chelsea(), skimage.data.coffee()
BANK, SIGNATURE = "/s3cret/bank.safetensors", "/s3cret/bank.safetensors.sig"

Act = Callable[["Handler"], None]


def send(handler: "Handler", status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        if value:
            handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def status(number: int, **headers: str) -> Act:
    return lambda handler: send(handler, number, **headers)


def torn(handler: "Handler") -> None:
    """Half of the file, and then the connection ends."""
    data = handler.server.files[BANK]
    send(handler, 200, data[: len(data) // 2], ETag=etag_of(data), Content_Length=str(len(data)))
    handler.close_connection = True


def torn_chunks(handler: "Handler") -> None:
    """The same in chunks."""
    data = handler.server.files[BANK]
    send(handler, 200, f"{len(data):x}\r\n".encode() + data[:1000], Content_Length="", Transfer_Encoding="chunked")
    handler.close_connection = True


def torn_without_length(handler: "Handler") -> None:
    """The same by a server that does not say how long the file is."""
    data = handler.server.files[BANK]
    send(handler, 200, data[: len(data) // 2], ETag=etag_of(data), Content_Length="", Connection="close")
    handler.close_connection = True


def negative_chunk(handler: "Handler") -> None:
    """An endless chunk of -1 bytes, which http.client would take whole."""
    send(handler, 200, b"-1\r\n", Content_Length="", Transfer_Encoding="chunked")
    while not handler.server.released.is_set():
        handler.wfile.write(b"x" * 65536)


def hang(handler: "Handler") -> None:
    handler.server.released.wait(30)


def trickle(handler: "Handler") -> None:
    """A byte now and then, in an answer without an end."""
    send(handler, 200, Content_Length="", Connection="close")
    while not handler.server.released.wait(0.02):
        handler.wfile.write(b"x")


def trickle_headers(handler: "Handler") -> None:
    """A byte of a header now and then, for 8 s."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(400):
        handler.server.released.wait(0.02)
        handler.wfile.write(b"x")


def endless(handler: "Handler") -> None:
    send(handler, 200, Content_Length="", Connection="close")
    while not handler.server.released.is_set():
        handler.wfile.write(b"x" * 65536)


def etag_of(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:16]}"'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "BankServer"

    def do_GET(self) -> None:
        self.server.gets.append((self.path, self.headers.get("If-None-Match", "")))
        if self.path in self.server.acts:
            self.server.acts[self.path](self)
        elif self.path not in self.server.files:
            send(self, 404)
        else:
            data = self.server.files[self.path]
            etag = etag_of(data) if self.server.has_etags else ""
            is_known = bool(etag) and self.headers.get("If-None-Match") == etag
            send(self, 304 if is_known else 200, b"" if is_known else data, ETag=etag)

    def log_message(self, *_: object) -> None:
        pass


class BankServer(HeldServer):
    """Answers with `files`, by their path; where `acts` has the path, with that instead."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.files: dict[str, bytes] = {}
        self.acts: dict[str, Act] = {}
        self.has_etags = True
        self.gets: list[tuple[str, str]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{BANK}"


def serving_banks() -> contextlib.AbstractContextManager[BankServer]:
    """A server that runs."""
    return running(BankServer())


def bank_of(model: FewShotModel, folder: Path, *names: str, verdict: Verdict | None = None) -> bytes:
    """The file of a bank with these classes, made from one picture; with a verdict on that for the first class."""
    bank = model.network.empty_bank(model.choice.precision)
    support = model.cache_support("cat", CAT)
    for name in names:
        bank.add(name, [support])
    if verdict is not None:
        bank.review = (_judged(model, names[0], verdict),)
    return saved(bank, folder)


def foreign_bank(model: FewShotModel, folder: Path, verdict: Verdict | None = None) -> bytes:
    """The file of a bank that another encoder made."""
    bank = SupportBank(replace(model.bank.identity, encoder_sha256="0" * 64))
    if verdict is not None:
        bank.add("cat", [model.cache_support("cat", CAT)])
        bank.review = (_judged(model, "cat", verdict),)
    return saved(bank, folder)


def _judged(model: FewShotModel, name: str, verdict: Verdict) -> ReviewItem:
    return ReviewItem(7, name, 0.9, 0.5, 1.0, encode_frame(CAT, model.manifest.image_size), verdict)


def saved(bank: SupportBank, folder: Path) -> bytes:
    path = folder / "made.safetensors"
    bank.save(path)
    data = path.read_bytes()
    path.unlink()
    return data


def sha_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
