"""The correlation transformer in an exact but cheaper order of operations: the one that is trained and exported.

Three changes, which leave the result of `head.py` (CST, section 3.2) the same:

- average pooling commutes with a 1 x 1 convolution and with the dot product, so the shortcut and the query of the
  first block need only the correlation with POOLED support tokens, which are pooled once at enrollment;
- keys and values of masked support tokens are never read, so only the kept tokens are stored and correlated;
- a constant added to all logits of a softmax cancels, so the key needs no bias; the weights of a softmax sum to 1, so
  the value's bias can be added after the attention.

Shapes: S supports, C correlation channels (slices x layers), d channels per slice, N query tokens, T kept support
tokens (class token first), p pooled support tokens. The query tokens, the longest axis, are last where possible: CPUs
are fastest that way.
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
    mask_on_grid,
)


class Supports(NamedTuple):
    """S cached supports: all that the head needs to know about the support pictures."""

    kept: Tensor
    """(S, C, T, d) L2-normalized class token, then the image tokens that the mask keeps; shorter supports are padded to
    the longest one with any finite values."""
    kept_mask: Tensor
    """(S, T) float, 1 for a token, 0 for padding."""
    pooled: Tensor
    """(S, C, 9, d) L2-normalized image tokens of the whole support, averaged over the cells of a 3 x 3 grid."""
    pooled_mask: Tensor
    """(S, 9) float, 1 for a cell that the second block attends to, 0 for one that it must ignore."""


def cache_supports(support: Tensor, mask: Tensor, support_grid: int) -> Supports:
    """Make the cache from all tokens of the supports. No token is dropped yet; `kept_mask` is 0 for those that may be.

    `support` is (S, C, 1 + support_grid ** 2, d), L2-normalized, class token first; `mask` is (S, size, size) float,
    0 where the support shows background.
    """
    batch, channels, _, dim = support.shape
    cell = support_grid // POOLED_GRID
    cells = support[:, :, 1:].reshape(batch, channels, POOLED_GRID, cell, POOLED_GRID, cell, dim)  # S, C, 3, 4, 3, 4, d
    pooled = cells.mean(dim=(3, 5)).reshape(batch, channels, POOLED_GRID**2, dim)  # S, C, 9, d
    seen = (mask_on_grid(mask, support_grid) != 0).to(support.dtype)
    pooled_mask = (mask_on_grid(mask, POOLED_GRID) != 0).to(support.dtype)
    return Supports(support, F.pad(seen, (1, 0), value=1.0), pooled, pooled_mask)


class FastCorrelationHead(nn.Module):
    """A `CorrelationHead` computed in the cheaper order; the two share their parameters."""

    def __init__(self, head: CorrelationHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, query: Tensor, supports: Supports) -> HeadLogits:
        """Compare S supports with the image tokens of one frame, (C, N, d), or each with its own, (S, C, N, d).

        The tokens are L2-normalized over d.
        """
        return self.head.decode(*self.task_tokens(query, supports))

    def task_tokens(self, query: Tensor, supports: Supports) -> tuple[Tensor, Tensor]:
        """Return the input of the decoders: classification and segmentation tokens, each (S, 128, N)."""
        first, second = (cast("CorrelationBlock", block) for block in self.head.corrtransformer)
        correlation = torch.matmul(query, supports.kept.transpose(-2, -1))  # S, C, N, T
        pooled_tokens = torch.cat([supports.kept[:, :, :1], supports.pooled], dim=2)  # S, C, 10, d
        pooled = torch.matmul(query, pooled_tokens.transpose(-2, -1)).transpose(-2, -1)  # S, C, 10, N
        x = _first_block(first, correlation, pooled, supports.kept_mask)  # S, 32, 10, N
        x = _second_block(second, x, F.pad(supports.pooled_mask, (1, 0), value=1.0))  # S, 128, 2 * N
        num_query = query.shape[-2]
        x = self.head.linear(x.unsqueeze(3)).reshape(-1, x.shape[1], 2, num_query)  # S, 128, 2, N
        return x[:, :, 0], x[:, :, 1]


def _first_block(block: CorrelationBlock, correlation: Tensor, pooled: Tensor, kept_mask: Tensor) -> Tensor:
    """Run block 1: correlation (S, C, N, T) and pooled correlation (S, C, 10, N) -> (S, 32, 10, N)."""
    batch, _, num_query, length = correlation.shape
    num_pooled, heads = pooled.shape[2], NUM_ATTENTION_HEADS
    (of_query, of_key, of_value), query_bias, value_bias = qkv_matrices(block.attn)

    # h heads with e channels each (8 and 2). The mask of the padding is an extra row e + 1 of the key, multiplied by an
    # extra 1 in the query: adding it to the logits would need a pass over the largest tensor of the network.
    query = apply_matrix(_with_row(of_query), pooled) + _with_row(query_bias.flatten(1), 1.0)[..., None]
    query = query.reshape(batch, heads, -1, num_pooled, num_query).permute(0, 4, 1, 3, 2)  # S, N, h, p, e + 1
    mask_row = _with_row(torch.zeros_like(query_bias.flatten(1)), 1.0)[..., None]  # h * (e + 1), 1, 1
    key = apply_matrix(_with_row(of_key), correlation) + mask_row * padding_logits(kept_mask)[:, None, None]
    key = key.permute(0, 2, 1, 3).reshape(batch, num_query, heads, -1, length)  # S, N, h, e + 1, T
    value = apply_matrix(of_value, correlation).permute(0, 2, 3, 1)  # S, N, T, h * e

    attention = torch.matmul(query, key).softmax(dim=-1)  # S, N, h, p, T
    attention = attention.reshape(batch, num_query, heads * num_pooled, length)  # S, N, h * p, T
    # One product of all heads' attention with all heads' values, (S, N, h * p, h * e), is faster than eight products
    # with two columns each; only the entries with equal heads are used.
    out = torch.matmul(attention, value).flatten(2)[:, :, _own_head(num_pooled, of_value)]  # S, N, h * e * p
    out = out.transpose(1, 2).reshape(batch, -1, num_pooled, num_query)  # S, h * e, p, N
    return _finish(block, out + value_bias, pooled)


def _second_block(block: CorrelationBlock, x: Tensor, pooled_mask: Tensor) -> Tensor:
    """Run block 2: (S, 32, 10, N) -> (S, 128, 2 * N), the two task tokens one after the other.

    With so few tokens, summing products of whole maps is faster than thousands of small matrix products.
    """
    batch, _, length, num_query = x.shape
    pooled = torch.cat([x[:, :, :1], x[:, :, 1:].mean(dim=2, keepdim=True)], dim=2)  # S, 32, 2, N
    (of_query, of_key, of_value), query_bias, value_bias = qkv_matrices(block.attn)
    heads = NUM_ATTENTION_HEADS

    query = (apply_matrix(of_query, pooled) + query_bias).reshape(batch, heads, -1, 2, 1, num_query)  # S, h, e, 2, 1, N
    key = apply_matrix(of_key, x).reshape(batch, heads, -1, 1, length, num_query)  # S, h, e, 1, 10, N
    value = apply_matrix(of_value, x).reshape(batch, heads, -1, 1, length, num_query)  # S, h, e, 1, 10, N

    logits = (query * key).sum(dim=2) + padding_logits(pooled_mask)[:, None, None, :, None]  # S, h, 2, 10, N
    out = (logits.softmax(dim=3).unsqueeze(2) * value).sum(dim=4)  # S, h, e, 2, N
    return _finish(block, out.flatten(1, 2) + value_bias, pooled).flatten(2)


def _finish(block: CorrelationBlock, out: Tensor, pooled: Tensor) -> Tensor:
    """Run the rest of a block after the attention: aggregation, shortcut and feed-forward, on (S, channels, p, N)."""
    attention, feed_forward = block.attn, block.ff
    short_cut = F.relu(attention.short_cut[2](apply_matrix(matrix_of(attention.short_cut[0]), pooled)))
    norm_in, _, conv, norm_out, _ = attention.agg
    x = F.relu(norm_out(apply_matrix(matrix_of(conv), F.relu(norm_in(out)))))
    x = attention.out_norm(x + short_cut)
    narrow, norm, _, widen = feed_forward.ff
    inner = F.relu(norm(apply_matrix(matrix_of(narrow), x)))
    return torch.as_tensor(feed_forward.out_norm(x + apply_matrix(matrix_of(widen), inner)))


def qkv_matrices(attention: AttentivePooling) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Return the (h * e, in) matrices of query, key and value, and the (h * e, 1, 1) biases of query and value."""
    query_bias, _, value_bias = torch.as_tensor(attention.qkv.bias)[:, None, None].chunk(3)
    return matrix_of(attention.qkv).chunk(3), query_bias, value_bias


def _own_head(num_pooled: int, of_value: Tensor) -> Tensor:
    """Return the indices into a flat (h, p, h, e) map where both heads are equal, in the order (h, e, p)."""
    shape = (NUM_ATTENTION_HEADS, num_pooled, NUM_ATTENTION_HEADS, len(of_value) // NUM_ATTENTION_HEADS)
    index = torch.arange(math.prod(shape), device=of_value.device).reshape(shape)
    return index.diagonal(dim1=0, dim2=2).permute(2, 1, 0).flatten()  # (p, e, h) -> (h, e, p) -> h * e * p


def _with_row(matrix: Tensor, value: float = 0.0) -> Tensor:
    """Append a row of a constant to each head's rows: (h * e, in) -> (h * (e + 1), in)."""
    heads = matrix.reshape(NUM_ATTENTION_HEADS, -1, matrix.shape[1])
    return F.pad(heads, (0, 0, 0, 1), value=value).flatten(0, 1)


def padding_logits(mask: Tensor) -> Tensor:
    """Turn a mask of 1 and 0 into what to add to the logits: 0 where attention is allowed, -1e9 where not."""
    return (1.0 - mask) * MASKED


def apply_matrix(matrix: Tensor, x: Tensor) -> Tensor:
    """Apply a 1 x 1 convolution: (out, in) x (S, in, a, b) -> (S, out, a, b)."""
    return torch.matmul(matrix, x.flatten(2)).reshape(x.shape[0], -1, *x.shape[2:])


def matrix_of(conv: nn.Module) -> Tensor:
    """Return the (out, in) matrix of a 1 x 1 convolution."""
    return torch.as_tensor(conv.weight).flatten(1)
