"""Train the pseudo-label enhancer on the few pictures that have masks (CST, mixed supervision)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from fsvit_edge.learn.examples import IGNORE, FewShotData
from fsvit_edge.learn.tokens import TokenCache
from fsvit_edge.learn.views import View
from fsvit_edge.model.encoder import EncoderOutput
from fsvit_edge.model.enhancer import PseudoLabelEnhancer
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.model.pseudo_mask import pseudo_map, thresholded
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.messages import Progress

_Floats = npt.NDArray[np.float64]

LEAST_MASKS = 5
"""Minimum number of photographs with masks; two of them are only for measuring."""
_PARTNERS = 4
"""Other pictures of the class per picture: a map made with the class token of each is trained on too."""
_BLIND_GUESSES = 8
_WARM_UP = 20
_WEIGHT_DECAY = 1e-2
_DROPPED = 0.2
"""Share of the token channels set to 0 per picture and step, so that the network cannot memorize the few pictures."""
_FLATNESS = 1.0
"""Added to both areas of the soft IoU, in cells, so that an object of less than a cell has little weight."""


@dataclass(frozen=True)
class EnhancerOptions:
    """How to train the enhancer."""

    seed: int = 0  # random seed of the held-out pictures, the initial weights and the batches
    steps: int = 300  # number of optimizer steps
    batch: int = 16  # maps per step
    learning_rate: float = 2e-3  # of Adam after the warm-up; decays to 0 along a cosine
    held_out: float = 0.2  # share of the pictures with masks that are only for measuring


@dataclass(frozen=True)
class EnhancerResult:
    """The trained enhancer and its quality on the held-out masks: mean IoU, in [0, 1]."""

    enhancer: PseudoLabelEnhancer  # on the CPU, in evaluation mode
    trained_on: int  # number of masks
    held_out: int  # number of masks
    iou_before: float  # of the coarse pseudo-masks
    iou_after: float  # of the enhanced masks
    iou_blind: float  # of the enhanced masks of other pictures: what a guess reaches without looking at the picture
    # Whether the enhanced masks are better than the coarse ones, and better than the blind guess by more than one
    # standard error. An enhancer trained on shuffled masks can beat a poor coarse mask, but not the guess.
    helps: bool

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        figures = (
            f"IoU of the pseudo-masks on {self.held_out} held-out masks: {100 * self.iou_before:.1f} % before, "
            f"{100 * self.iou_after:.1f} % after the enhancer, which was trained on {self.trained_on} masks"
        )
        if self.helps:
            return f"{figures}."
        return (
            f"{figures} ({100 * self.iou_blind:.1f} % without seeing the picture). It does not help, so the "
            "pseudo-masks are used unchanged."
        )


class _Seen(NamedTuple):
    """Input and target of the enhancer for M pictures."""

    tokens: Tensor  # (M, N, D) float16 image tokens
    maps: Tensor  # (M, 1 + P, grid, grid) coarse maps, the picture's own first; repeated if the class has too few
    masks: Tensor  # (M, S, S) uint8: 0, 1 or 255 (ignored)


def train_enhancer(
    network: FewShotNetwork,
    cache: TokenCache,
    data: FewShotData,
    with_masks: Sequence[int],
    options: EnhancerOptions,
    progress: Progress = lambda _: None,
) -> EnhancerResult:
    """Train an enhancer, on the CPU so that the same seed gives the same weights.

    `with_masks` has the indices of the examples whose masks may be used; no other mask is opened. The encoder of
    `network` filled the cache.
    """
    train, test = split_by_photograph(data, with_masks, options)
    progress(f"read {len(train) + len(test)} pictures with masks for the enhancer")
    hidden = {data.examples[index].photograph for index in test}
    rng = np.random.default_rng(options.seed)
    learned = _see(network, cache, data, train, hidden, rng)
    measured = _see(network, cache, data, test, set(), rng)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(options.seed)
        enhancer = PseudoLabelEnhancer(network.encoder.embed_dim)
    _fit(enhancer, learned, options, progress)
    before, after, blind = _measure(enhancer, measured, learned)
    gain = after - blind
    return EnhancerResult(
        enhancer,
        len(train),
        len(test),
        float(before.mean()),
        float(after.mean()),
        float(blind.mean()),
        helps=bool(after.mean() > before.mean() and gain.mean() > gain.std(ddof=1) / len(gain) ** 0.5),
    )


def split_by_photograph(
    data: FewShotData, with_masks: Sequence[int], options: EnhancerOptions
) -> tuple[list[int], list[int]]:
    """Return the examples to train on and those to measure on; no photograph is in both."""
    photographs: dict[str, list[int]] = {}
    for index in sorted(set(with_masks)):
        photographs.setdefault(data.examples[index].photograph, []).append(index)
    if len(photographs) < LEAST_MASKS:
        raise InputError(
            f"The pseudo-label enhancer needs masks of at least {LEAST_MASKS} photographs, got {len(photographs)}; "
            "add masks, or train with --supervision image."
        )
    groups = list(photographs.values())
    train: list[int] = []
    test: list[int] = []
    for place in np.random.default_rng(options.seed).permutation(len(groups)):
        # At least two, because the standard error needs two; each photograph adds one or more.
        wanted = max(2, options.held_out * sum(map(len, groups)))
        (test if len(test) < wanted else train).extend(groups[place])
    return sorted(train), sorted(test)


@torch.inference_mode()
def enhanced_mask(
    enhancer: PseudoLabelEnhancer, class_query: Tensor, image: EncoderOutput, grid: int, size: int
) -> Tensor:
    """Return enhanced pseudo-masks, in place of `pseudo_mask`: (B, size, size) float, 1.0 on the foreground, else 0.0.

    `class_query` (B, heads, d) has the query vectors of class tokens: of the B pictures of `image`, or of other
    pictures of the class; `grid` is the side of the token grid.
    """
    logits = enhancer(pseudo_map(class_query, image.image_keys, grid), image.tokens[:, -1, 1:])
    return _enlarged(logits, size)


def _enlarged(logits: Tensor, size: int) -> Tensor:
    full = F.interpolate(logits[:, None], size=(size, size), mode="bilinear", align_corners=False)
    return (full[:, 0] > 0).to(logits.dtype)


def _see(
    network: FewShotNetwork,
    cache: TokenCache,
    data: FewShotData,
    indices: Sequence[int],
    hidden: set[str],
    rng: np.random.Generator,
) -> _Seen:
    """Read pictures with their masks, and maps made by other photographs of the class that are not in `hidden`."""
    grid, size = network.encoder.grid, network.config.image_size
    tokens, maps, masks = [], [], []
    for index in indices:
        example = data.examples[index]
        output = cache.read(example.image)
        others = [
            other
            for other in data.of_class(example.label)
            if data.examples[other].photograph not in hidden | {example.photograph}
        ]
        drawn = rng.permutation(others)[:_PARTNERS].tolist()
        queries = [output.class_query, *(cache.read(data.examples[other].image).class_query for other in drawn)]
        queries = [queries[place % len(queries)] for place in range(1 + _PARTNERS)]
        maps.append(pseudo_map(torch.cat(queries), output.image_keys.expand(1 + _PARTNERS, -1, -1, -1), grid))
        tokens.append(output.tokens[0, -1, 1:].half())
        masks.append(torch.from_numpy(View().of_mask(data.read_mask(index), size)))
    return _Seen(torch.stack(tokens), torch.stack(maps), torch.stack(masks))


def _fit(enhancer: PseudoLabelEnhancer, seen: _Seen, options: EnhancerOptions, progress: Progress) -> None:
    generator = torch.Generator().manual_seed(options.seed)
    grid = 2 * seen.maps.shape[-1]
    inside, known = (
        F.interpolate(share.float()[:, None], size=(grid, grid), mode="area")[:, 0]
        for share in (seen.masks == 1, seen.masks != IGNORE)
    )
    adam = torch.optim.AdamW(enhancer.parameters(), lr=options.learning_rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam,
        lambda step: min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1 + np.cos(np.pi * step / options.steps)),
    )
    enhancer.train()
    for step in range(options.steps):
        if step % 50 == 0:
            progress(f"train the enhancer, step {step} of {options.steps}")
        picture = torch.randint(len(seen.tokens), (options.batch,), generator=generator)
        own = torch.rand(options.batch, generator=generator) < 0.5
        partner = torch.randint(1, seen.maps.shape[1], (options.batch,), generator=generator)
        coarse = seen.maps[picture, torch.where(own, 0, partner)]
        tokens = seen.tokens[picture].float().reshape(*coarse.shape, -1)
        target, counts = inside[picture], known[picture]
        if torch.rand((), generator=generator) < 0.5:
            coarse, tokens, target, counts = (each.flip(2) for each in (coarse, tokens, target, counts))
        keep = torch.rand(options.batch, 1, 1, tokens.shape[-1], generator=generator) > _DROPPED
        logits = enhancer(coarse, (tokens * keep / (1 - _DROPPED)).flatten(1, 2))
        adam.zero_grad()
        torch.autograd.backward(_loss(logits, target, counts))
        adam.step()
        schedule.step()
    enhancer.eval()


def _loss(logits: Tensor, inside: Tensor, known: Tensor) -> Tensor:
    """Return cross-entropy + soft IoU. Per cell, `known` is the share not ignored, `inside` the share in the object."""
    entropy = (F.softplus(-logits) * inside + F.softplus(logits) * (known - inside)).mean()
    chance = logits.sigmoid()
    common = (chance * inside).sum(dim=(1, 2))
    union = (chance * known + inside).sum(dim=(1, 2)) - common
    return entropy + 1 - ((common + _FLATNESS) / (union + _FLATNESS)).mean()


@torch.inference_mode()
def _measure(enhancer: PseudoLabelEnhancer, seen: _Seen, others: _Seen) -> tuple[_Floats, _Floats, _Floats]:
    """Return, per picture, the IoU of its coarse masks, of its enhanced masks, and of enhanced masks of `others`.

    The picture's own map counts as much as all maps of other class tokens together, as in training.
    """
    size = seen.masks.shape[-1]
    places = np.linspace(0, len(others.tokens) - 1, _BLIND_GUESSES).astype(int)
    blind_guesses = [_enhanced(enhancer, others, place) for place in places.tolist()]
    before, after, blind = [], [], []
    for index, mask in enumerate(seen.masks):
        before.append(_mean_iou(thresholded(seen.maps[index], size), mask))
        after.append(_mean_iou(_enhanced(enhancer, seen, index), mask))
        blind.append(np.mean([_mean_iou(guess, mask) for guess in blind_guesses]))
    return np.array(before), np.array(after), np.array(blind)


def _enhanced(enhancer: PseudoLabelEnhancer, seen: _Seen, index: int) -> Tensor:
    maps = seen.maps[index]
    return _enlarged(enhancer(maps, seen.tokens[index].float().expand(len(maps), -1, -1)), seen.masks.shape[-1])


def _mean_iou(guesses: Tensor, mask: Tensor) -> float:
    """Return the mean IoU of guesses (1 + P, S, S) with a mask of 0, 1 and 255; it is 1 if both are empty."""
    guess = guesses > 0
    common = (guess & (mask == 1)).sum(dim=(1, 2))
    union = ((guess & (mask != IGNORE)) | (mask == 1)).sum(dim=(1, 2))
    iou = torch.where(union > 0, common / union.clamp(min=1), 1.0)
    return float(iou[0] + iou[1:].mean()) / 2
