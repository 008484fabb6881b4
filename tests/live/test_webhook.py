"""Events posted to a server in a thread, which may be slow, fail, hang, redirect, close or be gone."""

import base64
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blank import blank_frame, health, no_classes, until
from web_server import SECRET, Act, Handler, Server, certify, close, hang, nonsense, serving, slow, status, trickle

from fsvit_edge.live.events import Event, EventKind, Sighting, event_record
from fsvit_edge.live.health import SinkStatus
from fsvit_edge.live.sink_worker import SinkWorker
from fsvit_edge.live.sinks.base import EventOptions
from fsvit_edge.live.sinks.open import open_sink
from fsvit_edge.live.sinks.webhook import WebhookSink, webhook_name
from fsvit_edge.runtime.errors import InputError


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as started:
        yield started


def event(kind: EventKind = "appeared", name: str = "cup") -> Event:
    duration_s = None if kind == "appeared" else 1.0
    best = Sighting(0.9, (1, 2, 3, 4), 7, blank_frame().image, np.zeros(blank_frame().image.shape[:2], np.bool_))
    return Event(kind, name, "cam", 1_700_000_000.0, time.monotonic(), duration_s, best)


def impatient(uri: str, cooldown_s: float = 0.0) -> WebhookSink:
    return WebhookSink(uri, cooldown_s, pauses_s=(0.02, 0.05), timeout_s=60.0)


def test_an_event_is_posted_as_its_json_record(server: Server) -> None:
    one = event()
    with WebhookSink(server.uri) as sink:
        sink.tell(one)
        until(lambda: len(server.posts) == 1)
    ((path, headers, said),) = server.posts
    assert path == f"/{SECRET}?token={SECRET}"
    assert headers["Content-Type"] == "application/json"
    assert said == event_record(one)
    assert (said["name"], said["event"], said["best_box_xyxy"]) == ("cup", "appeared", [1, 2, 3, 4])
    assert sink.trouble == ""


def test_user_and_password_of_the_address_are_sent_as_basic_authorization(server: Server) -> None:
    with WebhookSink(f"http://me:p%40ss@127.0.0.1:{server.server_port}") as sink:
        sink.tell(event())
    ((path, headers, _),) = server.posts
    assert path == "/"
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"me:p@ss"


def test_what_is_told_just_before_the_end_is_posted(server: Server) -> None:
    server.usual = slow
    with WebhookSink(server.uri) as sink:
        for number in range(5):
            sink.tell(event(name=f"class {number}"))
    assert len(server.posts) == 5
    assert sink.trouble == ""


# ------------------------------------------------------------------------------------------------------------ cooldown


def test_within_the_cooldown_a_class_that_comes_and_goes_is_told_once(server: Server) -> None:
    with WebhookSink(server.uri, cooldown_s=60) as sink:
        for _ in range(3):
            sink.tell(event("appeared"))
            sink.tell(event("left"))
        sink.tell(event("appeared", "pen"))
    assert server.told == [("appeared", "cup"), ("left", "cup"), ("appeared", "pen")]


def test_without_a_cooldown_every_event_is_told(server: Server) -> None:
    with WebhookSink(server.uri, cooldown_s=0) as sink:
        for _ in range(3):
            sink.tell(event("appeared"))
            sink.tell(event("left"))
    assert server.told == [("appeared", "cup"), ("left", "cup")] * 3


def test_a_class_that_is_back_is_told_when_the_cooldown_ends_and_so_is_its_end(server: Server) -> None:
    with WebhookSink(server.uri, cooldown_s=0.8) as sink:
        started = time.monotonic()
        sink.tell(event("appeared"))
        sink.tell(event("left"))
        sink.tell(event("appeared"))
        until(lambda: len(server.posts) == 3)
        assert time.monotonic() - started > 0.75
        sink.tell(event("left"))
    assert server.told == [("appeared", "cup"), ("left", "cup")] * 2


# --------------------------------------------------------------------------------------------------- servers that fail


@pytest.mark.parametrize(
    ("act", "trouble"),
    [
        (status(503), "The server answers 503 Service Unavailable; events are tried again, and the newest 100 wait."),
        (status(429), "The server answers 429 Too Many Requests; events"),
        (close, "The server does not respond (it closed the connection); events"),
        (hang, "The server does not respond (no answer within 1 s); events"),
        (trickle, "The server does not respond (no answer within 1 s); events"),
        (nonsense, "The server does not respond (its answer is not HTTP)"),
    ],
    ids=["503", "429", "close", "hang", "trickle", "nonsense"],
)
def test_what_may_pass_is_trouble_and_tried_again(server: Server, act: Act, trouble: str) -> None:
    looked = threading.Event()

    def take_later(handler: Handler) -> None:
        looked.wait(60)  # or the trouble may be over before we look
        status(204)(handler)

    server.acts = [act, take_later]
    with WebhookSink(server.uri, pauses_s=(0.3, 0.3), timeout_s=1.0 if act in (hang, trickle) else 60.0) as sink:
        sink.tell(event())
        until(lambda: sink.trouble != "")
        seen = sink.trouble
        looked.set()
        until(lambda: sink.trouble == "")
    assert seen.startswith(trouble)
    assert SECRET not in seen
    assert server.told == [("appeared", "cup")] * 2


@pytest.mark.parametrize(
    ("act", "trouble"),
    [
        (status(404), "The server refuses events (404 Not Found); check the address."),
        (status(499), "The server refuses events (499); check the address."),
    ],
)
def test_what_the_server_refuses_is_not_tried_again(server: Server, act: Act, trouble: str) -> None:
    server.acts = [act]
    with impatient(server.uri) as sink:
        sink.tell(event())
        until(lambda: sink.trouble != "")
        assert sink.trouble == trouble
        sink.tell(event(name="pen"))
        until(lambda: len(server.posts) == 2)
        until(lambda: sink.trouble != trouble)
        assert sink.trouble == "The server responds again, but 1 event could not be sent."
        sink.tell(event(name="key"))  # does not hide it before the run has said it
        until(lambda: len(server.posts) == 3)
        sink.report(health())
        assert sink.trouble == "The server responds again, but 1 event could not be sent."
        sink.report(replace(health(), sinks=(SinkStatus("webhook", trouble=sink.trouble),)))
        assert sink.trouble == ""
    assert [name for _, name in server.told] == ["cup", "pen", "key"]


@pytest.mark.parametrize("number", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server: Server, number: int) -> None:
    with serving() as other:
        server.usual = status(number, other.uri)
        with impatient(server.uri) as sink:
            sink.tell(event())
            until(lambda: sink.trouble != "")
            trouble = sink.trouble
    assert trouble.startswith(f"The server redirects ({number} ")
    assert (len(server.posts), other.posts, other.gets, server.gets) == (1, [], 0, 0)


def test_each_event_is_tried_a_few_times_with_growing_pauses(server: Server) -> None:
    tried: list[float] = []

    def fail(handler: Handler) -> None:
        tried.append(time.monotonic())
        status(500)(handler)

    server.usual = fail
    with WebhookSink(server.uri, pauses_s=(0.1, 0.3)) as sink:
        sink.tell(event())
        until(lambda: len(tried) == 3)
        time.sleep(0.5)
    assert len(tried) == 3
    assert tried[1] - tried[0] >= 0.1
    assert tried[2] - tried[1] >= 0.3
    assert sink.trouble == "The run has ended, and 1 event could not be sent."


def test_events_wait_for_a_server_that_is_down_and_the_oldest_are_dropped_first() -> None:
    with serving() as gone:
        sink = WebhookSink(gone.uri, 0, pauses_s=(0.2,) * 50)
    with sink:
        sink.tell(event(name="first"))
        until(lambda: sink.trouble.startswith("The server does not respond (Connection refused); "))
        for number in range(105):
            sink.tell(event(name=str(number)))
        with serving() as back:  # at another port: the old one may be another's by now
            sink._parts = sink._parts._replace(netloc=f"127.0.0.1:{back.server_port}")
            until(lambda: len(back.posts) == 101)
            until(lambda: sink.trouble == "The server responds again, but 5 events could not be sent.")
    assert [name for _, name in back.told] == ["first", *map(str, range(5, 105))]


@pytest.mark.parametrize(
    ("in_hurry", "within_s"),
    [(True, 4.0), pytest.param(False, 20.0, marks=pytest.mark.slow(reason="waits for the server's time to end, 5 s"))],
)
def test_a_hanging_server_delays_neither_a_frame_nor_the_end(server: Server, in_hurry: bool, within_s: float) -> None:
    server.usual = hang
    sink = WebhookSink(server.uri)
    worker = SinkWorker(sink, "webhook", False, lambda *_: None)  # a file, whose frames wait for slow sinks
    worker.tell(event())
    until(lambda: len(server.posts) == 1)
    started = time.monotonic()
    for index in range(100):
        worker.put(blank_frame(index), no_classes())
        worker.tell(event(name=str(index)))
    assert time.monotonic() - started < 4.0  # a try takes up to 5 s
    started = time.monotonic()
    assert worker.finish(60 if in_hurry else None)
    assert time.monotonic() - started < within_s
    assert worker.status.failure == ""
    assert "events could not be sent" in worker.status.trouble
    until(lambda: not sink._thread.is_alive())


# -------------------------------------------------------------------------------------------------------- certificates


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, for a certificate")
@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_certificate_that_is_not_trusted_is_trouble(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_trusted: bool
) -> None:
    certificate = certify(server, tmp_path)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with WebhookSink(server.uri.replace("http:", "https:"), pauses_s=(), timeout_s=60) as sink:
        sink.tell(event())
        until(lambda: bool(server.posts or sink.trouble))
        trouble = sink.trouble
    assert len(server.posts) == is_trusted
    if not is_trusted:
        assert trouble.startswith("The certificate of the server is not trusted (self")
        assert "certificate); if it is yours, name it with SSL_CERT_FILE=FILE; " in trouble


def test_a_server_without_tls_is_trouble_in_one_sentence(server: Server) -> None:
    with WebhookSink(server.uri.replace("http:", "https:"), pauses_s=(30,), timeout_s=60) as sink:
        sink.tell(event())
        until(lambda: sink.trouble != "")
        assert sink.trouble.startswith("The server does not respond (TLS: ")


# ----------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("https://host/s3cret?s3cret#s3cret", "https://host"),
        ("HTTP://host:8123?s3cret", "http://host:8123"),
        ("https://s3cret:s3cret@host:1/", "https://host:1"),
        ("https://s3cret@[::1]:1/", "https://[::1]:1"),
        ("https://me:s3cret/s3cret@host/", "https://***"),
        ("https://s3cret s3cret", "https://***"),
        ("https:/s3cret", "***"),
        ("s3cret://host", "***"),
    ],
)
def test_only_scheme_host_and_port_are_printed(uri: str, name: str) -> None:
    assert webhook_name(uri) == name


@pytest.mark.parametrize(
    "uri",
    [
        *("", "s3cret", "ftp://host/s3cret", "https:///s3cret", "https://host:s3cret/", "https://host:0/s3cret"),
        *("https://host/s3cret#s3cret", "https://host/s3 cret", "https://host/s3cret\n", "https://höst/s3cret"),
        *("https://me:s3cret/s3cret@host/", "https://[s3cret/"),
    ],
)
def test_an_invalid_address_is_refused_without_its_secret(uri: str) -> None:
    with pytest.raises(InputError, match="Invalid webhook") as refused:
        WebhookSink(uri)
    assert "cret" not in str(refused.value)


def test_options_do_not_show_the_addresses() -> None:
    assert SECRET not in repr(EventOptions(webhooks=(f"https://host/{SECRET}",)))


def test_a_webhook_given_as_a_sink_is_refused_without_its_secret() -> None:
    with pytest.raises(InputError, match="'https://host'; post events there with --webhook") as refused:
        open_sink(f"https://host/{SECRET}", 25.0)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("cooldown_s", [-1.0, float("nan"), float("inf")])
def test_a_cooldown_is_a_time(cooldown_s: float) -> None:
    with pytest.raises(InputError, match="--cooldown must be at least 0 seconds"):
        EventOptions(cooldown_s=cooldown_s)
