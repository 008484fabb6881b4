"""How far the presence score can be trusted: each class of a set is found among the other classes' pictures.

    python benchmarks/presence.py --sets DIR DIR ... [--per-class N] [--levels] [--bundle DIR]

All classes of a folder <class>/{images,masks}/<stem>.* are enrolled from their first pictures, 1 and 3 of them, with
masks and by name alone; every other picture is asked for all classes, those of other classes as scenes without it. Of a
video's frames one folder is one class, so that a set of videos becomes a set of scenes. It is what
`fsvit-edge eval --protocol scenes` runs.

Printed, in percent, means over the classes: hits and false alarms at the levels in use, the area under the curve, and
the hits at 1 % false alarms: each class at its own level, and all classes at one. --levels adds, for one support with
its mask, what other levels would give, and how many answers would be right where the thing is in one of twenty
pictures.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from fsvit_edge.learn.datasets import open_data
from fsvit_edge.learn.metrics import Score
from fsvit_edge.learn.scene_metrics import SceneTally, hits_and_false_alarms
from fsvit_edge.learn.scenes import SceneOptions, SceneResult, evaluate_scenes
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.predictor import FewShotModel

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
    """Measure every data set and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, nargs="+", required=True, help="<class>/{images,masks}/<stem>.*")
    parser.add_argument("--per-class", type=int, help="pictures of each class to judge; default: all")
    parser.add_argument("--levels", action="store_true", help="tell hits and false alarms at other levels too")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    with FewShotModel.load(options.bundle, threads=options.threads) as model:
        print(f"{model.manifest.name}, {model.choice.description}")
        print(HEADER, flush=True)
        for root in options.sets:
            data = open_data("folder", root, None, None, "test")
            for shot in SHOTS:
                for masks in (True, False):
                    try:
                        result = evaluate_scenes(model, data, SceneOptions(shot, masks, options.per_class))
                    except InputError as error:  # a class has fewer pictures than shots
                        print(f"{root.name}, {shot} shots: {error}", file=sys.stderr)
                        continue
                    print(row(root.name, result), flush=True)
                    if options.levels and shot == 1 and masks:
                        print("\n".join([LEVELS_HEADER, *level_rows(result.tally)]), flush=True)


def row(name: str, result: SceneResult) -> str:
    """Give one line of the table below `HEADER`."""
    scores = result.scores
    figures = (
        scores.hits,
        scores.false_alarms,
        scores.area,
        scores.hits_at_1_percent,
        scores.pooled_hits_at_1_percent,
    )
    options = result.options
    facts = (name, options.shots, "with masks" if options.masks else "names only", len(scores.classes), result.pictures)
    return f"| {' | '.join([*map(str, facts), *map(_percent, figures)])} |"


def level_rows(tally: SceneTally) -> list[str]:
    """Give a line of the table below `LEVELS_HEADER` for each of `LEVELS`, means over the classes in percent."""
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
