"""Results as messages to an MQTT broker: mqtt://[user:password@]host[:port]/topic, or mqtts:// over TLS."""

import re
from typing import Any
from urllib.parse import unquote, urlsplit

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.live.sinks.base import Sink
from fsvit_edge.live.sinks.json_lines import frame_record, json_line, state_record
from fsvit_edge.live.uri import printable_address
from fsvit_edge.runtime.errors import EnvironmentLacksError, InputError
from fsvit_edge.runtime.prediction import Prediction

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_MAX_DELAY_S = 30


class MqttSink(Sink):
    """Publishes each result on TOPIC, and the state of the source, retained, on TOPIC/state.

    A missing broker is trouble, not a failure: paho's thread reconnects by itself, after 1 s at first and up to 30 s. A
    result is skipped while the one before is still unsent, so a slow network means fewer results, never older ones. If
    the run dies, the broker itself publishes {"event": "state", "state": "offline"}. The user name and the password in
    `uri` are never printed.
    """

    def __init__(self, uri: str) -> None:
        name = printable_address(uri)
        scheme = uri.partition("://")[0].lower()
        try:
            parts = urlsplit(uri)
            host, port = parts.hostname, parts.port or _PORTS[scheme]
        except ValueError:
            host, port = None, 0
        topic = parts.path.strip("/") if host else ""
        if not host or not topic or re.search(r"[+#\x00-\x20]", topic) or parts.query or parts.fragment:
            raise InputError(
                f"Invalid MQTT address {name}; expected mqtt://HOST/TOPIC or mqtt://USER:PASSWORD@HOST/TOPIC."
            )
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            raise EnvironmentLacksError(
                f'{name} needs paho-mqtt, which is not installed; try: pip install "fsvit-edge[mqtt]".'
            ) from error
        self._topic = topic
        self._health: Health | None = None
        self._unsent: Any = None
        self._client = Client(CallbackAPIVersion.VERSION2)
        if parts.username is not None:
            password = None if parts.password is None else unquote(parts.password)
            self._client.username_pw_set(unquote(parts.username), password)
        if scheme == "mqtts":
            self._client.tls_set()
        self._client.will_set(f"{topic}/state", json_line({"event": "state", "state": "offline"}), retain=True)
        self._client.reconnect_delay_set(1, _MAX_DELAY_S)
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_disconnect = self._on_connect_fail
        self._client.connect_async(host, port)
        self._client.loop_start()

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """Publish the result for a frame."""
        if not self._client.is_connected() or (self._unsent is not None and not self._unsent.is_published()):
            return
        self._unsent = self._client.publish(self._topic, json_line(frame_record(frame, prediction)))

    def report(self, health: Health) -> None:
        """Publish the state of the source if it has changed."""
        self._health = health  # published again after a reconnect
        super().report(health)

    def _on_connect(self, _client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.trouble = f"The broker refuses the connection: {reason}." if reason.is_failure else ""
        # The broker has published "offline" meanwhile, or does not know the state yet.
        if self._health is not None:
            self._write_state(self._health)

    def _on_connect_fail(self, *_: Any) -> None:
        # A broker that refuses also disconnects, which is less informative.
        self.trouble = self.trouble or "The broker does not respond; results are skipped until it does."

    def _write_state(self, health: Health) -> None:
        if self._client.is_connected():
            self._client.publish(f"{self._topic}/state", json_line(state_record(health)), retain=True)

    def _finish(self) -> None:
        self._client.on_disconnect = None  # our own disconnect is no trouble
        if self._client.is_connected():
            ended = json_line({"event": "state", "state": "ended"})
            self._client.publish(f"{self._topic}/state", ended, retain=True)
        self._client.disconnect()
        self._client.loop_stop()
