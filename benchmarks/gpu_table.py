"""Lines of the GPU benchmark's table, and what its parts share."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

MIB = 2**20
NEEDS_A_GPU = "needs a GPU"


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        backbone: Of the network.
        image_size: Side in pixels.
        copy_bytes: Of the copies between host and device.
        product: Side of the matrix product that gives the peak.
        move_bytes: Of the copy on the device that gives the bandwidth.
        repeats: Of each measurement.
        compiler: Of torch.compile.
        dtypes: Of the network.
        ways: Of the head.
    """

    backbone: str
    image_size: int
    copy_bytes: int
    product: int
    move_bytes: int
    repeats: int
    compiler: str
    dtypes: tuple[torch.dtype, ...]
    ways: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """A line of the table: the part it belongs to, what was measured, the figure, and what it means."""

    part: str
    what: str
    figure: str
    note: str = ""


def guarded(rows: Iterable[Row]) -> Iterator[Row]:
    """Pass rows on until one fails, then say why."""
    try:
        yield from rows
    except Exception as error:  # whatever a driver, a compiler or a backend raises must not end the other parts
        yield Row("", "failed", type(error).__name__, first_line(error))


def first_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def print_table(rows: list[Row]) -> None:
    """Print rows under each other, each column as wide as its widest entry."""
    widths = [max(len(getattr(row, field)) for row in rows) for field in ("part", "what", "figure")]
    for row in rows:
        cells = (row.part.ljust(widths[0]), row.what.ljust(widths[1]), row.figure.rjust(widths[2]), row.note)
        print("  ".join(cells).rstrip())


def median(work: Callable[[], Any], repeats: int) -> float:
    """Seconds of a run on the host's clock."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
