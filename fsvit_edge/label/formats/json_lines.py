"""JSON lines: all that was found, one picture a line."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from fsvit_edge.label.formats.files import create, json_text
from fsvit_edge.label.records import About, LabeledPicture, to_plain


def write_labels(folder: Path, about: About, pictures: Callable[[], Iterable[LabeledPicture]]) -> None:
    """Write `labels.jsonl` into an empty folder: what the answers come from, then the pictures in their order."""
    with create(folder / "labels.jsonl") as file:
        file.write(json_text({"event": "about", **asdict(about)}).encode() + b"\n")
        for picture in pictures():
            record = {"event": "picture", **vars(picture), "classes": to_plain(picture.classes)}
            file.write(json_text(record).encode() + b"\n")
