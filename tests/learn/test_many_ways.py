import math

import pytest
import torch

from fsvit_edge.learn.many_ways import Pairs, pairs_of, presence_loss, thinned


def asked(present: list[bool], labels: list[int], shown: list[list[int]], ways: int, count: int = 5) -> Pairs:
    table = torch.zeros(len(labels), count, dtype=torch.bool)
    for row, its in enumerate(shown):
        table[row, its] = True
    return pairs_of(torch.tensor(present), torch.tensor(labels), table, ways)


def test_each_query_is_asked_about_its_own_class_and_those_of_the_next_queries() -> None:
    pairs = asked([True, True, True], [0, 1, 2], [[0], [1], [2]], ways=2)

    assert pairs.query.tolist() == [0, 1, 2, 0, 1, 2]
    assert pairs.support.tolist() == [0, 1, 2, 1, 2, 0]
    assert pairs.present.tolist() == [True] * 3 + [False] * 3
    assert pairs.known.all()


def test_two_supports_of_one_class_are_both_present() -> None:
    pairs = asked([True, True], [3, 3], [[3], [3]], ways=2)

    assert pairs.present.all()
    assert pairs.known.all()


def test_a_query_whose_crop_lost_the_object_shows_no_support_of_its_class() -> None:
    pairs = asked([False, True], [3, 3], [[3], [3]], ways=2)

    assert pairs.present.tolist() == [False, True, False, True]


def test_other_classes_of_the_photograph_are_not_known() -> None:
    pairs = asked([True, True], [0, 1], [[0, 1], [1]], ways=2)

    assert pairs.known.tolist() == [True, True, False, True]
    certain = presence_loss(torch.tensor([4.0, 4.0, 9.0, -4.0]), pairs, 0.0)
    assert certain == presence_loss(torch.tensor([4.0, 4.0, -9.0, -4.0]), pairs, 0.0)


def test_the_loss_equals_one_computed_by_hand() -> None:
    pairs = asked([True, True], [0, 1], [[0], [1]], ways=2)
    logit = torch.tensor([2.0, 1.0, -1.0, 0.5])  # 0 for 0, 1 for 1, 0 for 1, 1 for 0

    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731 - one line of a formula
    entropy = (softplus(-2.0) + softplus(-1.0)) / 2 + (softplus(-1.0) + softplus(0.5)) / 2
    by_query = (softplus(-1.0 - 2.0) + softplus(0.5 - 1.0)) / 2
    by_support = (softplus(0.5 - 2.0) + softplus(-1.0 - 1.0)) / 2

    assert float(presence_loss(logit, pairs, 0.0)) == pytest.approx(entropy + 0.5 * (by_query + by_support), rel=1e-5)


def test_label_noise_bounds_the_loss_of_one_absent_pair() -> None:
    pairs = asked([True, True], [0, 1], [[0], [1]], ways=2)

    def slope(noise: float) -> float:
        logit = torch.tensor([0.0, 0.0, 12.0, -12.0], requires_grad=True)
        absent = pairs._replace(present=torch.zeros(4, dtype=torch.bool))
        presence_loss(logit, absent, noise).backward()
        return float(logit.grad[2])

    assert slope(0.0) == pytest.approx(0.25, abs=1e-3)
    assert abs(slope(0.05)) < 1e-3


@pytest.mark.parametrize("grid", [4, 5])
def test_a_thinned_query_keeps_every_second_row_and_column(grid: int) -> None:
    places = torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij"), dim=2)
    query = places.reshape(1, 1, grid * grid, 2).float().expand(3, 2, -1, -1)

    kept = {tuple(thinned(query, grid)[2, 1].flatten().int().tolist()) for _ in range(50)}

    assert kept == {
        tuple(value for row in (top, top + 2) for column in (left, left + 2) for value in (row, column))
        for top in (0, 1)
        for left in (0, 1)
    }
