"""The run itself: frames in, predictions out to the sinks, and what it cost."""

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.frame import Frame
from fsvit_edge.runtime.prediction import Prediction
from fsvit_edge.runtime.sinks.base import Sink, SinkClosedError

_REMEMBERED_FRAMES = 10_000


class LoopStatistics:
    """What a run has done so far; the run keeps it up to date, its memory does not grow with time.

    Attributes:
        frames: Frames that were judged and written.
        elapsed_s: Seconds from the start of the run to the end of its latest frame.
        interrupted: Whether Ctrl-C ended the run.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.elapsed_s = 0.0
        self.interrupted = False
        self._stage_ms: dict[str, npt.NDArray[np.float32]] = {}

    @property
    def fps(self) -> float:
        """Frames per second since the start; 0 before the first frame."""
        return self.frames / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def latency_ms(self) -> dict[str, tuple[float, float]]:
        """Median and 95th percentile of each stage over its latest 10,000 frames, in milliseconds.

        The stages are "decode", those of the prediction in their order, and "sinks".
        """
        percentiles = {}
        for stage, ring in self._stage_ms.items():
            median, high = np.percentile(ring[~np.isnan(ring)], (50, 95))
            percentiles[stage] = (float(median), float(high))
        return percentiles

    def add(self, stage_ms: dict[str, float], elapsed_s: float) -> None:
        """Count one frame.

        Args:
            stage_ms: Milliseconds spent in each stage, by name.
            elapsed_s: Seconds since the start of the run.
        """
        for stage, ms in stage_ms.items():
            if stage not in self._stage_ms:
                self._stage_ms[stage] = np.full(_REMEMBERED_FRAMES, np.nan, np.float32)
            self._stage_ms[stage][self.frames % _REMEMBERED_FRAMES] = ms
        self.frames += 1
        self.elapsed_s = elapsed_s


def run_loop(
    source: Iterable[Frame],
    predictor: Callable[[npt.NDArray[np.uint8]], Prediction],
    sinks: Sequence[Sink],
    max_frames: int | None = None,
    on_frame: Callable[[Frame, Prediction, LoopStatistics], None] | None = None,
) -> LoopStatistics:
    """Judge the frames of a source one by one until it ends, `max_frames` is reached, a reader goes, or Ctrl-C.

    The source and the sinks stay open: whoever opened them closes them.

    Args:
        source: The frames.
        predictor: Takes (H, W, 3) uint8 RGB and gives the prediction for it.
        sinks: Each is given every frame, in this order.
        max_frames: Frames after which to stop; None goes on to the end of the source.
        on_frame: Called after each frame with the frame, its prediction and the statistics so far, for a display.

    Returns:
        The statistics; `interrupted` says whether Ctrl-C ended the run.

    Raises:
        FsvitEdgeError: Whatever the source, the predictor or a sink raises, except SinkClosedError.
    """
    statistics = LoopStatistics()
    frames = iter(source)
    started = time.monotonic()
    try:
        while max_frames is None or statistics.frames < max_frames:
            frame = next(frames, None)
            if frame is None:
                break
            prediction = predictor(frame.image)
            judged = time.perf_counter()
            for sink in sinks:
                sink.write(frame, prediction)
            sinks_ms = (time.perf_counter() - judged) * 1e3
            stage_ms = {"decode": frame.decode_ms, **prediction.latency_ms, "sinks": sinks_ms}
            statistics.add(stage_ms, time.monotonic() - started)
            if on_frame is not None:
                on_frame(frame, prediction, statistics)
    except SinkClosedError:
        pass
    except KeyboardInterrupt:
        statistics.interrupted = True
    return statistics
