"""The support bank: the enrolled classes with their cached supports, in memory and as one file.

A cached support is kept in FP16 from the moment of enrolment, so that a class answers alike before and after a save.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fsvit_edge.runtime.atomic import atomic_write
from fsvit_edge.runtime.errors import ArtefactError, InputError

FORMAT_VERSION = 2
METADATA_KEY = "fsvit-edge-bank"
"""In the file's header: what tells a bank from other tensors."""
MAX_CLASSES = 255
"""A label map is uint8 and 0 is the background."""
MAX_NAME_LENGTH = 80
NUM_POOLED = 9
PRECISION = "fp16"


@dataclass(frozen=True)
class CachedSupport:
    """One support picture as the head reads it.

    Attributes:
        kept: (C, T, d) float16, L2-normalised class token, then the image tokens that the mask keeps.
        pooled: (C, 9, d) float16, image tokens averaged over the 3 x 3 pooled grid.
        pooled_mask: (9,) bool, where the second block may look.
        thumbnail: (h, w, 3) uint8 RGB.
        thumbnail_mask: (h, w) bool, what of the thumbnail the network takes for the thing: the mask that was given, or
            its guess.
        has_mask: False where the support was enrolled by its name alone.
    """

    kept: npt.NDArray[np.float16]
    pooled: npt.NDArray[np.float16]
    pooled_mask: npt.NDArray[np.bool_]
    thumbnail: npt.NDArray[np.uint8]
    thumbnail_mask: npt.NDArray[np.bool_]
    has_mask: bool

    @property
    def nbytes(self) -> int:
        """Bytes that the head's data take, without the thumbnail."""
        return self.kept.nbytes + self.pooled.nbytes + self.pooled_mask.nbytes


@dataclass(frozen=True)
class EncoderIdentity:
    """What a cached support depends on; a bank fits exactly one.

    Attributes:
        name: What people call the network.
        encoder_sha256: Of `encoder.onnx`.
        image_size: Side of the input in pixels.
        num_channels: Correlation channels C.
        head_dim: Values d per channel.
        precision: What the encoder's engine computes in.
    """

    name: str
    encoder_sha256: str
    image_size: int
    num_channels: int
    head_dim: int
    precision: str


class SupportBank:
    """Enrolled classes in the order of their enrolment.

    Args:
        identity: The encoder that makes the supports.
    """

    def __init__(self, identity: EncoderIdentity) -> None:
        self.identity = identity
        self._classes: dict[str, tuple[CachedSupport, ...]] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of enrolment."""
        return tuple(self._classes)

    def supports(self, name: str) -> tuple[CachedSupport, ...]:
        """Return the supports of a class.

        Raises:
            InputError: There is no such class.
        """
        self._check_known(name)
        return self._classes[name]

    def add(self, name: str, supports: Iterable[CachedSupport]) -> None:
        """Add supports to a class, which is made if it is new.

        Raises:
            InputError: The name cannot be used, no support is given, or the bank is full.
        """
        check_name(name)
        added = tuple(supports)
        if not added:
            raise InputError(f"Class {name!r} needs at least one picture.")
        if name not in self._classes and len(self._classes) == MAX_CLASSES:
            raise InputError(f"The bank holds {MAX_CLASSES} classes already; remove one before enrolling {name!r}.")
        self._classes[name] = self._classes.get(name, ()) + added

    def remove(self, name: str) -> None:
        """Forget a class.

        Raises:
            InputError: There is no such class.
        """
        self._check_known(name)
        del self._classes[name]

    def remove_support(self, name: str, index: int) -> None:
        """Forget one support of a class; the class goes with its last.

        Raises:
            InputError: There is no such class or support.
        """
        supports = self.supports(name)
        if not 0 <= index < len(supports):
            raise InputError(f"Class {name!r} has {len(supports)} pictures, no picture {index}.")
        if len(supports) == 1:
            self.remove(name)
        else:
            self._classes[name] = supports[:index] + supports[index + 1 :]

    def rename(self, old: str, new: str) -> None:
        """Rename a class, which keeps its place.

        Raises:
            InputError: `old` is not there, or `new` is, or cannot be used.
        """
        self._check_known(old)
        check_name(new)
        if new in self._classes:
            raise InputError(f"Class {new!r} is there already; remove it first or choose another name.")
        self._classes = {new if name == old else name: supports for name, supports in self._classes.items()}

    def save(self, path: Path) -> None:
        """Write the bank to one .safetensors file, whole or not at all.

        Raises:
            InputError: The path does not end in .safetensors or cannot be a file.
            FsvitEdgeError: The disk is full or the folder cannot be written; an old file is untouched.
        """
        check_bank_path(path)
        tensors: dict[str, npt.NDArray[Any]] = {}
        for class_index, supports in enumerate(self._classes.values()):
            for shot, support in enumerate(supports):
                for field in ("kept", "pooled", "pooled_mask", "thumbnail", "thumbnail_mask"):
                    tensors[f"{class_index}.{shot}.{field}"] = np.ascontiguousarray(getattr(support, field))
        header: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "precision": PRECISION,
            "encoder": vars(self.identity),
            "classes": [
                {"name": name, "has_mask": [support.has_mask for support in supports]}
                for name, supports in self._classes.items()
            ],
        }
        header["sha256"] = _digest(header, tensors)
        atomic_write(path, save(tensors, metadata={METADATA_KEY: json.dumps(header)}))

    @classmethod
    def load(cls, path: Path, identity: EncoderIdentity | None = None) -> "SupportBank":
        """Read a bank.

        Args:
            path: The file.
            identity: The encoder that it must have been made by; None takes the file's word, to list or edit it.

        Raises:
            ArtefactError: The file is missing, damaged, or made by another encoder.
        """
        check_bank_path(path)
        if not path.is_file():
            raise ArtefactError(
                f"Bank {path} does not exist; make one with: fsvit-edge enroll NAME IMAGE --bank {path}."
            )
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = (file.metadata() or {}).get(METADATA_KEY)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise ArtefactError(f"Bank {path} is damaged or not a safetensors file: {error}.") from error
        try:
            header = json.loads(metadata or "")
            digest = header.pop("sha256")
            version = header["format_version"]
            made_by = EncoderIdentity(**header["encoder"])
            classes = [(str(entry["name"]), [bool(flag) for flag in entry["has_mask"]]) for entry in header["classes"]]
            precision = header["precision"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ArtefactError(
                f"{path} is not a support bank of fsvit-edge: its header is missing or damaged."
            ) from error
        if version != FORMAT_VERSION or precision != PRECISION:
            raise ArtefactError(
                f"Bank {path} has format {version!r} in {precision!r}, this fsvit-edge reads {FORMAT_VERSION} in "
                f"{PRECISION!r}; enrol its classes again."
            )
        if digest != _digest(header, tensors):
            raise ArtefactError(
                f"Bank {path} is damaged: its contents do not have the sha256 that it states; enrol its classes again."
            )
        if identity is not None:
            _check_same_encoder(path, made_by, identity)
        bank = cls(made_by)
        for index, (name, flags) in enumerate(classes):
            supports = [
                _read_support(path, tensors, f"{index}.{shot}", flag, made_by) for shot, flag in enumerate(flags)
            ]
            try:
                bank.add(name, supports)
            except InputError as error:
                raise ArtefactError(f"Bank {path} is damaged: {error}") from error
        return bank

    def _check_known(self, name: str) -> None:
        if name not in self._classes:
            raise InputError(f"Class {name!r} is not enrolled; enrolled: {', '.join(self._classes) or 'none'}.")


def check_name(name: str) -> None:
    """Refuse a class name that a table, a file or a terminal could not show.

    Raises:
        InputError: The name is empty, too long, padded with blanks, or holds control characters.
    """
    if not name or name != name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise InputError(f"A class name must be 1 to {MAX_NAME_LENGTH} printable characters, got {name!r}.")


def check_bank_path(path: Path) -> None:
    """Refuse a bank's path that does not end in .safetensors.

    Raises:
        InputError: It does not.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"A bank is a .safetensors file, got {path}.")


def _check_same_encoder(path: Path, made_by: EncoderIdentity, identity: EncoderIdentity) -> None:
    if made_by == replace(identity, name=made_by.name):
        return
    for field, what in (("image_size", "image size"), ("encoder_sha256", "encoder")):
        theirs, ours = getattr(made_by, field), getattr(identity, field)
        if theirs != ours:
            short = f"{theirs!s:.12}... ({made_by.name})" if field == "encoder_sha256" else theirs
            mine = f"{ours:.12}... ({identity.name})" if field == "encoder_sha256" else ours
            raise ArtefactError(
                f"Bank {path} was made by another {what}: {short}, this bundle has {mine}; "
                "use the bundle that made it or enrol its classes again."
            )
    if made_by.precision != identity.precision:
        raise ArtefactError(
            f"Bank {path} was made in another precision: {made_by.precision!s:.40}, the engines here compute in "
            f"{identity.precision}; take it with --precision {made_by.precision!s:.40} or enrol its classes again."
        )
    raise ArtefactError(f"Bank {path} has tokens of another shape than this bundle's; enrol its classes again.")


def _digest(header: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """The sha256 of all that a bank says: safetensors checks the shape of a file, not its values."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def _read_support(
    path: Path, tensors: dict[str, npt.NDArray[Any]], key: str, has_mask: bool, identity: EncoderIdentity
) -> CachedSupport:
    channels, dim = identity.num_channels, identity.head_dim
    expected: dict[str, tuple[tuple[int | None, ...], type[np.generic]]] = {
        "kept": ((channels, None, dim), np.float16),
        "pooled": ((channels, NUM_POOLED, dim), np.float16),
        "pooled_mask": ((NUM_POOLED,), np.bool_),
        "thumbnail": ((None, None, 3), np.uint8),
        "thumbnail_mask": ((None, None), np.bool_),
    }
    fields = {}
    for field, (shape, dtype) in expected.items():
        array = tensors.get(f"{key}.{field}")
        fits = (
            array is not None
            and array.dtype == dtype
            and array.ndim == len(shape)
            and array.size > 0
            and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
            and (dtype is not np.float16 or bool(np.isfinite(array).all()))
        )
        if array is None or not fits:
            raise ArtefactError(f"Bank {path} is damaged: tensor {key}.{field} is missing, misshapen or not finite.")
        fields[field] = array
    if fields["thumbnail_mask"].shape != fields["thumbnail"].shape[:2]:
        raise ArtefactError(f"Bank {path} is damaged: tensor {key}.thumbnail_mask has another size than its picture.")
    return CachedSupport(**fields, has_mask=has_mask)
