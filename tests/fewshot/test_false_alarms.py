"""The bundled model: the empty scene, a rejected picture and competing classes keep a class from being found."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data

from fsvit_edge.fewshot.enrollment import make_negative
from fsvit_edge.fewshot.prediction import Rejection
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.scene import MAX_SCENE_FRAMES
from fsvit_edge.runtime.engines.base import ResidentTensor
from fsvit_edge.runtime.errors import InputError

CAT = skimage.data.chelsea()
CAT_LIKE = np.repeat(CAT.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)  # gray: another cat
NOTHING = skimage.data.coffee()
BIG, SMALL, SPECK = (np.zeros(CAT.shape[:2], np.bool_) for _ in range(3))
BIG[20:280, 30:400] = SMALL[60:120, 100:170] = SPECK[0, 0] = True


@pytest.fixture
def model() -> Iterator[FewShotModel]:
    with FewShotModel.load(precision="fp32", threads=1) as opened:
        opened.enroll("cat", [CAT])
        yield opened


def score(model: FewShotModel, image: np.ndarray, name: str = "cat") -> float:
    prediction = model.predict(image)
    return float(prediction.scores[prediction.classes.index(name)])


@pytest.fixture
def encoded(model: FewShotModel, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The pixels of each picture that the encoder gets from now on."""
    pictures: list[bytes] = []
    run = model.network.encoder.run

    def counting(feed: Mapping[str, Any]) -> dict[str, ResidentTensor]:
        pictures.append(feed["image"].tobytes())
        return run(feed)

    monkeypatch.setattr(model.network.encoder, "run", counting)
    return pictures


def test_a_class_must_score_higher_than_on_the_empty_scene(model: FewShotModel) -> None:
    model.bank.set_level("cat", None)
    assert model.predict(CAT_LIKE).present.all()

    report = model.learn_scene([CAT_LIKE, NOTHING])

    assert report.frames == 2
    assert report.answering == ("cat",)
    assert report.highest["cat"] == pytest.approx(score(model, CAT_LIKE), abs=0.05)
    assert not model.predict(CAT_LIKE).present.any()
    model.forget_scene()
    assert model.predict(CAT_LIKE).present.all()


def test_a_scene_without_the_class_changes_no_level(model: FewShotModel) -> None:
    before = model.bank.levels
    shifted = [np.roll(NOTHING, 3 * step, axis=1) for step in range(MAX_SCENE_FRAMES + 5)]
    report = model.learn_scene(shifted)
    assert report.frames == MAX_SCENE_FRAMES
    assert report.answering == ()
    np.testing.assert_array_equal(model.bank.levels, before)


def test_a_class_enrolled_later_is_held_to_the_scene_too(model: FewShotModel) -> None:
    model.learn_scene([NOTHING])
    model.enroll("cup", [NOTHING])

    assert model.bank.level_source("cup") == "empty scene"
    assert not model.predict(NOTHING).present[1]


def test_what_a_negative_excludes_does_not_raise_the_level_too(model: FewShotModel) -> None:
    model.learn_scene([CAT_LIKE])
    raised = model.bank.level("cat")

    model.reject("cat", CAT_LIKE)

    assert model.bank.own_level("cat") <= model.bank.level("cat") < raised
    assert model.predict(CAT).present.all()
    assert not model.predict(CAT_LIKE).present.any()
    model.remove_negative("cat", 0)
    assert model.bank.level("cat") == pytest.approx(raised, abs=1e-5)


def test_what_a_negative_leaves_of_the_scene_is_scored_against_the_level_of_now(model: FewShotModel) -> None:
    model.reject("cat", CAT_LIKE)
    model.learn_scene([CAT_LIKE])
    wanted = model.bank.level("cat")
    scores = model.bank.scene_scores("cat")
    model.set_level("cat", 0.97)
    assert model.bank.scene_scores("cat") != scores  # the control
    model.set_level("cat", None)
    assert (model.bank.level("cat"), model.bank.scene_scores("cat")) == (wanted, scores)


def test_the_same_picture_of_the_scene_counts_once(model: FewShotModel) -> None:
    assert model.learn_scene([NOTHING, NOTHING]).frames == 1
    assert model.learn_scene([NOTHING, CAT_LIKE]).frames == 2


def test_no_picture_of_the_scene_is_scored_twice(model: FewShotModel, encoded: list[bytes]) -> None:
    frames = [np.roll(NOTHING, 90 * step, axis=1) for step in range(3)]
    at_once = model.bank_after(lambda model: model.learn_scene(frames))
    assert len(set(encoded)) == len(encoded) == 3
    for count, frame in enumerate(frames, start=4):
        report = model.learn_scene([frame])
        assert len(encoded) == count
    assert encoded[3:] == encoded[:3]
    assert model.bank.scene_scores("cat") == at_once.scene_scores("cat")
    assert report.frames == 3
    assert report.highest["cat"] == max(at_once.scene_scores("cat"))

    del encoded[:]
    model.enroll("cup", [CAT_LIKE])
    assert len(encoded) == 1 + 3
    assert model.bank.scene_scores("cat") == at_once.scene_scores("cat")
    model.remove("cup")
    model.remove_negative("cat", model.reject("cat", CAT_LIKE).negatives - 1)  # whose scores are others each time
    assert len(encoded) == 1 + 3 + 1 + 3 + 3
    assert model.bank.scene_scores("cat") == at_once.scene_scores("cat")


def test_scores_of_pictures_that_are_too_old_go_with_them(
    model: FewShotModel, encoded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsvit_edge.fewshot.bank.MAX_SCENE_FRAMES", 2)
    found = [
        model.learn_scene([frame]).answering
        for frame in (CAT_LIKE, NOTHING, np.roll(NOTHING, 90, axis=1), np.roll(NOTHING, 180, axis=1))
    ]
    assert found == [("cat",), ("cat",), (), ()]
    assert len(encoded) == 4
    assert model.bank.level_source("cat") == "default"


def test_the_scene_and_negatives_survive_a_save(model: FewShotModel, tmp_path: Path) -> None:
    model.learn_scene([NOTHING])
    model.reject("cat", CAT_LIKE)
    model.save_bank(tmp_path / "bank.safetensors")
    wanted = model.predict(CAT_LIKE)
    with FewShotModel.load(precision="fp32", threads=1) as other:
        other.load_bank(tmp_path / "bank.safetensors")
        found = other.predict(CAT_LIKE)
        assert other.bank.scene == model.bank.scene
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
    np.testing.assert_array_equal(found.label_map, wanted.label_map)


@pytest.mark.parametrize("frames", [[], [np.zeros((4, 4), np.uint8)], NOTHING, iter([])])
def test_a_scene_that_cannot_be_used_changes_nothing(model: FewShotModel, frames: list[np.ndarray]) -> None:
    model.learn_scene([NOTHING])
    before = model.bank.scene
    with pytest.raises(InputError, match="picture of the empty scene"):
        model.learn_scene(frames)
    assert model.bank.scene == before


def test_a_rejected_picture_is_no_longer_the_class_and_its_own_picture_still_is(model: FewShotModel) -> None:
    assert model.predict(CAT_LIKE).present.all()

    rejection = model.reject("cat", CAT_LIKE)

    assert (rejection.name, rejection.negatives) == ("cat", 1)
    assert rejection.score_after < rejection.level < rejection.score_before
    rejected = model.predict(CAT_LIKE)
    assert not rejected.present.any()
    assert not rejected.label_map.any()
    assert rejected.results[0].raw_score == pytest.approx(rejection.score_before, abs=1e-5)
    assert model.predict(CAT).present.all()

    model.remove_negative("cat", 0)
    assert score(model, CAT_LIKE) == pytest.approx(rejection.score_before, abs=1e-5)


def one_by_one(model: FewShotModel, mask: np.ndarray | None) -> Rejection:
    """What `reject` does, in its plain order."""
    before = model.predict(CAT_LIKE)
    where = before.pixels("cat") if mask is None else mask
    negative, is_mask_too_small = make_negative(model.network, model.bank.supports("cat"), CAT_LIKE, where)
    model.bank.add_negative("cat", negative)
    after = model.predict(CAT_LIKE)
    was, now = before.results[0], after.results[0]
    return Rejection("cat", 1, was.is_present, was.score, now.score, now.level, negative.margin, is_mask_too_small)


@pytest.mark.parametrize("sharp", [True, False], ids=["sharp", "plain"])
@pytest.mark.parametrize(
    ("mask", "pictures"), [(None, 1), (BIG, 1), (SMALL, 2), (SPECK, 2)], ids=["found", "big", "small", "speck"]
)
def test_rejecting_encodes_a_picture_and_the_window_in_it_once_and_finds_the_same(
    model: FewShotModel, encoded: list[bytes], mask: np.ndarray | None, pictures: int, sharp: bool
) -> None:
    model.outlines = "sharp" if sharp else "plain"
    found: list[Rejection] = []
    runs = []
    banks = []
    ways: list[Callable[[FewShotModel], Rejection]] = [
        lambda model: one_by_one(model, mask),
        lambda model: model.reject("cat", CAT_LIKE, mask),
    ]
    for way in ways:
        del encoded[:]
        banks.append(model.bank_after(lambda model, way=way: found.append(way(model))))
        runs.append((len(encoded), len(set(encoded))))
    assert runs[0][0] > runs[0][1] == pictures  # the plain order encodes a picture again and again
    assert runs[1] == (pictures, pictures)
    assert found[0] == found[1]
    plain, other = (bank.negatives("cat")[0] for bank in banks)
    for field, value in vars(plain.support).items():
        np.testing.assert_array_equal(getattr(other.support, field), value)


@pytest.mark.parametrize(("row_column", "is_whole"), [((5, 5), True), ((0, 0), False)])
def test_a_part_that_is_too_small_to_see_makes_all_of_the_picture_the_negative_and_that_is_said(
    model: FewShotModel, row_column: tuple[int, int], is_whole: bool
) -> None:
    speck = np.zeros(CAT.shape[:2], np.bool_)
    speck[row_column] = True  # the pixel in the corner stands for a token, the other lies between two that do
    rejection = model.reject("cat", CAT_LIKE, speck)
    (negative,) = model.bank.negatives("cat")
    assert rejection.is_mask_too_small == negative.support.thumbnail_mask.all() == is_whole


@pytest.mark.parametrize("mask", [None, np.zeros(CAT.shape[:2], np.bool_)], ids=["where it is found", "empty"])
def test_a_picture_can_be_rejected_without_a_mask(model: FewShotModel, mask: np.ndarray | None) -> None:
    assert not model.reject("cat", NOTHING, mask).is_mask_too_small  # nothing was marked
    (negative,) = model.bank.negatives("cat")
    assert negative.support.thumbnail_mask.all()
    assert negative.support.kept.shape[1] > 1


def test_negatives_of_one_class_leave_the_scores_of_others_alone(model: FewShotModel) -> None:
    model.enroll("cup", [NOTHING])
    before = score(model, NOTHING, "cup")
    model.reject("cat", CAT_LIKE)
    assert score(model, NOTHING, "cup") == pytest.approx(before, abs=1e-5)


def test_an_unknown_class_cannot_be_rejected(model: FewShotModel) -> None:
    with pytest.raises(InputError, match="'dog' is not enrolled"):
        model.reject("dog", CAT)


def test_classes_on_the_same_pixels_exclude_each_other_only_if_asked_to(model: FewShotModel) -> None:
    model.enroll("cat again", [CAT_LIKE])
    assert model.predict(CAT).present.tolist() == [True, True]

    model.exclusive = True
    prediction = model.predict(CAT)

    assert prediction.present.tolist() == [True, False]
    assert prediction.results[1].raw_score > prediction.levels[1] > prediction.scores[1]
    assert set(np.unique(prediction.label_map)) <= {0, 1}
