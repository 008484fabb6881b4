"""A web server in a thread that takes posts and may be slow, fail, hang, redirect or close, as the test says."""

import contextlib
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

SECRET = "s3cret"
Act = Callable[["Handler"], None]


def status(number: int, location: str = "") -> Act:
    def act(handler: "Handler") -> None:
        handler.send_response(number, f"{SECRET} \x1b[31m")  # a server may repeat the address in its own words
        if location:
            handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return act


def hang(handler: "Handler") -> None:
    handler.server.released.wait(30)


def close(handler: "Handler") -> None:
    handler.close_connection = True


def slow(handler: "Handler") -> None:
    time.sleep(0.1)
    status(200)(handler)


def nonsense(handler: "Handler") -> None:
    handler.wfile.write(b"nonsense\r\n\r\n")


def trickle(handler: "Handler") -> None:
    handler.wfile.write(b"HTTP/1.1 ")
    while not handler.server.released.wait(0.05):
        handler.wfile.write(b" ")


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, dict(self.headers), json.loads(body)))
        act = self.server.acts.pop(0) if self.server.acts else self.server.usual
        act(self)

    def do_GET(self) -> None:
        self.server.gets += 1
        status(200)(self)

    def log_message(self, *_: object) -> None:
        pass


class HeldServer(ThreadingHTTPServer):
    """A server whose answers may wait until they are released, at the latest when it ends."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.released = threading.Event()

    def handle_error(self, *_: object) -> None:
        """The client may have cut the connection."""


AnyServer = TypeVar("AnyServer", bound=HeldServer)


class Server(HeldServer):
    """Answers posts with `acts`, one after the other, and then as `usual`."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.posts: list[tuple[str, dict[str, str], dict[str, object]]] = []
        self.gets = 0
        self.acts: list[Act] = []
        self.usual: Act = status(204)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{SECRET}?token={SECRET}"

    @property
    def told(self) -> list[tuple[object, object]]:
        return [(said["event"], said["name"]) for _, _, said in self.posts]


@contextlib.contextmanager
def running(server: AnyServer) -> Iterator[AnyServer]:
    """Run a server until the block ends."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


def serving() -> contextlib.AbstractContextManager[Server]:
    """A server that runs."""
    return running(Server())


def certify(server: HeldServer, folder: Path) -> Path:
    """Let a server speak TLS by a certificate of its own, and return the file of that; needs openssl."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return certificate
