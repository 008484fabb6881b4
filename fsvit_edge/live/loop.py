"""The loop of a run: frames in, predictions out."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.sources.base import EndOfSourceError, Source
from fsvit_edge.live.statistics import RunStatistics
from fsvit_edge.runtime.prediction import Prediction

_WAIT_S = 0.1  # for the next frame of a live source, between two checks for stops and requests


def run_loop(
    source: Source,
    predict: Callable[[npt.NDArray[np.uint8]], Prediction],
    deliver: Callable[[Frame, Prediction], None],
    statistics: RunStatistics,
    should_stop: Callable[[], bool] = lambda: False,
    between_frames: Callable[[], None] = lambda: None,
    max_frames: int | None = None,
) -> None:
    """Process the frames of a source one by one until it ends, `max_frames` is reached, or the run should stop.

    Args:
        source: The frames; the caller closes it.
        predict: Takes (H, W, 3) uint8 RGB and returns the prediction.
        deliver: Takes every frame with its prediction; it must not wait, or frames grow old.
        statistics: Updated with every frame.
        should_stop: Called between two frames, and ten times per second while none comes.
        between_frames: Called as often, before the next frame is read.
        max_frames: Number of frames after which to stop; None continues to the end of the source.

    Raises:
        FsvitEdgeError: Whatever the source, `predict` or `deliver` raises.
    """
    while not should_stop() and (max_frames is None or statistics.frames < max_frames):
        between_frames()
        try:
            frame = source.read(_WAIT_S)
        except EndOfSourceError:
            return
        if frame is None:
            continue
        prediction = predict(frame.image)
        predicted_s = time.monotonic()
        frame = replace(frame, age_ms=(predicted_s - frame.monotonic_s) * 1e3)
        deliver(frame, prediction)
        sinks_ms = (time.monotonic() - predicted_s) * 1e3
        stage_ms = {"decode": frame.decode_ms, **prediction.latency_ms, "sinks": sinks_ms}
        statistics.add(stage_ms, frame.age_ms)
