"""JSON lines: all that was found, one picture a line."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fsvit_edge.label.formats.files import create, json_text
from fsvit_edge.label.records import About, LabeledPicture


def write_labels(folder: Path, about: About, pictures: Callable[[], Iterable[LabeledPicture]]) -> None:
    """Write `labels.jsonl` into an empty folder: what the answers come from, then the pictures in their order."""
    with create(folder / "labels.jsonl") as file:
        file.write(json_text({"event": "about", **asdict(about)}).encode() + b"\n")
        for picture in pictures():
            file.write(json_text(_record(picture)).encode() + b"\n")


def _record(picture: LabeledPicture) -> dict[str, Any]:
    """The same as `asdict`, which would copy each run length: that took nine tenths of the time."""
    classes = [{**vars(found), "parts": [vars(part) for part in found.parts]} for found in picture.classes]
    return {"event": "picture", **vars(picture), "classes": classes}
