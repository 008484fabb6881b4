"""Enroll two things, label all sequences of a data set, and open the labels in pycocotools and supervision.

python examples/label_sequences.py DATA THING THING OUTPUT

DATA has a folder for each thing, <thing>/images/*.jpg and <thing>/masks/*.png, such as DAVIS 2016 brought to that form.
The first picture of each THING is enrolled with its mask. OUTPUT gets the bank, the labels in COCO's format, and
sheet.jpg, a picture of each sequence in which something was found. Prints how many pictures of each sequence have each
thing, and the mean IoU with the masks of its own sequence, without the picture that was enrolled.

Needs pycocotools and supervision: pip install pycocotools "fsvit-edge[supervision]".
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import supervision as sv
from pycocotools.coco import COCO

from fsvit_edge import FewShotModel
from fsvit_edge.label.job import LabelOptions, label
from fsvit_edge.label.labeler import LabelerOptions
from fsvit_edge.runtime.masks import read_mask
from fsvit_edge.runtime.pictures import read_image, write_image

Pixels = npt.NDArray[np.bool_]


def main(data: Path, things: list[str], output: Path) -> None:
    """Write bank, labels and sheet below `output`."""
    output.mkdir(parents=True, exist_ok=True)
    bank, labels = output / "bank.safetensors", output / "labels"
    with FewShotModel.load() as model:
        for thing in things:
            picture, mask = first_of(data / thing)
            rgb = read_image(picture)
            model.enroll(thing, [rgb], [read_mask(mask, rgb.shape[:2])])
        model.save_bank(bank)
    options = LabelOptions(LabelerOptions(bank), (str(data),), labels, "coco")
    result = label(options, print)
    print(f"Labeled {result.labeled} pictures in {result.elapsed_s or 0:.0f} s")
    print_table(data, COCO(labels / "annotations" / "instances_default.json"), things)
    draw_sheet(data, labels, output / "sheet.jpg")


def first_of(folder: Path) -> tuple[Path, Path]:
    """Return the first picture of a thing and its mask."""
    return min((folder / "images").iterdir()), min((folder / "masks").iterdir())


def print_table(data: Path, coco: COCO, things: list[str]) -> None:
    """Print, for each sequence, in how many of its pictures each thing was found, and how well."""
    number_of = {one["name"]: one["id"] for one in coco.loadCats(coco.getCatIds())}
    pictures, found = Counter[str](), Counter[tuple[str, str]]()
    ious = defaultdict[str, list[float]](list)
    for picture in coco.loadImgs(coco.getImgIds()):
        sequence, _, name = picture["file_name"].split("/")
        pictures[sequence] += 1
        for thing in things:
            parts = coco.loadAnns(coco.getAnnIds(picture["id"], [number_of[thing]]))
            found[sequence, thing] += bool(parts)
            if sequence == thing and pictures[sequence] > 1:
                mask_file = (data / sequence / "masks" / name).with_suffix(".png")
                mask = read_mask(mask_file, (picture["height"], picture["width"]))
                ours = np.logical_or.reduce([coco.annToMask(part) > 0 for part in parts], initial=False)
                ious[thing].append(iou(mask, np.broadcast_to(ours, mask.shape)))
    print(f"{'sequence':24}{'pictures':>9}" + "".join(f"{thing:>16}" for thing in things))
    for sequence in sorted(pictures):
        counts = "".join(f"{found[sequence, thing]:16}" for thing in things)
        print(f"{sequence:24}{pictures[sequence]:9}{counts}")
    for thing in things:
        print(f"{thing}: mean IoU {np.mean(ious[thing]):.3f} in {len(ious[thing])} pictures of its own")


def iou(one: Pixels, other: Pixels) -> float:
    """Return the intersection over union of two masks; 1 if both are empty."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def draw_sheet(data: Path, labels: Path, file: Path) -> None:
    """Draw with supervision the first picture of each sequence in which something was found, side by side."""
    found = sv.DetectionDataset.from_coco(
        str(data), str(labels / "annotations" / "instances_default.json"), force_masks=True
    )
    firsts: dict[str, npt.NDArray[np.uint8]] = {}
    for path, image, detections in found:
        sequence = Path(path).parts[-3]
        if len(detections) and sequence not in firsts:
            drawn = sv.MaskAnnotator().annotate(image.copy(), detections)
            numbers: list[int] = [] if detections.class_id is None else detections.class_id.tolist()
            names = [found.classes[number] for number in numbers]
            firsts[sequence] = sv.LabelAnnotator().annotate(drawn, detections, names)
    if firsts:
        tiles = [sv.letterbox_image(image, (320, 180)) for image in firsts.values()]
        columns = 4
        tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
        rows = [np.concatenate(tiles[start : start + columns], 1) for start in range(0, len(tiles), columns)]
        write_image(file, np.ascontiguousarray(np.concatenate(rows)[..., ::-1]))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:-1], Path(sys.argv[-1]))
