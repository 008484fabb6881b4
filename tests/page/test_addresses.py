"""The addresses that a run prints for its page, and their QR code."""

import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import httpx
import numpy as np
import psutil
import pytest

from fsvit_edge.cli.run import _open_page
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.page import addresses
from fsvit_edge.page.addresses import reachable_addresses
from fsvit_edge.page.sink import PageSink

IPV6_TABLE = """\
00000000000000000000000000000001 01 80 10 80       lo
fe800000000000000000000000000005 02 40 20 80     eth0
fd000000000000000000000000000005 02 40 00 80     eth0
20010db8000000000000000000000007 03 40 00 80    wlan0
"""
HALVES = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}  # upper and lower, 1 is light


Found = Callable[[dict[int, list[str]], list[str], str], None]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Found:
    """Let a machine have these addresses: with the route out, of IPv4, and the table of IPv6."""

    def have(routes: dict[int, list[str]], ipv4: list[str], ipv6: str) -> None:
        (tmp_path / "if_inet6").write_text(ipv6)
        monkeypatch.setattr(addresses, "_with_route_out", lambda family, _: iter(routes.get(family, [])))
        monkeypatch.setattr(addresses, "_ipv4_addresses", lambda: iter(ipv4))
        monkeypatch.setattr(addresses, "_IPV6_TABLE", tmp_path / "if_inet6")
        monkeypatch.setattr(socket, "gethostname", lambda: "robot")

    return have


def test_the_address_with_the_route_out_comes_first_and_ipv4_before_ipv6(found: Found) -> None:
    routes = {socket.AF_INET: ["10.0.0.7"], socket.AF_INET6: ["2001:db8::7"]}
    found(routes, ["127.0.0.1", "192.168.1.5", "10.0.0.7"], IPV6_TABLE)
    assert reachable_addresses("0.0.0.0") == ["10.0.0.7", "192.168.1.5"]
    assert reachable_addresses("::") == ["10.0.0.7", "192.168.1.5", "2001:db8::7", "fd00::5"]
    assert reachable_addresses("192.168.1.5") == ["192.168.1.5"]


def test_without_a_route_out_each_network_has_its_address(found: Found) -> None:
    found({}, ["127.0.0.1", "192.168.4.1"], "")  # a robot that is its own access point
    assert reachable_addresses("0.0.0.0") == ["192.168.4.1"]


def test_without_a_network_the_machine_goes_by_its_name(found: Found) -> None:
    found({}, ["127.0.0.1"], IPV6_TABLE.splitlines()[0])
    assert reachable_addresses("0.0.0.0") == reachable_addresses("::") == ["robot"]


def test_the_addresses_are_those_that_psutil_finds() -> None:
    theirs = {
        family: {one.address for several in psutil.net_if_addrs().values() for one in several if one.family == family}
        for family in (socket.AF_INET, socket.AF_INET6)
    }
    assert set(addresses._ipv4_addresses()) <= theirs[socket.AF_INET]
    assert "127.0.0.1" in addresses._ipv4_addresses()
    local = {one for one in theirs[socket.AF_INET6] if one.startswith(("fe80:", "::1"))}
    assert set(addresses._ipv6_addresses()) == theirs[socket.AF_INET6] - local


def test_each_address_leads_to_the_page(loaded: FewShotModel, tmp_path: Path) -> None:
    with PageSink("http://0.0.0.0:0", LiveModel(loaded), tmp_path / "bank.safetensors") as page:
        assert page.address == page.addresses[0]
        for address in page.addresses:
            assert "?token=" in address
            assert httpx.get(address, trust_env=False).status_code == 303


def read_code(printed: str) -> str:
    """What a phone reads from a QR code in a terminal, in which the colors must be set; nothing if there is none."""
    rows = [one[1] for one in re.finditer(r"^\033\[97;40m([ ▀▄█]+)\033\[0m$", printed, re.MULTILINE)]
    if not rows:
        return ""
    modules = np.array([[HALVES[one][half] for one in row] for row in rows for half in (0, 1)], np.uint8)
    text, _, _ = cv2.QRCodeDetector().detectAndDecode(np.kron(modules * 255, np.ones((8, 8), np.uint8)))
    return text


@pytest.mark.parametrize(
    ("host", "is_terminal", "has_code"),
    [("0.0.0.0", True, True), ("0.0.0.0", False, False), ("127.0.0.1", True, False)],
)
def test_a_terminal_shows_the_address_for_a_phone_as_a_qr_code(
    loaded: FewShotModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    host: str,
    is_terminal: bool,
    has_code: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    page = _open_page(f"http://{host}:0", LiveModel(loaded), tmp_path / "bank.safetensors", None, [], shows_token=True)
    assert isinstance(page, PageSink)
    with page:
        printed = capsys.readouterr().err
    told = re.findall(r"^The page is (?:also )?at (\S+)$", printed, re.MULTILINE)
    assert (tuple(told), read_code(printed)) == (page.addresses, page.address if has_code else "")


def test_a_token_that_is_hidden_is_in_no_address_and_no_code(
    loaded: FewShotModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    opened = ("http://0.0.0.0:0", LiveModel(loaded), tmp_path / "bank.safetensors", "a-token-of-mine", [])
    for shows_token in (True, False):
        page = _open_page(*opened, shows_token=shows_token)
        assert isinstance(page, PageSink)
        with page:
            printed = capsys.readouterr().err
        told = re.findall(r"^The page is (?:also )?at (\S+)$", printed, re.MULTILINE)
        expected = page.addresses if shows_token else tuple(one.partition("?")[0] for one in page.addresses)
        assert (tuple(told), read_code(printed)) == (expected, expected[0])
        assert ("a-token-of-mine" in printed) == shows_token
