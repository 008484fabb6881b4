"""A capture process that does what a test needs: python stub_camera.py SCENARIO MEMORY PIPE.

It talks to the source like `capture_process`. Frame n is filled with n % 256.
"""

import os
import sys
import threading
import time

from fsvit_edge.live.sources.frame_channel import FrameSender


def command(scenario: str) -> tuple[str, ...]:
    """The command that starts it."""
    return (sys.executable, __file__, scenario)


def main() -> None:
    scenario, sender = sys.argv[1], FrameSender(int(sys.argv[2]), int(sys.argv[3]))
    sys.stdin.buffer.readline()
    if scenario == "late":
        time.sleep(3)
    sender.send(started=True)
    if scenario == "undead":  # with a parent that does not kill it, this is like a driver that hangs
        time.sleep(60)
        os._exit(0)
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()

    def publish(number: int, height: int = 12, width: int = 16, frozen: bool = False) -> None:
        sender.slot(height, width)[:] = number % 256
        sender.send_frame(time.monotonic_ns(), 1.5, frozen)

    if scenario == "mute":
        time.sleep(60)
    if scenario in ("refused", "locked"):
        sender.send(error="rtsp://host/cam cannot be opened; check the address.", is_refused=scenario == "locked")
        os._exit(0)
    sender.send(opened=30.0)
    if scenario == "dark":
        time.sleep(60)
    elif scenario in ("steady", "late"):
        for number in range(100_000):
            publish(number)
            time.sleep(1 / 30)
    elif scenario == "three":
        for number in range(3):
            publish(number)
            time.sleep(0.2)
        os._exit(0)
    elif scenario == "hangs":
        for number in range(3):
            publish(number)
            time.sleep(0.05)
        time.sleep(60)
    elif scenario == "grows":
        for number, height in enumerate((10, 40, 20, 90, 10)):
            publish(number, height, height * 2)
            time.sleep(0.3)
    elif scenario == "burst":
        for number in range(40):
            publish(number)
        time.sleep(60)
    elif scenario == "frozen":
        for number in range(100):
            publish(number, frozen=number > 3)
            time.sleep(0.05)
    elif scenario == "film":
        publish(0)
        sender.send(end=True)


if __name__ == "__main__":
    main()
