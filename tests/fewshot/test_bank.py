import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fsvit_edge.fewshot.bank import MAX_CLASSES, MAX_NEGATIVES, SupportBank
from fsvit_edge.fewshot.bank_class import MAX_SHOTS, MAX_SUPPORTS
from fsvit_edge.fewshot.bank_file import digest_of
from fsvit_edge.fewshot.cached_support import CachedSupport, Negative
from fsvit_edge.fewshot.decide import NEGATIVE_MARGIN
from fsvit_edge.fewshot.identity import EncoderIdentity, HeadIdentity
from fsvit_edge.fewshot.names import MAX_NAME_LENGTH, quoted
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.review_items import ReviewItem
from fsvit_edge.fewshot.scene import MAX_SCENE_FRAMES
from fsvit_edge.fewshot.zones import MAX_ZONES, Zone, parse_zone, without_zone
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.presence_level import level_of_supports

CHANNELS, DIM = 2, 4
IDENTITY = EncoderIdentity("nano", "ab" * 32, 32, CHANNELS, DIM, "fp32")
HEAD = HeadIdentity("ef" * 32, 0.25)
HEADER = "fsvit-edge-bank"
ZONES = (parse_zone("Tür 1=0,0,1,0,0.1,0.7"), parse_zone("left=0,0,0.5,0,0.5,1,0,1"))
Change = Callable[[dict[str, Any], dict[str, np.ndarray]], object]


def support(seed: int, tokens: int = 3, has_mask: bool = True) -> CachedSupport:
    rng = np.random.default_rng(seed)
    return CachedSupport(
        kept=rng.standard_normal((CHANNELS, tokens, DIM)).astype(np.float16),
        pooled=rng.standard_normal((CHANNELS, 9, DIM)).astype(np.float16),
        pooled_mask=rng.random(9) > 0.5,
        thumbnail=rng.integers(0, 256, (5, 6, 3), dtype=np.uint8),
        thumbnail_mask=rng.random((5, 6)) > 0.5,
        has_mask=has_mask,
        loo_score=None if seed == 0 else float(rng.random()),
        objectness_weight=float(rng.uniform(0, 2)),
    )


def filled(identity: EncoderIdentity = IDENTITY) -> SupportBank:
    bank = SupportBank(identity, HEAD)
    bank.add("cat", [support(0), support(1, tokens=1, has_mask=False)])
    bank.add("Größe 猫", [support(2, tokens=7)])
    bank.set_level("Größe 猫", 0.8125)
    bank.add_negative("cat", Negative(support(3, tokens=5), 0.75))
    bank.set_scene([b"first", b"second"])
    bank.set_scene_scores("cat", [0.25, 0.75])
    bank.review = (
        ReviewItem(3, "cat", 0.5, 0.25, 1.5, b"doubtful", "no"),
        ReviewItem(5, "Größe 猫", 0.75, 0.8125, 2.5, b"doubtful"),
    )
    bank.zones = ZONES
    return bank


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bank.safetensors"


def content(bank: SupportBank) -> list[object]:
    """All of a bank, to compare it bit by bit."""
    found: list[object] = [bank.identity, bank.head, bank.scene, bank.negative_margins, bank.review, bank.zones]
    for name in bank.classes:
        found += [name, bank.level(name), bank.level_source(name), bank.own_level(name), bank.scene_scores(name)]
        for one in (*bank.supports(name), *(negative.support for negative in bank.negatives(name))):
            found += [(v.dtype, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else v for v in vars(one).values()]
    return found


def same(one: SupportBank, other: SupportBank) -> bool:
    return content(one) == content(other)


def test_classes_keep_the_order_of_their_enrollment() -> None:
    bank = SupportBank(IDENTITY)
    assert bank.classes == ()
    given = [support(seed) for seed in range(4)]
    for name, one in zip("bac", given, strict=False):
        bank.add(name, [one])
    bank.add("b", iter([given[3], given[2]]))
    assert bank.classes == ("b", "a", "c")
    wanted = {"b": [given[0], given[3], given[2]], "a": [given[1]], "c": [given[2]]}
    assert {name: list(map(id, bank.supports(name))) for name in bank.classes} == {
        name: list(map(id, supports)) for name, supports in wanted.items()
    }
    supports = bank.supports("a")
    bank.rename("a", "z")
    assert bank.classes == ("b", "z", "c")
    assert bank.supports("z") is supports
    bank.remove("b")
    bank.add("b", [given[1]])
    assert bank.classes == ("z", "c", "b")
    assert len(bank.supports("b")) == 1


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda bank: bank.remove("dog"), "'dog' is not enrolled; enrolled: cat, Größe 猫."),
        (lambda bank: bank.supports("dog"), "'dog' is not enrolled; enrolled: cat"),
        (lambda bank: bank.rename("dog", "x"), "'dog' is not enrolled; enrolled: cat"),
        (lambda bank: bank.set_level("dog", 0.5), "'dog' is not enrolled; enrolled: cat"),
        (lambda bank: bank.emptied().remove("dog"), "'dog' is not enrolled; enrolled: none"),
        (
            lambda bank: bank.set_level("cat", 1.5),
            "The level of a class must be between 0 and 1, both excluded; got 1.5.",
        ),
        (lambda bank: bank.rename("cat", "Größe 猫"), "'Größe 猫' already exists"),
        (lambda bank: bank.rename("cat", "cat"), "'cat' already exists"),
        (lambda bank: bank.rename("cat", ""), "must be 1 to 80 printable characters"),
        (lambda bank: bank.add("dog", []), "'dog' needs at least one picture"),
    ],
)
def test_an_impossible_change_is_refused_and_changes_nothing(act: Callable[[SupportBank], None], reason: str) -> None:
    bank = filled()
    with pytest.raises(InputError) as refused:
        act(bank)
    assert reason in str(refused.value)
    assert same(bank, filled())


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            " ",
            "\t",
            " cat",
            "cat ",
            "cat\n",
            "a\nb",
            "a\tb",
            "a\x1b[31mb",
            "a\0b",
            "a\u202eb",
            "a\ud800b",
            "x" * 81,
        ),
        *(
            "x" * 81,
            "a\u200bb",
            "a\u2028b",
            "a\uffffb",
            "a\ufffeb",
            "a\u2067b",
            "a\x85b",
            "\u200d",
            "\u3000",
            "\xa0x",
            "\ufe0f",
        ),
    ],
    ids=repr,
)
def test_a_name_that_cannot_be_shown_is_refused(name: str) -> None:
    bank = filled()
    for act in (lambda: bank.add(name, [support(0)]), lambda: bank.rename("cat", name)):
        with pytest.raises(InputError) as refused:
            act()
        assert str(refused.value) == f"A class name must be 1 to 80 printable characters, got {name!r}."
        str(refused.value).encode()
    assert same(bank, filled())


@pytest.mark.parametrize(
    "name",
    [
        *(
            "x",
            "x" * MAX_NAME_LENGTH,
            "my cat",
            "Größe 猫",
            "a/b",
            "--mask",
            "🐈",
            "'\"\\",
            "左\u3000右",
            "a\xa0b",
            "קפה",
        ),
        # with joiners: Persian, Hindi, Sinhala, emoji; and a character that Unicode got in 2022
        *(
            "a\xa0b",
            "\u0646\u06cc\u0645\u200c\u0641",
            "क्\u200dष",
            "ක්\u200dෂ",
            "👩\u200d🚀",
            "🏴\u200d☠\ufe0f",
            "x\U0001face",
        ),
    ],
    ids=ascii,
)
def test_any_other_name_is_accepted_and_survives_a_save(name: str, path: Path) -> None:
    bank = SupportBank(IDENTITY)
    bank.add(name, [support(0)])
    bank.save(path)
    assert SupportBank.load(path).classes == (name,)


def test_a_name_in_two_forms_is_one_class(path: Path) -> None:
    bank = SupportBank(IDENTITY)
    bank.add("Caf\u00e9", [support(0)])
    bank.add("Cafe\u0301", [support(1)])
    assert bank.classes == ("Caf\u00e9",)
    assert len(bank.supports("Cafe\u0301")) == 2
    bank.add("Tu\u0308r", [support(2)])
    bank.set_level("Tu\u0308r", 0.5)
    assert bank.classes == ("Caf\u00e9", "T\u00fcr")
    with pytest.raises(InputError, match="already exists"):
        bank.rename("T\u00fcr", "Cafe\u0301")
    # A bank that has both is read as it is.
    bank._add("Tu\u0308r", [support(3)])
    bank.save(path)
    loaded = SupportBank.load(path)
    assert loaded.classes == ("Caf\u00e9", "T\u00fcr", "Tu\u0308r")
    assert [len(loaded.supports(name)) for name in loaded.classes] == [2, 1, 1]
    loaded.remove("Tu\u0308r")
    assert loaded.classes == ("Caf\u00e9", "T\u00fcr")
    loaded.rename("Tu\u0308r", "door")
    assert loaded.classes == ("Caf\u00e9", "door")


@pytest.mark.parametrize("mark", ["\u200e", "\u200f", "\u061c"])
def test_a_name_with_an_invisible_mark_of_direction_is_the_one_without(path: Path, mark: str) -> None:
    bank = SupportBank(IDENTITY)
    bank.add(f"קפה{mark}", [support(0)])
    bank.add("קפה", [support(1)])
    assert bank.classes == ("קפה",)
    with pytest.raises(InputError, match="must be 1 to 80 printable characters"):
        bank.add(mark, [support(2)])
    with pytest.raises(InputError, match="There is no zone"):
        without_zone((), f"door{mark}")
    door = parse_zone(f"door{mark}=0,0,1,0,1,1")
    assert without_zone((door,), f"do{mark}or") == ()
    bank._add(f"cat{mark}", [support(3)])  # as a bank of before may have it, which is read as it is
    bank.save(path)
    loaded = SupportBank.load(path)
    assert loaded.classes == ("קפה", f"cat{mark}")
    loaded.remove("cat")
    assert loaded.classes == ("קפה",)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "'cat'"),
        ("joe's", '"joe\'s"'),
        ("\u0646\u06cc\u0645\u200c\u0641", "'\u0646\u06cc\u0645\u200c\u0641'"),
        ("\U0001fabf", "'\U0001fabf'"),
        ("a\xa0b", "'a\xa0b'"),
        ("x\n\x1b[0m\u202e\u200e\ud800", r"'x\n\x1b[0m\u202e\u200e\ud800'"),
    ],
    ids=ascii,
)
def test_a_sentence_shows_a_name_as_it_is_and_escapes_only_what_steers(name: str, shown: str) -> None:
    assert quoted(name) == shown
    with pytest.raises(InputError, match=re.escape(f"Class {shown} is not enrolled")):
        SupportBank(IDENTITY).remove(name)


def test_the_bank_is_full_with_255_classes() -> None:
    bank = SupportBank(IDENTITY)
    one = support(0)
    for index in range(MAX_CLASSES):
        bank.add(f"class {index}", [one])
    with pytest.raises(InputError) as refused:
        bank.add("one more", [one])
    assert str(refused.value) == "The bank already has 255 classes; remove one before enrolling 'one more'."
    bank.add("class 7", [one])
    bank.remove("class 0")
    bank.add("one more", [one])
    assert (len(bank.classes), bank.classes[-1]) == (255, "one more")


def test_the_size_of_a_support_is_that_of_its_arrays() -> None:
    assert support(0, tokens=3).nbytes == 2 * CHANNELS * DIM * (3 + 9) + 9


def test_a_bank_is_loaded_bit_for_bit(path: Path) -> None:
    bank = filled()
    extremes = np.array([0.0, -0.0, 6e-8, 4.0], np.float16)
    bank.add("extremes", [replace(support(0), kept=np.broadcast_to(extremes, (CHANNELS, 5, DIM)))])
    for one in (bank, filled(replace(IDENTITY, encoder_sha256="cd" * 32)), SupportBank(IDENTITY)):
        one.save(path)  # over the last one
        assert same(SupportBank.load(path), one)
        assert list(path.parent.iterdir()) == [path]
    bank.save(path)
    assert same(SupportBank.load(path, IDENTITY), bank)
    assert same(SupportBank.load(path, replace(IDENTITY, name="renamed")), bank)
    assert not same(SupportBank.load(path), filled())  # the comparison can fail


def test_predictions_are_the_same_before_saving_and_after_loading(path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(3)]
    mask = np.zeros((60, 80), np.bool_)
    mask[10:50, 20:60] = True
    with FewShotModel.load(threads=1) as model:
        model.enroll("a", pictures[:2], [mask, None])
        model.enroll("b", pictures[1:2])
        before = model.predict(pictures[2], probabilities=True)
        model.save_bank(path)
    with FewShotModel.load(threads=1) as other:
        other.load_bank(path)
        after = other.predict(pictures[2], probabilities=True)
    assert before.classes == after.classes == ("a", "b")
    assert np.array_equal(before.scores, after.scores)
    assert np.array_equal(before.label_map, after.label_map)
    assert before.foreground is not None
    assert np.array_equal(before.foreground, after.foreground)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"encoder_sha256": "cd" * 32},
            "was made with a different encoder: cdcdcdcdcdcd... (nano), but this bundle has abababababab... (nano)",
        ),
        (
            {"encoder_sha256": "cd" * 32, "image_size": 48},
            "was made with a different image size: 48, but this bundle has 32",
        ),
        # --precision would not help here.
        ({"encoder_sha256": "cd" * 32, "precision": "fp16"}, "was made with a different encoder: cdcdcdcdcdcd... "),
        (
            {"precision": "int8"},
            "was made in int8, but the engines here compute in fp32; use it with --engine auto --precision int8, or",
        ),
        ({"head_dim": DIM + 1}, "has tokens of a different shape than this bundle's"),
    ],
)
def test_a_bank_of_another_encoder_is_refused_with_the_difference(
    path: Path, change: dict[str, Any], reason: str
) -> None:
    filled(replace(IDENTITY, **change)).save(path)
    with pytest.raises(ArtifactError) as refused:
        SupportBank.load(path, IDENTITY)
    for part in (reason, str(path), "enroll its classes again"):
        assert part in str(refused.value)


def rewrite(path: Path, change: Change, reseal: bool = True) -> None:
    """Change a saved bank; `reseal` makes its sum right again, as somebody who forges a bank would."""
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        header = json.loads(file.metadata()[HEADER])
    seal = header.pop("sha256")
    change(header, tensors)
    header["sha256"] = digest_of(header, tensors) if reseal else seal
    save_file(tensors, path, metadata={HEADER: json.dumps(header)})


def poison(value: float) -> Change:
    def change(_: object, tensors: dict[str, np.ndarray]) -> None:
        tensors["1.0.kept"] = tensors["1.0.kept"].copy()
        tensors["1.0.kept"][1, 2, 3] = value

    return change


def tensor(name: str, *shape: int, dtype: type[np.generic] = np.float16) -> Change:
    return lambda _, tensors: tensors.update({name: np.zeros(shape, dtype)})


def cat(**values: Any) -> Change:
    return lambda header, _: header["classes"][0].update(values)


def item(**values: Any) -> Change:
    return lambda header, _: header["review"][1].update(values)


def zone(**values: Any) -> Change:
    return lambda header, _: header["zones"][1].update(values)


def as_format_2(header: dict[str, Any], _: object) -> None:
    """What the format before this one held."""
    del header["head"]
    classes = [{"name": entry["name"], "has_mask": entry["has_mask"]} for entry in header["classes"]]
    header.update(format_version=2, classes=classes)


SHEETS = (("", (3,), np.uint8), ("_mask", (), np.bool_))
NO_BANK = "is not a support bank of fsvit-edge: its header is missing or damaged"
FORGED: list[tuple[Change, str]] = [
    (poison(np.nan), "tensor 1.0.kept is missing, misshapen or not finite"),
    (poison(np.inf), "tensor 1.0.kept is missing, misshapen or not finite"),
    (lambda _, t: t.pop("0.1.pooled"), "tensor 0.1.pooled is missing"),
    (tensor("0.0.kept", CHANNELS + 1, 3, DIM), "tensor 0.0.kept is"),
    (tensor("0.0.kept", CHANNELS, 0, DIM), "tensor 0.0.kept is"),
    (tensor("0.0.kept", CHANNELS, 3, DIM, dtype=np.float32), "tensor 0.0.kept is"),
    (tensor("0.0.kept", CHANNELS, DIM), "tensor 0.0.kept is"),
    (tensor("0.0.pooled_mask", 8, dtype=np.bool_), "tensor 0.0.pooled_mask is"),
    (tensor("0.0.thumbnail", 5, 6, dtype=np.uint8), "tensor 0.0.thumbnail is"),
    (tensor("0.0.thumbnail_mask", 6, 5, dtype=np.bool_), "not the size of its picture"),
    (lambda h, _: h.pop("encoder"), NO_BANK),
    (lambda h, _: h["encoder"].pop("image_size"), "wrong values: 'image_size' is missing"),
    (lambda h, _: h["encoder"].update(color=1), "wrong values: unknown field 'color'"),
    (lambda h, _: h.pop("head"), NO_BANK),
    (lambda h, _: h.update(classes=[1]), NO_BANK),
    (lambda h, _: h["classes"][1].pop("level"), NO_BANK),
    (lambda h, _: h["classes"][1].pop("loo_score"), NO_BANK),
    (cat(has_mask=[True] * 3), NO_BANK),  # the other lists have 2
    (cat(negatives={"has_mask": [1]}), NO_BANK),
    (cat(negative_margins=[float("nan")]), NO_BANK),
    (cat(negative_margins=["wide"]), NO_BANK),
    *((cat(negative_margins=wrong), NO_BANK) for wrong in ([], [1, 1], [101], [10**400], {})),
    (cat(negatives=None), NO_BANK),
    (cat(scene_scores=[0.5, 10**400]), NO_BANK),
    (lambda h, _: h.update(scene_frames=float("inf")), NO_BANK),
    (zone(corners=[[0, 0], [1, 10**400], [1, 1]]), "is damaged: its zone 1 is"),
    (cat(scene_scores=["high"]), NO_BANK),
    (cat(scene_scores=[0.5]), "The 2 pictures of the scene need scores in [0, 1], got [0.5]"),
    (cat(scene_scores=[0.5, float("nan")]), "need scores in [0, 1], got [0.5, nan]"),
    (cat(scene_scores=[0.5, 1.01]), "need scores in [0, 1], got [0.5, 1.01]"),
    (lambda _, t: t.pop("scene.1"), "tensor scene.1 is missing or not the bytes of a JPEG"),
    (tensor("scene.0", 2, 3, dtype=np.uint8), "tensor scene.0 is missing or not the bytes of a JPEG"),
    (lambda _, t: t.pop("0.not.0.kept"), "tensor 0.not.0.kept is missing"),
    (lambda _, t: t.pop("review.1"), "tensor review.1 is missing or not the bytes of a JPEG"),
    (tensor("review.0", 5), "tensor review.0 is missing or not the bytes of a JPEG"),
    (lambda h, _: h.update(review={}), "its review is not a list of at most 50 items"),
    (lambda h, _: h.update(review=h["review"] * 26), "its review is not a list of at most 50 items"),
    (lambda h, _: h.update(review=[1]), "item 0 of its review is 1"),
    (lambda h, _: h["review"][1].pop("score"), "item 1 of its review is {'number': 5"),
    (item(color=1), "item 1 of its review is"),
    (item(name="dog"), "item 1 of its review is"),
    (item(name=["cat"]), "item 1 of its review is"),
    *((item(number=wrong), f"item 1 of its review is {{'number': {wrong!r}") for wrong in (3, -1, "6", 6.0, True)),
    *((item(verdict=wrong), "item 1 of its review is") for wrong in ("maybe", True, ["yes"])),
    *((item(score=wrong), "item 1 of its review is") for wrong in (1.01, -0.1, float("nan"), None, "0.5")),
    *((item(level=wrong), "item 1 of its review is") for wrong in (0, 1, None, float("nan"))),
    *((item(wall_time_s=wrong), "item 1 of its review is") for wrong in (float("inf"), None, "now", -1, 1e18, 10**400)),
    (lambda h, _: h.update(zones={}), "is damaged: its zones are {}, not a list"),
    (lambda h, _: h.update(zones=[1]), "is damaged: its zone 0 is 1"),
    (lambda h, _: h["zones"][1].pop("corners"), "is damaged: its zone 1 is {'name': 'left'}"),
    (lambda h, _: h.update(zones=h["zones"] * 9), "is damaged: There can be at most 16 zones, got 18"),
    (lambda h, _: h.update(zones=h["zones"] * 2), "is damaged: Two zones are named 'Tür 1'"),
    (zone(color=1), "its zone 1 is"),
    (zone(name=5), "its zone 1 is"),
    (zone(name="a\nb"), "is damaged: A zone name must be"),
    *((zone(corners=wrong), "its zone 1 is") for wrong in (5, [1, 2, 3], [[0, 0, 0]] * 3, [[0, "1"]] * 3, [[0, True]])),
    (zone(corners=[[0, 0], [1, 1]]), "is damaged: Zone 'left' has 2 corners"),
    (zone(corners=[[0, 0], [1, 0], [1, float("nan")]]), "is damaged: Zone 'left' has nan in a corner"),
    (lambda h, _: h.update(format_version=1), "has format 1 in 'fp16'"),
    (as_format_2, "has format 2 in 'fp16', this fsvit-edge reads 3 and 4 in 'fp16'; enroll its classes"),
    (lambda h, _: h.update(precision="int8"), "has format 4 in 'int8'"),
    (cat(name="a\nb"), "is damaged: A class name must be"),
    (cat(has_mask=[], loo_score=[], objectness_weight=[]), "Class 'cat' needs"),
    (cat(has_mask=[True] * 3, loo_score=[None] * 3, objectness_weight=[0] * 3), "0.2.kept is missing"),
    (lambda h, _: h["head"].update(presence_level=1), "level of a class must be"),
    (lambda h, _: h["head"].update(presence_level="high"), "wrong values: presence_level is 'high'"),
    *(
        (lambda h, _, of=of, values=values: h[of].update(values), f"wrong values: {next(iter(values))} is")
        for of, values in (
            ("encoder", {"num_channels": float(CHANNELS)}),
            ("encoder", {"head_dim": float(DIM)}),
            ("encoder", {"image_size": True}),
            ("encoder", {"name": [1, 2]}),
            ("head", {"sha256": 5}),
        )
    ),
    (lambda h, _: h["encoder"].update(name="x" * 1000), NO_BANK),
    (lambda h, _: h.update(format_version=4.0), "has format 4.0 in 'fp16'"),
    (lambda h, _: h.update(scene_frames="2"), NO_BANK),
    (cat(name=["cat"]), NO_BANK),
    (cat(is_level_by_hand="no"), NO_BANK),
    (cat(scene_scores=["0.5", True]), NO_BANK),
    (cat(negative_margins=[True]), NO_BANK),
    (cat(has_mask=[1, 0]), "has_mask of support 0.0 is 1"),
    (poison(65504), "tensor 1.0.kept is missing, misshapen or not finite"),
    (tensor("0.0.kept", CHANNELS, 5000, DIM), "support 0.0 has 5000 tokens, and its encoder makes at most 4097"),
    (
        lambda _, t: t.update({f"0.0.thumbnail{end}": np.zeros((1, 513, *rest), kind) for end, rest, kind in SHEETS}),
        "tensor 0.0.thumbnail is larger than 512 px",
    ),
    (
        cat(has_mask=[True] * 2000, loo_score=[None] * 2000, objectness_weight=[0] * 2000),
        "it has more than 1275 pictures and negatives",
    ),
    *(
        (cat(level=wrong), f"got {wrong!r}")
        for wrong in (0, 1, 1.5, -1.0, None, "0.5", True, float("nan"), float("inf"))
    ),
    *(
        (cat(**{field: [0.5, wrong]}), f"is damaged: {field} of support 0.1 is {wrong!r}, not a number from 0 to ")
        for field, wrongs in (("loo_score", (1.01, -0.1, "0.5")), ("objectness_weight", (2.01, -0.1, None)))
        for wrong in (*wrongs, True, float("nan"), float("inf"))
    ),
]


@pytest.mark.parametrize(("change", "reason"), FORGED, ids=[reason for _, reason in FORGED])
def test_a_forged_bank_is_refused(path: Path, change: Change, reason: str) -> None:
    filled().save(path)
    rewrite(path, lambda *_: None)
    assert same(SupportBank.load(path, IDENTITY), filled())
    rewrite(path, change)
    with pytest.raises(ArtifactError) as refused:
        SupportBank.load(path, IDENTITY)
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda h, _: [entry.update(name="dog") for entry in (h["classes"][0], h["review"][0])],
        lambda h, _: h["classes"][0]["has_mask"].reverse(),
        cat(level=0.3),
        cat(is_level_by_hand=True),
        lambda h, _: h["classes"][0]["loo_score"].reverse(),
        lambda h, _: h["classes"][0]["objectness_weight"].reverse(),
        poison(1.0),
        lambda _, t: t.update({"0.0.kept": t["0.1.kept"]}),
        item(verdict="yes"),
        zone(name="right"),
        zone(corners=[[0, 0], [1, 0], [1, 1]]),
        lambda h, _: h.pop("zones"),
        lambda _, t: t.update({"review.0": np.zeros(3, np.uint8)}),
    ],
)
def test_plausible_changes_do_not_pass_the_sum(path: Path, change: Change) -> None:
    filled().save(path)
    rewrite(path, change)
    assert not same(SupportBank.load(path), filled())
    filled().save(path)
    rewrite(path, change, reseal=False)
    with pytest.raises(ArtifactError, match="do not match its sha256"):
        SupportBank.load(path)


def as_format_3(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """What release 0.2.0 and before wrote: neither negatives, a scene, a review nor zones."""
    header["format_version"] = 3
    del header["scene_frames"], header["review"], header["zones"]
    for entry in header["classes"]:
        del entry["negatives"], entry["negative_margins"], entry["scene_scores"]
    for name in [name for name in tensors if name.startswith(("scene.", "review.")) or ".not." in name]:
        del tensors[name]


def test_a_bank_of_the_former_release_is_read_with_its_classes_and_levels(path: Path) -> None:
    filled().save(path)
    rewrite(path, as_format_3)

    wanted = filled()
    wanted.set_scene([])
    wanted.remove_negative("cat", 0)
    wanted.review, wanted.zones = (), ()
    assert same(SupportBank.load(path, IDENTITY, HEAD), wanted)


def test_a_bank_of_format_4_that_was_written_before_this_release_is_read_whole() -> None:
    kept = SupportBank.load(Path(__file__).with_name("format_4.safetensors"), IDENTITY, HEAD)
    kept.zones = ZONES
    assert same(kept, filled())
    kept.remove_negative("cat", 0)
    assert not same(kept, filled())


def test_a_bank_without_doubtful_frames_or_zones_has_no_such_part(path: Path) -> None:
    bank = filled()
    bank.review, bank.zones = (), ()
    bank.save(path)
    with safe_open(path, framework="numpy") as file:
        assert not {"review", "zones"} & json.loads(file.metadata()[HEADER]).keys()
        assert not [name for name in file.keys() if name.startswith("review")]  # noqa: SIM118 - not a mapping
    assert same(SupportBank.load(path), bank)


def test_doubtful_frames_follow_the_name_of_their_class_and_go_with_it() -> None:
    bank = filled()
    bank.rename("cat", "dog")
    assert [one.name for one in bank.review] == ["dog", "Größe 猫"]
    bank.remove("dog")
    assert [one.name for one in bank.review] == ["Größe 猫"]


def test_a_copy_of_a_bank_changes_alone() -> None:
    bank = filled()
    copy = bank.copy()
    assert same(copy, bank)
    copy.set_level("cat", 0.5)
    copy.remove("Größe 猫")
    copy.set_scene([])
    copy.add_negative("cat", Negative(support(9), 1.0))
    copy.zones = ()
    assert same(bank, filled())


def test_zones_belong_to_the_view_and_not_to_the_classes() -> None:
    bank = filled()
    assert bank.subset(["cat"]).zones == ZONES
    assert bank.emptied().zones == ()
    bank.remove("cat")
    assert bank.zones == ZONES


def test_impossible_zones_are_refused_and_change_nothing() -> None:
    bank = filled()
    for wrong, reason in (
        ((*ZONES, Zone("left", ((0, 0), (1, 0), (1, 1)))), "Two zones are named 'left'"),
        (tuple(replace(ZONES[0], name=str(number)) for number in range(MAX_ZONES + 1)), "at most 16 zones, got 17"),
    ):
        with pytest.raises(InputError, match=reason):
            bank.zones = wrong
        assert bank.zones == ZONES
    bank.zones = [replace(ZONES[0], name=str(number)) for number in range(MAX_ZONES)]
    assert len(bank.zones) == MAX_ZONES


def test_negatives_are_compared_after_the_classes_in_their_order() -> None:
    bank = filled()
    bank.add_negative("Größe 猫", Negative(support(4), -1.0))
    bank.add_negative("cat", Negative(support(5), 0.5))

    assert bank.negative_margins == ((0, 0.75), (0, 0.5), (1, -1.0))
    assert [len(one) for one in bank.negative_supports] == [1, 1, 1]
    assert bank.negative_supports[0][0] is bank.negatives("cat")[0].support
    assert bank.negative_supports[1][0] is bank.negatives("cat")[1].support

    bank.rename("cat", "dog")
    bank.remove_negative("dog", 0)
    assert len(bank.negatives("dog")) == 1
    bank.remove("dog")
    assert bank.negative_margins == ((0, -1.0),)


def test_a_class_and_a_bank_have_a_limited_number_of_pictures() -> None:
    bank = SupportBank(IDENTITY, HEAD)
    one = support(0)
    bank.add("cat", [one] * MAX_SHOTS)
    with pytest.raises(InputError, match="'cat' would have 101 pictures, and can have 100; give the best ones"):
        bank.add("cat", [one])
    for number in range(MAX_SUPPORTS // MAX_SHOTS - 1):
        bank.add(f"{number}", [one] * MAX_SHOTS)
    bank.add("rest", [one] * (MAX_SUPPORTS % MAX_SHOTS))
    with pytest.raises(InputError, match="has 1275 pictures and negatives, and can have 1275, so 1 more of 'one' do"):
        bank.add("one", [one])
    with pytest.raises(InputError, match="so 1 more of 'cat' do not fit; remove some first"):
        bank.add_negative("cat", Negative(one, 0.5))


def test_tokens_are_held_to_the_encoder_that_will_use_them(path: Path) -> None:
    filled().save(path)
    assert SupportBank.load(path, IDENTITY, HEAD, max_tokens=7).classes == filled().classes
    with pytest.raises(ArtifactError, match=r"support 1\.0 has 7 tokens, and its encoder makes at most 6"):
        SupportBank.load(path, IDENTITY, HEAD, max_tokens=6)


def test_a_class_has_a_limited_number_of_negatives() -> None:
    bank = filled()
    for seed in range(MAX_NEGATIVES - 1):
        bank.add_negative("cat", Negative(support(seed), 1.0))
    with pytest.raises(InputError, match="already has 16 negatives; remove one first"):
        bank.add_negative("cat", Negative(support(99), 1.0))
    with pytest.raises(InputError, match="has 16 negatives and no negative 16"):
        bank.remove_negative("cat", 16)


def test_the_level_is_raised_above_the_scene_unless_a_person_set_it() -> None:
    bank = filled()
    own = bank.own_level("cat")
    assert bank.level("cat") > 0.75 > own
    assert bank.level_source("cat") == "empty scene"
    bank.set_scene_scores("Größe 猫", [0.9, 0.99])
    assert bank.level("Größe 猫") == 0.8125
    bank.set_scene_scores("cat", [0.0, 0.0])
    assert bank.level("cat") == own
    assert bank.level_source("cat") == "own pictures"


@pytest.mark.parametrize(("score", "is_found"), [(1.0, True), (1 - 2**-24, True), (1 - 2**-23, False), (0.9, False)])
def test_no_level_is_above_the_highest_score_there_is(score: float, is_found: bool) -> None:
    bank = filled()
    bank.set_scene_scores("cat", [0.5, score])
    assert bank.found_in_scene == (("cat",) if is_found else ())
    bank.set_scene_scores("Größe 猫", [0.5, 0.9])
    assert bank.found_in_scene[-1:] == ("Größe 猫",)  # its level was set by hand


def test_a_level_that_the_scene_raised_is_held_until_all_of_it_is_scored_again() -> None:
    bank = filled()
    raised, own = bank.level("cat"), bank.own_level("cat")
    bank.add_negative("cat", Negative(support(4), 0.5))
    forgotten = bank.copy()
    assert bank.unscored_frames == (b"first", b"second")
    bank.add_scene_score("cat", b"first", 0.0)
    assert (bank.level("cat"), bank.level_source("cat")) == (raised, "empty scene")
    bank.add_scene_score("cat", b"second", 0.0)
    assert bank.level("cat") == own < raised  # the control
    forgotten.set_scene(())
    assert forgotten.level("cat") == own


def test_what_changes_the_scores_on_the_scene_drops_them(path: Path) -> None:
    for change in (
        lambda bank: bank.add("cat", [support(7)]),
        lambda bank: bank.remove_support("cat", 0),
        lambda bank: bank.set_scene([b"other"]),
        lambda bank: bank.set_level("cat", 0.5),
        lambda bank: bank.set_level("cat", None),
    ):
        bank = filled()
        change(bank)
        assert bank.scene_scores("cat") == ()
    filled().save(path)
    other = SupportBank.load(path, head=HeadIdentity("99" * 32, 0.5))
    assert other.scene_scores("cat") == ()
    assert other.scene == (b"first", b"second")
    assert other.negative_margins == ((0, NEGATIVE_MARGIN),)


def test_pictures_of_the_scene_that_stay_keep_their_scores() -> None:
    bank = filled()
    bank.set_scene([b"second", b"third"])
    assert bank.scene_scores("cat") == ()
    assert [bank.unscored(frame) for frame in bank.scene] == [("Größe 猫",), ("cat", "Größe 猫")]
    bank.add_scene_score("cat", b"third", 0.5)
    assert bank.scene_scores("cat") == (0.75, 0.5)
    bank.set_scene([b"third"])
    assert bank.scene_scores("cat") == (0.5,)


def test_a_class_that_is_scored_on_a_part_of_the_scene_is_saved_as_not_scored(path: Path) -> None:
    bank = filled()
    bank.set_scene([b"second", b"third"])
    bank.save(path)
    assert SupportBank.load(path).unscored(b"second") == ("cat", "Größe 猫")


def test_the_oldest_pictures_of_the_scene_go_first() -> None:
    bank = filled()
    bank.set_scene([bytes([index]) for index in range(MAX_SCENE_FRAMES + 3)])
    assert bank.scene == tuple(bytes([index]) for index in range(3, MAX_SCENE_FRAMES + 3))


def test_no_flipped_bit_gets_through(path: Path) -> None:
    bank = filled()
    bank.save(path)
    data = path.read_bytes()
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    places = np.concatenate([rng.integers(0, header_bytes, 250), rng.integers(header_bytes, len(data), 150)])
    refused = 0
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(flipped)
        try:
            loaded = SupportBank.load(path, IDENTITY if place % 2 else None)
        except ArtifactError:
            refused += 1
        else:
            assert same(loaded, bank)
    assert refused > 0.9 * len(places)


def test_no_cut_file_gets_through(path: Path) -> None:
    filled().save(path)
    data = path.read_bytes()
    cuts = [*range(24), *range(24, len(data), 37), len(data) - 1]
    for cut in (*(data[:length] for length in cuts), data + b"\0"):
        path.write_bytes(cut)
        with pytest.raises(ArtifactError):
            SupportBank.load(path)


def with_header(header: str | None) -> Callable[[Path], None]:
    weight = {"weight": np.zeros(3, np.float32)}
    return lambda path: save_file(weight, path, metadata=None if header is None else {HEADER: header})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: None, "does not exist; make one with: fsvit-edge enroll"),
        (Path.mkdir, "is no file; give the name of a .safetensors file"),
        (os.mkfifo, "is no file; give the name of a .safetensors file"),
        (
            lambda path: path.write_bytes((90_000_000).to_bytes(8, "little") + b"{"),
            "its header has 90000000 bytes, and",
        ),
        (lambda path: path.write_text("not a bank\n" * 10), "is damaged or not a safetensors file"),
        (with_header(None), NO_BANK),  # a checkpoint
        (with_header("[]"), NO_BANK),
        (with_header("[" * 100_000), NO_BANK),
    ],
)
def test_a_file_that_is_not_a_bank_is_refused(path: Path, make: Callable[[Path], object], reason: str) -> None:
    make(path)
    with pytest.raises(ArtifactError) as refused:
        SupportBank.load(path)
    assert reason in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("name", ["bank", "bank.pt", "bank.safetensors.bak", "bank.SAFETENSORS"])
def test_another_suffix_is_refused_for_reading_and_writing(tmp_path: Path, name: str) -> None:
    for act in (filled().save, SupportBank.load):
        with pytest.raises(InputError, match=r"A bank must be a \.safetensors file, got "):
            act(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_address_is_no_file_and_no_folder_is_made_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for act in (filled().save, SupportBank.load):
        with pytest.raises(InputError, match=r"got the address https:/host/bank\.safetensors; only run reads"):
            act(Path("https://host/bank.safetensors"))
    assert list(tmp_path.iterdir()) == []
    named = Path("http/a:b/bank.safetensors")  # a file, whose name has what an address has
    filled().save(named)
    assert SupportBank.load(named).classes == filled().classes


# ------------------------------------------------------------------------------------------------------------- levels


def judged(*scores: float | None) -> list[CachedSupport]:
    return [replace(support(seed), loo_score=score) for seed, score in enumerate(scores)]


def test_the_level_follows_the_scores_of_the_pictures_as_they_come_and_go() -> None:
    bank = SupportBank(IDENTITY, HEAD)
    bank.add("a", judged(None))
    assert (bank.level("a"), bank.level_source("a")) == (0.25, "default")
    bank.add("a", judged(0.9))
    high = bank.level("a")
    assert high == level_of_supports(0.25, [None, 0.9]) > 0.25
    assert bank.level_source("a") == "own pictures"
    bank.add("a", judged(0.05))
    assert bank.level("a") == level_of_supports(0.25, [None, 0.9, 0.05]) < high
    bank.add("b", judged(None))
    assert bank.levels.dtype == np.float32
    assert bank.levels.tolist() == [np.float32(bank.level("a")), 0.25]
    bank.remove_support("a", 2)
    assert bank.level("a") == high
    bank.remove_support("a", 1)
    assert (bank.level("a"), bank.level_source("a")) == (0.25, "default")


def test_a_level_set_by_hand_stays_until_it_is_reset(path: Path) -> None:
    bank = SupportBank(IDENTITY, HEAD)
    bank.add("a", judged(None, 0.9))
    bank.set_level("a", 0.7)
    bank.add("a", judged(0.99))
    bank.remove_support("a", 0)
    bank.rename("a", "b")
    bank.save(path)
    for one in (bank, SupportBank.load(path), SupportBank.load(path, IDENTITY, HeadIdentity("01" * 32, 0.6))):
        assert (one.level("b"), one.level_source("b")) == (0.7, "by hand")
    bank.set_level("b", None)
    assert (bank.level("b"), bank.level_source("b")) == (level_of_supports(0.25, [0.9, 0.99]), "own pictures")


def test_scores_of_another_head_are_dropped(path: Path) -> None:
    bank = SupportBank(IDENTITY, HEAD)
    bank.add("a", judged(None, 0.9))
    bank.add("b", judged(None))
    bank.save(path)
    assert same(SupportBank.load(path, IDENTITY, HEAD), bank)
    loaded = SupportBank.load(path, IDENTITY, HeadIdentity("01" * 32, 0.6))
    assert [loaded.level(name) for name in loaded.classes] == [0.6, 0.6]
    assert {loaded.level_source(name) for name in loaded.classes} == {"default"}
    assert [one.loo_score for one in loaded.supports("a")] == [None, None]
    assert loaded.supports("a")[1].objectness_weight == bank.supports("a")[1].objectness_weight


def test_an_emptied_bank_has_the_same_encoder_and_head_and_no_class() -> None:
    bank = filled()
    empty = bank.emptied()
    assert (empty.identity, empty.head, empty.classes) == (IDENTITY, HEAD, ())
    assert empty.levels.shape == (0,)
    assert same(bank, filled())


def test_what_a_bank_says_of_itself_cannot_drive_the_terminal(path: Path) -> None:
    evil = "\x1b[2J\nError: all is well"
    filled(replace(IDENTITY, name=evil, precision=evil)).save(path)
    assert "\x1b" not in f"{SupportBank.load(path).identity}"
    with pytest.raises(ArtifactError, match=r"enroll its classes again") as refused:
        SupportBank.load(path, replace(IDENTITY, encoder_sha256="0" * 64))
    header = json.dumps({evil: {"dtype": "U8", "shape": [1], "data_offsets": [5, 6]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(ArtifactError, match="is damaged or not a safetensors file") as damaged:
        SupportBank.load(path)
    for error in (refused, damaged):
        assert not {"\x1b", "\n"} & set(str(error.value))


def test_a_bank_too_large_to_be_read_again_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = filled()
    bank.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("fsvit_edge.fewshot.bank_file.MAX_FILE_BYTES", len(before))
    bank.save(path)  # the control
    monkeypatch.setattr("fsvit_edge.fewshot.bank_file.MAX_FILE_BYTES", len(before) - 1)
    with pytest.raises(InputError, match=rf"need {len(before):,} bytes in .*[.]safetensors, and a bank has at most"):
        bank.save(path)
    assert path.read_bytes() == before
    with pytest.raises(ArtifactError, match="bytes, and a bank at most"):
        SupportBank.load(path)
