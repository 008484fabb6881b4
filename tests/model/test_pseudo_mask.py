from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fsvit_edge.model.network import FewShotNetwork, normalize
from fsvit_edge.model.pseudo_mask import PSEUDO_MASK_THRESHOLD, pseudo_map, pseudo_mask, thresholded


def by_hand(class_query: Tensor, image_keys: Tensor, grid: int, size: int) -> np.ndarray:
    """The map before the threshold, with loops and in double precision."""
    queries, keys = class_query.double().numpy(), image_keys.double().numpy()
    batch, heads, count, _ = keys.shape
    cosines = np.zeros((batch, count))
    for picture in range(batch):
        for head in range(heads):
            for token in range(count):
                query, key = queries[picture, head], keys[picture, head, token]
                cosines[picture, token] += query @ key / np.linalg.norm(query) / np.linalg.norm(key) / heads
    at = np.linspace(0, grid - 1, size)  # corners aligned
    below = np.minimum(at.astype(int), grid - 2)
    line = np.zeros((size, grid))
    line[np.arange(size), below] = 1 - (at - below)
    line[np.arange(size), below + 1] = at - below
    maps = np.einsum("yi,xj,bij->byx", line, line, cosines.reshape(batch, grid, grid))
    return (maps + 1) / 2


def vectors(seed: int, grid: int = 4, heads: int = 3, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Keys that point away from the query, so that the cosines are on both sides of -0.2."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, heads, dim, generator=generator)
    keys = torch.randn(2, heads, grid * grid, dim, generator=generator) - 0.3 * query[:, :, None]
    return query, keys


@pytest.mark.parametrize("seed", range(5))
def test_a_pseudo_mask_is_the_thresholded_mean_cosine_of_the_heads(seed: int) -> None:
    query, keys = vectors(seed)
    ours = pseudo_mask(query, keys, grid=4, size=30)
    wanted = by_hand(query, keys, 4, 30)
    assert ours.shape == (2, 30, 30)
    assert 0.05 < ours.mean() < 0.95
    assert np.abs(wanted - PSEUDO_MASK_THRESHOLD).min() > 1e-6
    assert np.array_equal(ours.numpy(), wanted > 0.4)


def test_a_pseudo_mask_is_its_map_thresholded() -> None:
    query, keys = vectors(0)
    maps = pseudo_map(query, keys, 4)
    assert maps.shape == (2, 4, 4)
    assert maps.abs().max() <= 1
    assert torch.equal(thresholded(maps, 30), pseudo_mask(query, keys, 4, 30))
    torch.testing.assert_close(maps[1, 1, 2], torch.cosine_similarity(keys[1, :, 6], query[1], dim=-1).mean())


WRONG: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "one head": lambda query, keys: (query.flatten(1)[:, None], keys.transpose(1, 2).flatten(2)[:, None]),
    "swapped heads": lambda query, keys: (query.flip(1), keys),
    "of the other picture": lambda query, keys: (query.flip(0), keys),
    "transposed": lambda query, keys: (query, keys.unflatten(2, (4, 4)).transpose(2, 3).flatten(2, 3)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_comparison_notices_errors(wrong: str) -> None:
    query, keys = vectors(0)
    assert not np.array_equal(pseudo_mask(*WRONG[wrong](query, keys), 4, 30).numpy(), by_hand(query, keys, 4, 30) > 0.4)


def test_the_length_of_a_vector_does_not_matter() -> None:
    query, keys = vectors(0)
    longer, others = query * torch.tensor([0.2, 1.0, 5.0])[:, None], keys * torch.rand(keys.shape[:3])[..., None]
    assert torch.equal(pseudo_mask(longer, others, 4, 30), pseudo_mask(query, keys, 4, 30))


@pytest.mark.parametrize(("cosine", "foreground"), [(-0.19, 1.0), (-0.21, 0.0), (1.0, 1.0), (-1.0, 0.0), (0.0, 1.0)])
def test_foreground_begins_above_a_cosine_of_minus_a_fifth(cosine: float, foreground: float) -> None:
    query = torch.tensor([3.0, 0.0]).expand(1, 2, 2)
    keys = torch.tensor([cosine, (1 - cosine**2) ** 0.5]).expand(1, 2, 9, 2)
    assert (pseudo_mask(query, keys, grid=3, size=7) == foreground).all()


def test_the_corners_of_a_mask_are_the_corner_tokens() -> None:
    query = torch.tensor([1.0, 0.0]).expand(1, 1, 2)
    keys = torch.tensor([-1.0, 0.0]).repeat(1, 1, 9, 1)
    keys[0, 0, 2, 0] = 1.0  # top right
    mask = pseudo_mask(query, keys, grid=3, size=9)[0]
    assert mask[0, -1] == 1.0
    assert mask[0, 0] == mask[-1, 0] == mask[-1, -1] == 0.0
    assert mask[:4, 5:].any()
    assert not mask[5:].any()
    assert not mask[:, :4].any()


@torch.inference_mode()
def test_the_pseudo_mask_of_a_network_uses_its_own_vectors_and_size(tiny_network: FewShotNetwork) -> None:
    pictures = torch.randint(0, 256, (2, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    output = tiny_network.encoder(normalize(pictures))
    ours = tiny_network.pseudo_mask(output).numpy()
    wanted = by_hand(output.class_query, output.image_keys, 6, 48)
    clear = np.abs(wanted - 0.4) > 1e-6
    assert 0 < ours.mean() < 1
    assert np.array_equal(ours[clear], (wanted > 0.4)[clear])
