"""Episodes: the published ones, and the rules that all episodes follow."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from picture_files import rows, save

from fsvit_edge.learn.datasets import CocoFewShot, PascalFewShot
from fsvit_edge.learn.episodes import Episode, benchmark_episode, present, training_episode
from fsvit_edge.learn.examples import FewShotData
from fsvit_edge.learn.folder import FolderFewShot
from fsvit_edge.runtime.errors import InputError

NOWHERE = Path("nowhere")

# Benchmark, fold, number, query, and class (from 1): supports of each way. Made once by a separate script, which reads
# the lists as text and follows the published procedure by name with the global np.random.seed; it shares nothing with
# the code under test. Number 999 has 2 ways and 3 shots, the others 1 and 1.
PUBLISHED = """
pascal 0 0 2007_000033 2:2009_000354
pascal 0 1 2007_000061 4:2010_001036
pascal 0 2 2007_000129 2:2010_002693
pascal 0 999 2011_000185 4:2009_004125,2007_005705,2009_004635 3:2009_000879,2008_007994,2010_005531
pascal 1 0 2007_000452 9:2008_000107
pascal 1 1 2007_000464 9:2010_001699
pascal 1 2 2007_000491 9:2011_000661
pascal 1 999 2007_009897 10:2010_001000,2007_002387,2007_005114 6:2011_000830,2009_000335,2009_004732
pascal 2 0 2007_000129 15:2008_001308
pascal 2 1 2007_000323 14:2008_001150
pascal 2 2 2007_000332 13:2008_003461
pascal 2 999 2008_002835 15:2008_000573,2009_004994,2007_008944 11:2010_005046,2009_003991,2010_000174
pascal 3 0 2007_000042 19:2008_006553
pascal 3 1 2007_000123 19:2007_004281
pascal 3 2 2007_000175 17:2010_003541
pascal 3 999 2011_000283 19:2011_002535,2011_003146,2007_002565 16:2008_003135,2007_001408,2007_003506
coco 0 0 507081 73:421811
coco 0 1 092212 73:553129
coco 0 2 321071 49:373662
coco 0 999 437351 77:305540,376706,325208 13:416749,142129,272430
coco 1 0 154095 74:476810
coco 1 1 525880 14:192192
coco 1 2 035368 2:079841
coco 1 999 477598 30:533106,461821,396556 18:140542,572861,264855
coco 2 0 167668 75:378299
coco 2 1 245153 11:169849
coco 2 2 555920 51:350388
coco 2 999 189714 15:146887,107177,464251 31:160341,104453,051712
coco 3 0 295564 76:482275
coco 3 1 009041 80:328091
coco 3 2 296634 64:378894
coco 3 999 117508 32:393469,139294,505792 20:029341,192685,299271
"""


def named(data: FewShotData, episode: Episode) -> str:
    def name(index: int) -> str:
        return data.examples[index].photograph.removeprefix("val2014/COCO_val2014_000000").removesuffix(".jpg")

    ways = zip(episode.ways, episode.supports, strict=True)
    return " ".join([name(episode.query), *(f"{label + 1}:{','.join(map(name, way))}" for label, way in ways)])


@pytest.mark.parametrize(("benchmark", "fold"), [(name, fold) for name in ("pascal", "coco") for fold in range(4)])
def test_episodes_are_the_published_ones(shared_folder: Path, benchmark: str, fold: int) -> None:
    data = {"pascal": PascalFewShot, "coco": CocoFewShot}[benchmark](NOWHERE, shared_folder / "splits", fold, "test")
    drawn = [
        f"{benchmark} {fold} {number} {named(data, benchmark_episode(data, number, *sizes))}"
        for number, sizes in ((0, (1, 1)), (1, (1, 1)), (2, (1, 1)), (999, (2, 3)))
    ]
    assert drawn == [line for line in PUBLISHED.splitlines() if line.startswith(f"{benchmark} {fold} ")]


def test_the_pins_see_a_shuffled_list(shared_folder: Path, tmp_path: Path) -> None:
    lines = (shared_folder / "splits/pascal/val/fold0.txt").read_text().split()
    (tmp_path / "pascal/val").mkdir(parents=True)
    (tmp_path / "pascal/val/fold0.txt").write_text("\n".join(np.random.default_rng(0).permutation(lines)))
    data = PascalFewShot(NOWHERE, tmp_path, 0, "test")
    for number in range(3):
        assert f"pascal 0 {number} {named(data, benchmark_episode(data, number, 1, 1))}\n" not in PUBLISHED


def tiny_pascal(root: Path) -> list[tuple[str, int]]:
    """Write and return the test list of fold 1: 23 pictures of classes 6 to 10, three of them under two classes."""
    listed = [(f"2007_{number:06}", 6 + number * 7 % 5) for number in range(20)]
    listed += [(listed[number][0], 6 + (number * 7 + 1) % 5) for number in range(3)]
    (root / "pascal/val").mkdir(parents=True)
    (root / "pascal/val/fold1.txt").write_text("".join(f"{name}__{number:02}\n" for name, number in listed))
    return listed


def tiny_coco(root: Path) -> dict[int, list[str]]:
    """Write and return the test list of fold 2: 30 pictures of each of its 20 classes (from 1)."""
    listed = {
        number: [f"val2014/{(number * 31 + index * 17) % 97:03}.jpg" for index in range(30)]
        for number in range(3, 81, 4)
    }
    (root / "coco").mkdir()
    (root / "coco/val-fold2.json.gz").write_bytes(gzip.compress(json.dumps(listed).encode()))
    return listed


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


@pytest.mark.usefixtures("legacy_state")
@pytest.mark.parametrize(
    ("benchmark", "way", "shot"),
    [("pascal", 1, 1), ("pascal", 2, 1), ("pascal", 1, 3), ("pascal", 3, 2), ("coco", 1, 1), ("coco", 2, 3)],
)
def test_episodes_are_drawn_as_the_legacy_generator_does(tmp_path: Path, benchmark: str, way: int, shot: int) -> None:
    if benchmark == "pascal":
        listed = tiny_pascal(tmp_path)
        by_class = {number: [name for name, own in listed if own == number] for number in range(6, 11)}
        data = PascalFewShot(NOWHERE, tmp_path, 1, "test")
    else:
        by_class = tiny_coco(tmp_path)
        data = CocoFewShot(NOWHERE, tmp_path, 2, "test")
    classes = list(by_class)
    for number in (*range(40), 999):
        np.random.seed(number)
        if benchmark == "pascal":
            query, query_class = listed[number % len(listed)]
        else:
            query_class = int(np.random.choice(classes, 1, replace=False)[0])
            query = str(np.random.choice(by_class[query_class], 1, replace=False)[0])
        ways, supports = legacy_supports(by_class, classes, query, query_class, way, shot)
        episode = benchmark_episode(data, number, way, shot)
        asked = data.examples[episode.query]
        assert (asked.photograph, asked.label + 1) == (query, query_class)
        assert [label + 1 for label in episode.ways] == ways
        assert [[data.examples[index].photograph for index in way] for way in episode.supports] == supports


def test_drawing_does_not_change_the_global_generator(tmp_path: Path) -> None:
    tiny_pascal(tmp_path)
    before = np.random.get_state()[1].copy()
    benchmark_episode(PascalFewShot(NOWHERE, tmp_path, 1, "test"), 3, 1, 1)
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four classes of six pictures; three pictures are in both "a" and "b", one is twice in "c"."""
    for number, name in enumerate("abcd"):
        mask = np.zeros((6, 8))
        mask[number : number + 2] = 255
        for index in range(6):
            shared_with_a = name == "b" and index < 3
            value = index if shared_with_a else 10 * number + (0 if (name, index) == ("c", 5) else index)
            save(tmp_path / name / "images" / f"{index}.png", np.full((6, 8, 3), value))
            save(tmp_path / name / "masks" / f"{index}.png", mask)
    return tmp_path


@pytest.fixture
def data(folder: Path) -> FolderFewShot:
    return FolderFewShot(folder)


def draw(kind: str, data: FewShotData, count: int, ways: int, shots: int, seed: int = 0) -> list[Episode]:
    """The first benchmark episodes, or training episodes of a seed."""
    rng = np.random.default_rng(seed)
    if kind == "benchmark":
        return [benchmark_episode(data, number, ways, shots) for number in range(count)]
    return [training_episode(data, rng, ways, shots) for _ in range(count)]


KINDS = pytest.mark.parametrize("kind", ["benchmark", "training"])


@KINDS
def test_no_photograph_occurs_twice_in_an_episode_of_one_way(data: FolderFewShot, kind: str) -> None:
    for episode in draw(kind, data, 300, 2, 3):
        query = data.examples[episode.query].photograph
        for way, supports in zip(episode.ways, episode.supports, strict=True):
            photographs = [data.examples[index].photograph for index in supports]
            assert len({query, *photographs}) == 4
            assert all(data.examples[index].label == way for index in supports)
        assert len(set(episode.ways)) == 2


@KINDS
def test_half_of_the_episodes_ask_about_the_class_of_the_query(data: FolderFewShot, kind: str) -> None:
    episodes = draw(kind, data, 1500, 1, 1)
    own = np.mean([data.examples[episode.query].label == episode.ways[0] for episode in episodes])
    asked = np.bincount([episode.ways[0] for episode in episodes], minlength=4)
    assert own == pytest.approx(0.5, abs=0.05)  # 4 standard deviations
    assert asked / 1500 == pytest.approx(0.25, abs=0.05)


def test_a_folder_is_asked_about_every_picture_in_a_mixed_order_again_and_again_with_other_supports(
    data: FolderFewShot, folder: Path
) -> None:
    episodes = draw("benchmark", data, 48, 1, 2)
    queries = [episode.query for episode in episodes]
    assert sorted(queries[:24]) == list(range(24))
    assert queries[:24] == queries[24:]
    assert episodes[:24] != episodes[24:]
    assert {data.examples[query].label for query in queries[:8]} == {0, 1, 2, 3}
    assert benchmark_episode(FolderFewShot(folder), 1, 1, 2) == episodes[1]


def test_a_seed_fixes_the_training_episodes(data: FolderFewShot) -> None:
    drawn = [draw("training", data, 20, 1, 1, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_photograph_shows_every_class_it_is_listed_under(data: FolderFewShot) -> None:
    shared, alone = data.of_class(1)[0], data.of_class(1)[5]
    assert present(data, Episode(shared, (0, 1, 2), ((), (), ()))).tolist() == [True, True, False]
    assert present(data, Episode(alone, (0, 1, 2), ((), (), ()))).tolist() == [False, True, False]


def test_training_without_masks_reads_none(data: FolderFewShot, folder: Path) -> None:
    episodes = draw("training", data, 50, 1, 1)
    shown = [present(data, episode).tolist() for episode in episodes]
    for mask in folder.glob("*/masks/*"):
        mask.unlink()
    for path in folder.glob("*/masks"):
        path.rmdir()
    with pytest.raises(InputError, match="masks"):
        data.read_mask(0)  # positive control: reading one would have been noticed
    bare = FolderFewShot(folder, needs_masks=False)
    assert all(example.mask is None for example in bare.examples)
    assert draw("training", bare, 50, 1, 1) == episodes
    assert [present(bare, episode).tolist() for episode in episodes] == shown


def test_the_published_presence_comes_from_the_mask(tmp_path: Path) -> None:
    tiny_pascal(tmp_path)
    data = PascalFewShot(tmp_path, tmp_path, 1, "test")
    assert data.examples[0].mask is not None
    save(data.examples[0].image, np.zeros((6, 8, 3)))
    save(data.examples[0].mask, rows(6, 9, 255, 0, 0, 0))
    episode = Episode(0, (5, 8, 9), ((), (), ()))
    assert present(data, episode).tolist() == [True, True, False]
    assert data.labels_of(0) == {5, 6}
    assert present(data, episode, from_masks=False).tolist() == [True, False, False]


def test_too_many_ways_or_shots_are_refused(data: FolderFewShot) -> None:
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
    assert all(episode.ways == (3,) for episode in draw("benchmark", FolderFewShot(folder, ["d"]), 6, 1, 1))
