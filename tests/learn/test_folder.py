"""Folders as data sets: what counts as a class, a mask and a photograph."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from picture_files import rows, save
from PIL import Image

from fsvit_edge.learn.datasets import open_data
from fsvit_edge.learn.examples import IGNORE
from fsvit_edge.learn.folder import FolderFewShot, folder_folds
from fsvit_edge.runtime.errors import InputError

SIZE_HW = (6, 8)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE_HW, 3))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Classes "cat" and "dog" of three pictures; cat/1 and dog/2 are one file, cat/2 and dog/0 one photograph."""
    for name, seeds, mask in (("cat", (1, 2, 3), (0, 255, 255, 0, 0, 0)), ("dog", (4, 5, 2), (255, 255, 0, 0, 0, 0))):
        for index, seed in enumerate(seeds):
            save(tmp_path / name / "images" / f"{index}.png", picture(seed))
            save(tmp_path / name / "masks" / f"{index}.png", rows(*mask))
    (tmp_path / "index.csv").write_text("class,image,same_image_as\ncat,cat/images/2.png,dog/0 bird/7\ndog,x/1.png,\n")
    return tmp_path


def test_classes_and_pictures_come_in_sorted_order_and_keep_their_labels_in_a_selection(root: Path) -> None:
    data = FolderFewShot(root)
    assert data.class_names == {0: "cat", 1: "dog"}
    assert [(example.label, example.image.name) for example in data.examples] == [
        (label, f"{index}.png") for label in (0, 1) for index in range(3)
    ]
    assert data.of_class(1) == [3, 4, 5]
    assert np.array_equal(data.read_image(0), picture(1))
    chosen = FolderFewShot(root, ["dog"])
    assert (chosen.class_names, chosen.examples) == ({1: "dog"}, data.examples[3:])


def test_copies_are_one_photograph_by_content_and_by_index(root: Path) -> None:
    photographs = [example.photograph for example in FolderFewShot(root).examples]
    assert photographs == ["cat/0", "cat/1", "cat/2", "cat/2", "dog/1", "cat/1"]
    assert FolderFewShot(root).labels_of(3) == {0, 1}
    (root / "index.csv").unlink()
    photographs = [example.photograph for example in FolderFewShot(root).examples]
    assert photographs == ["cat/0", "cat/1", "cat/2", "dog/0", "dog/1", "cat/1"]


def test_the_truth_merges_the_masks_of_one_photograph(root: Path) -> None:
    data = FolderFewShot(root)
    assert np.array_equal(data.read_truth(1, (0, 1)), rows(2, 1, 1, 0, 0, 0))
    assert np.array_equal(data.read_truth(1, (1, 0)), rows(1, 1, 2, 0, 0, 0))
    assert np.array_equal(data.read_truth(5, (0,)), rows(0, 1, 1, 0, 0, 0))
    assert np.array_equal(data.read_truth(0, (1,)), rows(0, 0, 0, 0, 0, 0))


PALETTE = [0, 0, 0] + [90, 0, 0] * 254 + [224, 224, 192]


@pytest.mark.parametrize(
    ("stored", "palette", "expected"),
    [
        ((0, 255, 255, 0, 0, 0), None, (0, 1, 1, 0, 0, 0)),
        ((0, 1, 1, 0, 0, 0), None, (0, 1, 1, 0, 0, 0)),
        ((0, 1, 255, 0, 0, 0), None, (0, 1, IGNORE, 0, 0, 0)),
        ((0, 200, 255, 90, 0, 0), None, (0, 1, 1, 0, 0, 0)),
        ((0, 15, 255, 0, 0, 0), PALETTE, (0, 1, IGNORE, 0, 0, 0)),
    ],
)
def test_gray_and_palette_masks(
    root: Path, stored: tuple[int, ...], palette: list[int] | None, expected: tuple[int, ...]
) -> None:
    save(root / "cat/masks/0.png", rows(*stored), palette)
    data = FolderFewShot(root)
    assert np.array_equal(data.read_mask(0), rows(*expected))
    assert np.array_equal(data.read_truth(0, (1, 0)), rows(*(2 if value == 1 else value for value in expected)))


def test_a_pixel_ignored_in_one_mask_takes_the_label_of_the_other(root: Path) -> None:
    save(root / "cat/masks/1.png", rows(255, 1, 255, 0, 0, 0))
    data = FolderFewShot(root)
    for labels in ((0, 1), (1, 0)):
        cat, dog = labels.index(0) + 1, labels.index(1) + 1
        second = cat if labels[0] == 0 else dog
        assert np.array_equal(data.read_truth(1, labels), rows(dog, second, IGNORE, 0, 0, 0))


def test_other_folders_and_files_and_stray_masks_are_ignored(root: Path) -> None:
    before = FolderFewShot(root).examples
    save(root / "cat/unlabeled/9.png", picture(9))
    save(root / "cat/masks/9.png", rows(0, 255, 0, 0, 0, 0))
    save(root / "notes/9.png", picture(9))
    (root / "cat/images/Thumbs.db").write_bytes(b"x")
    (root / "cat/images/.hidden.png").write_bytes(b"x")
    assert FolderFewShot(root).examples == before


def test_masks_may_have_another_format_and_may_be_missing(root: Path) -> None:
    Image.open(root / "cat/masks/0.png").save(root / "cat/masks/0.bmp")
    for name in ("0.png", "1.png"):
        (root / "cat/masks" / name).unlink()
    shutil.rmtree(root / "dog/masks")
    data = FolderFewShot(root, needs_masks=False)
    assert np.array_equal(data.read_mask(0), rows(0, 1, 1, 0, 0, 0))
    assert [example.mask is None for example in data.examples] == [False, True, False, True, True, True]
    with pytest.raises(InputError, match=r"cat/images/1\.png has no mask; expected <root>"):
        data.read_mask(1)
    with pytest.raises(InputError, match="has no mask"):
        data.read_truth(2, (0, 1))
    assert data.read_truth(1, ()).shape == SIZE_HW
    with pytest.raises(InputError, match=r"dog has no mask for 3 of its 3 pictures, for example '0'"):
        FolderFewShot(root, ["dog"])


@pytest.mark.parametrize(
    ("folder", "options", "sentence"),
    [
        ("cat", {}, r"has no class folder; expected <root>/<class>/images"),
        ("absent", {}, "has no class folder"),
        (".", {"classes": ["cat", "bird"]}, "no class 'bird'; it has: cat, dog"),
        (".", {"exclude": ["bird"]}, "no class 'bird'"),
    ],
)
def test_unusable_folders_are_refused(root: Path, folder: str, options: dict[str, list[str]], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        FolderFewShot(root / folder, **options)


def test_unusable_classes_are_refused(root: Path) -> None:
    save(root / "ant/images/0.png", picture(0))
    with pytest.raises(InputError, match=r"ant has 1 pictures, but needs at least 2"):
        FolderFewShot(root, needs_masks=False)
    assert len(FolderFewShot(root, ["cat"]).examples) == 3
    save(root / "cat/images/0.jpg", picture(0))
    with pytest.raises(InputError, match=r"0\.jpg and .*0\.png differ only in their suffix"):
        FolderFewShot(root, ["cat"])


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        (rows(255, 255, 255, 255, 255), r"masks/0\.png is 8x5 pixels, but its picture is 8x6"),
        (rows(255, 1, 1, 1, 1), r"masks/0\.png is 8x5 pixels, but its picture is 8x6"),
        (rows(0, 0, 0, 0, 0, 0), "marks no pixel"),
    ],
)
def test_unusable_masks_are_refused(root: Path, stored: np.ndarray, sentence: str) -> None:
    save(root / "cat/masks/0.png", stored)
    with pytest.raises(InputError, match=sentence):
        FolderFewShot(root).read_mask(0)


def test_an_unusable_index_is_refused(root: Path) -> None:
    (root / "index.csv").write_text("name,same_image_as\ncat/0,dog/1\n")
    with pytest.raises(InputError, match=r"index\.csv has no column class, image"):
        FolderFewShot(root)
    (root / "index.csv").write_bytes(b"\xff\xfe\x00same_image_as")
    with pytest.raises(InputError, match=r"index\.csv cannot be read as a table"):
        FolderFewShot(root)
    (root / "index.csv").write_text("anything,else\n1,2\n")
    assert len(FolderFewShot(root).examples) == 6


def test_a_picture_rotated_by_exif_takes_an_upright_mask(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.fromarray(np.zeros((8, 6, 3), np.uint8))
    sideways.save(root / "cat/images/5.jpg", exif=exif)
    save(root / "cat/masks/5.png", rows(0, 255, 0, 0, 0, 0))
    data = FolderFewShot(root)
    index = next(index for index, example in enumerate(data.examples) if example.image.stem == "5")
    assert data.read_image(index).shape[:2] == SIZE_HW == data.read_mask(index).shape


@pytest.mark.parametrize(("count", "sizes"), [(4, [1, 1, 1, 1]), (6, [1, 2, 1, 2]), (20, [5, 5, 5, 5])])
def test_folds_are_equal_parts_of_the_sorted_classes(tmp_path: Path, count: int, sizes: list[int]) -> None:
    names = [f"class{number:02}" for number in range(count)]
    for name in reversed(names):
        (tmp_path / name / "images").mkdir(parents=True)
    folds = folder_folds(tmp_path)
    assert [len(fold) for fold in folds] == sizes
    assert [name for fold in folds for name in fold] == names


def test_too_few_classes_for_folds_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match="2 classes, too few for 4 folds"):
        folder_folds(root)


def test_training_leaves_out_the_photographs_of_held_out_classes(root: Path) -> None:
    data = FolderFewShot(root, ["cat"], exclude=["dog"])
    assert not data.examples  # one picture is left of three, too few for a class
    save(root / "cat/images/4.png", picture(9))
    save(root / "cat/masks/4.png", rows(0, 255, 0, 0, 0, 0))
    data = FolderFewShot(root, ["cat"], exclude=["dog"])
    assert [example.image.stem for example in data.examples] == ["0", "4"]
    assert dict(data.class_names) == {0: "cat"}


def test_no_photograph_is_in_training_and_test_of_a_fold_of_real_pictures(shared_folder: Path) -> None:
    root = shared_folder / "data/pascal10-coseg"
    everything = FolderFewShot(root)
    assert len(everything.examples) == 1037
    assert len({example.photograph for example in everything.examples}) == 924
    for fold, held_out in enumerate(folder_folds(root)):
        train, test = (open_data("folder", root, None, fold, split) for split in ("train", "test"))
        seen = {example.photograph for example in train.examples}
        assert seen.isdisjoint(example.photograph for example in test.examples)
        # Positive control: selected by class only, the two would share photographs.
        others = [name for name in everything.class_names.values() if name not in held_out]
        unfiltered = {example.photograph for example in FolderFewShot(root, others).examples}
        assert not unfiltered.isdisjoint(example.photograph for example in test.examples)
