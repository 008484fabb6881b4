"""Episodes: the published ones, and the rules that all episodes follow."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsvit_edge.learn.datasets import CocoFewShot, PascalFewShot
from fsvit_edge.learn.episodes import Episode, benchmark_episode, present, training_episode
from fsvit_edge.learn.examples import FewShotData
from fsvit_edge.learn.folder import FolderFewShot
from fsvit_edge.runtime.errors import InputError

NOWHERE = Path("nowhere")

# Benchmark, fold, number, query, supports of each way, classes numbered from 1. Made once by a separate script, which
# reads the lists as text and follows the published procedure by name with the global np.random.seed; it shares nothing
# with the code under test. Number 999 has 2 ways and 3 shots, the others for 1 and 1.
PUBLISHED = [
    ("pascal", 0, 0, "2007_000033", ["2009_000354"], [2]),
    ("pascal", 0, 1, "2007_000061", ["2010_001036"], [4]),
    ("pascal", 0, 2, "2007_000129", ["2010_002693"], [2]),
    (
        "pascal",
        0,
        999,
        "2011_000185",
        ["2009_004125 2007_005705 2009_004635", "2009_000879 2008_007994 2010_005531"],
        [4, 3],
    ),
    ("pascal", 1, 0, "2007_000452", ["2008_000107"], [9]),
    ("pascal", 1, 1, "2007_000464", ["2010_001699"], [9]),
    ("pascal", 1, 2, "2007_000491", ["2011_000661"], [9]),
    (
        "pascal",
        1,
        999,
        "2007_009897",
        ["2010_001000 2007_002387 2007_005114", "2011_000830 2009_000335 2009_004732"],
        [10, 6],
    ),
    ("pascal", 2, 0, "2007_000129", ["2008_001308"], [15]),
    ("pascal", 2, 1, "2007_000323", ["2008_001150"], [14]),
    ("pascal", 2, 2, "2007_000332", ["2008_003461"], [13]),
    (
        "pascal",
        2,
        999,
        "2008_002835",
        ["2008_000573 2009_004994 2007_008944", "2010_005046 2009_003991 2010_000174"],
        [15, 11],
    ),
    ("pascal", 3, 0, "2007_000042", ["2008_006553"], [19]),
    ("pascal", 3, 1, "2007_000123", ["2007_004281"], [19]),
    ("pascal", 3, 2, "2007_000175", ["2010_003541"], [17]),
    (
        "pascal",
        3,
        999,
        "2011_000283",
        ["2011_002535 2011_003146 2007_002565", "2008_003135 2007_001408 2007_003506"],
        [19, 16],
    ),
    ("coco", 0, 0, "507081", ["421811"], [73]),
    ("coco", 0, 1, "092212", ["553129"], [73]),
    ("coco", 0, 2, "321071", ["373662"], [49]),
    ("coco", 0, 999, "437351", ["305540 376706 325208", "416749 142129 272430"], [77, 13]),
    ("coco", 1, 0, "154095", ["476810"], [74]),
    ("coco", 1, 1, "525880", ["192192"], [14]),
    ("coco", 1, 2, "035368", ["079841"], [2]),
    ("coco", 1, 999, "477598", ["533106 461821 396556", "140542 572861 264855"], [30, 18]),
    ("coco", 2, 0, "167668", ["378299"], [75]),
    ("coco", 2, 1, "245153", ["169849"], [11]),
    ("coco", 2, 2, "555920", ["350388"], [51]),
    ("coco", 2, 999, "189714", ["146887 107177 464251", "160341 104453 051712"], [15, 31]),
    ("coco", 3, 0, "295564", ["482275"], [76]),
    ("coco", 3, 1, "009041", ["328091"], [80]),
    ("coco", 3, 2, "296634", ["378894"], [64]),
    ("coco", 3, 999, "117508", ["393469 139294 505792", "029341 192685 299271"], [32, 20]),
]


def named(data: FewShotData, episode: Episode) -> tuple[str, list[str], list[int]]:
    def name(index: int) -> str:
        return data.examples[index].photograph.removeprefix("val2014/COCO_val2014_000000").removesuffix(".jpg")

    supports = [" ".join(name(index) for index in way) for way in episode.supports]
    return name(episode.query), supports, [label + 1 for label in episode.ways]


@pytest.mark.parametrize(("benchmark", "fold"), [(name, fold) for name in ("pascal", "coco") for fold in range(4)])
def test_episodes_are_the_published_ones(shared_folder: Path, benchmark: str, fold: int) -> None:
    data = {"pascal": PascalFewShot, "coco": CocoFewShot}[benchmark](NOWHERE, shared_folder / "splits", fold, "test")
    pinned = [row[2:] for row in PUBLISHED if row[:2] == (benchmark, fold)]
    assert len(pinned) == 4
    for number, query, supports, classes in pinned:
        way, shot = (2, 3) if number == 999 else (1, 1)
        assert named(data, benchmark_episode(data, number, way, shot)) == (query, supports, classes)


def test_the_pins_see_a_shuffled_list(shared_folder: Path, tmp_path: Path) -> None:
    lines = (shared_folder / "splits/pascal/val/fold0.txt").read_text().split()
    (tmp_path / "pascal/val").mkdir(parents=True)
    (tmp_path / "pascal/val/fold0.txt").write_text("\n".join(np.random.default_rng(0).permutation(lines)))
    data = PascalFewShot(NOWHERE, tmp_path, 0, "test")
    episodes = [named(data, benchmark_episode(data, number, 1, 1)) for number in range(3)]
    assert not any(episode == row[3:] for episode, row in zip(episodes, PUBLISHED, strict=False))


def tiny_pascal(root: Path) -> list[tuple[str, int]]:
    """Write lists of 23 pictures of classes 6 to 10, three of them under two classes; return the held-out one."""
    rows = [(f"2007_{number:06}", 6 + number * 7 % 5) for number in range(20)]
    rows += [(rows[number][0], 6 + (number * 7 + 1) % 5) for number in range(3)]
    for folder in ("trn", "val"):
        (root / "pascal" / folder).mkdir(parents=True)
        for fold in range(4):
            listed = [(name, fold * 5 + (number - 1) % 5 + 1) for name, number in rows]
            text = "".join(f"{name}__{number:02}\n" for name, number in listed)
            (root / "pascal" / folder / f"fold{fold}.txt").write_text(text)
    return rows


def tiny_coco(root: Path) -> dict[int, list[str]]:
    """Write lists of 30 classes' pictures each; return the held-out lists of fold 2, by class from 1."""
    (root / "coco").mkdir(parents=True)
    for prefix in ("trn", "val"):
        for fold in range(4):
            lists: dict[str, list[str]] = {str(number): [] for number in range(1, 81)}
            for number in range(1, 81):
                if ((number - 1) % 4 == fold) == (prefix == "val"):
                    lists[str(number)] = [f"val2014/{(number * 31 + index * 17) % 97:03}.jpg" for index in range(30)]
            (root / "coco" / f"{prefix}-fold{fold}.json.gz").write_bytes(gzip.compress(json.dumps(lists).encode()))
    return {number: names for text, names in lists_of(root, 2).items() if (number := int(text)) and names}


def lists_of(root: Path, fold: int) -> dict[str, list[str]]:
    stored: dict[str, list[str]] = json.loads(gzip.decompress((root / f"coco/val-fold{fold}.json.gz").read_bytes()))
    return stored


def legacy_supports(
    by_class: dict[int, list[str]], classes: list[int], query: str, query_class: int, way: int, shot: int
) -> tuple[list[int], list[list[str]]]:
    share = 0.5 / (len(classes) - 1)
    weights = [0.5 if number == query_class else share for number in classes]
    ways = np.random.choice(classes, way, replace=False, p=weights).tolist()
    supports: list[list[str]] = []
    for number in ways:
        supports.append([])
        while len(supports[-1]) < shot:
            name = str(np.random.choice(by_class[number], 1, replace=False)[0])
            if name not in (query, *supports[-1]):
                supports[-1].append(name)
    return ways, supports


@pytest.fixture
def legacy_state():
    """Restore numpy's global generator afterwards."""
    state = np.random.get_state()
    yield
    np.random.set_state(state)


def as_names(data: FewShotData, supports: Sequence[Sequence[int]]) -> list[list[str]]:
    return [[data.examples[index].photograph for index in way] for way in supports]


@pytest.mark.usefixtures("legacy_state")
@pytest.mark.parametrize(("way", "shot"), [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_pascal_draws_as_the_legacy_generator_does(tmp_path: Path, way: int, shot: int) -> None:
    rows = tiny_pascal(tmp_path)
    by_class = {number: [name for name, own in rows if own == number] for number in range(6, 11)}
    data = PascalFewShot(NOWHERE, tmp_path, 1, "test")
    for number in (*range(40), 999):
        query, query_class = rows[number % len(rows)]
        np.random.seed(number)
        ways, supports = legacy_supports(by_class, [6, 7, 8, 9, 10], query, query_class, way, shot)
        episode = benchmark_episode(data, number, way, shot)
        assert episode.query == number % len(rows)
        assert [label + 1 for label in episode.ways] == ways
        assert as_names(data, episode.supports) == supports


@pytest.mark.usefixtures("legacy_state")
@pytest.mark.parametrize(("way", "shot"), [(1, 1), (2, 3)])
def test_coco_draws_as_the_legacy_generator_does(tmp_path: Path, way: int, shot: int) -> None:
    by_class = tiny_coco(tmp_path)
    classes = list(range(3, 81, 4))
    data = CocoFewShot(NOWHERE, tmp_path, 2, "test")
    for number in range(30):
        np.random.seed(number)
        query_class = int(np.random.choice(classes, 1, replace=False)[0])
        query = str(np.random.choice(by_class[query_class], 1, replace=False)[0])
        ways, supports = legacy_supports(by_class, classes, query, query_class, way, shot)
        episode = benchmark_episode(data, number, way, shot)
        asked = data.examples[episode.query]
        assert (asked.photograph, asked.label + 1) == (query, query_class)
        assert [label + 1 for label in episode.ways] == ways
        assert as_names(data, episode.supports) == supports


def test_drawing_does_not_change_the_global_generator(tmp_path: Path) -> None:
    tiny_pascal(tmp_path)
    before = np.random.get_state()[1].copy()
    benchmark_episode(PascalFewShot(NOWHERE, tmp_path, 0, "test"), 3, 1, 1)
    assert np.array_equal(np.random.get_state()[1], before)


def gray(value: int, size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.fromarray(np.full(size[::-1], value, np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four classes of six pictures; three pictures are in both "a" and "b", one is twice in "c"."""
    for number, name in enumerate("abcd"):
        for part in ("images", "masks"):
            (tmp_path / name / part).mkdir(parents=True)
        for index in range(6):
            shared_with_a = name == "b" and index < 3
            value = index if shared_with_a else 10 * number + (0 if (name, index) == ("c", 5) else index)
            gray(value).convert("RGB").save(tmp_path / name / "images" / f"{index}.png")
            mask = np.zeros((6, 8), np.uint8)
            mask[number : number + 2] = 255
            Image.fromarray(mask).save(tmp_path / name / "masks" / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("draw", ["benchmark", "training"])
def test_no_photograph_occurs_twice_in_an_episode_of_one_way(folder: Path, draw: str) -> None:
    data = FolderFewShot(folder)
    rng = np.random.default_rng(0)
    for number in range(300):
        episode = benchmark_episode(data, number, 2, 3) if draw == "benchmark" else training_episode(data, rng, 2, 3)
        query = data.examples[episode.query].photograph
        for way, supports in zip(episode.ways, episode.supports, strict=True):
            photographs = [data.examples[index].photograph for index in supports]
            assert len({query, *photographs}) == 4
            assert all(data.examples[index].label == way for index in supports)
        assert len(set(episode.ways)) == 2


@pytest.mark.parametrize("draw", ["benchmark", "training"])
def test_half_of_the_episodes_ask_about_the_class_of_the_query(folder: Path, draw: str) -> None:
    data = FolderFewShot(folder)
    rng = np.random.default_rng(0)
    asked = np.zeros(4)
    own = 0
    for number in range(1500):
        episode = benchmark_episode(data, number, 1, 1) if draw == "benchmark" else training_episode(data, rng, 1, 1)
        own += data.examples[episode.query].label == episode.ways[0]
        asked[episode.ways[0]] += 1
    assert own / 1500 == pytest.approx(0.5, abs=0.05)  # 4 standard deviations
    assert asked / 1500 == pytest.approx(0.25, abs=0.05)


def test_a_folder_is_asked_about_every_picture_in_a_mixed_order(folder: Path) -> None:
    data = FolderFewShot(folder)
    queries = [benchmark_episode(data, number, 1, 1).query for number in range(48)]
    assert sorted(queries[:24]) == list(range(24))
    assert queries[:24] == queries[24:]
    assert {data.examples[query].label for query in queries[:8]} == {0, 1, 2, 3}
    assert benchmark_episode(data, 1, 1, 1) == benchmark_episode(FolderFewShot(folder), 1, 1, 1)


def test_the_same_query_has_other_supports_in_the_next_round(folder: Path) -> None:
    data = FolderFewShot(folder)
    rounds = [[benchmark_episode(data, number + start, 1, 2) for number in range(24)] for start in (0, 24)]
    assert [episode.query for episode in rounds[0]] == [episode.query for episode in rounds[1]]
    assert rounds[0] != rounds[1]


def test_a_seed_fixes_the_training_episodes(folder: Path) -> None:
    data = FolderFewShot(folder)

    def drawn(seed: int) -> list[Episode]:
        rng = np.random.default_rng(seed)
        return [training_episode(data, rng, 1, 1) for _ in range(20)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_photograph_shows_every_class_it_is_listed_under(folder: Path) -> None:
    data = FolderFewShot(folder)
    shared, alone = data.of_class(1)[0], data.of_class(1)[5]
    assert present(data, Episode(shared, (0, 1, 2), ((), (), ()))).tolist() == [True, True, False]
    assert present(data, Episode(alone, (0, 1, 2), ((), (), ()))).tolist() == [False, True, False]


def test_training_without_masks_reads_none(folder: Path) -> None:
    for mask in folder.glob("*/masks/*"):
        mask.write_bytes(b"not a picture")
    data = FolderFewShot(folder, needs_masks=False)
    rng = np.random.default_rng(0)
    for _ in range(100):
        episode = training_episode(data, rng, 1, 1)
        assert present(data, episode).shape == (1,)
    with pytest.raises(InputError, match="masks"):
        data.read_mask(0)  # positive control: reading one would have been noticed


def test_training_works_when_the_masks_are_deleted(folder: Path) -> None:
    before = FolderFewShot(folder, needs_masks=False)
    for mask in folder.glob("*/masks/*"):
        mask.unlink()
    for path in folder.glob("*/masks"):
        path.rmdir()
    data = FolderFewShot(folder, needs_masks=False)
    assert all(example.mask is None for example in data.examples)
    first, second = np.random.default_rng(0), np.random.default_rng(0)
    assert [training_episode(data, first, 1, 1) for _ in range(50)] == [
        training_episode(before, second, 1, 1) for _ in range(50)
    ]


def test_the_published_presence_comes_from_the_mask(tmp_path: Path) -> None:
    tiny_pascal(tmp_path)
    data = PascalFewShot(tmp_path, tmp_path, 1, "test")
    for part in ("JPEGImages", "SegmentationClassAug"):
        (tmp_path / part).mkdir()
    gray(0).convert("RGB").save(data.examples[0].image)
    stored = np.zeros((6, 8), np.uint8)
    stored[0], stored[1], stored[2] = 6, 9, 255
    Image.fromarray(stored).save(data.examples[0].mask)
    episode = Episode(0, (5, 8, 9), ((), (), ()))
    assert present(data, episode).tolist() == [True, True, False]
    assert data.labels_of(0) == {5, 6}
    assert present(data, episode, from_masks=False).tolist() == [True, False, False]


def test_too_many_ways_or_shots_are_refused(folder: Path) -> None:
    data = FolderFewShot(folder)
    with pytest.raises(InputError, match=r"The number of ways must be 1 to 4 .* got 5"):
        benchmark_episode(data, 0, 5, 1)
    with pytest.raises(InputError, match="at least 1 shot"):
        training_episode(data, np.random.default_rng(0), 1, 0)
    # Class "c" has six files but five photographs, so five shots are too many for one of its own pictures.
    query = next(
        number for number in range(24) if data.examples[benchmark_episode(data, number, 1, 1).query].label == 2
    )
    with pytest.raises(InputError, match="class 'c' has 4 pictures besides the query, too few for 5 shots"):
        benchmark_episode(data, query, 4, 5)


def test_a_single_class_is_always_asked_about(folder: Path) -> None:
    data = FolderFewShot(folder, ["d"])
    assert all(benchmark_episode(data, number, 1, 1).ways == (3,) for number in range(6))
