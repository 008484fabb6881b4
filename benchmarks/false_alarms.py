"""Measure what removes false alarms: pictures of the empty scene, one negative, and classes that exclude each other.

    python benchmarks/false_alarms.py --sets DIR DIR ... [--bundle DIR]

Each folder <class>/{images,masks}/<stem>.* is a class, enrolled from its first picture and its mask; its other pictures
show it. The pictures of every other class are a scene without it, so the pictures of a class should be frames of one
video. It prints, in percent unless said otherwise, before and after:

scene      two pictures of each scene learned: hits and false alarms over all pairs of class and scene
negative   the first alarm of each class in each scene rejected, where the class was seen: false alarms in the other
           pictures of that scene, and hits of the class, alone or above or below a picture of the scene
exclusive  all classes in one bank: hits and false classes per picture (a number), for pictures of one class and for two
           pictures, one above the other
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from model_options import model_parser, open_model

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.decide import scene_level
from fsvit_edge.fewshot.enrollment import make_negative
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.runtime.masks import read_mask
from fsvit_edge.runtime.pictures import read_image

SCENE_FRAMES = 2
HEADER = "| set | measure | cases | hits | with it | false | with it |\n|" + " --- |" * 7


@dataclass(frozen=True)
class VideoClass:
    """A class: its support, the pictures that show it, and all of them as a scene for the other classes."""

    name: str
    support: CachedSupport
    shown: list[Image]
    scene: list[Image]


def main() -> None:
    """Measure every data set and print a table."""
    parser = model_parser(__doc__)
    parser.add_argument("--sets", type=Path, nargs="+", required=True, help="<class>/{images,masks}/<stem>.*")
    options = parser.parse_args()
    with open_model(options) as model:
        print(HEADER, flush=True)
        for root in options.sets:
            classes = read_classes(model, root)
            model.exclusive = False
            scores = [answers(model, classes, one.scene) for one in classes]
            print(_row(root.name, "scene", scene_results(model, classes, scores)), flush=True)
            for measure, result in negative_results(model, classes, scores).items():
                print(_row(root.name, measure, result), flush=True)
            for measure, result in exclusive_results(model, classes).items():
                print(_row(root.name, measure, result), flush=True)


@dataclass(frozen=True)
class Result:
    """Shares, before and after; `false` is in false alarms per answer, or in false classes per picture."""

    cases: int
    hits: tuple[float, float]
    false: tuple[float, float]


def _row(name: str, measure: str, result: Result) -> str:
    false = [f"{value:.3f}" if "exclusive" in measure else f"{100 * value:.2f}" for value in result.false]
    hits = [f"{100 * value:.1f}" for value in result.hits]
    return f"| {' | '.join([name, measure, str(result.cases), *hits, *false])} |"


def read_classes(model: FewShotModel, root: Path) -> list[VideoClass]:
    """Enroll the first picture of every class."""
    classes = []
    for folder in sorted(path for path in root.iterdir() if (path / "masks").is_dir()):
        first, *others = sorted((folder / "images").iterdir())
        image = read_image(first)
        mask = read_mask(folder / "masks" / f"{first.stem}.png", image.shape[:2])
        shown = [read_image(path) for path in others]
        classes.append(VideoClass(folder.name, model.cache_support(folder.name, image, mask), shown, [image, *shown]))
    return classes


def bank_of(model: FewShotModel, classes: Sequence[VideoClass]) -> SupportBank:
    """Return a bank of these classes."""
    bank = model.bank.emptied()
    for one in classes:
        bank.add(one.name, [one.support])
    return bank


def answers(model: FewShotModel, classes: Sequence[VideoClass], pictures: Sequence[Image]) -> np.ndarray:
    """Return the score of each class in each picture, (pictures, classes)."""
    bank = bank_of(model, classes)
    return np.array([model.predict_with(picture, [bank])[0].scores for picture in pictures])


def scene_results(model: FewShotModel, classes: Sequence[VideoClass], scores: list[np.ndarray]) -> Result:
    """Learn the first and last picture of each scene."""
    level = float(bank_of(model, classes).levels[0])
    hits, false = [], []
    for way in range(len(classes)):
        own = scores[way][1:, way]
        for scene in range(len(classes)):
            if scene != way:
                seen = scores[scene][:, way]
                learned = np.linspace(0, len(seen) - 1, SCENE_FRAMES).astype(int)
                others = np.delete(seen, learned)
                raised = scene_level(level, seen[learned].tolist())
                hits.append([(own > level).mean(), (own > raised).mean()])
                false.append([(others > level).mean(), (others > raised).mean()])
    return _mean(hits, false)


def negative_results(model: FewShotModel, classes: Sequence[VideoClass], scores: list[np.ndarray]) -> dict[str, Result]:
    """Reject the first alarm of each class in each scene that has one."""
    hits, both, false = [], [], []
    for way, one in enumerate(classes):
        before = bank_of(model, [one])
        level = float(before.levels[0])
        for number, other in enumerate(classes):
            alarms = np.flatnonzero(scores[number][:, way] > level)
            if number == way or not len(alarms):
                continue
            frame = other.scene[alarms[0]]
            seen = model.predict_with(frame, [before])[0].pixels(one.name)
            after = bank_of(model, [one])
            after.add_negative(one.name, make_negative(model.network, (one.support,), frame, seen)[0])
            banks = [before, after]
            rest = [picture for index, picture in enumerate(other.scene) if index != alarms[0]]
            stacked = [stack(shown, rest[index % len(rest)]) for index, shown in enumerate(one.shown)]
            hits.append(_present(model, banks, one.shown))
            both.append(_present(model, banks, stacked))
            false.append(_present(model, banks, rest))
    return {"negative": _mean(hits, false), "negative, both in view": _mean(both, false)}


def exclusive_results(model: FewShotModel, classes: Sequence[VideoClass]) -> dict[str, Result]:
    """Enroll all classes in one bank and let them compete."""
    bank = bank_of(model, classes)
    single = [(shown, {way}) for way, one in enumerate(classes) for shown in one.shown]
    double = []
    rng = np.random.default_rng(0)
    for first, one in enumerate(classes):
        for shown in one.shown[::2]:
            second = int(rng.choice([way for way in range(len(classes)) if way != first]))
            below = classes[second].shown[int(rng.integers(len(classes[second].shown)))]
            double.append((stack(shown, below), {first, second}))
    results = {}
    for name, cases in (("exclusive, one class in view", single), ("exclusive, two in view", double)):
        hits, false = [], []
        for picture, ways in cases:
            found = []
            for exclusive in (False, True):
                model.exclusive = exclusive
                found.append(set(np.flatnonzero(model.predict_with(picture, [bank])[0].present).tolist()))
            hits.append([len(one & ways) / len(ways) for one in found])
            false.append([float(len(one - ways)) for one in found])
        results[name] = _mean(hits, false)
    model.exclusive = False
    return results


def stack(above: Image, below: Image) -> Image:
    """Return two pictures one above the other, each half as high as wide: the encoder sees a square."""
    half = [cv2.resize(picture, (448, 224), interpolation=cv2.INTER_AREA) for picture in (above, below)]
    return np.asarray(np.vstack(half), np.uint8)


def _present(model: FewShotModel, banks: Sequence[SupportBank], pictures: Sequence[Image]) -> list[float]:
    found = [[bool(one.present[0]) for one in model.predict_with(picture, banks)] for picture in pictures]
    return [float(share) for share in np.mean(found, axis=0)]


def _mean(hits: list[list[float]], false: list[list[float]]) -> Result:
    means = [tuple(float(value) for value in np.mean(values, axis=0)) for values in (hits, false)]
    return Result(len(hits), (means[0][0], means[0][1]), (means[1][0], means[1][1]))


if __name__ == "__main__":
    main()
