"""Pictures, masks, videos and data sets, made in a moment."""

import itertools
from pathlib import Path

import cv2
import numpy as np

from fsvit_edge.runtime.pictures import write_image


def colors(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return small.repeat(-(-height // 4), axis=0).repeat(-(-width // 5), axis=1)[:height, :width].copy()


def rectangle(height: int = 48, width: int = 64) -> np.ndarray:
    mask = np.zeros((height, width, 3), np.uint8)
    mask[height // 4 : -height // 4, width // 4 : -width // 4] = 255
    return mask


def write_data(root: Path, *names: str, pictures: int = 3) -> None:
    """Write a data set: an object of its own gray per class on pictures of many colors, with masks."""
    for number, (name, index) in enumerate(itertools.product(names, range(pictures))):
        image, mask = colors(number), rectangle()
        image[mask > 0] = 255 - 50 * names.index(name)
        write_image(root / name / "images" / f"{index}.png", image)
        write_image(root / name / "masks" / f"{index}.png", mask)


def write_video(path: str | Path, frames: list[np.ndarray], fps: float, code: str = "mp4v") -> None:
    """Write RGB frames."""
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), fps, (width, height))
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()
