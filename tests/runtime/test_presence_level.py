import math

import pytest

from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.presence_level import check_level, distinct_texts, level_of_supports, score_text


def log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def test_a_score_and_a_level_close_to_one_can_be_told_apart() -> None:
    assert [score_text(score) for score in (0.0, 0.5, 0.9949)] == ["0.00", "0.50", "0.99"]
    assert (score_text(0.9962), score_text(0.9991)) == ("0.9962", "0.9991")  # both would be 1.00


@pytest.mark.parametrize(
    ("score", "level", "expected"),
    [
        (0.3, 0.5, ("0.30", "0.50")),
        (0.9962, 0.5, ("0.9962", "0.50")),
        (0.978, 0.982, ("0.9780", "0.9820")),  # both 0.98
        (0.99991, 0.99994, ("0.999910", "0.999940")),  # both 0.9999
        (0.50001, 0.50002, ("0.500010", "0.500020")),
        (0.5, 0.5, ("0.50", "0.50")),
        (0.3, 0.1 + 0.2, ("0.3000000000000000",) * 2),  # differ in the 17th digit
    ],
)
def test_a_score_and_its_level_look_alike_only_if_they_are(
    score: float, level: float, expected: tuple[str, str]
) -> None:
    assert distinct_texts(score, level) == expected
    assert distinct_texts(level, score, level) == (*expected[::-1], expected[1])


@pytest.mark.parametrize("level", [0.01, 0.5, 0.9995])
@pytest.mark.parametrize("scores", [[], [None], [None, None]])
def test_without_a_score_the_level_is_the_heads(level: float, scores: list[None]) -> None:
    assert level_of_supports(level, scores) == level


@pytest.mark.parametrize("base", [0.2, 0.5, 0.8])
def test_the_level_moves_by_three_tenths_of_the_means_distance(base: float) -> None:
    for means in (-0.5, 0.0, 1.0, 2.5):
        scores = [None, *(probability(log_odds(base) + means + apart) for apart in (-0.4, 0.0, 0.4))]
        expected = log_odds(base) + 0.3 * (means - 1)
        assert log_odds(level_of_supports(base, scores)) == pytest.approx(expected, abs=1e-9)
        assert level_of_supports(base, scores[::-1]) == pytest.approx(level_of_supports(base, scores))


def test_the_level_moves_by_one_at_most_and_never_to_an_end() -> None:
    assert log_odds(level_of_supports(0.5, [1.0, 1.0])) == pytest.approx(1.0)
    assert log_odds(level_of_supports(0.5, [0.0])) == pytest.approx(-1.0)
    for base in (1e-6, 1 - 1e-6):
        for scores in ([0.0], [1.0]):
            assert 0 < level_of_supports(base, scores) < 1


def test_a_picture_that_scores_low_lowers_the_level() -> None:
    assert level_of_supports(0.5, [0.8, 0.2]) < level_of_supports(0.5, [0.8]) < level_of_supports(0.5, [0.8, 0.95])
    assert level_of_supports(0.5, [0.3]) < 0.5 < level_of_supports(0.5, [0.9])


@pytest.mark.parametrize(
    "level", [0, 1, 0.0, 1.0, -1, 1.5, float("nan"), float("inf"), None, "0.5", False, True], ids=repr
)
def test_a_level_out_of_range_is_refused(level: object) -> None:
    with pytest.raises(InputError, match="must be between 0 and 1, both excluded; got"):
        check_level(level)  # type: ignore[arg-type]
    assert check_level(0.7) == 0.7
