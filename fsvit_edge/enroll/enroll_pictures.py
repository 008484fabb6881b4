"""Enroll a class from pictures and report what the network made of each; see `enroll_pictures`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fsvit_edge.enroll.fit import Fit, draw_fit, measure_fit
from fsvit_edge.enroll.support_files import SupportPicture
from fsvit_edge.fewshot.picture_sheet import captioned, sheet
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.errors import ObjectTooSmallError
from fsvit_edge.runtime.presence_level import score_text

_FULL_COVER = 0.95
_SMALL_COVER = 0.01
_LOWEST_IOU = 0.4
_LARGEST_RATIO = 2.0
_PREVIEW_COLUMNS = 4


@dataclass(frozen=True)
class PictureReport:
    """What the network made of one picture."""

    picture: SupportPicture
    mask: npt.NDArray[np.bool_]  # (H, W) bool: the mask used, whether given, made from the box or guessed
    mask_cover: float  # share of the picture that the mask covers, in [0, 1]
    kept_tokens: int  # image tokens that the mask keeps, at least 1
    prediction: Prediction  # of the picture, by all classes, after the enrollment
    fit: Fit  # what the class finds on the picture, compared with the mask; of a guess it says nothing
    warnings: tuple[str, ...]  # what is likely to go wrong, and what to do, in sentences


@dataclass(frozen=True)
class EnrollmentReport:
    """What an enrollment made of its pictures."""

    name: str
    shots: int  # supports (enrolled pictures) that the class has now
    pictures: tuple[PictureReport, ...]  # one for each new picture


def enroll_pictures(
    model: FewShotModel, name: str, pictures: Sequence[SupportPicture], level: float | None = None
) -> EnrollmentReport:
    """Enroll a class from pictures, or add pictures to it, then look at each picture with the enrolled class.

        with FewShotModel.load() as model:
            report = enroll_pictures(model, "cup", read_supports([Path("cups/")]))
            model.save_bank("bank.safetensors")

    Args:
        model: Gets the class.
        name: The class.
        pictures: Pictures that show it, as `read_supports` reads them.
        level: The score above which the class is present, in (0, 1); None derives it from the pictures.

    Raises:
        ObjectTooSmallError: The object is too small in a picture, which is named; the classes are unchanged.
        InputError: The name, a picture, a mask, a box or the level cannot be used; the classes are unchanged.
        ArtifactError: The head's engine was built for fewer classes; the classes are unchanged.
    """
    images = [picture.image for picture in pictures]
    masks = [picture.mask for picture in pictures]
    boxes = [picture.box_xyxy for picture in pictures]
    try:
        enrollment = model.enroll(name, images, masks, boxes, level)
    except ObjectTooSmallError as error:
        raise ObjectTooSmallError(pictures[error.index].source, error.index) from error
    name = enrollment.name
    reports = []
    for picture, mask, cover, tokens in zip(
        pictures, enrollment.masks, enrollment.mask_cover, enrollment.kept_tokens, strict=True
    ):
        prediction = model.predict(picture.image)
        fit = measure_fit(prediction, name, mask)
        warnings = support_warnings(cover, fit, picture.is_by_name)
        reports.append(PictureReport(picture, mask, cover, tokens, prediction, fit, warnings))
    return EnrollmentReport(name, enrollment.shots, tuple(reports))


def support_warnings(mask_cover: float, fit: Fit, is_guess: bool) -> tuple[str, ...]:
    """Return what is likely to go wrong with a support, and what to do; a guess is a mask made from the name alone."""
    warnings = []
    if mask_cover < _SMALL_COVER:
        warnings.append("The object covers less than 1 % of the picture; move the camera closer.")
    if is_guess and mask_cover > _FULL_COVER:
        warnings.append("The guessed mask covers almost the whole picture; give a mask or a box.")
    if not fit.is_present:
        warnings.append(
            "The class is not found in its own picture; give a tighter mask or box, or add another picture."
        )
    elif fit.area_ratio > _LARGEST_RATIO and not is_guess:  # the outline need not fit a guess
        warnings.append(
            f"The outline has {fit.area_ratio:.1f} x the mask's area, so it includes surroundings; go closer, or add "
            "pictures of it in other surroundings."
        )
    elif fit.iou < _LOWEST_IOU and not is_guess:
        warnings.append(
            f"The outline fits the mask poorly (IoU {fit.iou:.2f}); go closer, give a tighter mask or box, or add "
            "pictures."
        )
    return tuple(warnings)


def draw_report(report: EnrollmentReport) -> npt.NDArray[np.uint8]:
    """Draw every picture with what the class finds on it, and its mask as a white line, four in a row.

    Returns:
        (H, W, 3) uint8 RGB; each picture has at most 480 px a side, with two lines of text below it.
    """
    cells = []
    for shown in report.pictures:
        score = shown.prediction.scores[shown.prediction.classes.index(report.name)]
        fit = "the mask is a guess" if shown.picture.is_by_name else str(shown.fit)
        lines = [shown.picture.source, f"{report.name} {score_text(score)}: {fit}"]
        panel = draw_fit(shown.picture.image, shown.prediction, report.name, shown.mask)
        cells.append(captioned(panel, [(line, None) for line in lines]))
    return sheet([cells[start : start + _PREVIEW_COLUMNS] for start in range(0, len(cells), _PREVIEW_COLUMNS)])
