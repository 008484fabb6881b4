"""The bundled model: doubtful frames are kept, judged, and every change is held to the verdicts."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data

from fsvit_edge.fewshot.overlay import PALETTE
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.review import Check, doubts, draw_review
from fsvit_edge.fewshot.review_items import MAX_ITEMS, ReviewItem
from fsvit_edge.runtime.errors import ArtifactError, InputError

CAT = skimage.data.chelsea()
LIKE = np.repeat(CAT[:, ::-1].mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)  # another cat
CUP = skimage.data.coffee()


@pytest.fixture
def model() -> Iterator[FewShotModel]:
    with FewShotModel.load(precision="fp32", threads=1) as opened:
        opened.enroll("cat", [CAT])
        yield opened


def note(model: FewShotModel, image: np.ndarray, **how: Any) -> tuple[ReviewItem, ...]:
    """Note a picture as if every score were doubtful."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fsvit_edge.fewshot.review._DOUBT_MARGIN", 99.0)
        return model.review.note(image, model.predict(image), **how)


def keep(model: FewShotModel, *images: np.ndarray) -> None:
    for image in images:
        assert len(note(model, image)) == len(model.classes)


# ------------------------------------------------------------------------------------------------------ doubtful frames


def test_a_score_close_to_its_level_is_in_doubt(model: FewShotModel) -> None:
    sure = model.predict(CAT)
    score = sure.scores[0]
    assert doubts(sure) == ()
    for level, is_doubtful in ((score, True), (1 - (1 - score) * 2, True), (1 - (1 - score) * 4, False)):
        assert bool(doubts(replace(sure, levels=np.array([level], np.float32)))) is is_doubtful


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_class_whose_pixels_a_surer_one_claims_is_in_doubt(model: FewShotModel, exclusive: bool) -> None:
    model.enroll("cat again", [LIKE])
    model.enroll("cup", [CUP])
    model.exclusive = exclusive
    prediction = model.predict(CAT)
    assert prediction.present.tolist() == [True, not exclusive, False]
    assert doubts(prediction) == ("cat again",)
    assert doubts(replace(prediction, contested=None)) == ()  # the control


def test_a_doubtful_frame_is_kept_with_the_answer_for_its_picture(model: FewShotModel) -> None:
    large = np.repeat(np.repeat(LIKE, 2, 0), 2, 1)
    (item,) = note(model, large, wall_time_s=12.5)

    assert model.review.items == model.bank.review == (item,)
    assert (item.number, item.name, item.verdict, item.wall_time_s) == (0, "cat", None, 12.5)
    assert item.picture.shape == (model.manifest.image_size, model.manifest.image_size, 3)
    assert len(item.jpeg) < item.picture.size / 2
    again = model.predict(item.picture)
    assert (item.score, item.level) == (float(again.scores[0]), float(again.levels[0]))
    assert item.was_present


def test_what_is_sure_skipped_or_kept_already_is_not_kept(model: FewShotModel) -> None:
    prediction = model.predict(LIKE)
    assert model.review.note(LIKE, prediction) == ()
    assert note(model, LIKE, skip=("cat",)) == ()
    assert model.bank.review == ()

    keep(model, LIKE)
    noise = np.random.default_rng(0).integers(-4, 5, LIKE.shape)
    noisy = np.clip(LIKE.astype(int) + noise, 0, 255).astype(np.uint8)
    assert note(model, noisy) == ()
    moved = np.roll(LIKE, 40, axis=1)
    assert len(note(model, moved)) == 1


@pytest.mark.slow(reason="answers for 52 frames, 5 s")
def test_no_more_than_fifty_are_kept(model: FewShotModel) -> None:
    rng = np.random.default_rng(0)
    for _ in range(MAX_ITEMS + 2):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        assert note(model, np.kron(coarse, np.ones((32, 32, 1), np.uint8)))
    assert [item.number for item in model.review.items] == list(range(2, MAX_ITEMS + 2))


def test_a_damaged_picture_stops_no_run(model: FewShotModel) -> None:
    keep(model, CAT)
    for damaged in (b"no picture", b""):
        model.bank.review = (replace(model.bank.review[0], jpeg=damaged),)
        assert note(model, LIKE)
    model.review.judge(0, "no")
    with pytest.raises(ArtifactError, match="review item 0"):
        model.review.check()


# ------------------------------------------------------------------------------------------------------------ verdicts


def judged(model: FewShotModel) -> None:
    """Three pictures: a cat (yes), what looks like one (no), and one that nobody judged."""
    keep(model, CAT, LIKE, CUP)
    model.review.judge(0, "yes")
    model.review.judge(1, "no")


def test_answers_that_contradict_a_verdict_are_found(model: FewShotModel) -> None:
    judged(model)
    check = model.review.check()
    assert [one.item.number for one in check.items] == [0, 1]
    assert check.changed == ()
    assert [one.item.number for one in check.contradicting] == [1]
    assert str(check) == "Answers that change: 0 of 2; that contradict their verdict: 1, of them 1 as before."

    model.reject("cat", LIKE)
    check = model.review.check()
    assert check.contradicting == ()
    (changed,) = check.changed
    assert (changed.was_present, changed.is_present) == (True, False)
    assert changed.score < changed.score_before == changed.item.score

    model.set_level("cat", 0.9999999)
    assert [one.item.number for one in model.review.check().contradicting] == [0]


def test_a_change_is_tried_before_it_is_kept(model: FewShotModel) -> None:
    judged(model)
    kept, scores = model.bank, model.predict(LIKE).scores

    better = model.bank_after(lambda model: model.reject("cat", LIKE))
    assert model.bank is kept
    np.testing.assert_array_equal(model.predict(LIKE).scores, scores)
    check = model.review.check(better)
    assert [one.item.number for one in check.changed] == [1]
    assert check.contradicting == ()
    assert str(check) == "Answers that change: 1 of 2; that contradict their verdict: 0."

    worse = model.review.check(model.bank_after(lambda model: model.set_level("cat", 0.9999999)))
    assert [one.item.number for one in worse.changed] == [0, 1]
    assert [one.item.number for one in worse.contradicting] == [0]
    assert str(worse) == "Answers that change: 2 of 2; that contradict their verdict: 1."  # it was right before
    gone = model.review.check(model.bank_after(lambda model: model.remove("cat")))
    assert [(one.score, one.is_present) for one in gone.items] == [(0.0, False)] * 2
    assert model.review.check(model.bank.copy()).changed == ()  # the control
    assert len(model.review.items) == 3


def test_a_change_that_fails_leaves_the_bank(model: FewShotModel) -> None:
    kept = model.bank
    with pytest.raises(InputError, match="'dog' is not enrolled"):
        model.bank_after(lambda model: model.set_level("dog", 0.5))
    assert model.bank is kept


def test_without_verdicts_there_is_nothing_to_check(model: FewShotModel) -> None:
    keep(model, CAT)
    assert str(model.review.check()) == str(Check(())) == "There are no verdicts to check."


def test_verdicts_survive_a_save(model: FewShotModel, tmp_path: Path) -> None:
    judged(model)
    model.save_bank(tmp_path / "bank.safetensors")
    with FewShotModel.load(precision="fp32", threads=1) as other:
        other.load_bank(tmp_path / "bank.safetensors")
        assert other.review.items == model.review.items
        assert [one.item.number for one in other.review.check().contradicting] == [1]


def test_the_sheet_colors_classes_as_the_bank_orders_them(model: FewShotModel) -> None:
    def colors(classes: tuple[str, ...]) -> set[tuple[int, ...]]:
        return {tuple(color) for color in draw_review(items, classes).reshape(-1, 3)}

    model.enroll("cup", [CUP])
    items = tuple(one for one in note(model, CUP) if one.name == "cup")
    first, second = (tuple(map(int, color)) for color in PALETTE[:2])
    assert second in colors(model.classes)
    assert first in colors(("cup", "cat"))  # the control


def test_the_sheet_shows_every_item(model: FewShotModel) -> None:
    judged(model)
    one, three = draw_review(model.review.items[:1], model.classes), draw_review(model.review.items, model.classes)
    assert three.shape[1] > 2.5 * one.shape[1]
    assert draw_review(model.review.items * 3, model.classes).shape[0] > 1.5 * three.shape[0]  # six in a row
    np.testing.assert_array_equal(three[:, : one.shape[1] - 10], one[:, :-10])
    assert one.dtype == np.uint8
