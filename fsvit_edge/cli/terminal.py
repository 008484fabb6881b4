"""What the commands share: results go to stdout; progress and what `say` is given to stderr."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from fsvit_edge.runtime.errors import EnvironmentLacksError
from fsvit_edge.runtime.messages import Progress
from fsvit_edge.runtime.storage import editing, version_of

if TYPE_CHECKING:
    from rich.console import Console

    from fsvit_edge.fewshot.predictor import FewShotModel

_WHITE_ON_BLACK, _USUAL_COLORS = "\033[97;40m", "\033[0m"


def require(purpose: str, packages: Sequence[str], extra: str) -> None:
    """Raise EnvironmentLacksError unless the packages are installed that one of our extras installs."""
    *others, last = [package for package in packages if find_spec(package) is None] or [""]
    if last:
        names = f"{', '.join(others)} and {last}, which are" if others else f"{last}, which is"
        raise EnvironmentLacksError(f'{purpose} needs {names} not installed; try: pip install "fsvit-edge[{extra}]".')


def say(text: str) -> None:
    """Print a line to stderr, for the user rather than for a program that reads stdout."""
    print(text, file=sys.stderr)


@contextmanager
def editing_bank(bank: Path) -> Iterator[Callable[[], None]]:
    """Let one command at a time change a bank, see `storage.editing`; the others say that they wait."""
    with editing(bank, lambda folder: say(f"Waiting for another command in {folder}.")) as check_unchanged:
        before = version_of(bank)
        yield check_unchanged
        if version_of(bank) != before:
            note_old_signature(bank)


def note_old_signature(bank: Path) -> None:
    """Say that the signature beside a bank that was just written is not the bank's."""
    from fsvit_edge.fewshot.bank_signature import signature_of

    signature = signature_of(bank)
    if signature.exists():
        say(
            f"Note: {bank} was written again, so {signature.name} no longer fits; before you publish them: fsvit-edge "
            f"bank sign {bank} --key FILE"
        )


def open_model(
    bundle: Path | None, engine: str, precision: str, threads: int | None = None, bank: Path | None = None
) -> "FewShotModel":
    """Open a bundle as `FewShotModel.load` does, and print which engines were skipped and why."""
    from fsvit_edge.fewshot.predictor import FewShotModel

    model = FewShotModel.load(bundle, engine, precision, threads, bank, say)
    for note in model.choice.notes:
        say(f"Note: {note}")
    return model


@contextmanager
def show_progress(title: str) -> Iterator[Progress]:
    """Yield what shows the step that begins: beside a spinner and a clock, or as one line per step in a log."""
    started = time.monotonic()
    if not sys.stderr.isatty():
        yield lambda step: say(f"[{time.monotonic() - started:6.1f} s] {title}: {step}")
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=plain_console(to_stderr=True), transient=True) as bar:
        task = bar.add_task(title)
        yield lambda step: bar.update(task, description=f"{title}: {step}")


def plain_console(to_stderr: bool) -> "Console":
    """A console that prints text as it is: rich would end with an error at a class named "[/b]"."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))  # rich would exit with 1

    return Plain(stderr=to_stderr, markup=False, emoji=False, highlight=False)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], to_stderr: bool = False) -> None:
    """Print a table: the first column is text, the others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = plain_console(to_stderr)
    if not console.is_terminal:
        console.width = 120
    console.print(title, soft_wrap=True)
    console.print(table)


def print_qr_code(text: str) -> None:
    """Print a text as a QR code to stderr, white on black whatever the colors are: not all phones read the inverse."""
    import segno

    code = StringIO()
    segno.make_qr(text).terminal(code, compact=True)
    for line in code.getvalue().splitlines():
        say(f"{_WHITE_ON_BLACK}{line}{_USUAL_COLORS}")
