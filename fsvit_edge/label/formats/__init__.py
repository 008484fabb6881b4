"""Label files in the formats of other tools: one module each, which fills an empty folder from labeled pictures."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from fsvit_edge.label.formats import coco, cvat, json_lines, masks, yolo
from fsvit_edge.label.formats.files import check_inside
from fsvit_edge.label.records import About, LabeledPicture
from fsvit_edge.runtime.storage import atomic_folder

WriteLabels: TypeAlias = Callable[[Path, About, Callable[[], Iterable[LabeledPicture]]], None]

FORMATS: Mapping[str, WriteLabels] = MappingProxyType(
    {
        "coco": coco.write_labels,
        "yolo": yolo.write_labels,
        "masks": masks.write_labels,
        "cvat": cvat.write_labels,
        "jsonl": json_lines.write_labels,
    }
)
"""What writes a format: fills an empty folder with the labels of pictures, which are asked for one by one."""

PARQUET = "parquet"
"""No label files: of `label --ray`, whose Parquet files are there already."""

ABOUT_NAME = "label.json"
"""In the folder of every format: what the answers come from. It is written last."""


def check_path(name: str, picture: str) -> None:
    """Say before anything is labeled that a format cannot hold the path of a picture, with "/", by an InputError."""
    check_inside(picture)
    if name == "cvat":
        cvat.check_path(picture)
    if name == "yolo":
        yolo.check_path(picture)


def write_format(name: str, folder: Path, about: About, pictures: Callable[[], Iterable[LabeledPicture]]) -> None:
    """Write the labels of pictures to a folder, all of them or none; the same pictures give the same bytes.

    Args:
        name: A key of `FORMATS`, or `PARQUET`.
        folder: Where to; a folder that is there is replaced if it is empty, or has labels of ours.
        about: What the answers come from.
        pictures: Returns the pictures in their order.

    Raises:
        InputError: The folder has other files, or a picture has a name that the format cannot hold.
        FsvitEdgeError: The disk is full or the folder is not writable; an old folder is unchanged.
    """
    with atomic_folder(folder, ABOUT_NAME) as staging:
        if name != PARQUET:
            FORMATS[name](staging, about, pictures)
        text = json.dumps({"format": name, **asdict(about)}, indent=1, ensure_ascii=False, allow_nan=False)
        (staging / ABOUT_NAME).write_text(text + "\n", encoding="utf-8")
        os.sync()  # once, for a million small files: only those at the top are flushed below
