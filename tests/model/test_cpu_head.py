"""The head for CPUs against the published order of operations."""

from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from test_head import Episode, an_episode, assert_same, episodes, few
from torch import Tensor
from torch.nn import functional as F

from fsvit_edge.model.cpu_head import LARGEST_LOGIT, Attend, Finish, Outline, block_size
from fsvit_edge.model.fast_head import cache_supports
from fsvit_edge.model.head import CorrelationBlock, CorrelationHead, HeadLogits


def compare(head: CorrelationHead, query: Tensor, support: Tensor, count: Tensor, pooled_mask: Tensor) -> HeadLogits:
    """Answer for one support, block by block as the graph does, as the log-odds of both probabilities."""
    attend = Attend(cast("CorrelationBlock", head.corrtransformer[0]), len(query))
    num_query = query.shape[1]
    size = block_size(num_query, 12)
    filled = F.pad(query, (0, 0, 0, -num_query % size))
    blocks = [attend(block, support, count)[0] for block in filled.split(size, dim=1)]
    presence, mask_tokens = Finish(head, num_query)(torch.cat(blocks, dim=2), pooled_mask)
    (foreground,) = Outline(head)(mask_tokens)
    return HeadLogits(presence.logit(), foreground.logit())


def compare_each(episode: Episode) -> HeadLogits:
    head, query, support, masks = episode
    supports = cache_supports(support, masks, head.corrtransformer[0].attn.side)
    answers = []
    for kept, kept_mask, pooled, pooled_mask in zip(*supports, strict=True):
        tokens = torch.cat([pooled, kept[:, kept_mask > 0]], dim=1)
        answers.append(compare(head, query, tokens, torch.ones(int(kept_mask.sum())), pooled_mask))
    return HeadLogits(*(torch.cat(parts) for parts in zip(*answers, strict=True)))


def published(episode: Episode) -> HeadLogits:
    head, query, support, masks = episode
    logits = head(query[None], support, masks)
    return HeadLogits(*(part[:, 1] - part[:, 0] for part in logits))


@few
@given(episodes())
@torch.inference_mode()
def test_it_gives_the_result_of_the_published_order(episode: Episode) -> None:
    assert_same(compare_each(episode), published(episode))


@pytest.mark.parametrize("channels", [6, 19, 20, 72])
@torch.inference_mode()
def test_few_channels_are_attended_as_they_are_and_many_are_split(channels: int) -> None:
    episode = an_episode(6, [0.0, 0.3, 1.0], channels)
    attend = Attend(cast("CorrelationBlock", episode[0].corrtransformer[0]), channels)
    assert attend.num_features == (channels if channels < 20 else 16)
    assert_same(compare_each(episode), published(episode))
    with torch.no_grad():  # the control: one wrong weight is seen
        next(episode[0].parameters())[0] += 0.1
    before = compare_each(an_episode(6, [0.0, 0.3, 1.0], channels))
    with pytest.raises(AssertionError):
        assert_same(compare_each(episode), before)


@pytest.mark.parametrize("channels", [6, 30])
@torch.inference_mode()
def test_weights_whose_exponential_overflows_are_computed_all_the_same(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    episode = an_episode(6, [0.3, 1.0], channels)
    head = episode[0]
    block = cast("CorrelationBlock", head.corrtransformer[0])
    assert Attend(block, channels).bound < LARGEST_LOGIT
    block.attn.qkv.weight[:32] *= 40
    assert Attend(block, channels).bound > LARGEST_LOGIT
    assert_same(compare_each(episode), published(episode), relative=1e-3)
    monkeypatch.setattr("fsvit_edge.model.cpu_head.LARGEST_LOGIT", np.inf)  # the control
    assert not torch.isfinite(compare_each(episode).mask).all()


@torch.inference_mode()
def test_a_token_that_stands_for_two_counts_twice_and_one_that_counts_0_is_left_out() -> None:
    head, query, support, masks = an_episode(6, [1.0])
    supports = cache_supports(support, masks, 6)
    (kept,), (pooled,), (pooled_mask,) = supports.kept, supports.pooled, supports.pooled_mask
    kept = kept[:, :5]

    def answer(tokens: Tensor, count: list[float]) -> HeadLogits:
        return compare(head, query, torch.cat([pooled, tokens], dim=1), torch.tensor(count), pooled_mask)

    twice = answer(torch.cat([kept, kept[:, 2:3]], dim=1), [1.0] * 6)
    assert_same(answer(kept, [1, 1, 2, 1, 1]), twice)
    assert_same(answer(torch.cat([kept, -kept], dim=1), [1.0] * 5 + [0.0] * 5), answer(kept, [1.0] * 5))
    with pytest.raises(AssertionError):  # the control
        assert_same(answer(kept, [1.0] * 5), twice)


def test_blocks_are_whole_vectors_and_stay_in_the_cache() -> None:
    assert block_size(256, 12) == 32
    assert block_size(2500, 12) == 32
    assert block_size(7, 12) == 7
    assert block_size(2500, 50) == 16  # more than fits: at least one vector
    assert block_size(256, 3) == 256
