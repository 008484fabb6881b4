"""From what the head found in a frame to the answer at the frame's size."""

import numpy as np

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.decide import Scores, compete, subtract_negatives
from fsvit_edge.fewshot.outlines import recognized, sharpen
from fsvit_edge.fewshot.prediction import Prediction, StageClock
from fsvit_edge.runtime.postprocess import Maps, label_map, upsample_foreground


def answer_frame(
    size_hw: tuple[int, int],
    bank: SupportBank,
    levels: Scores,
    head_scores: Scores,
    head_foreground: Maps,
    objectness: Maps | None,
    exclusive: bool,
    clock: StageClock,
    probabilities: bool = False,
) -> Prediction:
    """Decide which classes of a bank are present in a frame, and draw them.

    Args:
        size_hw: The frame's height H and width W.
        bank: The classes.
        levels: The score above which each is present, (ways,) float32 in (0, 1).
        head_scores: P(present) of the bank's classes, then of its negatives, (ways + negatives,) float32.
        head_foreground: P(foreground) of the same, (ways + negatives, m, m).
        objectness: Logits (n, n) of the frame; None for plain outlines, in which absent classes are drawn too.
        exclusive: Whether classes that claim the same pixels exclude each other.
        clock: Gets the lap "postprocess".
        probabilities: Whether to add P(foreground) at the frame's size.
    """
    scores, foreground = subtract_negatives(head_scores, head_foreground, levels, bank.negative_margins)
    competing = compete(scores, foreground, levels)
    contested = competing < scores
    if exclusive:
        scores = competing
    sharp = foreground
    if objectness is not None and (weights := bank.objectness_weights).any():
        sharp = sharpen(foreground, objectness, weights * recognized(foreground, objectness))
    # CST learned to mark nothing of an absent class, but objectness lights whatever else stands out. With half of
    # the classes absent, mIoU on pascal10-coseg: CST 39.6, sharp 41.3, without the absent 38.9 and 54.5.
    shown = sharp if objectness is None else sharp * (scores > levels)[:, None, None]
    labels = label_map(shown, size_hw)
    full = upsample_foreground(sharp, size_hw) if probabilities else None
    clock.lap("postprocess")
    raw_scores = np.asarray(head_scores[: len(levels)], np.float32)
    return Prediction(
        bank.classes,
        scores,
        levels,
        labels,
        full,
        clock.laps_ms,
        raw_scores,
        zones=bank.zones,
        contested=contested,
    )
