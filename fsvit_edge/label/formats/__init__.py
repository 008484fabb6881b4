"""Label files in the formats of other tools; a stand-in for the package of the same contract."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from fsvit_edge.label.records import About, LabeledPicture
from fsvit_edge.runtime.storage import atomic_folder

WriteLabels: TypeAlias = Callable[[Path, About, Callable[[], Iterable[LabeledPicture]]], None]


def _write_lines(folder: Path, about: About, pictures: Callable[[], Iterable[LabeledPicture]]) -> None:
    with (folder / "labels.jsonl").open("xb") as file:
        for values in (
            {"event": "about", **asdict(about)},
            *({"event": "picture", **asdict(one)} for one in pictures()),
        ):
            file.write(json.dumps(values, separators=(",", ":")).encode() + b"\n")


FORMATS: Mapping[str, WriteLabels] = dict.fromkeys(("coco", "yolo", "masks", "cvat", "jsonl"), _write_lines)
ABOUT_NAME = "label.json"


def check_path(name: str, picture: str) -> None:
    """Say before anything is labeled that a format cannot hold the path of a picture, with "/", by an InputError."""


def write_format(name: str, folder: Path, about: About, pictures: Callable[[], Iterable[LabeledPicture]]) -> None:
    """Write the labels of pictures to a folder, all of them or none; the same pictures give the same bytes."""
    with atomic_folder(folder, ABOUT_NAME) as staging:
        FORMATS[name](staging, about, pictures)
        (staging / ABOUT_NAME).write_text(json.dumps({"format": name, **asdict(about)}) + "\n", encoding="utf-8")
