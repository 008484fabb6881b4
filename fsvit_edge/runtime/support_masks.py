"""Pictures that are to be enrolled, with masks, boxes or neither: checked, and boxes made masks."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.box_mask import Box
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.preprocess import check_rgb

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def support_masks(
    name: str,
    images: Sequence[Image],
    masks: Sequence[Mask | None] | None,
    boxes: Sequence[Box | None] | None,
    mask_of_box: Callable[[Image, Box], Mask],
) -> list[Mask | None]:
    """Check all that is given of a class's new pictures, and make masks of the boxes; see `FewShotModel.enroll`.

    Returns:
        For each picture its mask; None where only the name is known.

    Raises:
        InputError: There is no picture, or one, a mask or a box cannot be used.
    """
    if len(images) == 0:
        raise InputError(f"Class {name!r} needs at least one picture.")
    for what, given in (("masks", masks), ("boxes", boxes)):
        if given is not None and len(given) != len(images):
            raise InputError(f"Class {name!r} has {len(images)} pictures but {len(given)} {what}; give one for each.")
    none = [None] * len(images)
    found: list[Mask | None] = []
    for image, mask, box in zip(
        images, none if masks is None else masks, none if boxes is None else boxes, strict=True
    ):
        if mask is not None and box is not None:
            raise InputError(f"Picture {len(found) + 1} of {name!r} has a mask and a box; give one of them.")
        if box is not None:
            check_rgb(image, f"The picture of {name!r}")
            mask = mask_of_box(image, _checked_box(name, box))
        check_support(name, image, mask)
        found.append(mask)
    return found


def _checked_box(name: str, box: Sequence[float]) -> Box:
    try:
        left, top, right, bottom = (round(float(value)) for value in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"A box of {name!r} must be (left, top, right, bottom) in pixels; got {box!r:.80}.") from error
    return left, top, right, bottom


def check_support(name: str, image: Image, mask: Mask | None) -> None:
    """Refuse a picture or mask that cannot be enrolled.

    Raises:
        InputError: The picture is none, or the mask is empty or of another size.
    """
    check_rgb(image, f"The picture of {name!r}")
    if mask is None:
        return
    mask = np.asarray(mask)
    if mask.shape != image.shape[:2]:
        raise InputError(
            f"The mask of {name!r} must be as large as its picture, {image.shape[:2]} (height, width); "
            f"got {mask.shape}."
        )
    if not mask.any():
        raise InputError(f"The mask of {name!r} is empty; mark the thing, or give no mask to enroll by its name alone.")
