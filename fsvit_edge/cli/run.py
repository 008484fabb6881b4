"""`fsvit-edge run`: frames in, classes and masks out."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fsvit_edge.cli.options import EngineOption, PrecisionOption, ThreadsOption

if TYPE_CHECKING:
    from fsvit_edge.runtime.engines.choose import EngineChoice
    from fsvit_edge.runtime.frame import Frame
    from fsvit_edge.runtime.loop import LoopStatistics
    from fsvit_edge.runtime.prediction import Prediction
    from fsvit_edge.runtime.predictor import FewShotModel

_DEFAULT_FPS = 25.0
_DEMO_VIDEO = "demo.mp4"
_DEFAULT_BANK = Path("bank.safetensors")


def run(
    source: Annotated[
        str | None,
        typer.Argument(help="A picture, a folder, a video, a camera (0, /dev/video0), rtsp://... or demo."),
    ] = None,
    camera: Annotated[
        bool, typer.Option("--camera", help="Read a camera; camera 0 unless SOURCE names another.")
    ] = False,
    sink: Annotated[
        list[str] | None,
        typer.Option(help="DIR/ (pictures), out.mp4 (video), out.jsonl or - (JSON lines). May be repeated."),
    ] = None,
    bank: Annotated[
        Path | None, typer.Option(help="The enrolled classes; default: bank.safetensors here, where it is.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="The bundle; default: the small model shipped.")] = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Classify and segment every frame of a source by the classes of a bank."""
    from fsvit_edge.cli.terminal import advise, open_model
    from fsvit_edge.runtime.errors import InputError
    from fsvit_edge.runtime.loop import run_loop
    from fsvit_edge.runtime.sinks.open import open_sink
    from fsvit_edge.runtime.sources.open import open_source

    uri = _source_uri(source, camera)
    is_demo = uri == "demo"
    sinks = list(sink or ())
    if is_demo and not sinks:
        sinks = [_DEMO_VIDEO]
    if is_demo and max_frames is None:
        from fsvit_edge.runtime.demo import demo_length

        max_frames = demo_length()
    if bank is None and not is_demo and _DEFAULT_BANK.is_file():
        bank = _DEFAULT_BANK
    with ExitStack() as stack:
        frames = stack.enter_context(open_source(uri))
        if bank is None and not is_demo and not frames.is_live:
            raise InputError(
                "No class is enrolled; enrol one with: fsvit-edge enroll NAME IMAGE, or name a bank with --bank FILE "
                "(to try without: fsvit-edge run demo)."
            )
        model = stack.enter_context(open_model(bundle, engine, precision, threads))
        if bank is not None:
            model.load_bank(bank)
        else:
            if not is_demo:
                advise("No bank is here, so these are the demo's classes; yours: fsvit-edge enroll NAME IMAGE")
            _enroll_demo(model)
        opened = [stack.enter_context(open_sink(name, frames.fps or _DEFAULT_FPS)) for name in sinks]
        show = stack.enter_context(_live_table(frames.name))
        statistics = run_loop(frames, model.predict, opened, max_frames, show)
        name, choice = model.manifest.name, model.choice
    _print_summary(statistics, frames.name, name, choice, as_json, to_stderr="-" in sinks and not as_json)
    for written in sinks:
        if written != "-" and statistics.frames:
            advise(f"Wrote {written}")
    if is_demo:
        advise("The demo runs a small demonstration model. Next: fsvit-edge enroll NAME IMAGE")
    if statistics.interrupted:
        raise typer.Exit(130)


def _source_uri(source: str | None, camera: bool) -> str:
    from fsvit_edge.runtime.errors import InputError

    if not camera:
        if source is None:
            raise InputError("Name a source (a picture, a folder, a video, rtsp://... or demo) or give --camera.")
        return source
    if source is not None and not source.isdigit() and not source.startswith("/dev/"):
        raise InputError(f"--camera reads a camera, but SOURCE is {source!r}; give a camera's number or leave one out.")
    return source or "0"


def _enroll_demo(model: "FewShotModel") -> None:
    from fsvit_edge.cli.terminal import advise
    from fsvit_edge.runtime.demo import demo_supports

    for support in demo_supports():
        model.enroll(support.name, [support.image], [support.mask])
        known = "its name alone" if support.mask is None else "a mask"
        advise(f"Enrolled {support.name!r} from one picture and {known}")


@contextmanager
def _live_table(source: str) -> Iterator["Callable[[Frame, Prediction, LoopStatistics], None] | None"]:
    """Yield what draws the newest frame's result, four times a second; None where stderr is not a terminal."""
    import sys

    if not sys.stderr.isatty():
        yield None
        return
    import time

    from rich import box
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    period_s = 0.25
    last = -period_s
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:

        def show(frame: "Frame", prediction: "Prediction", statistics: "LoopStatistics") -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < period_s:
                return
            last = now
            title = f"{source}: frame {frame.index}, {statistics.fps:.1f} frames/s"
            table = Table("class", "P(present)", "", "area", title=title, title_justify="left", box=box.SIMPLE)
            for index, name in enumerate(prediction.classes):
                present = bool(prediction.present[index])
                area = float((prediction.label_map == index + 1).mean())
                table.add_row(
                    name,
                    f"{prediction.scores[index]:.2f}",
                    "present" if present else "-",
                    f"{area:.0%}" if present else "",
                    style="bold" if present else "dim",
                )
            live.update(table, refresh=True)

        yield show


def _print_summary(
    statistics: "LoopStatistics", source: str, model: str, choice: "EngineChoice", as_json: bool, to_stderr: bool
) -> None:
    import json

    from fsvit_edge.cli.terminal import print_table

    stages = {stage: tuple(round(value, 2) for value in pair) for stage, pair in statistics.latency_ms.items()}
    if as_json:
        summary = {
            "source": source,
            "model": model,
            "engine": choice.engine,
            "precision": choice.precision,
            "frames": statistics.frames,
            "elapsed_s": round(statistics.elapsed_s, 3),
            "fps": round(statistics.fps, 2),
            "latency_ms": {stage: {"p50": p50, "p95": p95} for stage, (p50, p95) in stages.items()},
        }
        print(json.dumps(summary, ensure_ascii=False))
        return
    speed = f"{statistics.frames} frames in {statistics.elapsed_s:.1f} s, {statistics.fps:.1f} frames/s"
    rows = [(stage, f"{p50:.2f}", f"{p95:.2f}") for stage, (p50, p95) in stages.items()]
    print_table(f"{source} with {model}: {speed}; {choice.description}", ("stage", "p50 ms", "p95 ms"), rows, to_stderr)
