"""The fast head against the published order, and both against stored numbers of the published order.

After an intended change of what the head computes: `python tests/model/test_head.py` writes the numbers anew.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.model.fast_head import FastCorrelationHead, Supports, cache_supports
from fsvit_edge.model.head import CorrelationHead, HeadLogits, channel_vectors, mask_on_grid, support_tokens

GOLDEN = Path(__file__).with_name("golden_head.npz")
SIZE = 48  # side of the masks, in pixels
Episode = tuple[CorrelationHead, Tensor, Tensor, Tensor]
"""A head, the frame's vectors (C, N, d), the supports' (S, C, 1 + g * g, d), and masks (S, SIZE, SIZE)."""


def seeded_head(channels: int, support_grid: int, seed: int = 0) -> CorrelationHead:
    """A head with random numbers of numpy as parameters, which are the same on every machine."""
    head = CorrelationHead(channels, support_grid).eval().requires_grad_(False)
    rng = np.random.default_rng(seed)
    for parameter in head.parameters():
        values = rng.standard_normal(tuple(parameter.shape)).astype(np.float32)
        scaled = values / np.sqrt(values[0].size) if values.ndim > 1 else 0.3 * values
        parameter.copy_(torch.from_numpy(scaled))
    for module in head.modules():
        if isinstance(module, nn.GroupNorm):
            module.weight += 1
    return head


def unit_vectors(rng: np.random.Generator, *shape: int) -> Tensor:
    return F.normalize(torch.from_numpy(rng.standard_normal(shape).astype(np.float32)), dim=-1)


def random_masks(rng: np.random.Generator, covers: list[float]) -> Tensor:
    """Rectangles with about these covers; 0 is an empty mask, which keeps only the class token, 1 a full one."""
    masks = torch.zeros(len(covers), SIZE, SIZE)
    for mask, cover in zip(masks, covers, strict=True):
        if cover > 0:
            height, width = SIZE, max(1, round(SIZE * cover))
            if rng.random() < 0.5:
                mask = mask.T
            left = rng.integers(0, SIZE - width + 1)
            mask[:height, left : left + width] = 1
    return masks


def packed(supports: Supports) -> Supports:
    """As the runtime stores them: only kept tokens, padded to the longest."""
    lengths = supports.kept_mask.sum(dim=1).int().tolist()
    batch, channels, _, dim = supports.kept.shape
    kept = torch.zeros(batch, channels, max(lengths), dim)
    kept_mask = torch.zeros(batch, max(lengths))
    for index, length in enumerate(lengths):
        kept[index, :, :length] = supports.kept[index][:, supports.kept_mask[index] > 0]
        kept_mask[index, :length] = 1
    return supports._replace(kept=kept, kept_mask=kept_mask)


def assert_same(ours: HeadLogits, theirs: HeadLogits, relative: float = 1e-5) -> None:
    for name in HeadLogits._fields:
        mine, other = getattr(ours, name), getattr(theirs, name)
        scale = max(float(other.abs().max()), 0.1)
        torch.testing.assert_close(mine, other, rtol=0, atol=relative * scale, msg=name)


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    """An episode of any sizes."""
    grid = draw(st.integers(2, 5))
    support_grid = draw(st.sampled_from([6, 12]))
    channels = draw(st.integers(1, 12))
    dim = draw(st.sampled_from([4, 8]))
    covers = draw(st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    head = seeded_head(channels, support_grid, seed=draw(st.integers(0, 99)))
    query = unit_vectors(rng, channels, grid * grid, dim)
    support = unit_vectors(rng, len(covers), channels, 1 + support_grid**2, dim)
    return head, query, support, random_masks(rng, covers)


few = settings(max_examples=25)


@few
@given(episodes(), st.integers(0, 2**32))
@torch.inference_mode()
def test_the_fast_head_gives_the_result_of_the_published_order_for_one_frame_or_many(
    episode: Episode, seed: int
) -> None:
    head, query, support, masks = episode
    supports = cache_supports(support, masks, head.corrtransformer[0].attn.side)
    queries = unit_vectors(np.random.default_rng(seed), len(support), *query.shape)
    fast, plain = FastCorrelationHead(head), head(query[None], support, masks)
    assert_same(fast(query, supports), plain)
    assert_same(fast(query, packed(supports)), plain)
    assert_same(fast(queries, packed(supports)), head(queries, support, masks))


@few
@given(episodes())
@torch.inference_mode()
def test_the_values_of_the_padding_do_not_matter(episode: Episode) -> None:
    head, query, support, masks = episode
    supports = packed(cache_supports(support, masks, head.corrtransformer[0].attn.side))
    longer = supports._replace(kept=F.pad(supports.kept, (0, 0, 0, 3)), kept_mask=F.pad(supports.kept_mask, (0, 3)))
    garbage = longer.kept_mask[:, None, :, None] == 0
    garbled = longer._replace(kept=torch.where(garbage, 10 * torch.randn(longer.kept.shape), longer.kept))
    fast = FastCorrelationHead(head)
    assert_same(fast(query, garbled), fast(query, supports))


def an_episode(support_grid: int, covers: list[float], channels: int = 18) -> Episode:
    rng = np.random.default_rng(support_grid)
    head = seeded_head(channels, support_grid)
    query = unit_vectors(rng, channels, 16, 8)
    support = unit_vectors(rng, len(covers), channels, 1 + support_grid**2, 8)
    return head, query, support, random_masks(rng, covers)


@pytest.mark.parametrize("support_grid", [3, 6, 9, 12])
@torch.inference_mode()
def test_every_support_grid_works(support_grid: int) -> None:
    head, query, support, masks = an_episode(support_grid, [0.0, 0.3, 1.0])
    supports = packed(cache_supports(support, masks, support_grid))
    lengths = supports.kept_mask.sum(dim=1).tolist()
    assert lengths[0] == 1  # the class token
    assert lengths[2] == 1 + support_grid**2
    assert_same(FastCorrelationHead(head)(query, supports), head(query[None], support, masks))


def flipped(mask: Tensor, index: int) -> Tensor:
    """The mask with one value of the first support changed."""
    other = mask.clone()
    other[0, index] = 1 - other[0, index]
    return other


def count_kept(supports: Supports) -> int:
    return int(supports.kept_mask[0].sum())


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda s: s._replace(kept_mask=flipped(s.kept_mask, count_kept(s))), id="one token more"),
        pytest.param(lambda s: s._replace(kept_mask=flipped(s.kept_mask, count_kept(s) - 1)), id="one token less"),
        pytest.param(lambda s: s._replace(pooled_mask=flipped(s.pooled_mask, 4)), id="another second mask"),
        pytest.param(lambda s: s._replace(pooled=s.pooled.flip(2)), id="other cells"),
        pytest.param(lambda s: s._replace(kept=s.kept.roll(1, dims=2)), id="class token not first"),
    ],
)
@torch.inference_mode()
def test_the_comparison_notices_a_wrong_cache(broken: Callable[[Supports], Supports]) -> None:
    head, query, support, masks = an_episode(12, [0.3, 0.6])
    supports = packed(cache_supports(support, masks, 12))
    plain = head(query[None], support, masks)
    fast = FastCorrelationHead(head)
    assert_same(fast(query, supports), plain)
    with pytest.raises(AssertionError):
        assert_same(fast(query, broken(supports)), plain)


def test_the_two_heads_share_their_parameters_and_their_gradients() -> None:
    head, query, support, masks = an_episode(6, [0.3, 0.6])
    head.requires_grad_(True)
    fast = FastCorrelationHead(head)
    assert {id(parameter) for parameter in fast.parameters()} == {id(parameter) for parameter in head.parameters()}
    gradients = []
    for logits in (head(query[None], support, masks), fast(query, cache_supports(support, masks, 6))):
        head.zero_grad()
        (logits.presence.square().sum() + logits.mask.square().mean()).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in head.named_parameters()})
    for name, plain in gradients[0].items():
        other = gradients[1][name]
        if name.endswith("qkv.bias"):  # the key's bias has no effect on the result, so its gradient is only rounding
            plain, other = (torch.cat([g.chunk(3)[0], g.chunk(3)[2]]) for g in (plain, other))
        torch.testing.assert_close(other, plain, rtol=0, atol=1e-4 * float(plain.abs().max()), msg=name)


@torch.inference_mode()
def test_masked_tokens_have_no_effect_but_the_class_token_always_has() -> None:
    head, query, support, masks = an_episode(12, [0.4])
    plain = head(query[None], support, masks)
    unseen = F.pad(mask_on_grid(masks, 12) == 0, (1, 0))[0]
    assert 0 < unseen.sum() < 144
    # Shortcut and query of the first block read every token, key and value only kept ones: shuffle within a cell.
    token = int(unseen.nonzero()[0])
    neighbor = token + 1
    assert unseen[neighbor]
    assert (token - 1) % 4 < 3
    order = list(range(145))
    order[token], order[neighbor] = neighbor, token
    assert_same(head(query[None], support[:, :, order], masks), plain)

    seen = [int(index) for index in (~unseen).nonzero()[1:]]
    pair = next(index for index in seen if index + 1 in seen and (index - 1) % 4 < 3)
    half_seen = masks.clone()
    half_seen[..., : SIZE // 2, :] = 0
    with pytest.raises(AssertionError):
        assert_same(head(query[None], support, half_seen), plain)
    changed = support.clone()
    changed[:, :, 0] = support[:, :, pair]
    with pytest.raises(AssertionError):
        assert_same(head(query[None], changed, masks), plain)


def test_tokens_are_resized_with_corners_aligned_and_the_class_token_stays() -> None:
    tokens = torch.randn(2, 3, 1 + 25, 4)
    resized = support_tokens(tokens, 5, 3)
    assert torch.equal(resized[:, :, 0], tokens[:, :, 0])
    every_second = tokens[:, :, 1:].reshape(2, 3, 5, 5, 4)[:, :, ::2, ::2].reshape(2, 3, 9, 4)
    torch.testing.assert_close(resized[:, :, 1:], every_second)


def test_channels_are_ordered_by_slice_then_layer() -> None:
    tokens = torch.randn(2, 3, 7, 8)  # 3 layers, 2 heads of 4
    vectors = channel_vectors(tokens, 2)
    assert vectors.shape == (2, 6, 7, 4)
    for head in range(2):
        for layer in range(3):
            assert torch.equal(vectors[:, head * 3 + layer], tokens[:, layer, :, head * 4 : head * 4 + 4])


@torch.inference_mode()
def golden() -> dict[str, np.ndarray]:
    """Inputs and results of the published order; the weights are seeded, so they need not be stored."""
    head, query, support, masks = an_episode(12, [0.0, 0.3, 1.0], channels=6)
    support = support.half()
    logits = head(query[None], support.float(), masks)
    bits = np.packbits(masks.numpy().astype(bool))
    arrays = {"query": query, "support": support, "presence": logits.presence, "mask": logits.mask}
    return {"mask_bits": bits, **{name: tensor.numpy() for name, tensor in arrays.items()}}


@torch.inference_mode()
def test_both_heads_give_the_stored_numbers() -> None:
    stored = np.load(GOLDEN)
    masks = torch.from_numpy(np.unpackbits(stored["mask_bits"]).reshape(3, SIZE, SIZE).astype(np.float32))
    query, support = torch.from_numpy(stored["query"]), torch.from_numpy(stored["support"]).float()
    wanted = HeadLogits(torch.from_numpy(stored["presence"]), torch.from_numpy(stored["mask"]))
    head = seeded_head(6, 12)
    assert_same(head(query[None], support, masks), wanted, relative=1e-4)
    assert_same(FastCorrelationHead(head)(query, cache_supports(support, masks, 12)), wanted, relative=1e-4)

    broken = copy.deepcopy(head)
    broken.corrtransformer[0].attn.qkv.weight[0, 0] += 1
    with pytest.raises(AssertionError):
        assert_same(broken(query[None], support, masks), wanted, relative=1e-4)


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **golden())
