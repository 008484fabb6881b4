"""All pictures of a bank on one sheet, with the numbers by which commands name them."""

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.overlay import PALETTE
from fsvit_edge.fewshot.picture_sheet import SHEET_PX, captioned, sheet_of
from fsvit_edge.fewshot.scene import decode_frame
from fsvit_edge.fewshot.support_masks import Image


def draw_bank(bank: SupportBank) -> Image:
    """Draw supports and negatives, dark outside their masks, then the empty scene; (H, W, 3) uint8 RGB.

    Args:
        bank: With at least one picture.
    """
    cells = []
    for way, name in enumerate(bank.classes):
        color = way % len(PALETTE)
        for number, support in enumerate(bank.supports(name)):
            origin = "with a mask" if support.has_mask else "by its name"
            cells.append(captioned(_fitted(support.dimmed()), [(f"{name}: picture {number}", color), (origin, None)]))
        for number, negative in enumerate(bank.negatives(name)):
            lines = [(f"{name}: negative {number}", color), (f"margin {negative.margin:.1f}", None)]
            cells.append(captioned(_fitted(negative.support.dimmed()), lines))
    for number, frame in enumerate(bank.scene):
        cells.append(captioned(_fitted(decode_frame(frame)), [(f"empty scene {number}", None)]))
    return sheet_of(cells)


def _fitted(picture: npt.NDArray[np.uint8]) -> Image:
    """Scale a picture so that its longer side is as long as a cell's; a narrow one gets black to the left and right."""
    height, width = picture.shape[:2]
    scale = SHEET_PX / max(height, width)
    size_wh = (max(1, round(scale * width)), max(1, round(scale * height)))
    scaled = cv2.resize(picture, size_wh, interpolation=cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA)
    left = (SHEET_PX - size_wh[0]) // 2
    cell = np.zeros((size_wh[1], SHEET_PX, 3), np.uint8)
    cell[:, left : left + size_wh[0]] = scaled
    return cell
