"""JSON files of ours, read back into dataclasses.

This stays our own code: msgspec cannot refuse a dataclass's unknown fields.
"""

import json
import types
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.storage import read_file

MAX_JSON_BYTES = 10**8
"""The largest of ours, a calibration, has less than a megabyte."""

_Record = TypeVar("_Record")


def read_json_object(file: Path, version: int, remedy: str) -> dict[str, Any]:
    """Read the JSON object in a file; `remedy` is what to do about another `format_version`, as a clause.

    Raises:
        FileNotFoundError: The file does not exist.
        ArtifactError: It is not JSON, not an object, or has another version.
    """
    try:
        values: Any = json.loads(read_file(file, MAX_JSON_BYTES), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} is not readable JSON: {error}.") from error
    found = values.get("format_version") if isinstance(values, dict) else None
    if type(found) is not int or found != version:
        raise ArtifactError(f"{file} has format version {found!r:.40}, this fsvit-edge reads {version}; {remedy}.")
    return dict(values)


def record_from_json(kind: type[_Record], file: Path, values: dict[str, Any]) -> _Record:
    """Make a dataclass from a JSON object that anybody may have edited: every field is checked, at every depth.

    Lists become tuples if the field is one, a whole number may stand for a float, and a field with a default may be
    missing. An ArtifactError names the file and the field that is missing, unknown, or of another type.
    """
    try:
        record: _Record = _fill(kind, values, "")
    except (TypeError, RecursionError, OverflowError) as error:
        raise ArtifactError(f"{file} is incomplete, has unknown fields or wrong values: {error}.") from error
    return record


def _convert(kind: Any, value: Any, name: str) -> Any:
    """Return `value` as a `kind`; a TypeError names the field that is not one."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind) and type(value) is dict:
        return _fill(kind, value, name)
    if origin in (Union, types.UnionType):
        for choice in arguments:
            with suppress(TypeError):
                return _convert(choice, value, name)
    elif origin is tuple and type(value) is list and arguments[1:] == (...,):
        return tuple(_convert(arguments[0], item, f"{name}[{index}]") for index, item in enumerate(value))
    elif origin is tuple and type(value) is list and len(value) == len(arguments):
        pairs = enumerate(zip(arguments, value, strict=True))
        return tuple(_convert(one, item, f"{name}[{index}]") for index, (one, item) in pairs)
    elif origin is list and type(value) is list:
        return [_convert(arguments[0], item, f"{name}[{index}]") for index, item in enumerate(value)]
    elif origin is dict and type(value) is dict:
        return {key: _convert(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind:
        return value
    raise TypeError(f"{name} is {value!r:.80}")


def _fill(kind: Any, values: dict[str, Any], name: str) -> Any:
    hints = get_type_hints(kind)
    dot = f"{name}." if name else ""
    unknown = values.keys() - hints.keys()
    if unknown:
        raise TypeError(f"unknown field {dot + min(unknown)!r}")
    for field in fields(kind):
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise TypeError(f"{dot + field.name!r} is missing")
    return kind(**{key: _convert(hints[key], value, dot + key) for key, value in values.items()})


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
