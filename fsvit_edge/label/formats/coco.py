"""COCO: one JSON file per split, with run lengths as segmentations.

Run lengths are exact and may have holes; polygons in COCO have none. COCO's own API reads both alike.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fsvit_edge.label.formats.files import create, json_text
from fsvit_edge.label.records import About, LabeledClass, LabeledPicture, Part


def write_labels(folder: Path, about: About, pictures: Callable[[], Iterable[LabeledPicture]]) -> None:
    """Write `annotations/instances_SPLIT.json` into an empty folder; SPLIT is "default" for pictures without one.

    Pictures and annotations are numbered from 1 in their order, over all splits; class i is category i + 1.
    """
    categories = {name: index for index, name in enumerate(about.classes, 1)}
    image_id = annotation_id = 0
    with ExitStack() as stack:
        files: dict[str, _SplitFile] = {}
        for image_id, picture in enumerate(pictures(), 1):
            if picture.split not in files:
                files[picture.split] = _SplitFile(folder, picture.split, about, stack)
            file = files[picture.split]
            file.add_image(_image(image_id, picture))
            for found in picture.classes:
                for part in found.parts:
                    annotation_id += 1
                    ids = {"id": annotation_id, "image_id": image_id, "category_id": categories[found.name]}
                    file.add_annotation({**ids, **_annotation(found, part, picture.size_hw)})
        if image_id == 0:
            files[""] = _SplitFile(folder, "", about, stack)
        for file in files.values():
            file.finish()


class _SplitFile:
    """A COCO file while it is written: its images; its annotations wait in a nameless file, for they follow those."""

    def __init__(self, folder: Path, split: str, about: About, stack: ExitStack) -> None:
        self._file = stack.enter_context(create(folder / "annotations" / f"instances_{split or 'default'}.json"))
        self._annotations = stack.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 - the stack closes it
        self._images = self._count = 0
        info = {"description": "Labels by fsvit-edge", **asdict(about)}
        categories = [{"id": index, "name": name, "supercategory": ""} for index, name in enumerate(about.classes, 1)]
        head = json_text({"info": info, "licenses": [], "categories": categories})
        self._file.write(head[:-1].encode() + b',\n"images":[')

    def add_image(self, image: dict[str, Any]) -> None:
        self._file.write((b",\n" if self._images else b"\n") + json_text(image).encode())
        self._images += 1

    def add_annotation(self, annotation: dict[str, Any]) -> None:
        self._annotations.write((b",\n" if self._count else b"\n") + json_text(annotation).encode())
        self._count += 1

    def finish(self) -> None:
        self._file.write(b'],\n"annotations":[')
        self._annotations.seek(0)
        shutil.copyfileobj(self._annotations, self._file)
        self._file.write(b"]}\n")


def _image(image_id: int, picture: LabeledPicture) -> dict[str, Any]:
    height, width = picture.size_hw
    time = {} if picture.time_s is None else {"time_s": picture.time_s}
    return {"id": image_id, "file_name": picture.path, "height": height, "width": width, **time}


def _annotation(found: LabeledClass, part: Part, size_hw: tuple[int, int]) -> dict[str, Any]:
    left, top, right, bottom = part.box_xyxy
    return {
        "bbox": [left, top, right - left, bottom - top],
        "area": part.area_px,
        "iscrowd": 0,
        "score": found.score,
        "segmentation": {"size": list(size_hw), "counts": list(part.counts)},
    }
