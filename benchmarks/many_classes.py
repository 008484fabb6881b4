"""Measure a first look at many classes: the hits that it loses, and the time that it saves.

    python benchmarks/many_classes.py --sets DIR ... [--classes 5 20 100] [--first-look 2 5 10 15 20] [--frames N]
        [--bundle DIR] [--threads N]

Every support is a class of its own: the first pictures of all classes of the sets <class>/{images,masks}/<stem>.*, in
turn, until there are enough. Every frame is another picture of one of them. A hit is a class that is shown and that
the head finds; it is lost if the first look leaves it out. Supports of what else the frame shows are no rivals.

Times are the processor's, of one frame's comparison with and without the first look, in turn, medians of 7.
"""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from model_options import model_parser, open_model

from fsvit_edge.fewshot.cached_support import ClassSupports
from fsvit_edge.fewshot.first_look import FirstLook, compare_bank
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.learn.datasets import open_data
from fsvit_edge.learn.evaluation import cache_example
from fsvit_edge.learn.examples import FewShotData
from fsvit_edge.runtime.engines.base import Array, on_host
from fsvit_edge.runtime.preprocess import resize_image

REPEATS = 7


class Rank(NamedTuple):
    """One hit of the head."""

    way: int
    likelier: np.ndarray  # the classes that the first look puts before it, without those that are shown too


def main() -> None:
    """Measure and print a table."""
    parser = model_parser(__doc__)
    parser.add_argument("--sets", type=Path, nargs="+", required=True, help="<class>/{images,masks}/<stem>.*")
    parser.add_argument("--classes", type=int, nargs="+", default=[5, 20, 100])
    parser.add_argument("--first-look", type=int, nargs="+", default=[2, 5, 10, 15, 20])
    parser.add_argument("--frames", type=int, default=200, help="maximum number of frames of each set")
    options = parser.parse_args()
    with open_model(options) as model:
        print("| set | classes | classes compared | hits | lost, % | ms a frame, all | ms, first look |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for root in options.sets:
            data = open_data("folder", root, None, None, "test")
            classes, labels, frames = enroll(model, data, max(options.classes), options.frames)
            ranks = [rank for index in frames for rank in ranks_in(model, data, index, classes, labels)]
            for ways in options.classes:
                for most in options.first_look:
                    if most >= ways or ways > len(classes):
                        continue
                    lost = 100 * np.mean([is_lost(rank, ways, most, len(classes)) for rank in ranks])
                    every, some = times_ms(model, data, frames[0], classes[:ways], most)
                    cells = (root.name, ways, most, len(ranks), f"{lost:.1f}", f"{every:.0f}", f"{some:.1f}")
                    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def enroll(
    model: FewShotModel, data: FewShotData, ways: int, most_frames: int
) -> tuple[list[ClassSupports], np.ndarray, list[int]]:
    """Return at most `ways` classes of one support, the label that each shows, and the pictures to look for them in."""
    deepest = max(len(data.of_class(label)) for label in data.class_names) // 2
    chosen = [
        (label, data.of_class(label)[turn])
        for turn in range(deepest)
        for label in data.class_names
        if turn < len(data.of_class(label)) // 2
    ][:ways]
    taken = {data.examples[index].photograph for _, index in chosen}
    others = {example.photograph: index for index, example in enumerate(data.examples)}
    frames = [index for photograph, index in others.items() if photograph not in taken]
    step = max(1, len(frames) // most_frames)
    classes: list[ClassSupports] = [(cache_example(model, data, index, masks=True),) for _, index in chosen]
    return classes, np.array([label for label, _ in chosen]), frames[::step][:most_frames]


def ranks_in(
    model: FewShotModel, data: FewShotData, index: int, classes: list[ClassSupports], labels: np.ndarray
) -> list[Rank]:
    """Look for the classes that a frame shows, and rank those that are found."""
    tokens = encode(model, data, index)
    shown = np.isin(labels, list(data.labels_of(index)))
    ways = np.flatnonzero(shown)
    if not ways.size:
        return []
    scores = model.network.compare(tokens, [classes[way] for way in ways]).scores
    likeness = FirstLook(1).likeness(tokens, classes)
    found = ways[scores > model.bank.head.presence_level]
    return [Rank(int(way), np.flatnonzero((likeness > likeness[way]) & ~shown)) for way in found]


def is_lost(rank: Rank, ways: int, most: int, count: int) -> bool:
    """Whether the first look leaves a hit out, if its class and `ways` - 1 of the others are enrolled."""
    # The same others for every number of classes to compare; a smaller bank is a part of a larger one.
    others = np.random.default_rng(rank.way).permutation(np.delete(np.arange(count), rank.way))[: ways - 1]
    return int(np.isin(others, rank.likelier).sum()) >= most


def times_ms(
    model: FewShotModel, data: FewShotData, index: int, classes: list[ClassSupports], most: int
) -> tuple[float, float]:
    """Return the processor time of comparing one frame with all classes, and with those that the first look leaves."""
    tokens, bank = encode(model, data, index), model.bank.emptied()
    for number, supports in enumerate(classes):
        bank.add(f"{number}", supports)
    looks = (None, FirstLook(most))
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for look, times in zip(looks, taken, strict=True):
            compare_bank(model.network, tokens, bank, look)  # uploads the supports that the other has replaced
            start = time.process_time()
            compare_bank(model.network, tokens, bank, look)
            times.append(1000 * (time.process_time() - start))
    return float(np.median(taken[0])), float(np.median(taken[1]))


def encode(model: FewShotModel, data: FewShotData, index: int) -> Array:
    """Return the tokens of a picture."""
    image = resize_image(data.read_image(index), model.manifest.image_size)
    return np.array(on_host(model.network.encode(image)["tokens"]))


if __name__ == "__main__":
    main()
