"""Enrollment from a frozen frame, and which other classes match the same object."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fsvit_edge.enroll.enroll_pictures import enroll_pictures
from fsvit_edge.enroll.support_files import SupportPicture
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.presence_level import score_text

_CONFUSED_SHARE = 0.3


@dataclass(frozen=True)
class Confusion:
    """Another class that also matches the enrolled object.

    Attributes:
        name: The class.
        score: Its P(present) on the frame, before the enrollment.
        mask_share: Share of the new mask that it claimed before the enrollment, in [0, 1].
    """

    name: str
    score: float
    mask_share: float

    @property
    def warning(self) -> str:
        """What it means and what to do, in a sentence."""
        score = score_text(self.score)
        return f"{self.name} also matches this object (score {score}); add pictures that tell the two apart."


@dataclass(frozen=True)
class FrameReport:
    """What an enrollment made of its frame.

    Attributes:
        name: The class.
        shots: Supports (enrolled pictures) that it has now; this one is the last.
        key: Checksum of this one's thumbnail, as in the state of the page.
        mask_cover: Share of the frame that the mask, given or guessed, covers, in [0, 1].
        kept_tokens: Image tokens that the mask keeps, at least 1.
        score: P(present) of the class on the frame after the enrollment, in [0, 1].
        found_share: Share of the given mask that the class finds on that frame; None if no mask was given.
        iou: Intersection over union of the given mask and what the class finds; None if no mask was given.
        area_ratio: The area that the class finds divided by the given mask's; None if no mask was given.
        confusions: Other classes that also match the object.
        warnings: Sentences about what is likely to go wrong, and what to do.
    """

    name: str
    shots: int
    key: str
    mask_cover: float
    kept_tokens: int
    score: float
    found_share: float | None
    iou: float | None
    area_ratio: float | None
    confusions: tuple[Confusion, ...]
    warnings: tuple[str, ...]


def enroll(
    model: FewShotModel,
    name: str,
    image: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.bool_] | None,
    before: Prediction,
) -> FrameReport:
    """Enroll one frame, (H, W, 3) uint8 RGB, and score it: two runs of the encoder, beside the one `before`.

    The mask is (H, W) bool; None enrolls by the name alone. Raises like `enroll_pictures`.
    """
    report = enroll_pictures(model, name, [SupportPicture(f"Picture 1 of {name!r}", image, mask)])
    name = report.name
    (one,) = report.pictures
    after = one.prediction
    found = after.pixels(name)
    confusions = find_confusions(before, name, found if mask is None else mask)
    return FrameReport(
        name=name,
        shots=report.shots,
        key=model.bank.supports(name)[-1].thumbnail_key,
        mask_cover=round(one.mask_cover, 4),
        kept_tokens=one.kept_tokens,
        score=round(float(after.scores[after.classes.index(name)]), 4),
        found_share=None if mask is None else round(float(found[mask].mean()), 3),
        iou=None if mask is None else round(one.fit.iou, 3),
        area_ratio=None if mask is None else round(one.fit.area_ratio, 2),
        confusions=confusions,
        warnings=(*one.warnings, *(confusion.warning for confusion in confusions)),
    )


def find_confusions(before: Prediction, name: str, mask: npt.NDArray[np.bool_]) -> tuple[Confusion, ...]:
    """Return the other classes that were present before the enrollment and claimed much of the mask, (H, W) bool."""
    confusions = []
    for way, other in enumerate(before.classes):
        share = float(before.pixels(other)[mask].mean()) if mask.any() else 0.0
        if other != name and before.present[way] and share >= _CONFUSED_SHARE:
            confusions.append(Confusion(other, round(float(before.scores[way]), 4), round(share, 3)))
    return tuple(confusions)
