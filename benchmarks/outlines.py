"""Measure how well outlines fit: enroll one support per class, and segment later pictures of the class.

    python benchmarks/outlines.py [--sets DIR ...] [--labeled DIR ...] [--bundle DIR] [--classes] [--max-loss POINTS]

For each data set it prints the mean IoU over the classes in percent (of all pixels of a class, at the pictures' own
size) for plain outlines (CST alone) and for sharp ones (with objectness), the change of the class that loses most, and
the mean weight that the supports give to objectness; all of this with the support's mask and with the class name only.
Every picture shows its class, so presence does not count. With --max-loss it fails (exit code 5) if a class whose
support has a mask loses more points from plain to sharp.

--sets are folders <class>/{images,masks}/<stem>.*: the support is the first picture in which the object covers more
than 0.2 %, and the queries are the next 4 of these pictures. --labeled are sequences: images/<stem>.*, and
labels/<stem>.png with a label number in every pixel (255: ignored), and labels.txt, here or in the folder above, with
a line "NUMBER NAME" per label. A picture shows a label that covers more than 0.5 % of it; a label (except void) that
more than 5 pictures show is a class. Its first picture is the support; the queries are at most 4 evenly spaced
pictures from the sixth on, when the scene has moved.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from model_options import model_parser

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.learn.datasets import open_data
from fsvit_edge.learn.evaluation import cache_example
from fsvit_edge.learn.examples import IGNORE, Example, FewShotData, check_size, read_stored_mask
from fsvit_edge.learn.metrics import count_pixels
from fsvit_edge.runtime.errors import AccuracyGateError, FsvitEdgeError, InputError
from fsvit_edge.runtime.pictures import by_stem, pictures_in

_ANY_SCORE = 1e-6
"""A level at which every class counts as present, because sharp outlines leave out absent classes."""
QUERIES = 4
"""Number of query pictures per class."""
MIN_COVER = 0.002
"""Smallest share of a picture that the object covers."""
MIN_LABEL_COVER = 0.005
"""The same for labeled sequences, where most labels are in every picture, often as a few distant pixels."""
LATER = 5
"""Smallest distance between the support and the first query in a sequence, in pictures."""
VOID = "void"


@dataclass(frozen=True)
class Question:
    """A class with its support and its queries, which are indices of examples that show it."""

    label: int
    support: int
    queries: tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """How well the outlines of one class fit, with one kind of support."""

    plain: float  # IoU in percent of plain outlines (CST alone)
    sharp: float | None  # IoU in percent of sharp outlines; None if the bundle predicts no objectness
    weight: float  # weight that the support gives to objectness

    @property
    def change(self) -> float:
        """Change from plain to sharp in percentage points."""
        return 0.0 if self.sharp is None else self.sharp - self.plain


@dataclass(frozen=True)
class ClassFit:
    """The results of one class."""

    name: str
    masked: Fit  # of a support with its mask
    named: Fit  # of the same support with the class name only


def main() -> None:
    """Measure every data set, print the table, then check --max-loss."""
    parser = model_parser(__doc__)
    parser.add_argument("--sets", type=Path, nargs="+", default=[], help="<class>/{images,masks}/<stem>.*")
    parser.add_argument("--labeled", type=Path, nargs="+", default=[], help="sequences: images/, labels/, labels.txt")
    parser.add_argument("--labels", default="", help="labels of the sequences to use: NAME,NAME,...; default: all")
    parser.add_argument("--classes", action="store_true", help="also print a row for each class")
    parser.add_argument(
        "--max-loss", type=float, metavar="POINTS", help="fail if a class loses more points with sharp outlines"
    )
    options = parser.parse_args()
    if not options.sets and not options.labeled:
        parser.error("give --sets or --labeled")
    names = [name for name in options.labels.split(",") if name]
    opened: list[tuple[Path, Callable[[Path], tuple[FewShotData, list[Question]]]]] = [
        *((root, open_folder) for root in options.sets),
        *((root, lambda root: open_sequence(root, names)) for root in options.labeled),
    ]
    with FewShotModel.load(options.bundle, precision=options.precision, threads=options.threads) as model:
        if options.max_loss is not None and kinds_of(model) == ("plain",):
            raise InputError(
                f"{options.bundle} predicts no objectness, so --max-loss has nothing to check; leave it out."
            )
        print(f"{model.manifest.name}, {model.choice.description}")
        print(HEADER, flush=True)
        found: list[tuple[str, list[ClassFit]]] = []
        for root, opener in opened:
            found.append((set_name(root), measure(model, *opener(root))))
            print("\n".join(rows(*found[-1], options.classes)), flush=True)
    if options.max_loss is not None:
        check_losses(found, options.max_loss)


def kinds_of(model: FewShotModel) -> tuple[str, ...]:
    """Return the kinds of outlines that a newly opened model can draw, the best first."""
    return ("sharp", "plain") if model.outlines == "sharp" else ("plain",)


def measure(model: FewShotModel, data: FewShotData, questions: Sequence[Question]) -> list[ClassFit]:
    """Return the result of each question; the encoder sees each query once, for all classes."""
    supports = [[_plain_and_sharp(model, data, one.support, masks) for masks in (True, False)] for one in questions]
    banks = [[_bank(model, support) for both in of_class for support in both] for of_class in supports]
    model.set_level_for_all(_ANY_SCORE)
    asked: dict[str, list[tuple[int, int]]] = {}
    for number, question in enumerate(questions):
        for query in question.queries:
            asked.setdefault(data.examples[query].photograph, []).append((number, query))
    pixels = np.zeros((len(questions), 4, 2), np.int64)  # intersections and unions
    for of_picture in asked.values():
        image = data.read_image(of_picture[0][1])
        answers = model.predict_with(image, [bank for number, _ in of_picture for bank in banks[number]])
        for place, (number, query) in enumerate(of_picture):
            truth = data.read_mask(query)
            for kind, answer in enumerate(answers[4 * place : 4 * place + 4]):
                shared, joined = count_pixels(answer.label_map, truth, 1)
                pixels[number, kind] += shared[0], joined[0]
    model.set_level_for_all(None)
    ious = 100 * pixels[..., 0] / np.maximum(pixels[..., 1], 1)
    has_sharp = "sharp" in kinds_of(model)
    fits = []
    for question, of_class, iou in zip(questions, supports, ious.tolist(), strict=True):
        masked, named = (
            Fit(plain, sharp if has_sharp else None, support.objectness_weight)
            for (_, support), plain, sharp in zip(of_class, iou[::2], iou[1::2], strict=True)
        )
        fits.append(ClassFit(data.class_names[question.label], masked, named))
    return fits


def _plain_and_sharp(
    model: FewShotModel, data: FewShotData, index: int, masks: bool
) -> tuple[CachedSupport, CachedSupport]:
    """Return a support twice; the plain one gives objectness no weight, so its outlines are plain."""
    best = model.outlines
    model.outlines = "plain"
    plain = cache_example(model, data, index, masks)
    model.outlines = best
    return plain, cache_example(model, data, index, masks)


def _bank(model: FewShotModel, support: CachedSupport) -> SupportBank:
    bank = model.bank.emptied()
    bank.add("it", [support])
    return bank


# ---------------------------------------------------------------------------------------------------------- questions


def open_folder(root: Path) -> tuple[FewShotData, list[Question]]:
    """Open a folder of classes; leave out classes with fewer than two usable pictures."""
    data = open_data("folder", root, None, None, "test")
    questions = []
    for label in data.class_names:
        seen: list[int] = []
        for index in data.of_class(label):
            if len(seen) <= QUERIES and float((data.read_mask(index) == 1).mean()) > MIN_COVER:
                seen.append(index)
        if len(seen) > 1:
            questions.append(Question(label, seen[0], tuple(seen[1:])))
    if not questions:
        raise InputError(f"No class of {root} has two pictures in which the object covers more than {MIN_COVER:.1%}.")
    return data, questions


class LabeledSequence(FewShotData):
    """Pictures with one label map each; see the module. Without names of labels, all except void are used."""

    def __init__(self, root: Path, names: Sequence[str] = ()) -> None:
        known = _read_names(root)
        for name in names:
            if name not in known.values():
                raise InputError(f"{root} has no label {name!r}; it has: {', '.join(known.values())}.")
        wanted = {label: name for label, name in known.items() if (name in names if names else name != VOID)}
        maps = by_stem(sorted(pictures_in(root / "labels")))
        examples: dict[int, list[Example]] = {label: [] for label in wanted}
        for stem, image in by_stem(sorted(pictures_in(root / "images"))).items():
            if stem not in maps:
                raise InputError(f"{image} has no label map; expected {root / 'labels' / stem}.png.")
            stored = _read_labels(maps[stem], image)
            counts = np.bincount(stored.ravel(), minlength=256)
            for label in wanted:
                if counts[label] > MIN_LABEL_COVER * stored.size:
                    examples[label].append(Example(label, image, maps[stem], stem))
        shown = {label: found for label, found in examples.items() if len(found) > LATER}
        if not shown:
            raise InputError(
                f"No label of {root} covers {MIN_LABEL_COVER:.1%} of more than {LATER} pictures; give a longer "
                "sequence."
            )
        super().__init__({label: wanted[label] for label in shown}, [one for found in shown.values() for one in found])

    def read_truth(self, index: int, labels: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return (H, W) uint8: i + 1 on labels[i], 0 elsewhere, `IGNORE` where unknown."""
        example = self.examples[index]
        assert example.mask is not None
        renamed = np.zeros(256, np.uint8)
        renamed[IGNORE] = IGNORE
        for number, label in enumerate(labels, start=1):
            renamed[label] = number
        return renamed[_read_labels(example.mask, example.image)]


def open_sequence(root: Path, names: Sequence[str] = ()) -> tuple[LabeledSequence, list[Question]]:
    """Open a labeled sequence."""
    data = LabeledSequence(root, names)
    questions = []
    for label in data.class_names:
        seen = data.of_class(label)
        later = seen[LATER :: max(1, len(seen) // QUERIES)][:QUERIES]
        questions.append(Question(label, seen[0], tuple(later)))
    return data, questions


def _read_names(root: Path) -> dict[int, str]:
    path = root / "labels.txt" if (root / "labels.txt").exists() else root.absolute().parent / "labels.txt"
    try:
        lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        names = {int(number): name.strip() for number, name in lines}
    except (OSError, ValueError) as error:
        raise InputError(f"The list of labels {path} cannot be read: {error}; expected lines NUMBER NAME.") from error
    for label, name in names.items():
        if not 0 <= label < IGNORE:
            raise InputError(f"{path} gives {name!r} the number {label}; expected 0 to {IGNORE - 1}.")
    return names


def _read_labels(path: Path, image: Path) -> npt.NDArray[np.uint8]:
    stored, mode = read_stored_mask(path)
    if mode not in ("L", "P"):
        raise InputError(f"The label map {path} has mode {mode}; expected label numbers (L or P).")
    check_size(stored, path, image)
    return stored


# -------------------------------------------------------------------------------------------------------------- output

_FIGURES = ("plain", "sharp", "worst change", "weight")
HEADER = (
    f"| set | classes | {' | '.join(_FIGURES)} | by name: {' | '.join(_FIGURES)} |\n"
    f"| --- | --- |{' --- |' * 2 * len(_FIGURES)}"
)


def set_name(root: Path) -> str:
    """Return the name of a data set: its folder, or the folder above if its own is called "sequence"."""
    whole = root.absolute()
    return whole.parent.name if whole.name == "sequence" else whole.name


def rows(name: str, fits: Sequence[ClassFit], by_class: bool = False) -> list[str]:
    """Return the row of a data set, and optionally one per class, for the Markdown table with `HEADER`."""
    whole = [*_cells([fit.masked for fit in fits]), *_cells([fit.named for fit in fits])]
    lines = [f"| {name} | {len(fits)} | {' | '.join(whole)} |"]
    if by_class:
        lines += [
            f"| {name} | {fit.name} | {' | '.join([*_cells([fit.masked]), *_cells([fit.named])])} |" for fit in fits
        ]
    return lines


def _cells(fits: Sequence[Fit]) -> list[str]:
    plain, weight = statistics.mean(fit.plain for fit in fits), statistics.mean(fit.weight for fit in fits)
    sharp = [fit.sharp for fit in fits if fit.sharp is not None]
    if not sharp:
        return [f"{plain:.1f}", "-", "-", "-"]
    worst = min(fit.change for fit in fits)
    return [f"{plain:.1f}", f"{statistics.mean(sharp):.1f}", f"{worst:+.1f}", f"{weight:.2f}"]


def check_losses(found: Sequence[tuple[str, Sequence[ClassFit]]], max_loss: float) -> None:
    """Check that no class with a support mask loses more than `max_loss` points from plain to sharp outlines."""
    # Not `change < -max_loss`, which is False for NaN.
    lost = [
        f"{fit.name} of {name} {fit.masked.change:+.1f}"
        for name, fits in found
        for fit in fits
        if not fit.masked.change >= -max_loss
    ]
    if lost:
        raise AccuracyGateError(
            f"The outlines gate failed: from plain to sharp, {', '.join(lost)} points; at most {max_loss:g} points may "
            "be lost."
        )


if __name__ == "__main__":
    try:
        main()
    except FsvitEdgeError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
