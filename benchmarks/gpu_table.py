"""The table of the GPU benchmark (`gpu.py`), and what the parts of the benchmark share."""

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
    """Sizes of all measurements."""

    backbone: str  # backbone of the network
    image_size: int  # side of its input in pixels
    copy_bytes: int  # size of the copies between host and device
    product: int  # side of the matrices whose product gives the peak rate
    move_bytes: int  # size of the copy on the device that gives the bandwidth
    repeats: int  # number of runs per measurement
    compiler: str  # backend of torch.compile
    dtypes: tuple[torch.dtype, ...]  # data types of the network
    ways: tuple[int, ...]  # numbers of classes of the head


@dataclass(frozen=True)
class Row:
    """A row of the table: the part it belongs to, what was measured, the value, and a note."""

    part: str
    what: str
    figure: str
    note: str = ""


def guarded(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows until one fails, then a row with the reason."""
    try:
        yield from rows
    except Exception as error:  # drivers and compilers raise anything, and the other parts must go on
        yield Row("", "failed", type(error).__name__, first_line(error))


def first_line(error: Exception) -> str:
    """Return the first line of an error message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def print_table(rows: list[Row]) -> None:
    """Print rows as a table; each column is as wide as its widest entry."""
    widths = [max(len(getattr(row, field)) for row in rows) for field in ("part", "what", "figure")]
    for row in rows:
        cells = (row.part.ljust(widths[0]), row.what.ljust(widths[1]), row.figure.rjust(widths[2]), row.note)
        print("  ".join(cells).rstrip())


def median(work: Callable[[], Any], repeats: int) -> float:
    """Return the median time of a run in seconds, by the host's clock."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
