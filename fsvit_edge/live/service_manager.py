"""Tells systemd that the run is up and alive, where systemd started it; see its sd_notify(3) for the protocol."""

import contextlib
import os
import socket


def notify(*assignments: str) -> None:
    """Send assignments such as "READY=1" to the service manager; nothing happens where there is none.

    A manager that does not listen must not disturb the run, so nothing is raised and nothing waits.

    Args:
        assignments: One line each; a line break within becomes a space.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    lines = "\n".join(" ".join(assignment.splitlines()) for assignment in assignments)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(lines.encode(errors="replace"), address)
