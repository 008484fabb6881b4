"""No command opens a socket that the user did not ask for, or lets a package write a number of the device."""

import os
import sys
from pathlib import Path

import pytest
from command_line import Result, spawn
from sample_files import write_data

from fsvit_edge.model.checkpoint import save_network
from fsvit_edge.model.network import FewShotNetwork

# The kernel ends the process at its first socket that is not local; a name cannot be looked up without one.
FORBID = """
import ctypes, os, sys, time

class Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("true", ctypes.c_ubyte), ("false", ctypes.c_ubyte), ("k", ctypes.c_uint32)]

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filters", ctypes.POINTER(Filter))]

SOCKET, AF_UNIX = {"x86_64": 41, "aarch64": 198}[os.uname().machine], 1
LOAD, IS_EQUAL, RETURN, KILL, ALLOW = 0x20, 0x15, 0x06, 0x80000000, 0x7FFF0000
filters = (Filter * 6)(
    Filter(LOAD, 0, 0, 0), Filter(IS_EQUAL, 0, 3, SOCKET), Filter(LOAD, 0, 0, 16), Filter(IS_EQUAL, 1, 0, AF_UNIX),
    Filter(RETURN, 0, 0, KILL), Filter(RETURN, 0, 0, ALLOW),
)
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(Program(6, filters)), 0, 0) == 0
"""
COMMANDS = """
from fsvit_edge.cli.main import main
for line in sys.argv[1:]:
    sys.argv = ["fsvit-edge", *line.split()]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (line, end.code)
"""
# ONNX Runtime writes it in a thread of its own, which on a busy machine was once later than the end of `enroll`.
WAIT_FOR_NUMBER = """
from pathlib import Path
due_s = time.monotonic() + 20
while not any(Path(os.environ["XDG_CACHE_HOME"]).rglob("deviceid")) and time.monotonic() < due_s:
    time.sleep(0.1)
"""
KILLED = -31  # SIGSYS
# Nothing else: where CI=true or the like is set, ONNX Runtime sends nothing, and the tests here would test nothing.
KEPT = ("PATH", "HOME", "TMPDIR", "PYTHONPATH", "XDG_CACHE_HOME")

pytestmark = pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="knows two processors")


def run(folder: Path, code: str, *arguments: str, **variables: str) -> Result:
    """Run code where no socket may be opened, in an environment that says nothing of telemetry but `variables`."""
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    command = (sys.executable, "-c", FORBID + code)
    return spawn(*arguments, cwd=folder, command=command, env={**environment, **variables})


def foreign_files(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.is_file() and cache / "fsvit-edge" not in path.parents]


def test_no_command_opens_a_socket_or_lets_others_write(folder: Path, own_cache: Path) -> None:
    done = run(
        folder,
        COMMANDS,
        *("enroll dog cat1.jpg", "run photo.jpg --sink out.jsonl", "run demo --max-frames 3"),
        *("inspect bank.safetensors", "bank list bank.safetensors", "bank scene bank.safetensors album"),
        *("bench --ways 1 --frames 2 --no-growth", "calib album --output c.json --max-pictures 2"),
        "run video.mp4 --realtime --sink realtime.mp4",
    )
    assert done.code == 0, done.err
    assert foreign_files(own_cache) == []


@pytest.mark.slow(reason="imports every package that is installed, 15 s")
def test_the_doctor_opens_no_socket_or_lets_others_write(folder: Path, own_cache: Path) -> None:
    done = run(folder, COMMANDS, "doctor")
    assert done.code == 0, done.err
    assert foreign_files(own_cache) == []


@pytest.mark.slow(reason="trains, exports and builds, with torch, 20 s")
def test_no_command_of_a_workstation_opens_a_socket(
    folder: Path, own_cache: Path, tiny_network: FewShotNetwork
) -> None:
    write_data(folder / "data", "cup", "key")
    save_network(tiny_network, folder / "start.safetensors")
    done = run(
        folder,
        COMMANDS,
        "train --data data --checkpoint start.safetensors --cache tokens --batch 3 --epochs 1 --output new.safetensors",
        "eval --checkpoint new.safetensors --data data --episodes 2",
        "export --checkpoint new.safetensors --output bundle",
        "build-engine bundle --engine onnxruntime --precision fp32",
    )
    assert done.code == 0, done.err
    # Where matplotlib is installed, torchmetrics imports it, and it keeps a list of the fonts.
    assert [name for name in foreign_files(own_cache) if not name.startswith("fontlist-")] == []


def test_a_user_who_asks_for_telemetry_gets_it_and_is_noticed_here(folder: Path, own_cache: Path) -> None:
    pytest.importorskip("onnxruntime", minversion="1.29", reason="older ones send nothing")
    done = run(folder, COMMANDS + WAIT_FOR_NUMBER, "enroll dog cat1.jpg", ORT_DISABLE_TELEMETRY="0")
    assert done.code in (0, KILLED), done.err
    assert done.code == KILLED or "deviceid" in foreign_files(own_cache)


def test_a_look_up_is_noticed_here(tmp_path: Path) -> None:
    assert run(tmp_path, "import socket; socket.getaddrinfo('fsvit-edge.invalid', 80)").code == KILLED
