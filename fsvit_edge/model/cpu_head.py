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

In shapes: C correlation channels (slices x layers) of d values, N query tokens in B blocks of n, T kept support tokens
with the class token first, h = 8 heads of e = 2 channels, p = 10 pooled tokens with the class token LAST.
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


class Attend(nn.Module):
    """The attention of block 1 for one block of query tokens; what its weights allow is computed beforehand."""

    def __init__(self, block: CorrelationBlock, num_channels: int) -> None:
        super().__init__()
        heads, channels = NUM_ATTENTION_HEADS, num_channels
        matrices, query_bias, _ = qkv_matrices(block.attn)
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
        nothing = torch.zeros_like(of_sum)
        # Rows are h, K + 1: the last is the sum of a head's weights.
        self.of_value = nn.Buffer(torch.cat([widen, nothing], dim=1).flatten(0, 1).flatten(1))  # h * (K + 1), h * e
        self.of_sum = nn.Buffer(torch.cat([torch.zeros_like(widen), of_sum], dim=1).flatten(0, 1).flatten(1))

    def forward(self, tokens: Tensor, support: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Attend from the tokens of a block, (C, n, d).

        Args:
            tokens: L2-normalized over d.
            support: (C, 9 + T, d), the cells, the class token, the kept image tokens.
            count: (T,), how many tokens each of the last T stands for; 0 leaves one out.

        Returns:
            (p, n, h * (K + 1)), to be multiplied by `of_value` and `of_sum`, and the pooled correlation (C, p, n).
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
        return attended.reshape(size, NUM_POOLED, -1).transpose(0, 1), pooled


class Finish(nn.Module):
    """All of the head between the attention of block 1 and the outline, for one support."""

    def __init__(self, head: CorrelationHead, attend: Attend) -> None:
        super().__init__()
        self.head = head
        self.attend = attend

    def forward(self, attended: Tensor, pooled: Tensor, pooled_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return P(present) (1,) and the input of `outline`, (1, 128, N).

        `attended` is (p, N, h * (K + 1)), `pooled` (C, p, N), `pooled_mask` (9,) as in `Supports`.
        """
        first, second = (cast("CorrelationBlock", block) for block in self.head.corrtransformer)
        num_query = attended.shape[1]
        rows = attended.flatten(0, 1).t()  # h * (K + 1), p * N
        _, _, value_bias = qkv_matrices(first.attn)
        sums = torch.matmul(self.attend.of_sum.t(), rows)
        out = torch.matmul(self.attend.of_value.t(), rows) / sums  # h * e, p * N
        x = _finish(first, out.reshape(1, -1, NUM_POOLED, num_query) + value_bias, pooled[None])  # 1, 32, p, N
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
        return _finish(block, out + value_bias, pooled).reshape(1, -1, 2 * num_query, 1)


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
    kept = 1 + support_grid
    attend = Attend(cast("CorrelationBlock", head.corrtransformer[0]), num_channels)
    finish = Finish(head, attend)
    block = {
        "tokens": torch.rand(num_channels, size, dim),
        "support": torch.rand(num_channels, POOLED_GRID**2 + kept, dim),
        "count": torch.ones(kept),
    }
    attended = {
        "attended": torch.rand(NUM_POOLED, num_query, len(attend.of_value)),
        "pooled": torch.rand(num_channels, NUM_POOLED, num_query),
        "pooled_mask": torch.ones(POOLED_GRID**2),
    }
    return CpuHeadSpecs(
        GraphSpec(
            attend,
            block,
            ("block_attended", "block_pooled"),
            {"support": {1: "support_tokens"}, "count": {0: "kept_tokens"}},
        ),
        GraphSpec(finish, attended, ("presence", "mask_tokens"), {}),
        GraphSpec(Outline(head), {"mask_tokens": torch.rand(1, 128, num_query)}, ("foreground",), {}),
        num_query // size,
    )


def block_size(num_query: int, support_grid: int) -> int:
    """Return the largest divisor of N whose attention maps, for a support of usual size, stay in the cache."""
    maps_bytes = 4 * NUM_ATTENTION_HEADS * NUM_POOLED * (1 + round(_USUAL_COVER * support_grid**2))
    fitting = max(1, _CACHE_BYTES // maps_bytes)
    return max(size for size in range(1, min(fitting, num_query) + 1) if num_query % size == 0)


def _finish(block: CorrelationBlock, out: Tensor, pooled: Tensor) -> Tensor:
    """Run the rest of a block after the attention, as `fast_head.py` does, on (1, channels, p, N)."""
    attention, feed_forward = block.attn, block.ff
    short_cut = F.relu(_group_norm(attention.short_cut[2], apply_matrix(matrix_of(attention.short_cut[0]), pooled)))
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
