"""A prediction drawn on its frame: the pixels of each present class tinted and outlined, its name beside them."""

import functools

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.regions import Region
from fsvit_edge.fewshot.zones import Zone

# Okabe and Ito's colors, which color-blind people can tell apart, then three similar ones by IBM and Tol.
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

_TINT = 0.45  # share of the class's color in its pixels
_STRIP_ROWS = 16  # tinted at once: they stay in the CPU's cache
_STAIRS_PX = 0.75  # a line this near to a contour replaces its stairs of single pixels, which take three times as long
_PANEL_LIGHT = 0.3  # brightness of the frame behind the list
_BRIGHT, _DIM, _BAR_GRAY = 255, 120, 60
_NAME_SHARE = 0.4  # of the frame's width, at most
_MESSAGE_LIGHT = 180
_SMALLEST_TEXT_PX, _READABLE_TEXT_PX = 8, 11  # frames of 320 pixels get readable text, smaller ones keep some space
_THICKEST_LINE = 2  # as OpenCV counts; it draws 3 pixels and smooth edges
_TOP_SHARE = 0.1  # of a region's height: its name stands above the middle of this part
_TICK_PX = 2

_Rgb = npt.NDArray[np.uint8]
_Mask = npt.NDArray[np.uint8]
_Ints = npt.NDArray[np.int_]


def draw(frame_rgb: npt.NDArray[np.uint8], prediction: Prediction) -> npt.NDArray[np.uint8]:
    """Draw what was found on a copy of an (H, W, 3) uint8 RGB frame, each present class in its color.

    A name is drawn above the top of the class's largest region, or as near as there is space. Present classes without
    pixels, or without space for their name, are listed in the upper left corner; a tick on the bar marks the level.
    Absent classes are not drawn. Class i has the color PALETTE[i % len(PALETTE)]. Zones are thin lines below all that.
    """
    drawn: _Rgb = frame_rgb.copy()
    for zone in prediction.zones:
        _draw_zone(drawn, zone)
    tops = {
        int(index): tint(drawn, prediction.regions.get(int(index)), int(index))
        for index in np.flatnonzero(prediction.present)
    }
    _draw_names(drawn, prediction, tops)
    return drawn


def draw_state(frame_rgb: npt.NDArray[np.uint8], state: str, message: str) -> npt.NDArray[np.uint8]:
    """Draw the last picture of a source that stopped delivering: gray and dark, with the state and message across it.

    The frame is (H, W, 3) uint8 RGB and not changed; the message gets as many lines as fit, and may be empty.
    """
    gray = cv2.convertScaleAbs(cv2.cvtColor(frame_rgb, cv2.COLOR_RGB2GRAY), alpha=_PANEL_LIGHT)
    drawn: _Rgb = np.asarray(cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB), np.uint8)
    px = _text_px(*drawn.shape[:2])
    widest = drawn.shape[1] - 2 * px
    lines = [(fitting_text(state.upper(), 2 * px, widest), _BRIGHT)]
    lines += [(fitting_text(line, px, widest), _MESSAGE_LIGHT) for line in _wrapped(message, px, widest)]
    top = max(0, (drawn.shape[0] - sum(text.shape[0] for text, _ in lines)) // 2)
    for text, light in lines:
        add_text(drawn, text, px, top, light)
        top += text.shape[0]
    return drawn


def tint(drawn: _Rgb, region: Region | None, index: int) -> tuple[int, int] | None:
    """Tint and outline in place, on (H, W, 3) uint8 RGB, the pixels of class `index`.

    Returns:
        (x, y) in pixels, the middle of the top of the class's largest connected region; None where it has no pixels.
    """
    if region is None:
        return None
    (x, y, right, bottom), mask = region.box_xyxy, region.pixels
    width, height = right - x, bottom - y
    color = np.full((_STRIP_ROWS, width, 3), _color(index), np.uint8)
    for top in range(0, height, _STRIP_ROWS):
        inside = mask[top : top + _STRIP_ROWS]
        strip = drawn[y + top : y + top + len(inside), x : x + width]
        cv2.copyTo(cv2.addWeighted(strip, 1 - _TINT, color[: len(inside)], _TINT, 0), inside, strip)
    contours, _ = region.outline
    lines = [cv2.approxPolyDP(contour, _STAIRS_PX, True) for contour in contours]
    cv2.drawContours(drawn, lines, -1, _color(index), _line(*drawn.shape[:2]), cv2.LINE_AA, offset=(x, y))
    xs, ys = max(contours, key=cv2.contourArea)[:, 0].T  # never a hole: what encloses it is larger
    top_xs = xs[ys <= ys.min() + _TOP_SHARE * np.ptp(ys)]
    return x + int(top_xs.min() + top_xs.max()) // 2, y + int(ys.min())


def outline(drawn: _Rgb, mask: npt.NDArray[np.bool_]) -> None:
    """Draw the outline of an (H, W) mask in place on RGB, white on black, so that it shows on any picture."""
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    thickness = _line(*drawn.shape[:2])
    cv2.drawContours(drawn, contours, -1, (0, 0, 0), thickness + 2, cv2.LINE_AA)
    cv2.drawContours(drawn, contours, -1, (255, 255, 255), thickness, cv2.LINE_AA)


def _draw_zone(drawn: _Rgb, zone: Zone) -> None:
    """Draw the edge of a zone, white beside black, and its name in a dark plate at its upper left corner."""
    height, width = drawn.shape[:2]
    corners = zone.corners_px((height, width))
    for thickness, light in ((2, 0), (1, 255)):
        cv2.polylines(drawn, [corners], isClosed=True, color=(light,) * 3, thickness=thickness)
    px = _text_px(height, width)
    name = fitting_text(zone.name, px, round(_NAME_SHARE * width))
    x, y = (int(value) for value in corners[corners.sum(axis=1).argmin()])
    x, y = min(x, max(0, width - name.shape[1] - px)), min(y, max(0, height - name.shape[0]))
    plate = drawn[y : y + name.shape[0], x : x + name.shape[1] + px]
    plate[:] = cv2.convertScaleAbs(plate, alpha=_PANEL_LIGHT)
    add_text(plate, name, px // 2, 0, _MESSAGE_LIGHT)


def _wrapped(message: str, px: int, widest_px: int) -> list[str]:
    lines: list[str] = []
    for word in message.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _text(longer, px).shape[1] <= widest_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _draw_names(drawn: _Rgb, prediction: Prediction, tops: dict[int, tuple[int, int] | None]) -> None:
    plates = {
        index: (top, _plate(prediction, index, drawn.shape[:2])) for index, top in tops.items() if top is not None
    }
    while True:
        panel = _corner_list(drawn, prediction, [index for index in tops if index not in plates])
        places = _place(plates, panel.shape[:2], drawn.shape[:2])
        if len(places) == len(plates):
            break
        # A name without space makes the list longer, which may leave another name without space.
        plates = {index: plates[index] for index in places}
    drawn[: panel.shape[0], : panel.shape[1]] = panel
    for index, (x, y) in places.items():
        _, plate = plates[index]
        drawn[y : y + plate.shape[0], x : x + plate.shape[1]] = plate


def _plate(prediction: Prediction, index: int, size_hw: tuple[int, int]) -> _Rgb:
    """Render a name and its score on the color of the class, no larger than the frame."""
    height, width = size_hw
    px = _text_px(height, width)
    pad = px // 2
    number = _text(f"{prediction.scores[index]:.2f}", px)
    widest = min(round(_NAME_SHARE * width), width - number.shape[1] - 3 * pad)
    name = fitting_text(prediction.classes[index], px, widest)
    number_x = pad + name.shape[1] + pad
    letters = np.zeros((name.shape[0], number_x + number.shape[1] + pad), np.uint8)
    letters[:, pad : pad + name.shape[1]] = name
    letters[:, number_x : number_x + number.shape[1]] = number
    plate = cv2.LUT(cv2.cvtColor(letters[:height, :width], cv2.COLOR_GRAY2RGB), _plate_table(index))
    return np.asarray(plate, np.uint8)


def _place(
    plates: dict[int, tuple[tuple[int, int], _Rgb]], panel_hw: tuple[int, int], size_hw: tuple[int, int]
) -> dict[int, tuple[int, int]]:
    """Find a place (x, y) for each plate that has one: above its top or near it, off the panel and off the others."""
    gap = 2 * _line(*size_hw)
    taken_xyxy = [(0, 0, panel_hw[1], panel_hw[0])] if panel_hw[0] else []
    places = {}
    for index, ((x, y), plate) in plates.items():
        height, width = plate.shape[:2]
        wanted = np.array([x - width // 2, y - height - gap])
        place = _free_place(wanted, np.array([width, height]), np.array(taken_xyxy, int), np.array(size_hw[::-1]), gap)
        if place is not None:
            places[index] = place
            taken_xyxy.append((*place, place[0] + width, place[1] + height))
    return places


def _free_place(
    wanted_xy: _Ints, plate_wh: _Ints, taken_xyxy: _Ints, frame_wh: _Ints, gap: int
) -> tuple[int, int] | None:
    """Find the place nearest to the wanted one, in its row or column, inside the frame and off the taken ones."""
    most = frame_wh - plate_wh
    wanted_xy = np.clip(wanted_xy, 0, most)
    taken_xyxy = taken_xyxy.reshape(-1, 4)
    low, high = taken_xyxy[:, :2] - plate_wh - gap, taken_xyxy[:, 2:] + gap
    touching = np.concatenate([wanted_xy[None], low, high])
    column, row = touching.copy(), touching.copy()
    column[:, 0], row[:, 1] = wanted_xy
    places = np.concatenate([column, row])
    is_inside = ((places >= 0) & (places <= most)).all(axis=1)
    is_on_another = (places[:, None] > low) & (places[:, None] < high)
    is_taken: npt.NDArray[np.bool_] = np.any(is_on_another.all(axis=2), axis=1)
    places = places[is_inside & ~is_taken]
    if len(places) == 0:
        return None
    x, y = places[np.abs(places - wanted_xy).sum(axis=1).argmin()]
    return int(x), int(y)


def _corner_list(frame_rgb: _Rgb, prediction: Prediction, listed: list[int]) -> _Rgb:
    """Render the upper left corner of the frame with names, score bars and scores of the listed classes on it."""
    height, width = frame_rgb.shape[:2]
    if not listed:
        return frame_rgb[:0, :0]
    px = _text_px(height, width)
    pad, row_px = px // 2, round(1.5 * px)
    shown = _choose_rows(prediction, listed, most=max(2, (height // 2 - 2 * pad) // row_px))
    names = [fitting_text(prediction.classes[index], px, round(_NAME_SHARE * width)) for index in shown]
    name_x = pad + px
    bar_x = name_x + max(name.shape[1] for name in names) + pad
    number_px = _text("0.00", px).shape[1]
    bar_px = min(5 * px, width - bar_x - number_px - 2 * pad)
    if bar_px < px:
        bar_px = 0  # the frame is too narrow for a bar, so only the number is shown
    number_x = bar_x + bar_px + pad
    rows = len(shown) + (len(shown) < len(listed))
    corner = frame_rgb[: 2 * pad + row_px * rows, : number_x + number_px + pad]
    panel = np.asarray(cv2.convertScaleAbs(corner, alpha=_PANEL_LIGHT), np.uint8)
    for row, (index, name) in enumerate(zip(shown, names, strict=True)):
        top = pad + row * row_px
        score = float(prediction.scores[index])
        middle = slice(top + row_px // 2 - px // 4, top + row_px // 2 + px // 4)
        panel[middle, pad // 2 : pad // 2 + px // 2 + pad // 2] = _color(index)
        panel[middle, bar_x : bar_x + bar_px] = _BAR_GRAY
        panel[middle, bar_x : bar_x + round(bar_px * score)] = _color(index)
        if bar_px:
            tick_x = bar_x + round((bar_px - _TICK_PX) * float(prediction.levels[index]))
            taller = slice(middle.start - 1, middle.stop + 1)
            panel[taller, tick_x : tick_x + _TICK_PX] = (_BRIGHT,) * 3
        add_text(panel, name, name_x, top, _BRIGHT)
        add_text(panel, _text(f"{score:.2f}", px), number_x, top, _BRIGHT)
    if len(shown) < len(listed):
        more = _text(f"+ {len(listed) - len(shown)} more", px)
        add_text(panel, more, name_x, pad + len(shown) * row_px, _DIM)
    return panel


def _choose_rows(prediction: Prediction, listed: list[int], most: int) -> list[int]:
    if len(listed) <= most:
        return listed
    return sorted(sorted(listed, key=lambda index: -prediction.scores[index])[: most - 1])


def add_text(panel: _Rgb, text: _Mask, x: int, y: int, light: int) -> None:
    """Add a rendered text, of brightness `light`, in place to a dark picture, cut off at its edges."""
    space = panel[y : y + text.shape[0], x : x + text.shape[1]]
    text = text[: space.shape[0], : space.shape[1]]
    if space.size:
        space[:] = cv2.add(space, cv2.cvtColor(cv2.convertScaleAbs(text, alpha=light / 255), cv2.COLOR_GRAY2RGB))


@functools.lru_cache(maxsize=1024)
def fitting_text(text: str, px: int, widest_px: int) -> _Mask:
    """Render one line, shortened with dots if it is too wide: (1.5 px, width) uint8, 255 on the letters."""
    rendered = _text(text, px)
    while rendered.shape[1] > widest_px and len(text) > 1:
        text = text[:-1]
        rendered = _text(f"{text.rstrip()}...", px)
    return rendered


@functools.lru_cache(maxsize=1024)
def _text(text: str, px: int) -> _Mask:
    """Render one line: (1.5 px, text width) uint8, 255 on the letters."""
    # A letter that the font lacks becomes an escape: unlike a box or question mark, it still tells two names apart.
    if hasattr(cv2, "FontFace"):
        return _opencv_text("".join(letter if _has_letter(letter) else _escape(letter) for letter in text), px)
    # OpenCV 4 and Pillow have ASCII letters only.
    text = _escape(text)
    font = ImageFont.load_default(px)
    image = Image.new("L", (max(1, round(font.getlength(text))), round(1.5 * px)))
    ImageDraw.Draw(image).text((0, round(1.1 * px)), text, fill=255, font=font, anchor="ls")
    return np.array(image)


def _opencv_text(text: str, px: int) -> _Mask:
    face = cv2.FontFace("uni")
    x, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), face, px)
    canvas = np.zeros((round(1.5 * px), max(1, width + 1)), np.uint8)
    cv2.putText(canvas, text, (-x, round(1.1 * px)), (255,), face, px)
    return canvas


@functools.lru_cache(maxsize=4096)
def _has_letter(letter: str) -> bool:
    # OpenCV draws a question mark for a letter that it lacks.
    return letter.isascii() or not np.array_equal(_opencv_text(letter, 16), _opencv_text("?", 16))


def _escape(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")


@functools.lru_cache(maxsize=256)
def _plate_table(index: int) -> _Mask:
    share = np.arange(256)[None, :, None] / 255  # of the letters' color: black or white, what the eye tells better
    color = np.array(_color(index))
    light = float(np.dot((0.2126, 0.7152, 0.0722), (color / 255) ** 2.2))
    values = (1 - share) * color + share * (0 if light > 0.18 else 255)
    return np.asarray(np.round(values), np.uint8)


def _color(index: int) -> tuple[int, int, int]:
    return PALETTE[index % len(PALETTE)]


def _text_px(height: int, width: int) -> int:
    shorter: float = min(height, width * 9 / 16)
    return max(_SMALLEST_TEXT_PX, min(_READABLE_TEXT_PX, round(shorter / 14)), round(shorter / 26))


def _line(height: int, width: int) -> int:
    return min(_THICKEST_LINE, max(1, _text_px(height, width) // 7))
