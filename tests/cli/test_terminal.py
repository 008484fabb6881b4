"""What a terminal shows: text as it is, whatever it says."""

import os
import pty
import sys
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from fsvit_edge.cli.run import _live_table
from fsvit_edge.cli.terminal import print_table, show_progress

MARKUP = "[/b] [red]:apple:"


def table() -> None:
    print_table(MARKUP, ("name", MARKUP), [(MARKUP, MARKUP)], to_stderr=True)


def live_table() -> None:
    result = SimpleNamespace(name=MARKUP, score=0.5, level=0.4, is_present=True, area=0.1)
    frame: Any = SimpleNamespace(camera=MARKUP, source=MARKUP, index=0)
    prediction: Any = SimpleNamespace(results=[result])
    statistics: Any = SimpleNamespace(fps=1.0)
    with _live_table() as draw:
        draw(frame, prediction, statistics)


def progress() -> None:
    with show_progress(MARKUP) as step:
        step(MARKUP)


@pytest.mark.parametrize("show", [table, live_table, progress])
def test_names_that_look_like_markup_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch, show: Callable[[], None]
) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        show()
    shown = b""
    with suppress(OSError):  # the end, when all was read
        while True:
            shown += os.read(ours, 1 << 16)
    os.close(ours)
    assert shown.decode().count(MARKUP) >= 2
