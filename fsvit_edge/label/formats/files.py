"""Label files that are named after pictures."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fsvit_edge.runtime.errors import InputError

ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}
"""Names of files need not be text: such a name is written as its bytes."""


def json_text(value: Mapping[str, Any]) -> str:
    """Encode as JSON without blanks, in ASCII: a reader that splits lines at U+2028 must not break a name."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def create(path: Path) -> IO[bytes]:
    """Create a file, and its folders; a FileExistsError or NotADirectoryError if another has its name."""
    try:
        return path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def check_inside(picture: str) -> None:
    """Refuse a picture's path, with "/", that leads out of the folder that is labeled, with an InputError."""
    path = PurePosixPath(picture)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise InputError(f"The picture {picture!r:.200} is outside of the folder that is labeled; give paths in it.")


def write_beside(folder: Path, picture: str, suffix: str, data: bytes) -> None:
    """Write the label file of a picture, which has its name and sub-folders but another suffix.

    Args:
        folder: In which the label files are.
        picture: The picture's path, with "/".
        suffix: Of the label file, with its dot.
        data: What is in it.

    Raises:
        InputError: Another picture has this name with another suffix, or the path leads out of the folder.
    """
    check_inside(picture)
    try:
        with create(folder / PurePosixPath(picture).with_suffix(suffix)) as file:
            file.write(data)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"The label file of {picture!r:.200} has the name of another one, because two pictures differ only in "
            "their suffix; rename one of them, or choose --format coco, cvat or jsonl."
        ) from error
