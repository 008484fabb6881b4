"""Commands run in this process, as the console script runs them."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from fsvit_edge.cli.main import main


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command; give its exit code and what it printed."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Typer sets its own

    def call(*arguments: str) -> Result:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["fsvit-edge", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return Result(int(end.value.code or 0), *capfd.readouterr())

    return call
