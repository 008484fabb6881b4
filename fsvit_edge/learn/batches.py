"""Episodes of cached tokens, as the training reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fsvit_edge.learn.datasets import IGNORE, FewShotData
from fsvit_edge.learn.episodes import Episode, present, training_episode
from fsvit_edge.learn.tokens import TokenCache
from fsvit_edge.learn.views import draw_view
from fsvit_edge.runtime.errors import InputError

Supervision = Literal["mask", "image", "mixed"]

VALIDATION_EPISODES = 200
"""At most; a small data set has as many as examples."""
_TRAINING, _VALIDATION, _SIDES = range(3)
"""What a random stream is for: (seed, purpose, numbers) makes each episode independent of all others."""
_VIEW_TRIES = 10
_DRAWS = 10_000


def check_supervision(name: str) -> Supervision:
    """Give a supervision by its name.

    Raises:
        InputError: There is none of this name.
    """
    for known in get_args(Supervision):
        if name == known:
            return cast("Supervision", known)
    raise InputError(f"The supervision must be {', '.join(get_args(Supervision))}, got {name!r}.")


@dataclass(frozen=True)
class TrainOptions:
    """How to train. The defaults are the paper's, but for the learning rate's decay.

    Attributes:
        supervision: "mask" learns from true masks; "image" opens no mask file and learns from pseudo-masks; "mixed"
            has true masks for a few pictures and enhanced pseudo-masks for the rest.
        mask_fraction: Share of the photographs whose masks "mixed" uses, in (0, 1).
        mask_list: For "mixed", the pictures that have masks (as class/stem), instead of a fraction.
        epochs: Passes over the pictures; an epoch has as many episodes as there are examples.
        batch: Episodes a step.
        micro_batch: Episodes computed at once; smaller needs less memory and changes nothing else.
        learning_rate: Of Adam.
        decay: Lower the learning rate to 0 along a cosine; False keeps it, as in the paper.
        class_weight: Weight of the presence loss beside the mask loss.
        ways: Classes that each query is asked for: its own and those of the next queries of the batch; 1 is the
            paper's training. With more the presence loss also ranks the classes of a query and the queries of a class.
        label_noise: With more ways, the share of absent classes that may be present after all, in [0, 1): it bounds
            what one wrong label can do.
        kept_tokens: Of a support at most so many image tokens are drawn in each step; None takes all. It saves time
            and is a kind of augmentation.
        foreground_weight: Weight of a foreground pixel in the mask loss; a background pixel has 1.
        views: Views of each picture, the first is the picture itself; more are augmentation.
        same_picture: Share of the positive episodes whose support is another view of the query's own photograph.
        nameless: Share of the supports whose true mask is replaced by the pseudo-mask, so that the head learns to live
            with names alone.
        validation_fraction: Share of the photographs that are validated on and not trained on.
        patience: Epochs without a better validation mIoU before the training ends with the best head; None trains
            all epochs and takes the last head.
        seed: Of everything random.
        precision: Lightning's: "32-true", "bf16-mixed" or "16-mixed".
        accelerator: Lightning's: "auto", "cpu", "gpu".
        devices: Processes, one a device; None for one on the CPU, every GPU otherwise.
        threads: torch's threads on the CPU, for the whole process; None leaves them as they are.
    """

    supervision: Supervision = "mask"
    mask_fraction: float = 0.05
    mask_list: tuple[str, ...] = ()
    epochs: int = 50
    batch: int = 12
    micro_batch: int = 12
    learning_rate: float = 1e-3
    decay: bool = True
    class_weight: float = 0.1
    ways: int = 1
    label_noise: float = 0.0
    kept_tokens: int | None = None
    foreground_weight: float = 1.0
    views: int = 1
    same_picture: float = 0.0
    nameless: float = 0.0
    validation_fraction: float = 0.1
    patience: int | None = None
    seed: int = 0
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.batch % self.micro_batch:
            raise InputError(f"The batch, {self.batch}, must be a multiple of the micro-batch, {self.micro_batch}.")
        if not 1 <= self.ways <= self.micro_batch:
            raise InputError(f"The ways must be from 1 to the episodes at once, {self.micro_batch}; got {self.ways}.")
        if not 0 <= self.label_noise < 1:
            raise InputError(f"label_noise must be from 0 to below 1, got {self.label_noise}.")
        if self.kept_tokens is not None and self.kept_tokens < 1:
            raise InputError(f"kept_tokens must be at least 1, got {self.kept_tokens}.")
        for name in ("mask_fraction", "validation_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} must lie between 0 and 1, got {getattr(self, name)}.")
        for name in ("same_picture", "nameless"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be from 0 to 1, got {getattr(self, name)}.")
        if self.same_picture and self.views == 1:
            raise InputError("Episodes of one picture need two views of it; set views to 2 or more.")


@dataclass(frozen=True)
class Split:
    """What may be done with each picture.

    Attributes:
        held_out: Photographs that are validated on; if there are none, the validation asks about pictures trained on.
        known: For each example, whether its true mask may be opened.
    """

    held_out: frozenset[str]
    known: tuple[bool, ...]


def choose_split(data: FewShotData, options: TrainOptions) -> Split:
    """Set photographs aside for validation, and say whose masks may be opened.

    Raises:
        InputError: A listed picture is not of the data set, or a picture that needs a mask has none.
    """
    rng = np.random.default_rng((options.seed, _SIDES))
    photographs = sorted({example.photograph for example in data.examples})
    shuffled = [photographs[i] for i in rng.permutation(len(photographs))]
    held_out = frozenset(shuffled[: round(options.validation_fraction * len(photographs))])
    if options.supervision == "image":
        return Split(held_out, (False,) * len(data.examples))
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
    return Split(held_out, known)


def _listed(data: FewShotData, names: Sequence[str]) -> set[str]:
    """Find the photographs of pictures that are named as class/stem."""
    of_name = {f"{data.class_names[e.label]}/{e.image.stem}": e.photograph for e in data.examples}
    if unknown := [name for name in names if name not in of_name]:
        raise InputError(
            f"The list of pictures with masks names {unknown[0]!r}, which is not in the data; expected class/stem, "
            f"for example {next(iter(of_name))!r}."
        )
    return {of_name[name] for name in names}


class EpisodeBatch(NamedTuple):
    """B one-way one-shot episodes.

    Attributes:
        query: (B, L + 1, 1 + N, D) float16, see `TokenCache`.
        support: The same.
        support_mask: (B, S, S) uint8 of 0 and 1; of no meaning where it is not known.
        query_mask: (B, S, S) uint8 of 0, 1 and 255; 0 where the class is absent.
        support_known: (B,) bool, whether the support's true mask may be used.
        query_known: (B,) bool, the same of the query's.
        present: (B,) bool.
        label: (B,) int64, the support's class.
        shown: (B, labels) bool, every class under which the query's photograph stands.
        query_objectness: (B, n, n) float16 logits; n is 0 where the network tells no objectness.
        support_objectness: The same.
    """

    query: Tensor
    support: Tensor
    support_mask: Tensor
    query_mask: Tensor
    support_known: Tensor
    query_known: Tensor
    present: Tensor
    label: Tensor
    shown: Tensor
    query_objectness: Tensor
    support_objectness: Tensor


class Episodes(Dataset[EpisodeBatch]):
    """The episodes of one epoch; the same numbers always give the same episodes.

    Args:
        data: Pictures to draw from.
        cache: Their tokens.
        options: Views, shares.
        split: Which pictures may be drawn, and which masks opened.
        epoch: Number of the epoch; None for the episodes of the validation.
    """

    def __init__(
        self, data: FewShotData, cache: TokenCache, options: TrainOptions, split: "Split", epoch: int | None
    ) -> None:
        self.data, self.cache, self.options, self.split = data, cache, options, split
        self.validation = epoch is None
        self.stream = (options.seed, _VALIDATION) if epoch is None else (options.seed, _TRAINING, epoch)
        self.count = len(data.examples) if epoch is not None else min(VALIDATION_EPISODES, len(data.examples))
        self.size = cache.network.config.image_size

    def __len__(self) -> int:
        """Count them."""
        return self.count

    def __getitem__(self, number: int) -> EpisodeBatch:
        """Give one episode, a batch without its first axis."""
        rng = np.random.default_rng((*self.stream, number))
        episode = self._draw(rng)
        query, (label,), ((support,),) = episode.query, episode.ways, episode.supports
        here = bool(present(self.data, episode, from_masks=self.split.known[query])[0])
        # Validation shows every picture as it is: that is how users' pictures come.
        views = not self.validation and self.cache.views > 1
        if views and here and rng.random() < self.options.same_picture:
            support = query if self.data.examples[query].label == label else support
        query_view, support_view = (self._view(index, rng) if views else 0 for index in (query, support))
        support_mask, support_known = self._mask(support, label, support_view)
        if not self.validation and rng.random() < self.options.nameless:
            support_known = False
        query_image, support_image = (self.data.examples[index].image for index in (query, support))
        query_mask, query_known = torch.zeros_like(support_mask), True
        if here:
            query_mask, query_known = self._mask(query, label, query_view)
            # A crop may have lost the thing of another class than the one for which the view was chosen.
            here = not query_known or bool((query_mask == 1).any())
        return EpisodeBatch(
            torch.from_numpy(self.cache.read_packed(query_image, query_view)),
            torch.from_numpy(self.cache.read_packed(support_image, support_view)),
            torch.where(support_mask == IGNORE, 0, support_mask),
            query_mask,
            torch.tensor(support_known),
            torch.tensor(query_known),
            torch.tensor(here),
            torch.tensor(label),
            self._shown(query),
            torch.from_numpy(self.cache.read_objectness(query_image, query_view)),
            torch.from_numpy(self.cache.read_objectness(support_image, support_view)),
        )

    def _shown(self, index: int) -> Tensor:
        shown = torch.zeros(max(self.data.class_names) + 1, dtype=torch.bool)
        shown[list(self.data.labels_of(index))] = True
        return shown

    def _draw(self, rng: np.random.Generator) -> Episode:
        """Draw until the pictures are on the right split: that keeps the distribution of the data set's own sampler."""
        held_out = self.split.held_out
        for _ in range(_DRAWS):
            # With more ways the other queries of the batch are what shows each class absent.
            own = self.options.ways > 1 and not self.validation
            episode = training_episode(self.data, rng, way=1, shot=1, own_class=own)
            photographs = [self.data.examples[i].photograph for i in (episode.query, *episode.supports[0])]
            if photographs[1] not in held_out and (photographs[0] in held_out) == (self.validation and bool(held_out)):
                return episode
        raise InputError(
            "No episode can be drawn whose query is set aside for validation and whose support is not; "
            "add pictures or change the share set aside."
        )

    def _view(self, index: int, rng: np.random.Generator) -> int:
        """Draw a view in which enough of the example's thing is left, if its mask may tell."""
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
