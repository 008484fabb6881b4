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


@pytest.mark.parametrize(
    ("first_is_present", "labels", "shown", "present", "known"),
    [
        (True, [3, 3], [[3], [3]], [True, True, True, True], [True] * 4),
        # The crop of the first query lost the object, so it shows no support of its class.
        (False, [3, 3], [[3], [3]], [False, True, False, True], [True] * 4),
        # Whether the first query shows the other class of its photograph is not known.
        (True, [0, 1], [[0, 1], [1]], [True, True, False, False], [True, True, False, True]),
    ],
)
def test_what_a_pair_shows_and_whether_it_is_known(
    first_is_present: bool, labels: list[int], shown: list[list[int]], present: list[bool], known: list[bool]
) -> None:
    pairs = asked([first_is_present, True], labels, shown, ways=2)
    assert pairs.present.tolist() == present
    assert pairs.known.tolist() == known


def test_unknown_pairs_have_no_part_in_the_loss() -> None:
    pairs = asked([True, True], [0, 1], [[0, 1], [1]], ways=2)
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
