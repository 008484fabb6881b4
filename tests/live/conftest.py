"""A real MQTT broker for the tests that need one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from broker import MOSQUITTO, Broker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if MOSQUITTO is None:
        pytest.skip("needs an MQTT broker: sudo apt install mosquitto")
    started = Broker(tmp_path)
    try:
        started.start()
        yield started
    finally:
        started.stop()
