"""Small pictures and masks as files."""

from pathlib import Path

import numpy as np
from PIL import Image


def save(path: Path, values: np.ndarray, palette: list[int] | None = None) -> None:
    """Write (H, W) or (H, W, 3); with a palette, the values are its indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    if palette is not None:
        image.putpalette(palette)  # makes the mode "P"
    image.save(path)


def rows(*values: int) -> np.ndarray:
    """An array with one row of 8 pixels per value."""
    return np.repeat(np.array(values)[:, None], 8, axis=1)


def save_noise(root: Path, classes: tuple[str, ...], count: int, masks: bool = True) -> Path:
    """A data folder: `count` pictures of noise per class; the masks mark a rectangle."""
    rng = np.random.default_rng(0)
    mask = np.zeros((70, 90))
    mask[20:60, 30:80] = 255
    for name in classes:
        for number in range(count):
            save(root / name / "images" / f"{number}.png", rng.integers(0, 256, (70, 90, 3)))
            if masks:
                save(root / name / "masks" / f"{number}.png", mask)
    return root
