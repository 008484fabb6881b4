"""One name, one meaning: the options of all commands together, and the refusal of old spellings."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.models import OptionInfo

from fsvit_edge.cli.main import RENAMED, app

Cli = Callable[..., Any]

SHARED = {
    "--backbone": "backbone",
    "--bank": "bank|enrolled classes",
    "--bundle": "bundle",
    "--checkpoint": "checkpoint|\\.ckpt",
    "--data": "data set",
    "--engine": "onnxruntime",
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


def options_of(app: typer.Typer, path: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Yield command, long name, type and help of every option."""
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from options_of(group.typer_instance, f"{path}{group.name} ")
    for command in app.registered_commands:
        assert command.callback is not None
        title = path + (command.name or command.callback.__name__.replace("_", "-"))
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            kind, *metadata = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            for option in metadata:
                if isinstance(option, OptionInfo):
                    # With Annotated, Typer takes the first name for the default and corrects that later.
                    words = [option.default, *(option.param_decls or ()), f"--{name.replace('_', '-')}"]
                    long_name = next(word for word in words if isinstance(word, str) and word.startswith("--"))
                    yield title, long_name, kind, option.help or ""


def value_type(kind: Any) -> Any:
    """Return the type of an option's value, without None and list."""
    kinds = [value_type(part) for part in get_args(kind) if part is not type(None)]
    return kinds[0] if kinds else kind


def differences(app: typer.Typer, shared: Mapping[str, str] = SHARED) -> list[str]:
    """Describe each option whose type or meaning differs between commands."""
    by_name: dict[str, list[tuple[str, Any, str]]] = defaultdict(list)
    for command, name, kind, text in options_of(app):
        by_name[name].append((command, kind, text))
    found = []
    for name, uses in sorted(by_name.items()):
        types = {command: value_type(kind) for command, kind, _ in uses}
        helps = {command: text for command, _, text in uses}
        if len(set(types.values())) > 1:
            found.append(f"{name} has different types: {types}")
        if len(set(helps.values())) > 1 and not all(
            name in shared and re.search(shared[name], text.lower()) for text in helps.values()
        ):
            found.append(f"{name} has different meanings: {helps}")
    return found


def test_every_option_name_has_one_meaning() -> None:
    assert differences(app) == []


def test_two_meanings_of_one_name_are_found() -> None:
    wrong = typer.Typer()

    @wrong.command()
    def one(size: Annotated[int, typer.Option(help="Width in pixels.")] = 1) -> None:
        raise NotImplementedError(size)

    @wrong.command()
    def two(size: Annotated[str, typer.Option(help="Width in pixels.")] = "1") -> None:
        raise NotImplementedError(size)

    @wrong.command()
    def three(size: Annotated[int, typer.Option(help="Number of pictures.")] = 1) -> None:
        raise NotImplementedError(size)

    different_types, different_meanings = differences(wrong)
    assert different_types.startswith("--size has different types")
    assert different_meanings.startswith("--size has different meanings")
    assert differences(wrong, {"--size": "width"})[1:] == [different_meanings]
    assert differences(wrong, {"--size": "number"})[1:] == [different_meanings]


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [(command, old, new) for command, table in RENAMED.items() for old, new in table.items()],
)
def test_an_old_spelling_is_refused_and_the_new_one_named(cli: Cli, command: str, old: str, new: str) -> None:
    done = cli(command, old, "1")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"Error: {old} is now {new}; see: fsvit-edge {command} --help\n"


def test_a_new_spelling_exists() -> None:
    names = {(command, name) for command, name, _, _ in options_of(app)}
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
