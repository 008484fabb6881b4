"""Counts and times of a run, in bounded memory."""

import threading
import time

import numpy as np
import numpy.typing as npt

from fsvit_edge.live.health import Percentiles

_MAX_VALUES = 10_000
_RECENT_S = 5.0


class _Ring:
    """The latest 10,000 values of a measurement."""

    def __init__(self) -> None:
        self._values = np.full(_MAX_VALUES, np.nan, np.float32)
        self._count = 0

    def add(self, value: float) -> None:
        self._values[self._count % _MAX_VALUES] = value
        self._count += 1

    def latest(self) -> npt.NDArray[np.float32]:
        """The values, in no order."""
        return self._values[: self._count]

    def percentiles(self) -> Percentiles:
        return Percentiles(*map(float, np.percentile(self.latest(), (50, 95, 99))))


class RunStatistics:
    """Counts and times of a run; one thread adds, any thread reads. `elapsed_s` ends with the latest frame."""

    def __init__(self) -> None:
        self.frames = 0
        self.elapsed_s = 0.0
        self.started_s = time.monotonic()
        self._lock = threading.Lock()
        self._stage_ms: dict[str, _Ring] = {}
        self._age_ms = _Ring()
        self._done_s = _Ring()

    @property
    def fps(self) -> float:
        """Frames per second since the start; 0 before the first frame."""
        return self.frames / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def recent_fps(self) -> float:
        """Frames per second over the latest 5 seconds."""
        with self._lock:
            now_s = time.monotonic() - self.started_s
            recent = int((self._done_s.latest() > now_s - _RECENT_S).sum())
        return recent / min(_RECENT_S, now_s) if now_s > 0 else 0.0

    @property
    def age_ms(self) -> Percentiles | None:
        """Milliseconds from capture to result, over the latest 10,000 frames; None before the first."""
        with self._lock:
            return self._age_ms.percentiles() if self.frames else None

    @property
    def latency_ms(self) -> dict[str, Percentiles]:
        """Milliseconds of "decode", each stage of the prediction, and "sinks", over the latest 10,000 frames."""
        with self._lock:
            return {stage: ring.percentiles() for stage, ring in self._stage_ms.items()}

    def add(self, stage_ms: dict[str, float], age_ms: float) -> None:
        """Count one frame: milliseconds spent in each stage, and from capture to result."""
        with self._lock:
            for stage, ms in stage_ms.items():
                self._stage_ms.setdefault(stage, _Ring()).add(ms)
            self._age_ms.add(age_ms)
            self.elapsed_s = time.monotonic() - self.started_s
            self._done_s.add(self.elapsed_s)
            self.frames += 1
