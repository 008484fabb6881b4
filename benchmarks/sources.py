"""Several sources in one run: total frame rate against one source's, age of the frames, and memory for each source.

    python benchmarks/sources.py CLIP.mp4 [--counts 1 2 4 8] [--seconds 20] [--repeats 7] [--bundle DIR] [--json FILE]

Plays a clip at its own pace as 1, 2, 4 and 8 sources at once, in turn, `repeats` times, with the classes of the demo
enrolled and no sink. "demo" plays the demo. Prints medians over the repeats; the frame rate is compared within each,
from the moment when each source has a result: starting eight processes takes as long as tens of frames.
With --batches, it instead compares processor time per picture of the encoder at batches of 1, 2 and 4, on one thread.
"""

import argparse
import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from results import AT_MOST, Figure, figure_of
from speed_runs import write_clip
from turns import Setting

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.health import Health
from fsvit_edge.live.loop import LiveRun
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.live.sources.base import SourceOptions
from fsvit_edge.live.sources.demo import demo_supports
from fsvit_edge.live.sources.many import ManySources, NamedSource
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE

Figures = dict[str, float]
_COUNTS = (1, 2, 4, 8)
_SECONDS = 3.0  # of each run for `figures.py`, from the first result of each source


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", nargs="?", default="demo")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds per run, from then")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--batches", action="store_true")
    asked = parser.parse_args()
    if asked.batches:
        measure_batches(asked.bundle, asked.repeats)
        return
    runs: dict[int, list[Figures]] = {count: [] for count in asked.counts}
    for repeat in range(asked.repeats):
        for count in asked.counts:
            runs[count].append(measure(asked.clip, count, asked.seconds, asked.threads, asked.bundle))
        for count in asked.counts:
            one, first = runs[count][repeat], runs[asked.counts[0]][repeat]
            one["frames/s, % of the first"] = 100 * one["frames/s"] / first["frames/s"]
            more = count - asked.counts[0]
            one["memory per more source, MB"] = (one["memory, MB"] - first["memory, MB"]) / more if more else 0.0
    figures = {count: _medians(found) for count, found in runs.items()}
    print(f"{asked.clip}, medians of {asked.repeats} runs of {asked.seconds:g} s")
    for name in figures[asked.counts[0]]:
        print(f"  {name:<32}" + "".join(f"{figures[count][name]:10.1f}" for count in asked.counts))
    if asked.json is not None:
        asked.json.write_text(json.dumps(figures, indent=1))


def measure_figures(setting: Setting) -> Iterator[Figure]:
    """Play a video as several sources, for `figures.py`."""
    clip = setting.folder / "sources.mp4"
    write_clip(clip, (360, 640), setting.clip_frames)
    runs: dict[int, list[Figures]] = {count: [] for count in _COUNTS}
    for _ in range(setting.turns):
        for count, found in runs.items():
            found.append(measure(str(clip), count, min(_SECONDS, setting.live_s), setting.threads, DEFAULT_BUNDLE))
    first = runs[_COUNTS[0]]
    for count, found in runs.items():
        title = f"{count} sources of 640 x 360 at 25 frames/s" if count > 1 else "1 source"
        starts = [one["start, s"] for one in found]
        yield figure_of(f"sources_{count}_start", f"{title}: from the start to a result of each", "s", starts)
        rate = [100 * one["frames/s"] / alone["frames/s"] for one, alone in zip(found, first, strict=True)]
        if count > 1:
            yield figure_of(
                f"sources_{count}_rate", f"{title}: frames/s together, of one source's", "%", rate, goal=95.0
            )
        oldest = [one["age p99 of the oldest source, ms"] for one in found]
        goal = statistics.median(one["goal for it, ms"] for one in found)
        what = f"{title}: age p99 of the oldest source"
        yield figure_of(f"sources_{count}_age", what, "ms", oldest, goal=round(goal, 1), bound=AT_MOST)
        if count > 1:
            more = [
                (one["memory, MB"] - alone["memory, MB"]) / (count - 1) for one, alone in zip(found, first, strict=True)
            ]
            yield figure_of(f"sources_{count}_memory", f"{title}: memory of each more than one", "MB", more)


def measure(clip: str, count: int, seconds: float, threads: int | None, bundle: Path) -> Figures:
    """Run `count` sources of a clip for some seconds."""
    with FewShotModel.load(bundle, threads=threads) as model:
        for support in demo_supports():
            model.enroll(support.name, [support.image], [support.mask])
        options = SourceOptions(loop=True, realtime=True)
        with ManySources(*(NamedSource(f"cam{number}", open_source(clip, options)) for number in range(count))) as many:
            live_run = LiveRun(many, LiveModel(model), [], print_nothing, steady=True)
            first_and_last: list[Health] = []
            threading.Thread(target=_stop_later, args=(live_run, seconds, first_and_last), daemon=True).start()
            health = live_run.run().health
    first, last = first_and_last
    elapsed_s, frames = last.monotonic_s - first.monotonic_s, last.frames - first.frames
    if not frames:  # a busy machine: the end of a long measurement must not lose the rest
        return measure(clip, count, 2 * seconds, threads, bundle)
    ages = [one.age_ms for one in health.sources if one.age_ms is not None]
    frame_ms = 1e3 * elapsed_s / frames
    shares = [one.frames for one in health.sources]
    return {
        "start, s": first.uptime_s,
        "frames/s": frames / elapsed_s,
        "time of a frame, ms": frame_ms,
        "age p50, ms": max(one.p50 for one in ages),
        "age p99 of the oldest source, ms": max(one.p99 for one in ages),
        "goal for it, ms": count * frame_ms + 100,
        "fewest frames, % of the most": 100 * min(shares) / max(shares),
        "memory, MB": last.memory_mb,
    }


def _stop_later(live_run: LiveRun, seconds: float, first_and_last: list[Health]) -> None:
    """Stop a run some seconds after each source has a result; keep the health of then and of the end."""
    while not all(one.frames for one in live_run.health().sources):
        time.sleep(0.05)
    first_and_last.append(live_run.health())
    time.sleep(seconds)
    first_and_last.append(live_run.health())
    os.kill(os.getpid(), signal.SIGTERM)


def measure_batches(bundle: Path, repeats: int) -> None:
    """Compare the encoder's processor time per picture at several batches, in one process and on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(bundle / "encoder.onnx", options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    if not isinstance(entry.shape[0], str) or entry.type != "tensor(uint8)":
        print(f"The encoder takes {entry.type} of {entry.shape}; this compares batches of uint8 only.")
        return
    pictures = np.random.default_rng(0).integers(0, 256, (4, *entry.shape[1:]), np.uint8)
    taken: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for repeat in range(repeats + 1):
        for batch, times_ms in taken.items():
            started_s = time.process_time()
            for at in range(0, 4, batch):
                session.run(None, {entry.name: pictures[at : at + batch]})
            if repeat:  # the first is a warm-up
                times_ms.append(1e3 * (time.process_time() - started_s) / 4)
    for batch, times_ms in taken.items():
        print(f"  batch {batch}: {statistics.median(times_ms):7.2f} ms of processor time per picture")


def print_nothing(_: str) -> None:
    """Take what a run says."""


def _medians(found: list[Figures]) -> Figures:
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


if __name__ == "__main__":
    main()
