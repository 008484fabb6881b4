"""Pictures and a video to label by a labeler without a network, and what an output has of them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_files import write_video

from fsvit_edge.label.pictures import STATE_NAME
from fsvit_edge.runtime.pictures import write_image


class Killed(BaseException):
    """Ends a call between two steps, and skips what an error would do."""


@contextmanager
def killed_at_replacement(number: int) -> Iterator[None]:
    """End what is called in the block at its replacement of a file with this number, from 0; it must get there."""
    replace, left = os.replace, number

    def stop(*paths: Any) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        replace(*paths)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(Killed):
            yield


def scene(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """A bright and a red rectangle on black; every third has nothing."""
    picture = np.zeros((height, width, 3), np.uint8)
    if seed % 3:
        picture[2 : 4 + seed % 7, 3:20] = 255
        picture[14:20, seed % 9 : 12 + seed % 9] = (200, 0, 0)
    return picture


def write_album(folder: Path) -> None:
    """Six pictures in two folders, one of them damaged, one empty, a link to nothing, and a video of 8 frames."""
    for index in range(4):
        write_image(folder / f"{index}.png", scene(index))
    write_image(folder / "sub" / "5.jpg", scene(5))
    (folder / "cut.png").write_bytes((folder / "1.png").read_bytes()[:60])
    (folder / "empty.jpg").touch()
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    write_video(folder / "v.mp4", [scene(index, 48, 64) for index in range(8)], 4.0)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of an output, without what says whose they are; and its folders."""
    paths = (path for path in sorted(folder.rglob("*")) if STATE_NAME not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in paths}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def pictures(folder: Path) -> dict[str, dict[str, Any]]:
    return {one["path"]: one for one in lines(folder / "labels.jsonl")[1:]}
