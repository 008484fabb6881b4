"""Enrollment from a frozen frame, and at once what became of it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fsvit_edge.enroll.fit import Fit, measure_fit
from fsvit_edge.runtime.predictor import FewShotModel

_FULL_COVER = 0.95
_SMALL_COVER = 0.01
_CONFUSED_SHARE = 0.3


@dataclass(frozen=True)
class Confusion:
    """Another class that answers to what was enrolled.

    Attributes:
        name: The class.
        score: Its P(present) on the frame, before the enrollment.
        mask_share: Share of the new mask that it took for itself before the enrollment, in [0, 1].
    """

    name: str
    score: float
    mask_share: float


@dataclass(frozen=True)
class EnrollmentReport:
    """What became of an enrollment.

    Attributes:
        name: The class.
        shots: Supports that it has now.
        mask_cover: Share of the picture that the mask, given or guessed, covers.
        kept_tokens: Image tokens that the mask keeps.
        score: P(present) of the class on the frame from which it was enrolled.
        found_share: Share of the given mask that the class finds on that frame; None where no mask was given.
        iou: Intersection over union of the given mask and what the class finds on that frame; None as above.
        area_ratio: How many times the given mask's area the class finds on that frame; None as above.
        confusions: Other classes that answer to it.
        warnings: Sentences about what is likely to go wrong.
    """

    name: str
    shots: int
    mask_cover: float
    kept_tokens: int
    score: float
    found_share: float | None
    iou: float | None
    area_ratio: float | None
    confusions: tuple[Confusion, ...]
    warnings: tuple[str, ...]


def enroll(
    model: FewShotModel, name: str, image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_] | None
) -> EnrollmentReport:
    """Enroll one picture and look at the same picture before and after; costs three runs of the encoder.

    Args:
        model: Is given the class.
        name: The class.
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool; None for the name alone.

    Raises:
        InputError: The name, picture or mask cannot be used; the classes are as they were.
        ArtifactError: The head's engine was built for fewer classes.
    """
    before = model.predict(image)
    enrollment = model.enroll(name, [image], [mask])
    after = model.predict(image)
    way = after.classes.index(name)
    seen = mask if mask is not None else after.label_map == way + 1
    confusions = []
    for index, other in enumerate(before.classes):
        share = float((before.label_map[seen] == index + 1).mean()) if seen.any() else 0.0
        if other != name and before.present[index] and share >= _CONFUSED_SHARE:
            confusions.append(Confusion(other, round(float(before.scores[index]), 3), round(share, 3)))
    cover, fit = enrollment.mask_cover[0], measure_fit(after, name, enrollment.masks[0])
    return EnrollmentReport(
        name=name,
        shots=enrollment.shots,
        mask_cover=round(cover, 4),
        kept_tokens=enrollment.kept_tokens[0],
        score=round(float(after.scores[way]), 3),
        found_share=None if mask is None else round(float((after.label_map[seen] == way + 1).mean()), 3),
        iou=None if mask is None else round(fit.iou, 3),
        area_ratio=None if mask is None else round(fit.area_ratio, 2),
        confusions=tuple(confusions),
        warnings=tuple(_warnings(cover, fit, mask is not None, confusions)),
    )


def _warnings(cover: float, fit: Fit, has_mask: bool, confusions: list[Confusion]) -> list[str]:
    warnings = []
    if cover < _SMALL_COVER:
        warnings.append("The thing covers less than 1 % of the picture; go closer for a better support.")
    if not has_mask and cover > _FULL_COVER:
        warnings.append("The network's guess covers almost everything; draw a box around the thing.")
    # A guess is no truth to hold the outline to.
    if fit.warning is not None and (has_mask or not fit.is_present):
        warnings.append(fit.warning)
    warnings += [
        f"{one.name} answers to the same thing (score {one.score:.2f}); add pictures that tell the two apart."
        for one in confusions
    ]
    return warnings
