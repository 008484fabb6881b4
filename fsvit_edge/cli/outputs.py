"""What a command writes: none of what it reads, and nothing unfinished stays."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fsvit_edge.runtime.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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


def write_preview(path: Path, picture: "NDArray[np.uint8]") -> None:
    """Write an (H, W, 3) uint8 RGB picture, and remove what killed commands left beside it."""
    from fsvit_edge.runtime.pictures import write_image
    from fsvit_edge.runtime.storage import remove_leftovers

    remove_leftovers(path.parent)
    write_image(path, picture)
