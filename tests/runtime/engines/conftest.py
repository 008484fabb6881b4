import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from choosing import pretend
from engine_records import MACHINE, copy_bundle

from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.engines import open_graphs
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine

_Reopen = Callable[[Any, str, int | None], OnnxRuntimeEngine]


@pytest.fixture(scope="package")
def reopened() -> _Reopen:
    """Opens a graph for the CPU as `OnnxRuntimeEngine` does, but each only once: which are opened is the point."""

    class StaysOpen(OnnxRuntimeEngine):
        def close(self) -> None:
            pass

    @functools.cache
    def once(graph: Any, threads: int | None) -> OnnxRuntimeEngine:
        return StaysOpen(graph, "cpu", threads)

    return lambda graph, _, threads: once(graph, threads)


@pytest.fixture
def bundle(tmp_path: Path, reopened: _Reopen, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A copy of the bundled model, whose graphs are open."""
    monkeypatch.setattr(open_graphs, "OnnxRuntimeEngine", reopened)
    return Bundle.load(copy_bundle(tmp_path / "bundle"))


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU."""
    pretend(monkeypatch, replace(MACHINE, gpu=None))


@pytest.fixture
def parsed(reopened: _Reopen, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """What ONNX Runtime was given, and for which provider; it runs on the CPU."""
    given: list[tuple[Any, str]] = []

    def listening(graph: Any, provider: str, threads: int | None) -> OnnxRuntimeEngine:
        given.append((graph, provider))
        return reopened(graph, provider, threads)

    monkeypatch.setattr(open_graphs, "OnnxRuntimeEngine", listening)
    return given
