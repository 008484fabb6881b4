import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from fake_engine import FakeEngine
from padded_model import padded_model
from threadpoolctl import threadpool_info

from fsvit_edge.enroll.fit import measure_fit
from fsvit_edge.fewshot import head_runs
from fsvit_edge.fewshot.bank import MAX_CLASSES, SupportBank
from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.enrollment import Enrollment
from fsvit_edge.fewshot.heads import HeadAnswer, PaddedHead
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.support_masks import mask_from_box
from fsvit_edge.runtime.bundle import FORMAT_VERSION, GraphInfo, Manifest
from fsvit_edge.runtime.engines.base import Array, TensorSpec
from fsvit_edge.runtime.errors import (
    ArtifactError,
    FsvitEdgeError,
    InputError,
    ObjectTooSmallError,
)
from fsvit_edge.runtime.preprocess import resize_image, resize_mask
from fsvit_edge.runtime.presence_level import level_of_supports

SIDE, CHANNELS, TOKENS, DIM, MASK_SIDE, GRID = 8, 2, 4, 4, 4, 3
GUESSED = np.zeros((1, SIDE, SIDE), np.uint8)
GUESSED[:, 2:6, 2:6] = 1
STAGES = ("preprocess", "encoder", "head", "postprocess")


def encode(feed: dict[str, Array]) -> dict[str, Array]:
    """Four tokens: the mean color of each quarter of the picture, in two channels."""
    image = feed["image"].astype(np.float32) / 255
    quarters = image.reshape(1, 2, SIDE // 2, 2, SIDE // 2, 3).mean(axis=(2, 4)).reshape(1, 1, TOKENS, 3)
    tokens = np.concatenate([quarters, np.ones_like(quarters[..., :1])], axis=3)
    tokens = np.concatenate([tokens, 1 - tokens / 2], axis=1)
    return {"tokens": tokens, "class_token": tokens.mean(axis=2, keepdims=True)}


def cache(feed: dict[str, Array]) -> dict[str, Array]:
    """The class token and nine tokens, of which those are kept where the mask is set on a 3 x 3 grid."""
    used = feed["mask"] if feed["has_mask"][0] else GUESSED
    steps = np.arange(1, GRID**2 + 1, dtype=np.float32)[:, None] / GRID**2
    support = np.concatenate([feed["class_token"], feed["class_token"] * steps], axis=2)
    seen = resize_mask(used[0] != 0, GRID).reshape(1, -1).astype(np.float32)
    return {
        "support": support,
        "kept_mask": np.concatenate([np.ones((1, 1), np.float32), seen], axis=1),
        "pooled": support[:, :, 1:],
        "pooled_mask": seen,
        "used_mask": used,
    }


def judge(feed: dict[str, Array]) -> dict[str, Array]:
    """Tell presence and foreground by how far the frame's quarters are from what the mask kept, then average."""
    seen = feed["kept_mask"][:, None, :, None]
    support = (feed["kept"] * seen).sum(axis=2) / seen.sum(axis=2)
    support = 0.5 * (support + feed["kept"][:, :, 0])
    support = support + 0.1 * (feed["pooled"] * feed["pooled_mask"][:, None, :, None]).mean(axis=2)
    distance = np.abs(support[:, :, None] - feed["tokens"]).mean(axis=(1, 3))
    presence = 1 / (1 + np.exp(30 * (distance.mean(axis=1) - 0.25)))
    quarters = 1 / (1 + np.exp(30 * (distance - 0.25)))
    foreground = quarters.reshape(-1, 2, 2).repeat(MASK_SIDE // 2, axis=1).repeat(MASK_SIDE // 2, axis=2)
    averaged = np.tensordot(feed["averaging"], foreground, axes=1)
    return {
        "presence": (feed["averaging"] @ presence).astype(np.float32),
        "foreground": averaged.astype(np.float32),
    }


def specs(dtype: str = "float32", **shapes: tuple[int | str, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, shape, dtype) for name, shape in shapes.items())


class Fake:
    """A model of three fake engines; `fed`, `enrolled` and `seen` are what head, enrollment and encoder were fed.

    Args:
        limits: Of the head's engine.
        is_half: Encoder and head are engines in FP16, as TensorRT's; enrollment stays in FP32.
    """

    def __init__(self, limits: dict[str, int] | None = None, is_half: bool = False) -> None:
        self._float = half = "float16" if is_half else "float32"
        encoded = {"tokens": (1, CHANNELS, TOKENS, DIM), "class_token": (1, CHANNELS, 1, DIM)}
        cached = specs(
            support=(1, CHANNELS, 1 + GRID**2, DIM),
            kept_mask=(1, 1 + GRID**2),
            pooled=(1, CHANNELS, GRID**2, DIM),
            pooled_mask=(1, GRID**2),
        ) + specs("uint8", used_mask=(1, SIDE, SIDE))
        head_inputs = specs(
            half,
            tokens=encoded["tokens"],
            kept=("supports", CHANNELS, "kept_tokens", DIM),
            pooled=("supports", CHANNELS, GRID**2, DIM),
        ) + specs(
            kept_mask=("supports", "kept_tokens"), pooled_mask=("supports", GRID**2), averaging=("ways", "supports")
        )
        answers = specs(presence=("ways",), foreground=("ways", MASK_SIDE, MASK_SIDE))
        mask = specs("uint8", mask=(1, SIDE, SIDE)) + specs("bool", has_mask=(1,))
        self.fed: list[dict[str, Array]] = []
        self.enrolled: list[dict[str, Array]] = []
        self.seen: list[Array] = []
        image = specs("uint8", image=("batch", SIDE, SIDE, 3))
        self.encoder = FakeEngine(image, specs(half, **encoded), self._encode)
        self.enroll = FakeEngine(specs(**encoded) + mask, cached, self._cache)
        self.head = FakeEngine(head_inputs, answers, self._judge, limits)
        self.engines = {"encoder": self.encoder, "enroll": self.enroll, "head": self.head}
        graphs = {
            name: GraphInfo(f"{name}.onnx", name * 10, engine.inputs, engine.outputs)
            for name, engine in self.engines.items()
        }
        manifest = Manifest(
            FORMAT_VERSION, "fake", "none", SIDE, 4, 1, 2, GRID, MASK_SIDE, {}, 20, "fp32", graphs, {}, "a test"
        )
        self.model = FewShotModel(manifest, self.engines)

    def _encode(self, feed: dict[str, Array]) -> dict[str, Array]:
        self.seen.append(feed["image"])
        return {name: array.astype(self._float) for name, array in encode(feed).items()}

    def _cache(self, feed: dict[str, Array]) -> dict[str, Array]:
        self.enrolled.append(feed)
        return cache(feed)

    def _judge(self, feed: dict[str, Array]) -> dict[str, Array]:
        self.fed.append(feed)
        return judge(feed)


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture(scope="module")
def shipped() -> Iterator[FewShotModel]:
    with FewShotModel.load(threads=1) as model:
        yield model


@pytest.fixture
def real(shipped: FewShotModel) -> FewShotModel:
    """The shipped model with no class enrolled."""
    for name in shipped.classes:
        shipped.remove(name)
    return shipped


@pytest.fixture(params=["fake", "real"])
def model(request: pytest.FixtureRequest) -> FewShotModel:
    return Fake().model if request.param == "fake" else request.getfixturevalue("real")


def picture(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """Twelve fields around a color of its own for every seed."""
    rng = np.random.default_rng(seed)
    small = np.clip(rng.integers(0, 256, 3) + rng.integers(-90, 91, (3, 4, 3)), 0, 255).astype(np.uint8)
    return small.repeat(-(-height // 3), axis=0).repeat(-(-width // 4), axis=1)[:height, :width].copy()


def marked(where: tuple[slice, slice], height: int = 24, width: int = 32) -> np.ndarray:
    mask = np.zeros((height, width), np.bool_)
    mask[where] = True
    return mask


LEFT, CORNER, ALL = marked(np.s_[:, :16]), marked(np.s_[:12, :16]), marked(np.s_[:, :])
SMALL = marked(np.s_[90:110, 300:320], 200, 400)


FRAME = picture(99, 45, 61)


def test_the_score_of_a_class_is_the_mean_over_its_shots(fake: Fake) -> None:
    masks = [LEFT, CORNER, None, LEFT]
    alone = []
    for seed, mask in enumerate(masks):
        fake.model.enroll("one", [picture(seed)], [mask])
        alone.append(fake.model.predict(FRAME, probabilities=True))
        fake.model.remove("one")
    fake.model.enroll("single", [picture(0)], [masks[0]])
    fake.model.enroll("triple", [picture(seed) for seed in (1, 2, 3)], masks[1:])
    together = fake.model.predict(FRAME)
    scores = [float(p.scores[0]) for p in alone]
    assert np.ptp(scores) > 0.01
    np.testing.assert_allclose(together.scores, [scores[0], np.mean(scores[1:])], rtol=1e-5)


@pytest.mark.parametrize(("engine", "output"), [("head", "presence"), ("head", "foreground"), ("enroll", "support")])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_a_finite_number_is_a_fault_of_the_model(engine: str, output: str, wrong: float) -> None:
    fake = Fake()
    fake.model.enroll("a", [picture(1)])
    fake.model.predict(FRAME)  # the control
    compute = {"head": judge, "enroll": cache}[engine]

    def spoiled(feed: dict[str, Array]) -> dict[str, Array]:
        answer = compute(feed)
        return {**answer, output: np.full_like(answer[output], wrong)}

    fake.engines[engine]._function = spoiled
    with pytest.raises(FsvitEdgeError, match=r"^The model computed a value that is not a finite number \(of: "):
        fake.model.predict(FRAME) if engine == "head" else fake.model.enroll("b", [picture(2)])
    assert fake.model.classes == ("a",)


def test_every_support_weighs_one_over_the_shots_of_its_class(fake: Fake) -> None:
    shots = {"a": 1, "b": 3, "c": 2}
    for name, count in shots.items():
        fake.model.enroll(name, [picture(seed) for seed in range(count)], [CORNER, None, LEFT][:count])
    fake.fed.clear()
    fake.model.predict(FRAME)
    (feed,) = fake.fed
    averaging = feed["averaging"]
    assert averaging.shape == (3, 6)
    assert (averaging > 0).sum(axis=0).tolist() == [1] * 6
    for row, count in zip(averaging, shots.values(), strict=True):
        np.testing.assert_allclose(row[row > 0], [1 / count] * count)


def test_supports_of_unequal_length_are_padded_and_the_padding_is_marked(fake: Fake) -> None:
    fake.model.enroll("small", [picture(0)], [CORNER])
    fake.model.enroll("large", [picture(1)], [ALL])
    fake.model.predict(FRAME)
    (feed,) = fake.fed
    lengths = sorted(int(row.sum()) for row in feed["kept_mask"])
    assert lengths[0] < lengths[1] == feed["kept"].shape[2]
    for kept, mask in zip(feed["kept"], feed["kept_mask"], strict=True):
        assert (np.diff(mask) <= 0).all()
        assert not kept[:, mask == 0].any()
        assert kept[:, mask == 1].any(axis=(0, 2)).all()


def enroll_several(model: FewShotModel) -> None:
    model.enroll("a", [picture(1), picture(2)], [LEFT, CORNER])
    model.enroll("b", [picture(3)])
    model.enroll("c", [picture(4), picture(5), picture(6)], [None, CORNER, ALL])


def split_over_two(model: FewShotModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let three of the six supports of `enroll_several` share a run."""
    longest = max(s.kept.shape[1] for name in model.classes for s in model.bank.supports(name))
    one = head_runs.ATTENTION_MAPS_PER_TOKEN * model.network.num_tokens * longest * 4
    monkeypatch.setattr(head_runs, "LARGEST_TENSOR_BYTES", 3 * one)
    uploaded_anew(model)


def uploaded_anew(model: FewShotModel) -> PaddedHead:
    head = model.network.head
    assert isinstance(head, PaddedHead)
    head._uploaded = None
    return head


@pytest.mark.parametrize("kind", ["fake", "real"])
def test_supports_split_over_several_runs_answer_as_in_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Fake().model if kind == "fake" else padded_model()
    enroll_several(model)
    answers = []
    for runs in (1, 2, 6):
        if runs == 2:
            split_over_two(model, monkeypatch)
        elif runs == 6:
            monkeypatch.setattr(head_runs, "LARGEST_TENSOR_BYTES", 1)
            uploaded_anew(model)
        answers.append(model.predict(FRAME, probabilities=True))
        assert isinstance(model.network.head, PaddedHead)
        assert len(model.network.head._runs(model.bank.class_supports, model.network.num_tokens)) == runs
    whole, *split = answers
    for one in split:
        np.testing.assert_allclose(one.scores, whole.scores, atol=1e-5)
        np.testing.assert_allclose(one.foreground, whole.foreground, atol=1e-4)


def test_twenty_classes_of_five_shots_are_scored_in_bounded_runs() -> None:
    real = padded_model()
    one = real.cache_support("model", picture(0, 96, 128))
    one = replace(one, kept=np.resize(one.kept, (one.kept.shape[0], 40, one.kept.shape[2])))
    for way in range(20):
        real.bank.add(f"class {way}", [one] * 5)
    prediction = real.predict(FRAME)
    assert prediction.scores.shape == (20,)
    np.testing.assert_allclose(prediction.scores, prediction.scores[0], rtol=1e-4)
    assert isinstance(real.network.head, PaddedHead)
    runs = real.network.head._runs(real.bank.class_supports, real.network.num_tokens)
    sizes = [feed["kept"].shape[0] for _, feed in runs]
    assert sum(sizes) == 100
    per_support = head_runs.ATTENTION_MAPS_PER_TOKEN * real.network.num_tokens * 40 * 4
    assert max(sizes) * per_support <= head_runs.LARGEST_TENSOR_BYTES
    assert len(sizes) > 1


def test_supports_are_split_into_runs_that_fit_the_engine() -> None:
    free, bound = Fake(), Fake({"supports": 4, "ways": 3})
    answers = []
    for fake in (free, bound):
        enroll_several(fake.model)
        fake.fed.clear()
        answers.append(fake.model.predict(FRAME, probabilities=True))
    assert [len(feed["kept"]) for feed in free.fed] == [6]
    assert [len(feed["kept"]) for feed in bound.fed] == [4, 2]
    np.testing.assert_allclose(answers[1].scores, answers[0].scores, atol=1e-6)
    np.testing.assert_allclose(answers[1].foreground, answers[0].foreground, atol=1e-6)


def test_more_classes_than_the_engine_was_built_for_are_refused_before_any_run(tmp_path: Path) -> None:
    roomy, tight = Fake(), Fake({"ways": 3})
    for way in range(5):
        roomy.model.enroll(f"class {way}", [picture(way)])
    roomy.model.save_bank(tmp_path / "bank.safetensors")
    for way in (0, 1, 2, 2):
        tight.model.enroll(f"own {way}", [picture(way)])
    before = tight.model.predict(FRAME)
    tight.encoder.runs = 0
    for has, attempt, runs in (
        (4, lambda: tight.model.enroll("one more", [picture(0)]), 0),
        (5, lambda: tight.model.load_bank(tmp_path / "bank.safetensors"), 0),
        (5, lambda: tight.model.predict_with(FRAME, [roomy.model.bank]), 1),
    ):
        with pytest.raises(ArtifactError) as refused:
            attempt()
        assert refused.value.exit_code == 4
        assert str(refused.value) == (
            f"The head engine was built for at most 3 classes, the bank has {has}; rebuild it with: "
            f"fsvit-edge build-engine --max-ways {has}, and the options it was built with."
        )
        assert tight.encoder.runs == runs
    assert np.array_equal(tight.model.predict(FRAME).scores, before.scores)
    assert (tight.model.max_classes, roomy.model.max_classes) == (3, MAX_CLASSES)
    tight.model.remove("own 0")
    tight.model.enroll("one more", [picture(0)])


def test_engines_of_other_types_are_fed_their_types() -> None:
    full, half = Fake(), Fake(is_half=True)
    answers = []
    for fake in (full, half):
        enroll_several(fake.model)
        fake.fed.clear()
        answers.append(fake.model.predict(FRAME))
    enrolled, fed = (
        {name: array.dtype.name for name, array in feeds[0].items()} for feeds in (half.enrolled, half.fed)
    )
    assert enrolled == dict.fromkeys(("tokens", "class_token"), "float32") | {"mask": "uint8", "has_mask": "bool"}
    floats = dict.fromkeys(("kept_mask", "pooled_mask", "averaging"), "float32")
    assert fed == floats | dict.fromkeys(("tokens", "kept", "pooled"), "float16")
    np.testing.assert_allclose(answers[1].scores, answers[0].scores, atol=0.02)
    assert answers[1].scores.dtype == np.float32


def test_values_of_half_the_size_let_twice_as_many_supports_share_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for fake in (Fake(), Fake(is_half=True)):
        enroll_several(fake.model)
        split_over_two(fake.model, monkeypatch)
        fake.fed.clear()
        fake.model.predict(FRAME)
        sizes.append([len(feed["kept"]) for feed in fake.fed])
    assert sizes == [[3, 3], [6]]


def test_the_encoder_runs_once_per_picture_and_once_per_frame(fake: Fake) -> None:
    enroll_several(fake.model)
    judged = 3  # the pictures whose class had another
    assert (fake.encoder.runs, fake.enroll.runs, fake.head.runs) == (6, 6, judged)
    for _ in range(4):
        fake.model.predict(FRAME)
    assert (fake.encoder.runs, fake.enroll.runs, fake.head.runs) == (10, 6, judged + 4)


def test_supports_are_uploaded_once_and_again_only_after_a_change(fake: Fake, tmp_path: Path) -> None:
    enroll_several(fake.model)
    fake.head.uploads = 0
    per_run = 5
    for _ in range(4):
        fake.model.predict(FRAME)
    assert fake.head.uploads == per_run
    fake.model.rename("a", "z")
    fake.model.predict(FRAME)
    assert fake.head.uploads == per_run
    fake.model.save_bank(tmp_path / "bank.safetensors")
    for change in (
        lambda: fake.model.remove("b"),
        lambda: fake.model.enroll("d", [picture(7)]),
        lambda: fake.model.load_bank(tmp_path / "bank.safetensors"),
        lambda: fake.model.remove_support("c", 1),
        lambda: fake.model.bank.add("a copy", fake.model.bank.supports("c")),  # behind the model's back
    ):
        fake.head.uploads = 0
        change()
        fake.model.predict(FRAME)
        fake.model.predict(FRAME)
        assert fake.head.uploads == per_run
    assert fake.encoder.uploads == fake.enroll.uploads == 0


def test_one_frame_is_scored_by_several_banks_with_one_run_of_the_encoder(fake: Fake) -> None:
    model = fake.model
    supports = [model.cache_support("a", picture(seed), mask) for seed, mask in enumerate((LEFT, None, CORNER))]
    assert model.classes == ()
    banks = [SupportBank(model.bank.identity) for _ in range(3)]
    banks[0].add("a", supports[:1])
    banks[1].add("b", supports[1:])
    banks[1].add("a", supports[:1])
    model.enroll("own", [picture(7)])
    before = model.predict(FRAME)
    fake.encoder.runs = 0
    answers = model.predict_with(FRAME, banks)
    assert fake.encoder.runs == 1
    assert model.classes == ("own",)
    assert [answer.classes for answer in answers] == [("a",), ("b", "a"), ()]
    for bank, answer in zip(banks, answers, strict=True):
        alone = Fake().model
        alone.bank = bank
        wanted = alone.predict(FRAME)
        assert np.array_equal(answer.scores, wanted.scores)
        assert np.array_equal(answer.present, wanted.present)
        assert np.array_equal(answer.label_map, wanted.label_map)
    assert np.array_equal(model.predict(FRAME).scores, before.scores)


def test_cache_support_returns_what_enrollment_keeps(fake: Fake) -> None:
    cached = fake.model.cache_support("a", picture(1), CORNER)
    fake.model.enroll("a", [picture(1)], [CORNER])
    (enrolled,) = fake.model.bank.supports("a")
    assert is_same(cached, enrolled)
    with pytest.raises(InputError, match="The mask of 'a' is empty"):
        fake.model.cache_support("a", picture(1), ~ALL)


def is_same(one: CachedSupport, other: CachedSupport, but: str = "") -> bool:
    return all(np.array_equal(value, getattr(other, field)) for field, value in vars(one).items() if field != but)


def cropping(fake: Fake, factor: float = 2.0) -> FewShotModel:
    fake.model.network.manifest = replace(fake.model.manifest, support_crop=factor)
    return fake.model


def test_a_small_thing_is_seen_in_a_crop_around_its_mask(fake: Fake) -> None:
    image, mask = picture(1, 200, 400), SMALL
    rows, columns = slice(80, 120), slice(270, 350)
    enrollment = cropping(fake).enroll("a", [image], [mask])
    (cropped,) = fake.model.bank.supports("a")
    assert np.array_equal(fake.enrolled[-1]["mask"][0] != 0, resize_mask(mask[rows, columns], SIDE) != 0)
    assert enrollment.mask_cover == (pytest.approx(400 / 80_000),)
    assert np.array_equal(enrollment.masks[0], mask)
    assert np.array_equal(cropped.thumbnail, image[rows, columns])
    assert cropped.thumbnail_mask.shape == cropped.thumbnail.shape[:2]
    by_hand = cropping(fake, 0.0).cache_support("a", image[rows, columns], mask[rows, columns])
    assert is_same(cropped, by_hand)
    whole = fake.model.cache_support("a", image, mask)
    assert (cropped.kept.shape[1], whole.kept.shape[1]) == (2, 1)
    assert whole.thumbnail.shape == (48, 96, 3)


def test_a_large_thing_is_seen_in_the_whole_picture(fake: Fake) -> None:
    cropping(fake).enroll("a", [picture(1)], [LEFT])
    fake.model.enroll("a", [picture(1)])
    (with_mask, by_name) = fake.model.bank.supports("a")
    assert np.array_equal(with_mask.thumbnail, picture(1))
    assert np.array_equal(by_name.thumbnail, picture(1))
    assert fake.encoder.runs == 2


def test_by_name_alone_a_small_guess_is_encoded_again_in_a_crop(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    guess = np.zeros_like(GUESSED)
    guess[:, 2:4, 4:6] = 1
    monkeypatch.setitem(globals(), "GUESSED", guess)
    image = picture(1, 160, 320)
    enrollment = cropping(fake).enroll("a", [image])
    (support,) = fake.model.bank.supports("a")
    assert (fake.encoder.runs, support.has_mask) == (2, False)
    assert [bool(feed["has_mask"][0]) for feed in fake.enrolled] == [False, True]
    found = marked(np.s_[40:80, 160:240], 160, 320)
    assert np.array_equal(enrollment.masks[0], found)
    by_hand = cropping(fake, 0.0).cache_support("a", image[20:100, 120:280], found[20:100, 120:280])
    assert is_same(support, by_hand, but="has_mask")


def test_a_thing_without_a_token_is_refused(fake: Fake) -> None:
    fake.model.enroll("a", [picture(0)], [LEFT])
    speck = marked(np.s_[:1, :1])
    with pytest.raises(ObjectTooSmallError, match="Picture 2 of 'b': the object is too small or too thin") as caught:
        fake.model.enroll("b", [picture(0), picture(1)], [LEFT, speck])
    assert (caught.value.index, caught.value.exit_code) == (1, 2)
    assert fake.model.classes == ("a",)
    with pytest.raises(ObjectTooSmallError, match="Picture 1 of 'a'"):
        fake.model.enroll("a", [picture(0)], [speck])
    assert len(fake.model.bank.supports("a")) == 1
    # An evaluation asks for such supports as well.
    assert fake.model.cache_support("a", picture(1), speck).kept.shape[1] == 1


def on_gravel(side: int, top: int, left: int) -> tuple[np.ndarray, np.ndarray]:
    """A cat's face of a few pixels on a photograph of gravel, 1280 x 720, and its mask."""
    ground = cv2.resize(cv2.cvtColor(skimage.data.gravel(), cv2.COLOR_GRAY2RGB), (1280, 720))
    mask = np.zeros((720, 1280), np.bool_)
    inside = np.s_[top : top + side, left : left + side]
    face = skimage.data.chelsea()[20:230, 70:300]
    ground[inside], mask[inside] = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA), True
    return ground, mask


def test_a_thing_of_20_pixels_is_learned_from_a_crop(real: FewShotModel, monkeypatch: pytest.MonkeyPatch) -> None:
    support, mask = on_gravel(20, 403, 607)
    closer, truth = on_gravel(200, 200, 400)
    answers = {}
    monkeypatch.setattr(real, "outlines", "plain")  # objectness finds what stands on gravel from any support
    for factor in (0.0, 1.5):
        monkeypatch.setattr(real.network, "manifest", replace(real.manifest, support_crop=factor))
        bank = SupportBank(real.bank.identity)
        bank.add("cat", [real.cache_support("cat", support, mask)])
        (answers[factor],) = real.predict_with(closer, [bank])
    whole, cropped = (measure_fit(answers[factor], "cat", truth) for factor in (0.0, 1.5))
    assert whole.iou < 0.2  # the control: without the crop it keeps no token of the thing, and gravel is taken for it
    assert cropped.iou > max(0.4, 2 * whole.iou)
    assert cropped.is_present


def test_a_box_is_enrolled_as_its_mask(fake: Fake) -> None:
    box = (4, 2, 28, 22)
    boxed = fake.model.enroll("boxed", [picture(0), picture(1)], boxes=[box, None])
    fake.model.enroll("masked", [picture(0)], [mask_from_box((24, 32), box)])
    assert np.array_equal(boxed.masks[0], mask_from_box((24, 32), box))
    (one, guessed), (other,) = (fake.model.bank.supports(name) for name in ("boxed", "masked"))
    assert (one.has_mask, guessed.has_mask) == (True, False)
    assert is_same(one, other)
    mixed = fake.model.enroll("mixed", [picture(0), picture(1)], [None, LEFT], [box, None])
    assert np.array_equal(mixed.masks[1], LEFT)


@pytest.mark.parametrize(
    ("masks", "boxes", "text"),
    [
        (None, [(4, 2, 28, 22)] * 2, "1 picture but 2 boxes; give one for each"),
        ([LEFT], [(4, 2, 28, 22)], "Picture 1 of 'a' has both a mask and a box; give one of them"),
        (None, [(4, 2, 28)], r"must be \(left, top, right, bottom\) in pixels; got \(4, 2, 28\)"),
        (None, ["4,2,28,22"], "must be .* in pixels; got '4,2,28,22'"),
        (None, [(4, 2, float("nan"), 22)], "must be .* in pixels"),
        (None, [7], "must be .* in pixels; got 7"),
        (None, [(28, 22, 4, 2)], "contains less than 4 x 4 pixels of the 32 x 24 picture"),
        (None, [(40, 2, 60, 22)], "contains less than 4 x 4 pixels of the 32 x 24 picture"),
    ],
)
def test_a_box_that_cannot_be_used_is_one_sentence(fake: Fake, masks: Any, boxes: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        fake.model.enroll("a", [picture(0)], masks, boxes)
    assert fake.model.classes == ()


def test_classes_are_added_and_removed_between_frames(fake: Fake) -> None:
    model = fake.model
    enroll_several(model)
    before = dict(zip(model.classes, model.predict(FRAME).scores, strict=True))
    model.remove("b")
    after = model.predict(FRAME)
    assert after.classes == model.classes == ("a", "c")
    np.testing.assert_allclose(after.scores, [before["a"], before["c"]], rtol=1e-6)
    model.rename("a", "z")
    renamed = model.predict(FRAME)
    assert renamed.classes == ("z", "c")
    assert np.array_equal(renamed.scores, after.scores)
    assert np.array_equal(renamed.label_map, after.label_map)
    model.enroll("b", [picture(3)])
    again = model.predict(FRAME)
    assert again.classes == ("z", "c", "b")
    np.testing.assert_allclose(again.scores, [before["a"], before["c"], before["b"]], rtol=1e-6)
    assert after.classes == ("a", "c")


def kept(model: FewShotModel, name: str) -> tuple[int, ...]:
    """Image tokens that each support of a class has in the bank, without the class token."""
    return tuple(support.kept.shape[1] - 1 for support in model.bank.supports(name))


def test_more_pictures_make_more_shots_of_the_same_class(fake: Fake) -> None:
    first = fake.model.enroll("a", [picture(0)], [LEFT])
    second = fake.model.enroll("a", [picture(1), picture(2)], [CORNER, None])
    assert first == Enrollment("a", 1, (0.5,), kept(fake.model, "a")[:1], first.masks)
    assert second == Enrollment("a", 3, (0.25, 0.25), kept(fake.model, "a")[1:], second.masks)
    assert fake.model.classes == ("a",)


def test_without_a_class_there_is_an_empty_answer(model: FewShotModel) -> None:
    prediction = model.predict(FRAME, probabilities=True)
    assert prediction.classes == ()
    assert prediction.scores.shape == prediction.present.shape == (0,)
    assert (prediction.scores.dtype, prediction.present.dtype) == (np.float32, np.bool_)
    assert prediction.label_map.shape == FRAME.shape[:2]
    assert not prediction.label_map.any()
    assert prediction.foreground is not None
    assert prediction.foreground.shape == (0, *FRAME.shape[:2])
    assert tuple(prediction.latency_ms) == STAGES


def test_without_a_class_the_head_does_not_run(fake: Fake) -> None:
    fake.model.predict(FRAME)
    fake.model.enroll("a", [picture(0)])
    fake.model.remove("a")
    fake.model.predict(FRAME)
    assert fake.head.runs == 0


def test_a_mask_reaches_the_graph_and_a_name_alone_uses_the_guess(fake: Fake) -> None:
    fake.model.enroll("masked", [picture(0)], [LEFT])
    fake.model.enroll("named", [picture(0)])
    fake.model.enroll("both", [picture(0), picture(0)], [None, LEFT])
    has_mask = {n: [s.has_mask for s in fake.model.bank.supports(n)] for n in fake.model.classes}
    assert has_mask == {"masked": [True], "named": [False], "both": [False, True]}
    masked, named = (fake.model.bank.supports(name)[0] for name in ("masked", "named"))
    seen = resize_mask(LEFT, SIDE) != 0
    assert np.array_equal(masked.pooled_mask, resize_mask(seen, GRID).ravel() != 0)
    assert np.array_equal(named.pooled_mask, resize_mask(GUESSED[0] != 0, GRID).ravel() != 0)
    for one in (masked, named):
        assert one.kept.shape == (CHANNELS, 1 + int(one.pooled_mask.sum()), DIM)


@pytest.mark.parametrize("scale", [np.True_, np.uint8(1), np.uint8(255), np.float32(0.2)], ids=repr)
def test_everything_but_zero_is_foreground_in_a_mask(fake: Fake, scale: Any) -> None:
    assert fake.model.enroll("a", [picture(0)], [LEFT * scale]).mask_cover == (0.5,)


def test_pictures_and_masks_may_be_stacked(fake: Fake) -> None:
    masks = [LEFT, CORNER]
    enrollment = fake.model.enroll("a", np.stack([picture(0), picture(1)]), np.stack(masks))
    assert enrollment == Enrollment("a", 2, (0.5, 0.25), kept(fake.model, "a"), enrollment.masks)
    assert all(np.array_equal(*pair) for pair in zip(enrollment.masks, masks, strict=True))


def test_a_cached_support_is_stored_in_fp16_with_a_small_picture(fake: Fake) -> None:
    large = picture(0, 500, 300)
    fake.model.enroll("a", [large], [marked(np.s_[:, :150], 500, 300)])
    (support,) = fake.model.bank.supports("a")
    assert (support.kept.dtype, support.pooled.dtype) == (np.float16, np.float16)
    assert (support.pooled.shape, support.pooled_mask.shape) == ((CHANNELS, GRID**2, DIM), (GRID**2,))
    assert (support.thumbnail.dtype, support.thumbnail.shape) == (np.uint8, (96, 58, 3))


def fail(_: object) -> None:
    raise FsvitEdgeError("the graph failed")


def test_a_failed_enrollment_leaves_the_classes_as_they_were(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    enroll_several(fake.model)
    before = fake.model.predict(FRAME)
    fake.encoder.runs = fake.enroll.runs = 0
    for name, images, masks, reason in (
        ("new", [picture(0), picture(1)[..., 0]], None, "The picture of 'new' must be an RGB picture, uint8 of shape"),
        ("a", [picture(0), picture(1)], [LEFT, ~ALL], "The mask of 'a' is empty"),
        (" new", [picture(0)], None, "A class name must be"),
    ):
        with pytest.raises(InputError, match=reason):
            fake.model.enroll(name, images, masks)
    assert (fake.encoder.runs, fake.enroll.runs) == (0, 0)  # refused before anything was computed
    monkeypatch.setattr(fake.enroll, "_function", lambda feed: cache(feed) if fake.enroll.runs < 2 else fail(feed))
    with pytest.raises(FsvitEdgeError, match="the graph failed"):
        fake.model.enroll("a", [picture(0), picture(1)])
    assert fake.enroll.runs == 2
    after = fake.model.predict(FRAME)
    assert after.classes == before.classes
    assert np.array_equal(after.scores, before.scores)


def test_a_failed_load_leaves_the_classes_as_they_were(fake: Fake, real: FewShotModel, tmp_path: Path) -> None:
    fake.model.enroll("a", [picture(0)])
    fake.model.save_bank(tmp_path / "fake.safetensors")
    (tmp_path / "text.safetensors").write_bytes(b"no bank")
    bank = real.bank
    for name, reason in (
        ("text", "is damaged or not a safetensors file"),
        ("none", "does not exist"),
        ("fake", "was made with a different image size: 8, but this bundle has"),
    ):
        with pytest.raises(ArtifactError, match=reason):
            real.load_bank(str(tmp_path / f"{name}.safetensors"))
    assert real.bank is bank


def test_a_frame_that_is_not_a_picture_is_refused(fake: Fake) -> None:
    gray: Any = picture(0)[..., 0]
    for act in (lambda: fake.model.predict(gray), lambda: fake.model.predict_with(gray, [])):
        with pytest.raises(
            InputError, match=r"^The frame must be an RGB picture, uint8 of shape .*; got uint8 \(24, 32\)"
        ):
            act()
    assert fake.encoder.runs == 0


@pytest.mark.parametrize(
    ("images", "masks", "reason"),
    [
        ([picture(0)], [LEFT[:, 1:]], "as large as its picture, (24, 32) (height, width); got (24, 31)"),
        ([picture(0)], [LEFT.T], "got (32, 24)"),
        ([picture(0)], [LEFT[..., None]], "got (24, 32, 1)"),
        ([picture(0)], [~ALL], "The mask of 'cat' is empty; mark the object"),
        ([picture(0)], [], "1 picture but 0 masks; give one for each"),
        ([picture(0)], [None, None], "1 picture but 2 masks; give one for each"),
        ([], None, "Class 'cat' needs at least one picture"),
        ([], [], "Class 'cat' needs at least one picture"),
        (picture(0), None, "The picture of 'cat' must be an RGB picture"),  # a picture, not a list
    ],
)
def test_pictures_and_masks_that_do_not_fit_are_refused(fake: Fake, images: Any, masks: Any, reason: str) -> None:
    with pytest.raises(InputError) as refused:
        fake.model.enroll("cat", images, masks)
    assert reason in str(refused.value)
    assert fake.model.classes == ()


SIZES = [(1, 1), (1, 200), (200, 1), (2, 2), (3, 500), (45, 61), (120, 239), (128, 128), (481, 641)]


@pytest.mark.parametrize("size_hw", SIZES, ids=str)
def test_supports_and_frames_may_have_any_size(real: FewShotModel, size_hw: tuple[int, int]) -> None:
    enrollment = real.enroll("a", [picture(1, *size_hw)], [np.ones(size_hw, np.bool_)])
    assert enrollment == Enrollment("a", 1, (1.0,), (144,), enrollment.masks)
    real.enroll("b", [picture(2)])
    frame = picture(3, *size_hw)
    before = frame.copy()
    prediction = real.predict(frame, probabilities=True)
    assert np.array_equal(frame, before)
    assert prediction.classes == ("a", "b")
    assert (prediction.scores.dtype, prediction.scores.shape) == (np.float32, (2,))
    assert ((prediction.scores > 0) & (prediction.scores < 1)).all()
    assert (prediction.present.dtype, prediction.present.tolist()) == (np.bool_, (prediction.scores > 0.5).tolist())
    assert (prediction.label_map.dtype, prediction.label_map.shape) == (np.uint8, size_hw)
    assert prediction.label_map.max() <= 2
    assert prediction.foreground is not None
    assert (prediction.foreground.dtype, prediction.foreground.shape) == (np.float32, (2, *size_hw))


def test_the_same_frame_gets_the_same_answer_and_probabilities_only_on_request(real: FewShotModel) -> None:
    real.enroll("a", [picture(1)], [LEFT])
    without = real.predict(FRAME)
    first, _, third = (real.predict(frame, probabilities=True) for frame in (FRAME, picture(5), FRAME))
    assert without.foreground is None
    assert first.foreground is not None
    assert np.array_equal(first.foreground, third.foreground)
    for other in (without, third):
        assert np.array_equal(first.scores, other.scores)
        assert np.array_equal(first.label_map, other.label_map)


def test_the_fake_model_has_pixels_of_every_kind(fake: Fake) -> None:
    """Otherwise the comparisons above would compare empty maps."""
    enroll_several(fake.model)
    seen = set()
    for seed in range(20):
        seen |= set(np.unique(fake.model.predict(picture(seed)).label_map).tolist())
    assert seen == {0, 1, 2, 3}


def test_a_class_is_scored_on_its_own(real: FewShotModel) -> None:
    real.enroll("a", [picture(1)], [LEFT])
    alone = real.predict(FRAME, probabilities=True)
    real.enroll("b", [picture(2)], [CORNER])
    beside = real.predict(FRAME, probabilities=True)
    np.testing.assert_allclose(beside.scores[:1], alone.scores, atol=1e-5)
    np.testing.assert_allclose(beside.foreground[:1], alone.foreground, atol=1e-4)


def test_a_view_of_a_frame_is_scored_like_its_copy(real: FewShotModel) -> None:
    real.enroll("a", [picture(1)], [LEFT])
    side = real.manifest.image_size
    for bgr in (picture(3), picture(3, side, side)):
        view = bgr[..., ::-1]
        assert np.array_equal(real.predict(view).scores, real.predict(view.copy()).scores)


def test_the_encoder_is_waited_for_so_that_its_time_is_not_the_heads(fake: Fake) -> None:
    for _ in range(3):
        fake.model.predict(FRAME)
    assert fake.encoder.waits == 3


def test_each_stage_is_timed_in_its_order(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    enroll_several(fake.model)
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) ** 2)
    latency_ms = fake.model.predict(FRAME).latency_ms
    # The head's are two: comparing, and the outlines of what may be there.
    assert list(latency_ms.items()) == list(zip(STAGES, (1e3, 3e3, 5e3 + 7e3, 9e3), strict=True))


def test_numpys_threads_are_limited_only_while_a_frame_is_scored(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    inside: list[int] = []

    def watch(feed: dict[str, Array]) -> dict[str, Array]:
        inside.extend(threads())
        return encode(feed)

    before = threads()
    monkeypatch.setattr(fake.encoder, "_function", watch)
    fake.model.predict(FRAME)
    assert inside == [1] * len(before)
    assert threads() == before


def test_the_encoder_gets_the_preprocessed_picture(fake: Fake) -> None:
    fake.model.enroll("a", [picture(1)])
    fake.model.predict(FRAME)
    for seen, given in zip(fake.seen, (picture(1), FRAME), strict=True):
        assert np.array_equal(seen[0], resize_image(given, SIDE))


def test_closing_closes_every_engine_and_may_be_repeated(fake: Fake) -> None:
    with fake.model as model:
        assert model is fake.model
        assert not fake.encoder.closed
    model.close()
    assert [engine.closed for engine in fake.engines.values()] == [True] * 3


def test_an_encoder_of_unknown_size_is_refused(fake: Fake) -> None:
    unknown = specs(tokens=("batch", CHANNELS, "tokens", DIM)) + fake.encoder.outputs[1:]
    encoder = FakeEngine(fake.encoder.inputs, unknown, encode)
    with pytest.raises(ArtifactError, match="or output 'tokens' has an unknown size 'tokens'"):
        FewShotModel(fake.model.manifest, fake.engines | {"encoder": encoder})


def test_the_identity_of_the_bank_is_that_of_the_bundle(real: FewShotModel) -> None:
    identity = real.bank.identity
    manifest = real.manifest
    assert identity.encoder_sha256 == manifest.graphs["encoder"].sha256
    assert (identity.image_size, identity.precision) == (manifest.image_size, manifest.precision)
    assert json.dumps(vars(identity))


# ------------------------------------------------------------------------------------------------- the prototype head


def test_runs_for_the_prototype_head_never_split_a_class_that_fits() -> None:
    def runs(counts: tuple[int, ...], size: int) -> list[list[int]]:
        shots: Any = [(way, None) for way, count in enumerate(counts) for _ in range(count)]
        return [[way for way, _ in run] for run in head_runs.whole_classes(shots, size)]

    assert runs((2, 1, 3), 100) == [[0, 0, 1, 2, 2, 2]]
    assert runs((2, 1, 3), 3) == [[0, 0, 1], [2, 2, 2]]
    assert runs((2, 2, 2), 3) == [[0, 0], [1, 1], [2, 2]]
    assert runs((5, 1), 2) == [[0, 0], [0, 0], [0, 1]]
    assert runs((1, 1), 1) == [[0], [1]]


# ------------------------------------------------------------------------------------------------------------- levels


def score_alone(fake: Fake, supports: list[CachedSupport], image: np.ndarray) -> float:
    """P(present) in a picture by a class of these supports."""
    bank = fake.model.bank.emptied()
    bank.add("it", supports)
    return float(fake.model.predict_with(image, [bank])[0].scores[0])


def test_a_new_picture_is_scored_by_the_existing_supports_of_its_class(fake: Fake) -> None:
    fake.model.enroll("a", [picture(0)], [CORNER])
    fake.model.enroll("a", [picture(1), picture(2)], [LEFT, None])
    first, second, third = supports = fake.model.bank.supports("a")
    assert first.loo_score is None
    assert second.loo_score == pytest.approx(score_alone(fake, [first], picture(1)))
    assert third.loo_score == pytest.approx(score_alone(fake, [first, second], picture(2)))
    assert second.loo_score != pytest.approx(third.loo_score, abs=1e-3)
    level = level_of_supports(0.5, [one.loo_score for one in supports])
    assert fake.model.bank.level("a") == level != 0.5
    prediction = fake.model.predict(FRAME)
    assert prediction.levels.dtype == np.float32
    assert prediction.levels.tolist() == [np.float32(level)]
    assert np.array_equal(prediction.present, prediction.scores > prediction.levels)


def test_pictures_enrolled_together_and_one_by_one_give_the_same_level(fake: Fake) -> None:
    for seed in range(3):
        fake.model.enroll("singly", [picture(seed)])
    fake.model.enroll("together", [picture(seed) for seed in range(3)])
    assert fake.model.bank.level("singly") == fake.model.bank.level("together") != 0.5


def test_at_most_five_supports_score_a_new_picture(fake: Fake) -> None:
    fake.model.enroll("a", [picture(seed) for seed in range(14)])
    assert [len(feed["kept"]) for feed in fake.fed] == [1, 2, 3, 4, 5, 3, 4, 4, 5, 5, 4, 4, 5]


def test_a_level_set_by_hand_is_used_and_stays(fake: Fake) -> None:
    fake.model.enroll("a", [picture(0)], level=0.9)
    assert fake.model.predict(FRAME).levels.tolist() == [np.float32(0.9)]
    fake.model.enroll("a", [picture(1)])
    assert fake.model.bank.level("a") == 0.9
    score = float(fake.model.predict(FRAME).scores[0])
    for level, is_present in ((score - 0.01, True), (score + 0.01, False)):
        fake.model.set_level("a", level)
        assert fake.model.predict(FRAME).present.tolist() == [is_present]
        assert fake.model.predict_with(FRAME, [fake.model.bank])[0].present.tolist() == [is_present]
    fake.model.set_level("a", None)
    assert fake.model.bank.level_source("a") == "own pictures"


def test_one_level_for_all_also_covers_new_classes_and_is_not_saved(fake: Fake, tmp_path: Path) -> None:
    fake.model.enroll("a", [picture(0)], level=0.9)
    fake.model.set_level_for_all(0.3)
    fake.model.enroll("b", [picture(1)])
    assert fake.model.predict(FRAME).levels.tolist() == [np.float32(0.3)] * 2
    fake.model.save_bank(tmp_path / "bank.safetensors")
    assert SupportBank.load(tmp_path / "bank.safetensors").levels.tolist() == [np.float32(0.9), 0.5]
    fake.model.set_level_for_all(None)
    assert fake.model.predict(FRAME).levels.tolist() == [np.float32(0.9), 0.5]


def test_a_level_out_of_range_is_refused_before_anything_is_enrolled(fake: Fake) -> None:
    for act in (lambda: fake.model.enroll("a", [picture(0)], level=1.5), lambda: fake.model.set_level_for_all(1.5)):
        with pytest.raises(
            InputError, match=r"^The level of a class must be between 0 and 1, both excluded; got 1\.5\.$"
        ):
            act()
    with pytest.raises(InputError, match="'a' is not enrolled"):
        fake.model.set_level("a", 0.5)
    assert (fake.model.classes, fake.encoder.runs) == ((), 0)


def test_the_level_of_the_bundle_is_that_of_classes_with_one_support(fake: Fake) -> None:
    manifest = replace(fake.model.manifest, presence_level=0.62)
    model = FewShotModel(manifest, fake.engines)
    model.enroll("a", [picture(0)])
    assert (model.bank.level("a"), model.bank.level_source("a")) == (0.62, "default")
    assert model.predict(FRAME).levels.tolist() == [np.float32(0.62)]
    bank = model.bank.emptied()
    bank.add("a", [model.cache_support("a", picture(0))])
    assert model.predict_with(FRAME, [bank])[0].levels.tolist() == [np.float32(0.62)]


def test_a_score_that_rounding_lifts_above_one_is_stored_as_one(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = fake.model.network.compare

    def lifted(*arguments: Any) -> HeadAnswer:
        found = compare(*arguments)
        return replace(found, scores=np.full_like(found.scores, 1 + 1e-6))

    monkeypatch.setattr(fake.model.network, "compare", lifted)
    fake.model.enroll("a", [picture(0), picture(1)])
    assert fake.model.bank.supports("a")[1].loo_score == 1.0
    fake.model.save_bank(tmp_path / "bank.safetensors")
    fake.model.load_bank(tmp_path / "bank.safetensors")


@pytest.mark.parametrize("copies", [True, False])
def test_rejecting_reads_no_output_of_the_encoder_after_its_next_run(
    fake: Fake, copies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.model.enroll("one", [picture(0)], [LEFT])
    fake.model.learn_scene([picture(1)])
    runs = fake.encoder.runs
    if copies:
        assert fake.model.reject("one", picture(0), CORNER).negatives == 1
        assert fake.encoder.runs == runs + 2  # the picture, and that of the scene
    else:
        monkeypatch.setattr("fsvit_edge.fewshot.predictor.copy_on_host", lambda encoded: encoded)
        with pytest.raises(AssertionError, match="read after a later run"):
            fake.model.reject("one", picture(0), CORNER)
