import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import cv2
import numpy as np
import pytest
import yaml
from label_records import ABOUT, NAMES, SIZE_HW, Mask, blobs, iou, picture, sample, thin
from PIL import Image

from fsvit_edge.fewshot.index_mask import index_color
from fsvit_edge.fewshot.names import check_name
from fsvit_edge.fewshot.overlay import PALETTE
from fsvit_edge.label.formats import ABOUT_NAME, FORMATS, check_path, write_format
from fsvit_edge.label.formats.yolo import outline_of, yaml_text
from fsvit_edge.label.records import LabeledPicture, Part, pixels_of
from fsvit_edge.runtime.errors import InputError


def written(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their paths in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def label_map(one: LabeledPicture) -> np.ndarray:
    labels = np.zeros(one.size_hw, np.uint8)
    for index, found in enumerate(one.classes, 1):
        for part in found.parts:
            labels[pixels_of(part.counts, one.size_hw)] = index
    return labels


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_pictures_give_the_same_bytes_which_say_what_they_come_from(name: str, tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "other"):
        write_format(name, folder, ABOUT, sample)
    assert written(tmp_path / "one") == written(tmp_path / "other")
    said = json.loads((tmp_path / "one" / ABOUT_NAME).read_text())
    assert said == json.loads(json.dumps({"format": name, **asdict(ABOUT)}))
    assert sorted(os.listdir(tmp_path)) == ["one", "other"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_broken_end_leaves_the_old_labels_and_nothing_else(name: str, tmp_path: Path) -> None:
    def broken() -> Iterator[LabeledPicture]:
        yield sample()[0]
        raise RuntimeError("killed")

    write_format(name, tmp_path / "labels", ABOUT, sample)
    before = written(tmp_path / "labels")
    with pytest.raises(RuntimeError, match="killed"):
        write_format(name, tmp_path / "labels", ABOUT, broken)
    assert written(tmp_path / "labels") == before
    assert os.listdir(tmp_path) == ["labels"]
    write_format(name, tmp_path / "labels", ABOUT, lambda: sample()[:1])
    assert written(tmp_path / "labels") != before


@pytest.mark.parametrize("name", FORMATS)
def test_pictures_are_asked_for_one_by_one(name: str, tmp_path: Path) -> None:
    living = most = 0

    class Counted(LabeledPicture):
        def __del__(self) -> None:
            nonlocal living
            living -= 1

    def many() -> Iterator[LabeledPicture]:
        nonlocal living, most
        for number in range(20):
            one = picture(f"{number}.jpg", blobs(number, (24, 32)))
            living += 1
            most = max(most, living)
            yield Counted(one.path, one.size_hw, one.time_s, one.classes, one.split)

    write_format(name, tmp_path / "labels", ABOUT, many)
    assert most <= 2
    kept = list(many())
    assert (len(kept), most) == (20, 20)  # the control


@pytest.mark.parametrize("name", FORMATS)
def test_no_pictures_and_no_classes_are_labels_too(name: str, tmp_path: Path) -> None:
    write_format(name, tmp_path / "labels", replace(ABOUT, classes=(), levels=()), list)
    assert (tmp_path / "labels" / ABOUT_NAME).is_file()
    if name == "coco":
        assert json.loads((tmp_path / "labels/annotations/instances_default.json").read_text())["images"] == []
    if name == "yolo":
        assert yaml.safe_load((tmp_path / "labels/data.yaml").read_text())["names"] == {}


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_of_something_else_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match=r"contains other files and no label\.json"):
        write_format(name, tmp_path, ABOUT, sample)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_json_lines_have_everything(tmp_path: Path) -> None:
    odd = replace(sample()[0], path="odd\u2028name\udcff.jpg", split="val")
    write_format("jsonl", tmp_path / "out", ABOUT, lambda: [*sample(), odd])
    lines = (tmp_path / "out/labels.jsonl").read_text().splitlines()  # which splits at U+2028, too
    about, *pictures = map(json.loads, lines)
    assert about == json.loads(json.dumps({"event": "about", **asdict(ABOUT)}))
    assert pictures == [json.loads(json.dumps({"event": "picture", **asdict(one)})) for one in [*sample(), odd]]


def test_coco_numbers_pictures_and_parts_over_all_splits(tmp_path: Path) -> None:
    split = [replace(one, split=name) for one, name in zip(sample(), ["train", "val", "train", "val"], strict=True)]
    write_format("coco", tmp_path / "out", ABOUT, lambda: split)
    assert sorted(os.listdir(tmp_path / "out/annotations")) == ["instances_train.json", "instances_val.json"]
    train, val = (
        json.loads((tmp_path / f"out/annotations/instances_{name}.json").read_text()) for name in ("train", "val")
    )
    assert [(one["id"], one["file_name"]) for one in train["images"]] == [(1, "a.jpg"), (3, "left/b.c.png")]
    assert [(one["id"], one["file_name"]) for one in val["images"]] == [(2, "left/ö & <1>.jpg"), (4, "tall.jpg")]
    assert (train["images"][0]["height"], train["images"][0]["width"]) == SIZE_HW
    assert train["images"][1]["time_s"] == 1.5
    assert train["categories"] == val["categories"]
    assert [(one["id"], one["name"]) for one in train["categories"]] == list(enumerate(NAMES, 1))
    ids = [one["id"] for one in train["annotations"] + val["annotations"]]
    assert sorted(ids) == list(range(1, len(ids) + 1))
    assert train["info"]["bank_sha256"] == ABOUT.bank_sha256
    first = sample()[0].classes[0].parts[0]
    assert train["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [
            *first.box_xyxy[:2],
            first.box_xyxy[2] - first.box_xyxy[0],
            first.box_xyxy[3] - first.box_xyxy[1],
        ],
        "area": first.area_px,
        "iscrowd": 0,
        "score": 0.875,
        "segmentation": {"size": list(SIZE_HW), "counts": list(first.counts)},
    }


def test_index_masks_have_the_pixels_the_names_and_colors_of_their_own(tmp_path: Path) -> None:
    write_format("masks", tmp_path / "out", ABOUT, sample)
    for one in sample():
        with Image.open((tmp_path / "out/masks" / one.path).with_suffix(".png")) as image:
            assert (image.mode, image.size) == ("P", one.size_hw[::-1])
            assert np.array_equal(np.asarray(image), label_map(one))
            assert image.convert("RGB").getpixel((0, 0)) == index_color(int(label_map(one)[0, 0]))
    indices = json.loads((tmp_path / "out/indices.json").read_text())
    assert [(one["index"], one["name"]) for one in indices] == list(enumerate(("background", *NAMES)))
    assert tuple(indices[1]["color_rgb"]) == PALETTE[0]


def test_no_two_of_255_classes_share_an_index_or_a_color(tmp_path: Path) -> None:
    assert len({index_color(index) for index in range(256)}) == 256
    names = tuple(f"class {number}" for number in range(255))
    last = Part(1, (0, 0, 1, 1), (0, 1, 5))
    one = replace(
        sample()[0], size_hw=(2, 3), classes=(replace(sample()[0].classes[0], name=names[-1], parts=(last,)),)
    )
    write_format("masks", tmp_path / "out", replace(ABOUT, classes=names, levels=(0.5,) * 255), lambda: [one])
    with Image.open(tmp_path / "out/masks/a.png") as image:
        assert np.asarray(image).tolist() == [[255, 0, 0], [0, 0, 0]]


def test_cvat_has_pictures_masks_and_names_as_they_are(tmp_path: Path) -> None:
    write_format("cvat", tmp_path / "out", ABOUT, sample)
    root = ElementTree.parse(tmp_path / "out/annotations.xml").getroot()
    assert [label.findtext("name") for label in root.iter("label")] == list(NAMES)
    assert [image.get("name") for image in root.iter("image")] == [one.path for one in sample()]
    for one, image in zip(sample(), root.iter("image"), strict=True):
        labels = np.zeros(one.size_hw, np.uint8)
        for mask in image.iter("mask"):
            left, top, width, height = (int(mask.get(key, "")) for key in ("left", "top", "width", "height"))
            counts = [int(count) for count in mask.get("rle", "").split(",")]
            pixels = np.repeat(np.arange(len(counts)) % 2, counts).reshape(height, width)
            labels[top : top + height, left : left + width][pixels > 0] = NAMES.index(mask.get("label", "")) + 1
            assert mask.findtext("attribute") == "0.8750"
        assert np.array_equal(labels, label_map(one))


def test_cvat_has_a_file_for_each_split(tmp_path: Path) -> None:
    split = [replace(one, split=name) for one, name in zip(sample(), ["train", "val", "train", "val"], strict=True)]
    write_format("cvat", tmp_path / "out", ABOUT, lambda: split)
    for name, pictures in (("train", split[::2]), ("val", split[1::2])):
        root = ElementTree.parse(tmp_path / f"out/{name}.xml").getroot()
        assert [(image.get("id"), image.get("name")) for image in root.iter("image")] == [
            (str(index), one.path) for index, one in enumerate(pictures)
        ]


@pytest.mark.parametrize("path", ["bell\a.jpg", "latin\udce9.jpg", "non\uffff.jpg"])
def test_cvat_refuses_names_that_xml_cannot_hold(path: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="that XML cannot hold; rename it, or choose --format coco or jsonl"):
        write_format("cvat", tmp_path / "out", ABOUT, lambda: [picture(path)])
    write_format("cvat", tmp_path / "control", ABOUT, lambda: [picture("tab\tline\nübung👍.jpg")])
    (image,) = ElementTree.parse(tmp_path / "control/annotations.xml").getroot().iter("image")
    assert image.get("name") == "tab\tline\nübung👍.jpg"


def read_yolo(folder: Path, one: LabeledPicture, cut_off: bool) -> list[tuple[int, Mask]]:
    """Read polygons as supervision does, which rounds, or as Ultralytics does, which cuts off, and fill them."""
    found = []
    for line in (folder / "labels" / one.path).with_suffix(".txt").read_text().splitlines():
        index, *values = line.split()
        shares = np.array(values, np.float32).reshape(-1, 2)
        assert len(shares) >= 3
        assert 0 <= shares.min() <= shares.max() < 1
        points = shares * one.size_hw[::-1]
        filled = np.zeros(one.size_hw, np.uint8)
        cv2.fillPoly(filled, [(points if cut_off else np.round(points)).astype(np.int32)], 1)
        found.append((int(index), filled > 0))
    return found


@pytest.mark.parametrize("cut_off", [False, True])
def test_yolo_has_a_polygon_for_each_part_with_its_pixels(cut_off: bool, tmp_path: Path) -> None:
    dot = np.zeros(SIZE_HW, np.bool_)
    dot[119, 159] = dot[0, 0] = dot[3, 3:9] = True
    pictures = [*sample(), picture("dots.jpg", dot), picture("all.jpg", np.ones(SIZE_HW, np.bool_))]
    write_format("yolo", tmp_path / "out", ABOUT, lambda: pictures)
    for one in pictures:
        truth = [(way, part) for way, found in enumerate(one.classes) for part in found.parts]
        read = read_yolo(tmp_path / "out", one, cut_off)
        assert [way for way, _ in read] == [way for way, _ in truth]
        for (_, filled), (_, part) in zip(read, truth, strict=True):
            assert np.array_equal(filled, pixels_of(part.counts, one.size_hw))


@pytest.mark.parametrize("make", [blobs, thin])
def test_an_outline_has_the_holes_and_thin_parts_of_its_part(make: object) -> None:
    holes = 0
    for seed in range(20):
        pixels = blobs(seed, share=0.7) if make is blobs else thin(seed)
        _, labels = cv2.connectedComponents(pixels.view(np.uint8))
        part = labels == np.bincount(labels[labels > 0]).argmax()
        filled = np.zeros(part.shape, np.uint8)
        cv2.fillPoly(filled, [outline_of(part)], 1)
        assert iou(filled, part) == 1
        outer, _ = cv2.findContours(part.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        without = cv2.fillPoly(np.zeros(part.shape, np.uint8), outer, 1)
        holes += iou(without, part) < 0.99
    assert holes >= 5  # the control: an outline without its holes would not do


def test_an_outline_of_noise_is_exact() -> None:
    for seed in range(50):
        pixels = np.random.default_rng(seed).random((20, 30)) < 0.6
        _, labels = cv2.connectedComponents(pixels.view(np.uint8))
        for index in range(1, labels.max() + 1):
            filled = np.zeros(pixels.shape, np.uint8)
            cv2.fillPoly(filled, [outline_of(labels == index)], 1)
            assert np.array_equal(filled > 0, labels == index)


def test_yolo_lists_pictures_and_names_classes(tmp_path: Path) -> None:
    write_format("yolo", tmp_path / "out", ABOUT, sample)
    data = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert data == {"train": "train.txt", "val": "train.txt", "names": dict(enumerate(NAMES))}
    assert (tmp_path / "out/train.txt").read_text().splitlines() == [f"./images/{one.path}" for one in sample()]
    assert (tmp_path / "out/labels/left/ö & <1>.txt").read_bytes() == b""  # seen, and nothing was there
    split = [replace(one, split="val" if one.path == "tall.jpg" else "train") for one in sample()]
    write_format("yolo", tmp_path / "split", ABOUT, lambda: split)
    assert yaml.safe_load((tmp_path / "split/data.yaml").read_text())["val"] == "val.txt"
    assert (tmp_path / "split/val.txt").read_text() == "./images/tall.jpg\n"


def test_yaml_keeps_every_name_that_a_class_may_have(tmp_path: Path) -> None:
    names = ("no", "1.5", "a: b # c", "- x", "'", "\\n", "{%y}", "👍🏽", "a\u00a0b\u200dc", "é\U0010fffd")
    write_format("yolo", tmp_path / "out", replace(ABOUT, classes=names, levels=(0.5,) * len(names)), list)
    assert list(yaml.safe_load((tmp_path / "out/data.yaml").read_text())["names"].values()) == list(names)


@pytest.mark.parametrize("name", ["yolo", "masks"])
@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (("a.jpg", "a.png"), r"'a\.png' has the name of another one, because two pictures differ only in their suffix"),
        (("../a.jpg",), "outside of the folder"),
        (("/a.jpg",), "outside of the folder"),
    ],
)
def test_pictures_that_cannot_have_a_label_file_are_refused(
    name: str, paths: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=reason):
        write_format(name, tmp_path / "out", ABOUT, lambda: map(picture, paths))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a\u2028b.jpg", "line break in its name"),
        ("images/a.jpg", "in a folder named images"),
        ("left/images/a.jpg", "in a folder named images"),
        ("v1./a.jpg", "whose name ends in a dot"),
    ],
)
def test_yolo_refuses_pictures_whose_labels_ultralytics_would_not_find(path: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        write_format("yolo", tmp_path / "out", ABOUT, lambda: [picture(path)])
    with pytest.raises(InputError, match=reason):
        check_path("yolo", path)
    for one in sample():
        check_path("yolo", one.path)  # the control


def test_a_path_that_leads_out_of_the_folder_is_refused_by_every_format_beforehand() -> None:
    for name in FORMATS:
        check_path(name, "left/a.jpg")
        with pytest.raises(InputError, match="outside of the folder"):
            check_path(name, "left/../../a.jpg")
    with pytest.raises(InputError, match="XML cannot hold"):
        check_path("cvat", "bell\a.jpg")


def test_every_character_that_a_class_may_have_fits_every_format() -> None:
    """A name is refused when it is enrolled, never when pictures are labeled."""
    fit = []
    for number in range(0x11000):
        with contextlib.suppress(InputError):
            check_name(f"a{chr(number)}b")
            fit.append(f"a{chr(number)}b")
    assert len(fit) > 60_000
    some = fit[::13]  # PyYAML takes 8 s for all
    assert yaml.safe_load("[" + ",".join(map(yaml_text, some)) + "]") == some
    xml = "<n>" + "".join(f"<i>{escape(name)}</i>" for name in fit) + "</n>"
    assert [one.text for one in ElementTree.fromstring(xml)] == fit
    for refused in ("a\u2028b", "a\uffffb"):
        assert refused not in fit


def test_a_list_keeps_bytes_that_are_no_text(tmp_path: Path) -> None:
    write_format("yolo", tmp_path / "out", ABOUT, lambda: [picture("latin\udce9.jpg")])
    assert (tmp_path / "out/train.txt").read_bytes() == b"./images/latin\xe9.jpg\n"
    assert os.listdir(os.fsencode(tmp_path / "out/labels")) == [b"latin\xe9.txt"]
