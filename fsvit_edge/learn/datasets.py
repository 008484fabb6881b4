"""The data sets: Pascal-5i and COCO-20i with the standard lists of pictures, and folders of your own pictures."""

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fsvit_edge.learn.examples import IGNORE, Example, FewShotData, check_size, read_stored_mask
from fsvit_edge.learn.folder import NUM_FOLDS, FolderFewShot, class_folders, folder_folds
from fsvit_edge.runtime.errors import InputError

Split = Literal["train", "test"]

BENCHMARKS = ("pascal", "coco", "folder")

_PASCAL_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
_COCO_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
PASCAL_CLASSES = tuple(_PASCAL_NAMES.split())
COCO_CLASSES = tuple(_COCO_NAMES.split(","))

_LIST_FOLDERS = {"train": "trn", "test": "val"}
"""Folder of the standard lists for each split."""
_PASCAL_LINE = re.compile(r"(\S+)__(\d+)")


class _IndexMapData(FewShotData):
    """Data with one mask file per picture, whose pixels are class numbers from 1, or 255 where unknown.

    The lists leave out classes that cover too little of a picture.
    """

    layout: str

    def read_image(self, index: int) -> npt.NDArray[np.uint8]:
        self._check_exists(self.examples[index].image)
        return super().read_image(index)

    def read_truth(self, index: int, labels: Sequence[int]) -> npt.NDArray[np.uint8]:
        image, mask = self.examples[index].image, self.examples[index].mask
        assert mask is not None
        self._check_exists(mask)
        self._check_exists(image)
        stored, mode = read_stored_mask(mask)
        if mode not in ("L", "P"):
            raise InputError(f"The mask {mask} has mode {mode}, expected class numbers (L or P): {self.layout}.")
        check_size(stored, mask, image)
        renamed = np.zeros(256, np.uint8)
        renamed[IGNORE] = IGNORE
        for number, label in enumerate(labels, start=1):
            renamed[label + 1] = number
        return renamed[stored]

    def _check_exists(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"{path} is missing; expected {self.layout}.")


class PascalFewShot(_IndexMapData):
    """Pascal-5i: PASCAL VOC 2012 with the masks of SBD; a fold holds out five classes in a row.

    `root` has `JPEGImages/` and `SegmentationClassAug/`, directly or in `VOC2012/` or `VOCdevkit/VOC2012/`. `splits`
    has `pascal/{trn,val}/fold{0..3}.txt`, one IMAGE__CLASS per line. Fold None takes the lists of all folds.
    """

    layout = (
        "<root>/JPEGImages/*.jpg and <root>/SegmentationClassAug/*.png, the layout of VOC 2012 with the masks of SBD"
    )

    def __init__(self, root: Path, splits: Path, fold: int | None, split: Split) -> None:
        home = _home(root, "JPEGImages", ("VOC2012", "VOCdevkit/VOC2012"))
        _check_fold(fold)
        names: dict[int, str] = {}
        examples: list[Example] = []
        size = len(PASCAL_CLASSES) // NUM_FOLDS
        # The training list of a fold has the classes of that fold.
        for listed in range(NUM_FOLDS):
            if fold is not None and (listed == fold) != (split == "test"):
                continue
            labels = range(listed * size, (listed + 1) * size)
            names |= {label: PASCAL_CLASSES[label] for label in labels}
            path = splits / "pascal" / _LIST_FOLDERS[split] / f"fold{listed}.txt"
            for name, label in _pascal_list(path, labels):
                image = home / "JPEGImages" / f"{name}.jpg"
                examples.append(Example(label, image, home / "SegmentationClassAug" / f"{name}.png", name))
        super().__init__(names, examples)


class CocoFewShot(_IndexMapData):
    """COCO-20i: COCO 2014, with one mask of class numbers (1 to 80) per picture; a fold holds out every fourth class.

    `root` has `train2014/`, `val2014/` and `annotations/{train2014,val2014}/*.png`, directly or in `COCO2014/`.
    `splits` has `coco/{trn,val}-fold{0..3}.json.gz`, class number from 1 -> pictures. Fold None takes all classes.
    """

    query_order = "by class"
    layout = (
        "<root>/{train2014,val2014}/*.jpg and <root>/annotations/{train2014,val2014}/*.png with pixels "
        "that are class numbers, 1 to 80"
    )

    def __init__(self, root: Path, splits: Path, fold: int | None, split: Split) -> None:
        home = _home(root, "annotations", ("COCO2014",))
        _check_fold(fold)
        lists: dict[int, list[str]] = {}
        # The training list of a fold has the classes of the other three folds, so the lists of two folds cover all.
        for listed in (fold,) if fold is not None else (range(NUM_FOLDS) if split == "test" else (0, 1)):
            labels = [label for label in range(len(COCO_CLASSES)) if (label % NUM_FOLDS == listed) == (split == "test")]
            lists |= _coco_list(splits / "coco" / f"{_LIST_FOLDERS[split]}-fold{listed}.json.gz", labels)
        names = {label: COCO_CLASSES[label] for label in sorted(lists)}
        # A picture is listed under two classes on average; making its paths once halves the time to open the data set.
        unique = {name for listed_names in lists.values() for name in listed_names}
        files = {name: (home / name, (home / "annotations" / name).with_suffix(".png")) for name in unique}
        super().__init__(
            names, [Example(label, *files[name], photograph=name) for label in names for name in lists[label]]
        )


def open_data(
    benchmark: str,
    root: Path,
    splits: Path | None,
    fold: int | None,
    split: Split,
    needs_masks: bool = True,
    classes: Sequence[str] = (),
) -> FewShotData:
    """Open the data set of a benchmark (one of `BENCHMARKS`).

    Pascal and COCO need the folder of their picture lists (`splits`). The split "train" has the classes to train on, in
    a folder without the photographs that also show a held-out class; "test" has those that the fold holds out. Fold
    None takes all classes; then a folder can be limited to `classes`. With `needs_masks`, every picture must have one.
    """
    if not root.is_dir():
        raise InputError(f"The data folder {root} does not exist or is not a folder.")
    if classes and (benchmark != "folder" or fold is not None):
        raise InputError("--classes works only with --benchmark folder and without --fold; leave --classes out.")
    if benchmark not in BENCHMARKS:
        raise InputError(f"Unknown benchmark {benchmark!r}; choose one of: {', '.join(BENCHMARKS)}.")
    if benchmark == "folder":
        if fold is None:
            return FolderFewShot(root, classes or None, needs_masks)
        _check_fold(fold)
        held_out = folder_folds(root)[fold]
        if split == "test":
            return FolderFewShot(root, held_out, needs_masks)
        others = [name for name in class_folders(root) if name not in held_out]
        return FolderFewShot(root, others, needs_masks, exclude=held_out)
    if splits is None:
        raise InputError(f"The benchmark {benchmark!r} needs its picture lists; give their folder with --splits.")
    return (PascalFewShot if benchmark == "pascal" else CocoFewShot)(root, splits, fold, split)


def _check_fold(fold: int | None) -> None:
    if fold is not None and fold not in range(NUM_FOLDS):
        raise InputError(f"Fold {fold} does not exist; choose 0 to {NUM_FOLDS - 1}.")


def _home(root: Path, landmark: str, nested: Sequence[str]) -> Path:
    return next((root / place for place in nested if (root / place / landmark).is_dir()), root)


def _pascal_list(path: Path, labels: range) -> Iterator[tuple[str, int]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The list of pictures {path} cannot be read: {error}.") from error
    for number, line in enumerate(lines, start=1):
        match = _PASCAL_LINE.fullmatch(line.strip())
        if match and int(match[2]) - 1 in labels:
            yield match[1], int(match[2]) - 1
        elif line.strip():
            raise InputError(
                f"Line {number} of {path} is {line!r}; expected IMAGE__CLASS with a class from {labels.start + 1} to "
                f"{labels.stop}."
            )


def _coco_list(path: Path, labels: Sequence[int]) -> dict[int, list[str]]:
    try:
        stored = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"The list of pictures {path} cannot be read: {error}.") from error
    lists: dict[int, list[str]] = {}
    for label in labels:
        names = stored.get(str(label + 1)) if isinstance(stored, dict) else None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise InputError(
                f"{path} has no list of pictures for class {label + 1}; expected: class number -> pictures."
            )
        lists[label] = names
    return lists
