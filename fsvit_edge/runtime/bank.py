"""The support bank: the enrolled classes with their cached supports, in memory and as one file.

A cached support is FP16 from the moment of enrollment, so that scores are the same before and after a save.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fsvit_edge.runtime.cached_support import FACTS, TENSORS, CachedSupport, ClassSupports, read_support
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.presence_level import DEFAULT_LEVEL, check_level, level_of_supports
from fsvit_edge.runtime.storage import atomic_write

FORMAT_VERSION = 3
METADATA_KEY = "fsvit-edge-bank"
"""Key in the file's header that only a bank has."""
MAX_CLASSES = 255
"""A label map is uint8, and 0 is the background."""
MAX_NAME_LENGTH = 80
PRECISION = "fp16"

LevelSource = Literal["default", "own pictures", "by hand"]


@dataclass(frozen=True)
class EncoderIdentity:
    """The encoder that made the supports; a bank belongs to exactly one.

    Attributes:
        name: Name of the network, for people.
        encoder_sha256: Sum of `encoder.onnx`, in hexadecimal.
        image_size: Side of the input in pixels.
        num_channels: Correlation channels C.
        head_dim: Values d per channel.
        precision: Of the encoder's engine: "fp32", "fp16" or "int8".
    """

    name: str
    encoder_sha256: str
    image_size: int
    num_channels: int
    head_dim: int
    precision: str


@dataclass(frozen=True)
class HeadIdentity:
    """The head, on which the level of a class depends besides its supports.

    Attributes:
        sha256: Sum of `head.onnx`, in hexadecimal; empty if unknown.
        presence_level: The level of a class with one support, in (0, 1).
    """

    sha256: str = ""
    presence_level: float = DEFAULT_LEVEL


@dataclass(frozen=True)
class _Entry:
    """A class in a file's header; `supports` has the fields of each support."""

    name: str
    level: Any
    is_level_by_hand: bool
    supports: list[dict[str, Any]]


@dataclass(frozen=True)
class _Class:
    """An enrolled class, the score above which it is present, and whether a person set that."""

    supports: ClassSupports
    level: float
    is_level_by_hand: bool


class SupportBank:
    """Enrolled classes, in the order of enrollment.

    Args:
        identity: The encoder that makes the supports.
        head: The head that compares frames with them; None for an unknown one with the published heads' level.
    """

    def __init__(self, identity: EncoderIdentity, head: HeadIdentity | None = None) -> None:
        self.identity = identity
        self.head = head or HeadIdentity()
        self._classes: dict[str, _Class] = {}

    def emptied(self) -> "SupportBank":
        """Return an empty bank of the same encoder and head."""
        return SupportBank(self.identity, self.head)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of enrollment."""
        return tuple(self._classes)

    @property
    def class_supports(self) -> tuple[ClassSupports, ...]:
        """The supports of every class, in the order of enrollment."""
        return tuple(entry.supports for entry in self._classes.values())

    def supports(self, name: str) -> ClassSupports:
        """Return the supports of a class.

        Raises:
            InputError: The class is not enrolled.
        """
        self._check_known(name)
        return self._classes[name].supports

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
        """Return the score above which a class is present, in (0, 1).

        Raises:
            InputError: The class is not enrolled.
        """
        self._check_known(name)
        return self._classes[name].level

    def level_source(self, name: str) -> LevelSource:
        """Return where the level of a class comes from.

        Raises:
            InputError: The class is not enrolled.
        """
        self._check_known(name)
        entry = self._classes[name]
        if entry.is_level_by_hand:
            return "by hand"
        return "default" if all(support.loo_score is None for support in entry.supports) else "own pictures"

    def set_level(self, name: str, level: float | None) -> None:
        """Set the level of a class by hand, which stays when pictures are added.

        Args:
            name: The class.
            level: In (0, 1); None derives it from the class's pictures again.

        Raises:
            InputError: The class is not enrolled, or the level is out of range.
        """
        supports = self.supports(name)
        self._classes[name] = self._class_of(supports) if level is None else _Class(supports, check_level(level), True)

    def add(self, name: str, supports: Iterable[CachedSupport]) -> None:
        """Add supports to a class, which is created if it is new.

        Raises:
            InputError: The name cannot be used, no support is given, or the bank is full.
        """
        check_name(name)
        added = tuple(supports)
        if not added:
            raise InputError(f"Class {name!r} needs at least one picture.")
        if name not in self._classes and len(self._classes) == MAX_CLASSES:
            raise InputError(f"The bank already has {MAX_CLASSES} classes; remove one before enrolling {name!r}.")
        before = self._classes.get(name)
        self._classes[name] = self._class_of((before.supports if before else ()) + added, before)

    def remove(self, name: str) -> None:
        """Remove a class.

        Raises:
            InputError: The class is not enrolled.
        """
        self._check_known(name)
        del self._classes[name]

    def remove_support(self, name: str, index: int) -> None:
        """Remove one support of a class; removing the last one removes the class.

        Args:
            name: The class.
            index: Of the support, in the order of enrollment, from 0.

        Raises:
            InputError: The class is not enrolled or has no such support.
        """
        supports = self.supports(name)
        if not 0 <= index < len(supports):
            raise InputError(f"Class {name!r} has {len(supports)} pictures and no picture {index}.")
        if len(supports) == 1:
            self.remove(name)
        else:
            self._classes[name] = self._class_of(supports[:index] + supports[index + 1 :], self._classes[name])

    def rename(self, old: str, new: str) -> None:
        """Rename a class, which keeps its place.

        Raises:
            InputError: `old` is not enrolled, or `new` already is or cannot be used.
        """
        self._check_known(old)
        check_name(new)
        if new in self._classes:
            raise InputError(f"Class {new!r} already exists; remove it first or choose another name.")
        self._classes = {new if name == old else name: entry for name, entry in self._classes.items()}

    def save(self, path: Path) -> None:
        """Write the bank to one .safetensors file, whole or not at all.

        Raises:
            InputError: The path does not end in .safetensors or cannot be a file.
            FsvitEdgeError: The disk is full or the folder is not writable; an old file is unchanged.
        """
        check_bank_path(path)
        tensors: dict[str, npt.NDArray[Any]] = {}
        for class_index, entry in enumerate(self._classes.values()):
            for shot, support in enumerate(entry.supports):
                for field in TENSORS:
                    tensors[f"{class_index}.{shot}.{field}"] = np.ascontiguousarray(getattr(support, field))
        header: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "precision": PRECISION,
            "encoder": vars(self.identity),
            "head": vars(self.head),
            "classes": [
                {
                    "name": name,
                    "level": entry.level,
                    "is_level_by_hand": entry.is_level_by_hand,
                    **{field: [getattr(support, field) for support in entry.supports] for field in FACTS},
                }
                for name, entry in self._classes.items()
            ],
        }
        header["sha256"] = _digest(header, tensors)
        atomic_write(path, save(tensors, metadata={METADATA_KEY: json.dumps(header)}))

    @classmethod
    def load(
        cls, path: Path, identity: EncoderIdentity | None = None, head: HeadIdentity | None = None
    ) -> "SupportBank":
        """Read a bank.

        Leave-one-out scores of another head do not apply to this one, so they are dropped, and with them the levels
        derived from them; levels set by hand stay.

        Args:
            path: The file.
            identity: The encoder that must have made it; None accepts any, to list or edit the bank.
            head: The head that will use it; None for the one in the file.

        Raises:
            InputError: The path does not end in .safetensors.
            ArtifactError: The file is missing, damaged, or made by another encoder.
        """
        check_bank_path(path)
        if not path.is_file():
            raise ArtifactError(
                f"Bank {path} does not exist; make one with: fsvit-edge enroll NAME IMAGE --bank {path}."
            )
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = (file.metadata() or {}).get(METADATA_KEY)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise ArtifactError(f"Bank {path} is damaged or not a safetensors file: {error}.") from error
        try:
            header = json.loads(metadata or "")
            digest = header.pop("sha256")
            version, precision = header["format_version"], header["precision"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _no_bank(path) from error
        if version != FORMAT_VERSION or precision != PRECISION:
            raise ArtifactError(
                f"Bank {path} has format {version!r} in {precision!r}, this fsvit-edge reads {FORMAT_VERSION} in "
                f"{PRECISION!r}; enroll its classes again."
            )
        try:
            made_by, scored_by = EncoderIdentity(**header["encoder"]), HeadIdentity(**header["head"])
            entries = [_read_entry(entry) for entry in header["classes"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _no_bank(path) from error
        if digest != _digest(header, tensors):
            raise ArtifactError(
                f"Bank {path} is damaged: its contents do not match its sha256; enroll its classes again."
            )
        if identity is not None:
            _check_same_encoder(path, made_by, identity)
        bank = cls(made_by, scored_by)
        try:
            check_level(scored_by.presence_level)
            for index, entry in enumerate(entries):
                supports = [
                    read_support(path, tensors, f"{index}.{shot}", facts, made_by.num_channels, made_by.head_dim)
                    for shot, facts in enumerate(entry.supports)
                ]
                bank.add(entry.name, supports)
                bank._classes[entry.name] = _Class(tuple(supports), check_level(entry.level), entry.is_level_by_hand)
        except InputError as error:
            raise ArtifactError(f"Bank {path} is damaged: {error}") from error
        if head is not None and head != scored_by:
            bank._change_head(head)
        return bank

    def _class_of(self, supports: ClassSupports, before: _Class | None = None) -> _Class:
        if before is not None and before.is_level_by_hand:
            return replace(before, supports=supports)
        return _Class(
            supports, level_of_supports(self.head.presence_level, [support.loo_score for support in supports]), False
        )

    def _change_head(self, head: HeadIdentity) -> None:
        self.head = head
        for name, entry in self._classes.items():
            supports = tuple(replace(support, loo_score=None) for support in entry.supports)
            self._classes[name] = self._class_of(supports, entry)

    def _check_known(self, name: str) -> None:
        if name not in self._classes:
            raise InputError(f"Class {name!r} is not enrolled; enrolled: {', '.join(self._classes) or 'none'}.")


def check_name(name: str) -> None:
    """Refuse a class name that a table, a file or a terminal could not show.

    Raises:
        InputError: The name is empty, too long, starts or ends with a space, or contains control characters.
    """
    if not name or name != name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise InputError(f"A class name must be 1 to {MAX_NAME_LENGTH} printable characters, got {name!r}.")


def check_bank_path(path: Path) -> None:
    """Refuse a path that does not end in .safetensors.

    Raises:
        InputError: The path has another suffix.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"A bank must be a .safetensors file, got {path}.")


def _check_same_encoder(path: Path, made_by: EncoderIdentity, identity: EncoderIdentity) -> None:
    if made_by == replace(identity, name=made_by.name):
        return
    for field, what in (("image_size", "image size"), ("encoder_sha256", "encoder")):
        theirs, ours = getattr(made_by, field), getattr(identity, field)
        if theirs != ours:
            short = f"{theirs!s:.12}... ({made_by.name})" if field == "encoder_sha256" else theirs
            mine = f"{ours:.12}... ({identity.name})" if field == "encoder_sha256" else ours
            raise ArtifactError(
                f"Bank {path} was made with a different {what}: {short}, but this bundle has {mine}; "
                "use the bundle that made it or enroll its classes again."
            )
    if made_by.precision != identity.precision:
        raise ArtifactError(
            f"Bank {path} was made in {made_by.precision!s:.40}, but the engines here compute in "
            f"{identity.precision}; use it with --precision {made_by.precision!s:.40} or enroll its classes again."
        )
    raise ArtifactError(f"Bank {path} has tokens of a different shape than this bundle's; enroll its classes again.")


def _digest(header: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the sha256 of header and tensors: safetensors checks the shape of a file, not its values."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def _no_bank(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} is not a support bank of fsvit-edge: its header is missing or damaged.")


def _read_entry(entry: Any) -> _Entry:
    """Read one class of a header; a ValueError, KeyError or TypeError if it is malformed."""
    name, level, is_by_hand = str(entry["name"]), entry["level"], bool(entry["is_level_by_hand"])
    columns = zip(*(entry[field] for field in FACTS), strict=True)
    return _Entry(name, level, is_by_hand, [dict(zip(FACTS, row, strict=True)) for row in columns])
