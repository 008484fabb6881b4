"""What the speed benchmarks share: functions that take turns, because timings on a shared machine drift, and masks."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fsvit_edge.inspect.benchmark import MASK_COVER


@dataclass(frozen=True)
class Setting:
    """How much the parts of `figures.py` measure."""

    threads: int  # of each engine and of torch
    turns: int  # of everything that is measured
    clip_frames: int = 100  # of each video that is played
    live_s: float = 60.0  # of each live run, at most
    live_frames: int = 200  # of each live run, at most
    backbone: str = "vit_small_patch8_224.dino"  # of the large network
    image_size: int = 400  # side of its input in pixels
    folder: Path = Path()  # for files that nobody keeps
    left_out: list[str] = field(default_factory=list)  # takes a sentence for each thing that is not measured here


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


def square_masks(size: int, ways: int, cover: float = MASK_COVER) -> npt.NDArray[np.bool_]:
    """Return (ways, size, size): a square with this share of the picture, each way's elsewhere on the diagonal."""
    masks = np.zeros((ways, size, size), np.bool_)
    edge = round(size * cover**0.5)
    for way in range(ways):
        start = way * (size - edge) // ways
        masks[way, start : start + edge, start : start + edge] = True
    return masks
