"""The demo: a virtual camera that moves over photographs from scikit-image, to try everything without a camera.

The photographs form one long strip; the camera travels along it, lingers at each one, zooms and turns a little, and
returns from the last to the first. The same frame number always gives the same frame. Outlines drawn by hand label the
pixels, in the tour and in the pictures to enroll.

The tour is the table `TOUR`, the pictures to enroll are the table `SUPPORT_VIEWS`, the outlines are `OUTLINES`.
"""

import dataclasses
import functools
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.errors import EnvironmentLacksError
from fsvit_edge.runtime.pictures import read_image

DEMO_FPS = 25.0
DEMO_SIZE_HW = (360, 640)
DEMO_CLASSES = ("cat", "motorcycle", "astronaut", "rocket")

_Rgb = npt.NDArray[np.uint8]
_Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DemoSupport:
    """One picture to enroll: (H, W, 3) uint8 RGB.

    The mask is (H, W) bool, True on the object; None if the demo enrolls the class from its name alone.
    """

    name: str
    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_] | None


@dataclass(frozen=True)
class View:
    """What a camera sees of a photograph, in the photograph's pixels."""

    x: float  # center
    y: float
    width: float  # from the left to the right edge of the frame; the height follows from the frame's shape
    angle: float = 0.0  # clockwise rotation of the camera in degrees


@dataclass(frozen=True)
class Stop:
    """One photograph of the strip and how the camera looks at it."""

    photo: str
    seconds: float
    start: View
    end: View
    columns: tuple[int, int] | None = None  # the visible part of the photograph; None: all of it


@dataclass(frozen=True)
class SupportView:
    """One picture to enroll: never a frame of the tour, because its angle, framing and light differ."""

    name: str
    view: View
    size_hw: tuple[int, int]
    light: tuple[float, float, float]  # factors of red, green and blue
    photo: str | None = None  # a photograph without an outline, enrolled from its name alone


_TRAVEL_SECONDS = 0.6
_STRIP_HEIGHT = 512

# A picture without any object separates two with one: if two are visible, the outline of one may cover the other.
TOUR = (
    Stop("chelsea.png", 2.4, View(228, 150, 440), View(221, 145, 400, -2)),
    Stop("brick.png", 0.7, View(240, 250, 480), View(280, 260, 430, 3)),
    # An object that is not enrolled.
    Stop("coffee.png", 1.4, View(320, 205, 560), View(290, 205, 480, 4)),
    Stop("grass.png", 0.7, View(240, 260, 460), View(270, 240, 480, -2)),
    # Between the two masts, which the bundled model takes for rockets.
    Stop("rocket.jpg", 2.4, View(320, 218, 232), View(318, 176, 226, -2), columns=(202, 438)),
    Stop("moon.png", 0.7, View(250, 230, 480), View(260, 190, 440, -3)),
    Stop("motorcycle_left.png", 2.4, View(385, 260, 700), View(388, 268, 640, 2), columns=(34, 741)),
    Stop("gravel.png", 0.7, View(250, 250, 480), View(260, 270, 440, -3)),
    # Left of the shuttle model, which would be a second, smaller rocket.
    Stop("astronaut.png", 2.4, View(178, 120, 345), View(205, 150, 290, 3), columns=(0, 352)),
)

SUPPORT_VIEWS = (
    SupportView("cat", View(262, 150, 345, 6), (300, 400), (0.9, 0.9, 0.95)),
    SupportView("motorcycle", View(360, 255, 560, 5), (360, 480), (0.9, 0.9, 0.95), photo="motorcycle_right.png"),
    SupportView("astronaut", View(195, 215, 300, -5), (400, 320), (0.9, 0.9, 0.95)),
    SupportView("astronaut", View(215, 130, 300, 4), (300, 400), (1.1, 1.1, 1.05)),
    SupportView("rocket", View(318, 215, 190, 7), (400, 360), (1.25, 1.2, 1.1)),
    SupportView("rocket", View(322, 230, 330, -6), (300, 400), (0.95, 0.95, 1.0)),
)

# Photograph and corners "x,y x,y ..." in its pixels (as in SVG polygons). The motorcycle includes what is visible
# between its spokes, the astronaut includes her suit but not the helmet in front of it, the rocket excludes its tower.
OUTLINES = {
    "cat": (
        "chelsea.png",
        "41,-1 37,15 33,32 32,60 31,85 30,100 28,107 18,117 8,124 -1,128 -1,300 258,300 270,289 282,283 298,277 "
        "309,268 316,253 317,237 316,223 322,215 332,207 345,188 353,171 359,152 363,138 365,122 363,108 359,95 "
        "356,84 359,74 369,60 376,48 380,34 382,22 391,12 403,-1",
    ),
    "motorcycle": (
        "motorcycle_left.png",
        "91,219 94,203 100,196 128,194 146,201 140,184 138,163 143,150 154,145 165,149 168,160 180,160 188,166 205,171 "
        "222,172 240,168 248,169 255,178 270,189 285,197 300,197 322,193 345,188 354,189 358,196 362,195 380,181 "
        "393,171 396,160 391,157 361,175 356,170 355,167 384,143 396,131 405,125 400,117 373,120 366,128 334,140 "
        "331,127 369,110 374,112 400,112 421,119 430,123 440,131 459,141 467,132 478,122 491,116 495,112 493,81 "
        "497,79 512,80 525,92 543,99 543,102 530,100 534,110 540,122 550,126 560,133 562,126 566,121 575,119 581,122 "
        "583,133 578,142 571,142 563,139 561,150 555,168 548,183 542,189 552,190 553,199 550,204 575,256 580,260 "
        "580,265 595,271 616,281 634,292 643,299 643,309 658,327 672,347 681,370 684,395 683,419 677,435 665,443 "
        "644,450 627,451 609,448 588,438 568,426 550,405 534,381 522,356 515,332 512,325 511,330 506,330 506,314 "
        "511,299 520,290 530,281 537,280 554,269 567,262 542,207 520,220 515,229 537,280 530,281 506,231 494,227 "
        "478,231 466,235 461,242 475,244 478,260 475,279 478,293 476,311 473,321 466,340 452,360 435,372 414,379 "
        "399,380 367,378 345,373 338,383 338,428 331,430 329,385 318,367 278,359 268,373 256,385 240,393 221,400 "
        "201,401 182,396 160,383 141,362 128,338 122,316 122,294 126,278 136,262 150,247 147,235 150,224 135,230 "
        "114,247 100,261 99,242 109,234 112,223",
    ),
    "astronaut": (
        "astronaut.png",
        "230,16 248,18 272,28 291,45 300,75 299,103 288,124 277,132 268,137 262,145 255,173 277,188 295,211 "
        "305,234 307,244 323,253 342,272 352,286 359,305 363,330 365,349 347,356 328,366 309,384 293,408 281,436 "
        "277,469 281,497 288,512 49,512 35,492 26,469 24,436 22,417 21,394 26,366 28,333 35,319 41,300 49,272 "
        "66,253 84,234 113,209 115,188 123,173 129,162 145,151 164,148 184,149 182,134 174,129 171,120 162,108 "
        "155,84 154,66 157,52 171,38 190,34 202,23 216,18",
    ),
    "rocket": (
        "rocket.jpg",
        "322,127 327,131 331,138 333,147 333,176 332,182 332,406 312,406 312,182 311,176 311,147 313,138 318,131",
    ),
}


@dataclass(frozen=True)
class PhotoStrip:
    """The photographs side by side, and the path of the camera over them."""

    rgb: _Rgb
    labels: npt.NDArray[np.uint8]  # 0, or 1 + the position in DEMO_CLASSES
    path: tuple[_Matrix, ...]  # for each frame, the 2x3 map from its pixels (x, y) to those of the strip


def demo_length() -> int:
    """Number of frames in one round of the tour; EnvironmentLacksError if scikit-image or a photograph is missing."""
    return len(photo_strip().path)


def demo_frame(index: int) -> npt.NDArray[np.uint8]:
    """Render one frame of the tour, (360, 640, 3) uint8 RGB; the frames repeat after one round."""
    strip = photo_strip()
    return _render(strip.rgb, strip.path[index % len(strip.path)], cv2.INTER_LINEAR)


def demo_truth(index: int) -> npt.NDArray[np.uint8]:
    """Render the ground truth of a frame, from the outlines drawn by hand.

    It is (360, 640) uint8: 0 is background, i + 1 is DEMO_CLASSES[i].
    """
    strip = photo_strip()
    return _render(strip.labels, strip.path[index % len(strip.path)], cv2.INTER_NEAREST)


def demo_supports() -> list[DemoSupport]:
    """The pictures to enroll, in the order of DEMO_CLASSES: views that the tour does not show, in different light."""
    return [_support(view) for view in SUPPORT_VIEWS]


def _support(wanted: SupportView) -> DemoSupport:
    rgb = photograph(wanted.photo or OUTLINES[wanted.name][0])
    height, width = wanted.size_hw
    to_photo = camera_map(wanted.view.x, wanted.view.y, wanted.view.width / width, wanted.view.angle, wanted.size_hw)
    view = cv2.warpAffine(rgb, to_photo, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    lit = np.clip(view * np.array(wanted.light), 0, 255).astype(np.uint8)
    if wanted.photo is not None:
        return DemoSupport(wanted.name, lit, None)
    drawn = outline_mask(wanted.name, rgb.shape[:2], scale=1.0)
    mask = cv2.warpAffine(drawn, to_photo, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return DemoSupport(wanted.name, lit, mask > 127)


@functools.lru_cache(maxsize=1)
def photo_strip() -> PhotoStrip:
    """Build the strip and the path of the camera, once."""
    pieces, label_pieces, views = [], [], []
    left = 0.0
    for stop in TOUR:
        photo = photograph(stop.photo)
        scale = _STRIP_HEIGHT / photo.shape[0]
        size_hw = (_STRIP_HEIGHT, round(photo.shape[1] * scale))
        rgb = cv2.resize(photo, size_hw[::-1], interpolation=cv2.INTER_CUBIC)
        labels = np.zeros(size_hw, np.uint8)
        for label, name in enumerate(DEMO_CLASSES, start=1):
            if OUTLINES[name][0] == stop.photo:
                labels[outline_mask(name, size_hw, scale) > 0] = label
        first, end = stop.columns or (0, photo.shape[1])
        shown = slice(round(first * scale), round(end * scale))
        pieces.append(rgb[:, shown])
        label_pieces.append(labels[:, shown])
        views += [
            View(left + (view.x - first) * scale, view.y * scale, view.width * scale, view.angle)
            for view in (stop.start, stop.end)
        ]
        left += shown.stop - shown.start
    # The last move continues to the right, where the strip repeats.
    views.append(View(views[0].x + left, views[0].y, views[0].width, views[0].angle))
    path = []
    for number in range(len(views) - 1):
        seconds = _TRAVEL_SECONDS if number % 2 else TOUR[number // 2].seconds
        path += _move(views[number], views[number + 1], round(seconds * DEMO_FPS))
    return PhotoStrip(np.hstack(pieces), np.hstack(label_pieces), tuple(path))


def _move(start: View, end: View, frames: int) -> list[_Matrix]:
    matrices = []
    for frame in range(frames):
        done = (1 - math.cos(math.pi * frame / frames)) / 2  # starts and stops smoothly
        x, y, width, angle = (
            a + (b - a) * done for a, b in zip(dataclasses.astuple(start), dataclasses.astuple(end), strict=True)
        )
        matrices.append(camera_map(x, y, width / DEMO_SIZE_HW[1], angle, DEMO_SIZE_HW))
    return matrices


def camera_map(x: float, y: float, scale: float, angle: float, size_hw: tuple[int, int]) -> _Matrix:
    """The 2x3 map from the pixels of a frame to those of the picture, for cv2.warpAffine with WARP_INVERSE_MAP."""
    cos, sin = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    middle_y, middle_x = (size_hw[0] - 1) / 2, (size_hw[1] - 1) / 2
    return np.array([[cos, -sin, x - cos * middle_x + sin * middle_y], [sin, cos, y - sin * middle_x - cos * middle_y]])


def _render(strip: npt.NDArray[np.uint8], to_strip: _Matrix, interpolation: int) -> npt.NDArray[np.uint8]:
    flags = interpolation | cv2.WARP_INVERSE_MAP
    frame = cv2.warpAffine(strip, to_strip, DEMO_SIZE_HW[::-1], flags=flags, borderMode=cv2.BORDER_WRAP)
    return np.asarray(frame, dtype=np.uint8)


def outline_mask(name: str, size_hw: tuple[int, int], scale: float) -> npt.NDArray[np.uint8]:
    """Draw the outline of a class at the scale of its photograph: `size_hw` uint8, 255 inside and 0 outside."""
    corners = np.array([point.split(",") for point in OUTLINES[name][1].split()], dtype=np.float64)
    mask = np.zeros(size_hw, np.uint8)
    cv2.fillPoly(mask, [np.round(corners * scale).astype(np.int32)], 255)
    return mask


@functools.lru_cache(maxsize=1)  # for two views of one in turn: a cache of all would stay for the whole run, 9 MB
def photograph(name: str) -> _Rgb:
    """Read a photograph of scikit-image, (H, W, 3) uint8 RGB."""
    # Read as a file: the functions in skimage.data copy to a cache and may download.
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise EnvironmentLacksError('The demo needs scikit-image; install it with: pip install "fsvit-edge[demo]"')
    path = Path(package.origin).parent / "data" / name
    if not path.is_file():
        raise EnvironmentLacksError(
            f"The demo needs the photograph {name}, which this scikit-image lacks; reinstall it with: "
            'pip install --force-reinstall "scikit-image>=0.22"'
        )
    return read_image(path)
