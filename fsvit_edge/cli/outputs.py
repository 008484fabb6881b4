"""What a command writes is none of what it reads."""

import os
from collections.abc import Iterable
from pathlib import Path

from fsvit_edge.runtime.errors import InputError


def refuse_to_replace(output: Path | None, inputs: Iterable[Path | None], option: str) -> None:
    """Raise InputError if a file to write is one of the inputs, or is already in one that is a folder."""
    if output is None:
        return
    place = Path(os.path.realpath(output))
    for path in filter(None, inputs):
        parts = [path / "images", path / "masks"] if (path / "images").is_dir() else [path]
        for read in (Path(os.path.realpath(part)) for part in parts):
            if place == read or (place.parent == read and place.exists()):
                raise InputError(f"{output} is read, and would be replaced; give another name with {option}.")
