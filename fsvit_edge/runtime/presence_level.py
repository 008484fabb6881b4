"""The level of a class: the score above which it is present."""

import math
from collections.abc import Sequence

from fsvit_edge.runtime.errors import InputError

DEFAULT_LEVEL = 0.5

_EXPECTED_LOGITS = 1.0
_SHARE = 0.3
_MOST_LOGITS = 1.0
_CERTAIN = 1e-3


def check_level(level: float) -> float:
    """Return the level as a float; an InputError if it is not a number between 0 and 1, both excluded."""
    if type(level) not in (int, float) or not 0 < level < 1:
        raise InputError(f"The level of a class must be between 0 and 1, both excluded; got {level!r:.40}.")
    return float(level)


def score_text(score: float) -> str:
    """Return a score or a level for people: two decimals, or four where two would hide how far from 1 it is."""
    return f"{score:.2f}" if score < 0.995 else f"{score:.4f}"


def distinct_texts(*scores: float) -> tuple[str, ...]:
    """Return a score and its level as `score_text`, or with so many more digits that they look alike only if equal."""
    texts = tuple(map(score_text, scores))
    for digits in range(4, 18, 2):
        if len(set(texts)) == len(set(scores)):
            break
        texts = tuple(f"{score:.{digits}f}" for score in scores)
    return texts


def level_of_supports(presence_level: float, loo_scores: Sequence[float | None]) -> float:
    """Move the level toward the scores of the class's pictures against each other.

    In log-odds: presence_level + 0.3 x (mean of the scores - presence_level - 1), at most 1 away. Own pictures that
    score less than 1 above the level, as those of a varied class do, lower it, so that the class is still found; higher
    ones raise it.

    Chosen on pascal10-coseg (cst-nano, 20 classes, every choice of 2 or 3 among 3 supports with masks, 9 other pictures
    per class as hits and some 170 as scenes without it), hits / false alarms:

        rule                          2 supports    3 supports
        level 0.5                     0.872 / 0.144  0.894 / 0.138
        this rule                     0.885 / 0.122  0.917 / 0.111
        lowest - 2, never lowered     0.837 / 0.102  0.894 / 0.125   one class in twenty never found
        lowest, never raised          0.924 / 0.190  0.956 / 0.213   one class nearly always an alarm
        lowest - 2, both ways         0.928 / 0.303  0.994 / 0.429

    The lowest score depends on a single picture; a third of the mean's distance is better in both figures at once, and
    shares of 0.2 to 0.4 do equally well. The bound costs nothing there and keeps copies of one picture, which score
    near 1, from closing the class to everything else. On davis16-val, not used to choose the rule: level 0.5: 1.000 /
    0.304 and 1.000 / 0.300; this rule: 1.000 / 0.192 and 1.000 / 0.190.

    A leave-one-out score is in [0, 1], or None if there was no other support; without any the level stays.
    """
    known = [_log_odds(min(max(score, _CERTAIN), 1 - _CERTAIN)) for score in loo_scores if score is not None]
    if not known:
        return presence_level
    base = _log_odds(presence_level)
    shift = _SHARE * (sum(known) / len(known) - base - _EXPECTED_LOGITS)
    return 1 / (1 + math.exp(-(base + max(-_MOST_LOGITS, min(_MOST_LOGITS, shift)))))


# Not that of `postprocess`, which is in float32 and clips so late that one score near 1 would outweigh all others.
def _log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))
