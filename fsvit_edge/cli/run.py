"""`fsvit-edge run`: frames in, classes and masks out."""

import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast
from urllib.parse import urlsplit

import typer

from fsvit_edge.cli.options import AnswerEngineOption, BundleOption, PrecisionOption, ThreadsOption, TrustOption
from fsvit_edge.cli.terminal import plain_console, print_qr_code, print_table, require, say
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.given_text import given_line
from fsvit_edge.runtime.presence_level import distinct_texts

if TYPE_CHECKING:
    from fsvit_edge.fewshot.prediction import ClassResult, Prediction
    from fsvit_edge.live.frame import Frame
    from fsvit_edge.live.health import SourceHealth
    from fsvit_edge.live.loop import RunResult
    from fsvit_edge.live.shared_model import LiveModel
    from fsvit_edge.live.sinks.base import Sink
    from fsvit_edge.live.sources.base import Flip
    from fsvit_edge.live.statistics import RunStatistics

_DEMO_VIDEO = "demo.mp4"
_TABLE_PERIOD_S = 0.25


def run(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            help="A picture, a folder, a video, a camera (0, /dev/video0, csi://0), rtsp://..., http://... or demo; of "
            "several, each in turn."
        ),
    ] = None,
    cameras: Annotated[
        Path | None,
        typer.Option(help="Read the sources of this list, too: SOURCE or NAME = SOURCE on each line, # for comments."),
    ] = None,
    camera: Annotated[
        bool, typer.Option("--camera", help="Read a camera: camera 0, or the one given as SOURCE.")
    ] = False,
    sink: Annotated[
        list[str] | None,
        typer.Option(
            help="Where results go: DIR/ (pictures), masks:DIR/ (index masks), out.mp4 (video), out.jsonl or - (JSON "
            "lines), mqtt://HOST/TOPIC, or the page: http://127.0.0.1:8080; {source} is the place for the name of a "
            "source; @FILE: read it from a file, because ps shows it here. May be repeated."
        ),
    ] = None,
    bank: Annotated[
        str | None,
        typer.Option(
            help="File with the enrolled classes, or https://HOST/bank.safetensors, which is followed: newer ones are "
            "taken over; @FILE: read the address from a file. Default: bank.safetensors, if it exists. With triton://, "
            "the name of one of the box's banks."
        ),
    ] = None,
    trust: TrustOption = None,
    poll: Annotated[
        float | None,
        typer.Option(help="Follow the bank, also one in a file: look for a newer one every this many seconds, or 30."),
    ] = None,
    bundle: BundleOption = None,
    engine: AnswerEngineOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    level: Annotated[
        float | None,
        typer.Option(help="Score above which a class is present, for all classes; default: the level of each class."),
    ] = None,
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="Of classes that claim the same pixels, only the likeliest is present.")
    ] = False,
    first_look: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For many classes: compare only this many of them in each frame, those that look likeliest at a quick "
            "first look; the others count as absent. Default: all.",
        ),
    ] = None,
    steady: Annotated[
        bool | None,
        typer.Option(
            help="Turn a class on after 0.3 s and off after 1 s; default: for cameras and streams, and for events."
        ),
    ] = None,
    zone: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=x1,y1,x2,y2,x3,y3,...: a part of the frame by its corners, as shares of width and height; "
            "results say which classes are in it; instead of the bank's zones. May be repeated."
        ),
    ] = None,
    width: Annotated[int | None, typer.Option(help="Frame width of a camera in pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Frame height of a camera in pixels.")] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames per second of a camera, or of a file with --realtime.")
    ] = None,
    flip: Annotated[str, typer.Option(help="Flip frames: none, horizontal, vertical, or both (180 degrees).")] = "none",
    loop: Annotated[bool, typer.Option("--loop", help="Restart a file at its end.")] = False,
    realtime: Annotated[
        bool,
        typer.Option("--realtime", help="Play a file at its own speed like a camera; late frames are dropped."),
    ] = False,
    segment: Annotated[float | None, typer.Option(help="Start a new file of a recording after this many seconds.")] = (
        None
    ),
    keep: Annotated[
        int | None, typer.Option(help="Maximum number of segments or pictures; the oldest are deleted.")
    ] = None,
    webhook: Annotated[
        list[str] | None,
        typer.Option(
            help="Post a JSON record to this http(s):// address, or that in @FILE, when a class appears or leaves. May "
            "be repeated."
        ),
    ] = None,
    cooldown: Annotated[
        float,
        typer.Option(help="Seconds after a webhook was told that a class appeared in which it is not told again."),
    ] = 10.0,
    snapshots: Annotated[
        Path | None, typer.Option(help="Folder for a picture of each appearance of a class, in the end the best one.")
    ] = None,
    keep_snapshots: Annotated[int, typer.Option(help="Maximum number of snapshots; the oldest are deleted.")] = 1000,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Maximum number of frames.")] = None,
    stats: Annotated[float | None, typer.Option(min=0.1, help="Print statistics every this many seconds.")] = None,
    health: Annotated[Path | None, typer.Option(help="Write status to this JSON file every second.")] = None,
    review: Annotated[
        bool, typer.Option("--review", help="Keep doubtful frames in the bank's file, for: fsvit-edge bank review.")
    ] = False,
    home_assistant: Annotated[
        bool, typer.Option("--home-assistant", help="Let Home Assistant find the classes, through the MQTT sink.")
    ] = False,
    token: Annotated[
        str | None,
        typer.Option(help="Access token for the page, or @FILE; default: random, if others can reach the page."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host name under which browsers may open the page. May be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Find and outline your classes in every frame of a source.

    They are those of a bank, which enroll or the page makes.
    """
    from fsvit_edge.fewshot.zones import parse_zone
    from fsvit_edge.live.run import RunOptions, run_source
    from fsvit_edge.live.sinks.base import EventOptions, RecordingOptions
    from fsvit_edge.live.sinks.open import is_page
    from fsvit_edge.live.sources.base import SourceOptions

    uri = _sources(source or [], camera, cameras)
    sinks = [given_line(one) for one in sink or ()] or ([_DEMO_VIDEO] if uri == "demo" else [])
    options = RunOptions(
        source=SourceOptions(width, height, fps, cast("Flip", flip), loop, realtime),
        recording=RecordingOptions(segment, keep),
        events=EventOptions(tuple(map(given_line, webhook or ())), cooldown, snapshots, keep_snapshots),
        bundle=bundle,
        engine=engine,
        precision=precision,
        threads=threads,
        bank=bank and given_line(bank),
        trust=trust and given_line(trust),
        poll_s=poll,
        level=level,
        exclusive=exclusive,
        first_look=first_look,
        steady=steady,
        zones=tuple(map(parse_zone, zone or ())),
        max_frames=max_frames,
        stats_s=stats,
        health_file=health,
        review=review,
        home_assistant=home_assistant,
    )
    # The name and the results of each picture; with sinks, which have the others, of the last frame of each source.
    answers: dict[str, tuple[str, Sequence[ClassResult]]] = {}

    # A token that a file hides, or that would land in a log, is not printed; a random one is known to nobody else.
    shows_token = token is None or (not token.startswith("@") and sys.stderr.isatty())
    open_page = partial(_open_page, token=token and given_line(token), hosts=allow_host or [], shows_token=shows_token)
    with _live_table() as draw:

        def on_frame(frame: "Frame", prediction: "Prediction", statistics: "RunStatistics") -> None:
            answers[frame.camera if sinks else frame.source] = (frame.source, prediction.results)
            draw(frame, prediction, statistics)

        result = run_source(uri, sinks, options, say=say, on_frame=on_frame, open_page=open_page)
    if as_json:
        print(json.dumps(result.to_dict(), ensure_ascii=False))
    else:
        is_told = not sinks or ("-" not in sinks and result.statistics.frames == len(answers))
        _print_answers(answers.values() if is_told else (), result.statistics.frames)
        _print_summary(result, to_stderr="-" in sinks)
    told = len(webhook or ()) + (0 if snapshots is None else len(result.health.sources))  # these sinks come last
    for status in result.health.sinks[: len(result.health.sinks) - told]:
        if status.name != "-" and "://" not in status.name and status.written and not status.failure:
            say(f"Wrote {status.name}{' in numbered segments' if segment and '.' in status.name else ''}")
    if uri == "demo" and bank is None and not any(map(is_page, sinks)):
        say("The demo runs a small demonstration model. Next: fsvit-edge enroll NAME IMAGE")
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _sources(sources: Sequence[str], camera: bool, cameras: Path | None) -> "str | Mapping[str, str]":
    """Return one source as it is given, or several by name."""
    from fsvit_edge.live.sources.names import read_cameras, source_names

    for source in sources if camera else ():
        if not source.isdigit() and not source.startswith("/dev/"):
            raise InputError(
                f"--camera reads a camera, but SOURCE is {source!r}; give a camera number, or only one of them."
            )
    if camera and not sources:
        sources = ["0"]
    if cameras is not None:
        return source_names([*((None, source) for source in sources), *read_cameras(cameras)])
    if not sources:
        raise InputError("Give a source (a picture, a folder, a video, rtsp://... or demo) or --camera.")
    return sources[0] if len(sources) == 1 else source_names((None, source) for source in sources)


def _open_page(
    uri: str, model: "LiveModel", bank: Path, token: str | None, hosts: Sequence[str], shows_token: bool
) -> "Sink":
    require("The page", ("fastapi", "uvicorn", "prometheus_client", "segno"), "web")
    from fsvit_edge.page.access import is_loopback
    from fsvit_edge.page.sink import PageSink

    page = PageSink(uri, model, bank, token, hosts)
    address, *others = page.addresses if shows_token else [one.partition("?")[0] for one in page.addresses]
    say(f"The page is at {address}")
    for other in others:
        say(f"The page is also at {other}")
    if sys.stderr.isatty() and not is_loopback(urlsplit(address).hostname or ""):
        print_qr_code(address)
    return page


@contextmanager
def _live_table() -> Iterator["Callable[[Frame, Prediction, RunStatistics], None]"]:
    """Yield what draws the result for the newest frame, four times per second, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich import box
    from rich.live import Live
    from rich.table import Table

    last = -_TABLE_PERIOD_S
    newest: dict[str, Sequence[ClassResult]] = {}  # of each source
    with Live(console=plain_console(to_stderr=True), auto_refresh=False, transient=True) as live:

        def show(frame: "Frame", prediction: "Prediction", statistics: "RunStatistics") -> None:
            nonlocal last
            newest[frame.camera] = prediction.results
            now = time.monotonic()
            if now - last < _TABLE_PERIOD_S:
                return
            last = now
            several = bool(frame.camera)
            title = f"{frame.source}: frame {frame.index}, {statistics.fps:.1f} frames/s"
            header = (*(["source"] if several else []), "class", "P(present) / level", "", "area")
            table = Table(*header, title=title, title_justify="left", box=box.SIMPLE)
            for name, result in ((name, one) for name, results in newest.items() for one in results):
                table.add_row(
                    *([name] if several else []),
                    result.name,
                    " / ".join(distinct_texts(result.score, result.level)),
                    "present" if result.is_present else "-",
                    f"{result.area:.0%}" if result.is_present else "",
                    style="bold" if result.is_present else "dim",
                )
            live.update(table, refresh=True)

        yield show


def _print_answers(answers: "Collection[tuple[str, Sequence[ClassResult]]]", frames: int) -> None:
    last = ", last frame" if frames > len(answers) else ""
    for source, results in answers:
        for one in results:
            answer = "present" if one.is_present else "absent"
            area = f", area {one.area:.1%}" if one.is_present else ""
            zones = f", in {', '.join(one.zones)}" if one.zones else ""
            score, level = distinct_texts(one.score, one.level)
            print(f"{source}{last}: {one.name}: {answer}, score {score} (level {level}){area}{zones}")


def _print_summary(result: "RunResult", to_stderr: bool) -> None:
    health, statistics = result.health, result.statistics
    frames = "1 frame" if statistics.frames == 1 else f"{statistics.frames} frames"
    speed = f"{frames} in {statistics.elapsed_s:.1f} s, {statistics.fps:.1f} frames/s"
    dropped, age = health.source_status.dropped, health.age_ms
    if dropped and age is not None:
        speed += f", {dropped} dropped, {age.p50:.0f} ms old (p99 {age.p99:.0f})"
    rows = [(stage, f"{times.p50:.2f}", f"{times.p95:.2f}") for stage, times in health.latency_ms.items()]
    title = f"{health.source} with {health.model}: {speed}; {result.choice.description}"
    print_table(title, ("stage", "p50 ms", "p95 ms"), rows, to_stderr)
    if len(health.sources) > 1:
        table = [_source_row(one) for one in health.sources]
        print_table("Sources", ("source", "frames", "dropped", "age p50 ms", "age p99 ms"), table, to_stderr)


def _source_row(source: "SourceHealth") -> tuple[str, ...]:
    ages = ("", "") if source.age_ms is None else (f"{source.age_ms.p50:.0f}", f"{source.age_ms.p99:.0f}")
    return (source.name, str(source.frames), str(source.status.dropped), *ages)
