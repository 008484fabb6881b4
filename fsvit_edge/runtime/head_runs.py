"""How a bank's supports become runs of the head: groups that memory and the engine allow, as the arrays it is fed."""

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.bank import SupportBank
from fsvit_edge.runtime.bundle import PROTOTYPE_HEAD
from fsvit_edge.runtime.cached_support import CachedSupport
from fsvit_edge.runtime.engines.base import Array, Engine

Shot = tuple[int, CachedSupport]
"""A support with the number of its class."""

LARGEST_TENSOR_BYTES = 256 * 2**20
"""Of what one run holds of its supports: at once, 100 supports' attention maps in the trained head would need 10 GB."""
ATTENTION_MAPS_PER_TOKEN = 8 * 10  # heads x pooled support tokens


def head_runs(bank: SupportBank, head: str, num_query: int, engine: Engine) -> Iterator[dict[str, Array]]:
    """Make the inputs of each run but for the frame's tokens; what the runs answer is added up.

    Args:
        bank: One class at least.
        head: One of `bundle.HEADS`.
        num_query: Tokens of a frame.
        engine: Of the head; tells how many supports it takes, and of what types.
    """
    shots = [(way, support) for way, name in enumerate(bank.classes) for support in bank.supports(name)]
    counts = np.bincount([way for way, _ in shots])
    longest = max(support.kept.shape[1] for _, support in shots)
    dtypes = {spec.name: spec.dtype for spec in engine.inputs}
    size = np.dtype(dtypes["kept"]).itemsize
    if head == PROTOTYPE_HEAD:
        bytes_each = bank.identity.num_channels * bank.identity.head_dim * longest * size
        groups = whole_classes(shots, _largest_run(bytes_each, engine))
    else:
        shots.sort(key=lambda shot: -shot[1].kept.shape[1])
        bytes_each = ATTENTION_MAPS_PER_TOKEN * num_query * longest * size
        groups = _slices(shots, _largest_run(bytes_each, engine))
    for group in groups:
        yield {name: array.astype(dtypes[name], copy=False) for name, array in _arrays(group, counts, bank).items()}


def whole_classes(shots: list[Shot], size: int) -> list[list[Shot]]:
    """Cut into runs of at most `size` that do not part a class's supports, which the prototype head judges together.

    Only a class of more than `size` supports is parted; its answer is then the mean of its parts'.
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


def _largest_run(bytes_each: int, engine: Engine) -> int:
    """How many supports share a run: as memory allows, and the engine."""
    fitting = LARGEST_TENSOR_BYTES // bytes_each
    return max(1, min(fitting, engine.limits.get("supports", fitting)))


def _arrays(shots: list[Shot], counts: npt.NDArray[np.intp], bank: SupportBank) -> dict[str, Array]:
    longest = max(support.kept.shape[1] for _, support in shots)
    kept = np.zeros((len(shots), bank.identity.num_channels, longest, bank.identity.head_dim), np.float16)
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
