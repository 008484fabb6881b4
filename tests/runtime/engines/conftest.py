from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from choosing import pretend
from engine_records import MACHINE, copy_bundle

from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.engines import open_graphs
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A copy of the bundled model."""
    return Bundle.load(copy_bundle(tmp_path / "bundle"))


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU."""
    pretend(monkeypatch, replace(MACHINE, gpu=None))


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """What ONNX Runtime was given, and for which provider; it runs on the CPU."""
    given: list[tuple[Any, str]] = []

    class Listening(OnnxRuntimeEngine):
        def __init__(self, graph: Any, provider: str, threads: int | None) -> None:
            given.append((graph, provider))
            super().__init__(graph, "cpu", threads)

    monkeypatch.setattr(open_graphs, "OnnxRuntimeEngine", Listening)
    return given
