"""Label files as tools that others wrote read them: pycocotools, supervision and datumaro, where they are installed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from label_records import ABOUT, NAMES, Mask, iou, sample

from fsvit_edge.label.formats import write_format
from fsvit_edge.label.records import LabeledPicture, pixels_of
from fsvit_edge.runtime.pictures import write_image

# pycocotools 2.0.11 decodes masks in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def flat_sample() -> list[LabeledPicture]:
    """Pictures whose names have no sub-folders: supervision's loader for YOLO does not look into these."""
    return [replace(one, path=one.path.replace("/", "_")) for one in sample()]


def write_pictures(folder: Path, pictures: list[LabeledPicture]) -> Path:
    for one in pictures:
        (folder / one.path).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / one.path, np.zeros((*one.size_hw, 3), np.uint8))
    return folder


def truth(one: LabeledPicture) -> list[tuple[str, Mask]]:
    return [(found.name, pixels_of(part.counts, one.size_hw)) for found in one.classes for part in found.parts]


def check_same(read: list[tuple[str, np.ndarray]], one: LabeledPicture, least: float = 1) -> None:
    assert [name for name, _ in read] == [name for name, _ in truth(one)]
    for (_, mask), (_, pixels) in zip(read, truth(one), strict=True):
        assert iou(mask, pixels) >= least


def test_pycocotools_reads_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco_api = pytest.importorskip("pycocotools.coco")
    write_format("coco", tmp_path / "out", ABOUT, sample)
    coco = coco_api.COCO(tmp_path / "out/annotations/instances_default.json")
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == list(NAMES)
    for image_id, one in enumerate(sample(), 1):
        assert coco.loadImgs(image_id)[0]["file_name"] == one.path
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        check_same([(NAMES[each["category_id"] - 1], coco.annToMask(each)) for each in annotations], one)
    # Its own file as the answer: everything is found. The score that COCO's results need is in the file.
    evaluation = pytest.importorskip("pycocotools.cocoeval").COCOeval(coco, coco, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == 1
    capsys.readouterr()


def test_supervision_reads_coco(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    pictures = write_pictures(tmp_path / "pictures", sample())
    write_format("coco", tmp_path / "out", ABOUT, sample)
    data = supervision.DetectionDataset.from_coco(
        str(pictures), str(tmp_path / "out/annotations/instances_default.json")
    )
    assert data.classes == list(NAMES)
    read = {path: found for path, _, found in data}
    for one in sample():
        found = read[str(pictures / one.path)]
        masks = [] if found.mask is None else list(found.mask)
        check_same([(NAMES[index], mask) for index, mask in zip(found.class_id, masks, strict=True)], one)


def test_supervision_reads_yolo(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    pictures = write_pictures(tmp_path / "images", flat_sample())
    write_format("yolo", tmp_path / "out", ABOUT, flat_sample)
    data = supervision.DetectionDataset.from_yolo(
        str(pictures), str(tmp_path / "out/labels"), str(tmp_path / "out/data.yaml")
    )
    assert data.classes == list(NAMES)
    read = {Path(path).name: found for path, _, found in data}
    assert read.keys() == {one.path for one in flat_sample()}
    for one in flat_sample():
        found = read[one.path]
        masks = [] if found.mask is None else list(found.mask)
        check_same([(NAMES[index], mask) for index, mask in zip(found.class_id, masks, strict=True)], one)


@pytest.mark.parametrize("name", ["coco_instances", "cvat"])
def test_datumaro_reads_coco_and_cvat(name: str, tmp_path: Path) -> None:
    datumaro = pytest.importorskip("datumaro")
    write_format(name.removesuffix("_instances"), tmp_path / "out", ABOUT, sample)
    write_pictures(tmp_path / "out/images", sample())
    data = datumaro.Dataset.import_from(str(tmp_path / "out"), name)
    assert [one.name for one in data.categories()[datumaro.AnnotationType.label].items] == list(NAMES)
    read = {item.id: item.annotations for item in data}
    for one in sample():
        masks = [each for each in read[one.path.rpartition(".")[0]] if each.type == datumaro.AnnotationType.mask]
        found = sorted(masks, key=lambda each: each.id)  # it lists COCO's annotations from the last to the first
        check_same([(NAMES[each.label], each.image) for each in found], one)
        assert {str(each.attributes["score"]) for each in found} <= {"0.875", "0.8750"}
