"""A cheap first look at a frame, which leaves most of many classes out of the head's comparison.

The head needs milliseconds for each support, the first look one matrix product for all of them: how like the mean of a
support's kept image tokens is the most similar token of the frame? `benchmarks/many_classes.py` measures what it costs
in hits and saves in time.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.cached_support import CachedSupport, ClassSupports
from fsvit_edge.fewshot.decide import Flags
from fsvit_edge.fewshot.heads import HeadAnswer, are_same
from fsvit_edge.fewshot.network import ExportedNetwork
from fsvit_edge.runtime.engines.base import Array, ResidentTensor, on_host
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.postprocess import Maps


class FirstLook:
    """Chooses the classes of a frame that are worth comparing.

    Args:
        most: How many classes to choose, at least 1.

    Raises:
        InputError: `most` is not such a number.
    """

    def __init__(self, most: int) -> None:
        if type(most) is not int or most < 1:
            raise InputError(f"The first look must leave at least 1 class to compare, got {most!r:.40}.")
        self.most = most
        self._seen: tuple[Sequence[ClassSupports], npt.NDArray[np.float32]] | None = None

    def likeliest(self, tokens: Array, classes: Sequence[ClassSupports]) -> list[int]:
        """Return the indices of the likeliest `most` of at least one class, in ascending order; see `likeness`."""
        return sorted(np.argsort(-self.likeness(tokens, classes), kind="stable")[: self.most].tolist())

    def likeness(self, tokens: Array, classes: Sequence[ClassSupports]) -> npt.NDArray[np.float32]:
        """Return how like the frame each class's likeliest support is: cosines, (ways,) float32.

        `tokens` (1, C, N, d) are those of the frame, L2-normalized.
        """
        frame = tokens[0].astype(np.float32, copy=False)  # C, N, d
        of_support = np.matmul(self._prototypes(classes), frame.transpose(0, 2, 1)).mean(axis=0).max(axis=1)
        firsts = np.cumsum([0, *(len(supports) for supports in classes[:-1])])
        return np.asarray(np.maximum.reduceat(of_support, firsts), np.float32)

    def _prototypes(self, classes: Sequence[ClassSupports]) -> npt.NDArray[np.float32]:
        """The prototypes of all supports, (C, supports, d), L2-normalized."""
        if self._seen is None or not are_same(self._seen[0], classes):
            means = [_prototype(support) for supports in classes for support in supports]
            self._seen = (tuple(classes), np.stack(means, axis=1))
        return self._seen[1]


def compare_bank(
    network: ExportedNetwork, tokens: Array | ResidentTensor, bank: SupportBank, look: FirstLook | None
) -> HeadAnswer:
    """Compare an encoded frame with the classes of a bank and their negatives, see `ExportedNetwork.compare`.

    Classes that the first look leaves out, and their negatives, score 0 and have no foreground.
    """
    classes, negatives = bank.class_supports, bank.negative_supports
    if look is None or len(classes) <= look.most:
        return network.compare(tokens, classes, negatives)
    chosen = look.likeliest(on_host(tokens), classes)
    judged = [index for index, (way, _) in enumerate(bank.negative_margins) if way in chosen]
    found = network.compare(tokens, [classes[way] for way in chosen], [negatives[index] for index in judged])
    places = [*chosen, *(len(classes) + index for index in judged)]
    scores = np.zeros(len(classes) + len(negatives), np.float32)
    scores[places] = found.scores

    def outline(wanted: Flags) -> Maps:
        of_chosen = found.foreground(wanted[places])
        foreground = np.zeros((len(scores), *of_chosen.shape[1:]), np.float32)
        foreground[places] = of_chosen
        return foreground

    return HeadAnswer(scores, outline)


def _prototype(support: CachedSupport) -> npt.NDArray[np.float32]:
    """The mean of the kept image tokens, or the class token if no image token is kept: (C, d), L2-normalized."""
    kept = support.kept.astype(np.float32)
    mean = kept[:, 1:].mean(axis=1) if kept.shape[1] > 1 else kept[:, 0]
    return np.asarray(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12), np.float32)
