"""A prediction drawn on its frame: tinted pixels with an outline, and a legend of all classes."""

import functools

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fsvit_edge.runtime.prediction import Prediction

# Okabe and Ito's colours, which colour-blind people can tell apart, then three of IBM's and Tol's in the same spirit.
PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
    (220, 38, 127),
    (120, 94, 240),
    (221, 221, 221),
)

_TINT = 0.45  # share of the class's colour in its pixels
_PANEL_LIGHT = 0.3  # share of the frame that shines through the legend
_BRIGHT, _DIM = 255, 120
_MESSAGE_LIGHT = 180
_SMALLEST_TEXT_PX = 8

_Rgb = npt.NDArray[np.uint8]
_Mask = npt.NDArray[np.uint8]


def draw(frame_rgb: npt.NDArray[np.uint8], prediction: Prediction, only_present: bool = True) -> npt.NDArray[np.uint8]:
    """Draw what was found: the pixels of each class in its colour, and a legend of names, score bars and scores.

    Args:
        frame_rgb: (H, W, 3) uint8 RGB, the frame that was judged; it is not changed.
        prediction: The answer for this frame; its label map has the frame's height and width.
        only_present: Whether to leave out the pixels of classes that are judged absent.

    Returns:
        (H, W, 3) uint8 RGB. Class i has the colour PALETTE[i % len(PALETTE)].
    """
    drawn: _Rgb = frame_rgb.copy()
    for index in range(len(prediction.classes)):
        if prediction.present[index] or not only_present:
            tint(drawn, prediction.label_map, index)
    _draw_legend(drawn, prediction)
    return drawn


def draw_state(frame_rgb: npt.NDArray[np.uint8], state: str, message: str) -> npt.NDArray[np.uint8]:
    """Draw the last picture of a source that delivers no more: grey and dark, with what is the matter across it.

    Args:
        frame_rgb: (H, W, 3) uint8 RGB; it is not changed.
        state: The state of the source, shown large.
        message: What is wrong, shown below in as many lines as fit; may be empty.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    grey = cv2.convertScaleAbs(cv2.cvtColor(frame_rgb, cv2.COLOR_RGB2GRAY), alpha=_PANEL_LIGHT)
    drawn: _Rgb = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)
    px = _text_px(drawn)
    widest = drawn.shape[1] - 2 * px
    lines = [(fitting_text(state.upper(), 2 * px, widest), _BRIGHT)]
    lines += [(fitting_text(line, px, widest), _MESSAGE_LIGHT) for line in _wrapped(message, px, widest)]
    top = max(0, (drawn.shape[0] - sum(text.shape[0] for text, _ in lines)) // 2)
    for text, light in lines:
        _add_text(drawn, text, px, top, light)
        top += text.shape[0]
    return drawn


def tint(drawn: _Rgb, label_map: npt.NDArray[np.uint8], index: int) -> None:
    """Tint and outline the pixels of one class, in place.

    Args:
        drawn: (H, W, 3) uint8 RGB.
        label_map: (H, W) uint8: i + 1 is class i.
        index: The class i, of colour PALETTE[i % len(PALETTE)].
    """
    mask = (label_map == index + 1).view(np.uint8)
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0:
        return
    inside = np.s_[y : y + height, x : x + width]
    mask, region = np.ascontiguousarray(mask[inside]), drawn[inside]
    cv2.copyTo(cv2.LUT(region, _tint_table(index)), mask, region)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    thickness = max(1, _text_px(drawn) // 6)
    cv2.drawContours(drawn, contours, -1, _colour(index), thickness, cv2.LINE_AA, offset=(x, y))


def outline(drawn: _Rgb, mask: npt.NDArray[np.bool_]) -> None:
    """Draw a mask's outline in place, white on black, so that it shows on any picture.

    Args:
        drawn: (H, W, 3) uint8 RGB.
        mask: (H, W) bool.
    """
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    thickness = max(1, _text_px(drawn) // 9)
    cv2.drawContours(drawn, contours, -1, (0, 0, 0), thickness + 2, cv2.LINE_AA)
    cv2.drawContours(drawn, contours, -1, (255, 255, 255), thickness, cv2.LINE_AA)


def _wrapped(message: str, px: int, widest_px: int) -> list[str]:
    lines: list[str] = []
    for word in message.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _text(longer, px).shape[1] <= widest_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _draw_legend(drawn: _Rgb, prediction: Prediction) -> None:
    height, width = drawn.shape[:2]
    px = _text_px(drawn)
    pad, row_px = px // 2, round(1.5 * px)
    shown, left_out = _choose_rows(prediction, most=max(2, (height // 2 - 2 * pad) // row_px))
    names = [fitting_text(prediction.classes[index], px, round(0.4 * width)) for index in shown]
    name_x = pad + px
    bar_x = name_x + max((name.shape[1] for name in names), default=0) + pad
    number_px = _text("0.00", px).shape[1]
    bar_px = min(5 * px, width - bar_x - number_px - 2 * pad)
    if bar_px < px:
        bar_px = 0  # the frame is too narrow: the number must do
    number_x = bar_x + bar_px + pad
    rows = len(shown) + (left_out > 0)
    panel = drawn[: 2 * pad + row_px * rows, : number_x + number_px + pad]
    panel[:] = cv2.convertScaleAbs(panel, alpha=_PANEL_LIGHT)
    for row, (index, name) in enumerate(zip(shown, names, strict=True)):
        top = pad + row * row_px
        score, light = float(prediction.scores[index]), _BRIGHT if prediction.present[index] else _DIM
        colour = tuple(part * light // _BRIGHT for part in _colour(index))
        middle = slice(top + row_px // 2 - px // 4, top + row_px // 2 + px // 4)
        panel[middle, pad // 2 : pad // 2 + px // 2 + pad // 2] = colour
        panel[middle, bar_x : bar_x + bar_px] = (_DIM // 2,) * 3
        panel[middle, bar_x : bar_x + round(bar_px * score)] = colour
        _add_text(panel, name, name_x, top, light)
        _add_text(panel, _text(f"{score:.2f}", px), number_x, top, light)
    if left_out:
        _add_text(panel, _text(f"+ {left_out} more", px), name_x, pad + len(shown) * row_px, _DIM)


def _choose_rows(prediction: Prediction, most: int) -> tuple[list[int], int]:
    count = len(prediction.classes)
    if count <= most:
        return list(range(count)), 0
    best = np.argsort(-prediction.scores, kind="stable")[: most - 1]
    return sorted(int(index) for index in best), count - len(best)


def _add_text(panel: _Rgb, text: _Mask, x: int, y: int, light: int) -> None:
    space = panel[y : y + text.shape[0], x : x + text.shape[1]]
    text = text[: space.shape[0], : space.shape[1]]
    if space.size:  # adding is enough: the panel is dark
        space[:] = cv2.add(space, cv2.cvtColor(cv2.convertScaleAbs(text, alpha=light / 255), cv2.COLOR_GRAY2RGB))


@functools.lru_cache(maxsize=1024)
def fitting_text(text: str, px: int, widest_px: int) -> _Mask:
    """Render one line, cut short with dots where it is too wide: (1.5 px, width) uint8, 255 on the letters."""
    rendered = _text(text, px)
    while rendered.shape[1] > widest_px and len(text) > 1:
        text = text[:-1]
        rendered = _text(f"{text.rstrip()}...", px)
    return rendered


@functools.lru_cache(maxsize=1024)
def _text(text: str, px: int) -> _Mask:
    """Render one line: (1.5 px, text width) uint8, 255 on the letters."""
    line_px = round(1.5 * px)
    if hasattr(cv2, "FontFace"):
        face = cv2.FontFace("uni")
        x, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), face, px)
        canvas = np.zeros((line_px, max(1, width + 1)), np.uint8)
        cv2.putText(canvas, text, (-x, round(1.1 * px)), (255,), face, px)
        return canvas
    # OpenCV 4 and Pillow bring letters for ASCII only; an escape still tells two names apart, boxes would not.
    text = text.encode("ascii", "backslashreplace").decode("ascii")
    font = ImageFont.load_default(px)
    image = Image.new("L", (max(1, round(font.getlength(text))), line_px))
    ImageDraw.Draw(image).text((0, round(1.1 * px)), text, fill=255, font=font, anchor="ls")
    return np.array(image)


@functools.lru_cache(maxsize=len(PALETTE))
def _tint_table(index: int) -> _Mask:
    values = np.arange(256)[None, :, None] * (1 - _TINT) + np.array(_colour(index)) * _TINT
    return np.round(values).astype(np.uint8)


def _colour(index: int) -> tuple[int, int, int]:
    return PALETTE[index % len(PALETTE)]


def _text_px(drawn: _Rgb) -> int:
    height, width = drawn.shape[:2]
    shorter: float = min(height, width * 9 / 16)
    return max(_SMALLEST_TEXT_PX, round(shorter / 26))
