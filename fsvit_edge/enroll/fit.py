"""How well an enrolled class fits a picture that it was enrolled from, in two numbers and a picture."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.overlay import outline, tint
from fsvit_edge.runtime.pictures import thumbnail
from fsvit_edge.runtime.prediction import Prediction
from fsvit_edge.runtime.preprocess import resize_nearest

_LOWEST_IOU = 0.4
_LARGEST_RATIO = 2.0
_PANEL_PX = 480


@dataclass(frozen=True)
class Fit:
    """What a class finds on its own picture, against the mask it was enrolled with.

    Attributes:
        iou: Intersection over union of the class's outline and the mask, in [0, 1].
        area_ratio: How many times the mask's area the outline has.
        is_present: Whether the class is judged present at all.
    """

    iou: float
    area_ratio: float
    is_present: bool

    def __str__(self) -> str:
        """The two numbers in words."""
        return f"IoU {self.iou:.2f}, outline {self.area_ratio:.1f} x the mask's area"

    @property
    def warning(self) -> str | None:
        """What is likely to go wrong and what to do, in a sentence; None where nothing is."""
        if not self.is_present:
            return "The class is not found on its own picture; draw a tighter mask or box, or add another picture."
        if self.area_ratio > _LARGEST_RATIO:
            return (
                f"The outline has {self.area_ratio:.1f} x the mask's area, so surroundings are taken for the thing; go "
                "closer, or add pictures of it in other surroundings."
            )
        if self.iou < _LOWEST_IOU:
            return (
                f"The outline fits the mask badly (IoU {self.iou:.2f}); go closer, draw a tighter mask or box, or add "
                "pictures."
            )
        return None


def measure_fit(prediction: Prediction, name: str, mask: npt.NDArray[np.bool_]) -> Fit:
    """Compare what a class finds on a picture with the mask that it was enrolled with there.

    Args:
        prediction: Of that picture, by classes among which is `name`.
        name: The class.
        mask: (H, W) bool of the picture's size: the mask given, or guessed.
    """
    way = prediction.classes.index(name)
    found = prediction.label_map == way + 1
    shared, joined = int((found & mask).sum()), int((found | mask).sum())
    # A guess of a few pixels can be lost in a picture smaller than what the network sees.
    return Fit(shared / max(1, joined), float(found.sum() / max(1, mask.sum())), bool(prediction.present[way]))


def draw_fit(
    rgb: npt.NDArray[np.uint8], prediction: Prediction, name: str, mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    """Draw what `measure_fit` compares: the class's pixels in its color, and the mask as a white line.

    Args:
        rgb: (H, W, 3) uint8 RGB; it is not changed.
        prediction: See `measure_fit`; so are the two that follow.
        name: See there.
        mask: See there.

    Returns:
        (h, w, 3) uint8 RGB, a copy of the picture with at most 480 px a side.
    """
    drawn = thumbnail(rgb, _PANEL_PX)
    size_hw = (drawn.shape[0], drawn.shape[1])
    tint(drawn, resize_nearest(prediction.label_map, size_hw), prediction.classes.index(name))
    outline(drawn, resize_nearest(mask, size_hw) != 0)
    return drawn
