"""Scenes: scores computed by hand, evaluation of a model on colors, and the gates."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.learn import metrics
from fsvit_edge.learn.folder import FolderFewShot
from fsvit_edge.learn.gates import SceneGates
from fsvit_edge.learn.metrics import Score
from fsvit_edge.learn.scenes import SceneOptions, SceneTally, evaluate_scenes, score_scenes
from fsvit_edge.runtime.errors import AccuracyGateError
from fsvit_edge.runtime.pictures import read_image, write_image
from fsvit_edge.runtime.presence_level import level_of_supports

ColorModel = Any
MakeFolder = Callable[..., Path]
NAMES = {4: "cat", 2: "dog"}
OVERALL = ("hits", "false_alarms", "area", "hits_at_1_percent", "hits_at_01_percent")


def value(score: Score | None) -> float | None:
    return None if score is None else score.value


def by_hand() -> SceneTally:
    """Six pictures: two of cats, three of dogs, one of both.

            cat (level 0.5)             dog (level 0.8)
    own     0.9  0.4  0.8               0.9  0.85  0.7  0.3
    scenes  0.6  0.3  0.4               0.2  0.85
    """
    scores = np.array([[0.9, 0.2], [0.4, 0.85], [0.8, 0.9], [0.6, 0.85], [0.3, 0.7], [0.4, 0.3]])
    shown = np.array([[True, False], [True, False], [True, True], [False, True], [False, True], [False, True]])
    return SceneTally(scores, np.array([0.5, 0.8]), shown)


def test_the_scores_of_six_pictures_equal_those_computed_by_hand() -> None:
    scores = score_scenes(by_hand(), NAMES)
    cat, dog = scores.classes
    assert (cat.label, cat.name, cat.level, cat.pictures, cat.scenes) == (4, "cat", 0.5, 3, 3)
    assert (dog.label, dog.name, dog.level, dog.pictures, dog.scenes) == (2, "dog", 0.8, 4, 2)
    assert value(cat.hits) == pytest.approx(100 * 2 / 3)
    assert value(cat.false_alarms) == pytest.approx(100 / 3)
    assert value(dog.hits) == pytest.approx(100 * 2 / 4)
    assert value(dog.false_alarms) == pytest.approx(100 * 1 / 2)
    # 0.9 and 0.8 are above three scenes each; 0.4 is above one and equal to another.
    assert value(cat.area) == pytest.approx(100 * (3 + 3 + 1.5) / 9)
    # 0.9 is above both, 0.85 counts one and a half, 0.7 and 0.3 one.
    assert value(dog.area) == pytest.approx(100 * (2 + 1.5 + 1 + 1) / 8)
    # With so few scenes, none may pass: the level is the highest score of a scene.
    assert value(cat.hits_at_1_percent) == value(cat.hits_at_01_percent) == pytest.approx(100 * 2 / 3)
    assert value(dog.hits_at_1_percent) == value(dog.hits_at_01_percent) == pytest.approx(100 / 4)
    for name in OVERALL:
        assert value(getattr(scores, name)) == pytest.approx(
            (value(getattr(cat, name)) + value(getattr(dog, name))) / 2
        )
    # One level for all is 0.85; above it are 0.9 of the cat and 0.9 of the dog.
    assert value(scores.pooled_hits_at_1_percent) == pytest.approx(100 * 2 / 7)
    assert value(scores.pooled_hits_at_01_percent) == pytest.approx(100 * 2 / 7)


def ranked(scenes: int) -> SceneTally:
    """One class with as many pictures as scenes, and alternating scores: picture i is above all scenes up to i."""
    places = np.arange(scenes) / scenes
    scores = np.concatenate([places + 0.5 / scenes, places])[:, None]
    return SceneTally(scores, np.array([0.5]), np.repeat([True, False], scenes)[:, None])


@pytest.mark.parametrize(
    ("scenes", "at_1", "at_01"), [(99, 1, 1), (100, 2, 1), (200, 3, 1), (1000, 11, 2), (2000, 21, 3)]
)
def test_one_of_a_hundred_scenes_may_pass_at_1_percent_and_one_of_a_thousand_at_01(
    scenes: int, at_1: int, at_01: int
) -> None:
    (one,) = score_scenes(ranked(scenes), {0: "it"}).classes
    assert value(one.hits_at_1_percent) == pytest.approx(100 * at_1 / scenes)
    assert value(one.hits_at_01_percent) == pytest.approx(100 * at_01 / scenes)
    assert value(one.area) == pytest.approx(100 * (scenes + 1) / (2 * scenes))


def test_a_class_without_pictures_or_scenes_has_no_scores_and_is_not_averaged() -> None:
    tally = by_hand()
    shown = tally.shown.copy()
    shown[:, 0] = False
    scores = score_scenes(replace(tally, shown=shown), NAMES)
    cat, dog = scores.classes
    assert (cat.hits, cat.area, cat.hits_at_1_percent) == (None, None, None)
    assert value(cat.false_alarms) == pytest.approx(100 * 3 / 6)
    assert scores.hits == dog.hits
    shown[:, 0] = True
    cat, dog = score_scenes(replace(tally, shown=shown), NAMES).classes
    assert (cat.false_alarms, cat.area, cat.hits_at_1_percent, cat.hits_at_01_percent) == (None,) * 4
    assert value(cat.hits) == pytest.approx(100 * 3 / 6)


def plain(scores: np.ndarray, levels: np.ndarray, shown: np.ndarray) -> list[float]:
    """Compute the overall scores again, class by class and picture by picture."""
    by_class = []
    for column in range(scores.shape[1]):
        own = scores[shown[:, column], column]
        scene = scores[~shown[:, column], column]
        one = [
            np.mean(own > levels[column]) if own.size else math.nan,
            np.mean(scene > levels[column]) if scene.size else math.nan,
            np.mean((own[:, None] > scene) + (own[:, None] == scene) / 2) if own.size and scene.size else math.nan,
        ]
        by_class.append([*one, *at_shares(own, scene)])
    return [*np.nanmean(by_class, axis=0), *at_shares(scores[shown], scores[~shown])]


def at_shares(own: np.ndarray, scene: np.ndarray) -> list[float]:
    if not own.size or not scene.size:
        return [math.nan, math.nan]
    highest_first = np.sort(scene)[::-1]
    return [float(np.mean(own > highest_first[math.floor(share * len(scene) + 1e-9)])) for share in (0.01, 0.001)]


def random_tally() -> SceneTally:
    rng = np.random.default_rng(0)
    shown = rng.random((400, 3)) < 0.3
    scores = np.round(np.clip(0.4 * shown + rng.normal(0.4, 0.2, shown.shape), 0, 1), 2)  # ties, with the levels too
    return SceneTally(scores, np.array([0.5, 0.6, 0.7]), shown)


def test_scores_and_intervals_equal_those_of_a_plain_resampling_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 60)
    monkeypatch.setattr(metrics, "CELLS_AT_ONCE", 400 * 3 * 7)  # 9 parts
    tally = random_tally()
    scores = score_scenes(tally, {0: "a", 1: "b", 2: "c"})
    found = [getattr(scores, name) for name in (*OVERALL, "pooled_hits_at_1_percent", "pooled_hits_at_01_percent")]
    whole = 100 * np.array(plain(tally.scores, tally.levels, tally.shown))
    np.testing.assert_allclose([one.value for one in found], whole)
    rng = np.random.default_rng(metrics.RESAMPLING_SEED)
    loop = []
    for counts in rng.multinomial(400, np.full(400, 1 / 400), size=60):
        drawn = np.repeat(np.arange(400), counts)
        loop.append(plain(tally.scores[drawn], tally.levels, tally.shown[drawn]))
    low, high = 100 * np.percentile(loop, (2.5, 97.5), axis=0)
    np.testing.assert_allclose([one.low for one in found], low)
    np.testing.assert_allclose([one.high for one in found], high)


# ------------------------------------------------------------------------------------------------------ through a model


def test_colors_that_differ_are_found_without_a_false_alarm_which_passes_every_gate(
    model: FewShotModel, data: FolderFewShot
) -> None:
    result = evaluate_scenes(model, data, SceneOptions())
    scores = result.scores
    assert result.pictures == 4 * 7
    assert (value(scores.hits), value(scores.false_alarms), value(scores.area)) == (100, 0, 100)
    assert value(scores.hits_at_1_percent) == value(scores.pooled_hits_at_01_percent) == 100
    assert [(one.name, one.level, one.pictures, one.scenes) for one in scores.classes] == [
        (name, 0.5, 7, 21) for name in ("blue", "gold", "green", "red")
    ]
    json.dumps(result.to_dict(), allow_nan=False)
    SceneGates().check(result)
    SceneGates(max_false_alarms=0, min_hits=100).check(result)
    assert value(evaluate_scenes(model, data, SceneOptions(masks=False)).scores.area) == 100


def test_shuffled_labels_are_at_chance(model: FewShotModel, make_folder: MakeFolder) -> None:
    scores = evaluate_scenes(model, FolderFewShot(make_folder(shuffle_labels=True)), SceneOptions()).scores
    assert 35 < value(scores.area) < 65
    assert value(scores.false_alarms) > 10


def test_each_picture_is_encoded_once_and_compared_with_all_classes_in_one_run(
    color_model: ColorModel, data: FolderFewShot
) -> None:
    evaluate_scenes(color_model.model, data, SceneOptions(shots=2))
    assert color_model.encoder.runs == len(data.examples)
    assert color_model.head.runs == 4 + 4 * 6  # second supports, compared with the first, and pictures


def test_supports_are_the_first_pictures_and_scenes_are_evenly_spaced(
    model: FewShotModel, data: FolderFewShot, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    plain_read = data.read_image
    monkeypatch.setattr(
        data, "read_image", lambda index: read.append(data.examples[index].photograph) or plain_read(index)
    )
    result = evaluate_scenes(model, data, SceneOptions(shots=2, per_class=3))
    assert result.pictures == 12
    assert read[:2] == ["blue/0", "blue/1"]
    assert [name for name in read[8:] if name.startswith("red")] == ["red/2", "red/4", "red/6"]


def test_the_levels_are_those_of_the_supports(model: FewShotModel, data: FolderFewShot) -> None:
    result = evaluate_scenes(model, data, SceneOptions(shots=3))
    expected = level_of_supports(0.5, [None, 0.9, 0.9])  # the score that the fake head gives to its own color
    assert [one.level for one in result.scores.classes] == pytest.approx([expected] * 4)


def test_a_photograph_of_two_classes_is_a_hit_of_both_and_a_support_is_never_a_scene(
    model: FewShotModel, make_folder: MakeFolder
) -> None:
    root = make_folder()
    for source, target in (("red/images/5", "blue/images/5"), ("red/images/0", "gold/images/6")):
        write_image(root / f"{target}.png", read_image(root / f"{source}.png"))
    result = evaluate_scenes(model, FolderFewShot(root), SceneOptions())
    by_name = {one.name: one for one in result.scores.classes}
    assert result.pictures == 4 * 7 - 2
    assert (by_name["blue"].pictures, by_name["gold"].pictures, by_name["red"].pictures) == (7, 6, 7)
    assert value(by_name["blue"].hits) == pytest.approx(100 * 6 / 7)
    assert value(by_name["red"].false_alarms) == 0


# --------------------------------------------------------------------------------------------------------------- gates


@pytest.mark.parametrize(
    ("level", "passed", "missed", "sentence"),
    [
        # Everything is found everywhere: 0.05 is below the score 0.1 that the fake head gives to an absent class.
        (
            0.05,
            SceneGates(min_hits=100),
            SceneGates(max_false_alarms=5),
            r"^The accuracy gate failed: false alarms are 100\.00 %, expected at most 5\.00 %\.$",
        ),
        (
            0.95,
            SceneGates(max_false_alarms=0),
            SceneGates(max_false_alarms=0, min_hits=50),
            r"failed: hits are 0\.00 %, expected at least 50\.00 %\.$",
        ),
        (
            0.95,
            SceneGates(max_false_alarms=0),
            SceneGates(max_false_alarms=-1, min_hits=50),
            r"false alarms are .*; hits are",
        ),
    ],
)
def test_a_model_that_finds_everything_or_nothing_misses_a_limit(
    model: FewShotModel, data: FolderFewShot, level: float, passed: SceneGates, missed: SceneGates, sentence: str
) -> None:
    model.set_level_for_all(level)
    result = evaluate_scenes(model, data, SceneOptions())
    passed.check(result)
    with pytest.raises(AccuracyGateError, match=sentence):
        missed.check(result)


def test_an_unmeasured_score_fails_every_gate() -> None:
    scores = score_scenes(by_hand(), NAMES)
    unknown = replace(scores, hits=None, false_alarms=None)
    for gates in (SceneGates(max_false_alarms=100), SceneGates(min_hits=0)):
        gates.check(SimpleNamespace(scores=scores))
        with pytest.raises(AccuracyGateError, match="not measured"):
            gates.check(SimpleNamespace(scores=unknown))
    with pytest.raises(AccuracyGateError):
        SceneGates(max_false_alarms=float("nan")).check(SimpleNamespace(scores=scores))
