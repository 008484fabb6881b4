"""How well an enrolled class fits a picture that it was enrolled from, in two numbers and a picture."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.overlay import outline, tint
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.regions import find_regions
from fsvit_edge.runtime.pictures import thumbnail
from fsvit_edge.runtime.preprocess import resize_nearest

_PANEL_PX = 480


@dataclass(frozen=True)
class Fit:
    """What a class finds on its own picture, compared with the mask it was enrolled with."""

    iou: float  # intersection over union of the class's pixels and the mask, in [0, 1]
    area_ratio: float  # the class's area divided by the mask's
    is_present: bool  # by the class's score

    def __str__(self) -> str:
        """The two numbers in words."""
        return f"IoU {self.iou:.2f}, outline {self.area_ratio:.1f} x the mask's area"


def measure_fit(prediction: Prediction, name: str, mask: npt.NDArray[np.bool_]) -> Fit:
    """Compare what a class finds on a picture with the mask, (H, W) bool, that it was enrolled with."""
    found = prediction.pixels(name)
    shared, joined = int((found & mask).sum()), int((found | mask).sum())
    # A guess of a few pixels can be lost in a picture smaller than what the network sees, so both may be 0.
    is_present = bool(prediction.present[prediction.classes.index(name)])
    return Fit(shared / max(1, joined), float(found.sum() / max(1, mask.sum())), is_present)


def draw_fit(
    rgb: npt.NDArray[np.uint8], prediction: Prediction, name: str, mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    """Draw what `measure_fit` compares: the class's pixels in its color, and the mask as a white line.

    The drawing is a copy of the picture, (H, W, 3) uint8 RGB, with at most 480 px a side.
    """
    drawn = thumbnail(rgb, _PANEL_PX)
    size_hw = (drawn.shape[0], drawn.shape[1])
    label = prediction.classes.index(name) + 1
    tint(drawn, find_regions(resize_nearest(prediction.label_map, size_hw), [label]).get(label), label - 1)
    outline(drawn, resize_nearest(mask, size_hw) != 0)
    return drawn
