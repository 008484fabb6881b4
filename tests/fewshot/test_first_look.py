from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import skimage.data

from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.first_look import FirstLook
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.errors import InputError

CHANNELS, DIM = 2, 4
PICTURES = {
    "cat": lambda: skimage.data.chelsea()[:, 60:360],
    "coffee": lambda: skimage.data.coffee(),
    "rocket": lambda: skimage.data.rocket(),
    "astronaut": lambda: skimage.data.astronaut(),
    "coins": lambda: np.repeat(skimage.data.coins()[..., None], 3, axis=2),
    "gravel": lambda: np.repeat(skimage.data.gravel()[..., None], 3, axis=2),
}


def support(*directions: int) -> CachedSupport:
    """A support with a class token, and an image token along each of these axes in every channel."""
    kept = np.zeros((CHANNELS, 1 + len(directions), DIM), np.float16)
    kept[:, 0] = 0.5
    for token, axis in enumerate(directions, start=1):
        kept[:, token, axis] = 1
    pooled = np.full((CHANNELS, 9, DIM), 0.5, np.float16)
    small = np.zeros((2, 2, 3), np.uint8)
    return CachedSupport(kept, pooled, np.ones(9, np.bool_), small, small[..., 0] == 0, has_mask=True)


def frame(*directions: int) -> np.ndarray:
    tokens = np.zeros((1, CHANNELS, len(directions), DIM), np.float32)
    for token, axis in enumerate(directions):
        tokens[:, :, token, axis] = 1
    return tokens


@pytest.fixture(scope="module")
def enrolled() -> Iterator[FewShotModel]:
    with FewShotModel.load(engine="onnxruntime", precision="fp32", threads=1) as model:
        for name, read in PICTURES.items():
            picture = np.ascontiguousarray(read())
            middle = np.zeros(picture.shape[:2], np.bool_)
            middle[picture.shape[0] // 4 : -picture.shape[0] // 4, picture.shape[1] // 4 : -picture.shape[1] // 4] = 1
            model.enroll(name, [picture], [middle])
        yield model


@pytest.fixture
def model(enrolled: FewShotModel) -> Iterator[FewShotModel]:
    bank = enrolled.bank.copy()
    yield enrolled
    enrolled.bank, enrolled.first_look = bank, None


def test_the_classes_whose_supports_are_like_a_token_of_the_frame_are_chosen() -> None:
    classes = [(support(0),), (support(1),), (support(2),), (support(3),)]
    assert FirstLook(2).likeliest(frame(3, 3, 1), classes) == [1, 3]
    assert FirstLook(2).likeliest(frame(0, 2), classes) == [0, 2]


def test_a_class_is_as_likely_as_its_likeliest_support() -> None:
    classes = [(support(0, 1),), (support(2), support(3), support(1)), (support(0),)]
    assert FirstLook(1).likeliest(frame(1), classes) == [1]
    assert FirstLook(1).likeliest(frame(0), classes) == [2]


def test_more_classes_than_there_are_and_supports_without_a_token_are_no_trouble() -> None:
    classes = [(support(),), (support(1),)]
    assert FirstLook(9).likeliest(frame(1), classes) == [0, 1]
    assert FirstLook(1).likeliest(frame(1), classes) == [1]


def test_changed_classes_are_looked_at_again() -> None:
    look = FirstLook(1)
    assert look.likeliest(frame(1), [(support(1),), (support(2),)]) == [0]
    assert look.likeliest(frame(1), [(support(2),), (support(1),)]) == [1]


@pytest.mark.parametrize("most", [0, -1, 2.0, True, None])
def test_a_number_that_leaves_no_class_is_refused(most: Any) -> None:
    with pytest.raises(InputError, match="at least 1 class to compare, got"):
        FirstLook(most)


@pytest.mark.parametrize("name", PICTURES)
def test_compared_classes_score_as_without_and_the_others_are_absent(model: FewShotModel, name: str) -> None:
    picture = np.ascontiguousarray(PICTURES[name]())
    every = model.predict(picture, probabilities=True)
    model.first_look = FirstLook(2)
    some = model.predict(picture, probabilities=True)
    left = np.flatnonzero(some.scores)
    assert len(left) == 2
    assert model.classes.index(name) in left  # its own picture
    assert np.allclose(some.scores[left], every.scores[left], atol=1e-6)
    assert every.foreground is not None
    assert some.foreground is not None
    assert np.allclose(some.foreground[left], every.foreground[left], atol=1e-4)
    assert (every.scores[np.delete(np.arange(6), left)] > 0).all()
    assert not some.present[np.delete(np.arange(6), left)].any()


def test_a_look_that_leaves_all_classes_changes_nothing(model: FewShotModel) -> None:
    picture = skimage.data.coffee()
    every = model.predict(picture)
    model.first_look = FirstLook(6)
    some = model.predict(picture)
    assert np.array_equal(some.scores, every.scores)
    assert np.array_equal(some.label_map, every.label_map)


def test_only_the_negatives_of_compared_classes_are_compared(
    model: FewShotModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = skimage.data.coffee()
    for name in ("coffee", "rocket"):
        model.reject(name, skimage.data.chelsea())
    wanted = model.predict(picture)
    seen = []
    compare = model.network.compare

    def count(tokens: Any, classes: Any, negatives: Any = ()) -> Any:
        seen.append((len(classes), len(negatives)))
        return compare(tokens, classes, negatives)

    monkeypatch.setattr(model.network, "compare", count)
    model.first_look = FirstLook(1)
    got = model.predict(picture)
    assert seen == [(1, 1)]
    way = model.classes.index("coffee")
    assert got.scores[way] == pytest.approx(wanted.scores[way], abs=1e-6)
    assert got.scores.sum() == got.scores[way]


def test_the_empty_scene_is_learned_of_all_classes(model: FewShotModel) -> None:
    model.first_look = FirstLook(1)
    report = model.learn_scene([skimage.data.coffee()])
    assert min(report.highest.values()) > 0
