"""What the speed benchmarks share: functions that take turns, because timings on a shared machine drift, and masks."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from fsvit_edge.inspect.benchmark import MASK_COVER


def take_turns(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of every run of each function, without its first."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if repeat:
                times[name].append(time.perf_counter() - started)
    return times


def square_masks(size: int, ways: int) -> npt.NDArray[np.bool_]:
    """Return (ways, size, size): a square that covers `MASK_COVER`, each way's at another place on the diagonal."""
    masks = np.zeros((ways, size, size), np.bool_)
    edge = round(size * MASK_COVER**0.5)
    for way in range(ways):
        start = way * (size - edge) // ways
        masks[way, start : start + edge, start : start + edge] = True
    return masks
