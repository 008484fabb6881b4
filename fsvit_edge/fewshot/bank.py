"""The support bank: the enrolled classes with their cached supports, in memory and as one file.

A cached support is FP16 from the moment of enrollment, so that scores are the same before and after a save.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.bank_class import MAX_SUPPORTS, BankClass, check_room
from fsvit_edge.fewshot.bank_file import damaged_header, digest_of, read_bank_file, read_entry, write_bank_file
from fsvit_edge.fewshot.cached_support import (
    MAX_TOKENS,
    CachedSupport,
    ClassSupports,
    Negative,
    facts_of,
    read_support,
    support_tensors,
)
from fsvit_edge.fewshot.decide import NEGATIVE_MARGIN
from fsvit_edge.fewshot.identity import EncoderIdentity, HeadIdentity, check_same_encoder, read_encoder
from fsvit_edge.fewshot.names import check_name, composed, quoted, resolved
from fsvit_edge.fewshot.review_items import ReviewItems, read_review, review_header, review_tensors
from fsvit_edge.fewshot.scene import MAX_SCENE_FRAMES, read_jpeg
from fsvit_edge.fewshot.zones import Zone, check_zones, read_zones, zones_header
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.json_records import record_from_json
from fsvit_edge.runtime.presence_level import check_level, level_of_supports

MAX_CLASSES = 255
"""A label map is uint8, and 0 is the background."""
MAX_NEGATIVES = 16
"""Of one class; each costs a frame as much as a support."""

_MAX_NETWORK_NAME = 200

_SCENE, _NOT = "scene", "not"  # in the names of tensors

LevelSource = Literal["default", "own pictures", "by hand", "empty scene"]


class SupportBank:
    """Enrolled classes, in the order of enrollment; without a head, that of an unknown one with the published level.

    Attributes:
        review: The doubtful frames that are kept, oldest first, with what a person said of them.
    """

    def __init__(self, identity: EncoderIdentity, head: HeadIdentity | None = None) -> None:
        self.identity = identity
        self.head = head or HeadIdentity()
        self._classes: dict[str, BankClass] = {}
        self._scene: tuple[bytes, ...] = ()
        self.review: ReviewItems = ()
        self._zones: tuple[Zone, ...] = ()

    def subset(self, names: Iterable[str]) -> "SupportBank":
        """Return a bank of some of the classes, without the scene."""
        chosen = self.emptied()
        chosen._zones = self._zones
        chosen._classes = {name: self._known(name) for name in names}
        return chosen

    def emptied(self) -> "SupportBank":
        """Return an empty bank of the same encoder and head."""
        return SupportBank(self.identity, self.head)

    def copy(self) -> "SupportBank":
        """Return a bank with the same contents, which can be changed without changing this one."""
        other = self.emptied()
        other._classes, other._scene, other.review = dict(self._classes), self._scene, self.review
        other._zones = self._zones
        return other

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of enrollment."""
        return tuple(self._classes)

    @property
    def class_supports(self) -> tuple[ClassSupports, ...]:
        """The supports of every class, in the order of enrollment."""
        return tuple(entry.supports for entry in self._classes.values())

    def supports(self, name: str) -> ClassSupports:
        """Return the supports of a class; an InputError if it is not enrolled, as in all that follow."""
        return self._known(name).supports

    def negatives(self, name: str) -> tuple[Negative, ...]:
        """Return the pictures that a person said are not the class, oldest first."""
        return self._known(name).negatives

    @property
    def negative_supports(self) -> tuple[ClassSupports, ...]:
        """Each negative of every class by itself, in the order of the classes."""
        return tuple(one.alone for entry in self._classes.values() for one in entry.negatives)

    @property
    def negative_margins(self) -> tuple[tuple[int, float], ...]:
        """For each of `negative_supports`, the index of its class and its margin, see `decide.negative_margin`."""
        return tuple((way, one.margin) for way, entry in enumerate(self._classes.values()) for one in entry.negatives)

    @property
    def scene(self) -> tuple[bytes, ...]:
        """Pictures of the empty scene, oldest first: JPEGs of the encoder's input size."""
        return self._scene

    def scene_scores(self, name: str) -> tuple[float, ...]:
        """Return the score of a class on each picture of the scene; empty if not all are known."""
        known = self._known(name).scene_scores
        return tuple(known[frame] for frame in self._scene) if all(frame in known for frame in self._scene) else ()

    def unscored(self, frame: bytes) -> tuple[str, ...]:
        """Name the classes that have no score on a picture of the scene, because it is new or they have changed."""
        return tuple(name for name, entry in self._classes.items() if frame not in entry.scene_scores)

    @property
    def unscored_frames(self) -> tuple[bytes, ...]:
        """The pictures of the scene on which a class has no score, oldest first."""
        return tuple(frame for frame in self._scene if self.unscored(frame))

    def highest_in_scene(self, name: str) -> float:
        """Return the highest score of a class on the pictures of the scene that are scored, in [0, 1]."""
        return max(self._known(name).scene_scores.values(), default=0.0)

    @property
    def found_in_scene(self) -> tuple[str, ...]:
        """The classes that are present in a picture of the scene: their level is set by hand, or they score 1 there."""
        # `log_odds` ends at 1 - 2**-23, so the level does too; a score of 1 is above it.
        return tuple(name for name, entry in self._classes.items() if self.highest_in_scene(name) > entry.level)

    @property
    def zones(self) -> tuple[Zone, ...]:
        """The zones of the camera's view; setting them raises like `check_zones`."""
        return self._zones

    @zones.setter
    def zones(self, zones: Sequence[Zone]) -> None:
        check_zones(tuple(zones))
        self._zones = tuple(zones)

    @property
    def objectness_weights(self) -> npt.NDArray[np.float32]:
        """How much objectness counts in each class's outlines, (ways,) float32 in [0, 2]: the mean of its supports."""
        means = [np.mean([support.objectness_weight for support in supports]) for supports in self.class_supports]
        return np.array(means, np.float32)

    @property
    def levels(self) -> npt.NDArray[np.float32]:
        """The score above which each class is present, (ways,) float32 in (0, 1)."""
        return np.array([entry.level for entry in self._classes.values()], np.float32)

    def level(self, name: str) -> float:
        """Return the score above which a class is present, in (0, 1)."""
        return self._known(name).level

    def own_level(self, name: str) -> float:
        """Return the level of a class without the empty scene: set by hand, or given by its pictures."""
        return self._known(name).own_level

    def level_source(self, name: str) -> LevelSource:
        """Return where the level of a class comes from."""
        entry = self._known(name)
        if entry.is_level_by_hand:
            return "by hand"
        if entry.level > entry.own_level:
            return "empty scene"
        return "default" if all(support.loo_score is None for support in entry.supports) else "own pictures"

    def set_level(self, name: str, level: float | None) -> None:
        """Set the level by hand, in (0, 1), which stays when pictures are added; None derives it from them again."""
        name = self._name(name)
        entry = self._classes[name]
        if level is not None:
            changed = replace(entry, own_level=check_level(level), is_level_by_hand=True)
        else:
            changed = self._with_supports(replace(entry, is_level_by_hand=False), entry.supports)
        # What a negative leaves of a score depends on the level.
        self._classes[name] = changed.to_score_again() if entry.negatives else changed

    def add(self, name: str, supports: Iterable[CachedSupport]) -> None:
        """Add supports to a class, which is created if it is new; an InputError if its name or number is impossible."""
        self._add(resolved(name, self._classes), supports)

    def _add(self, name: str, supports: Iterable[CachedSupport]) -> None:
        check_name(name)
        added = tuple(supports)
        if not added:
            raise InputError(f"Class {quoted(name)} needs at least one picture.")
        if name not in self._classes and len(self._classes) == MAX_CLASSES:
            raise InputError(f"The bank already has {MAX_CLASSES} classes; remove one before enrolling {quoted(name)}.")
        before = self._classes.get(name) or BankClass((), self.head.presence_level, False)
        check_room(self._classes, name, len(added), len(before.supports) + len(added))
        self._classes[name] = self._with_supports(before.to_score_again(), before.supports + added)

    def add_negative(self, name: str, negative: Negative) -> None:
        """Add a picture of what is not the class."""
        name = self._name(name)
        entry = self._classes[name]
        if len(entry.negatives) == MAX_NEGATIVES:
            raise InputError(f"Class {quoted(name)} already has {MAX_NEGATIVES} negatives; remove one first.")
        check_room(self._classes, name, 1)
        self._classes[name] = replace(entry.to_score_again(), negatives=(*entry.negatives, negative))

    def remove_negative(self, name: str, index: int) -> None:
        """Remove one negative of a class, counted from 0."""
        name = self._name(name)
        entry = self._classes[name]
        if not 0 <= index < len(entry.negatives):
            raise InputError(f"Class {quoted(name)} has {len(entry.negatives)} negatives and no negative {index}.")
        kept = entry.negatives[:index] + entry.negatives[index + 1 :]
        self._classes[name] = replace(entry.to_score_again(), negatives=kept)

    def set_scene(self, frames: Sequence[bytes]) -> None:
        """Replace the pictures of the empty scene; the latest `MAX_SCENE_FRAMES` stay, new ones are unscored."""
        self._scene = tuple(dict.fromkeys(frames))[-MAX_SCENE_FRAMES:]  # the same picture twice would count as two
        for name, entry in self._classes.items():
            kept = {frame: entry.scene_scores[frame] for frame in self._scene if frame in entry.scene_scores}
            held = entry.held_level if len(kept) < len(self._scene) else 0.0
            self._classes[name] = replace(entry, scene_scores=kept, held_level=held)

    def set_scene_scores(self, name: str, scores: Sequence[float]) -> None:
        """Set what a class scores on each picture of the scene, in [0, 1]; its level follows."""
        name = self._name(name)
        entry = self._classes[name]
        if len(scores) != len(self._scene) or not all(0 <= score <= 1 for score in scores):
            raise InputError(f"The {len(self._scene)} pictures of the scene need scores in [0, 1], got {scores!r:.80}.")
        known = dict(zip(self._scene, map(float, scores), strict=True))
        self._classes[name] = replace(entry, scene_scores=known, held_level=0.0)

    def add_scene_score(self, name: str, frame: bytes, score: float) -> None:
        """Add what a class scores on one picture of the scene, in [0, 1]; its level follows."""
        name = self._name(name)
        entry = self._classes[name]
        known = {**entry.scene_scores, frame: score}
        held = entry.held_level if len(known) < len(self._scene) else 0.0
        self._classes[name] = replace(entry, scene_scores=known, held_level=held)

    def remove(self, name: str) -> None:
        """Remove a class, and the frames that are kept for it."""
        name = self._name(name)
        del self._classes[name]
        self.review = tuple(item for item in self.review if item.name != name)

    def remove_support(self, name: str, index: int) -> None:
        """Remove one support of a class, counted from 0; removing the last one removes the class."""
        name = self._name(name)
        supports = self.supports(name)
        if not 0 <= index < len(supports):
            raise InputError(f"Class {quoted(name)} has {len(supports)} pictures and no picture {index}.")
        if len(supports) == 1:
            self.remove(name)
        else:
            kept = supports[:index] + supports[index + 1 :]
            self._classes[name] = self._with_supports(self._classes[name].to_score_again(), kept)

    def rename(self, old: str, new: str) -> None:
        """Rename a class, which keeps its place."""
        old, new = self._name(old), composed(new)
        check_name(new)
        if new == old or resolved(new, self._classes.keys() - {old}) in self._classes:
            raise InputError(f"Class {quoted(new)} already exists; remove it first or choose another name.")
        self._classes = {new if name == old else name: entry for name, entry in self._classes.items()}
        self.review = tuple(replace(item, name=new) if item.name == old else item for item in self.review)

    def save(self, path: Path) -> None:
        """Write the bank to one .safetensors file, whole or not at all.

        Raises:
            InputError: The path does not end in .safetensors or cannot be a file, or the bank would be too large.
            FsvitEdgeError: The disk is full or the folder is not writable; an old file is unchanged.
        """
        header, tensors = self._contents()
        write_bank_file(path, {**header, **review_header(self.review)}, {**tensors, **review_tensors(self.review)})

    @property
    def sum_without_review(self) -> str:
        """A sum of all that the bank has, except the frames to review; the same after `save` and `load`."""
        return digest_of(*self._contents())

    def _contents(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """The header and the tensors of the bank's file, without the frames to review."""
        tensors: dict[str, npt.NDArray[Any]] = {
            f"{_SCENE}.{index}": np.frombuffer(frame, np.uint8) for index, frame in enumerate(self._scene)
        }
        classes = []
        for index, (name, entry) in enumerate(self._classes.items()):
            negatives = tuple(one.support for one in entry.negatives)
            tensors.update(support_tensors(f"{index}", entry.supports))
            tensors.update(support_tensors(f"{index}.{_NOT}", negatives))
            classes.append(
                {
                    "name": name,
                    "level": entry.own_level,
                    "is_level_by_hand": entry.is_level_by_hand,
                    "scene_scores": self.scene_scores(name),
                    **facts_of(entry.supports),
                    "negatives": facts_of(negatives),
                    "negative_margins": [one.margin for one in entry.negatives],
                }
            )
        header: dict[str, Any] = {
            "encoder": vars(self.identity),
            "head": vars(self.head),
            "scene_frames": len(self._scene),
            "classes": classes,
            **zones_header(self.zones),
        }
        return header, tensors

    @classmethod
    def load(
        cls,
        path: Path,
        identity: EncoderIdentity | None = None,
        head: HeadIdentity | None = None,
        max_tokens: int = MAX_TOKENS,
        lacks: Mapping[str, str] | None = None,
    ) -> "SupportBank":
        """Read a bank.

        What another head scored does not apply to this one, so it is dropped, and with it levels and margins derived
        from it; levels set by hand stay.

        Args:
            path: The file.
            identity: The encoder that must have made it; None accepts any, to list or edit the bank.
            head: The head that will use it; None for the one in the file.
            max_tokens: How many tokens of a support the encoder makes at most.
            lacks: As `EngineChoice.lacks`.

        Raises:
            InputError: The path does not end in .safetensors.
            ArtifactError: The file is missing, damaged, or made by another encoder.
        """
        header, tensors = read_bank_file(path)
        try:
            made_by = read_encoder(path, header["encoder"])
            scored_by = record_from_json(HeadIdentity, path, header["head"])
            entries = [read_entry(entry) for entry in header["classes"]]
            num_frames = header.get("scene_frames", 0)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise damaged_header(path) from error
        if type(num_frames) is not int or len(made_by.name) > _MAX_NETWORK_NAME:
            raise damaged_header(path)
        if identity is not None:
            check_same_encoder(path, made_by, identity, lacks or {})
        bank, sizes = cls(made_by, scored_by), (made_by.num_channels, made_by.head_dim, max_tokens)
        try:
            check_level(scored_by.presence_level)
            bank.set_scene([read_jpeg(path, tensors, f"{_SCENE}.{index}") for index in range(num_frames)])
            if sum(len(entry["supports"]) + len(entry["negatives"]) for entry in entries) > MAX_SUPPORTS:
                raise ArtifactError(f"Bank {path} is damaged: it has more than {MAX_SUPPORTS} pictures and negatives.")
            for index, entry in enumerate(entries):
                supports, negatives = (
                    [
                        read_support(path, tensors, f"{key}.{shot}", facts, *sizes)
                        for shot, facts in enumerate(entry[kind])
                    ]
                    for kind, key in (("supports", f"{index}"), ("negatives", f"{index}.{_NOT}"))
                )
                name, level = entry["name"], check_level(entry["level"])
                bank._add(name, supports)
                bank._classes[name] = BankClass(tuple(supports), level, entry["is_level_by_hand"])
                for negative, margin in zip(negatives, entry["negative_margins"], strict=True):
                    bank.add_negative(name, Negative(negative, margin))
                if entry["scene_scores"]:
                    bank.set_scene_scores(name, entry["scene_scores"])
            bank.review = read_review(path, header, tensors, bank.classes)
            bank.zones = read_zones(path, header)
        except InputError as error:
            raise ArtifactError(f"Bank {path} is damaged: {error}") from error
        if head is not None and head != scored_by:
            bank.head = head
            for name, known in bank._classes.items():
                unscored = tuple(replace(support, loo_score=None) for support in known.supports)
                margined = tuple(replace(one, margin=NEGATIVE_MARGIN) for one in known.negatives)
                bank._classes[name] = bank._with_supports(replace(known, negatives=margined, scene_scores={}), unscored)
        return bank

    def _with_supports(self, entry: BankClass, supports: ClassSupports) -> BankClass:
        """The class with other supports, and with the level that they give if no person set it."""
        if entry.is_level_by_hand:
            return replace(entry, supports=supports)
        scores = [support.loo_score for support in supports]
        return replace(entry, supports=supports, own_level=level_of_supports(self.head.presence_level, scores))

    def _known(self, name: str) -> BankClass:
        return self._classes[self._name(name)]

    def _name(self, name: str) -> str:
        if (known := resolved(name, self._classes)) not in self._classes:
            raise InputError(f"Class {quoted(name)} is not enrolled; enrolled: {', '.join(self._classes) or 'none'}.")
        return known
