"""From what the head found in a frame to the answer at the frame's size."""

import numpy as np

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.decide import PresenceOverTime, Scores, compete, subtract_negatives
from fsvit_edge.fewshot.heads import HeadAnswer
from fsvit_edge.fewshot.outlines import recognized, sharpen
from fsvit_edge.fewshot.prediction import Prediction, StageClock
from fsvit_edge.runtime.postprocess import Maps, label_map, upsample_foreground


def answer_frame(
    size_hw: tuple[int, int],
    bank: SupportBank,
    levels: Scores,
    found: HeadAnswer,
    objectness: Maps | None,
    exclusive: bool,
    clock: StageClock,
    probabilities: bool = False,
    over_time: PresenceOverTime | None = None,
) -> Prediction:
    """Decide which classes of a bank are present in a frame, and draw them.

    Args:
        size_hw: The frame's height H and width W.
        bank: The classes.
        levels: The score above which each is present, (ways,) float32 in (0, 1).
        found: What the head found of the bank's classes, then of its negatives. Outlines are made only of classes that
            may be present or are drawn all the same, and of their negatives.
        objectness: Logits (n, n) of the frame; None for plain outlines, in which absent classes are drawn too, unless
            presence is decided over time.
        exclusive: Whether classes that claim the same pixels exclude each other.
        clock: Gets the outlines' part of the lap "head", and the lap "postprocess".
        probabilities: Whether to add P(foreground) at the frame's size.
        over_time: Decides which classes are present, and so have pixels; None: the scores of this frame alone.
    """
    raw_scores = np.asarray(found.scores[: len(levels)], np.float32)
    # CST learned to mark nothing of an absent class, but objectness lights whatever else stands out. With half of
    # the classes absent, mIoU on pascal10-coseg: CST 39.6, sharp 41.3, without the absent 38.9 and 54.5.
    draws_absent = objectness is None and over_time is None
    drawn = raw_scores > levels
    if over_time is not None:
        drawn |= over_time.before(bank.classes)
    if draws_absent or probabilities:
        drawn = np.ones_like(drawn)
    negatives = bank.negative_margins
    foreground = found.foreground(np.append(drawn, [drawn[way] for way, _ in negatives]).astype(np.bool_))
    clock.lap("head")
    scores, foreground = subtract_negatives(found.scores, foreground, levels, negatives, drawn)
    competing = compete(scores, foreground, levels)
    contested = competing < scores
    if exclusive:
        scores = competing if over_time is None else compete(scores, foreground, levels, over_time.before(bank.classes))
    present = scores > levels
    steady_present = None
    if over_time is not None:
        # Before the label map is made: a class that is not yet on must take no pixels from one that is.
        present = steady_present = over_time.decide(bank.classes, scores, raw_scores, levels)
    sharp = foreground
    if objectness is not None and drawn.any() and (weights := bank.objectness_weights).any():
        some = foreground[drawn]
        sharpened = sharpen(some, objectness, weights[drawn] * recognized(some, objectness))
        sharp = np.zeros((len(foreground), *sharpened.shape[1:]), np.float32)
        sharp[drawn] = sharpened
    shown = sharp if draws_absent else sharp * present[:, None, None]
    labels = label_map(shown, size_hw)
    full = upsample_foreground(sharp, size_hw) if probabilities else None
    clock.lap("postprocess")
    return Prediction(
        bank.classes,
        scores,
        levels,
        labels,
        full,
        clock.laps_ms,
        raw_scores,
        steady_present,
        zones=bank.zones,
        contested=contested,
    )
