"""How supports become runs of the head: groups that fit the memory and the engine, as the arrays it is fed."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.cached_support import CachedSupport, ClassSupports
from fsvit_edge.runtime.bundle import PROTOTYPE_HEAD
from fsvit_edge.runtime.engines.base import Array, Engine

Shot = tuple[int, CachedSupport]
"""A support with the number of its class."""

LARGEST_TENSOR_BYTES = 256 * 2**20
"""Bound on the largest tensor of one run: for 100 supports at once, the trained head's attention maps take 10 GB."""
ATTENTION_MAPS_PER_TOKEN = 8 * 10  # heads x pooled support tokens


def head_runs(
    classes: Sequence[ClassSupports], head: str, num_query: int, engine: Engine
) -> Iterator[dict[str, Array]]:
    """Yield the inputs of each run except the frame's tokens, of which there are `num_query`; the runs' answers add up.

    The engine limits how many supports it takes, and of what types; there is at least one class.

    For n supports of at most T kept tokens: "kept" (n, C, T, d), padded with zeros; "kept_mask" (n, T); "pooled"
    (n, C, 9, d); "pooled_mask" (n, 9); "averaging" (ways, n), the share of each support in its class's answer.
    """
    shots = [(way, support) for way, supports in enumerate(classes) for support in supports]
    longest = max(support.kept.shape[1] for _, support in shots)
    dtypes = {spec.name: spec.dtype for spec in engine.inputs}
    size = np.dtype(dtypes["kept"]).itemsize
    num_channels, _, head_dim = shots[0][1].kept.shape
    values_each = num_channels * head_dim if head == PROTOTYPE_HEAD else ATTENTION_MAPS_PER_TOKEN * num_query
    fitting = LARGEST_TENSOR_BYTES // (values_each * longest * size)
    most = max(1, min(fitting, engine.limits.get("supports", fitting)))
    if head == PROTOTYPE_HEAD:
        groups = whole_classes(shots, most)
    else:
        groups = _slices(sorted(shots, key=lambda shot: -shot[1].kept.shape[1]), most)
    counts = np.array([len(supports) for supports in classes])
    for group in groups:
        yield {name: array.astype(dtypes[name], copy=False) for name, array in _arrays(group, counts).items()}


def whole_classes(shots: list[Shot], size: int) -> list[list[Shot]]:
    """Cut into runs of at most `size` that keep a class's supports together: the prototype head compares all at once.

    Only a class of more than `size` supports is split; its answer is then the mean over its parts.
    """
    runs: list[list[Shot]] = [[]]
    for _, group in groupby(shots, key=itemgetter(0)):
        for part in _slices(list(group), size):
            if len(runs[-1]) + len(part) > size:
                runs.append([])
            runs[-1] += part
    return runs


def _slices(shots: list[Shot], size: int) -> list[list[Shot]]:
    return [shots[start : start + size] for start in range(0, len(shots), size)]


def _arrays(shots: list[Shot], counts: npt.NDArray[np.intp]) -> dict[str, Array]:
    num_channels, _, head_dim = shots[0][1].kept.shape
    longest = max(support.kept.shape[1] for _, support in shots)
    kept = np.zeros((len(shots), num_channels, longest, head_dim), np.float16)
    kept_mask = np.zeros((len(shots), longest), np.float32)
    averaging = np.zeros((len(counts), len(shots)), np.float32)
    for index, (way, support) in enumerate(shots):
        length = support.kept.shape[1]
        kept[index, :, :length] = support.kept
        kept_mask[index, :length] = 1
        averaging[way, index] = 1 / counts[way]
    return {
        "kept": kept,
        "kept_mask": kept_mask,
        "pooled": np.stack([support.pooled for _, support in shots]),
        "pooled_mask": np.stack([support.pooled_mask for _, support in shots]),
        "averaging": averaging,
    }
