"""What `figures.py` measured, as a record: `benchmarks/results/<processor>.json`."""

import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fsvit_edge.runtime.machine import Machine

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("onnxruntime", "openvino", "torch", "numpy", "opencv-python-headless", "av")
AT_LEAST, AT_MOST = "at least", "at most"


@dataclass(frozen=True)
class Figure:
    """One measured number: the median of some turns, with their range."""

    name: str  # by which pages refer to it
    part: str  # the part of the run that measured it
    what: str  # what was measured, for people
    unit: str
    median: float
    low: float
    high: float
    turns: int
    goal: float | None = None
    bound: str = AT_LEAST  # whether the goal is the least or the most
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the median reaches the goal; None without a goal."""
        if self.goal is None:
            return None
        return self.median >= self.goal if self.bound == AT_LEAST else self.median <= self.goal


@dataclass(frozen=True)
class Results:
    """One run of all parts on one machine."""

    processor: str
    threads: int  # of each engine and of torch
    python: str
    versions: dict[str, str]  # of the packages that are installed
    commit: str  # of the code that was measured, with "+" if files differed from it
    date: str  # UTC, when the run began
    is_trial: bool  # whether it took too few turns to be believed
    load_average: list[float]  # of the minute before the run
    figures: list[Figure] = field(default_factory=list)
    seconds: float = 0.0  # that the run took
    left_out: list[str] = field(default_factory=list)  # a sentence for each thing that was not measured here

    @property
    def file_name(self) -> str:
        """The processor's name as that of a file."""
        return re.sub(r"[^a-z0-9]+", "-", self.processor.lower()).strip("-") + ".json"

    def of(self, name: str) -> Figure:
        """Return a figure by its name."""
        return next(one for one in self.figures if one.name == name)

    def save(self, path: Path) -> None:
        """Write JSON; whether a goal is met is written too, for readers of the file."""
        values = asdict(self)
        for one, figure in zip(values["figures"], self.figures, strict=True):
            one["is_met"] = figure.is_met
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read what `save` wrote."""
        values: dict[str, Any] = json.loads(path.read_text())
        figures = []
        for one in values.pop("figures"):
            is_met = one.pop("is_met")
            figure = Figure(**one)
            assert figure.is_met == is_met, f"{path}: {figure.name} says that its goal is met: {is_met}"
            figures.append(figure)
        return cls(**values, figures=figures)


def figure_of(name: str, what: str, unit: str, values: Sequence[float], **rest: Any) -> Figure:
    """Return the figure of one value per turn; its part is filled in by the run."""
    median, low, high = map(_rounded, (statistics.median(values), min(values), max(values)))
    return Figure(name, "", what, unit, median, low, high, len(values), **rest)


def ratio_of(name: str, what: str, theirs: Sequence[float], ours: Sequence[float], **rest: Any) -> Figure:
    """Return how many times faster ours was: turn by turn, as both took turns."""
    note = f"{_seconds(statistics.median(theirs))} / {_seconds(statistics.median(ours))}"
    return figure_of(name, what, "x", [one / other for one, other in zip(theirs, ours, strict=True)], note=note, **rest)


def begin(threads: int, is_trial: bool) -> Results:
    """Describe this machine and this code, before anything is measured."""
    return Results(
        processor=Machine.here().cpu,
        threads=threads,
        python=platform.python_version(),
        versions=dict(_versions()),
        commit=_commit(),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        is_trial=is_trial,
        load_average=[round(one, 2) for one in os.getloadavg()],
    )


def in_part(figure: Figure, part: str) -> Figure:
    """Return a figure with the part that measured it."""
    return replace(figure, part=part)


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:  # noqa: PERF203 - some are optional
            continue


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=FOLDER.parent, capture_output=True, text=True, check=False)  # noqa: S607 - as the user runs it
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
