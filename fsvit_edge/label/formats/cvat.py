"""CVAT for images 1.1: one XML file per split, with masks in CVAT's own run lengths."""

import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO
from xml.sax.saxutils import escape, quoteattr

from fsvit_edge.fewshot.index_mask import index_color
from fsvit_edge.label.formats.files import create
from fsvit_edge.label.records import About, LabeledClass, LabeledPicture, Part, pixels_in_box, run_lengths
from fsvit_edge.runtime.errors import InputError

_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # names of classes never have them


def write_labels(folder: Path, about: About, pictures: Callable[[], Iterable[LabeledPicture]]) -> None:
    """Write `annotations.xml` into an empty folder, or `SPLIT.xml` for each split.

    Raises:
        InputError: The name of a picture has characters that XML cannot hold.
    """
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        counts: dict[str, int] = {}
        for picture in pictures():
            if picture.split not in files:
                files[picture.split] = _begin(folder, picture.split, about, stack)
            index = counts.get(picture.split, 0)
            files[picture.split].write(_image(index, picture).encode())
            counts[picture.split] = index + 1
        if not files:
            files[""] = _begin(folder, "", about, stack)
        for file in files.values():
            file.write(b"</annotations>\n")


def _begin(folder: Path, split: str, about: About, stack: ExitStack) -> IO[bytes]:
    file: IO[bytes] = stack.enter_context(create(folder / f"{split or 'annotations'}.xml"))
    labels = "".join(_label(index, name) for index, name in enumerate(about.classes, 1))
    file.write(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta>\n<task>\n'
        f"<name>{split or 'fsvit-edge'}</name>\n<mode>annotation</mode>\n<subset>{split}</subset>\n"
        f"<labels>\n{labels}</labels>\n</task>\n</meta>\n".encode()
    )
    return file


def _label(index: int, name: str) -> str:
    color = "#{:02x}{:02x}{:02x}".format(*index_color(index))
    score = (
        "<attribute><name>score</name><mutable>False</mutable><input_type>text</input_type>"
        "<default_value></default_value><values></values></attribute>"
    )
    return (
        f"<label><name>{escape(name)}</name><color>{color}</color><type>any</type>"
        f"<attributes>{score}</attributes></label>\n"
    )


def _image(index: int, picture: LabeledPicture) -> str:
    check_path(picture.path)
    height, width = picture.size_hw
    name = quoteattr(picture.path)
    masks = "".join(_mask(found, part, height) for found in picture.classes for part in found.parts)
    return f'<image id="{index}" name={name} width="{width}" height="{height}">\n{masks}</image>\n'


def _mask(found: LabeledClass, part: Part, height: int) -> str:
    """Write a part; CVAT counts along the rows of its box, pixels that are off first."""
    left, top, right, bottom = part.box_xyxy
    counts = ", ".join(map(str, run_lengths(pixels_in_box(part, height).T)))
    return (
        f'<mask label={quoteattr(found.name)} source="auto" occluded="0" rle="{counts}" left="{left}" top="{top}" '
        f'width="{right - left}" height="{bottom - top}" z_order="0">'
        f'<attribute name="score">{found.score:.4f}</attribute></mask>\n'
    )


def check_path(picture: str) -> None:
    """Refuse a picture whose name XML cannot hold, with an InputError."""
    if _NOT_XML.search(picture):
        raise InputError(
            f"The picture {picture!r:.200} has characters in its name that XML cannot hold; rename it, or choose "
            "--format coco or jsonl."
        )
