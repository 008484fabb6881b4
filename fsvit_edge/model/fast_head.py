"""The correlation transformer in an exact, cheaper order of operations: what is trained and exported.

Three rewrites, none of which changes the result:

- average pooling commutes with a 1 x 1 convolution and with the dot product, so the shortcut and the query of the
  first block need only the correlation with POOLED support tokens, pooled once at enrolment;
- key and value of masked support tokens are never read, so only the kept tokens are stored and correlated;
- a constant added to all logits of one softmax cancels, so the key needs no bias; the softmax sums to one, so the
  value's bias can be added after the attention. The mask of the padding rides on the key as a third dimension, because
  adding it to the logits would cost a pass over the largest tensor of the network.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.model.config import POOLED_GRID
from fsvit_edge.model.head import (
    MASKED,
    NUM_ATTENTION_HEADS,
    CorrelationHead,
    HeadLogits,
    resize_mask,
)


class Supports(NamedTuple):
    """Cached supports, all that the head needs to know of S support pictures.

    Attributes:
        kept: (S, C, T, d) L2-normalised class token, then the image tokens that the mask keeps; shorter supports are
            padded to the longest (with anything finite).
        kept_mask: (S, T) float, 1 for a token, 0 for padding.
        pooled: (S, C, 9, d) L2-normalised image tokens of the whole support, averaged over the 3 x 3 pooled grid.
        pooled_mask: (S, 9) float, 0 where the second block must not look.
    """

    kept: Tensor
    kept_mask: Tensor
    pooled: Tensor
    pooled_mask: Tensor


def cache_supports(support: Tensor, mask: Tensor, support_grid: int) -> Supports:
    """Make the cache from all tokens of the supports; nothing is dropped yet, `kept_mask` says what may be.

    Args:
        support: (S, C, 1 + support_grid ** 2, d) L2-normalised, class token first.
        mask: (S, size, size) float, 0 where the support shows background.
        support_grid: Side of the support grid.
    """
    batch, channels, _, dim = support.shape
    cell = support_grid // POOLED_GRID
    cells = support[:, :, 1:].reshape(batch, channels, POOLED_GRID, cell, POOLED_GRID, cell, dim)
    pooled = cells.mean(dim=(3, 5)).reshape(batch, channels, POOLED_GRID**2, dim)
    seen = (resize_mask(mask, support_grid) != 0).to(support.dtype)
    pooled_mask = (resize_mask(mask, POOLED_GRID) != 0).to(support.dtype)
    return Supports(support, F.pad(seen, (1, 0), value=1.0), pooled, pooled_mask)


class FastCorrelationHead(nn.Module):
    """The weights of a `CorrelationHead` in the cheaper order; both share their parameters.

    Args:
        head: The head in the published order.
    """

    def __init__(self, head: CorrelationHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, query: Tensor, supports: Supports) -> HeadLogits:
        """Judge S supports against one frame.

        Args:
            query: (C, N, d) image tokens of the frame, L2-normalised over d.
            supports: The cached supports.
        """
        first, second = self.head.corrtransformer
        correlation = torch.matmul(query, supports.kept.transpose(-2, -1))
        pooled = torch.matmul(query, supports.pooled.transpose(-2, -1))
        pooled = torch.cat([correlation[..., :1], pooled], dim=3)
        x = _first_block(first, correlation, pooled, supports.kept_mask)
        x = _second_block(second, x, supports.pooled_mask, query.shape[1])
        x = self.head.linear(x.unsqueeze(3)).reshape(*x.shape[:2], 2, -1)
        return self.head.decode(x[:, :, 0], x[:, :, 1])


def _first_block(block: nn.Module, correlation: Tensor, pooled: Tensor, kept_mask: Tensor) -> Tensor:
    """(S, C, N, T) and (S, C, N, 10) -> (S, 32, N * 10)."""
    batch, channels, num_query, length = correlation.shape
    num_pooled = pooled.shape[3]
    pooled = pooled.reshape(batch, channels, num_query * num_pooled)
    weights = _AttentionWeights(block.attn)

    query = weights.query @ pooled + weights.query_bias
    query = query.reshape(batch, NUM_ATTENTION_HEADS, -1, num_query, num_pooled).permute(0, 1, 3, 4, 2)
    flat = correlation.reshape(batch, channels, num_query * length)
    key = (weights.key @ flat).reshape(batch, NUM_ATTENTION_HEADS, -1, num_query, length)
    key = (key + weights.mask_row * _padding(kept_mask)).permute(0, 1, 3, 2, 4)
    value = (weights.value @ flat).reshape(batch, NUM_ATTENTION_HEADS, -1, num_query, length).permute(0, 1, 3, 4, 2)

    out = torch.matmul(torch.matmul(query, key).softmax(dim=-1), value)
    out = out.permute(0, 1, 4, 2, 3).reshape(batch, -1, num_query * num_pooled)
    return _finish(block, out + weights.value_bias, pooled)


def _second_block(block: nn.Module, x: Tensor, pooled_mask: Tensor, num_query: int) -> Tensor:
    """(S, 32, N * 10) -> (S, 128, 2 * N), task token first: its maps come out contiguous."""
    batch, channels, _ = x.shape
    tokens = x.reshape(batch, channels, num_query, -1)
    length = tokens.shape[3]
    pooled = torch.stack([tokens[..., 0], tokens[..., 1:].mean(dim=3)], dim=2).reshape(batch, channels, 2 * num_query)
    weights = _AttentionWeights(block.attn)

    query = weights.query @ pooled + weights.query_bias
    query = query.reshape(batch, NUM_ATTENTION_HEADS, -1, 2, num_query).permute(0, 1, 4, 3, 2)
    key = (weights.key @ x).reshape(batch, NUM_ATTENTION_HEADS, -1, num_query, length)
    key = (key + weights.mask_row * _padding(F.pad(pooled_mask, (1, 0), value=1.0))).permute(0, 1, 3, 2, 4)
    value = (weights.value @ x).reshape(batch, NUM_ATTENTION_HEADS, -1, num_query, length).permute(0, 1, 3, 4, 2)

    out = torch.matmul(torch.matmul(query, key).softmax(dim=-1), value)
    out = out.permute(0, 1, 4, 3, 2).reshape(batch, -1, 2 * num_query)
    return _finish(block, out + weights.value_bias, pooled)


def _finish(block: nn.Module, out: Tensor, pooled: Tensor) -> Tensor:
    """What follows the attention, on (S, channels, positions): aggregate, add the shortcut, feed forward."""
    attention, feed_forward = block.attn, block.ff
    short_cut = F.relu(attention.short_cut[2](_matrix(attention.short_cut[0]) @ pooled))
    norm_in, _, conv, norm_out, _ = attention.agg
    x = F.relu(norm_out(_matrix(conv) @ F.relu(norm_in(out))))
    x = attention.out_norm(x + short_cut)
    narrow, norm, _, widen = feed_forward.ff
    return torch.as_tensor(feed_forward.out_norm(x + _matrix(widen) @ F.relu(norm(_matrix(narrow) @ x))))


class _AttentionWeights:
    """The q, k, v convolution as matrices, with one more row per head: constant 1 in q, the padding's mask in k."""

    def __init__(self, attention: nn.Module) -> None:
        query, key, value = _matrix(attention.qkv).chunk(3)
        query_bias, _, value_bias = attention.qkv.bias.chunk(3)
        per_head = query.shape[0] // NUM_ATTENTION_HEADS
        self.query = _with_row(query, per_head)
        self.key = _with_row(key, per_head)
        self.value = value
        self.query_bias = _with_row(query_bias[:, None], per_head, 1.0)
        self.value_bias = value_bias[:, None]
        row = torch.zeros(1, 1, per_head + 1, 1, 1, dtype=query.dtype, device=query.device)
        row[:, :, per_head] = 1.0
        self.mask_row = row


def _with_row(matrix: Tensor, per_head: int, value: float = 0.0) -> Tensor:
    heads = matrix.reshape(NUM_ATTENTION_HEADS, per_head, -1)
    return F.pad(heads, (0, 0, 0, 1), value=value).flatten(0, 1)


def _padding(mask: Tensor) -> Tensor:
    """(S, T) of ones and zeros -> (S, 1, 1, 1, T): 0 where the softmax may look, -1e9 where not."""
    return ((1.0 - mask) * MASKED)[:, None, None, None, :]


def _matrix(conv: nn.Module) -> Tensor:
    """The (out, in) matrix of a 1 x 1 convolution."""
    return torch.as_tensor(conv.weight).flatten(1)
