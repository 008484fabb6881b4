"""Make a data set of individual objects for `fsvit-edge train` from photographs without labels.

    python examples/make_instances.py --photos FOLDER --saliency u2netp.onnx --output DATA

Each photograph in which the saliency network finds one clear object becomes a class of three pictures with masks: the
photograph, and the object pasted, larger or smaller, onto two other photographs. So a head learns that an object is the
same in another place, and that the place alone does not make it present. No labels are needed, but the saliency network
itself was trained with pixel masks.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime

from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.pictures import read_image, write_image
from fsvit_edge.runtime.preprocess import IMAGENET_MEAN, IMAGENET_STD

Picture = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]

SIDE = 320
"""Side of U2-Net's input and output in pixels."""
PASTED = 2
LONG_SIDE = 384


class Saliency:
    """U2-Net, or its small version, as ONNX: (1, 3, 320, 320) -> (1, 1, 320, 320) in [0, 1]."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, rgb: Picture) -> Map:
        """Return the saliency (H, W) in [0, 1] of (H, W, 3) uint8 RGB."""
        small = cv2.resize(rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
        normal = (small / max(float(small.max()), 1.0) - IMAGENET_MEAN) / IMAGENET_STD
        feed = {self._session.get_inputs()[0].name: normal.transpose(2, 0, 1)[None].astype(np.float32)}
        (found,) = self._session.run([self._session.get_outputs()[0].name], feed)
        return np.asarray(cv2.resize(found[0, 0], rgb.shape[1::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def is_clear(saliency: Map) -> bool:
    """Return whether a saliency map shows one object of medium size with a clear outline."""
    cover = float((saliency > 0.5).mean())
    doubtful = float(((saliency > 0.2) & (saliency < 0.8)).mean())
    if not 0.02 < cover < 0.55 or doubtful > 0.35 * cover:
        return False
    _, _, areas, _ = cv2.connectedComponentsWithStats((saliency > 0.5).astype(np.uint8))
    return bool(areas[1:, cv2.CC_STAT_AREA].max() > 0.8 * areas[1:, cv2.CC_STAT_AREA].sum())


def pasted(rng: np.random.Generator, thing: Picture, saliency: Map, scene: Picture) -> tuple[Picture, Picture]:
    """Paste an object onto a scene with random size, place, mirroring and light; masks are RGB, of 0 and 255."""
    rows, columns = (np.flatnonzero((saliency > 0.5).any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    cut, alpha = thing[box], np.clip(2 * saliency[box] - 0.5, 0, 1)
    if rng.random() < 0.5:
        cut, alpha = cut[:, ::-1], alpha[:, ::-1]
    height, width = scene.shape[:2]
    area = np.exp(rng.uniform(np.log(0.015), np.log(0.4))) * height * width
    scale = min(np.sqrt(area / alpha.size), 0.95 * height / alpha.shape[0], 0.95 * width / alpha.shape[1])
    size = tuple(max(8, round(scale * side)) for side in alpha.shape[::-1])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    light = rng.uniform(0.75, 1.25) * rng.uniform(0.92, 1.08, 3)
    cut = np.clip(cv2.resize(np.ascontiguousarray(cut), size, interpolation=interpolation) * light, 0, 255)
    alpha = cv2.resize(np.ascontiguousarray(alpha), size, interpolation=interpolation)
    top, left = (
        int(rng.integers(0, max(1, whole - part))) for whole, part in zip((height, width), alpha.shape, strict=True)
    )
    place = np.s_[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    picture, mask = scene.copy(), np.zeros((height, width), np.uint8)
    alpha = alpha[: height - top, : width - left]
    cut = cut[: height - top, : width - left]
    picture[place] = alpha[..., None] * cut + (1 - alpha[..., None]) * picture[place]
    mask[place] = 255 * (alpha > 0.5)
    return picture, np.repeat(mask[..., None], 3, axis=2)


def shrunk(rgb: Picture) -> Picture:
    """Shrink the long side to at most 384 pixels."""
    scale = LONG_SIDE / max(rgb.shape[:2])
    if scale >= 1:
        return rgb
    size = (round(scale * rgb.shape[1]), round(scale * rgb.shape[0]))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def main() -> None:
    """Read the options and make the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--saliency", type=Path, required=True, help="U2-Net as ONNX")
    parser.add_argument("--output", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    network = Saliency(options.saliency)
    paths = sorted(path for path in options.photos.iterdir() if path.is_file())
    made = 0
    for number, path in enumerate(paths):
        try:
            rgb = shrunk(read_image(path))
        except InputError as error:
            print(error, flush=True)
            continue
        saliency = network(rgb)
        if not is_clear(saliency):
            continue
        folder = options.output / f"{number:05d}"
        mask = np.repeat((255 * (saliency > 0.5)).astype(np.uint8)[..., None], 3, axis=2)
        pairs = [(rgb, mask)]
        for other in rng.choice(len(paths), PASTED, replace=False):
            scene = shrunk(read_image(paths[int(other)]))
            pairs.append(pasted(rng, rgb, saliency, scene))
        for name, (picture, its_mask) in enumerate(pairs):
            write_image(folder / "images" / f"{name}.jpg", picture)
            write_image(folder / "masks" / f"{name}.png", its_mask)
        made += 1
        if made % 100 == 0:
            print(f"{made} objects in {number + 1} of {len(paths)} photographs", flush=True)
    print(f"{made} objects in {len(paths)} photographs", flush=True)


if __name__ == "__main__":
    main()
