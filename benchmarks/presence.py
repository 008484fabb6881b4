"""Measure how reliable the presence score is: find each class of a data set among the pictures of the others.

    python benchmarks/presence.py --sets DIR DIR ... [--per-class N] [--levels] [--bundle DIR]

It enrolls all classes of a folder <class>/{images,masks}/<stem>.* from their first 1 or 3 pictures, with masks and with
the class name only, then asks every other picture about all classes, as `fsvit-edge eval --protocol scenes` does.
Pictures of other classes are scenes without the class. If each folder contains the frames of one video, a set of videos
becomes a set of scenes.

It prints means over the classes, in percent: hits and false alarms at the current levels, the area under the curve, and
the hits at 1 % false alarms (one level per class, and one level for all classes). --levels adds, for one support with
its mask, the results at other levels, and how many answers would be right if one picture in twenty showed the object.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from model_options import model_parser, open_model

from fsvit_edge.learn.datasets import open_data
from fsvit_edge.learn.metrics import Score
from fsvit_edge.learn.scenes import SceneOptions, SceneResult, SceneTally, evaluate_scenes, hits_and_false_alarms
from fsvit_edge.runtime.errors import InputError

SHOTS = (1, 3)
_COLUMNS = (
    "set",
    "shots",
    "supports",
    "classes",
    "pictures",
    "hits",
    "false alarms",
    "area",
    "hits at 1 %",
    "hits at 1 %, one level",
)
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)
LEVELS_HEADER = "| level | hits | false alarms | right, 1 in 20 |\n| --- | --- | --- | --- |"
SHARE_PRESENT = 0.05
HEADER = f"| {' | '.join(_COLUMNS)} |\n|{' --- |' * len(_COLUMNS)}"


def main() -> None:
    """Measure every data set and print a table."""
    parser = model_parser(__doc__)
    parser.add_argument("--sets", type=Path, nargs="+", required=True, help="<class>/{images,masks}/<stem>.*")
    parser.add_argument("--per-class", type=int, help="maximum number of scenes per class; default: all")
    parser.add_argument("--levels", action="store_true", help="also print hits and false alarms at other levels")
    options = parser.parse_args()
    with open_model(options) as model:
        print(HEADER, flush=True)
        for root in options.sets:
            data = open_data("folder", root, None, None, "test")
            for shots in SHOTS:
                for masks in (True, False):
                    try:
                        result = evaluate_scenes(model, data, SceneOptions(shots, masks, options.per_class))
                    except InputError as error:  # a class has fewer pictures than shots
                        print(f"{root.name}, {shots} shots: {error}", file=sys.stderr)
                        continue
                    print(row(root.name, result), flush=True)
                    if options.levels and shots == 1 and masks:
                        print("\n".join([LEVELS_HEADER, *level_rows(result.tally)]), flush=True)


def row(name: str, result: SceneResult) -> str:
    """Return one row of the table with `HEADER`."""
    scores = result.scores
    values = (
        scores.hits,
        scores.false_alarms,
        scores.area,
        scores.hits_at_1_percent,
        scores.pooled_hits_at_1_percent,
    )
    options = result.options
    facts = (name, options.shots, "with masks" if options.masks else "names only", len(scores.classes), result.pictures)
    return f"| {' | '.join([*map(str, facts), *map(_percent, values)])} |"


def level_rows(tally: SceneTally) -> list[str]:
    """Return a row of the table with `LEVELS_HEADER` for each of `LEVELS`: means over the classes in percent."""
    lines = []
    for level in LEVELS:
        hits, alarms = hits_and_false_alarms(replace(tally, levels=np.full_like(tally.levels, level)))
        right = SHARE_PRESENT * hits + (1 - SHARE_PRESENT) * (100 - alarms)
        lines.append(f"| {level:g} | {hits:.1f} | {alarms:.1f} | {right:.1f} |")
    return lines


def _percent(score: Score | None) -> str:
    return "-" if score is None else f"{score.value:.1f}"


if __name__ == "__main__":
    main()
