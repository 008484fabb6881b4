"""A live run end to end: frame rate, age of the frames, drops, and the CPU time of each part.

    python benchmarks/live.py [CLIP.mp4 ...] [--seconds 20] [--repeats 5] [--bundle DIR]

Plays the demo and each clip at its own speed into JSON lines, a video in segments and the page with one viewer, with
the classes of the demo enrolled. Prints the median and range over the runs: frames per second captured and processed,
age from capture to result, drops, memory, CPU time per frame for capture, prediction and sinks, and what delivery to
the sinks adds to a frame, relative to the model.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.loop import LiveRun
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.live.sinks.base import RecordingOptions
from fsvit_edge.live.sinks.open import open_sink
from fsvit_edge.live.sources.base import SourceOptions
from fsvit_edge.live.sources.demo import demo_supports
from fsvit_edge.live.sources.live import LiveSource
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.live.statistics import RunStatistics
from fsvit_edge.page.sink import PageSink
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE

_WARM_UP_FRAMES = 20


class CpuTime:
    """Sums the CPU time of the threads and processes of each part of a run."""

    def __init__(self, source: LiveSource) -> None:
        self._source = source
        self._process = psutil.Process()
        self._first: dict[str, float] | None = None
        self._frames = 0
        self._seconds: dict[str, float] = {}

    def __call__(self, _frame: Frame, _prediction: Prediction, so_far: RunStatistics) -> None:
        """Read the clocks; called after each frame."""
        if so_far.frames % 10:
            return
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        now = {"capture": 0.0, "sinks": 0.0, "prediction": 0.0}
        for thread in self._process.threads():
            now[_part(names.get(thread.id, "engine"))] += thread.user_time + thread.system_time
        child = self._source.process_id
        if child is not None:
            times = psutil.Process(child).cpu_times()
            now["capture"] += times.user + times.system
        if so_far.frames >= _WARM_UP_FRAMES and self._first is None:
            self._first, self._frames = now, so_far.frames
        if self._first is not None:
            frames = max(1, so_far.frames - self._frames)
            self._seconds = {part: (now[part] - self._first[part]) / frames for part in now}

    def per_frame_ms(self) -> dict[str, float]:
        """Milliseconds of CPU time per processed frame, after the warm-up."""
        return {part: seconds * 1e3 for part, seconds in self._seconds.items()}


def main() -> None:
    """Measure each source and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", help="videos to play in addition to the demo")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds per run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    arguments = parser.parse_args()
    for uri in ("demo", *arguments.clips):
        runs = [measure(uri, arguments.bundle, arguments.seconds) for _ in range(arguments.repeats)]
        print(f"{Path(uri).name}, {arguments.repeats} runs of {arguments.seconds:g} s")
        for name in runs[0]:
            values = [run[name] for run in runs]
            print(f"  {name:<34} {statistics.median(values):8.2f} ({min(values):.2f} to {max(values):.2f})", flush=True)


def measure(uri: str, bundle: Path, seconds: float, max_frames: int | None = None) -> dict[str, float]:
    """Run once, for so many seconds or frames, and return the results by name."""
    with tempfile.TemporaryDirectory() as folder, FewShotModel.load(bundle) as model:
        for support in demo_supports():
            model.enroll(support.name, [support.image], [support.mask])
        options = SourceOptions(loop=True, realtime=True)
        with open_source(uri, options) as source:
            assert isinstance(source, LiveSource)
            live_model = LiveModel(model)
            page = PageSink("http://127.0.0.1:0", live_model, Path(folder) / "bank.safetensors")
            sink_options = RecordingOptions(segment_s=10, keep=2)
            named = [
                (name, open_sink(f"{folder}/{name}", 25.0, sink_options, is_live=True))
                for name in ("out.jsonl", "out.mp4")
            ]
            clock = CpuTime(source)
            live_run = LiveRun(
                source, live_model, [*named, ("page", page)], lambda _: None, clock, max_frames=max_frames
            )
            watching = threading.Thread(target=_watch, args=(page.address,), name="sink watcher", daemon=True)
            watching.start()
            stop = threading.Timer(seconds, os.kill, (os.getpid(), 15))
            stop.start()
            started = time.monotonic()
            health = live_run.run().health
            elapsed_s = time.monotonic() - started
            stop.cancel()
    status, stages = health.source_status, health.latency_ms
    model_ms = sum(one.p50 for name, one in stages.items() if name not in ("decode", "sinks"))
    age, cpu = health.age_ms, clock.per_frame_ms()
    assert age is not None
    return {
        "frames/s captured": status.captured / elapsed_s,
        "frames/s processed": health.frames / elapsed_s,
        "dropped, %": 100 * status.dropped / status.captured,
        "age p50, ms": age.p50,
        "age p99, ms": age.p99,
        "memory, MB": health.memory_mb,
        "model p50, ms": model_ms,
        "delivery p50, ms": stages["sinks"].p50,
        "delivery, % of the model": 100 * stages["sinks"].p50 / model_ms,
        "CPU: capture, ms per frame": cpu["capture"],
        "CPU: prediction, ms per frame": cpu["prediction"],
        "CPU: sinks, ms per frame": cpu["sinks"],
        "sinks, % of the prediction": 100 * cpu["sinks"] / cpu["prediction"],
    }


def _part(thread: str) -> str:
    if thread == "source":
        return "capture"
    if thread.startswith(("sink", "page", "MainThread")):
        return "sinks"
    return "prediction"


def _watch(address: str) -> None:
    try:
        with httpx.stream("GET", f"{address}api/stream.mjpg", timeout=60, trust_env=False) as stream:
            for _ in stream.iter_raw():
                pass
    except httpx.HTTPError:
        return


if __name__ == "__main__":
    main()
