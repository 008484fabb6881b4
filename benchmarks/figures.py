"""Measure every speed that the documentation states, in one run, and write it to benchmarks/results/<processor>.json.

    python benchmarks/figures.py [--quick] [--turns N] [--parts NAME ...] [--output FILE] [--pages]
    python benchmarks/figures.py --readme [FILE]

With --pages, the tables in README.md and docs/ are made of the result; --readme makes them of an earlier one.
What is compared takes turns in one process, and its ratio is taken turn by turn, because timings on a shared machine
drift. Figures are medians of the turns with their range; the goals are those of the project.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import sources
import torch
from pages import PAGES, number, source_of, value, verdict, write_pages
from results import FOLDER, Figure, Results, begin, in_part
from speed_networks import measure_large, measure_small
from speed_runs import measure_answers, measure_command, measure_demo, measure_large_masks, measure_live
from turns import Setting

from fsvit_edge.runtime.limits import usable_cores

ENOUGH_TURNS = 7
QUICK = Setting(
    threads=1, turns=1, clip_frames=8, live_s=120.0, live_frames=40, backbone="vit_nano_patch8_64", image_size=48
)  # a stand-in: it only shows that everything runs


PARTS: dict[str, Callable[[Setting], Iterator[Figure]]] = {
    "demo": measure_demo,
    "masks": measure_large_masks,
    "small": measure_small,
    "large": measure_large,
    "live": measure_live,
    "answers": measure_answers,
    "command": measure_command,
    "sources": sources.measure_figures,
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few turns and a tiny large network: it only tries all")
    parser.add_argument("--turns", type=int, default=ENOUGH_TURNS, help="of everything; with fewer, it is a trial")
    parser.add_argument("--output", type=Path, help="the JSON file; default: by the processor, in benchmarks/results/")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="measure only these")
    parser.add_argument("--pages", action="store_true", help="make the pages' tables of the result")
    parser.add_argument(
        "--readme", nargs="?", type=Path, const=Path(), metavar="FILE", help="default: the file of README's table"
    )
    options = parser.parse_args()
    if options.readme is not None:
        from_file = source_of(PAGES[0].read_text()) if options.readme == Path() else options.readme
        write_pages(Results.load(from_file))
        return
    if options.pages and (options.quick or options.parts != list(PARTS)):
        parser.error("--pages needs a whole run: leave out --quick and --parts.")
    setting = QUICK if options.quick else Setting(threads=usable_cores(), turns=options.turns)
    with tempfile.TemporaryDirectory() as folder:
        # As on first contact: engines that were built or timed here before must not run.
        os.environ["XDG_CACHE_HOME"] = folder
        results = run(replace(setting, folder=Path(folder)), options.parts)
    path = options.output or FOLDER / results.file_name
    results.save(path)
    print(f"{results.seconds:.0f} s; wrote {path}")
    if options.pages:
        write_pages(results)


def run(setting: Setting, parts: list[str]) -> Results:
    """Measure the parts, and print each figure as soon as it is there."""
    results = begin(setting.threads, is_trial=setting.turns < ENOUGH_TURNS)
    print(f"{results.processor}, {results.threads} threads, {results.versions}, commit {results.commit}", flush=True)
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    started = time.monotonic()
    figures = []
    for part in parts:
        for figure in PARTS[part](setting):
            figures.append(in_part(figure, part))
            print(line(figures[-1]), flush=True)
        print(f"    [{part}: at {time.monotonic() - started:.0f} s]", file=sys.stderr, flush=True)
    for sentence in setting.left_out:
        print(f"Not measured: {sentence}")
    seconds = round(time.monotonic() - started, 1)
    return replace(results, figures=figures, seconds=seconds, left_out=setting.left_out)


def line(figure: Figure) -> str:
    """Return a figure as a line for people."""
    spread = f", {number(figure.low)} to {number(figure.high)}" if figure.turns > 1 else ""
    note = f", {figure.note}" if figure.note else ""
    goal = f" (goal: {verdict(figure).replace('**', '')})" if figure.goal is not None else ""
    return f"{figure.part}: {figure.what}: {value(figure)}{spread}{note}{goal}"


if __name__ == "__main__":
    main()
