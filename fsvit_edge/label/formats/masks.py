"""Index masks: for each picture a PNG of 8 bits, whose pixels are the indices of their classes."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from fsvit_edge.fewshot.index_mask import index_color, index_png
from fsvit_edge.label.formats.files import write_beside
from fsvit_edge.label.records import About, LabeledPicture, pixels_in_box


def write_labels(folder: Path, about: About, pictures: Callable[[], Iterable[LabeledPicture]]) -> None:
    """Write `masks/PICTURE.png` and `indices.json`, the names and colors of the indices, into an empty folder.

    Raises:
        InputError: Two pictures differ only in their suffix, or one is outside of the folder that is labeled.
    """
    names = ("background", *about.classes)
    indices = [{"index": index, "name": name, "color_rgb": index_color(index)} for index, name in enumerate(names)]
    (folder / "indices.json").write_text(json.dumps(indices, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    index_of = {name: index for index, name in enumerate(about.classes, 1)}
    for picture in pictures():
        labels = np.zeros(picture.size_hw, np.uint8)
        for found in picture.classes:
            for part in found.parts:
                left, top, right, bottom = part.box_xyxy
                labels[top:bottom, left:right][pixels_in_box(part, picture.size_hw[0])] = index_of[found.name]
        write_beside(folder / "masks", picture.path, ".png", index_png(labels))
