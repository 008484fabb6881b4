"""Augmentation by a few fixed views of each picture, so that their tokens can be cached like those of the picture."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.preprocess import resize_image, resize_mask

LEAST_AREA = 0.35
"""Smallest share of the picture's area that a view shows."""
_GRAY_LEVELS = 255


@dataclass(frozen=True)
class View:
    """How to crop a picture and change its colors."""

    top: float = 0.0  # edges of the crop, as shares of the picture's height and width, in [0, 1]
    bottom: float = 1.0
    left: float = 0.0
    right: float = 1.0
    flip: bool = False  # mirror left to right
    saturation: float = 1.0  # factor on the difference between a pixel and its gray value
    contrast: float = 1.0  # factor on the difference between a pixel and the mean of the view
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors on red, green and blue

    def of_image(self, rgb: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
        """Return the view of (H, W, 3) uint8 RGB as (size, size, 3) uint8, resized by the runtime's preprocessing."""
        image = resize_image(np.ascontiguousarray(self._crop(rgb)), size)
        if self.flip:
            image = image[:, ::-1]
        if (self.saturation, self.contrast, self.light) == (1.0, 1.0, (1.0, 1.0, 1.0)):
            return np.ascontiguousarray(image)
        colors = image.astype(np.float32)
        gray = colors.mean(axis=2, keepdims=True)
        colors = gray + (colors - gray) * self.saturation
        colors = colors.mean() + (colors - colors.mean()) * self.contrast
        colors = np.clip(colors * np.array(self.light, np.float32), 0, _GRAY_LEVELS)
        view: npt.NDArray[np.uint8] = colors.astype(np.uint8)
        return view

    def of_mask(self, mask: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
        """Return the view of an (H, W) uint8 mask of 0, 1 and 255 as (size, size) uint8."""
        cropped = self._crop(mask)
        shown = resize_mask(cropped == 1, size)
        shown[resize_mask(cropped == _GRAY_LEVELS, size) != 0] = _GRAY_LEVELS
        return np.ascontiguousarray(shown[:, ::-1] if self.flip else shown)

    def keeps(self, mask: npt.NDArray[np.uint8]) -> bool:
        """Return whether the view shows enough of the object in a mask: 40 % of it, and 1 % of the view."""
        cropped = self._crop(mask) == 1
        return bool(cropped.mean() > 0.01 and cropped.sum() > 0.4 * (mask == 1).sum())

    def _crop(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        height, width = picture.shape[:2]
        top, left = int(self.top * height), int(self.left * width)
        return picture[top : max(top + 1, round(self.bottom * height)), left : max(left + 1, round(self.right * width))]


def draw_view(digest: str, number: int) -> View:
    """Return view `number` of the picture with this digest, always the same one; view 0 is the picture itself."""
    if number == 0:
        return View()
    rng = np.random.default_rng((int(digest[:16], 16), number))
    area, aspect = rng.uniform(LEAST_AREA, 1.0), math.exp(rng.uniform(-0.25, 0.25))
    height, width = min(1.0, math.sqrt(area / aspect)), min(1.0, math.sqrt(area * aspect))
    top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
    red, green, blue = rng.uniform(0.75, 1.25) * rng.uniform(0.92, 1.08, 3)
    flip, saturation, contrast = bool(rng.integers(2)), rng.uniform(0.6, 1.4), rng.uniform(0.7, 1.3)
    light = (float(red), float(green), float(blue))
    return View(top, top + height, left, left + width, flip, saturation, contrast, light)
