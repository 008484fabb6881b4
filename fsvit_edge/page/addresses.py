"""At which addresses others reach the page."""

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_ASK_IPV4 = 0x8915  # Linux's SIOCGIFADDR
_IPV4_PLACE = slice(20, 24)  # in its answer
_IPV6_TABLE = Path("/proc/net/if_inet6")
_IPV6_GLOBAL = "00"  # its scope; browsers take no address that needs the name of an interface


def reachable_addresses(host: str) -> list[str]:
    """Return the addresses, at least one, at which others reach a page that is bound to an address.

    Of all interfaces (0.0.0.0, or :: which takes IPv4 as well), those of this machine: IPv4 first, and of each kind the
    one with the route out first. Without any, the machine's name.
    """
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return [host]
    found = [*_with_route_out(socket.AF_INET, "192.0.2.1"), *_ipv4_addresses()]
    if host == "::":
        found += [*_with_route_out(socket.AF_INET6, "2001:db8::1"), *_ipv6_addresses()]
    return list(dict.fromkeys(one for one in found if not ipaddress.ip_address(one).is_loopback)) or [
        socket.gethostname()
    ]


def _with_route_out(family: socket.AddressFamily, elsewhere: str) -> Iterator[str]:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # chooses the interface and sends nothing
            address = str(probe.getsockname()[0])
    except OSError:  # no route out, as on a robot that is its own access point
        return
    yield address


def _ipv4_addresses() -> Iterator[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _ASK_IPV4, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            yield socket.inet_ntoa(answer[_IPV4_PLACE])


def _ipv6_addresses() -> Iterator[str]:
    try:
        lines = _IPV6_TABLE.read_text().splitlines()
    except OSError:  # a system without IPv6
        return
    for line in lines:
        number, _, _, scope, *_ = line.split()
        if scope == _IPV6_GLOBAL:
            yield str(ipaddress.IPv6Address(int(number, 16)))
