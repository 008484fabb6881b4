"""`Labeler` with a network: the answers of `predict`, part by part, and the classes and levels that were asked for."""

import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from sample_files import colors, rectangle

from fsvit_edge import FewShotModel
from fsvit_edge.fewshot.prediction import CRUMB_OF_FRAME, CRUMB_OF_LARGEST, Prediction
from fsvit_edge.label import journal
from fsvit_edge.label.labeler import Labeler, LabelerOptions, label_picture
from fsvit_edge.label.records import pixels_of, run_lengths
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.pictures import encode_jpeg, read_image, write_image


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank with the classes "cat" and "dog, small"."""
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    with FewShotModel.load(threads=1) as model:
        model.enroll("cat", [colors(1, 120, 160)], [rectangle(120, 160)[..., 0]])
        model.enroll("dog, small", [colors(2, 120, 160)], level=0.3)
        model.save_bank(path)
    return path


def test_a_labeler_gives_the_answers_of_predict(bank: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "1.jpg", colors(1, 120, 160))
    with Labeler(pickle.loads(pickle.dumps(LabelerOptions(bank, threads=1)))) as labeler:
        found = labeler((tmp_path / "1.jpg").read_bytes(), "sub/1.jpg")
        about = labeler.about
    with FewShotModel.load(threads=1, bank=bank) as model:
        model.load_bank(bank)
        expected = model.predict(read_image(tmp_path / "1.jpg"))
    assert (found.path, found.size_hw, found.time_s) == ("sub/1.jpg", (120, 160), None)
    assert about.classes == ("cat", "dog, small")
    assert about.levels == tuple(map(float, expected.levels))
    assert found.classes[0].present
    for one, result in zip(found.classes, expected.results, strict=True):
        assert (one.name, one.score, one.level, one.present) == (
            result.name,
            result.score,
            result.level,
            result.is_present,
        )
        instances = expected.instances(one.name)
        assert [(part.area_px, part.box_xyxy) for part in one.parts] == [
            (part.area_px, part.box_xyxy) for part in instances
        ]
    assert journal.from_line(journal.to_line(found, "sub/1.jpg", "1 2")) == found
    with Labeler(LabelerOptions(bank, threads=1)) as labeler, pytest.raises(InputError, match=r"^sub/1.jpg is damaged"):
        labeler(encode_jpeg(colors(1))[:100], "sub/1.jpg")


def test_only_the_classes_that_are_asked_for_are_looked_for(bank: Path) -> None:
    with Labeler(LabelerOptions(bank, threads=1, classes=("dog, small",))) as labeler:
        assert labeler.about.classes == ("dog, small",)
    with Labeler(LabelerOptions(bank, threads=1, classes=("dog, small", "cat"))) as labeler:
        assert labeler.about.classes == ("cat", "dog, small")
    with pytest.raises(InputError, match="has no class 'cow'; it has: cat, dog, small"):
        Labeler(LabelerOptions(bank, threads=1, classes=("cow",)))


def test_a_lowest_score_raises_the_levels_below_it(bank: Path) -> None:
    with Labeler(LabelerOptions(bank, threads=1)) as labeler:
        before = labeler.about.levels
    with Labeler(LabelerOptions(bank, threads=1, min_score=0.5)) as labeler:
        assert labeler.about.levels == (before[0], 0.5)
        assert before[1] < 0.5 < before[0]
    with pytest.raises(InputError, match="--min-score must be between 0 and 1, got 1"):
        Labeler(LabelerOptions(bank, threads=1, min_score=1.0))


def test_a_bank_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist; make one with"):
        Labeler(LabelerOptions(tmp_path / "none.safetensors", threads=1))


def test_a_bank_that_is_replaced_while_it_is_read_is_told(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "bank.safetensors"
    shutil.copy(bank, own)
    Labeler(LabelerOptions(own, threads=1)).close()  # the control
    load = FewShotModel.load_bank

    def slow(model: FewShotModel, path: Path) -> None:
        load(model, path)
        shutil.copy(bank, tmp_path / "new")
        (tmp_path / "new").replace(path)

    monkeypatch.setattr(FewShotModel, "load_bank", slow)
    with pytest.raises(ArtifactError, match=r"bank[.]safetensors was replaced while it was read"):
        Labeler(LabelerOptions(own, threads=1))


def of(labels: np.ndarray) -> Prediction:
    one = np.array([0.9, 0.9], np.float32)
    return Prediction(("a", "b"), one, one / 2, labels, None, {})


def plain_parts(pixels: np.ndarray) -> set[tuple[int, ...]]:
    """The run lengths of all connected parts, by another way."""
    count, numbers = cv2.connectedComponents(pixels.astype(np.uint8), connectivity=8)
    return {run_lengths(numbers == number) for number in range(1, count)}


@pytest.mark.parametrize("seed", range(6))
def test_parts_have_the_pixels_of_connected_components(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blobs = cv2.blur(rng.random((40, 50)), (7, 7))
    labels = (1 + (blobs > np.quantile(blobs, 0.7))) * (blobs > np.quantile(blobs, 0.4))
    found = label_picture("x", of(labels.astype(np.uint8)), labels.shape)
    for way, one in enumerate(found.classes):
        pixels = labels == way + 1
        assert one.parts
        parts = {part.counts for part in one.parts}
        assert parts <= plain_parts(pixels)
        assert all(sum(part.counts[1::2]) == part.area_px for part in one.parts)
        left_out = pixels & ~np.logical_or.reduce([pixels_of(part.counts, (40, 50)) for part in one.parts])
        least_px = max(CRUMB_OF_FRAME * labels.size, CRUMB_OF_LARGEST * one.parts[0].area_px)
        assert all(sum(part[1::2]) < least_px for part in plain_parts(left_out))


@pytest.mark.parametrize(
    "box", [(0, 0, 6, 5), (0, 0, 1, 1), (5, 4, 6, 5), (0, 2, 6, 3), (2, 0, 3, 5), (2, 0, 4, 5), (1, 1, 4, 3)]
)
def test_parts_at_the_edges_have_the_run_lengths_of_the_whole_picture(box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    labels = np.zeros((5, 6), np.uint8)
    labels[top:bottom, left:right] = 1
    (part,) = label_picture("x", of(labels), labels.shape).classes[0].parts
    assert part.counts == run_lengths(labels == 1)


def test_a_part_inside_the_box_of_another_is_a_part_of_its_own() -> None:
    labels = np.zeros((30, 30), np.uint8)
    labels[2:28, 2:28] = 1
    labels[6:24, 6:24] = 0
    labels[10:20, 10:20] = 1
    ring, inner = label_picture("x", of(labels), labels.shape).classes[0].parts
    assert (ring.area_px, inner.area_px) == (26 * 26 - 18 * 18, 100)
    assert not (pixels_of(ring.counts, (30, 30)) & pixels_of(inner.counts, (30, 30))).any()


@pytest.mark.parametrize("size_hw", [(10, 12), (9, 11), (20, 24), (40, 48), (33, 41), (19, 23)])
def test_parts_have_the_size_of_a_picture_that_was_read_smaller(size_hw: tuple[int, int]) -> None:
    labels = np.zeros((5, 6), np.uint8)
    labels[2:, 3:] = 1
    found = label_picture("x", of(labels), size_hw)
    (part,) = found.classes[0].parts
    scale = -(-size_hw[0] // 5)
    whole = labels.repeat(scale, axis=0).repeat(scale, axis=1)[: size_hw[0], : size_hw[1]]
    assert found.size_hw == size_hw
    assert part.counts == run_lengths(whole == 1)
    assert part.box_xyxy == (3 * scale, 2 * scale, size_hw[1], size_hw[0])
    assert part.area_px == np.count_nonzero(whole)
