"""Results as messages to an MQTT broker: mqtt://[user:password@]host[:port]/topic, or mqtts:// over TLS."""

import re
import socket
import time
from contextlib import suppress
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
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError, package_error

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_MAX_DELAY_S = 30
_KEEP_ALIVE_S = 15  # a broker that says nothing for twice as long is gone, although the system still takes results
_POLL_S = 0.01
_MAX_WAITING = 256
"""Events that wait for a broker that is away; later ones are dropped."""
_CONNECT_WITHIN_S = 10.0
_SEND_WITHIN_S = 5.0
_END_WITHIN_S = 0.5  # if the run was told to stop
_SILENT_S = 5.0
_AWAY = "The broker does not respond; results are skipped until it does."
_STUCK = "The broker takes no more results; they are skipped until it does."


class MqttSink(Sink):
    """Publishes results on TOPIC, events on TOPIC/events, and, retained, the state of the source and of each class.

    That of the source is on TOPIC/state. A class, by its name made safe, has ON or OFF on TOPIC/<class>/state and its
    score on TOPIC/<class>/score, from the first frame on; TOPIC/classes has the names. What is removed or renamed is
    cleared, and so is what an earlier run left.

    For a live source, a missing broker is trouble, not a failure: paho's thread reconnects by itself, after 1 s at
    first and up to 30 s. A result is skipped while the one before is still unsent, so a slow network means fewer
    results, never older ones. Results of other sources wait for the broker, for 10 s at most each time that it is away,
    and it is a failure if one is not sent. Events wait for the broker and arrive at least once. If the run dies, the
    broker itself publishes {"event": "state", "state": "offline"}. The user name and the password in `uri` are never
    printed.

    Args:
        uri: The address.
        home_assistant: Whether to announce each class to Home Assistant.
        is_live: Whether the source is live.

    Raises:
        FsvitEdgeError: At the end: results of a source that is not live were not sent, or the broker never answered.
    """

    def __init__(self, uri: str, home_assistant: bool = False, is_live: bool = False) -> None:
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
            from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
        except (ImportError, OSError) as error:
            raise package_error(f"{name} needs paho-mqtt", "paho", 'pip install "fsvit-edge[mqtt]"', error) from error
        self._topic, self._name, self._is_live = topic, name, is_live
        self._ready_s = time.monotonic()  # when a result could last be sent
        self._results = 0
        self._events: set[int] = set()  # IDs of the messages that the broker has not acknowledged
        self._acknowledged: SimpleQueue[int] = SimpleQueue()  # from paho's thread, also those of other messages
        self._lost_events = 0
        self._queue_is_full = MQTTErrorCode.MQTT_ERR_QUEUE_SIZE
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
        self._client.on_publish = self._on_publish
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_disconnect = self._on_connect_fail
        self._client.connect_async(host, port, _KEEP_ALIVE_S)
        self._client.loop_start()

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """Publish the result for a frame, and the classes whose state has changed."""
        while not (self._is_ready() or self._is_live or self.in_hurry or self._waited_s() >= _CONNECT_WITHIN_S):
            time.sleep(_POLL_S)
        self._wanted = self._classes.messages(prediction, frame.monotonic_s)
        self._update_retained()
        self._results += 1
        if not self._is_ready():
            self.skipped += 1
            self._say_silence()
            return
        self._unsent = self._client.publish(self._topic, json_line(frame_record(frame, prediction)))

    def tell(self, event: Event) -> None:
        """Publish an event, or let it wait for the broker."""
        told = self._client.publish(f"{self._topic}/events", json_line(event_record(event)), qos=1)
        if told.rc == self._queue_is_full:
            self._lost_events += 1
        else:
            self._events.add(told.mid)
        self._forget_acknowledged()

    def report(self, health: Health) -> None:
        """Publish the state of the source if it has changed."""
        self._say_silence()
        is_first = self._health is None
        self._health = health  # published again after a reconnect
        if is_first:  # the broker may still keep the end of the run before
            self._conditions = {health.source: health.condition}
            self._write_state(health)
        super().report(health)
        self._update_retained()  # after a reconnect, while the source is silent

    def _on_connect(self, _client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.trouble = f"The broker refuses the connection: {reason}." if reason.is_failure else ""
        if not reason.is_failure:
            self._client.subscribe([(topic, 1) for topic in self._classes.subscriptions])
            self._found.put(())
        # The broker has published "offline" meanwhile, or does not know the state yet.
        if self._health is not None:
            self._write_state(self._health)

    def _on_subscribe(self, *_: Any) -> None:
        self._has_subscribed = True  # also if it is not allowed; a broker that only accepts connections says nothing

    def _on_publish(self, _client: Any, _userdata: Any, mid: int, _reason: Any, _properties: Any) -> None:
        self._acknowledged.put(mid)

    def _on_message(self, _client: Any, _userdata: Any, message: Any) -> None:
        if message.retain:  # otherwise it is an echo of our own
            self._found.put(self._classes.earlier(message.topic, message.payload))

    def _on_connect_fail(self, *_: Any) -> None:
        self._has_subscribed = False
        # A broker that refuses also disconnects, which is less informative.
        self.trouble = self.trouble or _AWAY

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

    def _is_ready(self) -> bool:
        """Whether a result can be sent now; one that was lost with the connection counts as skipped."""
        if self._unsent is not None and (is_sent := _is_sent(self._unsent)) is not False:
            self.skipped += is_sent is None
            self._unsent = None
        is_ready = self._unsent is None and self._client.is_connected() and self._has_subscribed
        if is_ready:
            self._ready_s = time.monotonic()
            if self.trouble == _STUCK:
                self.trouble = ""
        return is_ready

    def _waited_s(self) -> float:
        return time.monotonic() - self._ready_s

    def _say_silence(self) -> None:
        """Without an answer to the connection, paho waits for a minute."""
        if not self._is_ready() and self._waited_s() >= _SILENT_S:
            self.trouble = self.trouble or (_STUCK if self._client.is_connected() else _AWAY)

    def _forget_acknowledged(self) -> None:
        while not self._acknowledged.empty():
            self._events.discard(self._acknowledged.get())

    def _finish(self) -> None:
        self._client.on_disconnect = None  # our own disconnect is no trouble
        is_connected, is_confirmed = self._client.is_connected(), False
        if is_connected:
            self._update_retained()
            is_confirmed = self._send_rest()
        self._is_ready()
        self._forget_acknowledged()
        self.skipped += self._unsent is not None
        self._unsent = None
        self._client.disconnect()
        if is_connected or not self.in_hurry:  # else it may be connecting for seconds, and ends by itself
            self._client.loop_stop()
        if lost := self._lost_events + len(self._events):
            self.trouble = f"{lost} events did not reach the broker."
        if self._is_live or self.in_hurry:
            return
        if self._results and not self.skipped and not is_confirmed:
            self.skipped = self._results  # how many of them is not known
            raise FsvitEdgeError(
                f"{self._name} has not confirmed that it has the {self._results} results; check the broker and run it "
                "again."
            )
        if self.skipped:
            raise FsvitEdgeError(
                f"{self.skipped} of {self._results} results did not reach {self._name}: "
                f"{self.trouble or 'the connection was lost.'} Check the broker and run it again."
            )

    def _send_rest(self) -> bool:
        """Publish that the run has ended, and wait until the broker has it, or cut the connection.

        Results are sent without an answer; the one to this last message is the proof that they were read.
        """
        due_s = time.monotonic() + (_END_WITHIN_S if self.in_hurry else _SEND_WITHIN_S)
        ended: Any = None
        while time.monotonic() < due_s and self._client.is_connected():
            if ended is None or ended.rc == self._queue_is_full:
                text = json_line({"event": "state", "state": "ended"})
                ended = self._client.publish(f"{self._topic}/state", text, qos=1, retain=True)
            self._forget_acknowledged()
            if _is_sent(ended) and not self._events:
                return True
            time.sleep(_POLL_S)
        connection = self._client.socket()
        if isinstance(connection, socket.socket) and not _is_sent(ended):
            with suppress(OSError):  # paho's thread would go on sending what is not taken
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # under TLS too, whose own takes its state away
        return _is_sent(ended) is True


def _is_sent(message: Any) -> bool | None:
    """Whether a message of QoS 0 was sent, or one of QoS 1 was acknowledged; None if it is lost."""
    try:
        return bool(message.is_published())
    except (RuntimeError, ValueError):
        return None
