"""Mosquitto on loopback, for the tests of this folder."""

import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from blank import until
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

MOSQUITTO = shutil.which("mosquitto") or ("/usr/sbin/mosquitto" if Path("/usr/sbin/mosquitto").exists() else None)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"
"""The first packet of a client of MQTT 3.1.1 without a name."""


class Broker:
    """Mosquitto, and what was published there."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self.messages: list[tuple[str, dict[str, object], bool]] = []
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "conf").write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\nuser root\n")

    def start(self) -> None:
        assert MOSQUITTO is not None
        command = [MOSQUITTO, "-c", str(self.folder / "conf")]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until(self.responds)

    def responds(self) -> bool:
        """Whether it answers a client: a broker that only listens yet would miss the signal that stops it."""
        with socket.socket() as probe:
            probe.settimeout(1)
            try:
                probe.connect(("127.0.0.1", self.port))
                probe.sendall(CONNECT)
                return probe.recv(1) == b"\x20"  # accepted or refused, with a reason
            except OSError:
                return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=60)
            self._process = None

    def retained(self) -> dict[str, bytes]:
        """What a client that connects now is given."""
        kept: dict[str, bytes] = {}
        client = self.client(lambda message: kept.update({message.topic: message.payload}))
        try:
            client.publish("marker", b"last")
            until(lambda: "marker" in kept)
        finally:
            client.disconnect()
            client.loop_stop()
        return {topic: payload for topic, payload in kept.items() if topic != "marker"}

    def client(self, take: Callable[[MQTTMessage], object]) -> Client:
        """A connected client to which every message goes."""
        client = Client(CallbackAPIVersion.VERSION2)
        subscribed: list[bool] = []
        client.on_message = lambda _client, _data, message: take(message)
        client.on_connect = lambda *_: client.subscribe("#", 1)
        client.on_subscribe = lambda *_: subscribed.append(True)
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        until(lambda: bool(subscribed))
        return client
