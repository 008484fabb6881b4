import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fsvit_edge.runtime import bank as bank_module
from fsvit_edge.runtime.bank import (
    MAX_CLASSES,
    MAX_NAME_LENGTH,
    EncoderIdentity,
    HeadIdentity,
    SupportBank,
)
from fsvit_edge.runtime.cached_support import CachedSupport
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, InputError
from fsvit_edge.runtime.predictor import FewShotModel
from fsvit_edge.runtime.presence_level import level_of_supports

CHANNELS, DIM = 2, 4
IDENTITY = EncoderIdentity("nano", "ab" * 32, 32, CHANNELS, DIM, "fp32")
HEAD = HeadIdentity("ef" * 32, 0.25)
FIELDS = ("kept", "pooled", "pooled_mask", "thumbnail", "thumbnail_mask")
FACTS = ("has_mask", "loo_score", "objectness_weight")
HEADER = "fsvit-edge-bank"


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
    return bank


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bank.safetensors"


def same(one: SupportBank, other: SupportBank) -> bool:
    """Whether two banks hold the same classes and supports, bit by bit."""
    if one.identity != other.identity or one.head != other.head or one.classes != other.classes:
        return False
    for name in one.classes:
        if len(one.supports(name)) != len(other.supports(name)):
            return False
        if (one.level(name), one.level_source(name)) != (other.level(name), other.level_source(name)):
            return False
        for ours, theirs in zip(one.supports(name), other.supports(name), strict=True):
            if any(getattr(ours, field) != getattr(theirs, field) for field in FACTS):
                return False
            for field in FIELDS:
                a, b = getattr(ours, field), getattr(theirs, field)
                if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
                    return False
    return True


def test_classes_keep_the_order_of_their_enrollment() -> None:
    bank = SupportBank(IDENTITY)
    assert bank.classes == ()
    for name in ("b", "a", "c"):
        bank.add(name, [support(0)])
    bank.add("b", [support(1)])
    assert bank.classes == ("b", "a", "c")
    assert [len(bank.supports(name)) for name in bank.classes] == [2, 1, 1]
    bank.remove("b")
    bank.add("b", [support(2)])
    assert bank.classes == ("a", "c", "b")
    assert len(bank.supports("b")) == 1


def test_supports_are_added_after_the_existing_ones() -> None:
    bank = SupportBank(IDENTITY)
    first, second, third = support(0), support(1), support(2)
    bank.add("a", [first])
    bank.add("a", iter([second, third]))
    assert [s is t for s, t in zip(bank.supports("a"), (first, second, third), strict=True)] == [True] * 3


def test_a_renamed_class_keeps_its_place_and_its_supports() -> None:
    bank = filled()
    supports = bank.supports("cat")
    bank.rename("cat", "dog")
    assert bank.classes == ("dog", "Größe 猫")
    assert bank.supports("dog") is supports


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        pytest.param(lambda bank: bank.remove("dog"), "'dog' is not enrolled; enrolled: cat, Größe 猫.", id="remove"),
        pytest.param(lambda bank: bank.supports("dog"), "'dog' is not enrolled; enrolled: cat", id="supports"),
        pytest.param(lambda bank: bank.rename("dog", "x"), "'dog' is not enrolled; enrolled: cat", id="rename"),
        pytest.param(lambda bank: bank.rename("cat", "Größe 猫"), "'Größe 猫' already exists", id="name in use"),
        pytest.param(lambda bank: bank.rename("cat", "cat"), "'cat' already exists", id="own name"),
        pytest.param(lambda bank: bank.rename("cat", ""), "must be 1 to 80 printable characters", id="no name"),
        pytest.param(lambda bank: bank.add("dog", []), "'dog' needs at least one picture", id="no support"),
    ],
)
def test_an_impossible_change_is_refused_and_changes_nothing(act: Callable[[SupportBank], None], reason: str) -> None:
    bank = filled()
    with pytest.raises(InputError) as refused:
        act(bank)
    assert reason in str(refused.value)
    assert same(bank, filled())


def test_an_empty_bank_reports_that_nothing_is_enrolled() -> None:
    with pytest.raises(InputError, match="'dog' is not enrolled; enrolled: none"):
        SupportBank(IDENTITY).remove("dog")


@pytest.mark.parametrize(
    "name",
    ["", " ", "\t", " cat", "cat ", "cat\n", "a\nb", "a\tb", "a\x1b[31mb", "a\0b", "a\u202eb", "a\ud800b", "x" * 81],
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


@pytest.mark.parametrize("name", ["x", "x" * MAX_NAME_LENGTH, "my cat", "Größe 猫", "a/b", "--mask", "🐈", "'\"\\"])
def test_any_other_name_is_accepted_and_survives_a_save(name: str, path: Path) -> None:
    bank = SupportBank(IDENTITY)
    bank.add(name, [support(0)])
    bank.save(path)
    assert SupportBank.load(path).classes == (name,)


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
    bank.save(path)
    assert same(SupportBank.load(path), bank)
    assert same(SupportBank.load(path, IDENTITY), bank)
    assert not same(SupportBank.load(path), filled(replace(IDENTITY, name="other")))  # the comparison can fail


def test_special_values_are_loaded_bit_for_bit(path: Path) -> None:
    bank = SupportBank(IDENTITY)
    extremes = np.array([0.0, -0.0, 6e-8, 65504], np.float16)
    bank.add("a", [replace(support(0), kept=np.broadcast_to(extremes, (CHANNELS, 5, DIM)))])
    bank.save(path)
    assert SupportBank.load(path).supports("a")[0].kept.tobytes() == np.tile(extremes, CHANNELS * 5).tobytes()


def test_an_empty_bank_is_saved_too(path: Path) -> None:
    SupportBank(IDENTITY).save(path)
    assert SupportBank.load(path, IDENTITY).classes == ()


def test_a_save_replaces_the_old_file_and_leaves_no_other(path: Path) -> None:
    filled().save(path)
    bank = filled()
    bank.remove("cat")
    bank.save(path)
    assert same(SupportBank.load(path), bank)
    assert list(path.parent.iterdir()) == [path]


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
    assert after.foreground is not None
    assert np.array_equal(before.foreground, after.foreground)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(
            {"encoder_sha256": "cd" * 32},
            "was made with a different encoder: cdcdcdcdcdcd... (nano), but this bundle has abababababab... (nano)",
            id="encoder",
        ),
        pytest.param(
            {"encoder_sha256": "cd" * 32, "image_size": 48},
            "was made with a different image size: 48, but this bundle has 32",
            id="image size",
        ),
        pytest.param(
            {"encoder_sha256": "cd" * 32, "precision": "fp16"},
            "was made with a different encoder: cdcdcdcdcdcd... (nano), but this bundle has abababababab... (nano)",
            id="encoder and precision: --precision would not help",
        ),
        pytest.param(
            {"precision": "int8"},
            "was made in int8, but the engines here compute in fp32; use it with --precision int8 or",
            id="precision",
        ),
        pytest.param({"head_dim": DIM + 1}, "has tokens of a different shape than this bundle's", id="shape"),
        pytest.param({"encoder_sha256": 5}, "was made with a different encoder: 5... (nano)", id="no sum"),
    ],
)
def test_a_bank_of_another_encoder_is_refused_with_the_difference(
    path: Path, change: dict[str, Any], reason: str
) -> None:
    filled(replace(IDENTITY, **change)).save(path)
    with pytest.raises(ArtifactError) as refused:
        SupportBank.load(path, IDENTITY)
    assert reason in str(refused.value)
    assert str(path) in str(refused.value)
    assert "enroll its classes again" in str(refused.value)


def test_the_name_of_the_network_does_not_matter(path: Path) -> None:
    filled(replace(IDENTITY, name="renamed")).save(path)
    assert SupportBank.load(path, IDENTITY).classes == filled().classes


def test_a_foreign_bank_can_be_listed_and_edited(path: Path) -> None:
    foreign = filled(replace(IDENTITY, encoder_sha256="cd" * 32))
    foreign.save(path)
    loaded = SupportBank.load(path)
    loaded.remove("cat")
    loaded.save(path)
    assert SupportBank.load(path).identity == foreign.identity


def rewrite(
    path: Path,
    change_header: Callable[[dict[str, Any]], object] = lambda _: None,
    change_tensors: Callable[[dict[str, np.ndarray]], object] = lambda _: None,
    reseal: bool = True,
) -> None:
    """Change a saved bank; `reseal` makes its sum right again, as somebody who forges a bank would."""
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        header = json.loads(file.metadata()[HEADER])
    seal = header.pop("sha256")
    change_header(header)
    change_tensors(tensors)
    header["sha256"] = bank_module._digest(header, tensors) if reseal else seal
    save_file(tensors, path, metadata={HEADER: json.dumps(header)})


def poison(tensors: dict[str, np.ndarray], value: float) -> None:
    tensors["1.0.kept"] = tensors["1.0.kept"].copy()
    tensors["1.0.kept"][1, 2, 3] = value


def set_tensor(name: str, array: np.ndarray) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.update({name: array})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda t: poison(t, np.nan), "tensor 1.0.kept is missing, misshapen or not finite", id="NaN"),
        pytest.param(lambda t: poison(t, np.inf), "tensor 1.0.kept is missing, misshapen or not finite", id="infinity"),
        pytest.param(lambda t: t.pop("0.1.pooled"), "tensor 0.1.pooled is missing", id="tensor missing"),
        pytest.param(
            set_tensor("0.0.kept", np.zeros((CHANNELS + 1, 3, DIM), np.float16)), "tensor 0.0.kept is", id="channels"
        ),
        pytest.param(set_tensor("0.0.kept", np.zeros((CHANNELS, 0, DIM), np.float16)), "0.0.kept is", id="no token"),
        pytest.param(set_tensor("0.0.kept", np.zeros((CHANNELS, 3, DIM), np.float32)), "0.0.kept is", id="type"),
        pytest.param(set_tensor("0.0.kept", np.zeros((CHANNELS, DIM), np.float16)), "0.0.kept is", id="axes"),
        pytest.param(set_tensor("0.0.pooled_mask", np.zeros(8, np.bool_)), "0.0.pooled_mask is", id="pooled mask"),
        pytest.param(set_tensor("0.0.thumbnail", np.zeros((5, 6), np.uint8)), "0.0.thumbnail is", id="thumbnail"),
        pytest.param(
            set_tensor("0.0.thumbnail_mask", np.zeros((6, 5), np.bool_)), "not the size of its picture", id="its mask"
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    path: Path, change: Callable[[dict[str, np.ndarray]], object], reason: str
) -> None:
    filled().save(path)
    rewrite(path)
    assert same(SupportBank.load(path, IDENTITY), filled())
    rewrite(path, change_tensors=change)
    with pytest.raises(ArtifactError) as refused:
        SupportBank.load(path, IDENTITY)
    assert reason in str(refused.value)


def as_format_2(header: dict[str, Any]) -> None:
    """What the format before this one held."""
    del header["head"]
    classes = [{"name": entry["name"], "has_mask": entry["has_mask"]} for entry in header["classes"]]
    header.update(format_version=2, classes=classes)


def supports_of(masks: list[int]) -> dict[str, list[Any]]:
    return {"has_mask": masks, "loo_score": [None] * len(masks), "objectness_weight": [0] * len(masks)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda h: h.pop("encoder"), "is not a support bank", id="no encoder"),
        pytest.param(lambda h: h["encoder"].pop("image_size"), "is not a support bank", id="no image size"),
        pytest.param(lambda h: h["encoder"].update(color=1), "is not a support bank", id="unknown field"),
        pytest.param(lambda h: h.update(classes=[1]), "is not a support bank", id="classes"),
        pytest.param(lambda h: h.update(format_version=1), "has format 1 in 'fp16'", id="an earlier version"),
        pytest.param(
            as_format_2, "has format 2 in 'fp16', this fsvit-edge reads 3 and 4 in 'fp16'; enroll its classes", id="2"
        ),
        pytest.param(lambda h: h.update(precision="int8"), "has format 3 in 'int8'", id="another precision"),
        pytest.param(lambda h: h["classes"][0].update(name="a\nb"), "is damaged: A class name must be", id="name"),
        pytest.param(lambda h: h["classes"][0].update(supports_of([])), "Class 'cat' needs", id="no support"),
        pytest.param(lambda h: h["classes"][0].update(supports_of([1] * 3)), "0.2.kept is missing", id="too many"),
        pytest.param(lambda h: h["classes"][0].update(has_mask=[1] * 3), "header is missing or", id="unequal lists"),
        pytest.param(lambda h: h.pop("head"), "is not a support bank", id="no head"),
        pytest.param(lambda h: h["head"].update(presence_level=1), "level of a class must be", id="level of the head"),
        pytest.param(lambda h: h["head"].update(presence_level="high"), "level of a class must", id="no number"),
        pytest.param(lambda h: h["classes"][1].pop("level"), "is not a support bank", id="no level"),
        *(
            pytest.param(
                lambda h, wrong=wrong: h["classes"][1].update(level=wrong), "got " + repr(wrong), id=repr(wrong)
            )
            for wrong in (0, 1, 1.5, -1.0, None, "0.5", True, float("nan"), float("inf"))
        ),
        *(
            pytest.param(
                lambda h, field=field, wrong=wrong: h["classes"][0].update({field: [0.5, wrong]}),
                f"is damaged: {field} of support 0.1 is {wrong!r}, not a number from 0 to ",
                id=f"{field} {wrong!r}",
            )
            for field, wrongs in (("loo_score", (1.01, -0.1, "0.5")), ("objectness_weight", (2.01, -0.1, None)))
            for wrong in (*wrongs, True, float("nan"), float("inf"))
        ),
    ],
)
def test_a_malformed_header_is_refused(path: Path, change: Callable[[dict[str, Any]], object], reason: str) -> None:
    filled().save(path)
    rewrite(path, change)
    with pytest.raises(ArtifactError) as refused:
        SupportBank.load(path)
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("change_header", "change_tensors"),
    [
        pytest.param(lambda h: h["classes"][0].update(name="dog"), lambda _: None, id="name"),
        pytest.param(lambda h: h["classes"][0]["has_mask"].reverse(), lambda _: None, id="masks"),
        pytest.param(lambda h: h["classes"][0].update(level=0.3), lambda _: None, id="level"),
        pytest.param(lambda h: h["classes"][0].update(is_level_by_hand=True), lambda _: None, id="by hand"),
        pytest.param(lambda h: h["classes"][0]["loo_score"].reverse(), lambda _: None, id="scores"),
        pytest.param(lambda h: h["classes"][0]["objectness_weight"].reverse(), lambda _: None, id="weights"),
        pytest.param(lambda _: None, lambda t: poison(t, 1.0), id="value"),
        pytest.param(lambda _: None, lambda t: t.update({"0.0.kept": t["0.1.kept"]}), id="swapped"),
    ],
)
def test_plausible_changes_do_not_pass_the_sum(
    path: Path, change_header: Callable[..., object], change_tensors: Callable[..., object]
) -> None:
    filled().save(path)
    rewrite(path, change_header, change_tensors)
    assert not same(SupportBank.load(path), filled())
    filled().save(path)
    rewrite(path, change_header, change_tensors, reseal=False)
    with pytest.raises(ArtifactError, match="do not match its sha256"):
        SupportBank.load(path)


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
    for length in [*range(24), *range(24, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ArtifactError):
            SupportBank.load(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(ArtifactError):
        SupportBank.load(path)


def make_missing(path: Path) -> None:
    assert not path.exists()


def make_folder(path: Path) -> None:
    path.mkdir()


def make_text(path: Path) -> None:
    path.write_text("not a bank\n" * 10)


def make_other_tensors(path: Path) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, path)


def make_other_header(path: Path) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, path, metadata={HEADER: "[]"})


def make_deep_header(path: Path) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, path, metadata={HEADER: "[" * 100_000})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(make_missing, "does not exist; make one with: fsvit-edge enroll", id="missing"),
        pytest.param(make_folder, "does not exist; make one with: fsvit-edge enroll", id="folder"),
        pytest.param(make_text, "is damaged or not a safetensors file", id="text"),
        pytest.param(make_other_tensors, "is not a support bank of fsvit-edge", id="a checkpoint"),
        pytest.param(make_other_header, "is not a support bank of fsvit-edge", id="a list as header"),
        pytest.param(make_deep_header, "is not a support bank of fsvit-edge", id="endless nesting"),
    ],
)
def test_a_file_that_is_not_a_bank_is_refused(path: Path, make: Callable[[Path], None], reason: str) -> None:
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


def test_a_full_disk_leaves_the_old_bank_and_no_other_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    old = filled()
    old.save(path)
    new = filled()
    new.remove("cat")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(FsvitEdgeError) as failed:
            new.save(path)
    assert failed.value.exit_code == 1
    assert str(failed.value) == f"{path} cannot be written: No space left on device; nothing was changed."
    assert list(path.parent.iterdir()) == [path]
    assert same(SupportBank.load(path), old)
    new.save(path)
    assert same(SupportBank.load(path), new)


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


@pytest.mark.parametrize("level", [0, 1, -0.5, 1.5, float("nan"), float("inf"), True, "0.5"], ids=repr)
def test_a_level_out_of_range_is_refused_and_changes_nothing(level: Any) -> None:
    bank = filled()
    with pytest.raises(InputError) as refused:
        bank.set_level("cat", level)
    assert str(refused.value) == f"The level of a class must be between 0 and 1, both excluded; got {level!r}."
    assert same(bank, filled())
    with pytest.raises(InputError, match="'dog' is not enrolled"):
        bank.set_level("dog", 0.5)


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
