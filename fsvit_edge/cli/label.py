"""`fsvit-edge label`: pictures in, label files for other tools out."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from fsvit_edge.cli.options import AnswerEngineOption, BundleOption, ClassesOption, PrecisionOption, ThreadsOption
from fsvit_edge.cli.terminal import plain_console, print_table, say

if TYPE_CHECKING:
    from fsvit_edge.label.fill import Progress
    from fsvit_edge.label.job import LabelResult

_LINE_PERIOD_S = 10.0
_RAY_ADDRESS = re.compile(r"auto|local|ray://.*|[\w.-]+:[0-9]+")


class LabelCommand(TyperCommand):
    """Lets `--ray` stand without an address, which Typer's options cannot."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put "local" behind a `--ray` that no address follows."""
        words = []
        for word, after in zip(args, [*args[1:], ""], strict=True):
            words.append(word)
            if word == "--ray" and not _RAY_ADDRESS.fullmatch(after):
                words.append("local")
        return super().parse_args(ctx, words)


def label(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Pictures, folders of them with their sub-folders, videos, or lists: .txt, with a path on each line.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for the labels: a new one, or one that the same command began."),
    ],
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help="coco (run lengths, boxes, scores), yolo (polygons), masks (a PNG of class numbers for each picture), "
            "cvat (for images), or jsonl (JSON lines); with --ray also parquet: no label files but Ray's.",
        ),
    ],
    bank: Annotated[
        Path,
        typer.Option(help="File with the enrolled classes. With triton://, the name of one of the box's banks."),
    ] = Path("bank.safetensors"),
    classes: ClassesOption = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="Label a class only where its score is above this, and above its level; default: the level."),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(help="Seconds of a video between two frames to label, 0 for all; default: no videos in folders."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Shares of train, val and perhaps test, as in 0.8/0.2; a picture's name decides."),
    ] = None,
    bundle: BundleOption = None,
    engine: AnswerEngineOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Label on the machines of a Ray cluster, such as auto or host:6379; without an address, on the cores "
            "or GPUs of this one. Sources may then be s3:// and gs://, and --threads are those of each process.",
        ),
    ] = None,
) -> None:
    """Outline your classes in many pictures, for other tools.

    A command that was ended at any moment goes on where it stopped when it is repeated; later, it labels what is new.
    """
    from fsvit_edge.label.job import LabelOptions
    from fsvit_edge.label.job import label as label_pictures
    from fsvit_edge.label.labeler import LabelerOptions

    labeler = LabelerOptions(bank, bundle, engine, precision, threads, tuple(classes or ()), min_score)
    options = LabelOptions(labeler, tuple(sources), output, format_name, every, split, ray)
    last: Progress | None = None
    try:
        with _show_progress("opening the model" if ray is None else "starting Ray") as show:

            def note(progress: "Progress") -> None:
                nonlocal last
                last = progress
                show(progress)

            result = label_pictures(options, say, note)
    except KeyboardInterrupt:
        where = "before the first picture"
        if last is not None:
            unreadable = f" and {last.failed:,} unreadable" if last.failed else ""
            where = f"at {last.share:.1%}, with {_count(last.labeled)} labeled{unreadable}"
        say(f"Stopped {where}; the same command goes on.")
        raise
    _print_result(result, output, format_name)
    if result.failed:
        raise typer.Exit(1)


@contextmanager
def _show_progress(first: str) -> "Iterator[Callable[[Progress], None]]":
    """Yield what shows how far it is: a bar, which says what comes first, or as one line every 10 s in a log."""
    if not sys.stderr.isatty():
        first_s = due_s = time.monotonic() + _LINE_PERIOD_S

        def write(progress: "Progress") -> None:
            nonlocal due_s
            is_last = progress.share >= 1 and due_s > first_s
            if time.monotonic() >= due_s or is_last:
                due_s = time.monotonic() + _LINE_PERIOD_S
                say(f"{progress.share:.1%}: {_described(progress)}")

        yield write
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        BarColumn(bar_width=15),
        TextColumn("{task.percentage:>5.1f} %"),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=plain_console(to_stderr=True), transient=True) as bar:
        task = bar.add_task(first, total=1.0)
        yield lambda progress: bar.update(task, completed=progress.share, description=_described(progress))


def _described(progress: "Progress") -> str:
    failed = f", {progress.failed:,} unreadable" if progress.failed else ""
    left = "" if progress.left_s is None else f", {_clock(progress.left_s)} left"
    if progress.share >= 1:
        left = ", writing the label files"
    return f"{progress.labeled:,} labeled{failed}, {progress.rate:.1f}/s{left}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _count(pictures: int) -> str:
    return "1 picture" if pictures == 1 else f"{pictures:,} pictures"


def _print_result(result: "LabelResult", output: Path, format_name: str) -> None:
    took = "by an earlier command" if result.elapsed_s is None else f"in {result.elapsed_s:.1f} s"
    if result.elapsed_s is not None and result.earlier:
        took += f", {result.earlier:,} of them by an earlier command"
    split = "".join(f", {count:,} for {part}" for part, count in result.pictures_in.items())
    rows = [(name, f"{result.pictures_of[name]:,}", f"{result.parts_of[name]:,}") for name in result.pictures_of]
    print_table(f"Labeled {_count(result.labeled)} {took}{split}", ("class", "pictures with it", "parts"), rows)
    if result.elapsed_s is None:
        print(f"{output} ({format_name}) is complete already; nothing was written")
    elif result.labeled:
        print(f"Wrote {output} ({format_name})")
    else:
        print(f"{output} ({format_name}) has no labels, because no picture could be read")
    if result.failed:
        count = "1 file" if result.failed == 1 else f"{result.failed:,} files"
        say(f"{count} could not be labeled; see {output / 'errors.jsonl'}; the same command tries them again.")
