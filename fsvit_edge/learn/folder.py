"""Data sets as folders: `<root>/<class>/images/<stem>.*`, and masks in `<root>/<class>/masks/<stem>.*`."""

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fsvit_edge.learn.examples import IGNORE, Example, FewShotData, picture_size_hw
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.masks import read_roles
from fsvit_edge.runtime.pictures import by_stem, pictures_in

NUM_FOLDS = 4
LAYOUT = "<root>/<class>/images/<stem>.jpg and optionally <root>/<class>/masks/<stem>.png"

_INDEX_FILE = "index.csv"
_SAME_IMAGE = "same_image_as"
_MIN_PICTURES = 2  # one to learn from, one to ask about

_Place = tuple[str, str]  # class and stem


class FolderFewShot(FewShotData):
    """Classes as folders of pictures, with or without masks.

    Copies of one photograph are recognized by their content, and by `<root>/index.csv` if it exists: its columns
    `class` and `image` name a picture, `same_image_as` its copies, as class/stem separated by spaces.

    A mask marks its own class, and is read as by `fsvit-edge enroll`, see `runtime.masks`; void is ignored.

    `root` has the layout `LAYOUT`; other folders and files in it are ignored. `classes` are the names of the classes to
    use, None for all; labels number all class folders in sorted order. The photographs of the classes in `exclude` are
    left out of every class, and a class with fewer than two pictures left is left out as a whole.
    """

    # A photograph shows a class if it is in the folder of the class.
    lists_every_class = True
    # The examples are sorted by class; shuffled, even a short test covers every class.
    query_order = "shuffled"

    def __init__(
        self,
        root: Path,
        classes: Sequence[str] | None = None,
        needs_masks: bool = True,
        exclude: Sequence[str] = (),
    ) -> None:
        names = class_folders(root)
        for name in (*(classes or ()), *exclude):
            if name not in names:
                raise InputError(f"{root} has no class {name!r}; it has: {', '.join(names)}.")
        pictures = {name: _by_stem(root / name / "images") for name in names}
        photographs = _photographs(root, pictures)
        hidden = {photographs[name, stem] for name in exclude for stem in pictures[name]}
        wanted = {label: name for label, name in enumerate(names) if classes is None or name in classes}
        examples = []
        for label, name in wanted.items():
            masks = _by_stem(root / name / "masks") if (root / name / "masks").is_dir() else {}
            _check_class(root / name, list(pictures[name]), masks if needs_masks else None)
            found = [
                Example(label, path, masks.get(stem), photographs[name, stem])
                for stem, path in pictures[name].items()
                if photographs[name, stem] not in hidden
            ]
            examples += found if len(found) >= _MIN_PICTURES else []
        left = {example.label for example in examples}
        super().__init__({label: name for label, name in wanted.items() if label in left}, examples)
        self._by_photograph: dict[tuple[str, int], int] = {}
        for index, example in enumerate(examples):
            self._by_photograph.setdefault((example.photograph, example.label), index)

    def read_mask(self, index: int) -> npt.NDArray[np.uint8]:
        """Return (H, W) uint8: 1 on the example's own class, 0 elsewhere, `IGNORE` where unknown."""
        image, path = self.examples[index].image, self.examples[index].mask
        if path is None:
            raise InputError(f"{image} has no mask; expected {LAYOUT}.")
        return read_roles(path, picture_size_hw(image))

    def read_truth(self, index: int, labels: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return (H, W) uint8: i + 1 on labels[i], 0 elsewhere, `IGNORE` where unknown.

        The masks of the same photograph for these classes are combined; if two of them overlap (at outlines: at most
        5 % of the smaller one in the pictures measured), the first label wins.
        """
        example = self.examples[index]
        truth = np.zeros(picture_size_hw(example.image), np.uint8)
        for number, label in enumerate(labels, start=1):
            other = self._by_photograph.get((example.photograph, label))
            if other is not None:
                mask = self.read_mask(other)
                truth[(mask == 1) & ((truth == 0) | (truth == IGNORE))] = number
                truth[(mask == IGNORE) & (truth == 0)] = IGNORE
        return truth


def class_folders(root: Path) -> list[str]:
    """Return the names of the class folders, sorted; none is an InputError."""
    names = sorted(folder.parent.name for folder in root.glob("*/images") if folder.is_dir())
    if not names:
        raise InputError(f"{root} has no class folder; expected {LAYOUT}.")
    return names


def folder_folds(root: Path) -> list[list[str]]:
    """Split the sorted classes into four equal parts; fold i trains without part i and tests on it."""
    names = class_folders(root)
    if len(names) < NUM_FOLDS:
        raise InputError(f"{root} has {len(names)} classes, too few for {NUM_FOLDS} folds; use it without folds.")
    edges = [len(names) * fold // NUM_FOLDS for fold in range(NUM_FOLDS + 1)]
    return [names[edges[fold] : edges[fold + 1]] for fold in range(NUM_FOLDS)]


def _by_stem(folder: Path) -> dict[str, Path]:
    # Plain alphabetical order, not by the numbers in the names: the episodes depend on it.
    return by_stem(sorted(pictures_in(folder)))


def _check_class(folder: Path, stems: Sequence[str], masks: Mapping[str, Path] | None) -> None:
    if len(stems) < _MIN_PICTURES:
        raise InputError(
            f"The class {folder} has {len(stems)} pictures, but needs at least {_MIN_PICTURES}: a support and a query."
        )
    bare = [stem for stem in stems if stem not in masks] if masks is not None else []
    if bare:
        raise InputError(
            f"The class {folder} has no mask for {len(bare)} of its {len(stems)} pictures, for example {bare[0]!r}; "
            f"expected {LAYOUT}."
        )


def _photographs(root: Path, pictures: Mapping[str, Mapping[str, Path]]) -> dict[_Place, str]:
    """Map each (class, stem) to the name of its photograph: the class/stem of its first copy."""
    places = [(name, stem) for name, stems in pictures.items() for stem in stems]
    first = {place: place for place in places}

    def find(place: _Place) -> _Place:
        while first[place] != place:
            place = first[place]
        return place

    for one, other in (*_same_content(pictures), *_same_by_index(root / _INDEX_FILE)):
        if one in first and other in first:
            low, high = sorted((find(one), find(other)))
            first[high] = low
    return {place: "/".join(find(place)) for place in places}


def _same_content(pictures: Mapping[str, Mapping[str, Path]]) -> Iterator[tuple[_Place, _Place]]:
    # Only files of the same size can be equal, so most are never read and large folders open fast.
    by_size: dict[int, list[tuple[_Place, Path]]] = {}
    for name, stems in pictures.items():
        for stem, path in stems.items():
            by_size.setdefault(path.stat().st_size, []).append(((name, stem), path))
    for group in by_size.values():
        seen: dict[bytes, _Place] = {}
        for place, path in group if len(group) > 1 else ():
            digest = hashlib.sha256(path.read_bytes()).digest()
            if digest in seen:
                yield seen[digest], place
            seen.setdefault(digest, place)


def _same_by_index(path: Path) -> Iterator[tuple[_Place, _Place]]:
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            rows = list(reader) if _SAME_IMAGE in columns else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table: {error}.") from error
    missing = {"class", "image"} - set(columns) if rows else set()
    if missing:
        raise InputError(f"{path} has no column {', '.join(sorted(missing))}, which {_SAME_IMAGE} needs.")
    for row in rows:
        for other in (row[_SAME_IMAGE] or "").split():
            name, _, stem = other.partition("/")
            yield (row["class"], Path(row["image"]).stem), (name, stem)
