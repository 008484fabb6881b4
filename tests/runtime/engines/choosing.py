"""What the tests of the choice of engines share: pretended machines, what was chosen or refused, spoilt files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_records import VERSIONS, edit

from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.engines import choose, fitting
from fsvit_edge.runtime.engines.choose import EngineChoice, choose_engines
from fsvit_edge.runtime.engines.files import sidecar_of
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.machine import Machine

NO_DRIVER = "no NVIDIA driver (libcuda.so.1) is installed"


def pretend(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: machine))
    monkeypatch.setattr(choose, "find_gpu", lambda: machine.gpu)
    reason = "" if machine.gpu else NO_DRIVER
    for module in (choose, fitting):
        monkeypatch.setattr(module, "installed_version", VERSIONS.get)
        monkeypatch.setattr(module, "gpu_missing_reason", lambda: reason)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])


def chosen(bundle: Bundle, *arguments: Any) -> EngineChoice:
    engines, choice = choose_engines(bundle, *arguments, threads=1)
    for engine in engines.values():
        engine.close()
    return choice


def refusal(kind: type[FsvitEdgeError], bundle: Bundle, *arguments: Any) -> str:
    with pytest.raises(FsvitEdgeError) as refused:
        choose_engines(bundle, *arguments, threads=1)
    assert type(refused.value) is kind, refused.value
    assert "\n" not in str(refused.value)
    return str(refused.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


SPOILT: list[tuple[Callable[[Path], Any], str]] = [
    (truncate, "is truncated or altered"),
    (alter, "was altered or damaged: sha256"),
    (Path.unlink, "cannot be read: No such file"),
    (lambda path: edit(sidecar_of(path), graph="enroll"), "has graph 'enroll'"),
    (
        lambda path: sidecar_of(path).unlink(),
        "have no {graph}; build it with: fsvit-edge build-engine {bundle} --engine",
    ),
    (lambda path: edit(sidecar_of(path), onnx_sha256="ab" * 32), "was built from a different"),
    (lambda path: edit(sidecar_of(path), backend_version="1"), "and runs in no other version"),
]
