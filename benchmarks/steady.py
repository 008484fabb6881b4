"""Measure what steady answers change: how often classes turn on or off per minute, and how much later they turn on.

    python benchmarks/steady.py SOURCE ... [--frames N] [--bundle DIR]

A source is a video, or "demo" with its own classes. In a video, one class is enrolled from the first frame by its name
alone, so the network chooses the thing. Every frame is answered by itself and by `SteadyAnswers` with its usual times,
at the video's own speed. The delay is from the first frame above the level to the answer "on", in seconds, mean over
the times that a class turned on. Turning on at the start counts as a change of the steady answers.
"""

from itertools import islice
from pathlib import Path

import numpy as np
from model_options import model_parser, open_model

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.steady import SteadyAnswers
from fsvit_edge.live.sources.base import DEFAULT_FPS
from fsvit_edge.live.sources.demo import demo_length, demo_supports
from fsvit_edge.live.sources.open import open_source

HEADER = "| source | frames | classes | changes per minute | steady | delay, s |\n|" + " --- |" * 6


def main() -> None:
    """Measure every source and print a table."""
    parser = model_parser(__doc__)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--frames", type=int, help="maximum number of frames of a video; default: all")
    options = parser.parse_args()
    with open_model(options) as model:
        print(HEADER, flush=True)
        for source in options.sources:
            for name in model.classes:
                model.remove(name)
            print(measure(model, source, demo_length() if source == "demo" else options.frames), flush=True)


def measure(model: FewShotModel, uri: str, max_frames: int | None) -> str:
    """Return the row of a source."""
    steady, raw, settled = SteadyAnswers(), [], []
    with open_source(uri) as source:
        fps = source.fps or DEFAULT_FPS
        for frame in islice(source, max_frames):
            if not model.classes:
                for support in demo_supports() if uri == "demo" else ():
                    model.enroll(support.name, [support.image], [support.mask])
                if uri != "demo":
                    model.enroll("thing", [frame.image])
            prediction = model.predict(frame.image, over_time=steady.at(frame.index / fps))
            raw.append(prediction.scores > prediction.levels)
            settled.append(prediction.present)
    before, after = np.array(raw), np.array(settled)
    minutes = len(raw) / fps / 60
    changes = [np.abs(np.diff(one.astype(int), axis=0)).sum() / minutes for one in (before, after)]
    late = [late_s for way in range(before.shape[1]) for late_s in delays(before[:, way], after[:, way], fps)]
    delay = f"{np.mean(late):.2f}" if late else "-"
    return f"| {Path(uri).name} | {len(raw)} | {len(model.classes)} | {changes[0]:.1f} | {changes[1]:.1f} | {delay} |"


def delays(raw: np.ndarray, settled: np.ndarray, fps: float) -> list[float]:
    """Return how long each change to "on" came after the first frame above the level, in seconds."""
    found = []
    for on in np.flatnonzero(settled & ~np.concatenate([[False], settled[:-1]])):
        absent = np.flatnonzero(~raw[: on + 1])
        first = 0 if not len(absent) else int(absent[-1]) + 1
        found.append((int(on) - first) / fps)
    return found


if __name__ == "__main__":
    main()
