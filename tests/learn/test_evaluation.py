"""Evaluation on episodes, with correct and with wrong data, and the gates."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.learn import evaluation
from fsvit_edge.learn.episode_pictures import draw_answer
from fsvit_edge.learn.episodes import benchmark_episode, present
from fsvit_edge.learn.evaluation import Answer, EvaluationOptions, EvaluationResult, ModelIdentity, evaluate
from fsvit_edge.learn.folder import FolderFewShot
from fsvit_edge.learn.gates import Baseline, Gates
from fsvit_edge.learn.metrics import Score, Scores
from fsvit_edge.learn.scenes import SceneOptions, evaluate_scenes
from fsvit_edge.runtime.errors import AccuracyGateError, ArtifactError, InputError
from fsvit_edge.runtime.pictures import write_image

ColorModel = Any
MakeFolder = Callable[..., Path]
FEW = EvaluationOptions(episodes=120)
SCENES = SceneOptions()


def figures(result: EvaluationResult) -> tuple[float, float]:
    assert result.scores.miou is not None
    return result.scores.exact_ratio.value, result.scores.miou.value


@pytest.mark.parametrize(
    ("options", "least_exact"),
    [(FEW, 100), (replace(FEW, ways=2), 100), (replace(FEW, masks=False), 90.01)],
    ids=["1 way", "2 ways", "names only, with objects in the center"],
)
def test_correct_data_score_high(
    model: FewShotModel, data: FolderFewShot, options: EvaluationOptions, least_exact: float
) -> None:
    exact, miou = figures(evaluate(model, data, options))
    assert exact >= least_exact
    assert miou > 80  # the outlines are coarse, on a grid of 12 x 12


def test_shuffled_labels_are_at_chance(model: FewShotModel, make_folder: MakeFolder) -> None:
    shuffled = FolderFewShot(make_folder(shuffle_labels=True))
    exact, miou = figures(evaluate(model, shuffled, replace(FEW, episodes=400)))
    # A support's color is the query's in one of four cases, whatever the label; half of the queries show the class.
    assert 40 < exact < 60
    assert miou < 30


def test_masks_on_the_wrong_side_score_low(model: FewShotModel, data: FolderFewShot, make_folder: MakeFolder) -> None:
    wrong = FolderFewShot(make_folder("wrong", shuffle_masks=True))
    assert figures(evaluate(model, data, replace(FEW, masks=False)))[1] > 80
    assert figures(evaluate(model, wrong, replace(FEW, masks=False)))[1] < 10


def test_the_scores_equal_those_of_running_each_episode_alone(model: FewShotModel, make_folder: MakeFolder) -> None:
    data = FolderFewShot(make_folder(shuffle_labels=True))
    result = evaluate(model, data, EvaluationOptions(ways=2, shots=3, episodes=50))
    right = []
    for number in range(50):
        episode = benchmark_episode(data, number, 2, 3)
        for label, indices in zip(episode.ways, episode.supports, strict=True):
            masks = [data.read_mask(index) == 1 for index in indices]
            model.enroll(data.class_names[label], [data.read_image(index) for index in indices], masks, level=0.5)
        right.append((model.predict(data.read_image(episode.query)).present == present(data, episode)).all())
        for name in model.classes:
            model.remove(name)
    assert 0 < np.mean(right) < 1
    assert result.scores.exact_ratio.value == pytest.approx(100 * np.mean(right))
    assert sum(one.asked for one in result.scores.classes) == 100


def test_a_picture_is_encoded_once_as_query_and_once_as_support_unless_the_cache_of_supports_is_small(
    color_model: ColorModel, data: FolderFewShot, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = evaluate(color_model.model, data, FEW)
    assert color_model.head.runs == 120
    assert color_model.encoder.runs <= 2 * len(data.examples)
    color_model.encoder.runs = 0
    monkeypatch.setattr(evaluation, "SUPPORT_CACHE_BYTES", 1)
    monkeypatch.setattr(evaluation, "EPISODES_AT_ONCE", 2)
    tight = evaluate(color_model.model, data, FEW)
    assert color_model.encoder.runs > 120
    assert tight.scores == free.scores


def test_the_models_own_classes_are_unchanged(model: FewShotModel, data: FolderFewShot) -> None:
    picture = np.full((30, 30, 3), 200, np.uint8)
    model.enroll("mine", [picture])
    before = model.predict(picture)
    evaluate(model, data, replace(FEW, episodes=4))
    evaluate_scenes(model, data, SceneOptions(shots=2, per_class=1))
    assert model.classes == ("mine",)
    assert np.array_equal(model.predict(picture).scores, before.scores)


def test_queries_without_a_mask_count_only_for_presence(model: FewShotModel, make_folder: MakeFolder) -> None:
    root = make_folder()
    for path in sorted(root.glob("*/masks/[0-3].png")):
        path.unlink()
    result = evaluate(model, FolderFewShot(root, needs_masks=False), replace(FEW, masks=False))
    assert 0 < result.segmented < FEW.episodes
    assert figures(result)[1] > 80
    for path in root.glob("*/masks/*.png"):
        path.unlink()
    bare = evaluate(model, FolderFewShot(root, needs_masks=False), replace(FEW, masks=False))
    assert (bare.segmented, bare.scores.miou) == (0, None)
    assert bare.scores.exact_ratio == result.scores.exact_ratio
    json.dumps(bare.to_dict(), allow_nan=False)


@pytest.mark.parametrize("run", [lambda *given: evaluate(*given, FEW), lambda *given: evaluate_scenes(*given, SCENES)])
def test_supports_without_masks_are_an_error_if_masks_are_needed(
    model: FewShotModel, make_folder: MakeFolder, run: Callable[[FewShotModel, FolderFewShot], object]
) -> None:
    with pytest.raises(InputError, match=r"has no mask; add one, or evaluate with --supports names"):
        run(model, FolderFewShot(make_folder(masks=False), needs_masks=False))


def test_an_evaluation_without_episodes_is_an_error(model: FewShotModel, data: FolderFewShot) -> None:
    with pytest.raises(InputError, match="at least 1 episode"):
        evaluate(model, data, EvaluationOptions(episodes=0))


def test_the_digest_identifies_the_episodes(model: FewShotModel, make_folder: MakeFolder) -> None:
    root = make_folder()

    def digest(episodes: int) -> str:
        return evaluate(model, FolderFewShot(root), replace(FEW, episodes=episodes)).episodes_sha256

    first = digest(40)
    assert first == digest(40) != digest(41)
    write_image(root / "blue" / "masks" / "3.png", np.full((36, 48, 3), 255, np.uint8))
    assert digest(40) != first


# --------------------------------------------------------------------------------------------------------------- gates


SCORES = Scores(Score(100, 100, 100), Score(85, 80, 90), ())
IDENTITY = ModelIdentity("colors", "none", "cst", 24, "fp32", {})
RESULT = EvaluationResult(EvaluationOptions(episodes=40), SCORES, "5a" * 32, 40, IDENTITY, "plain", 1.0)


@pytest.fixture
def baseline(tmp_path: Path) -> Callable[..., Baseline]:
    """Write the result as a file with changed values, and read it."""

    def write(**changes: object) -> Baseline:
        (tmp_path / "r.json").write_text(json.dumps({**RESULT.to_dict(), **changes}))
        return Baseline.load(tmp_path / "r.json")

    return write


def test_a_result_within_the_limits_passes(baseline: Callable[..., Baseline]) -> None:
    Gates().check(RESULT)
    Gates(min_miou=80, min_exact_ratio=100).check(RESULT)
    Gates(baseline=baseline(), max_drop=0).check(RESULT)


@pytest.mark.parametrize(
    ("gates", "text"),
    [
        (
            Gates(min_miou=99.9),
            r"^The accuracy gate failed: mIoU is 85\.00 %, expected at least 99\.90 % \(the limit\)\.$",
        ),
        (Gates(min_exact_ratio=100.1), r"exact ratio is 100\.00 %"),
        (Gates(min_exact_ratio=100.1, min_miou=99.9), r"exact ratio .*; mIoU"),
        (Gates(min_miou=float("nan")), "mIoU"),
    ],
)
def test_a_missed_limit_fails(gates: Gates, text: str) -> None:
    with pytest.raises(AccuracyGateError, match=text):
        gates.check(RESULT)


@pytest.mark.parametrize(("figure", "better"), [("exact_ratio", 102), ("miou", 87)])
def test_a_drop_larger_than_the_limit_fails(baseline: Callable[..., Baseline], figure: str, better: float) -> None:
    before = baseline(**{figure: {"value": better}})
    Gates(baseline=before, max_drop=2.1).check(RESULT)
    with pytest.raises(AccuracyGateError, match=r"1\.9 points below"):
        Gates(baseline=before, max_drop=1.9).check(RESULT)


def test_an_miou_that_is_no_longer_measured_fails(baseline: Callable[..., Baseline]) -> None:
    with pytest.raises(AccuracyGateError, match="mIoU is not measured"):
        Gates(baseline=baseline()).check(replace(RESULT, scores=replace(SCORES, miou=None)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"shots": 5}, "it has shots 5, this evaluation has shots 1"),
        (
            {"episodes": 1000, "masks": False},
            "it has episodes 1000, masks False, this evaluation has episodes 40, masks True",
        ),
        ({"episodes_sha256": "ab"}, "other classes, pictures or masks"),
        ({"outlines": "sharp"}, "it has outlines sharp, this evaluation has outlines plain; use the settings of the"),
    ],
)
def test_a_baseline_with_other_episodes_is_refused(
    baseline: Callable[..., Baseline], changes: dict[str, object], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        Gates(baseline=baseline(**changes)).check(RESULT)


def test_a_baseline_of_version_0_1_can_be_compared(tmp_path: Path) -> None:
    older = RESULT.to_dict()
    older["way"], older["shot"] = older.pop("ways"), older.pop("shots")
    assert older.pop("outlines") == "plain"
    (tmp_path / "r.json").write_text(json.dumps(older))
    gates = Gates(baseline=Baseline.load(tmp_path / "r.json"))
    gates.check(RESULT)
    with pytest.raises(InputError, match="it has outlines plain, this evaluation has outlines sharp"):
        gates.check(replace(RESULT, outlines="sharp"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"way": 1}', "[" * 100_000])
def test_a_baseline_that_is_not_a_result_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"The baseline .*r\.json is n"):
        Baseline.load(path)
    with pytest.raises(ArtifactError, match="No such file"):
        Baseline.load(tmp_path / "none.json")


# ------------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize(("way", "shot", "masks"), [(1, 1, True), (2, 3, True), (2, 1, False)])
def test_an_episode_is_drawn_with_all_its_pictures(
    model: FewShotModel, data: FolderFewShot, way: int, shot: int, masks: bool
) -> None:
    answers: list[Answer] = []
    evaluate(model, data, EvaluationOptions(way, shot, 3, masks), on_answer=answers.append)
    answer, side = answers[0], model.manifest.image_size
    assert answer.truth is not None
    assert answer.truth.shape == answer.prediction.label_map.shape == (side, side)
    drawn = draw_answer(data, answer, masks)
    assert drawn.shape[1] == (shot + 3) * 264 + 8
    assert drawn.shape[0] > way * 264
    panels = [drawn[8:264, 8 + 264 * column : 264 + 264 * column] for column in range(shot + 3)]
    assert all(panel.std() > 10 for panel in panels)
    query, truth, _ = panels[shot:]
    assert np.array_equal(query, truth) == (not answer.shown.any())
    blank = draw_answer(data, replace(answer, truth=np.full((side, side), 255, np.uint8)), masks)
    assert (blank[8:264, 8 + 264 * (shot + 1) : 264 + 264 * (shot + 1)] == 128).all()
