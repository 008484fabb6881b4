"""Help, version and console script; and one name, one meaning: the options of all commands together."""

import re
import resource
import signal
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import pytest
import typer
from command_line import Cli, Result, spawn

from fsvit_edge import __version__
from fsvit_edge.cli.main import RENAMED, app

SHARED = {
    "--backbone": "backbone",
    "--bank": "bank|enrolled classes",
    "--bundle": "bundle",
    "--checkpoint": "checkpoint|\\.ckpt",
    "--data": "data set",
    "--engine": "onnxruntime",
    "--frames": "number of frames",
    "--json": "print",
    "--level": "score above which",
    "--max-drop": "drop",
    "--output": "write|folder for",
    "--precision": "fp32, fp16 or int8",
    "--preview": "draw",
    "--pretrained": "weights from timm's hub",
    "--verify": "compare",
    "--weights": "weights",
}
"""Words (a regular expression) in every help text of an option whose texts differ between commands."""

OR_ADDRESS = ("--bank",)
"""A file everywhere, and for run perhaps an address, which is text: a Path would make https:/ of https://."""


def commands(root: typer.Typer = app) -> dict[tuple[str, ...], Any]:
    """Path of names -> click's command, of all commands and groups."""
    group: Any = typer.main.get_command(root)
    found: dict[tuple[str, ...], Any] = {(): group}
    for name, command in group.commands.items():
        found[(name,)] = command
        for inner, nested in getattr(command, "commands", {}).items():
            found[name, inner] = nested
    return found


def value_type(kind: Any) -> Any:
    """The type of an option's value, without None and list."""
    kinds = [value_type(part) for part in get_args(kind) if part is not type(None)]
    return kinds[0] if kinds else kind


def options_of(command: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield long name, type and help of every option."""
    hints = get_type_hints(command.callback) if command.callback else {}
    for option in command.params:
        if option.param_type_name == "option":
            name = next(name for name in option.opts if name.startswith("--"))
            yield name, value_type(hints[option.name]), option.help


def differences(commands: Mapping[tuple[str, ...], Any], shared: Mapping[str, str] = SHARED) -> list[str]:
    """Describe each option whose type or meaning differs between commands."""
    types, texts = defaultdict(set), defaultdict(set)
    for command in commands.values():
        for name, kind, text in options_of(command):
            types[name].add(kind)
            texts[name].add(text)
    for name in OR_ADDRESS:
        types[name].discard(str)
    found = [f"{name} has different types: {kinds}" for name, kinds in types.items() if len(kinds) > 1]
    for name, helps in texts.items():
        has_one_meaning = name in shared and all(re.search(shared[name], text.lower()) for text in helps)
        if len(helps) > 1 and not has_one_meaning:
            found.append(f"{name} has different meanings: {helps}")
    return found


def test_the_commands_are_known() -> None:
    top = "bank bench build-engine calib doctor enroll eval export inspect label run train triton"
    assert sorted(path[0] for path in commands() if len(path) == 1) == top.split()
    bank = "check judge key level list remove rename review scene sign zone"
    assert sorted(path[1] for path in commands() if len(path) == 2) == bank.split()


def time_of_processes_s() -> float:
    """CPU time of the processes that have ended, which other tests beside this one lengthen little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("path", commands(), ids=lambda path: " ".join(path) or "fsvit-edge")
def test_help_mentions_every_option(path: tuple[str, ...], cli: Cli) -> None:
    result = cli(" ".join(path), "--help")
    assert (result.code, result.err) == (0, "")
    command = commands()[path]
    assert command.help
    assert " ".join(command.help.split())[:40] in " ".join(result.out.split())
    for parameter in command.params:
        shown = [*parameter.opts, *parameter.secondary_opts]
        assert all(name in result.out for name in shown), shown
        assert parameter.help, parameter.name


# No command has to load more than another for its help: see `tests/test_imports.py`.
@pytest.mark.parametrize("line", ["", "run", "bank list"])
def test_help_is_fast(line: str, tmp_path: Path) -> None:
    limit_s = 0.6  # 0.3 s on an idle machine
    for _ in range(3):
        before_s = time_of_processes_s()
        result = spawn(*line.split(), "--help", cwd=tmp_path)
        took_s = time_of_processes_s() - before_s
        assert (result.code, result.err) == (0, "")
        if took_s < limit_s:
            break
    assert took_s < limit_s


def test_a_command_group_without_a_command_shows_its_help(cli: Cli) -> None:
    for line in ("", "bank"):
        result = cli(line)
        assert result.code == 2
        assert result.err.startswith("Usage: fsvit-edge")
        assert result.out == ""


@pytest.mark.parametrize("line", ["--help", "bank --help"])
def test_what_a_command_does_is_not_cut_off(line: str, cli: Cli) -> None:
    summaries = cli(line).out.partition("Commands:\n")[2].splitlines()
    assert len(summaries) > 10
    assert [summary for summary in summaries if summary.endswith("...") or len(summary) > 80] == []


def test_the_version_is_printed(cli: Cli) -> None:
    assert cli("--version") == Result(0, f"fsvit-edge {__version__}\n", "")


def test_the_console_script_starts_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    (script,) = [entry for entry in entry_points(group="console_scripts") if entry.name == "fsvit-edge"]
    called = []
    monkeypatch.setattr("fsvit_edge.cli.main.main", lambda: called.append(1))
    before = signal.getsignal(signal.SIGINT)
    try:
        script.load()()
    finally:
        signal.signal(signal.SIGINT, before)  # or a later test that sends it would end the worker
    assert called == [1]


def test_every_option_name_has_one_meaning() -> None:
    assert differences(commands()) == []


def test_two_meanings_of_one_name_are_found() -> None:
    def one(size: Annotated[int, typer.Option(help="Width in pixels.")] = 1) -> None:
        raise NotImplementedError(size)

    def two(size: Annotated[str, typer.Option(help="Width in pixels.")] = "1") -> None:
        raise NotImplementedError(size)

    def three(size: Annotated[int, typer.Option(help="Number of pictures.")] = 1) -> None:
        raise NotImplementedError(size)

    wrong = typer.Typer(add_completion=False)
    for command in (one, two, three):
        wrong.command()(command)

    different_types, different_meanings = differences(commands(wrong))
    assert different_types.startswith("--size has different types")
    assert different_meanings.startswith("--size has different meanings")
    assert differences(commands(wrong), {"--size": "width"})[1:] == [different_meanings]
    assert differences(commands(wrong), {"--size": "number"})[1:] == [different_meanings]


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [(command, old, new) for command, table in RENAMED.items() for old, new in table.items()],
)
def test_an_old_spelling_is_refused_and_the_new_one_named(cli: Cli, command: str, old: str, new: str) -> None:
    done = cli(command, old, "1")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"Error: {old} is now {new}; see: fsvit-edge {command} --help\n"


def test_a_new_spelling_exists() -> None:
    names = {(path[-1], name) for path, command in commands().items() if path for name, *_ in options_of(command)}
    for command, table in RENAMED.items():
        for old, new in table.items():
            assert (command, old) not in names
            assert (command, new) in names


def test_a_file_as_max_drop_is_refused_and_baseline_named(cli: Cli) -> None:
    done = cli("eval", "--data", "data", "--max-drop", "before.json")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "Error: --max-drop is now a number of points; give the earlier result with --baseline FILE; "
        "see: fsvit-edge eval --help\n"
    )
