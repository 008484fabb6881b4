"""Measure what answers that one can trust add to a frame's time.

    python benchmarks/answers.py [--turns 9] [--frames 48] [--json] [--bundle DIR] [--threads N]

The demo's classes are looked for in every other frame of the demo, 12.5 frames/s, enlarged to 1280 x 720: a class
appears, stays for over 2 s, and leaves. In each turn, every way to answer gets the same frames, because
timings on a shared machine drift. A frame's time is from the picture to what sinks are given:

plain         prediction, scores, areas and boxes
all           the same with the empty scene learned, competing classes, steady answers, events, zones and instances
one negative  plain, with one negative for each class, a quarter of a picture; the head compares it like a support

It prints milliseconds per frame and their ratio to those of plain in the same turn: medians and ranges over the turns.
"""

import json
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import count

import cv2
import numpy as np
from model_options import model_parser
from turns import take_turns

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.steady import SteadyAnswers
from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.fewshot.zones import parse_zone
from fsvit_edge.live.events import EventDetector
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.sources.demo import DEMO_FPS, demo_frame, demo_length, demo_supports, demo_truth
from fsvit_edge.runtime.machine import Machine

SIZE_HW = (720, 1280)
SCENE_FRAMES = 16
QUARTER = np.s_[180:540, 320:960]
ZONES = (parse_zone("left=0,0,0.5,0,0.5,1,0,1"), parse_zone("right=0.5,0,1,0,1,1,0.5,1"))
PACKAGES = ("onnxruntime", "numpy", "opencv-python-headless")
HEADER = "| answers | ms per frame | range | ratio | range |\n|" + " --- |" * 5


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = model_parser(__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--frames", type=int, default=48, help="frames in a turn, from the start of the demo")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    machine = ", ".join(
        [Machine.here().cpu, f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]
    )
    with FewShotModel.load(options.bundle, precision=options.precision, threads=options.threads) as model:
        used = f"{model.manifest.name}, {model.choice.description}"
        times = take_turns(ways_to_answer(model, options.frames), options.turns)
    ms = {name: [1e3 * seconds / options.frames for seconds in one] for name, one in times.items()}
    ratios = {name: [mine / plain for mine, plain in zip(one, ms["plain"], strict=True)] for name, one in ms.items()}
    if options.json:
        print(json.dumps({"machine": machine, "model": used, "ms_per_frame": ms, "ratio": ratios}))
        return
    print(f"{machine}\n{used}, {options.turns} turns of {options.frames} frames\n{HEADER}")
    for name in ms:
        print(f"| {name} | {_cells(ms[name], 1)} | {_cells(ratios[name], 3)} |")


def ways_to_answer(model: FewShotModel, frames: int) -> dict[str, Callable[[], None]]:
    """Enroll the demo's classes; return functions that answer this many frames of the demo, by name."""
    for support in demo_supports():
        model.enroll(support.name, [support.image], [support.mask])
    images = [_enlarged(number) for number in range(0, 2 * frames, 2)]
    empty = [number for number in range(demo_length()) if not demo_truth(number).any()]
    scene = [_enlarged(empty[int(index)]) for index in np.linspace(0, len(empty) - 1, SCENE_FRAMES)]
    quarter = np.zeros(SIZE_HW, np.bool_)
    quarter[QUARTER] = True
    plain = model.bank
    with_scene = model.bank_after(lambda model: model.learn_scene(scene))
    with_negatives = model.bank_after(lambda model: [model.reject(name, scene[0], quarter) for name in model.classes])
    numbers, steady, events = count(), SteadyAnswers(), EventDetector()

    def alone() -> None:
        model.exclusive = False
        for image in images:
            assert len(model.predict(image).results) == len(model.classes)

    def on_plain_bank() -> None:
        model.bank = plain
        alone()

    def with_negative() -> None:
        model.bank = with_negatives
        alone()

    def with_all() -> None:
        model.bank, model.exclusive = with_scene, True
        for image in images:
            number = next(numbers)
            now_s = number * 2 / DEMO_FPS
            prediction = replace(model.predict(image, over_time=steady.at(now_s)), zones=ZONES)
            events.update(Frame(image, number, "demo", now_s, now_s, 0.0), prediction, now_s)
            assert len(prediction.results) == len([prediction.instances(name) for name in model.classes])

    return {"plain": on_plain_bank, "all": with_all, "one negative": with_negative}


def _enlarged(number: int) -> Image:
    return np.asarray(cv2.resize(demo_frame(number), SIZE_HW[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def _cells(values: Sequence[float], digits: int) -> str:
    median = f"{statistics.median(values):.{digits}f}"
    return f"{median} | {min(values):.{digits}f} to {max(values):.{digits}f}"


if __name__ == "__main__":
    main()
