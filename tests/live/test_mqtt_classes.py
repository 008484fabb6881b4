"""Events, the state of each class and Home Assistant's discovery, on a real broker if mosquitto is installed."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import jinja2
import numpy as np
import pytest
from blank import blank_frame, health, until
from broker import Broker
from paho.mqtt.client import MQTTMessage

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.events import Event, Sighting
from fsvit_edge.live.run import RunOptions, run_source
from fsvit_edge.live.sinks.home_assistant import discovery_messages
from fsvit_edge.live.sinks.mqtt import MqttSink
from fsvit_edge.live.sinks.mqtt_topics import ClassTopics, topic_level
from fsvit_edge.runtime.errors import InputError

NODE = "fsvit_edge_" + topic_level("robot/cam")


def answer(**scores: float) -> Prediction:
    """An answer in which "_" in a name stands for a space."""
    values = np.array(list(scores.values()), np.float32)
    names = tuple(name.replace("_", " ") for name in scores)
    return Prediction(names, values, np.full_like(values, 0.5), np.zeros((48, 64), np.uint8), None, {})


def event(sequence: int) -> Event:
    best = Sighting(0.9, None, sequence, np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.bool_))
    return Event("appeared", "cup", "cam", 1.0, 2.0, None, best)


@contextmanager
def open_mqtt(broker: Broker, home_assistant: bool = False) -> Iterator[MqttSink]:
    sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/robot/cam", home_assistant, is_live=True)
    with sink:
        until(lambda: sink._has_subscribed)
        yield sink


def kept(broker: Broker) -> dict[str, bytes]:
    """The retained messages of the classes."""
    return {topic: said for topic, said in broker.retained().items() if topic != "robot/cam/state"}


def keep(broker: Broker, **messages: bytes) -> None:
    """Leave retained messages, as an earlier run would; "__" in a name stands for a slash."""
    client = broker.client(lambda _message: None)
    for topic, payload in messages.items():
        client.publish(topic.replace("__", "/"), payload, qos=1, retain=True).wait_for_publish(60)
    client.disconnect()
    client.loop_stop()


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("cup", "cup"),
        ("Cup-2_b", "Cup-2_b"),
        ("coffee mug", "coffee_mug_5e949774"),
        ("a/+#", "a__2f2f414f"),
        ("Öl", "_l_81ebde1c"),
        ("x" * 41, f"{'x' * 40}_3164596d"),
    ],
)
def test_a_name_becomes_one_level_of_a_topic_that_never_changes(name: str, level: str) -> None:
    assert topic_level(name) == level


def test_no_two_names_become_the_same_topic() -> None:
    names = ["a b", "a_b", "a/b", "a+b", "a  b", "ä b", "ö b", "A b", "x" * 64, "x" * 63, "", "_"]
    names += [topic_level(name) for name in names]  # a class may be called what another one became
    assert len({name.replace(" ", "_").replace("/", "_") for name in names}) < len(set(names))  # control
    assert len({topic_level(name) for name in set(names)}) == len(set(names))


def test_the_state_of_each_class_is_kept_and_cleared_with_the_class(broker: Broker) -> None:
    with open_mqtt(broker) as sink:
        sink.report(health())
        time.sleep(0.1)
        assert kept(broker) == {}  # nothing before the first frame
        sink.write(blank_frame(0), answer(cup=0.9, coffee_mug=0.2))
        mug = topic_level("coffee mug")
        expected = {
            "robot/cam/classes": json.dumps({"cup": "cup", mug: "coffee mug"}).encode(),
            "robot/cam/cup/state": b"ON",
            "robot/cam/cup/score": b"0.9000",
            f"robot/cam/{mug}/state": b"OFF",
            f"robot/cam/{mug}/score": b"0.2000",
        }
        until(lambda: kept(broker) == expected)
        sink.write(blank_frame(1), answer(cup=0.1, pen=0.9))  # the mug was renamed
        renamed = {
            "robot/cam/classes": b'{"cup": "cup", "pen": "pen"}',
            "robot/cam/cup/state": b"OFF",
            "robot/cam/cup/score": b"0.1000",
            "robot/cam/pen/state": b"ON",
            "robot/cam/pen/score": b"0.9000",
        }
        until(lambda: kept(broker) == renamed)
        sink.write(blank_frame(2), answer())
        until(lambda: kept(broker) == {"robot/cam/classes": b"{}"})


def test_what_has_not_changed_is_not_published_again(broker: Broker) -> None:
    heard: list[MQTTMessage] = []
    client = broker.client(heard.append)
    with open_mqtt(broker) as sink:
        for index in range(20):
            sink.write(blank_frame(index), answer(cup=0.9 + 0.001 * index))
            time.sleep(0.01)
        sink.write(blank_frame(21), answer(cup=0.1))  # control
        until(lambda: b"OFF" in [message.payload for message in heard])
    client.disconnect()
    client.loop_stop()
    assert [message.payload for message in heard if message.topic == "robot/cam/cup/state"] == [b"ON", b"OFF"]
    assert [message.topic for message in heard].count("robot/cam/classes") == 1


def test_a_score_is_published_when_it_has_moved_or_after_ten_seconds() -> None:
    topics = ClassTopics("t", home_assistant=False)
    scores = [(0.0, 0.50), (1.0, 0.54), (2.0, 0.56), (3.0, 0.52), (11.9, 0.53), (12.1, 0.53), (12.2, 0.55)]
    shown = [topics.messages(answer(cup=score), at_s)["t/cup/score"] for at_s, score in scores]
    assert shown == [b"0.5000", b"0.5000", b"0.5600", b"0.5600", b"0.5600", b"0.5300", b"0.5300"]


def test_events_are_published_once_and_not_kept(broker: Broker) -> None:
    heard: list[MQTTMessage] = []
    client = broker.client(heard.append)
    with open_mqtt(broker) as sink:
        sink.tell(event(7))
        until(lambda: any(message.topic == "robot/cam/events" for message in heard))
    client.disconnect()
    client.loop_stop()
    events = [message for message in heard if message.topic == "robot/cam/events"]
    assert [(one.qos, one.retain) for one in events] == [(1, False)]
    said = json.loads(events[0].payload)
    assert (said["event"], said["name"], said["best_sequence"]) == ("appeared", "cup", 7)
    assert "robot/cam/events" not in broker.retained()


def test_events_wait_for_the_broker_but_not_without_end(broker: Broker) -> None:
    heard: list[MQTTMessage] = []
    with open_mqtt(broker) as sink:
        broker.stop()
        until(lambda: not sink._has_subscribed)
        started = time.monotonic()
        for sequence in range(1000):
            sink.tell(event(sequence))
        assert time.monotonic() - started < 20
        is_heard, connected = threading.Event(), sink._client.on_connect
        sink._client.on_connect = lambda *answer: (is_heard.wait(60), connected(*answer))
        broker.start()
        client = broker.client(heard.append)
        is_heard.set()
        until(lambda: len([one for one in heard if one.topic == "robot/cam/events"]) >= 256)
        sink.tell(event(5000))
        until(lambda: b'"best_sequence": 5000' in heard[-1].payload)
    client.disconnect()
    client.loop_stop()
    events = [json.loads(one.payload)["best_sequence"] for one in heard if one.topic == "robot/cam/events"]
    assert events == [*range(256), 5000]


def test_a_broker_that_forgot_everything_is_told_again_without_a_frame(broker: Broker) -> None:
    with open_mqtt(broker, home_assistant=True) as sink:
        sink.report(health())
        sink.write(blank_frame(0), answer(cup=0.9))
        until(lambda: len(kept(broker)) == 5)
        before = kept(broker)
        broker.stop()
        until(lambda: not sink._has_subscribed)
        broker.start()
        assert kept(broker) == {}  # control: it has forgotten
        until(lambda: sink._has_subscribed)
        sink.report(health())
        until(lambda: kept(broker) == before)
        assert json.loads(broker.retained()["robot/cam/state"])["state"] == "live"


def test_a_class_removed_while_the_broker_was_away_is_cleared(broker: Broker) -> None:
    conf = broker.folder / "conf"
    conf.write_text(f"{conf.read_text()}persistence true\npersistence_location {broker.folder}/\n")
    broker.stop()
    broker.start()
    with open_mqtt(broker, home_assistant=True) as sink:
        sink.write(blank_frame(0), answer(cup=0.9, pen=0.9))
        until(lambda: len(kept(broker)) == 9)
        broker.stop()
        until(lambda: not sink._has_subscribed)
        sink.write(blank_frame(1), answer(cup=0.9))
        broker.start()
        assert len(kept(broker)) == 9  # control: the broker remembers the class
        until(lambda: sink._has_subscribed)
        sink.report(health())
        until(lambda: len(kept(broker)) == 5)
        assert not any("pen" in topic for topic in kept(broker))


def test_what_an_earlier_run_left_is_cleared_and_nothing_else(broker: Broker) -> None:
    with open_mqtt(broker, home_assistant=True) as sink:
        sink.write(blank_frame(0), answer(cup=0.9, pen=0.9))
        until(lambda: len(kept(broker)) == 9)
    assert len(kept(broker)) == 9  # a run that ended leaves its classes, which Home Assistant shows as unavailable
    foreign = {"robot/cam/lamp/state": b"ON", "homeassistant/sensor/other/pen/config": b"{}"}
    keep(broker, **{topic.replace("/", "__"): payload for topic, payload in foreign.items()})
    with open_mqtt(broker, home_assistant=True) as sink:
        sink.write(blank_frame(0), answer(cup=0.9))
        sink.report(health())

        def is_clear() -> bool:
            sink.report(health())
            return len(kept(broker)) == 7

        until(is_clear)
        assert foreign.items() <= kept(broker).items()
        assert [topic for topic in kept(broker) if "pen" in topic] == ["homeassistant/sensor/other/pen/config"]


@pytest.mark.parametrize(
    "left", [b"", b"\xff", b"7", b"[[", b'["+", "#", "a/b", 3]', b'"lamp"', b"[" * 100_000], ids=lambda left: left[:9]
)
def test_what_others_left_on_the_topic_is_no_harm(left: bytes) -> None:
    topics = ClassTopics("robot/cam", home_assistant=True)
    found = topics.earlier("robot/cam/classes", left)
    assert all(topic.count("/") in (3, 4) and not set(topic) & set("+#") for topic in found)
    assert "robot/cam/lamp/state" not in found
    assert "robot/cam/lamp/state" in topics.earlier("robot/cam/classes", b'{"lamp": "lamp"}')  # control


def test_home_assistant_is_told_as_its_documentation_says(broker: Broker) -> None:
    with open_mqtt(broker, home_assistant=True) as sink:
        sink.write(blank_frame(0), answer(cup=0.9))
        until(lambda: len(kept(broker)) == 5)
        found = {topic: json.loads(said) for topic, said in kept(broker).items() if topic.startswith("homeassistant/")}
        sink.write(blank_frame(1), answer())
        until(lambda: not any(topic.startswith("homeassistant/") for topic in kept(broker)))
    device = {
        "identifiers": [NODE],
        "name": "robot/cam",
        "manufacturer": "fsvit-edge",
        "model": "Camera",
        "sw_version": version("fsvit-edge"),
    }
    shared = {
        "availability_topic": "robot/cam/state",
        "availability_template": "{{ 'online' if value_json.state == 'live' else 'offline' }}",
        "payload_available": "online",
        "payload_not_available": "offline",
        "qos": 1,
        "device": device,
        "origin": {"name": "fsvit-edge", "sw_version": version("fsvit-edge")},
    }
    assert found == {
        f"homeassistant/binary_sensor/{NODE}/cup/config": {
            "name": "cup",
            "unique_id": f"{NODE}_cup",
            "state_topic": "robot/cam/cup/state",
            "payload_on": "ON",
            "payload_off": "OFF",
            "device_class": "occupancy",
            **shared,
        },
        f"homeassistant/sensor/{NODE}/cup/config": {
            "name": "cup score",
            "unique_id": f"{NODE}_cup_score",
            "state_topic": "robot/cam/cup/score",
            "value_template": "{{ (value | float * 100) | round(1) }}",
            "unit_of_measurement": "%",
            "state_class": "measurement",
            **shared,
        },
    }


def test_without_the_option_home_assistant_is_told_nothing(broker: Broker) -> None:
    with open_mqtt(broker) as sink:
        sink.write(blank_frame(0), answer(cup=0.9))
        until(lambda: len(kept(broker)) == 3)
        assert not any(topic.startswith("homeassistant/") for topic in kept(broker))


def rendered(key: str, value: bytes) -> str:
    """What Home Assistant makes of a message by a template of the announcement."""
    messages = map(json.loads, discovery_messages("t", "t", "cup", "cup").values())
    template = next(message[key] for message in messages if key in message)
    text = value.decode()
    return jinja2.Template(template).render(value=text, value_json=json.loads(text))


def test_a_class_is_available_only_while_the_source_is_live(broker: Broker) -> None:
    said: list[bytes] = []
    client = broker.client(lambda message: said.append(message.payload) if message.topic == "robot/cam/state" else None)
    keep(broker, robot__cam__state=b'{"event": "state", "state": "ended"}')
    with open_mqtt(broker) as sink:
        for state in ("live", "lost", "live"):
            sink.report(health(state))
            time.sleep(0.05)
    until(lambda: len(said) == 5)
    client.disconnect()
    client.loop_stop()
    assert [rendered("availability_template", one) for one in said] == [
        *("offline", "online", "offline", "online", "offline")
    ]
    assert rendered("availability_template", b'{"event": "state", "state": "offline"}') == "offline"  # the will


def test_the_score_is_shown_in_percent() -> None:
    assert rendered("value_template", b"0.9312") == "93.1"


def test_the_option_needs_a_sink_for_mqtt() -> None:
    with pytest.raises(InputError, match=r"--home-assistant needs an MQTT sink.*--sink mqtt://HOST/TOPIC"):
        run_source("demo", ["out.jsonl"], RunOptions(home_assistant=True))


def test_a_run_of_the_demo_is_found_by_home_assistant(broker: Broker) -> None:
    heard: list[MQTTMessage] = []
    client = broker.client(heard.append)
    words = ["run", "demo", "--max-frames", "25", "--steady", "--home-assistant"]
    command = [sys.executable, "-m", "fsvit_edge.cli.main", *words, "--sink", f"mqtt://127.0.0.1:{broker.port}/d"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    until(lambda: any(one.topic == "d/state" and b'"ended"' in one.payload for one in heard))
    client.disconnect()
    client.loop_stop()
    names = json.loads(broker.retained()["d/classes"])
    assert names
    found = [one.topic for one in heard if one.topic.startswith("homeassistant/binary_sensor/fsvit_edge_d/")]
    assert [topic.split("/")[3] for topic in found] == list(names)
    events = [json.loads(one.payload) for one in heard if one.topic == "d/events"]
    assert "appeared" in {one["event"] for one in events}
    assert {one["name"] for one in events} <= set(names.values())
