"""`fsvit-edge`: all commands, and the one place where an error becomes a sentence and an exit code."""

import errno
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fsvit_edge import __version__
from fsvit_edge.cli.bank import bank_app
from fsvit_edge.cli.bank_sign import key, sign
from fsvit_edge.cli.bench import bench
from fsvit_edge.cli.build_engine import build_engine
from fsvit_edge.cli.calib import calib
from fsvit_edge.cli.doctor import doctor
from fsvit_edge.cli.enroll import enroll
from fsvit_edge.cli.eval import evaluate
from fsvit_edge.cli.export import export
from fsvit_edge.cli.inspect import inspect
from fsvit_edge.cli.label import LabelCommand, label
from fsvit_edge.cli.run import run
from fsvit_edge.cli.streams import safe_streams
from fsvit_edge.cli.train import train
from fsvit_edge.cli.triton import triton
from fsvit_edge.live.uri import may_have_password, printable_address
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError

RENAMED: Mapping[str, Mapping[str, str]] = {
    "eval": {
        "--way": "--ways",
        "--shot": "--shots",
        "--drop": "--max-drop",
        "--min-er": "--min-exact-ratio",
        "--pictures": "--preview",
    },
    "train": {"--nameless": "--mask-dropout", "--precision": "--trainer-precision"},
    "calib": {"--num": "--max-pictures"},
    "build-engine": {"--ways-max": "--max-ways", "--shots-max": "--max-shots"},
}
"""Command -> old spelling of an option -> new spelling."""
INTERRUPTED = 130  # what a shell makes of SIGINT

_UNREACHABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EIO, errno.ESTALE)
"""Wherever a command looks at a path: it is in a folder one may not enter, too long, or on a disk that is gone."""

_USAGE_ERROR = typer.BadParameter.__mro__[1]  # click's UsageError: Typer now carries its own copy of click

app = typer.Typer(
    name="fsvit-edge",
    help="Learn an object from a few pictures, then find and outline it in every camera frame.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help costs 0.1 s of the 0.3 s that --help may take
)
# As a new user meets them; the last ones are for networks of one's own.
for command in (doctor, enroll, run, label, inspect, bench, train, export, calib, build_engine, triton):
    app.command(cls=LabelCommand if command is label else None)(command)
app.command("eval")(evaluate)
bank_app.command()(key)
bank_app.command()(sign)
app.add_typer(bank_app, name="bank")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fsvit-edge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error becomes one sentence on stderr and its exit code."""
    # As `import_onnxruntime` does: packages that export and train import ONNX Runtime by themselves.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with safe_streams():
        _main()


def _main() -> None:
    stdout = sys.stdout
    try:
        code = app(prog_name="fsvit-edge", standalone_mode=False)
        sys.stdout.flush()
    except FsvitEdgeError as error:
        _fail(str(error), error.exit_code)
    except SystemExit:
        if sys.stdout is stdout:
            raise
        # Typer replaces the stream and exits with 1 if the reader has gone.
        sys.stdout = stdout
        _discard_stdout()
        sys.exit(0)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except ImportError as error:
        _fail_to_load(error)
        raise
    except OSError as error:
        _fail_to_load(error)
        _fail_unreachable(error)
        if error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        _discard_stdout()
        if error.errno == errno.EPIPE:
            sys.exit(0)
        _fail(f"Standard output cannot be written to: {error.strerror}.", 1)
    except MemoryError:
        _fail("This needs more memory than there is here; end other programs, or take smaller files.", 1)
    except Exception as error:
        _fail_to_load(error)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            _fail_unreachable(error.__context__)  # what pathlib makes of links in a circle, before Python 3.13
        if not isinstance(error, _USAGE_ERROR):
            raise
        _fail_usage(error)
    sys.exit(code)


def _fail_unreachable(error: OSError) -> None:
    if error.errno in _UNREACHABLE and error.filename is not None:
        _fail(f"{os.fsdecode(error.filename)} cannot be reached: {error.strerror}; give another path.", 2)


def _discard_stdout() -> None:
    # Otherwise Python flushes the rest of the buffer at exit and fails again, with a traceback.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail_to_load(error: Exception) -> None:
    """Fail if an error was raised in the import of a package that is not ours: a library may be missing, or too old."""
    package = _package_of(error)
    if package in ("", "fsvit_edge"):
        return
    first: BaseException = error
    while first.__cause__ is not None:  # numpy puts a page of advice before the library that is missing
        first = first.__cause__
    reason = next(filter(None, map(str.strip, str(first).splitlines())), type(first).__name__)
    _fail(f"{package} cannot be loaded: {reason}; see: fsvit-edge doctor", EnvironmentLacksError.exit_code)


def _package_of(error: Exception) -> str:
    """The package that cannot be loaded: an ImportError names it, or an error was raised in it; "" if in none."""
    is_import = isinstance(error, ImportError)
    if isinstance(error, ImportError) and error.name:
        return error.name.partition(".")[0]
    name, trace = "", error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        if is_import or trace.tb_frame.f_code.co_name == "<module>":
            name = name if module in ("importlib", "__main__") else module
        trace = trace.tb_next
    return name


def _fail(sentence: str, exit_code: int) -> NoReturn:
    for word in sys.argv[1:]:  # an address with a password may be where it does not belong
        word = word.partition("=")[2] if word.startswith("--") else word
        if may_have_password(word) and not os.path.exists(word):
            shown = printable_address(word) if "://" in word else "***"
            sentence = sentence.replace(word, shown)
            as_path = str(Path(word))
            if as_path not in shown:  # "rtsp:" of "rtsp://" is
                sentence = sentence.replace(as_path, shown)
    print(f"Error: {sentence}", file=sys.stderr)
    sys.exit(exit_code)


def _fail_usage(error: Any) -> NoReturn:
    message = error.format_message()
    if "\n" in message:  # no arguments were given, so the message is the command's help
        print(message, file=sys.stderr)
        sys.exit(error.exit_code)
    command = error.ctx.command_path if error.ctx else "fsvit-edge"
    hint = _hint(command, error)
    _fail(f"{hint or message.rstrip('.')}; see: {command} --help", error.exit_code)


def _hint(command: str, error: Any) -> str | None:
    """What to write instead of an old or unknown option; None if a usage error is about something else."""
    name, option = getattr(error, "option_name", ""), getattr(error, "param", None)
    renamed = RENAMED.get(command.split()[-1], {})
    if name in renamed:
        return f"{name} is now {renamed[name]}"
    if command.endswith(" eval") and option is not None and option.name == "max_drop" and "valid " in error.message:
        return "--max-drop is now a number of points; give the earlier result with --baseline FILE"
    if name and not getattr(error, "possibilities", True):  # typer found no similar option
        known = [one.opts[0] for one in error.ctx.command.params if one.opts[0].startswith("--")]
        return f"No such option: {name}; {command} has {', '.join(known) or 'no options'}"
    return None


if __name__ == "__main__":
    main()
