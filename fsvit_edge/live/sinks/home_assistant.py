"""Home Assistant's MQTT discovery: a binary sensor and a sensor for each class.

One message per entity, not one per device: Home Assistant documents both, and its older versions know only this.
https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery
"""

import functools
import json
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

_PREFIX = "homeassistant"


def discovery_topics(device: str, level: str) -> tuple[str, str]:
    """Return where a class is announced: its binary sensor and the sensor of its score.

    Args:
        device: Name of the device, of ASCII letters, digits, _ and -.
        level: Name of the class, of the same characters; "+" for all classes.
    """
    node = _node(device)
    return f"{_PREFIX}/binary_sensor/{node}/{level}/config", f"{_PREFIX}/sensor/{node}/{level}/config"


@functools.lru_cache(maxsize=1024)  # asked for every class of every frame
def discovery_messages(topic: str, device: str, level: str, name: str) -> Mapping[str, bytes]:
    """Return the messages that announce a class, by their topics.

    Args:
        topic: The topic of the sink; under it are "state", "<level>/state" and "<level>/score".
        device: Name of the device, of ASCII letters, digits, _ and -.
        level: Name of the class, of the same characters.
        name: Name of the class as people see it.
    """
    node = _node(device)
    shared = {
        # The source must be live, too: of a camera that is lost, nobody knows what it would show. A crash is published
        # there by the broker, and a client has only this one will.
        "availability_topic": f"{topic}/state",
        "availability_template": "{{ 'online' if value_json.state == 'live' else 'offline' }}",
        "payload_available": "online",
        "payload_not_available": "offline",
        "qos": 1,
        "device": {
            "identifiers": [node],
            "name": topic,
            "manufacturer": "fsvit-edge",
            "model": "Camera",
            "sw_version": version("fsvit-edge"),
        },
        "origin": {"name": "fsvit-edge", "sw_version": version("fsvit-edge")},
    }
    presence = {
        "name": name,
        "unique_id": f"{node}_{level}",
        "state_topic": f"{topic}/{level}/state",
        "payload_on": "ON",
        "payload_off": "OFF",
        "device_class": "occupancy",  # its words are "detected" and "clear"
        **shared,
    }
    score = {
        "name": f"{name} score",
        "unique_id": f"{node}_{level}_score",
        "state_topic": f"{topic}/{level}/score",
        "value_template": "{{ (value | float * 100) | round(1) }}",
        "unit_of_measurement": "%",
        "state_class": "measurement",
        **shared,
    }
    presence_topic, score_topic = discovery_topics(device, level)
    return MappingProxyType({presence_topic: _json(presence), score_topic: _json(score)})


def _node(device: str) -> str:
    return f"fsvit_edge_{device}"


def _json(payload: dict[str, Any]) -> bytes:
    return json.dumps(payload, ensure_ascii=False).encode()
