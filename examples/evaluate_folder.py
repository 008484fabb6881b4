"""Measure a bundle on a folder of pictures with masks: 0/1 exact ratio and mIoU over few-shot episodes.

    python examples/evaluate_folder.py --bundle DIR --data DIR --classes cat dog --way 1 --shot 1 --episodes 500

The folder holds `<class>/images/<stem>.*` and `<class>/masks/<stem>.*`. The episodes are those of the FS-CS benchmarks
(CST, section 4): the query's class is among the support classes with weight 1/2, the other classes share the rest, so
about half of the one-way episodes show an absent class. Exact ratio: episodes in which every presence answer is right.
mIoU: intersections and unions are summed per class over all episodes, and the classes' ratios averaged.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.bank import CachedSupport
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.pictures import PICTURE_SUFFIXES, read_image, read_mask
from fsvit_edge.runtime.predictor import FewShotModel


@dataclass(frozen=True)
class Picture:
    """A picture and its mask, as files.

    Attributes:
        image: The picture.
        mask: Its mask for the class under which it stands.
        digest: The same for every copy of the picture; one may stand under several classes.
    """

    image: Path
    mask: Path
    digest: str


@dataclass
class Tally:
    """Sums over the episodes in which a class was asked for.

    Attributes:
        asked: How often it was.
        right: How often its presence was judged rightly.
        intersection: Pixels.
        union: Pixels.
    """

    asked: int = 0
    right: int = 0
    intersection: int = 0
    union: int = 0


@dataclass
class Scores:
    """The result.

    Attributes:
        episodes: How many were run.
        exact: In how many every presence answer was right.
        classes: Sums for each class.
    """

    episodes: int = 0
    exact: int = 0
    classes: dict[str, Tally] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Give the ratios, in percent; None where nothing was measured."""
        per_class = {
            name: {"presence": _percent(t.right, t.asked), "iou": _percent(t.intersection, t.union), "asked": t.asked}
            for name, t in self.classes.items()
        }
        ious = [t.intersection / t.union for t in self.classes.values() if t.union]
        return {
            "episodes": self.episodes,
            "exact_ratio": _percent(self.exact, self.episodes),
            "miou": _percent(sum(ious), len(ious)),
            "classes": per_class,
        }


def list_pictures(data: Path, classes: list[str]) -> dict[str, list[Picture]]:
    """Find the pictures that have a mask, by class."""
    found = {}
    for name in classes or sorted(path.name for path in data.iterdir() if (path / "masks").is_dir()):
        if not (data / name / "masks").is_dir():
            raise InputError(f"{data / name} has no folder masks; is {name} a class of {data}?")
        masks = {path.stem: path for path in (data / name / "masks").iterdir()}
        found[name] = [
            Picture(path, masks[path.stem], hashlib.sha256(path.read_bytes()).hexdigest())
            for path in sorted((data / name / "images").iterdir())
            if path.suffix.lower() in PICTURE_SUFFIXES and path.stem in masks
        ]
        if len(found[name]) < 2:
            raise InputError(f"Class {name} of {data} needs at least two pictures with masks.")
    return found


def draw_ways(
    pictures: dict[str, list[Picture]], name: str, query: Picture, ways: int, rng: np.random.Generator
) -> list[str]:
    """Draw the support classes of an episode.

    A class under which the query stands too is never drawn beside the query's own: its truth is in another mask.

    Args:
        pictures: All pictures, by class.
        name: The query's class.
        query: The query.
        ways: How many to draw.
        rng: Where the chance comes from.
    """
    others = [o for o in pictures if o != name and all(p.digest != query.digest for p in pictures[o])]
    if len(others) < ways:
        raise InputError(f"{ways}-way episodes need {ways + 1} classes that do not share {query.image}.")
    weights = np.array([0.5] + [0.5 / len(others)] * len(others))
    return [str(way) for way in rng.choice([name, *others], size=ways, replace=False, p=weights)]


def evaluate(
    model: FewShotModel,
    pictures: dict[str, list[Picture]],
    ways: int,
    shots: int,
    episodes: int,
    seed: int,
    names_only: bool,
) -> Scores:
    """Run episodes. A class with too few pictures gives all that it has besides the query."""

    @cache
    def enrolled(picture: Picture) -> CachedSupport:
        image = read_image(picture.image)
        mask = None if names_only else read_mask(picture.mask, image.shape[:2])
        model.enroll("picture", [image], [mask])
        (support,) = model.bank.supports("picture")
        model.remove("picture")
        return support

    scores = Scores(classes={name: Tally() for name in pictures})
    for number in range(episodes):
        rng = np.random.default_rng((seed, number))
        name = str(rng.choice(list(pictures)))
        query = pictures[name][rng.integers(len(pictures[name]))]
        chosen = {}
        for way in draw_ways(pictures, name, query, ways, rng):
            candidates = [picture for picture in pictures[way] if picture.digest != query.digest]
            taken = rng.choice(len(candidates), size=min(shots, len(candidates)), replace=False)
            chosen[way] = [enrolled(candidates[index]) for index in taken]
        # Removing makes the model forget what it prepared for the head; adding to the bank alone would not.
        for old in model.classes:
            model.remove(old)
        for way, supports in chosen.items():
            model.bank.add(way, supports)
        count(scores, model, query, name)
    return scores


def count(scores: Scores, model: FewShotModel, query: Picture, name: str) -> None:
    """Ask the model about a query of class `name` and add its answers to the scores."""
    image = read_image(query.image)
    prediction = model.predict(image)
    truth = read_mask(query.mask, image.shape[:2])
    right = []
    for way, (asked, present) in enumerate(zip(prediction.classes, prediction.present, strict=True)):
        there: npt.NDArray[np.bool_] = truth if asked == name else np.zeros_like(truth)
        found = prediction.label_map == way + 1
        tally = scores.classes[asked]
        right.append(bool(present) == (asked == name))
        tally.asked += 1
        tally.right += right[-1]
        tally.intersection += int((found & there).sum())
        tally.union += int((found | there).sum())
    scores.episodes += 1
    scores.exact += all(right)


def _percent(part: float, whole: int) -> float | None:
    return round(100 * part / whole, 1) if whole else None


def main() -> None:
    """Read the options, run the episodes, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="folder of the exported model; by default the one shipped")
    parser.add_argument("--data", type=Path, required=True, help="folder <class>/{images,masks}/<stem>.*")
    parser.add_argument("--classes", nargs="+", default=[], help="by default all")
    parser.add_argument("--way", type=int, default=1)
    parser.add_argument("--shot", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--names-only", action="store_true", help="enrol without masks, by the encoder's pseudo-masks")
    parser.add_argument("--engine", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        pictures = list_pictures(options.data, options.classes)
        with FewShotModel.load(options.bundle, options.engine, options.threads) as model:
            scores = evaluate(
                model, pictures, options.way, options.shot, options.episodes, options.seed, options.names_only
            )
    except FsvitEdgeError as error:
        sys.exit(f"error: {error}")
    result = scores.to_dict()
    if options.json:
        print(json.dumps(result, indent=2))
        return
    kind = "names only" if options.names_only else "with masks"
    print(f"{options.way}-way {options.shot}-shot, {kind}, {scores.episodes} episodes, seed {options.seed}")
    print(f"0/1 exact ratio {result['exact_ratio']} %, mIoU {result['miou']} %")
    for name, tally in scores.classes.items():
        presence, iou = _percent(tally.right, tally.asked), _percent(tally.intersection, tally.union)
        print(f"  {name:<20} presence {presence} %, IoU {iou} %, asked {tally.asked} times")


if __name__ == "__main__":
    main()
