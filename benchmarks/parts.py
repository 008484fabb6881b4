"""Measure which connected parts of an outline are crumbs, and how much of an outline must lie in a zone.

    python benchmarks/parts.py --choose-on DIR --sets DIR DIR ... [--bundle DIR] [--per-class 12]

Each folder <class>/{images,masks}/<stem>.* is a class, enrolled from its first picture and its mask and looked for in
the next ones, each alone, and then beside the one after it at half the size, as a thing that is farther away. A true
part is a connected part of the mask with at least 0.1 % of the frame; it is found by a part of the outline with an IoU
of at least 0.3. Percentages, where the class is present:

parts   for each rule (smallest share of the frame, smallest share of the largest part, which always counts): pictures
        whose number of parts is right, where the mask has one and where it has several; parts that are true; true parts
        that are found
zones   for each share of the outline: how often a zone without a pixel of the mask is said to hold it, and how often a
        zone with more than half of the mask is said not to; a zone is one of the nine cells of the frame, or a half
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from model_options import model_parser, open_model

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.masks import read_mask
from fsvit_edge.runtime.pictures import read_image

FRAME_SHARES = (0.0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
PART_SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
ZONE_SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
TRUE_SHARE, FOUND_IOU = 0.001, 0.3

Mask = npt.NDArray[np.bool_]
Shown = tuple[npt.NDArray[np.uint8], Mask]  # (H, W, 3) RGB and (H, W)


@dataclass(frozen=True)
class Picture:
    """The parts of one outline, (parts,) each, and of its mask; the shares of outline and mask in each zone."""

    share: npt.NDArray[np.float64]  # of the frame
    found: npt.NDArray[np.int_]  # the true part that each finds; -1: none
    true_parts: int
    in_zones: npt.NDArray[np.float64]  # (zones, 2): of the outline, of the mask


def main() -> None:
    """Measure every data set and print the tables; the best rule is that of `--choose-on`."""
    parser = model_parser(__doc__)
    parser.add_argument("--choose-on", type=Path, required=True)
    parser.add_argument("--sets", type=Path, nargs="+", default=[])
    parser.add_argument("--per-class", type=int, default=12)
    options = parser.parse_args()
    rules = list(itertools.product(FRAME_SHARES, PART_SHARES))
    with open_model(options) as model:
        for root in (options.choose_on, *options.sets):
            pictures = look(model, root, options.per_class)
            if root == options.choose_on:
                best = max(rules, key=lambda rule: np.nanmean(judge(pictures, rule)[:2]))
            one = sum(picture.true_parts == 1 for picture in pictures)
            print(f"\n{root.name}: {one} pictures with one part, {len(pictures) - one} with several")
            print("| of the frame | of the largest | one right | several right | true | found |\n|" + " --- |" * 6)
            for rule in rules if root == options.choose_on else [(0.0, 0.0), best]:
                values = [f"{100 * value:.1f}" for value in judge(pictures, rule)]
                print(f"| {rule[0]} | {rule[1]} | {' | '.join(values)} |{' best' if rule == best else ''}")
            print("\n| in a zone | wrongly in | wrongly out |\n|" + " --- |" * 3)
            for share in ZONE_SHARES:
                print(f"| {share} | {' | '.join(f'{100 * value:.1f}' for value in judge_zones(pictures, share))} |")


def look(model: FewShotModel, root: Path, per_class: int) -> list[Picture]:
    """Look for every class in its own pictures."""
    found = []
    for folder in sorted(path for path in root.iterdir() if (path / "masks").is_dir()):
        first, *others = sorted((folder / "images").iterdir())
        model.bank = model.bank.emptied()
        image, mask = _read(folder, first)
        model.enroll(folder.name, [image], [mask])
        shown = [_read(folder, path) for path in others[:per_class]]
        for image, mask in [*shown, *map(with_far_one, shown, shown[1:])]:
            answer = model.predict(image)
            if answer.present[0] and mask.any() and answer.label_map.any():
                found.append(compare(answer.label_map > 0, mask))
    return [picture for picture in found if picture.true_parts]


def with_far_one(near: Shown, far: Shown) -> Shown:
    """Put a second picture, at half the size of the first, on gray beside its shorter way."""
    height, width = near[0].shape[:2]
    axis, top, left = int(width < height), height // 4, width // 4
    image, mask = np.full_like(near[0], 128), np.zeros_like(near[1])
    place, size = np.s_[top : top + height // 2, left : left + width // 2], (width // 2, height // 2)
    image[place] = cv2.resize(far[0], size, interpolation=cv2.INTER_AREA)
    mask[place] = cv2.resize(far[1].view(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return np.concatenate([near[0], image], axis), np.concatenate([near[1], mask], axis)


def compare(outline: Mask, mask: Mask) -> Picture:
    """Match the parts of an outline with those of the mask."""
    ours, theirs = parts_of(outline), [part for part in parts_of(mask) if part.mean() >= TRUE_SHARE]
    ours.sort(key=lambda part: -int(part.sum()))
    found = []
    for part in ours:
        ious = [(part & true).sum() / (part | true).sum() for true in theirs]
        index = int(np.argmax(ious)) if ious else -1
        found.append(index if ious and ious[index] >= FOUND_IOU and index not in found else -1)
    shares = [[zone_share(outline, zone), zone_share(mask, zone)] for zone in zones(mask.shape[0], mask.shape[1])]
    return Picture(np.array([part.mean() for part in ours]), np.array(found), len(theirs), np.array(shares))


def parts_of(mask: Mask) -> list[Mask]:
    """Return the connected parts, corners touching counts."""
    count, labels = cv2.connectedComponents(mask.view(np.uint8))
    return [labels == index for index in range(1, count)]


def zones(height: int, width: int) -> list[tuple[slice, slice]]:
    """Return nine cells and four halves."""
    cuts = [(start / 3, (start + 1) / 3) for start in range(3)]
    boxes = [(*rows, *columns) for rows in cuts for columns in cuts]
    boxes += [(0.0, 0.5, 0.0, 1.0), (0.5, 1.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.5), (0.0, 1.0, 0.5, 1.0)]
    return [
        (slice(round(top * height), round(bottom * height)), slice(round(left * width), round(right * width)))
        for top, bottom, left, right in boxes
    ]


def zone_share(mask: Mask, zone: tuple[slice, slice]) -> float:
    """Return which share of a mask lies in a zone."""
    return float(mask[zone].sum() / mask.sum())


def judge(pictures: list[Picture], rule: tuple[float, float]) -> list[float]:
    """Return the four shares of a rule."""
    of_frame, of_largest = rule
    kept = [one.share >= min(one.share[0], max(of_frame, of_largest * one.share[0])) for one in pictures]
    right = np.array([one.sum() == picture.true_parts for one, picture in zip(kept, pictures, strict=True)])
    is_one = np.array([picture.true_parts == 1 for picture in pictures])
    hits = sum(int((picture.found[one] >= 0).sum()) for one, picture in zip(kept, pictures, strict=True))
    parts, true_parts = sum(int(one.sum()) for one in kept), sum(picture.true_parts for picture in pictures)
    several = right[~is_one].mean() if (~is_one).any() else np.nan
    return [float(right[is_one].mean()), float(several), hits / max(parts, 1), hits / true_parts]


def judge_zones(pictures: list[Picture], share: float) -> tuple[float, float]:
    """Return how often a class is wrongly in a zone, and wrongly out of it."""
    ours, theirs = np.concatenate([picture.in_zones for picture in pictures]).T
    is_in = ours > share if share == 0 else ours >= share
    return float(is_in[theirs == 0].mean()), float((~is_in)[theirs > 0.5].mean())


def _read(folder: Path, path: Path) -> Shown:
    image = read_image(path)
    return image, read_mask(folder / "masks" / f"{path.stem}.png", image.shape[:2])


if __name__ == "__main__":
    main()
