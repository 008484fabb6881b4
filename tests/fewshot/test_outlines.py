"""Objectness added to CST's foreground: the arithmetic by hand, and the shipped network with a map of ours."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from fake_engine import FakeEngine
from padded_model import padded_bundle

from fsvit_edge.fewshot.heads import PaddedHead
from fsvit_edge.fewshot.outlines import CERTAIN_LOGIT, at_corners, objectness_weight, recognized, sharpen
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, OBJECTNESS, Bundle
from fsvit_edge.runtime.engines.base import Array, Engines, TensorSpec
from fsvit_edge.runtime.engines.choose import choose_engines
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.postprocess import label_map, log_odds, upsample_foreground
from fsvit_edge.runtime.preprocess import resize_image

CELLS = 16
DISC = np.fromfunction(
    lambda row, column: 6 - 2 * np.hypot(row - 5, column - 9), (CELLS, CELLS), dtype=np.float32
).astype(np.float32)
"""Logits of a thing that stands where nobody looks for it."""
FRAME_HW = (90, 120)


# ------------------------------------------------------------------------------------------------------ the arithmetic


def probabilities(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).uniform(0.02, 0.98, shape).astype(np.float32)


@pytest.mark.parametrize("cells", [3, 5, 9])
def test_a_map_of_one_value_moves_every_log_odd_by_its_weight(cells: int) -> None:
    foreground = probabilities(0, 3, 5, 5)
    weights = np.array([0, 0.5, 1], np.float32)
    sharp = sharpen(foreground, np.full((cells, cells), 1.5, np.float32), weights)
    assert sharp.shape == (3, max(5, cells), max(5, cells))  # the finer of both maps gives the size
    for way, weight in enumerate(weights):
        odds = foreground[way] / (1 - foreground[way]) * np.exp(1.5 * weight)
        step = len(sharp[way]) // 4  # to the points of the foreground's own grid
        np.testing.assert_allclose(sharp[way, ::step, ::step], odds / (1 + odds), rtol=1e-5)


def test_a_weight_of_0_leaves_the_decision_and_a_weight_of_1_adds_the_logits() -> None:
    foreground = probabilities(1, 2, 4, 4)
    objectness = np.array([[-5, 3], [2, -1]], np.float32).repeat(4, axis=0).repeat(4, axis=1)[:7, :7]
    sharp = sharpen(foreground, objectness, np.array([0, 1], np.float32))
    # Seven points lie on the four and midway between them, so what is there already must stay.
    np.testing.assert_allclose(sharp[0, ::2, ::2], foreground[0], atol=1e-6)
    assert np.array_equal(label_map(sharp[:1], (70, 91)) > 0, label_map(foreground[:1], (70, 91)) > 0)
    np.testing.assert_allclose(
        log_odds(sharp)[1, ::2, ::2], log_odds(foreground)[1] + at_corners(objectness, 7)[::2, ::2], atol=1e-4
    )
    # The control: what leaves the first alone moves the second.
    assert not np.array_equal(label_map(sharp[1:], (70, 91)), label_map(foreground[1:], (70, 91)))


@pytest.mark.parametrize("size", [8, 16, 33])
def test_a_ramp_over_the_squares_stays_a_ramp_over_the_corners(size: int) -> None:
    cells, slope = 16, 0.5
    middles = slope * (np.arange(cells) + 0.5 - cells / 2)
    ramp = np.broadcast_to(middles[:, None], (cells, cells)).astype(np.float32)
    places = np.linspace(0, cells, size)
    # Beyond the middle of the last square nothing is known, so its value goes on.
    wanted = slope * (np.clip(places, 0.5, cells - 0.5) - cells / 2)
    for given, found in ((ramp, at_corners(ramp, size)), (ramp.T, at_corners(ramp.T, size).T)):
        assert given.shape == (cells, cells)
        np.testing.assert_allclose(found, np.broadcast_to(wanted[:, None], (size, size)), atol=1e-5)


def test_a_decoder_that_is_sure_can_still_be_contradicted() -> None:
    sure = np.full((4, 4), 1e4, np.float32)
    assert (at_corners(sure, 4) == CERTAIN_LOGIT).all()
    assert (at_corners(-sure, 4) == -CERTAIN_LOGIT).all()
    nowhere = np.full((1, 4, 4), 1e-5, np.float32)
    assert (sharpen(nowhere, sure, np.ones(1, np.float32)) < 0.5).all()


# ------------------------------------------------------------------------------------------------------ through a model


def picture(seed: int) -> Array:
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return small.repeat(30, axis=0).repeat(30, axis=1)


def mask() -> Array:
    made = np.zeros(FRAME_HW, np.bool_)
    made[20:70, 30:80] = True
    return made


@pytest.fixture(scope="module")
def opened() -> Iterator[Engines]:
    """The shipped graphs, whether they tell objectness or not."""
    engines, _choice = choose_engines(padded_bundle(), "onnxruntime", "fp32", 1)
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture
def open_model(opened: Engines) -> Callable[[str], FewShotModel]:
    """Put the shipped graphs behind a model that tells our map "by the encoder", by "own graph", or "never"."""
    manifest = Bundle.load(DEFAULT_BUNDLE).manifest
    cst = tuple(spec for spec in opened["encoder"].outputs if spec.name != OBJECTNESS)
    told = (TensorSpec(OBJECTNESS, ("batch", CELLS, CELLS), "float32"),)

    def encode(feed: dict[str, Array]) -> dict[str, Array]:
        answer = opened["encoder"].run(feed)
        return {spec.name: np.array(answer[spec.name].numpy()) for spec in cst}

    def make(how: str) -> FewShotModel:
        encoder = FakeEngine(opened["encoder"].inputs, cst, encode)
        engines: Engines = {"enroll": opened["enroll"], "head": opened["head"]}
        if how == "by the encoder":
            encoder = FakeEngine(
                opened["encoder"].inputs, (*cst, *told), lambda feed: encode(feed) | {OBJECTNESS: DISC[None]}
            )
        elif how == "own graph":
            engines[OBJECTNESS] = FakeEngine(opened["encoder"].inputs, told, lambda _: {OBJECTNESS: DISC[None]})
        return FewShotModel(manifest, engines | {"encoder": encoder})

    return make


def enrolled(model: FewShotModel, weight: float = 1.0) -> FewShotModel:
    """With a class of two supports, of the weight that is wanted, whatever the rule says of them."""
    supports = [replace(model.cache_support("a", picture(i), mask()), objectness_weight=weight) for i in range(2)]
    model.bank.add("a", supports)
    model.set_level_for_all(0.001)
    return model


def test_a_bundle_with_objectness_draws_sharp_outlines(open_model: Callable[[str], FewShotModel]) -> None:
    kinds = {how: open_model(how).outlines for how in ("by the encoder", "own graph", "never")}
    assert kinds == {"by the encoder": "sharp", "own graph": "sharp", "never": "plain"}


def test_unknown_or_impossible_outlines_are_refused(open_model: Callable[[str], FewShotModel]) -> None:
    model = open_model("never")
    for wrong in ("blurred", "", None):
        with pytest.raises(InputError, match=rf"^Outlines must be plain or sharp, got {wrong!r}\.$"):
            model.outlines = wrong  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"has no objectness, which sharp outlines need; .*export --objectness\.$"):
        model.outlines = "sharp"
    model.outlines = "plain"
    assert model.outlines == "plain"


@pytest.mark.parametrize("how", ["by the encoder", "own graph"])
def test_both_kinds_of_outlines_are_drawn_from_one_bank(open_model: Callable[[str], FewShotModel], how: str) -> None:
    model, frame = enrolled(open_model(how)), picture(9)
    sharp = model.predict(frame, probabilities=True)
    model.outlines = "plain"
    plain = model.predict(frame, probabilities=True)
    model.outlines = "sharp"
    again = model.predict(frame, probabilities=True)
    assert sharp.foreground is not None
    assert plain.foreground is not None
    assert np.array_equal(sharp.foreground, again.foreground)
    assert np.array_equal(sharp.label_map, again.label_map)
    assert np.array_equal(sharp.scores, plain.scores)
    # Log-odds rose where the disc is and fell elsewhere.
    difference = log_odds(sharp.foreground) - log_odds(plain.foreground)
    assert difference[0, 30, 70] > 3
    assert difference[0, 80, 10] < -3
    for given, kind in ((sharp, "sharp"), (plain, "plain")):
        model.outlines = kind
        (asked,) = model.predict_with(frame, [model.bank])
        assert np.array_equal(asked.label_map, given.label_map)
    assert not np.array_equal(sharp.label_map, plain.label_map)
    # Plain outlines are CST's own foreground; supports of weight 0 have no others.
    own = enrolled(open_model("never"), weight=0.0).predict(frame, probabilities=True)
    assert np.array_equal(plain.foreground, own.foreground)
    weightless = enrolled(open_model(how), weight=0.0)
    assert weightless.outlines == "sharp"
    assert np.array_equal(weightless.predict(frame, probabilities=True).foreground, own.foreground)


def test_sharp_is_the_sum_of_the_log_odds_at_the_frames_size(open_model: Callable[[str], FewShotModel]) -> None:
    model, frame = enrolled(open_model("by the encoder"), weight=0.75), picture(9)
    foreground = model.network.compare(model.network.encode(frame)["tokens"], model.bank.class_supports).foreground()
    found = model.predict(frame, probabilities=True)
    sharp = sharpen(foreground, DISC, np.array([0.75], np.float32))
    assert np.array_equal(found.foreground, upsample_foreground(sharp, FRAME_HW))
    assert np.array_equal(found.label_map, label_map(sharp, FRAME_HW))


def test_plain_outlines_do_not_run_the_objectness_graph(open_model: Callable[[str], FewShotModel]) -> None:
    model = enrolled(open_model("own graph"))
    own = model.network.objectness
    assert isinstance(own, FakeEngine)
    runs = own.runs
    model.predict(picture(9))
    assert own.runs == runs + 1
    model.outlines = "plain"
    model.predict(picture(9))
    assert own.runs == runs + 1
    own.close()


def test_without_objectness_the_answer_is_that_of_the_three_graphs_to_the_last_bit(
    open_model: Callable[[str], FewShotModel], opened: Engines
) -> None:
    model, frame = enrolled(open_model("never")), picture(9)
    found = model.predict(frame, probabilities=True)
    encoded = opened["encoder"].run({"image": resize_image(frame, model.manifest.image_size)[None]})
    assert isinstance(model.network.head, PaddedHead)
    ((_, feed),) = model.network.head._runs(model.bank.class_supports, model.network.num_tokens)
    answer = opened["head"].run({"tokens": encoded["tokens"], **feed})
    foreground = answer["foreground"].numpy()
    assert np.array_equal(found.scores, answer["presence"].numpy())
    assert np.array_equal(found.label_map, label_map(foreground, FRAME_HW))
    assert np.array_equal(found.foreground, upsample_foreground(foreground, FRAME_HW))


# ---------------------------------------------------------------------------------------------- weights of objectness


def square(top: int, left: int, size: int) -> np.ndarray:
    found = np.zeros((64, 64), np.bool_)
    found[top : top + size, left : left + size] = True
    return found


def logits_of(*things: np.ndarray) -> np.ndarray:
    """Logits that mark these things."""
    return np.where(np.any(things, axis=0), 5.0, -5.0).astype(np.float32)


def test_objectness_counts_fully_for_a_thing_and_not_at_all_for_stuff() -> None:
    thing, picture = square(16, 16, 24), np.zeros((64, 64), np.bool_)

    assert objectness_weight(logits_of(thing), thing) == 1.0
    assert objectness_weight(logits_of(picture), square(40, 0, 24)) == 0.0
    road = ~square(16, 16, 24)  # around a thing that stands on it
    assert objectness_weight(logits_of(thing), road) == 0.0
    assert objectness_weight(logits_of(thing), picture) == 0.0


def test_a_half_known_thing_counts_in_part_and_more_is_never_less() -> None:
    mask = square(8, 8, 40)
    large = mask.repeat(5, axis=0).repeat(7, axis=1)
    known = [logits_of(square(8, 8, size)) for size in range(0, 41, 4)]
    weights = [objectness_weight(logits, mask) for logits in known]

    assert weights == sorted(weights)
    assert any(0 < weight < 1 for weight in weights)
    assert [objectness_weight(logits, large) for logits in known] == weights


def test_objectness_that_does_not_know_the_thing_in_this_frame_is_left_out() -> None:
    here, elsewhere = square(8, 8, 20), square(40, 40, 20)
    foreground = np.where(np.stack([here, elsewhere, here | elsewhere]), 0.9, 0.1).astype(np.float32)

    assert recognized(foreground, logits_of(here)).tolist()[:2] == [1.0, 0.0]
    assert recognized(foreground, logits_of(here, elsewhere)).tolist() == [1.0, 1.0, 1.0]
    assert recognized(foreground[:0], logits_of(here)).shape == (0,)
