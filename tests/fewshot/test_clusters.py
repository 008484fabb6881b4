import numpy as np
import pytest

from fsvit_edge.fewshot.clusters import fewer_tokens


def unit_tokens(count: int, seed: int = 0, channels: int = 3, dim: int = 8) -> np.ndarray:
    tokens = np.random.default_rng(seed).normal(size=(channels, count, dim)).astype(np.float32)
    return tokens / np.linalg.norm(tokens, axis=2, keepdims=True)


def groups_by_hand(points: np.ndarray, most: int) -> list[list[int]]:
    """Ward's rule as it is written: merge the two groups that add the least to the squared distances from the means."""
    groups = [[index] for index in range(len(points))]

    def spread(members: list[int]) -> float:
        return float(((points[members] - points[members].mean(axis=0)) ** 2).sum())

    while len(groups) > most:
        pairs = [(one, other) for other in range(len(groups)) for one in range(other)]
        added = [spread(groups[a] + groups[b]) - spread(groups[a]) - spread(groups[b]) for a, b in pairs]
        one, other = pairs[int(np.argmin(added))]
        groups[one] += groups.pop(other)
    return sorted(map(sorted, groups))


def attended(query: np.ndarray, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Attention of one channel's query over tokens that stand for several."""
    weight = count * np.exp(tokens @ query)
    return weight @ tokens / weight.sum()


def test_few_tokens_stay_as_they_are() -> None:
    kept = unit_tokens(9)
    tokens, count = fewer_tokens(kept, 8)
    assert np.array_equal(tokens, kept)
    assert np.array_equal(count, np.ones(9))


@pytest.mark.parametrize("most", [1, 2, 5, 12])
def test_the_groups_are_those_of_wards_rule(most: int) -> None:
    kept = unit_tokens(21)
    tokens, count = fewer_tokens(kept, most)
    image = kept[:, 1:]
    groups = groups_by_hand(image.transpose(1, 0, 2).reshape(20, -1), most)
    assert tokens.shape == (3, 1 + most, 8)
    assert sorted(count[1:]) == sorted(map(len, groups))
    by_hand = np.stack([image[:, members].mean(axis=1) for members in groups], axis=1)
    for wanted in by_hand.transpose(1, 0, 2):  # in any order
        assert np.abs(tokens[:, 1:] - wanted[:, None]).max(axis=(0, 2)).min() < 1e-6


def test_the_class_token_is_not_merged_and_counts_once() -> None:
    kept = unit_tokens(30)
    kept[:, 5] = kept[:, 0]  # an image token that is equal to it
    tokens, count = fewer_tokens(kept, 4)
    assert np.array_equal(tokens[:, 0], kept[:, 0])
    assert count[0] == 1
    assert count.sum() == 30


def test_attention_over_copies_is_the_same_with_counts_and_another_without() -> None:
    few = unit_tokens(4, channels=1)
    kept = few[:, [0, 1, 1, 1, 1, 2, 2, 3, 3, 3]]
    query = np.random.default_rng(1).normal(size=8)
    tokens, count = fewer_tokens(kept, 3)
    every = attended(query, kept[0], np.ones(10))
    assert np.abs(attended(query, tokens[0], count) - every).max() < 1e-6
    assert np.abs(attended(query, tokens[0], np.ones(4)) - every).max() > 1e-2


def test_half_precision_tokens_give_the_same_every_time() -> None:
    kept = unit_tokens(60).astype(np.float16)
    first, again = fewer_tokens(kept, 16), fewer_tokens(kept.copy(), 16)
    assert first[0].dtype == np.float32
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
