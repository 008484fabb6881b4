"""Results as messages to an MQTT broker: mqtt://[user:password@]host[:port]/topic, or mqtts:// over TLS."""

import re
from queue import SimpleQueue
from typing import Any
from urllib.parse import unquote, urlsplit

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.events import Event, event_record
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.live.sinks.base import Sink
from fsvit_edge.live.sinks.json_lines import frame_record, json_line, state_record
from fsvit_edge.live.sinks.mqtt_topics import ClassTopics, RetainedMessages
from fsvit_edge.live.uri import is_host, printable_address
from fsvit_edge.runtime.errors import EnvironmentLacksError, InputError

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_MAX_DELAY_S = 30
_MAX_WAITING = 256
"""Events that wait for a broker that is away; later ones are dropped."""


class MqttSink(Sink):
    """Publishes results on TOPIC, events on TOPIC/events, and, retained, the state of the source and of each class.

    That of the source is on TOPIC/state. A class, by its name made safe, has ON or OFF on TOPIC/<class>/state and its
    score on TOPIC/<class>/score, from the first frame on; TOPIC/classes has the names. What is removed or renamed is
    cleared, and so is what an earlier run left.

    A missing broker is trouble, not a failure: paho's thread reconnects by itself, after 1 s at first and up to 30 s. A
    result is skipped while the one before is still unsent, so a slow network means fewer results, never older ones.
    Events wait for the broker and arrive at least once. If the run dies, the broker itself publishes {"event": "state",
    "state": "offline"}. The user name and the password in `uri` are never printed.

    Args:
        uri: The address.
        home_assistant: Whether to announce each class to Home Assistant.
    """

    def __init__(self, uri: str, home_assistant: bool = False) -> None:
        name = printable_address(uri)
        scheme = uri.partition("://")[0].lower()
        try:
            parts = urlsplit(uri)
            host, port = parts.hostname, parts.port or _PORTS[scheme]
        except ValueError:
            host, port = None, 0
        topic = parts.path.strip("/") if is_host(host) else ""
        if not host or not topic or re.search(r"[+#\x00-\x20\ud800-\udfff]", topic) or parts.query or parts.fragment:
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
        self._classes = ClassTopics(topic, home_assistant)
        self._wanted: dict[str, bytes] | None = None  # None before the first frame
        self._retained = RetainedMessages(self._publish_retained)
        # From paho's thread: topics of classes of an earlier run, nothing if only the connection is new.
        self._found: SimpleQueue[tuple[str, ...]] = SimpleQueue()
        self._has_subscribed = False  # publishing earlier would replace what an earlier run left
        self._client = Client(CallbackAPIVersion.VERSION2)
        if parts.username is not None:
            password = None if parts.password is None else unquote(parts.password)
            self._client.username_pw_set(unquote(parts.username), password)
        if scheme == "mqtts":
            self._client.tls_set()
        self._client.will_set(f"{topic}/state", json_line({"event": "state", "state": "offline"}), retain=True)
        self._client.reconnect_delay_set(1, _MAX_DELAY_S)
        self._client.max_queued_messages_set(_MAX_WAITING)
        self._client.max_inflight_messages_set(_MAX_WAITING)  # or a run that ends leaves the rest unsent
        self._client.on_message = self._on_message
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_disconnect = self._on_connect_fail
        self._client.connect_async(host, port)
        self._client.loop_start()

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """Publish the result for a frame, and the classes whose state has changed."""
        self._wanted = self._classes.messages(prediction, frame.monotonic_s)
        self._update_retained()
        if not self._client.is_connected() or (self._unsent is not None and not self._unsent.is_published()):
            return
        self._unsent = self._client.publish(self._topic, json_line(frame_record(frame, prediction)))

    def tell(self, event: Event) -> None:
        """Publish an event, or let it wait for the broker."""
        self._client.publish(f"{self._topic}/events", json_line(event_record(event)), qos=1)

    def report(self, health: Health) -> None:
        """Publish the state of the source if it has changed."""
        is_first = self._health is None
        self._health = health  # published again after a reconnect
        if is_first:  # the broker may still keep the end of the run before
            self._conditions = {health.source: health.source_status.condition}
            self._write_state(health)
        super().report(health)
        self._update_retained()  # after a reconnect, while the source is silent

    def _on_connect(self, _client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.trouble = f"The broker refuses the connection: {reason}." if reason.is_failure else ""
        if not reason.is_failure:
            self._client.subscribe([(topic, 1) for topic in self._classes.subscriptions])
            self._found.put(())
            self._has_subscribed = True
        # The broker has published "offline" meanwhile, or does not know the state yet.
        if self._health is not None:
            self._write_state(self._health)

    def _on_message(self, _client: Any, _userdata: Any, message: Any) -> None:
        if message.retain:  # otherwise it is an echo of our own
            self._found.put(self._classes.earlier(message.topic, message.payload))

    def _on_connect_fail(self, *_: Any) -> None:
        self._has_subscribed = False
        # A broker that refuses also disconnects, which is less informative.
        self.trouble = self.trouble or "The broker does not respond; results are skipped until it does."

    def _write_state(self, health: Health) -> None:
        if self._client.is_connected():
            self._client.publish(f"{self._topic}/state", json_line(state_record(health)), retain=True)

    def _update_retained(self) -> None:
        while not self._found.empty():
            self._retained.distrust(self._found.get())
        if self._wanted is not None and self._has_subscribed and self._client.is_connected():
            self._retained.update(self._wanted)

    def _publish_retained(self, topic: str, payload: bytes) -> bool:
        return bool(self._client.publish(topic, payload, qos=1, retain=True).rc == 0)

    def _finish(self) -> None:
        self._client.on_disconnect = None  # our own disconnect is no trouble
        if self._client.is_connected():
            ended = json_line({"event": "state", "state": "ended"})
            self._client.publish(f"{self._topic}/state", ended, retain=True)
        self._client.disconnect()
        self._client.loop_stop()
