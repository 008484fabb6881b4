"""The correlation transformer in an exact, cheaper order of operations: what is trained and exported.

Three rewrites, none of which changes the result:

- average pooling commutes with a 1 x 1 convolution and with the dot product, so the shortcut and the query of the
  first block need only the correlation with POOLED support tokens, pooled once at enrollment;
- key and value of masked support tokens are never read, so only the kept tokens are stored and correlated;
- a constant added to all logits of one softmax cancels, so the key needs no bias; the softmax sums to one, so the
  value's bias can be added after the attention.

Maps have the support tokens before the query tokens wherever that is free: the long axis last is what CPUs like.
"""

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.model.config import POOLED_GRID
from fsvit_edge.model.head import (
    MASKED,
    NUM_ATTENTION_HEADS,
    AttentivePooling,
    CorrelationBlock,
    CorrelationHead,
    HeadLogits,
    resize_mask,
)


class Supports(NamedTuple):
    """Cached supports, all that the head needs to know of S support pictures.

    Attributes:
        kept: (S, C, T, d) L2-normalized class token, then the image tokens that the mask keeps; shorter supports are
            padded to the longest (with anything finite).
        kept_mask: (S, T) float, 1 for a token, 0 for padding.
        pooled: (S, C, 9, d) L2-normalized image tokens of the whole support, averaged over the 3 x 3 pooled grid.
        pooled_mask: (S, 9) float, 0 where the second block must not look.
    """

    kept: Tensor
    kept_mask: Tensor
    pooled: Tensor
    pooled_mask: Tensor


def cache_supports(support: Tensor, mask: Tensor, support_grid: int) -> Supports:
    """Make the cache from all tokens of the supports; nothing is dropped yet, `kept_mask` says what may be.

    Args:
        support: (S, C, 1 + support_grid ** 2, d) L2-normalized, class token first.
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
        """Judge S supports against one frame, or each against its own.

        Args:
            query: (C, N, d) image tokens of the frame, L2-normalized over d; or (S, C, N, d), a frame for each support.
            supports: The cached supports.
        """
        return self.head.decode(*self.task_tokens(query, supports))

    def task_tokens(self, query: Tensor, supports: Supports) -> tuple[Tensor, Tensor]:
        """Give what the decoders read of the same: classification and segmentation tokens, each (S, 128, N)."""
        first, second = (cast("CorrelationBlock", block) for block in self.head.corrtransformer)
        correlation = torch.matmul(query, supports.kept.transpose(-2, -1))
        pooled_tokens = torch.cat([supports.kept[:, :, :1], supports.pooled], dim=2)
        pooled = torch.matmul(query, pooled_tokens.transpose(-2, -1)).transpose(-2, -1)
        x = _first_block(first, correlation, pooled, supports.kept_mask)
        x = _second_block(second, x, F.pad(supports.pooled_mask, (1, 0), value=1.0))
        num_query = query.shape[-2]
        x = self.head.linear(x.unsqueeze(3)).reshape(-1, x.shape[1], 2, num_query)
        return x[:, :, 0], x[:, :, 1]


def _first_block(block: CorrelationBlock, correlation: Tensor, pooled: Tensor, kept_mask: Tensor) -> Tensor:
    """(S, C, N, T) and (S, C, 10, N) -> (S, 32, 10, N)."""
    batch, _, num_query, length = correlation.shape
    num_pooled = pooled.shape[2]
    weights = _AttentionWeights(block.attn)
    heads = NUM_ATTENTION_HEADS

    # The padding's mask rides on the key as one more row, which the query multiplies by 1: adding it to the logits
    # would cost a pass over the largest tensor of the network.
    query = _matmul(_with_row(weights.query), pooled) + _with_row(weights.query_bias.flatten(1), 1.0)[..., None]
    query = query.reshape(batch, heads, -1, num_pooled, num_query).permute(0, 4, 1, 3, 2)
    key = _matmul(_with_row(weights.key), correlation) + weights.mask_row * _padding(kept_mask)[:, None, None]
    key = key.permute(0, 2, 1, 3).reshape(batch, num_query, heads, -1, length)
    value = _matmul(weights.value, correlation).permute(0, 2, 3, 1)

    attention = torch.matmul(query, key).softmax(dim=-1).reshape(batch, num_query, heads * num_pooled, length)
    # One product of all heads' attention with all heads' values is faster than eight products with two columns each;
    # of its head pairs only the equal ones are wanted.
    out = torch.matmul(attention, value).flatten(2)[:, :, weights.own_head(num_pooled)]
    out = out.transpose(1, 2).reshape(batch, -1, num_pooled, num_query)
    return _finish(block, out + weights.value_bias, pooled)


def _second_block(block: CorrelationBlock, x: Tensor, pooled_mask: Tensor) -> Tensor:
    """(S, 32, 10, N) -> (S, 128, 2 * N), task token first.

    So few tokens attend here that products of whole maps, summed, beat thousands of small matrix products.
    """
    batch, _, length, num_query = x.shape
    pooled = torch.cat([x[:, :, :1], x[:, :, 1:].mean(dim=2, keepdim=True)], dim=2)
    weights = _AttentionWeights(block.attn)
    heads = NUM_ATTENTION_HEADS

    query = (_matmul(weights.query, pooled) + weights.query_bias).reshape(batch, heads, -1, 2, 1, num_query)
    key = _matmul(weights.key, x).reshape(batch, heads, -1, 1, length, num_query)
    value = _matmul(weights.value, x).reshape(batch, heads, -1, 1, length, num_query)

    logits = (query * key).sum(dim=2) + _padding(pooled_mask)[:, None, None, :, None]
    out = (logits.softmax(dim=3).unsqueeze(2) * value).sum(dim=4)
    return _finish(block, out.flatten(1, 2) + weights.value_bias, pooled).flatten(2)


def _finish(block: CorrelationBlock, out: Tensor, pooled: Tensor) -> Tensor:
    """What follows the attention, on (S, channels, p, N): aggregate, add the shortcut, feed forward."""
    attention, feed_forward = block.attn, block.ff
    short_cut = F.relu(attention.short_cut[2](_matmul(_matrix(attention.short_cut[0]), pooled)))
    norm_in, _, conv, norm_out, _ = attention.agg
    x = F.relu(norm_out(_matmul(_matrix(conv), F.relu(norm_in(out)))))
    x = attention.out_norm(x + short_cut)
    narrow, norm, _, widen = feed_forward.ff
    inner = F.relu(norm(_matmul(_matrix(narrow), x)))
    return torch.as_tensor(feed_forward.out_norm(x + _matmul(_matrix(widen), inner)))


class _AttentionWeights:
    """The q, k, v convolution of a block as matrices (out, in), its biases as columns; the key needs no bias."""

    def __init__(self, attention: AttentivePooling) -> None:
        self.query, self.key, self.value = _matrix(attention.qkv).chunk(3)
        query_bias, _, value_bias = torch.as_tensor(attention.qkv.bias).chunk(3)
        self.query_bias = query_bias[:, None, None]
        self.value_bias = value_bias[:, None, None]
        self.per_head = self.key.shape[0] // NUM_ATTENTION_HEADS

    @property
    def mask_row(self) -> Tensor:
        """(heads * (per_head + 1), 1, 1): 1 at the last row of each head."""
        row = F.one_hot(torch.tensor(self.per_head), self.per_head + 1).to(self.key)
        return row.repeat(NUM_ATTENTION_HEADS)[:, None, None]

    def own_head(self, num_pooled: int) -> Tensor:
        """Where, in a flat (heads, p, heads, per_head) map, the two heads are equal, in the order (head, d, p)."""
        shape = (NUM_ATTENTION_HEADS, num_pooled, NUM_ATTENTION_HEADS, self.per_head)
        index = torch.arange(math.prod(shape), device=self.key.device).reshape(shape)
        return index.diagonal(dim1=0, dim2=2).permute(2, 1, 0).flatten()


def _with_row(matrix: Tensor, value: float = 0.0) -> Tensor:
    """One more row of a constant after each head's rows."""
    heads = matrix.reshape(NUM_ATTENTION_HEADS, -1, matrix.shape[1])
    return F.pad(heads, (0, 0, 0, 1), value=value).flatten(0, 1)


def _padding(mask: Tensor) -> Tensor:
    """Ones and zeros -> 0 where the softmax may look, -1e9 where not."""
    return (1.0 - mask) * MASKED


def _matmul(matrix: Tensor, x: Tensor) -> Tensor:
    """A 1 x 1 convolution: (out, in) times (S, in, a, b) -> (S, out, a, b)."""
    return torch.matmul(matrix, x.flatten(2)).reshape(x.shape[0], -1, *x.shape[2:])


def _matrix(conv: nn.Module) -> Tensor:
    """The (out, in) matrix of a 1 x 1 convolution."""
    return torch.as_tensor(conv.weight).flatten(1)
