"""Presence learned across classes and frames: each query of a batch is asked for its own class and for others'.

An episode that asks one frame for one class teaches the head to answer about that frame; nothing in it makes the
answers of two classes, or of two frames, comparable. Here each query is also asked for the classes of the queries after
it in the batch. Tokens are cached, so all that this costs is the head, and a quarter of a frame's tokens says nearly
as well as all of them whether the thing is there.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

RANKING_WEIGHT = 0.5
"""Of each of the two rankings beside the cross-entropy, which alone says where 0 is."""


class Pairs(NamedTuple):
    """Which query is asked for which support: P pairs, the B own ones first.

    Attributes:
        query: (P,) int64 index into the batch.
        support: (P,) int64 index into the batch.
        present: (P,) bool.
        known: (P,) bool, whether `present` can be relied on.
    """

    query: Tensor
    support: Tensor
    present: Tensor
    known: Tensor


def pairs_of(present: Tensor, label: Tensor, shown: Tensor, ways: int) -> Pairs:
    """Ask each of B queries for its own class and for the classes of the `ways` - 1 queries after it.

    Args:
        present: (B,) bool, whether the query shows its own support's class.
        label: (B,) int64, each support's class.
        shown: (B, labels) bool, all classes under which the query's photograph stands; a cropped view may have lost
            one that is not the query's own, so such a pair is not relied on.
        ways: At most B.
    """
    batch = len(label)
    first = torch.arange(batch, device=label.device)
    query = first.repeat(ways)
    support = (query + torch.arange(ways, device=label.device).repeat_interleave(batch)) % batch
    same = label[query] == label[support]
    return Pairs(query, support, same & present[query], same | ~shown[query, label[support]])


def thinned(query: Tensor, grid: int) -> Tensor:
    """Leave every second row and column of the queries' tokens, from a random one on.

    Args:
        query: (B, C, grid ** 2, d).
        grid: Side of the token grid.

    Returns:
        (B, C, (grid // 2) ** 2, d).
    """
    top, left = torch.randint(2, (2,)).tolist()
    side = grid // 2
    square = query.reshape(*query.shape[:2], grid, grid, query.shape[3])
    few = square[:, :, top : top + 2 * side : 2, left : left + 2 * side : 2]
    return few.reshape(*query.shape[:2], side * side, query.shape[3])


def presence_loss(logit: Tensor, pairs: Pairs, label_noise: float) -> Tensor:
    """Weigh presence: cross-entropy, present and absent pairs alike heavy, and two rankings.

    The rankings are softmax cross-entropies of a present pair against the absent pairs of its query (which class is
    it?) and against the absent pairs of its support (in which frame is it?).

    Args:
        logit: (P,) present minus absent.
        pairs: What was asked.
        label_noise: Share of absent pairs that may be present; the loss of one is at most -log(label_noise).
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
    """Weigh presence, present and absent pairs alike heavy; see `presence_loss`."""
    doubted = -torch.log1p(-logit.sigmoid() * (1 - label_noise)) if label_noise else F.softplus(logit)
    return _mean(F.softplus(-logit), pairs.present & pairs.known) + _mean(doubted, ~pairs.present & pairs.known)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp_min(1)
