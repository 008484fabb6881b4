"""Training episodes made of cached tokens, and which pictures and masks they may use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fsvit_edge.learn.episodes import Episode, present, training_episode
from fsvit_edge.learn.examples import IGNORE, FewShotData
from fsvit_edge.learn.options import TrainOptions
from fsvit_edge.learn.tokens import TokenCache
from fsvit_edge.learn.views import draw_view
from fsvit_edge.runtime.errors import InputError

VALIDATION_EPISODES = 200
"""Maximum number; a smaller data set has one per example."""
_TRAINING, _VALIDATION, _SPLIT = range(3)
"""Purposes of random numbers: the seed (seed, purpose, numbers...) makes each episode independent of all others."""
_VIEW_TRIES = 10
_DRAWS = 10_000


@dataclass(frozen=True)
class ValidationSplit:
    """Which pictures are for validation, and which masks may be used."""

    held_out: frozenset[str]  # photographs for validation; if empty, the validation uses training pictures
    known: tuple[bool, ...]  # for each example, whether its true mask may be used


def choose_split(data: FewShotData, options: TrainOptions) -> ValidationSplit:
    """Set photographs aside for validation, and choose whose masks may be used; a needed mask must exist."""
    rng = np.random.default_rng((options.seed, _SPLIT))
    photographs = sorted({example.photograph for example in data.examples})
    shuffled = [photographs[i] for i in rng.permutation(len(photographs))]
    held_out = frozenset(shuffled[: round(options.validation_fraction * len(photographs))])
    if options.supervision == "image":
        return ValidationSplit(held_out, (False,) * len(data.examples))
    with_masks = set(photographs)
    if options.supervision == "mixed":
        rest = [photograph for photograph in shuffled if photograph not in held_out]
        with_masks = set(rest[: max(1, round(options.mask_fraction * len(rest)))])
        if options.mask_list:
            with_masks = _listed(data, options.mask_list)
    known = tuple(example.photograph in with_masks for example in data.examples)
    for example, mask_needed in zip(data.examples, known, strict=True):
        if mask_needed and example.mask is None:
            raise InputError(f"{example.image} has no mask; add it, or train with --supervision image or mixed.")
    return ValidationSplit(held_out, known)


def _listed(data: FewShotData, names: Sequence[str]) -> set[str]:
    """Return the photographs of pictures that are given as class/stem."""
    of_name = {f"{data.class_names[e.label]}/{e.image.stem}": e.photograph for e in data.examples}
    if unknown := [name for name in names if name not in of_name]:
        raise InputError(
            f"The mask list contains {unknown[0]!r}, which is not in the data set; expected class/stem, for example "
            f"{next(iter(of_name))!r}."
        )
    return {of_name[name] for name in names}


class EpisodeBatch(NamedTuple):
    """B one-way one-shot episodes."""

    query: Tensor  # (B, L + 1, 1 + N, D) float16 cached encoder output of the query, see `TokenCache`
    support: Tensor  # likewise of the support
    support_mask: Tensor  # (B, S, S) uint8, 0 or 1; meaningless where `support_known` is False
    query_mask: Tensor  # (B, S, S) uint8, 0, 1 or 255 (ignored); 0 if the class is absent
    support_known: Tensor  # (B,) bool, whether the support's true mask may be used
    query_known: Tensor  # (B,) bool, whether the query's true mask may be used
    present: Tensor  # (B,) bool, whether the query shows the support's class
    label: Tensor  # (B,) int64, the support's class
    shown: Tensor  # (B, labels) bool, every class that the query's photograph is listed under
    query_objectness: Tensor  # (B, n, n) float16 logits; n is 0 if the network predicts no objectness
    support_objectness: Tensor  # likewise of the support


class Episodes(Dataset[EpisodeBatch]):
    """The episodes of one epoch, or for validation (None); the same seed and epoch always give the same episodes."""

    def __init__(
        self, data: FewShotData, cache: TokenCache, options: TrainOptions, split: ValidationSplit, epoch: int | None
    ) -> None:
        self.data, self.cache, self.options, self.split = data, cache, options, split
        self.validation = epoch is None
        self.stream = (options.seed, _VALIDATION) if epoch is None else (options.seed, _TRAINING, epoch)
        self.count = len(data.examples) if epoch is not None else min(VALIDATION_EPISODES, len(data.examples))
        self.size = cache.network.config.image_size

    def __len__(self) -> int:
        """Return the number of episodes."""
        return self.count

    def __getitem__(self, number: int) -> EpisodeBatch:
        """Return one episode: an `EpisodeBatch` without its first axis."""
        rng = np.random.default_rng((*self.stream, number))
        episode = self._draw(rng)
        query, (label,), ((support,),) = episode.query, episode.ways, episode.supports
        here = bool(present(self.data, episode, from_masks=self.split.known[query])[0])
        # Validation uses every picture unchanged, because that is how users' pictures arrive.
        views = not self.validation and self.cache.views > 1
        if views and here and rng.random() < self.options.same_picture:
            support = query if self.data.examples[query].label == label else support
        query_view, support_view = (self._view(index, rng) if views else 0 for index in (query, support))
        support_mask, support_known = self._mask(support, label, support_view)
        if not self.validation and rng.random() < self.options.mask_dropout:
            support_known = False
        query_image, support_image = (self.data.examples[index].image for index in (query, support))
        query_mask, query_known = torch.zeros_like(support_mask), True
        if here:
            query_mask, query_known = self._mask(query, label, query_view)
            # The view was chosen for the query's own class, so its crop may have lost an object of another class.
            here = not query_known or bool((query_mask == 1).any())
        shown = torch.zeros(max(self.data.class_names) + 1, dtype=torch.bool)
        shown[list(self.data.labels_of(query))] = True
        return EpisodeBatch(
            torch.from_numpy(self.cache.read_packed(query_image, query_view)),
            torch.from_numpy(self.cache.read_packed(support_image, support_view)),
            torch.where(support_mask == IGNORE, 0, support_mask),
            query_mask,
            torch.tensor(support_known),
            torch.tensor(query_known),
            torch.tensor(here),
            torch.tensor(label),
            shown,
            torch.from_numpy(self.cache.read_objectness(query_image, query_view)),
            torch.from_numpy(self.cache.read_objectness(support_image, support_view)),
        )

    def _draw(self, rng: np.random.Generator) -> Episode:
        """Draw until the pictures are on the right side of the split, which keeps the distribution of the sampler."""
        held_out = self.split.held_out
        for _ in range(_DRAWS):
            # With more than 1 way, the other queries of the batch are the negative examples of each class.
            own = self.options.ways > 1 and not self.validation
            episode = training_episode(self.data, rng, ways=1, shots=1, own_class=own)
            photographs = [self.data.examples[i].photograph for i in (episode.query, *episode.supports[0])]
            if photographs[1] not in held_out and (photographs[0] in held_out) == (self.validation and bool(held_out)):
                return episode
        raise InputError(
            "No episode has its query in the validation pictures and its support in the training pictures; "
            "add pictures or change the validation fraction."
        )

    def _view(self, index: int, rng: np.random.Generator) -> int:
        """Draw a view; if the example's mask may be used, one that still shows enough of the object."""
        if not self.split.known[index]:
            return int(rng.integers(self.cache.views))
        mask = self.data.read_mask(index)
        digest = self.cache.digest(self.data.examples[index].image)
        for _ in range(_VIEW_TRIES):
            number = int(rng.integers(self.cache.views))
            if draw_view(digest, number).keeps(mask):
                return number
        return 0

    def _mask(self, index: int, label: int, view: int) -> tuple[Tensor, bool]:
        if not self.split.known[index]:
            return torch.zeros(self.size, self.size, dtype=torch.uint8), False
        digest = self.cache.digest(self.data.examples[index].image)
        truth = self.data.read_truth(index, [label])
        return torch.from_numpy(draw_view(digest, view).of_mask(truth, self.size)), True
