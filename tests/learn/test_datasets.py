"""Pascal-5i and COCO-20i: what the lists select, and what their masks mean."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsvit_edge.learn.datasets import CocoFewShot, PascalFewShot, open_data
from fsvit_edge.learn.examples import IGNORE
from fsvit_edge.learn.folder import FolderFewShot
from fsvit_edge.runtime.errors import InputError

SIZE_HW = (6, 8)
NAMES = ("2007_000001", "2007_000002", "2007_000003")


@pytest.fixture
def pascal_lists(tmp_path: Path) -> Path:
    for folder in ("trn", "val"):
        (tmp_path / "lists/pascal" / folder).mkdir(parents=True)
        for fold in range(4):
            lines = [f"{name}__{fold * 5 + 1 + index:02}" for index, name in enumerate(NAMES)]
            (tmp_path / "lists/pascal" / folder / f"fold{fold}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "lists"


@pytest.fixture
def coco_lists(tmp_path: Path) -> Path:
    (tmp_path / "lists/coco").mkdir(parents=True)
    for prefix, year in (("trn", "train2014"), ("val", "val2014")):
        for fold in range(4):
            lists = {
                str(number): [f"{year}/{number}b.jpg", f"{year}/{number}a.jpg"]
                if ((number - 1) % 4 == fold) == (prefix == "val")
                else []
                for number in range(1, 81)
            }
            path = tmp_path / "lists/coco" / f"{prefix}-fold{fold}.json.gz"
            path.write_bytes(gzip.compress(json.dumps(lists).encode()))
    return tmp_path / "lists"


def save_gray(values: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def save_palette(values: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("P", SIZE_HW[::-1])
    image.putpalette([value * 7 % 256 for value in range(768)])
    image.putdata(values.astype(np.uint8).ravel().tolist())
    image.save(path)


def index_map() -> np.ndarray:
    """One row each of void, class 1, class 3 and class 20."""
    stored = np.zeros(SIZE_HW, np.uint8)
    stored[0], stored[1], stored[2], stored[3] = 255, 1, 3, 20
    return stored


def rows(*values: int) -> np.ndarray:
    return np.repeat(np.array(values)[:, None], SIZE_HW[1], axis=1)


@pytest.mark.parametrize("nesting", [".", "VOC2012", "VOCdevkit/VOC2012"])
@pytest.mark.parametrize("save", [save_gray, save_palette])
def test_a_pascal_mask_is_renumbered_to_the_labels_asked_about(
    tmp_path: Path, pascal_lists: Path, nesting: str, save
) -> None:
    home = tmp_path / "data" / nesting
    save_gray(np.zeros((*SIZE_HW, 3)), home / "JPEGImages" / f"{NAMES[0]}.jpg")
    save(index_map(), home / "SegmentationClassAug" / f"{NAMES[0]}.png")
    data = PascalFewShot(tmp_path / "data", pascal_lists, 0, "test")
    assert data.read_image(0).shape == (*SIZE_HW, 3)
    assert np.array_equal(data.read_mask(0), rows(IGNORE, 1, 0, 0, 0, 0))
    assert np.array_equal(data.read_truth(0, (2, 4, 0)), rows(IGNORE, 3, 1, 0, 0, 0))
    assert np.array_equal(data.read_truth(0, (4,)), rows(IGNORE, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("nesting", [".", "COCO2014"])
def test_a_coco_mask_is_renumbered_to_the_labels_asked_about(tmp_path: Path, coco_lists: Path, nesting: str) -> None:
    home = tmp_path / "data" / nesting
    save_gray(np.zeros((*SIZE_HW, 3)), home / "val2014/1b.jpg")
    save_gray(index_map(), home / "annotations/val2014/1b.png")
    data = CocoFewShot(tmp_path / "data", coco_lists, 0, "test")
    assert data.read_image(0).shape == (*SIZE_HW, 3)
    assert np.array_equal(data.read_mask(0), rows(IGNORE, 1, 0, 0, 0, 0))
    assert np.array_equal(data.read_truth(0, (4, 0)), rows(IGNORE, 2, 0, 0, 0, 0))


def test_pascal_trains_on_the_other_folds(pascal_lists: Path) -> None:
    test = PascalFewShot(Path("x"), pascal_lists, 1, "test")
    train = PascalFewShot(Path("x"), pascal_lists, 1, "train")
    assert list(test.class_names.values()) == ["bus", "car", "cat", "chair", "cow"]
    assert list(test.class_names) == [5, 6, 7, 8, 9]
    assert list(train.class_names) == [label for label in range(20) if label not in test.class_names]
    assert [example.label for example in train.examples] == [0, 1, 2, 10, 11, 12, 15, 16, 17]
    assert {example.image.name for example in train.examples} == {f"{name}.jpg" for name in NAMES}
    assert train.of_class(10) == [3]
    assert train.labels_of(0) == {0, 10, 15}
    everything = PascalFewShot(Path("x"), pascal_lists, None, "train")
    assert list(everything.class_names) == list(range(20))


def test_coco_trains_on_the_other_folds(coco_lists: Path) -> None:
    test = CocoFewShot(Path("x"), coco_lists, 3, "test")
    train = CocoFewShot(Path("x"), coco_lists, 3, "train")
    assert list(test.class_names) == list(range(3, 80, 4))
    assert test.class_names[3] == "motorcycle"
    assert test.class_names[79] == "toothbrush"
    assert list(train.class_names) == [label for label in range(80) if label % 4 != 3]
    # In the order of the list: sorting would change the published episodes.
    assert [example.photograph for example in test.examples][:2] == ["val2014/4b.jpg", "val2014/4a.jpg"]
    assert train.examples[0].mask == Path("x/annotations/train2014/1b.png")
    for split in ("train", "test"):
        everything = CocoFewShot(Path("x"), coco_lists, None, split)
        assert list(everything.class_names) == list(range(80))
        assert len(everything.examples) == 160


def test_the_standard_lists_are_read_completely(shared_folder: Path) -> None:
    splits = shared_folder / "splits"
    pascal = [PascalFewShot(Path("x"), splits, fold, "test") for fold in range(4)]
    assert [len(data.examples) for data in pascal] == [346, 451, 725, 346]
    assert len(PascalFewShot(Path("x"), splits, 0, "train").examples) == 11394
    coco = CocoFewShot(Path("x"), splits, 3, "test")
    assert (len(coco.examples), len(coco.class_names)) == (14315, 20)


def test_missing_files_are_named_with_the_layout(tmp_path: Path, pascal_lists: Path) -> None:
    data = PascalFewShot(tmp_path, pascal_lists, 0, "test")
    for read in (data.read_image, data.read_mask):
        with pytest.raises(InputError, match=r"2007_000001\.(jpg|png) is missing; expected <root>/JPEGImages"):
            read(0)


def test_a_mask_with_the_wrong_size_or_mode_is_refused(tmp_path: Path, pascal_lists: Path) -> None:
    data = PascalFewShot(tmp_path, pascal_lists, 0, "test")
    example = data.examples[0]
    assert example.mask is not None
    save_gray(np.zeros((5, 8, 3)), example.image)
    save_gray(index_map(), example.mask)
    with pytest.raises(InputError, match=r"is 8x6 pixels, but its picture .* is 8x5"):
        data.read_mask(0)
    save_gray(np.zeros((5, 8, 3)), example.mask)
    with pytest.raises(InputError, match="has mode RGB, expected class numbers"):
        data.read_mask(0)
    example.mask.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"2007_000001\.png cannot be read"):
        data.read_mask(0)


def test_missing_and_damaged_lists_are_refused(tmp_path: Path, pascal_lists: Path, coco_lists: Path) -> None:
    with pytest.raises(InputError, match=r"fold0\.txt cannot be read"):
        PascalFewShot(tmp_path, tmp_path, 0, "test")
    with pytest.raises(InputError, match=r"val-fold0\.json\.gz cannot be read"):
        CocoFewShot(tmp_path, tmp_path, 0, "test")
    path = pascal_lists / "pascal/val/fold0.txt"
    path.write_text("2007_000001__01\n2007_000002__06\n")
    with pytest.raises(InputError, match=r"Line 2 of .* expected IMAGE__CLASS with a class from 1 to 5"):
        PascalFewShot(tmp_path, pascal_lists, 0, "test")
    path = coco_lists / "coco/val-fold0.json.gz"
    for content in (b"damaged", gzip.compress(b"[") + b"", gzip.compress(json.dumps({"1": ["a.jpg"]}).encode())[:-4]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            CocoFewShot(tmp_path, coco_lists, 0, "test")
    for stored in ({"1": ["a.jpg"]}, ["a.jpg"], {"1": "a.jpg"}):
        path.write_bytes(gzip.compress(json.dumps(stored).encode()))
        with pytest.raises(InputError, match="has no list of pictures for class"):
            CocoFewShot(tmp_path, coco_lists, 0, "test")


def test_unknown_folds_classes_and_benchmarks_are_refused(tmp_path: Path, pascal_lists: Path, coco_lists: Path) -> None:
    for data in (PascalFewShot, CocoFewShot):
        with pytest.raises(InputError, match="Fold 4 does not exist; choose 0 to 3"):
            data(tmp_path, pascal_lists, 4, "test")
    with pytest.raises(InputError, match=r"Unknown class 7; choose one of: 0 \(aeroplane\)"):
        PascalFewShot(tmp_path, pascal_lists, 0, "test").of_class(7)
    with pytest.raises(InputError, match="Unknown benchmark 'voc'"):
        open_data("voc", tmp_path, coco_lists, 0, "test")
    with pytest.raises(InputError, match="needs its picture lists"):
        open_data("coco", tmp_path, None, 0, "test")


def test_open_data_opens_each_benchmark(tmp_path: Path, pascal_lists: Path, coco_lists: Path) -> None:
    assert isinstance(open_data("pascal", tmp_path, pascal_lists, 0, "test"), PascalFewShot)
    assert isinstance(open_data("coco", tmp_path, coco_lists, None, "train"), CocoFewShot)
    for name in "abcd":
        for index in range(2):
            save_gray(np.full((4, 4), ord(name) + 9 * index), tmp_path / "mine" / name / "images" / f"{index}.png")
    data = open_data("folder", tmp_path / "mine", None, 2, "train", needs_masks=False)
    assert isinstance(data, FolderFewShot)
    assert list(data.class_names.values()) == ["a", "b", "d"]
    assert list(open_data("folder", tmp_path / "mine", None, 2, "test", False).class_names) == [2]
    assert len(open_data("folder", tmp_path / "mine", None, None, "test", False).class_names) == 4
