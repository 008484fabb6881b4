"""The speed of whole runs: the demo's command, large masks, a live run with sinks, answers, and the command line."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import answers
import cv2
import live
import psutil
from results import AT_MOST, Figure, figure_of
from turns import Setting, square_masks, take_turns

from fsvit_edge import FewShotModel
from fsvit_edge.live.loop import run_loop
from fsvit_edge.live.sources.demo import DEMO_FPS, demo_frame, demo_supports
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.live.statistics import RunStatistics
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE
from fsvit_edge.runtime.preprocess import resize_image

COMMAND = str(Path(sys.executable).with_name("fsvit-edge"))
LARGE_WAYS, LARGE_COVER = 3, 0.67
LIVE_SIZE_HW = (720, 1280)
LIVE = {
    "frames/s captured": ("captured", "frames that the source delivers", "frames/s", None),
    "frames/s processed": ("processed", "of these, processed", "frames/s", None),
    "age p50, ms": ("age", "age of a frame at its result, median", "ms", None),
    "age p99, ms": ("age_p99", "the same, 99th percentile", "ms", None),
    "CPU: capture, ms per frame": ("capture", "processor time per frame, capture", "ms", None),
    "CPU: prediction, ms per frame": ("prediction", "processor time per frame, prediction", "ms", None),
    "CPU: sinks, ms per frame": ("sinks", "processor time per frame, sinks", "ms", 6.0),
    "sinks, % of the prediction": ("share", "the sinks' share of the prediction's processor time", "%", 10.0),
    "delivery, % of the model": ("delivery", "handing a frame to the sinks, share of the prediction", "%", 10.0),
}
"""What is reported of `live.measure`, by its names there: name, words, unit, and the most that is wanted."""
_LOOK_EVERY_S = 0.05


def measure_demo(setting: Setting) -> Iterator[Figure]:
    """Measure `fsvit-edge run demo` as it is typed."""
    words = [COMMAND, "run", "demo", "--threads", str(setting.threads), "--max-frames", str(setting.clip_frames)]
    words += ["--json", "--sink", str(setting.folder / "demo.mp4")]
    rates, peaks = [], []
    for _ in range(setting.turns):
        output, peak_mb = run_watched(words)
        rates.append(json.loads(output)["fps"])
        peaks.append(peak_mb)
    classes = {support.name for support in demo_supports()}
    what = f"`run demo`: {len(classes)} classes of {len(demo_supports())} pictures, 640 x 360, to a video"
    yield figure_of("demo", what, "frames/s", rates, goal=25)
    yield figure_of("demo_memory", "`run demo`: peak memory", "MB", peaks, goal=300, bound=AT_MOST)


def measure_large_masks(setting: Setting) -> Iterator[Figure]:
    """Measure decoding to result with masks that cover most of a picture."""
    video = setting.folder / "clip.mp4"
    write_clip(video, (360, 640), setting.clip_frames)
    with FewShotModel.load(threads=setting.threads) as model:
        masks = square_masks(model.manifest.image_size, LARGE_WAYS, LARGE_COVER)
        for support, mask in zip(demo_supports()[:LARGE_WAYS], masks, strict=True):
            picture = resize_image(support.image, model.manifest.image_size)
            model.enroll(f"class {len(model.classes)}", [picture], [mask])
        rates = []
        for _ in range(setting.turns):
            with open_source(str(video)) as frames:
                so_far = RunStatistics()
                run_loop(frames, lambda frame: model.predict(frame.image), lambda *_: None, so_far)
                rates.append(so_far.fps)
    what = f"{LARGE_WAYS} classes, masks covering {LARGE_COVER:.0%}, 640 x 360 video, decode to result"
    yield figure_of("large_masks", what, "frames/s", rates, goal=30)


def measure_live(setting: Setting) -> Iterator[Figure]:
    """Measure a live run of 1280 x 720 frames into JSON lines, a video and the page with a viewer."""
    clip = setting.folder / "live.mp4"
    write_clip(clip, LIVE_SIZE_HW, setting.clip_frames)
    runs = [live.measure(str(clip), DEFAULT_BUNDLE, setting.live_s, setting.live_frames) for _ in range(setting.turns)]
    for name, (key, what, unit, goal) in LIVE.items():
        values = [run[name] for run in runs]
        yield figure_of(f"live_{key}", f"live, 1280 x 720: {what}", unit, values, goal=goal, bound=AT_MOST)


def measure_answers(setting: Setting) -> Iterator[Figure]:
    """Measure what answers that one can trust add to a frame's time."""
    frames = min(24, setting.clip_frames)
    with FewShotModel.load(threads=setting.threads) as model:
        times = take_turns(answers.ways_to_answer(model, frames), setting.turns)
    plain = times.pop("plain")
    yield figure_of("answers_plain", "1280 x 720, 4 classes: plain answers", "ms", [1e3 * s / frames for s in plain])
    whats = {
        "all": "the same with empty scene, competing classes, steady answers, events, zones and instances / plain",
        "one negative": "the same with one negative for each class / plain",
    }
    goals = {"all": 1.05}
    for name, seconds in times.items():
        ratios = [one / other for one, other in zip(seconds, plain, strict=True)]
        key = f"answers_{name.replace(' ', '_')}"
        yield figure_of(key, whats[name], "x", ratios, goal=goals.get(name), bound=AT_MOST)


def measure_command(setting: Setting) -> Iterator[Figure]:
    """Measure how long the command line takes to answer."""
    run = {"help": lambda: subprocess.run([COMMAND, "--help"], capture_output=True, check=True)}
    seconds = take_turns(run, setting.turns)["help"]
    yield figure_of("help", "`fsvit-edge --help`", "s", seconds, goal=0.3, bound=AT_MOST)


def run_watched(words: Sequence[str]) -> tuple[str, float]:
    """Run a command; return its output, and the sum of the largest resident memories of its processes in 10^6 bytes."""
    peaks: dict[int, int] = {}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            with suppress(psutil.Error, OSError):  # one that has just ended
                tree = psutil.Process(process.pid)
                for one in (tree, *tree.children(recursive=True)):
                    status = Path(f"/proc/{one.pid}/status").read_text()
                    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
                    if found is not None:
                        peaks[one.pid] = int(found[1]) * 1024
            time.sleep(_LOOK_EVERY_S)
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output, sum(peaks.values()) / 1e6


def write_clip(path: Path, size_hw: tuple[int, int], frames: int) -> None:
    """Write the demo as a video of this size."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), DEMO_FPS, size_hw[::-1])
    for number in range(frames):
        picture = cv2.resize(demo_frame(number), size_hw[::-1], interpolation=cv2.INTER_CUBIC)
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    writer.release()
