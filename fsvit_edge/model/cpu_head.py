"""The head in the order that is fastest on CPUs: one support a run, as two graphs for ONNX Runtime.

compare  tokens of a frame and one support -> P(present), and what `outline` needs
outline  what `compare` found -> P(foreground); only for classes whose outline is wanted, a quarter of the head's time

Both compute what `fast_head.py` computes, which stays the graph of GPUs. What differs, with its gain in processor time
on one core of an AMD EPYC in ONNX Runtime 1.32, cst-nano, one support of 57 kept tokens (8.1 ms there, 3.7 + 1.9 here):

- The query tokens are attended block by block (a Scan), so that the attention maps stay in the cache. A frame of 256
  tokens and one support of 104 kept tokens has 8.5 MB of them, and each pass over them took twice as long.
- The exponential without a softmax: the logits are bounded by the weights, so no maximum has to be found; the sum is
  one more column of the value. A softmax took 0.9 ms, the exponential takes 0.25 ms.
- A network of few correlation channels attends on the channels themselves: the key's matrix is moved to the query, the
  value's behind the attention.
- The pooled tokens are correlated in the same product as the kept ones, so cells come first and the class token last.
- A group norm is one pass for the statistics and one for scale and shift.

In shapes: C correlation channels (slices x layers) of d values, N query tokens in B blocks of n (the last is filled
with zeros), T kept support tokens with the class token first, h = 8 heads of e = 2 channels, p = 10 pooled tokens with
the class token LAST.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.model.config import POOLED_GRID
from fsvit_edge.model.fast_head import apply_matrix, matrix_of, padding_logits, qkv_matrices
from fsvit_edge.model.graphs import GraphSpec
from fsvit_edge.model.head import NUM_ATTENTION_HEADS, CorrelationBlock, CorrelationHead

NUM_POOLED = POOLED_GRID**2 + 1
LARGEST_LOGIT = 80.0
"""Up to here e**logit, and the sum over all tokens of a support, is a normal float32, and so is e**-logit."""
_RAW_CHANNELS = 20
"""Networks of fewer channels attend on the channels themselves: above, that is more arithmetic than it saves."""
_CACHE_BYTES = 512 * 2**10
"""Aim for the attention maps of a block: half of the second-level cache of common processors. On an AMD EPYC (1 MB),
cst-nano took 5.1 ms with blocks of 32 tokens, 5.3 with 64, 6.0 with 128 and 6.9 with 256 (104 kept tokens)."""
_USUAL_COVER = 0.3
_VECTOR = 16
"""Values in the widest vector of common processors. A product with 25 columns takes as long as one with 32: for ViT-S/8
at 400 px, blocks of 32 tokens took 85 ms where blocks of 25 took 92."""


class Attend(nn.Module):
    """All of block 1 that needs the correlation, for a block of query tokens; what weights allow is done beforehand."""

    def __init__(self, block: CorrelationBlock, num_channels: int) -> None:
        super().__init__()
        heads, channels = NUM_ATTENTION_HEADS, num_channels
        matrices, query_bias, value_bias = qkv_matrices(block.attn)
        of_query, of_key, of_value = (matrix.detach().reshape(heads, -1, channels) for matrix in matrices)  # h, e, C
        bias = query_bias.detach().reshape(heads, -1)  # h, e
        own = torch.eye(heads)
        if channels < _RAW_CHANNELS:
            features = torch.zeros(0, channels)
            weight = torch.einsum("hec,hek->chk", of_query, of_key)  # C, h, K with K = C
            bias = torch.einsum("he,hek->hk", bias, of_key)
            widen = torch.einsum("hek,hg->hkge", of_value, own)  # h, K, h, e
            largest_feature = 1.0  # a correlation of normalized tokens
        else:
            features = torch.cat([of_key.flatten(0, 1), of_value.flatten(0, 1)])  # 2 * h * e, C
            weight = torch.einsum("hec,hg->chge", of_query, own).flatten(2)  # C, h, K with K = h * e
            bias = torch.einsum("he,hg->hge", bias, own).flatten(1)
            of_channel = torch.eye(of_value.shape[1])
            widen = torch.einsum("hg,hf,ek->hgkfe", own, own, of_channel).flatten(1, 2)  # h, K, h, e
            largest_feature = float(of_key.abs().sum(dim=-1).max())
        self.bound = float((weight.abs().sum(dim=0) + bias.abs()).sum(dim=1).max()) * largest_feature
        """No logit is larger in absolute value."""
        self.num_features = weight.shape[2]  # K
        self.features = nn.Buffer(features)
        self.weight = nn.Buffer(weight.flatten(1))  # C, h * K
        self.bias = nn.Buffer(bias.flatten())
        of_sum = torch.einsum("hg,e->hge", own, torch.ones(of_value.shape[1]))[:, None]  # h, 1, h, e
        # The value's bias times the sum: it stays as it is when both are divided by the sum.
        values = torch.cat([widen, of_sum * value_bias.detach().reshape(heads, -1)], dim=1)  # h, K + 1, h, e
        sums = torch.cat([torch.zeros_like(widen), of_sum], dim=1)
        self.reduce = nn.Buffer(torch.cat([values.flatten(2), sums.flatten(2)], dim=2).flatten(0, 1))
        self.short_cut = nn.Buffer(matrix_of(block.attn.short_cut[0]).detach())  # 32, C

    def forward(self, tokens: Tensor, support: Tensor, count: Tensor) -> tuple[Tensor]:
        """Attend from the tokens of a block, (C, n, d).

        Args:
            tokens: L2-normalized over d.
            support: (C, 9 + T, d), the cells, the class token, the kept image tokens.
            count: (T,), how many tokens each of the last T stands for; 0 leaves one out.

        Returns:
            (2 * h * e + 32, p, n): the weighted values, h * e times the sum of the weights, and the shortcut.
        """
        channels, size, _ = tokens.shape
        correlation = torch.matmul(support, tokens.transpose(1, 2))  # C, 9 + T, n
        pooled = correlation[:, :NUM_POOLED]
        rows = pooled.transpose(1, 2).reshape(channels, -1).t()  # n * p, C
        query = torch.addmm(self.bias, rows, self.weight).reshape(size, -1, self.num_features)  # n, p * h, K
        # A transpose that moves one axis is several times faster than one that moves two.
        kept = correlation[:, NUM_POOLED - 1 :].reshape(-1, size).t().reshape(size, channels, -1)  # n, C, T
        key, value = (kept, kept) if len(self.features) == 0 else torch.matmul(self.features, kept).chunk(2, dim=1)
        logits = torch.matmul(query, key)  # n, p * h, T
        if self.bound > LARGEST_LOGIT:
            logits = logits - logits.amax(dim=-1, keepdim=True)
        weighted = torch.cat([value * count, count.expand(size, 1, -1)], dim=1)  # n, K + 1, T
        attended = torch.matmul(logits.exp(), weighted.transpose(1, 2))  # n, p * h, K + 1
        attended = attended.reshape(size, NUM_POOLED, -1).transpose(0, 1).reshape(size * NUM_POOLED, -1)
        reduced = torch.matmul(self.reduce.t(), attended.t())  # 2 * h * e, p * n
        short_cut = torch.matmul(self.short_cut, pooled.reshape(channels, -1))  # 32, p * n
        return (torch.cat([reduced, short_cut]).reshape(-1, NUM_POOLED, size),)


class Finish(nn.Module):
    """All of the head between the attention of block 1 and the outline, for one support."""

    def __init__(self, head: CorrelationHead, num_query: int) -> None:
        super().__init__()
        self.head = head
        self.num_query = num_query

    def forward(self, found: Tensor, pooled_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return P(present) (1,) and the input of `outline`, (1, 128, N).

        `found` (2 * h * e + 32, p, N) is what `Attend` returns, `pooled_mask` (9,) as in `Supports`.
        """
        first, second = (cast("CorrelationBlock", block) for block in self.head.corrtransformer)
        num_query = self.num_query
        found = found[:, :, :num_query]
        half = qkv_matrices(first.attn)[1].shape[0]
        values, sums, short_cut = torch.split(found[None], [half, half, found.shape[0] - 2 * half], dim=1)
        x = _finish(first, values / sums, short_cut)  # 1, 32, p, N
        x = self._second_block(second, x, F.pad(pooled_mask, (0, 1), value=1.0))  # 1, 128, 2 * N, 1
        for conv, norm in (self.head.linear[:2], self.head.linear[3:5]):
            x = F.relu(_group_norm(norm, conv(x)))
        x = x.reshape(1, -1, 2, num_query)
        return self.head.decode_presence(x[:, :, 0]).softmax(dim=1)[:, 1], x[:, :, 1]

    @staticmethod
    def _second_block(block: CorrelationBlock, x: Tensor, pooled_mask: Tensor) -> Tensor:
        """Run block 2 as `fast_head.py` does: (1, 32, p, N) -> (1, 128, 2 * N, 1), class token and image in turn."""
        num_query, heads = x.shape[3], NUM_ATTENTION_HEADS
        pooled = torch.cat([x[:, :, -1:], x[:, :, :-1].mean(dim=2, keepdim=True)], dim=2)  # 1, 32, 2, N
        (of_query, of_key, of_value), query_bias, value_bias = qkv_matrices(block.attn)
        query = (apply_matrix(of_query, pooled) + query_bias).reshape(heads, -1, 2, 1, num_query)  # h, e, 2, 1, N
        key = apply_matrix(of_key, x).reshape(heads, -1, 1, NUM_POOLED, num_query)  # h, e, 1, p, N
        value = apply_matrix(of_value, x).reshape(heads, -1, 1, NUM_POOLED, num_query)  # h, e, 1, p, N
        logits = (query * key).sum(dim=1) + padding_logits(pooled_mask)[:, None]  # h, 2, p, N
        # A softmax over an inner axis copies its input twice.
        attention = (logits - logits.amax(dim=2, keepdim=True)).exp()
        attention = attention / attention.sum(dim=2, keepdim=True)
        out = (attention.unsqueeze(1) * value).sum(dim=3).reshape(1, -1, 2, num_query)  # 1, h * e, 2, N
        short_cut = apply_matrix(matrix_of(block.attn.short_cut[0]), pooled)
        return _finish(block, out + value_bias, short_cut).reshape(1, -1, 2 * num_query, 1)


class Outline(nn.Module):
    """The decoder of the mask."""

    def __init__(self, head: CorrelationHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, mask_tokens: Tensor) -> tuple[Tensor]:
        """Return P(foreground) (1, 2 * grid, 2 * grid) for (1, 128, N)."""
        return (self.head.decode_mask(mask_tokens).softmax(dim=1)[:, 1],)


@dataclass(frozen=True)
class CpuHeadSpecs:
    """The parts of the CPU's head for the tracer; `export/cpu_head.py` makes `compare` of the first two."""

    attend: GraphSpec
    finish: GraphSpec
    outline: GraphSpec
    num_blocks: int  # B


def cpu_head_specs(
    head: CorrelationHead, num_channels: int, dim: int, num_query: int, support_grid: int
) -> CpuHeadSpecs:
    """Wrap a trained head of C channels with d values, for N query tokens."""
    size = block_size(num_query, support_grid)
    num_blocks = -(-num_query // size)
    kept = 1 + support_grid
    attend = Attend(cast("CorrelationBlock", head.corrtransformer[0]), num_channels)
    finish = Finish(head, num_query)
    block = {
        "tokens": torch.rand(num_channels, size, dim),
        "support": torch.rand(num_channels, POOLED_GRID**2 + kept, dim),
        "count": torch.ones(kept),
    }
    found = {
        "found": torch.rand(attend.reduce.shape[1] + len(attend.short_cut), NUM_POOLED, num_blocks * size),
        "pooled_mask": torch.ones(POOLED_GRID**2),
    }
    return CpuHeadSpecs(
        GraphSpec(attend, block, ("block_found",), {"support": {1: "support_tokens"}, "count": {0: "kept_tokens"}}),
        GraphSpec(finish, found, ("presence", "mask_tokens"), {}),
        GraphSpec(Outline(head), {"mask_tokens": torch.rand(1, 128, num_query)}, ("foreground",), {}),
        num_blocks,
    )


def block_size(num_query: int, support_grid: int) -> int:
    """Return how many query tokens a block has: whole vectors, with attention maps that stay in the cache."""
    maps_bytes = 4 * NUM_ATTENTION_HEADS * NUM_POOLED * (1 + round(_USUAL_COVER * support_grid**2))
    fitting = _CACHE_BYTES // maps_bytes // _VECTOR * _VECTOR
    return min(max(fitting, _VECTOR), num_query)


def _finish(block: CorrelationBlock, out: Tensor, short_cut: Tensor) -> Tensor:
    """Run the rest of a block after the attention, as `fast_head.py` does, on (1, channels, p, N)."""
    attention, feed_forward = block.attn, block.ff
    short_cut = F.relu(_group_norm(attention.short_cut[2], short_cut))
    norm_in, _, conv, norm_out, _ = attention.agg
    x = apply_matrix(matrix_of(conv), F.relu(_group_norm(norm_in, out)))
    x = _group_norm(attention.out_norm, F.relu(_group_norm(norm_out, x)) + short_cut)
    narrow, norm, _, widen = feed_forward.ff
    inner = F.relu(_group_norm(norm, apply_matrix(matrix_of(narrow), x)))
    return _group_norm(feed_forward.out_norm, x + apply_matrix(matrix_of(widen), inner))


def _group_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalize (1, channels, ...) as a GroupNorm does: statistics first, then scale and shift in one pass."""
    assert isinstance(norm, nn.GroupNorm)
    groups = F.instance_norm(x.reshape(1, norm.num_groups, -1), eps=norm.eps).reshape(1, x.shape[1], -1)
    zeros, ones = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    # A batch norm with mean 0 and variance 1: ONNX Runtime has no other operator for it.
    return F.batch_norm(groups, zeros, ones, norm.weight, norm.bias, eps=0.0).reshape(x.shape)
