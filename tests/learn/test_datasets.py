"""Pascal-5i and COCO-20i: what the lists select, and what their masks mean."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from picture_files import rows, save

from fsvit_edge.learn.datasets import CocoFewShot, PascalFewShot, open_data
from fsvit_edge.learn.examples import IGNORE
from fsvit_edge.learn.folder import FolderFewShot
from fsvit_edge.runtime.errors import InputError

NAMES = ("2007_000001", "2007_000002", "2007_000003")
NO_COLOR = np.zeros((6, 8, 3))
# One row each of void, class 1, class 3, class 20 and twice background.
INDEX_MAP = rows(255, 1, 3, 20, 0, 0)


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Pascal: the same three pictures for the first three classes of each fold. COCO: two pictures per class."""
    root = tmp_path / "lists"
    for prefix, year in (("trn", "train2014"), ("val", "val2014")):
        for fold in range(4):
            path = root / "pascal" / prefix / f"fold{fold}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{name}__{fold * 5 + 1 + index:02}\n" for index, name in enumerate(NAMES)))
            listed = {number: ((number - 1) % 4 == fold) == (prefix == "val") for number in range(1, 81)}
            pictures = {
                str(number): [f"{year}/{number}b.jpg", f"{year}/{number}a.jpg"] if here else []
                for number, here in listed.items()
            }
            path = root / "coco" / f"{prefix}-fold{fold}.json.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(json.dumps(pictures).encode()))
    return root


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize(
    ("benchmark", "nesting", "image", "mask"),
    [
        *(
            (PascalFewShot, home, f"JPEGImages/{NAMES[0]}.jpg", f"SegmentationClassAug/{NAMES[0]}.png")
            for home in (".", "VOC2012", "VOCdevkit/VOC2012")
        ),
        *((CocoFewShot, home, "val2014/1b.jpg", "annotations/val2014/1b.png") for home in (".", "COCO2014")),
    ],
)
def test_a_mask_is_renumbered_to_the_labels_asked_about(
    tmp_path: Path, lists: Path, benchmark: type, nesting: str, image: str, mask: str, palette: bool
) -> None:
    save(tmp_path / "data" / nesting / image, NO_COLOR)
    save(tmp_path / "data" / nesting / mask, INDEX_MAP, [value * 7 % 256 for value in range(768)] if palette else None)
    data = benchmark(tmp_path / "data", lists, 0, "test")
    assert data.read_image(0).shape == (6, 8, 3)
    assert np.array_equal(data.read_mask(0), rows(IGNORE, 1, 0, 0, 0, 0))
    assert np.array_equal(data.read_truth(0, (2, 4, 0)), rows(IGNORE, 3, 1, 0, 0, 0))
    assert np.array_equal(data.read_truth(0, (4,)), rows(IGNORE, 0, 0, 0, 0, 0))


def test_pascal_trains_on_the_other_folds(lists: Path) -> None:
    test, train = (PascalFewShot(Path("x"), lists, 1, split) for split in ("test", "train"))
    assert test.class_names == {5: "bus", 6: "car", 7: "cat", 8: "chair", 9: "cow"}
    assert list(train.class_names) == [label for label in range(20) if label not in test.class_names]
    assert [example.label for example in train.examples] == [0, 1, 2, 10, 11, 12, 15, 16, 17]
    assert {example.image.name for example in train.examples} == {f"{name}.jpg" for name in NAMES}
    assert train.of_class(10) == [3]
    assert train.labels_of(0) == {0, 10, 15}
    assert list(PascalFewShot(Path("x"), lists, None, "train").class_names) == list(range(20))


def test_coco_trains_on_the_other_folds(lists: Path) -> None:
    test, train = (CocoFewShot(Path("x"), lists, 3, split) for split in ("test", "train"))
    assert list(test.class_names) == list(range(3, 80, 4))
    assert (test.class_names[3], test.class_names[79]) == ("motorcycle", "toothbrush")
    assert list(train.class_names) == [label for label in range(80) if label % 4 != 3]
    # In the order of the list: sorting would change the published episodes.
    assert [example.photograph for example in test.examples][:2] == ["val2014/4b.jpg", "val2014/4a.jpg"]
    assert train.examples[0].mask == Path("x/annotations/train2014/1b.png")
    for split in ("train", "test"):
        everything = CocoFewShot(Path("x"), lists, None, split)
        assert (list(everything.class_names), len(everything.examples)) == (list(range(80)), 160)


def test_the_standard_lists_are_read_completely(shared_folder: Path) -> None:
    splits = shared_folder / "splits"
    pascal = [PascalFewShot(Path("x"), splits, fold, "test") for fold in range(4)]
    assert [len(data.examples) for data in pascal] == [346, 451, 725, 346]
    assert len(PascalFewShot(Path("x"), splits, 0, "train").examples) == 11394
    coco = CocoFewShot(Path("x"), splits, 3, "test")
    assert (len(coco.examples), len(coco.class_names)) == (14315, 20)


def test_unusable_pictures_and_masks_are_refused(tmp_path: Path, lists: Path) -> None:
    data = PascalFewShot(tmp_path, lists, 0, "test")
    for read in (data.read_image, data.read_mask):
        with pytest.raises(InputError, match=r"2007_000001\.(jpg|png) is missing; expected <root>/JPEGImages"):
            read(0)
    image, mask = data.examples[0].image, data.examples[0].mask
    assert mask is not None
    save(image, np.zeros((5, 8, 3)))
    save(mask, INDEX_MAP)
    with pytest.raises(InputError, match=r"is 8x6 pixels, but its picture .* is 8x5"):
        data.read_mask(0)
    save(mask, np.zeros((5, 8, 3)))
    with pytest.raises(InputError, match="has mode RGB, expected class numbers"):
        data.read_mask(0)
    mask.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"2007_000001\.png cannot be read"):
        data.read_mask(0)


def zipped(lists: object) -> bytes:
    # Without the time of day, by which two test processes would see different tests.
    return gzip.compress(json.dumps(lists).encode(), mtime=0)


@pytest.mark.parametrize(
    ("benchmark", "path", "content", "sentence"),
    [
        (PascalFewShot, "pascal/val/fold0.txt", None, r"fold0\.txt cannot be read"),
        (
            PascalFewShot,
            "pascal/val/fold0.txt",
            b"2007_000001__01\n2007_000002__06\n",
            r"Line 2 of .* expected IMAGE__CLASS with a class from 1 to 5",
        ),
        *(
            (CocoFewShot, "coco/val-fold0.json.gz", content, r"val-fold0\.json\.gz cannot be read")
            for content in (None, b"damaged", gzip.compress(b"[", mtime=0), zipped({"1": ["a.jpg"]})[:-4])
        ),
        *(
            (CocoFewShot, "coco/val-fold0.json.gz", zipped(stored), "has no list of pictures for class")
            for stored in ({"1": ["a.jpg"]}, ["a.jpg"], {"1": "a.jpg"})
        ),
    ],
)
def test_missing_and_damaged_lists_are_refused(
    tmp_path: Path, lists: Path, benchmark: type, path: str, content: bytes | None, sentence: str
) -> None:
    (lists / path).unlink()
    if content is not None:
        (lists / path).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        benchmark(tmp_path, lists, 0, "test")


def test_unknown_folds_classes_and_benchmarks_are_refused(tmp_path: Path, lists: Path) -> None:
    for data in (PascalFewShot, CocoFewShot):
        with pytest.raises(InputError, match="Fold 4 does not exist; choose 0 to 3"):
            data(tmp_path, lists, 4, "test")
    with pytest.raises(InputError, match=r"Unknown class 7; choose one of: 0 \(aeroplane\)"):
        PascalFewShot(tmp_path, lists, 0, "test").of_class(7)
    with pytest.raises(InputError, match="Unknown benchmark 'voc'"):
        open_data("voc", tmp_path, lists, 0, "test")
    with pytest.raises(InputError, match="needs its picture lists"):
        open_data("coco", tmp_path, None, 0, "test")


def test_open_data_opens_each_benchmark(tmp_path: Path, lists: Path) -> None:
    assert isinstance(open_data("pascal", tmp_path, lists, 0, "test"), PascalFewShot)
    assert isinstance(open_data("coco", tmp_path, lists, None, "train"), CocoFewShot)
    for name in "abcd":
        for index in range(2):
            save(tmp_path / "mine" / name / "images" / f"{index}.png", np.full((4, 4), ord(name) + 9 * index))
    data = open_data("folder", tmp_path / "mine", None, 2, "train", needs_masks=False)
    assert isinstance(data, FolderFewShot)
    assert list(data.class_names.values()) == ["a", "b", "d"]
    assert list(open_data("folder", tmp_path / "mine", None, 2, "test", False).class_names) == [2]
