"""The tables of speeds in README.md and docs/, made of one file that `figures.py` wrote.

A page has a block for each table, which is replaced whole:

    <!-- figures: NAME of FILE -->
    ...
    <!-- end of figures -->

NAME is "readme", "machine" or a part of `figures.py`; FILE is the file's name in `benchmarks/results/`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from results import FOLDER, Figure, Results

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "measured" / "speed.md")
BLOCK = re.compile(
    r"(?<=^<!-- figures: )(?P<name>\w+) of (?P<file>[\w.-]+) -->\n.*?(?=^<!-- end of figures -->$)", re.M | re.S
)
TRIAL = "**A trial of too few turns: these figures only show that the script runs.**"
LARGE = ("large_frame_fp32", "large_frame_ratio", "large_frame_fastest")
README_ROWS = {
    "`run demo`": ("demo", "demo_memory"),
    "3 classes, 67 % cover": ("large_masks",),
    "ViT-S/8, 400 px, 5 classes: frame; published / ours; fastest precision": LARGE,
}


def fill(text: str, results: Results) -> str:
    """Return a page with its blocks made of `results`."""

    def block(found: "re.Match[str]") -> str:
        name = found["name"]
        lines = WHOLE[name](results) if name in WHOLE else _part(results, name)
        return f"{name} of {results.file_name} -->\n" + "".join(f"{line}\n" for line in lines)

    return BLOCK.sub(block, text)


def source_of(text: str) -> Path:
    """Return the file that a page's blocks were made of."""
    names = {found["file"] for found in BLOCK.finditer(text)}
    assert len(names) == 1, f"the blocks of a page were made of several files: {names}"
    return FOLDER / names.pop()


def write_pages(results: Results) -> None:
    """Replace the blocks of every page."""
    for page in PAGES:
        page.write_text(fill(page.read_text(), results))


def value(figure: Figure) -> str:
    """Return a figure's median with its unit."""
    return f"{number(figure.median)} {figure.unit}".rstrip()


def number(amount: float) -> str:
    """Return three digits of a number, or all in front of the point."""
    if amount != 0 and abs(amount) < 1e-3:
        return f"{amount:.1e}"
    return f"{amount:.0f}" if abs(amount) >= 100 else f"{amount:.3g}"


def verdict(figure: Figure) -> str:
    """Return the goal and whether it is met; nothing without a goal."""
    if figure.goal is None:
        return ""
    return f"{figure.bound} {number(figure.goal)}" + (": met" if figure.is_met else ": **missed**")


def _readme(results: Results) -> Iterator[str]:
    measured = "measured in a trial" if results.is_trial else "measured"
    yield f"| {results.processor}, {results.threads} threads | {measured} |"
    yield "|---|---|"
    for what, names in README_ROWS.items():
        yield f"| {what} | {'; '.join(value(results.of(name)) for name in names)} |"


def _machine(results: Results) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    yield f"{results.processor}, {results.threads} threads, Python {results.python}, {versions}."
    state = f"Commit {results.commit}, {results.date} UTC, load average before: {results.load_average[0]:g}."
    yield state + (f" {TRIAL}" if results.is_trial else "")
    for sentence in results.left_out:
        yield f"Not measured: {sentence}"


def _part(results: Results, part: str) -> Iterator[str]:
    yield "| what | median | range | goal |"
    yield "|---|---|---|---|"
    for figure in (one for one in results.figures if one.part == part):
        spread = f"{number(figure.low)} to {number(figure.high)}" if figure.turns > 1 else ""
        note = f" ({figure.note})" if figure.note else ""
        yield f"| {figure.what} | {value(figure)}{note} | {spread} | {verdict(figure)} |"


WHOLE = {"readme": _readme, "machine": _machine}
"""Blocks that are no part of a run."""
