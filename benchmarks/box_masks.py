"""Compare ways to turn a box into a mask: the box itself, an ellipse, GrabCut, and objectness.

    python benchmarks/box_masks.py --sets DIR DIR ... [--episodes 300] [--bundle DIR]

It runs episodes of one way and one shot. The box is the bounding box of the true mask, with each side moved randomly by
up to a tenth of the length, like a box drawn by hand. For each method it prints the IoU of its mask with the true mask,
exact ratio and mIoU of the class enrolled with it, and the median time in milliseconds. "drawn" uses the true mask,
"name" none.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.support_masks import mask_from_box
from fsvit_edge.learn.datasets import open_data
from fsvit_edge.learn.episodes import benchmark_episode, present
from fsvit_edge.learn.metrics import Tally, count_pixels, score
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE

Rgb = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]

_WOBBLE = 0.1
_GRAB_CUT_PX = 320


def main() -> None:
    """Measure every data set and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, nargs="+", required=True, help="<class>/{images,masks}/<stem>.*")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    arguments = parser.parse_args()
    with FewShotModel.load(arguments.bundle) as model:
        for folder in arguments.sets:
            print(f"{folder.name}, {arguments.episodes} episodes, {model.manifest.name}")
            print(f"{'':>10} {'IoU':>6} {'exact':>6} {'mIoU':>6} {'ms':>6}")
            for row in measure(model, folder, arguments.episodes):
                print(row, flush=True)


def measure(model: FewShotModel, folder: Path, episodes: int) -> list[str]:
    """Measure one data set; return one row per method."""
    data = open_data("folder", folder, None, None, "test")
    makers: dict[str, Callable[[Rgb, Box, Mask], Mask | None]] = {
        "drawn": lambda _image, _box, mask: mask,
        "name": lambda _image, _box, _mask: None,
        "box": lambda image, box, _mask: _filled(image, box),
        "ellipse": lambda image, box, _mask: mask_from_box(image.shape[:2], box),
        "thing": lambda image, box, _mask: model.mask_of_box(image, box),
        "GrabCut": lambda image, box, _mask: _grab_cut(image, _filled(image, box)),
    }
    rng = np.random.default_rng(0)
    overlaps: dict[str, list[float]] = {name: [] for name in makers}
    times_ms: dict[str, list[float]] = {name: [] for name in makers}
    answers: dict[str, list[tuple[bool, int, int]]] = {name: [] for name in makers}  # present, intersection, union
    ways, shown = [], []
    for number in range(episodes):
        episode = benchmark_episode(data, number, 1, 1)
        support = episode.supports[0][0]
        image, mask = data.read_image(support), data.read_mask(support) == 1
        box = _drawn_box(mask, rng)
        banks = []
        for name, make in makers.items():
            started = time.perf_counter()
            made = make(image, box, mask)
            times_ms[name].append((time.perf_counter() - started) * 1e3)
            if made is not None:
                overlaps[name].append(float((made & mask).sum() / (made | mask).sum()))
            bank = model.bank.emptied()
            bank.add("it", [model.cache_support("it", image, made)])
            banks.append(bank)
        truth = data.read_truth(episode.query, episode.ways)
        for name, prediction in zip(makers, model.predict_with(data.read_image(episode.query), banks), strict=True):
            shared, joined = count_pixels(prediction.label_map, truth, 1)
            answers[name].append((bool(prediction.present[0]), int(shared[0]), int(joined[0])))
        ways.append(episode.ways)
        shown.append(present(data, episode))
    rows = []
    for name in makers:
        present_here, shared, joined = (np.array(column)[:, None] for column in zip(*answers[name], strict=True))
        tally = Tally(np.array(ways, np.int64), np.array(shown, np.bool_), present_here, shared, joined)
        scores = score(tally, data.class_names)
        iou = f"{statistics.mean(overlaps[name]):6.3f}" if overlaps[name] else "     -"
        exact, miou = scores.exact_ratio.value, scores.miou.value if scores.miou is not None else float("nan")
        time_ms = statistics.median(times_ms[name])
        rows.append(f"{name:>10} {iou} {exact:6.1f} {miou:6.1f} {time_ms:6.1f}")
    return rows


def _drawn_box(mask: Mask, rng: np.random.Generator) -> Box:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    wobble = rng.uniform(-_WOBBLE, _WOBBLE, 4) * (width, height, width, height)
    left, top, right, bottom = np.round(np.array([x, y, x + width, y + height]) + wobble).astype(int)
    return left, top, max(left + 4, right), max(top + 4, bottom)


def _filled(image: Rgb, box: Box) -> Mask:
    left, top, right, bottom = np.maximum(box, 0)
    filled = np.zeros(image.shape[:2], np.bool_)
    filled[top:bottom, left:right] = True
    return filled


def _grab_cut(image: Rgb, filled: Mask) -> Mask:
    """Run GrabCut (Rother et al., 2004) on a smaller picture; return the box if it finds almost nothing in it."""
    height, width = filled.shape
    scale = min(1.0, _GRAB_CUT_PX / max(height, width))
    size = (round(width * scale), round(height * scale))
    inside = cv2.resize(filled.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    if inside.all() or not inside.any():
        return filled
    labels = np.where(inside, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, labels, (0, 0, 0, 0), *models, 5, cv2.GC_INIT_WITH_MASK)
    found = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    outline = np.asarray((cv2.resize(found, (width, height), interpolation=cv2.INTER_NEAREST) > 0) & filled)
    return outline if outline.sum() >= 0.05 * filled.sum() else filled


if __name__ == "__main__":
    main()
