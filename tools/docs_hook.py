"""Fills in the parts of the documentation that come from code, when MkDocs builds the site.

A line `<!-- generated: NAME ARGUMENT -->` on a page under docs/ is replaced by what the function NAME returns, with the
line before it, which tells who reads the page in the repository where to look.
"""

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument

from fsvit_edge.cli.main import app
from fsvit_edge.runtime import errors

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))

import architecture  # noqa: E402  # it lies beside this file, which MkDocs loads by its path

Schema = dict[str, Any]
MARKER = re.compile(
    r"^\*`make docs` fills this in; without it, see .+\.\*\n\n<!-- generated: (\w+) ?(\S*) -->$", re.MULTILINE
)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the markers of a page; MkDocs calls this for each."""
    return MARKER.sub(lambda marker: PARTS[marker[1]](marker[2]), markdown)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").strip()


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command of the command line with its full name, in the order of --help."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        if inner is None:
            yield name, command
        else:
            yield from ((f"{name} {inner_name}", each) for inner_name, each in inner.items())


def _cli(_: str) -> str:
    parts = []
    for name, command in commands():
        arguments = [option for option in command.params if isinstance(option, TyperArgument)]
        options = [option for option in command.params if option not in arguments]
        words = [(option.metavar or option.name).upper() for option in arguments]
        usage = " ".join(
            word if option.required else f"[{word}]" for word, option in zip(words, arguments, strict=True)
        )
        parts += [
            f"## {name}\n",
            f"{command.help}\n",
            f"```text\nfsvit-edge {name} [OPTIONS] {usage}".rstrip(),
            "```\n",
        ]
        if arguments:
            rows = [(f"`{word}`", _cell(option.help or "")) for word, option in zip(words, arguments, strict=True)]
            parts.append(_table(("argument", "meaning"), rows))
        parts.append(_table(("option", "meaning", "default"), [_option_row(option) for option in options]))
    return "\n".join(parts)


def _option_row(option: Any) -> tuple[str, str, str]:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = getattr(option, "default", None)
    if option.required:
        default = "required"
    elif isinstance(value, bool):
        default = ("on" if value else "off") if option.secondary_opts else ""
    elif value in (None, (), []):
        default = ""
    else:
        default = f"`{getattr(value, 'value', value)}`"
    return names, _cell(option.help or ""), default


def _shared_options(_: str) -> str:
    """Options that more than one command has, with those commands: one name, one meaning."""
    users: dict[str, list[tuple[str, Any]]] = {}
    for name, command in commands():
        for option in command.params:
            if not isinstance(option, TyperArgument):
                users.setdefault(option.opts[-1], []).append((name, option))
    rows = [
        (f"`{option}`", ", ".join(f"`{name}`" for name, _ in uses), _cell(uses[0][1].help or ""))
        for option, uses in sorted(users.items())
        if len(uses) > 1
    ]
    return _table(("option", "commands", "meaning"), rows)


def _exit_codes(_: str) -> str:
    rows = [("0", "", "Done."), ("130", "", "Interrupted with Ctrl-C.")]
    for name, thing in vars(errors).items():
        # Errors that share their parent's code are the parent's in a script's eyes.
        if isinstance(thing, type) and issubclass(thing, errors.FsvitEdgeError) and "exit_code" in vars(thing):
            rows.append((str(thing.exit_code), f"`{name}`", _cell((thing.__doc__ or "").partition("\n")[0])))
    return _table(("code", "Python exception", "meaning"), sorted(rows, key=lambda row: int(row[0])))


def _attributes(path: str) -> str:
    """A dataclass's fields as a table, from its docstring or the comments beside them; `path` is module and name."""
    module, _, name = path.rpartition(".")
    described = getattr(importlib.import_module(module), name)
    listed = (inspect.getdoc(described) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+)(?: \([^)]*\))?: ((?:.|\n(?!    \w+:|\S))*)", listed, re.MULTILINE)
    found = found or re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(described), re.MULTILINE)
    names = [field.name for field in dataclasses.fields(described)]
    assert [field for field, _ in found] == names, f"{path}: not every field is described"
    return _table(("field", "meaning"), [(f"`{field}`", _cell(meaning)) for field, meaning in found])


def _openapi_schema() -> Schema:
    from fsvit_edge.page.app import create_app

    return create_app(None).openapi()


def _http(_: str) -> str:
    schema = _openapi_schema()
    rows = []
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            fields = [parameter["name"] for parameter in operation.get("parameters", ())]
            body = operation.get("requestBody", {}).get("content", {})
            fields += _body_fields(body, schema)
            rows.append((method.upper(), f"`{path}`", ", ".join(fields), _cell(operation["description"])))
    return _table(("method", "path", "fields", "what it does"), rows)


def _body_fields(content: Schema, schema: Schema) -> list[str]:
    """Names of a request body's fields, the optional ones with a question mark; otherwise its type."""
    described: Schema = content.get("application/json", {}).get("schema", {})
    if "$ref" in described:
        described = schema["components"]["schemas"][described["$ref"].rpartition("/")[2]]
    required = described.get("required", ())
    named = [name if name in required else f"{name}?" for name in described.get("properties", ())]
    return named or [f"body: {kind}" for kind in content]


def _include(path: str) -> str:
    """Another Markdown file of the repository, without its title, its headings as they are."""
    text = (ROOT / path).read_text()
    return re.sub(r"^# .*\n+", "", text)


def _architecture_picture(_: str) -> str:
    return architecture.svg(architecture.rooms(ROOT))


def _architecture_table(_: str) -> str:
    return architecture.table(architecture.rooms(ROOT))


PARTS: dict[str, Callable[[str], str]] = {
    function.__name__.removeprefix("_"): function
    for function in (
        _cli,
        _shared_options,
        _exit_codes,
        _attributes,
        _http,
        _include,
        _architecture_picture,
        _architecture_table,
    )
}
