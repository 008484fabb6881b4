"""The head of one support a run against the head of padded runs, and what it computes only when asked."""

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from padded_model import padded_model

from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.heads import PaddedHead, SplitHead
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.steady import SteadyAnswers
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines.base import Array, Engine, ResidentTensor
from fsvit_edge.runtime.engines.choose import choose_engines

FRAME_HW = (90, 120)


def picture(seed: int) -> Array:
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return small.repeat(30, axis=0).repeat(30, axis=1)


def mask(width: int) -> Array:
    made = np.zeros(FRAME_HW, np.bool_)
    made[20:70, 10 : 10 + width] = True
    return made


class Counted(Engine):
    """An engine that counts its runs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.inputs, self.outputs, self.limits = engine.inputs, engine.outputs, engine.limits
        self.upload, self.close = engine.upload, engine.close
        self.runs = 0

    def run(self, feed: dict[str, Array | ResidentTensor]) -> dict[str, ResidentTensor]:
        self.runs += 1
        return self.engine.run(feed)


@pytest.fixture(scope="module", params=[1, 2, 3])
def split(request: pytest.FixtureRequest) -> Iterator[FewShotModel]:
    """The shipped model as a CPU of so many cores runs it, but with all tokens of the supports."""
    with open_split(request.param, most_tokens=0) as model:
        yield model


def open_split(threads: int, most_tokens: int) -> FewShotModel:
    bundle = Bundle.load(DEFAULT_BUNDLE)
    manifest = replace(bundle.manifest, most_tokens=most_tokens)
    model = FewShotModel(manifest, *choose_engines(bundle, "onnxruntime", "fp32", threads))
    assert isinstance(model.network.head, SplitHead)
    return model


@pytest.fixture(scope="module")
def padded() -> Iterator[FewShotModel]:
    with padded_model() as model:
        assert isinstance(model.network.head, PaddedHead)
        yield model


@pytest.fixture(scope="module")
def supports(padded: FewShotModel) -> list[CachedSupport]:
    """Of different lengths, the first with the class token alone."""
    widths = (1, 100, 60, 30, 12)
    made = [padded.cache_support("a", picture(seed), mask(width)) for seed, width in enumerate(widths)]
    lengths = [support.kept.shape[1] for support in made]
    assert len(set(lengths)) == len(lengths)
    assert min(lengths) == 1
    return made


@pytest.mark.parametrize("shots", [(1,), (2,), (1, 1), (2, 1), (3, 1, 1)])
def test_supports_on_their_own_give_what_padded_runs_give(
    split: FewShotModel, padded: FewShotModel, supports: list[CachedSupport], shots: tuple[int, ...]
) -> None:
    starts = np.cumsum((0, *shots))
    classes = [tuple(supports[start : start + count]) for start, count in zip(starts, shots, strict=False)]
    tokens = padded.network.encode(picture(9))["tokens"].numpy()
    ours, theirs = split.network.compare(tokens, classes), padded.network.compare(tokens, classes)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
    np.testing.assert_allclose(ours.foreground(), theirs.foreground(), atol=1e-5)
    # The control: with one support less, the answer is another.
    if shots[0] > 1:
        less = padded.network.compare(tokens, [classes[0][:-1], *classes[1:]])
        assert np.abs(ours.scores - less.scores).max() > 1e-4

    wanted = np.arange(len(shots)) == len(shots) - 1
    some = ours.foreground(wanted)
    assert np.array_equal(some[wanted], ours.foreground()[wanted])
    assert not some[~wanted].any()
    assert np.array_equal(some[~wanted], theirs.foreground(wanted)[~wanted])


def test_a_support_has_no_more_tokens_than_the_manifest_says(
    padded: FewShotModel, supports: list[CachedSupport]
) -> None:
    tokens = padded.network.encode(picture(9))["tokens"].numpy()
    exact = padded.network.compare(tokens, [tuple(supports)]).foreground()
    assert max(support.kept.shape[1] for support in supports) > 1 + 16
    errors = []
    for most_tokens in (0, 16, 1):
        with open_split(1, most_tokens) as model:
            found = model.network.compare(tokens, [tuple(supports)])
            assert isinstance(model.network.head, SplitHead)
            longest = max(run.feed["count"].shape[0] for run in model.network.head._runs([tuple(supports)]))
            assert longest == (1 + most_tokens if most_tokens else max(s.kept.shape[1] for s in supports))
            errors.append(float(np.abs(found.foreground() - exact).max()))
    assert errors[0] < 1e-5 < errors[1] < errors[2]
    assert errors[1] < 0.05


def test_a_support_is_prepared_once_while_it_lives(supports: list[CachedSupport], padded: FewShotModel) -> None:
    tokens = padded.network.encode(picture(9))["tokens"].numpy()
    with open_split(1, 16) as model:
        head = model.network.head
        assert isinstance(head, SplitHead)
        first, other = (supports[0],), (replace(supports[1]),)
        head.compare(tokens, [first, other])
        prepared = head._runs([first, other])[-1].feed
        head.compare(tokens, [first])
        (again,) = head._runs([first])
        assert again.feed is prepared
        del other
        head._uploaded = None
        gc.collect()
        head.compare(tokens, [first, (supports[2],)])
        assert len(head._feeds) == 2


def test_no_class_is_compared_without_a_run(split: FewShotModel, padded: FewShotModel) -> None:
    tokens = padded.network.encode(picture(9))["tokens"].numpy()
    for model in (split, padded):
        nothing = model.network.compare(tokens, [])
        assert nothing.scores.shape == (0,)
        assert nothing.foreground().shape == (0, 32, 32)


def test_only_classes_that_are_drawn_cost_an_outline(supports: list[CachedSupport]) -> None:
    engines, choice = choose_engines(Bundle.load(DEFAULT_BUNDLE), "onnxruntime", "fp32", 1)
    outline, compare = Counted(engines["outline"]), Counted(engines["compare"])
    model = FewShotModel(
        Bundle.load(DEFAULT_BUNDLE).manifest, {**engines, "outline": outline, "compare": compare}, choice
    )
    frame = picture(9)
    model.bank.add("two", supports[:2])
    model.bank.add("one", supports[2:3])
    too_high = 0.999999
    assert model.predict(frame).scores.max() < too_high

    def outlines(low: str, **options: object) -> int:
        for name in model.classes:
            model.set_level(name, 1e-4 if name == low else too_high)
        outline.runs = compare.runs = 0
        found = model.predict(frame, **options)  # type: ignore[arg-type]
        assert compare.runs == 3
        assert found.present.tolist() == [name == low for name in model.classes]
        return outline.runs

    assert [outlines("two"), outlines("one"), outlines("none")] == [2, 1, 0]
    assert outlines("none", probabilities=True) == 3
    model.outlines = "plain"  # which draws absent classes as well
    assert outlines("none") == 3
    # A class that was on a moment ago is drawn though its score is below its level.
    model.outlines = "sharp"
    steady = SteadyAnswers()
    model.set_level("two", 1e-4)
    for now_s in (0.0, 1.0):
        model.predict(frame, over_time=steady.at(now_s))
    model.set_level("two", too_high)
    outline.runs = 0
    assert model.predict(frame, over_time=steady.at(1.1)).present.tolist() == [True, False]
    assert outline.runs == 2
    model.close()


def test_the_class_of_a_negative_is_judged_by_both_outlines_only_if_it_may_be_present(
    split: FewShotModel, padded: FewShotModel, supports: list[CachedSupport]
) -> None:
    frame = picture(9)
    answers = []
    for model in (split, padded):
        model.bank = model.bank.emptied()
        model.bank.add("a", supports[1:3])
        model.set_level("a", 1e-4)
        model.reject("a", frame, mask(50))
        found = model.predict(frame)
        answers.append((found.present.tolist(), found.label_map, found.scores))
        assert found.raw_scores is not None
        assert found.scores[0] < found.raw_scores[0]
        model.set_level("a", 0.9999)  # absent by the head's own score, which no negative has to lower
        absent = model.predict(frame)
        assert not absent.present.any()
        assert absent.raw_scores is not None
        assert absent.scores[0] == absent.raw_scores[0]
    np.testing.assert_allclose(answers[0][2], answers[1][2], atol=1e-4)
    assert answers[0][0] == answers[1][0]
    assert np.mean(answers[0][1] == answers[1][1]) > 0.999


def test_frames_of_several_threads_do_not_mix(split: FewShotModel, supports: list[CachedSupport]) -> None:
    tokens = [split.network.encode(picture(seed))["tokens"].numpy() for seed in range(20, 24)]
    classes = [tuple(supports[:3]), tuple(supports[3:])]
    alone = [split.network.compare(each, classes).scores for each in tokens]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: split.network.compare(each, classes).scores, tokens * 5))
    for scores, expected in zip(together, alone * 5, strict=True):
        np.testing.assert_array_equal(scores, expected)
    assert np.abs(alone[0] - alone[1]).max() > 1e-4


def test_frames_that_do_not_fill_the_last_block_are_compared_whole(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    with (
        FewShotModel(bundle.manifest, *choose_engines(bundle, "onnxruntime", "fp32", 1)) as split,
        padded_model(tiny_bundle) as padded,
    ):
        head = split.network.head
        assert isinstance(head, SplitHead)
        size = bundle.manifest.image_size
        support = padded.cache_support("a", picture(0), mask(60))
        tokens = padded.network.encode(np.resize(picture(9), (size, size, 3)))["tokens"].numpy()
        assert tokens.shape[2] % head._block_size
        ours, theirs = split.network.compare(tokens, [(support,)]), padded.network.compare(tokens, [(support,)])
        np.testing.assert_allclose(ours.foreground(), theirs.foreground(), atol=1e-5)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
        # The control: the last token counts.
        tokens = np.concatenate([tokens[:, :, :-1], -tokens[:, :, -1:]], axis=2)
        other = split.network.compare(tokens, [(support,)])
        assert np.abs(other.foreground() - theirs.foreground()).max() > 1e-4
