"""One support picture as the head reads it, in memory and in a bank's file."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.errors import ArtifactError

NUM_POOLED = 9
MAX_OBJECTNESS_WEIGHT = 2.0
MAX_TOKENS = 4097
"""Of a support, if the encoder is not known: the class token and a grid of 64 x 64."""
_MAX_VALUE = 4.0  # tokens have length 1; much larger values overflow in the head
_MAX_THUMBNAIL_PX = 512
_DIMMED = 0.25
TENSORS = ("kept", "pooled", "pooled_mask", "thumbnail", "thumbnail_mask")
FACTS = ("has_mask", "loo_score", "objectness_weight")
"""The other fields, which are in the file's header."""

Half = npt.NDArray[np.float16]


@dataclass(frozen=True)
class CachedSupport:
    """One support picture as the head reads it."""

    kept: Half  # (C, T, d) float16, the L2-normalized class token, then the image tokens that the mask keeps
    pooled: Half  # (C, 9, d) float16, image tokens averaged over the 3 x 3 pooled grid
    pooled_mask: npt.NDArray[np.bool_]  # (9,) bool, which of these the second block may use
    thumbnail: npt.NDArray[np.uint8]  # (h, w, 3) uint8 RGB
    thumbnail_mask: npt.NDArray[np.bool_]  # (h, w) bool, the mask that was given or guessed, on the thumbnail
    has_mask: bool  # False if the support was enrolled by its name alone
    loo_score: float | None = None  # leave-one-out P(present) by the class's earlier supports, in [0, 1]; or None
    objectness_weight: float = 0.0  # how much an objectness map counts for this object, in [0, 2]

    @property
    def nbytes(self) -> int:
        """Size of the head's data in bytes, without the thumbnail."""
        return self.kept.nbytes + self.pooled.nbytes + self.pooled_mask.nbytes

    @cached_property
    def thumbnail_key(self) -> str:
        """Checksum of the thumbnail and its mask, by which a viewer knows that it shows them already."""
        return f"{zlib.crc32(self.thumbnail_mask.tobytes(), zlib.crc32(self.thumbnail.tobytes())):08x}"

    def dimmed(self) -> npt.NDArray[np.uint8]:
        """The thumbnail, dark where the mask is not."""
        return (self.thumbnail * np.where(self.thumbnail_mask, 1.0, _DIMMED)[..., None]).astype(np.uint8)


ClassSupports = tuple[CachedSupport, ...]
"""The supports of one class, in the order of enrollment; a bank makes a new tuple on every change."""


def share_a_picture(one: ClassSupports, other: ClassSupports) -> bool:
    """Whether two classes, perhaps of two banks, have a support in common; classes of one name need not."""
    return any(
        np.array_equal(mine.kept, theirs.kept) and np.array_equal(mine.thumbnail, theirs.thumbnail)
        for mine in one
        for theirs in other
    )


@dataclass(frozen=True)
class Negative:
    """A picture that a person said is not a class."""

    support: CachedSupport
    margin: float  # in log-odds, see `decide.negative_margin`

    @cached_property  # the same tuple for every frame, by which the network knows that it is uploaded
    def alone(self) -> ClassSupports:
        """The picture as the head reads it: as a class of one support."""
        return (self.support,)


def support_tensors(key: str, supports: ClassSupports) -> dict[str, npt.NDArray[Any]]:
    """The tensors of supports by their names in a bank's file."""
    return {
        f"{key}.{shot}.{field}": np.ascontiguousarray(getattr(support, field))
        for shot, support in enumerate(supports)
        for field in TENSORS
    }


def facts_of(supports: ClassSupports) -> dict[str, list[Any]]:
    """The `FACTS` of supports as columns, for a bank's header."""
    return {field: [getattr(support, field) for support in supports] for field in FACTS}


def read_facts(columns: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The `FACTS` of each support; a KeyError, TypeError or ValueError if a column is missing or of another length."""
    if columns is None:
        return []
    return [dict(zip(FACTS, row, strict=True)) for row in zip(*(columns[field] for field in FACTS), strict=True)]


def read_support(
    path: Path,
    tensors: Mapping[str, npt.NDArray[Any]],
    key: str,
    facts: Mapping[str, Any],
    num_channels: int,
    head_dim: int,
    max_tokens: int = MAX_TOKENS,
) -> CachedSupport:
    """Read one support from a bank's file, where its tensors are named `key`.`field`; `facts` are its `FACTS`.

    Raises:
        ArtifactError: A tensor or a fact is missing, of the wrong shape or type, or out of range.
    """
    expected: dict[str, tuple[tuple[int | None, ...], type[np.generic]]] = {
        "kept": ((num_channels, None, head_dim), np.float16),
        "pooled": ((num_channels, NUM_POOLED, head_dim), np.float16),
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
            and (dtype is not np.float16 or bool((np.abs(array) <= _MAX_VALUE).all()))  # false of a NaN
        )
        if array is None or not fits:
            raise ArtifactError(f"Bank {path} is damaged: tensor {key}.{field} is missing, misshapen or not finite.")
        fields[field] = array
    if fields["kept"].shape[1] > max_tokens:
        got = f"{fields['kept'].shape[1]} tokens, and its encoder makes at most {max_tokens}"
        raise ArtifactError(f"Bank {path} is damaged: support {key} has {got}.")
    if max(fields["thumbnail"].shape) > _MAX_THUMBNAIL_PX:
        raise ArtifactError(f"Bank {path} is damaged: tensor {key}.thumbnail is larger than {_MAX_THUMBNAIL_PX} px.")
    if fields["thumbnail_mask"].shape != fields["thumbnail"].shape[:2]:
        raise ArtifactError(f"Bank {path} is damaged: tensor {key}.thumbnail_mask is not the size of its picture.")
    loo_score, weight = facts["loo_score"], facts["objectness_weight"]
    for field, value, highest in (("loo_score", loo_score, 1), ("objectness_weight", weight, MAX_OBJECTNESS_WEIGHT)):
        # Not `value > highest`, which is false of a NaN.
        if not (type(value) in (int, float) and 0 <= value <= highest) and not (field == "loo_score" and value is None):
            got = f"{value!r:.40}, not a number from 0 to {highest:g}"
            raise ArtifactError(f"Bank {path} is damaged: {field} of support {key} is {got}.")
    if type(facts["has_mask"]) is not bool:
        raise ArtifactError(f"Bank {path} is damaged: has_mask of support {key} is {facts['has_mask']!r:.40}.")
    return CachedSupport(**fields, has_mask=facts["has_mask"], loo_score=loo_score, objectness_weight=weight)
