"""Presence loss across classes and frames: each query of a batch is asked about its own class and about others.

One-way episodes do not make the scores of two classes, or of two frames, comparable. Here each query is also asked
about the classes of the next queries in the batch. The tokens are cached, so this costs only runs of the head, and a
quarter of a frame's tokens are enough to tell whether the object is there.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

RANKING_WEIGHT = 0.5
"""Weight of each of the two ranking losses. The cross-entropy has weight 1: only it determines where 0 is."""


class Pairs(NamedTuple):
    """Which query is asked about which support: P pairs, first the B pairs of a query with its own support."""

    query: Tensor  # (P,) int64 index into the batch
    support: Tensor  # (P,) int64 index into the batch
    present: Tensor  # (P,) bool, whether the query shows the support's class
    known: Tensor  # (P,) bool, whether `present` is certain


def pairs_of(present: Tensor, label: Tensor, shown: Tensor, ways: int) -> Pairs:
    """Pair each of B queries with its own support and with those of the next `ways` - 1 queries; at most B ways.

    `present`, `label` and `shown` are those of `EpisodeBatch`. A cropped view may not show all classes that its
    photograph is listed under, so the pair with another of these classes is not known.
    """
    batch = len(label)
    first = torch.arange(batch, device=label.device)
    query = first.repeat(ways)
    support = (query + torch.arange(ways, device=label.device).repeat_interleave(batch)) % batch
    same = label[query] == label[support]
    return Pairs(query, support, same & present[query], same | ~shown[query, label[support]])


def thinned(query: Tensor, grid: int) -> Tensor:
    """Keep every second row and column of the queries' tokens, starting randomly at 0 or 1.

    (B, C, grid ** 2, d) image tokens -> (B, C, (grid // 2) ** 2, d).
    """
    top, left = torch.randint(2, (2,)).tolist()
    side = grid // 2
    square = query.reshape(*query.shape[:2], grid, grid, query.shape[3])  # B, C, grid, grid, d
    few = square[:, :, top : top + 2 * side : 2, left : left + 2 * side : 2]
    return few.reshape(*query.shape[:2], side * side, query.shape[3])


def presence_loss(logit: Tensor, pairs: Pairs, label_noise: float) -> Tensor:
    """Return the presence loss: cross-entropy, and two ranking losses.

    The ranking losses are softmax cross-entropies of a present pair against the absent pairs with the same query (which
    class is it?) and against the absent pairs with the same support (which frame shows it?). `logit` (P,) is that of
    present minus that of absent. The loss of one absent pair is at most -log(label_noise).
    """
    present, absent = pairs.present & pairs.known, ~pairs.present & pairs.known
    loss = presence_cross_entropy(logit, pairs, label_noise)
    for side in (pairs.query, pairs.support):
        rivals = (side[:, None] == side[None, :]) & absent[None, :]
        against = torch.where(rivals, logit[None, :], -torch.inf)
        ranked = torch.logsumexp(torch.cat([logit[:, None], against], dim=1), dim=1) - logit
        loss = loss + RANKING_WEIGHT * _mean(ranked, present)
    return loss


def presence_cross_entropy(logit: Tensor, pairs: Pairs, label_noise: float) -> Tensor:
    """Return the cross-entropy of presence: the mean over present pairs plus that over absent pairs."""
    doubted = -torch.log1p(-logit.sigmoid() * (1 - label_noise)) if label_noise else F.softplus(logit)
    return _mean(F.softplus(-logit), pairs.present & pairs.known) + _mean(doubted, ~pairs.present & pairs.known)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp_min(1)
