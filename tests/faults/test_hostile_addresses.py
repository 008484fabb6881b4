"""Addresses that would make a player read files or run commands are refused, and no password in one is ever printed."""

import io
import json
import re
import time
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsvit_edge.live.health import Health
from fsvit_edge.live.sinks import webhook
from fsvit_edge.live.sinks.json_lines import state_record
from fsvit_edge.live.sinks.open import open_sink, sink_name
from fsvit_edge.live.sinks.webhook import WebhookSink, webhook_name
from fsvit_edge.live.sources import frame_channel, live
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.live.uri import parse_source
from fsvit_edge.runtime.errors import FsvitEdgeError

HOSTILE = [
    *("concat:a.mp4|b.mp4", "subfile,,start,0,end,9,,:a.mp4", "file:///etc/passwd", "file:a.mp4", "pipe:0", "data:,x"),
    *("crypto:a.mp4", "tee:a|b", "async:a.mp4", "cache:http://h/a", "ffconcat:a", "hls+http://h/a", "tcp://h:1"),
    *("udp://h:1", "rtp://h:1", "srt://h:1", "rtmp://h/a", "ftp://h/a.mp4", "gopher://h/a", "mmsh://h/a"),
    *("icecast://h/a", "sftp://h/a", "csi://0 ! filesink location=x", "csi://", "csi://-1", "csi://0;ls"),
    *("csi://$(ls)", "csi:0", "csi://0/../1", "csi://999", "rtsp://", "rtsp:///cam", "rtsp://h/a b", "rtsp://h:0/a"),
    *("rtsp://h:99999/a", "rtsp://h:x/a", "rtsp:h/a", "rtsp://[::1/a", "rtsp://h/a\n! filesink", "rtsp://h/a\0b"),
    *("http://", "http:///a", "http://h/ a", "https://h:-1/", "javascript:alert(1)", "videotestsrc ! appsink"),
    *("v4l2src device=/dev/video0 ! x", "avfoundation:0", "lavfi:testsrc", "kmsgrab:x", "x11grab::0", "", "\0", "\n"),
    *("-i a.mp4", "|ls", "$(ls)", "`ls`", "/dev/null", "/dev/zero", "/dev/stdin", "/proc/self/mem", "../../nope"),
    *("1000", "-1", "0x0", "1e3"),
]


def test_hostile_sources_are_refused_before_anything_is_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: pytest.fail("it reached OpenCV"))
    monkeypatch.setattr(frame_channel.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    assert len(set(HOSTILE)) >= 60
    for uri in HOSTILE:
        with pytest.raises(FsvitEdgeError) as refused:
            open_source(uri)
        assert "\n" not in str(refused.value)


@pytest.mark.slow(reason="ten thousand random addresses, 12 s")
@settings(max_examples=10_000)
@given(st.one_of(st.text(max_size=24), st.text("rtspcsihttp:/@!|; \n0", max_size=24)))
def test_a_stream_or_sensor_contains_only_an_address(uri: str) -> None:
    try:
        address = parse_source(uri)
    except FsvitEdgeError:
        return
    if address.kind in ("rtsp", "http"):
        assert re.match(r"(rtsps?|https?)://[^\s\x00-\x1f]+$", address.target)
    elif address.kind == "csi":
        assert address.target.isascii()
        assert address.target.isdecimal()


CANARY = "C4n4ryPw"


def canary_addresses(count: int) -> Iterator[str]:
    rng = np.random.default_rng(0)
    odd = list("@/#?:[]%&=+ ;,!~*'()\\|<>^`{}\"\n\té猫")

    def noise(longest: int) -> str:
        return "".join(rng.choice(odd, int(rng.integers(0, longest))))

    for number in range(count):
        scheme = ("rtsp", "rtsps", "http", "https", "mqtt", "RTSP", "ftp", "csi", "rtmp")[number % 9]
        host = ("host", "127.0.0.1", "[::1]", "", "h:99999", "h:1")[number % 6]
        secret = noise(4) + CANARY + noise(4)
        form = number % 4
        if form == 0:
            yield f"{scheme}://user:{secret}@{host}/{noise(5)}"
        elif form == 1:
            yield f"{scheme}://{secret}@{host}/cam"
        elif form == 2:
            yield f"{scheme}://{host}/cam?user=a&password={secret}"
        else:
            yield f"{scheme}://{host}/user=admin_password={secret}.sdp"


def texts(error: BaseException) -> str:
    """The text of an error, and everything else its traceback would print."""
    below = error.__cause__ if error.__suppress_context__ else error.__context__
    return str(error) + (texts(below) if below is not None else "")


@pytest.mark.slow(reason="opens five thousand addresses, 5 s")
def test_no_password_of_5000_reaches_any_output(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_process(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(frame_channel.subprocess, "Popen", no_process)
    monkeypatch.setattr(live, "is_reachable", lambda _: None)
    monkeypatch.setattr(webhook.ssl, "create_default_context", lambda: None)  # 20 ms each
    said, opened, hooks = io.StringIO(), 0, 0
    for uri in canary_addresses(5000):
        try:
            with open_source(uri) as source:
                while not source.status.message:
                    time.sleep(0.001)
                opened += 1
                health = Health(0.0, 0.0, "", 0.0, source.name, source.status, "m", "e", "p")
                said.write(json.dumps([health.to_dict(), state_record(health)]) + source.name + repr(parse_source(uri)))
        except FsvitEdgeError as error:
            said.write(texts(error))
        said.write(sink_name(uri) + webhook_name(uri))
        try:
            with WebhookSink(uri):
                hooks += 1
        except FsvitEdgeError as error:
            said.write(texts(error))
        if not uri.startswith("mqtt"):
            try:
                open_sink(uri, 25.0)
            except FsvitEdgeError as error:
                said.write(texts(error))
    out, err = capfd.readouterr()
    everything = said.getvalue() + out + err
    assert opened > 500
    assert hooks > 100
    assert len(everything) > 100_000
    assert CANARY not in everything, everything[everything.index(CANARY) - 200 :][:300]


def test_a_printed_password_is_found(capfd: pytest.CaptureFixture[str]) -> None:
    """The control: an address printed as typed is found."""
    print(next(canary_addresses(1)))
    assert CANARY in capfd.readouterr().out
