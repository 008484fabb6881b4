"""Results to a real broker on loopback if mosquitto is installed; addresses and missing brokers without it."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from blank import blank_frame, health, no_classes, until
from broker import Broker, free_port
from paho.mqtt.client import Client, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import MQTTErrorCode

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.sinks import mqtt
from fsvit_edge.live.sinks.open import open_sink, sink_name
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError, InputError


def frame(index: int) -> tuple[Frame, Prediction]:
    return blank_frame(index), no_classes()


@pytest.fixture
def listener(broker: Broker) -> Iterator[Client]:
    def record(message: MQTTMessage) -> None:
        broker.messages.append((message.topic, json.loads(message.payload), bool(message.retain)))

    client = broker.client(record)
    yield client
    client.disconnect()
    client.loop_stop()


def states(broker: Broker) -> list[object]:
    return [said["state"] for topic, said, _ in broker.messages if topic == "robot/cam/state"]


@pytest.mark.usefixtures("listener")
def test_results_and_states_are_published(broker: Broker) -> None:
    with open_sink(f"mqtt://me:secret@127.0.0.1:{broker.port}/robot/cam", 25.0) as sink:
        until(lambda: sink._client.is_connected())  # type: ignore[attr-defined]
        sink.report(health("connecting"))
        for index in range(5):
            sink.write(*frame(index))
            time.sleep(0.05)
        sink.report(health("lost"))
        until(lambda: states(broker)[-1:] == ["lost"])
        results = [said for topic, said, _ in broker.messages if topic == "robot/cam"]
    assert [said["sequence"] for said in results] == list(range(5))
    assert results[0]["event"] == "frame"
    until(lambda: states(broker)[-1:] == ["ended"])
    assert "connecting" in states(broker)


CRASH = """
import os, sys, time
sys.path[:0] = {path!r}
from blank import health
from fsvit_edge.live.sinks.open import open_sink
sink = open_sink(sys.argv[1], 25.0)
while not sink._client.is_connected():
    time.sleep(0.01)
sink.report(health("lost"))
time.sleep(0.3)
os._exit(9)
"""


@pytest.mark.usefixtures("listener")
def test_a_run_that_dies_is_published_as_offline(broker: Broker) -> None:
    code = CRASH.format(path=[str(Path(__file__).parent)])
    subprocess.run([sys.executable, "-c", code, f"mqtt://127.0.0.1:{broker.port}/robot/cam"], check=False)
    until(lambda: states(broker)[-1:] == ["offline"])


def test_a_broker_that_returns_is_found_and_nothing_waits_meanwhile(broker: Broker) -> None:
    with open_sink(f"mqtt://127.0.0.1:{broker.port}/robot/cam", 25.0, is_live=True) as sink:
        client = sink._client  # type: ignore[attr-defined]
        until(client.is_connected)
        assert sink.trouble == ""
        broker.stop()
        until(lambda: not client.is_connected())
        until(lambda: sink.trouble == "The broker does not respond; results are skipped until it does.")
        started = time.monotonic()
        for index in range(1000):
            sink.write(*frame(index))
        assert time.monotonic() - started < 8  # a result of a file waits for 10 s
        broker.start()
        until(lambda: sink.trouble == "")
        assert client.is_connected()
    assert sink.trouble == ""


def test_a_broker_that_refuses_gives_the_reason(broker: Broker) -> None:
    broker.stop()
    conf = broker.folder / "conf"
    conf.write_text(conf.read_text().replace("allow_anonymous true", "allow_anonymous false"))
    broker.start()
    with open_sink(f"mqtt://me:S3cret@127.0.0.1:{broker.port}/robot/cam", 25.0) as sink:
        until(lambda: sink.trouble != "")
        time.sleep(0.5)  # the broker also disconnects
        assert sink.trouble == "The broker refuses the connection: Not authorized."


def test_a_missing_broker_is_not_a_failure() -> None:
    with open_sink(f"mqtt://127.0.0.1:{free_port()}/robot/cam", 25.0, is_live=True) as sink:
        sink.report(health("live"))
        sink.write(*frame(0))
        until(lambda: "does not respond" in sink.trouble)
    assert sink.skipped == 1


def test_results_of_a_file_that_no_broker_takes_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "_CONNECT_WITHIN_S", 0.2)
    port = free_port()
    reason = (
        rf"^2 of 2 results did not reach mqtt://127\.0\.0\.1:{port}/cam: The broker does not respond; .* run it again"
    )
    sink = open_sink(f"mqtt://127.0.0.1:{port}/cam", 25.0)
    until(lambda: sink.trouble != "")
    started = time.monotonic()
    sink.write(*frame(0))
    sink.write(*frame(1))  # waits no second time
    assert time.monotonic() - started < 20
    with pytest.raises(FsvitEdgeError, match=reason), sink:
        pass


ACCEPTED, SUBSCRIBED = b"\x20\x02\x00\x00", b"\x90\x03\x00\x01\x00"
ACKNOWLEDGED = b"".join(bytes((0x40, 2, 0, number)) for number in range(1, 100))
"""Answers to all messages that a short run can send, whatever their numbers."""


class SlowBroker:
    """Accepts one client after a while, or never, and keeps what it sends.

    Args:
        after_s: When it accepts the client; None: never.
        takes: How many times it receives and answers what came; None: until the client leaves.
    """

    def __init__(self, after_s: float | None, takes: int | None = None) -> None:
        self._after_s, self._takes = after_s, takes
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.received, self.may_leave = b"", threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._listening, self._listening.accept()[0] as client:
            client.recv(1000)
            if self._after_s is not None:
                time.sleep(self._after_s)
                client.sendall(ACCEPTED)
            with contextlib.suppress(ConnectionError):  # the client has left
                while self._takes != 0 and (data := client.recv(10_000)):
                    self.received += data
                    self._takes = None if self._takes is None else self._takes - 1
                    if self._after_s is not None:
                        client.sendall(SUBSCRIBED + ACKNOWLEDGED)
            if self._takes == 0:
                self.may_leave.wait(100)

    def everything(self) -> bytes:
        """What came until the client left."""
        self._thread.join(60)
        return self.received


def test_results_of_a_file_wait_for_a_slow_broker() -> None:
    broker = SlowBroker(after_s=0.5)
    with open_sink(f"mqtt://127.0.0.1:{broker.port}/cam", 25.0) as sink:
        for index in range(3):
            sink.write(*frame(index))
    received = broker.everything()
    assert (received.count(b'"event": "frame"'), received.count(b'"ended"'), sink.skipped) == (3, 1, 0)


@pytest.mark.parametrize(
    ("takes", "connect_within_s", "reason"),
    [
        (0, 0.5, r"2 of 2 results did not reach mqtt://.*/cam: The broker takes no more results; .* run it again"),
        (1, 60.0, r"^mqtt://.*/cam has not confirmed that it has the 2 results; check the broker and run it again\.$"),
    ],
    ids=["after the connection", "after the subscription"],
)
def test_results_that_a_broker_never_reads_are_a_failure_and_do_not_count(
    monkeypatch: pytest.MonkeyPatch, takes: int, connect_within_s: float, reason: str
) -> None:
    """The system takes them all the same."""
    monkeypatch.setattr(mqtt, "_CONNECT_WITHIN_S", connect_within_s)
    for name in ("_SEND_WITHIN_S", "_SILENT_S"):
        monkeypatch.setattr(mqtt, name, 0.5)
    broker = SlowBroker(after_s=0.0, takes=takes)
    sink = open_sink(f"mqtt://127.0.0.1:{broker.port}/cam", 25.0)
    until(lambda: sink._client.is_connected())  # type: ignore[attr-defined]
    sink.write(*frame(0))
    sink.write(*frame(1))
    with pytest.raises(FsvitEdgeError, match=reason), sink:
        pass
    assert sink.skipped == 2
    broker.may_leave.set()


def test_results_of_a_camera_that_a_broker_never_reads_count_as_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "_SILENT_S", 0.2)
    broker = SlowBroker(after_s=0.0, takes=0)
    with open_sink(f"mqtt://127.0.0.1:{broker.port}/cam", 25.0, is_live=True) as sink:
        until(lambda: sink._client.is_connected())  # type: ignore[attr-defined]
        for index in range(5):
            sink.write(*frame(index))
            time.sleep(0.1)
        assert "takes no more results" in sink.trouble
        sink.in_hurry = True
    assert sink.skipped == 5
    broker.may_leave.set()


def test_a_broker_that_never_answers_is_told_and_results_of_a_camera_do_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_sink(f"mqtt://127.0.0.1:{SlowBroker(after_s=None).port}/cam", 25.0, is_live=True) as sink:
        monkeypatch.setattr(mqtt, "_SILENT_S", 60.0)
        sink.report(health("live"))
        assert sink.trouble == ""
        monkeypatch.setattr(mqtt, "_SILENT_S", 0.0)
        sink.report(health("live"))
        assert "does not respond" in sink.trouble
        sink.write(*frame(0))
    assert sink.skipped == 1


def test_a_result_that_is_lost_with_the_connection_is_counted_and_ends_nothing() -> None:
    with open_sink(f"mqtt://127.0.0.1:{free_port()}/cam", 25.0, is_live=True) as sink:
        lost = MQTTMessageInfo(1)
        lost.rc = MQTTErrorCode.MQTT_ERR_CONN_LOST
        sink._unsent = lost  # type: ignore[attr-defined]
        sink.write(*frame(1))
    assert sink.skipped == 2


@pytest.mark.parametrize(
    "uri",
    ["mqtt://", "mqtt://host", "mqtt://host/", "mqtt://host:x/a", "mqtt://host/a#b", "mqtt://host/a+b", "mqtt://host/a?b",
     "mqtt://me:S3cret@/topic", "mqtt://me:S3cret@host:99999/topic"],
)  # fmt: skip
def test_an_invalid_address_is_refused_without_its_password(uri: str) -> None:
    with pytest.raises(InputError, match=r"Invalid MQTT address .*; expected mqtt://HOST/TOPIC") as refused:
        open_sink(uri, 25.0)
    assert "S3cret" not in str(refused.value)


def test_the_name_contains_no_password() -> None:
    assert sink_name("mqtt://me:S3cret@host:1883/robot/cam") == "mqtt://host:1883/robot/cam"


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(EnvironmentLacksError, match=r'needs paho-mqtt.*pip install "fsvit-edge\[mqtt\]"'):
        open_sink("mqtt://host/topic", 25.0)
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", SimpleNamespace())  # without what is imported from it
    with pytest.raises(EnvironmentLacksError, match=r"needs paho-mqtt, which is installed and cannot be loaded \("):
        open_sink("mqtt://host/topic", 25.0)
