"""Frames, predictions, a health and a film without content, and a wait, for the tests of this folder."""

import time
from collections.abc import Callable, Iterator

import numpy as np

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health, SourceState, SourceStatus
from fsvit_edge.live.sources.files import FileSource


def blank_frame(index: int = 0, at_s: float = 0.0, size_hw: tuple[int, int] = (48, 64), value: int = 0) -> Frame:
    """A frame of one gray."""
    return Frame(np.full((*size_hw, 3), value, np.uint8), index, "cam", 0.0, at_s, 1.0)


def no_classes(size_hw: tuple[int, int] = (48, 64)) -> Prediction:
    """The prediction without a class."""
    empty = np.zeros(0, np.float32)
    return Prediction((), empty, empty, np.zeros(size_hw, np.uint8), None, {})


def health(state: SourceState = "live", at_s: float = 0.0, frozen: bool = False, message: str = "") -> Health:
    """The health of a run whose source has this state."""
    status = SourceStatus(state, at_s, 5, 2, 1, frozen, message)
    return Health(1.0, at_s, "boot", 9.0, "cam", status, "m", "e", "p", frames=3)


def film(count: int, then: Exception | None = None, pause_s: float = 0.0) -> FileSource:
    """A source of this many frames of rising gray, which may fail in the end."""

    def images() -> Iterator[tuple[str, np.ndarray, None]]:
        for index in range(count):
            time.sleep(pause_s)
            yield "film", np.full((4, 4, 3), index % 256, np.uint8), None
        if then is not None:
            raise then

    return FileSource(images(), name="film")


def until(condition: Callable[[], bool], within_s: float = 60) -> float:
    """Wait for a condition; return the seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within_s
        time.sleep(0.002)
    return time.monotonic() - started
