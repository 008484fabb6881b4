"""`fsvit-edge`: the commands together, and the one place where errors become sentences and exit codes."""

import sys
from typing import Annotated

import typer

from fsvit_edge import __version__
from fsvit_edge.cli.bank import bank_app
from fsvit_edge.cli.bench import bench
from fsvit_edge.cli.build_engine import build_engine
from fsvit_edge.cli.doctor import doctor
from fsvit_edge.cli.enroll import enroll
from fsvit_edge.cli.export import export
from fsvit_edge.cli.run import run
from fsvit_edge.runtime.errors import FsvitEdgeError

app = typer.Typer(
    name="fsvit-edge",
    help="Show a camera a few pictures of a thing; it tells in every frame whether it is there and where.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help costs 0.1 s of the 0.3 s that --help may take
)
for command in (export, build_engine, enroll, run, bench, doctor):
    app.command()(command)
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
    """Run the command line; errors of ours become one sentence on stderr and their exit code."""
    try:
        app()
    except FsvitEdgeError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
