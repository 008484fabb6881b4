"""Names of several sources, and the file that lists them."""

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from fsvit_edge.live.uri import SourceAddress, parse_source, printable
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.given_text import read_given_text

_MAX_LETTERS = 40
_MAX_LIST_BYTES = 100_000
_NAME = re.compile(rf"\w[\w.-]{{0,{_MAX_LETTERS - 1}}}")
_NAMED = re.compile(r"(?P<name>[^=:/]*?)\s*=\s*(?P<source>.*)")  # an address has "://" before any "="


def source_names(sources: Iterable[tuple[str | None, str]]) -> dict[str, str]:
    """Name sources: by the names that are given, and the others by what they are; twins get -2, -3, ...

    The name of a file is its stem, that of a folder its own, that of a camera its number or the end of its path, that
    of a stream its host.

    Args:
        sources: Of each the given name, or None, and the source as `open_source` takes it.

    Returns:
        The sources by name, in their order. A name consists of at most 40 letters, digits and . _ -, and starts with a
        letter, a digit or _: it fits into paths and topics.

    Raises:
        InputError: A source is unsupported, or a given name is invalid or given twice.
    """
    listed = list(sources)
    given = [name for name, _ in listed if name is not None]
    for name in given:
        _check_name(name)
        if given.count(name) > 1:
            raise InputError(f"Two sources have the name {name!r}; give one of them another name.")
    taken, named = set(given), {}
    for given_name, source in listed:
        address = parse_source(source)
        chosen = given_name or _unique(_derived(address), taken)
        taken.add(chosen)
        named[chosen] = source
    return named


def read_cameras(path: Path) -> list[tuple[str | None, str]]:
    """Read a list of sources, "SOURCE" or "NAME = SOURCE" on each line; "#" at the start of a word begins a comment.

    Returns:
        Of each the name, or None, and the source.

    Raises:
        InputError: The file cannot be read or lists no source, or a line of it is invalid.
    """
    lines = read_given_text(path, "The list of cameras", _MAX_LIST_BYTES).splitlines()
    found: list[tuple[str | None, str]] = []
    for number, line in enumerate(lines, 1):
        stripped = re.sub(r"(^|\s)#.*", "", line).strip()
        try:
            found += [_parse_line(stripped)] if stripped else []
        except InputError as error:
            raise InputError(f"Line {number} of the list of cameras {path}: {error}") from error
    if not found:
        raise InputError(
            f"The list of cameras {path} has no source; write one per line, as in: door = rtsp://HOST/PATH"
        )
    return found


def _parse_line(line: str) -> tuple[str | None, str]:
    match = _NAMED.fullmatch(line)
    name, source = (match["name"], match["source"]) if match else (None, line)
    if name is not None:
        _check_name(name)
    if not source:
        raise InputError(f"The name {name!r} has no source; write one behind the =.")
    return name, source


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"The name {printable(name)!r:.80} of a source must be 1 to {_MAX_LETTERS} letters, digits or . _ -, "
            "and start with a letter, a digit or _; give it another one."
        )


def _derived(address: SourceAddress) -> str:
    if address.kind in ("rtsp", "http"):
        text = urlsplit(address.target).hostname or ""
    elif address.kind == "csi":
        text = f"csi-{address.target}"
    elif address.kind == "camera" and address.name.isdigit():
        text = address.name
    else:
        path = Path(address.target).absolute()
        text = path.name if path.is_dir() else path.stem
    text = re.sub(r"[^\w.-]+", "_", text).lstrip(".-")[:_MAX_LETTERS]
    return text if _NAME.fullmatch(text) else "source"


def _unique(name: str, taken: set[str]) -> str:
    chosen, number = name, 2
    while chosen in taken:
        ending = f"-{number}"
        chosen, number = f"{name[: _MAX_LETTERS - len(ending)]}{ending}", number + 1
    return chosen
