"""`fsvit-edge run`: frames in, classes and masks out."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fsvit_edge.cli.options import EngineOption, PrecisionOption, ThreadsOption

if TYPE_CHECKING:
    from fsvit_edge.live.frame import Frame
    from fsvit_edge.live.run import RunResult
    from fsvit_edge.live.shared_model import LiveModel
    from fsvit_edge.live.sinks.base import Sink
    from fsvit_edge.live.sources.options import Flip
    from fsvit_edge.live.statistics import RunStatistics
    from fsvit_edge.runtime.engines.choose import EngineChoice
    from fsvit_edge.runtime.prediction import Prediction
    from fsvit_edge.runtime.predictor import FewShotModel

_DEFAULT_FPS = 25.0
_DEMO_VIDEO = "demo.mp4"
_DEFAULT_BANK = Path("bank.safetensors")


def run(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A picture, a folder, a video, a camera (0, /dev/video0, csi://0), rtsp://..., http://... or demo."
        ),
    ] = None,
    camera: Annotated[
        bool, typer.Option("--camera", help="Read a camera; camera 0 unless SOURCE names another.")
    ] = False,
    sink: Annotated[
        list[str] | None,
        typer.Option(
            help="DIR/ (pictures), out.mp4 (video), out.jsonl or - (JSON lines), mqtt://HOST/TOPIC, or the page: "
            "http://127.0.0.1:8080. May be repeated."
        ),
    ] = None,
    bank: Annotated[
        Path | None, typer.Option(help="The enrolled classes; default: bank.safetensors here, where it is.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="The bundle; default: the small model shipped.")] = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    level: Annotated[
        float | None, typer.Option(help="The score above which a class is present, for all classes in this run.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Pixels asked of a camera.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels asked of a camera.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second: of a camera, or of a --realtime file.")] = None,
    flip: Annotated[str, typer.Option(help="none, horizontal, vertical, or both (180 degrees).")] = "none",
    loop: Annotated[bool, typer.Option("--loop", help="Start a file again at its end.")] = False,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Play a file at its own pace, as a camera would: late frames are lost.")
    ] = False,
    segment: Annotated[float | None, typer.Option(help="Seconds after which a recording begins a new file.")] = None,
    keep: Annotated[int | None, typer.Option(help="Newest segments or pictures to keep; older ones go.")] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
    stats: Annotated[float | None, typer.Option(min=0.1, help="Print statistics every so many seconds.")] = None,
    health: Annotated[Path | None, typer.Option(help="A JSON file that says every second how the run fares.")] = None,
    token: Annotated[
        str | None, typer.Option(help="What a browser must present to a page that others can reach.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name by which browsers reach the page. May be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Classify and segment every frame of a source by the classes of a bank."""
    from fsvit_edge.cli.terminal import advise, open_model
    from fsvit_edge.live.run import LiveRun, RunOptions
    from fsvit_edge.live.shared_model import LiveModel
    from fsvit_edge.live.sinks.open import open_sink, recording_folder, sink_name
    from fsvit_edge.live.sinks.segments import SinkOptions
    from fsvit_edge.live.sources.open import open_source
    from fsvit_edge.live.sources.options import SourceOptions
    from fsvit_edge.runtime.errors import InputError
    from fsvit_edge.runtime.presence_level import check_level
    from fsvit_edge.runtime.storage import remove_leftovers

    if level is not None:
        check_level(level)
    uri = _source_uri(source, camera)
    is_demo = uri == "demo"
    sinks = list(sink or ())
    pages = [name for name in sinks if _is_page(name)]
    if is_demo and pages and max_frames is None:
        loop = realtime = True  # a camera to try the page with
    elif is_demo:
        if not sinks:
            sinks = [_DEMO_VIDEO]
        if max_frames is None:
            from fsvit_edge.live.sources.demo import demo_length

            max_frames = demo_length()
    if bank is None and not is_demo and _DEFAULT_BANK.is_file():
        bank = _DEFAULT_BANK
    for folder in {*filter(None, map(recording_folder, sinks)), (bank or _DEFAULT_BANK).parent}:
        remove_leftovers(folder)
    source_options = SourceOptions(width, height, fps, cast("Flip", flip), loop, realtime)
    with ExitStack() as stack:
        frames = stack.enter_context(open_source(uri, source_options))
        if bank is None and not is_demo and not frames.is_live and not pages:
            raise InputError(
                "No class is enrolled; enroll one with: fsvit-edge enroll NAME IMAGE, or name a bank with --bank FILE "
                "(to try without: fsvit-edge run demo)."
            )
        model = stack.enter_context(open_model(bundle, engine, precision, threads))
        if bank is not None and (bank.exists() or not pages):
            model.load_bank(bank)
        elif is_demo or not pages:
            if not is_demo:
                advise("No bank is here, so these are the demo's classes; yours: fsvit-edge enroll NAME IMAGE")
            _enroll_demo(model)
        model.set_level_for_all(level)
        live_model = LiveModel(model)
        sink_options = SinkOptions(segment, keep, frames.is_live)
        opened = []
        with ExitStack() as unstarted:  # finishes the sinks that are open where a later one is refused
            for name in sinks:
                if name in pages:
                    one = _open_page(name, live_model, bank or _DEFAULT_BANK, token, allow_host or [])
                else:
                    one = open_sink(name, frames.fps or _DEFAULT_FPS, sink_options)
                opened.append((sink_name(name), unstarted.enter_context(one)))
            unstarted.pop_all()  # from here on they are the run's
        show = stack.enter_context(_live_table(frames.name))
        options = RunOptions(max_frames, stats, health)
        result = LiveRun(frames, live_model, opened, options, advise, show).run()
        choice = model.choice
    _print_summary(result, choice, as_json, to_stderr="-" in sinks and not as_json)
    for status in result.health.sinks:
        if status.name != "-" and "://" not in status.name and status.written and not status.failure:
            advise(f"Wrote {status.name}{' in numbered segments' if segment and '.' in status.name else ''}")
    if is_demo and not pages:
        advise("The demo runs a small demonstration model. Next: fsvit-edge enroll NAME IMAGE")
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _is_page(uri: str) -> bool:
    return uri.lower().startswith("http://")


def _open_page(uri: str, model: "LiveModel", bank: Path, token: str | None, hosts: list[str]) -> "Sink":
    from fsvit_edge.cli.terminal import advise, require

    require("The page", ("starlette", "uvicorn", "prometheus_client"), "web")
    from fsvit_edge.page.sink import PageSink

    page = PageSink(uri, model, bank, token, hosts)
    advise(f"The page is at {page.address}")
    return page


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
    from fsvit_edge.live.sources.demo import demo_supports

    for support in demo_supports():
        model.enroll(support.name, [support.image], [support.mask])
        known = "its name alone" if support.mask is None else "a mask"
        advise(f"Enrolled {support.name!r} from one picture and {known}")


@contextmanager
def _live_table(source: str) -> Iterator["Callable[[Frame, Prediction, RunStatistics], None] | None"]:
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

        def show(frame: "Frame", prediction: "Prediction", statistics: "RunStatistics") -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < period_s:
                return
            last = now
            title = f"{source}: frame {frame.index}, {statistics.fps:.1f} frames/s"
            table = Table("class", "P(present) / level", "", "area", title=title, title_justify="left", box=box.SIMPLE)
            for one in prediction.results:
                table.add_row(
                    one.name,
                    f"{one.score:.2f} / {one.level:.2f}",
                    "present" if one.is_present else "-",
                    f"{one.area:.0%}" if one.is_present else "",
                    style="bold" if one.is_present else "dim",
                )
            live.update(table, refresh=True)

        yield show


def _print_summary(result: "RunResult", choice: "EngineChoice", as_json: bool, to_stderr: bool) -> None:
    import json

    from fsvit_edge.cli.terminal import print_table

    health, statistics = result.health, result.statistics
    stages = {stage: (round(one.p50, 2), round(one.p95, 2)) for stage, one in health.latency_ms.items()}
    age, dropped = health.age_ms, health.source_status.dropped
    if as_json:
        summary = {
            "source": health.source,
            "model": health.model,
            "engine": choice.engine,
            "precision": choice.precision,
            "frames": statistics.frames,
            "dropped": dropped,
            "reconnects": health.source_status.reconnects,
            "elapsed_s": round(statistics.elapsed_s, 3),
            "fps": round(statistics.fps, 2),
            "age_ms": None if age is None else {name: round(value, 2) for name, value in vars(age).items()},
            "latency_ms": {stage: {"p50": p50, "p95": p95} for stage, (p50, p95) in stages.items()},
            "memory_mb": round(health.memory_mb, 1),
        }
        print(json.dumps(summary, ensure_ascii=False))
        return
    speed = f"{statistics.frames} frames in {statistics.elapsed_s:.1f} s, {statistics.fps:.1f} frames/s"
    if dropped and age is not None:
        speed += f", {dropped} dropped, {age.p50:.0f} ms old (p99 {age.p99:.0f})"
    rows = [(stage, f"{p50:.2f}", f"{p95:.2f}") for stage, (p50, p95) in stages.items()]
    title = f"{health.source} with {health.model}: {speed}; {choice.description}"
    print_table(title, ("stage", "p50 ms", "p95 ms"), rows, to_stderr)
