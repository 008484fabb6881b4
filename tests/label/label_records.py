"""Labeled pictures for tests: outlines with holes and thin parts, hard names, and what the answers come from."""

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.label.records import About, LabeledClass, LabeledPicture, Part, run_lengths

Mask = npt.NDArray[np.bool_]

NAMES = ("cup", 'it\'s "50 %": <a> & b\\c, #1', "Größe 猫 👩‍🔧")
ABOUT = About("0.2.0", "b" * 64, "c" * 64, NAMES, (0.5, 0.25, 0.5), "onnxruntime", "fp32", "sharp")
SIZE_HW = (120, 160)


def blobs(seed: int, size_hw: tuple[int, int] = SIZE_HW, share: float = 0.4) -> Mask:
    """Smooth shapes, as the model draws them, with holes."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random(size_hw, np.float32), (0, 0), 6)
    return np.asarray(noise >= np.quantile(noise, 1 - share), np.bool_)


def thin(seed: int, size_hw: tuple[int, int] = SIZE_HW) -> Mask:
    """A bent wire of 1 to 4 pixels and a ring."""
    random = np.random.default_rng(seed)
    drawn = np.zeros(size_hw, np.uint8)
    corners = random.integers(0, size_hw[::-1], (6, 2)).astype(np.int32)
    cv2.polylines(drawn, [corners], False, 1, int(random.integers(1, 5)))
    cv2.ellipse(drawn, (80, 60), (40, 25), 30, 0, 360, 1, int(random.integers(1, 12)))
    return drawn > 0


def parts_of(pixels: Mask) -> tuple[Part, ...]:
    """All connected parts of a mask, the largest first."""
    _, labels = cv2.connectedComponents(pixels.view(np.uint8))
    found = []
    for index in range(1, labels.max() + 1):
        part = np.asarray(labels == index, np.bool_)
        x, y, width, height = cv2.boundingRect(part.view(np.uint8))
        found.append(Part(int(part.sum()), (x, y, x + width, y + height), run_lengths(part)))
    return tuple(sorted(found, key=lambda part: (-part.area_px, part.box_xyxy)))


def picture(path: str, *masks: Mask, split: str = "", time_s: float | None = None) -> LabeledPicture:
    """A picture in which the classes have these pixels; a class of which no mask is given is absent."""
    classes = []
    for index, (name, level) in enumerate(zip(NAMES, ABOUT.levels, strict=True)):
        is_there = index < len(masks) and bool(masks[index].any())
        parts = parts_of(masks[index]) if is_there else ()
        classes.append(LabeledClass(name, 0.875 if is_there else 0.125, level, is_there, parts))
    size_hw = masks[0].shape if masks else SIZE_HW
    return LabeledPicture(path, (size_hw[0], size_hw[1]), time_s, tuple(classes), split)


def sample() -> list[LabeledPicture]:
    """Pictures in sub-folders, one of them without anything, one with two classes that do not overlap."""
    first, second = blobs(1), thin(2)
    return [
        picture("a.jpg", first, second & ~first),
        picture("left/ö & <1>.jpg"),
        picture("left/b.c.png", np.zeros(SIZE_HW, np.bool_), thin(3), time_s=1.5),
        picture("tall.jpg", blobs(4, (160, 90)), np.zeros((160, 90), np.bool_), thin(5, (160, 90))),
    ]


def iou(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> float:
    """Intersection over union of two masks with pixels."""
    a, b = one.astype(bool), other.astype(bool)
    return float((a & b).sum() / (a | b).sum())
