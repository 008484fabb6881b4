"""Make a data set of classes for `fsvit-edge train` from small labeled pictures without masks.

    python examples/make_classes.py --images IMAGES.npy --labels LABELS.npy --bundle BUNDLE --output DATA

IMAGES.npy contains (n, h, w, 3) uint8 RGB, LABELS.npy (n,) class numbers. It takes the first pictures of each class in
which the bundle's objectness finds one clear object, which becomes the mask. Hundreds of classes teach a head to
compare kinds of objects, as `make_instances.py` teaches it to compare individual objects.
"""

import argparse
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from make_instances import is_clear

from fsvit_edge.runtime.bundle import OBJECTNESS, Bundle
from fsvit_edge.runtime.pictures import write_image


def main() -> None:
    """Read the options and make the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="(n, h, w, 3) uint8 RGB, .npy")
    parser.add_argument("--labels", type=Path, required=True, help="(n,) class numbers, .npy")
    parser.add_argument("--bundle", type=Path, required=True, help="bundle that predicts objectness")
    parser.add_argument("--output", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--each", type=int, default=24, help="maximum number of pictures per class")
    parser.add_argument("--exclude", type=int, nargs="+", default=[], help="class numbers to leave out")
    options = parser.parse_args()
    images, labels = (np.load(path, mmap_mode="r") for path in (options.images, options.labels))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    bundle = Bundle.load(options.bundle)
    encoder = onnxruntime.InferenceSession(bundle.graphs["encoder"], settings, providers=["CPUExecutionProvider"])
    size = bundle.manifest.image_size
    wanted = len(set(labels.tolist()) - set(options.exclude)) * options.each
    written: Counter[int] = Counter()
    for number, label in enumerate(labels.tolist()):
        if label in options.exclude or written[label] == options.each:
            continue
        if written.total() == wanted:
            break
        picture = cv2.resize(images[number], (size, size), interpolation=cv2.INTER_CUBIC)
        (logits,) = encoder.run([OBJECTNESS], {"image": picture[None]})
        side = images.shape[1:3][::-1]
        thing = cv2.resize(1 / (1 + np.exp(-logits[0])), side, interpolation=cv2.INTER_LINEAR)
        if not is_clear(thing):
            continue
        folder = options.output / f"{label:03d}"
        mask = (255 * (thing > 0.5)).astype(np.uint8)
        write_image(folder / "images" / f"{number}.png", np.ascontiguousarray(images[number]))
        write_image(folder / "masks" / f"{number}.png", np.repeat(mask[..., None], 3, axis=2))
        written[label] += 1
        if written.total() % 500 == 0:
            print(f"{written.total()} of {wanted}", flush=True)
    print(f"{written.total()} pictures of {len(written)} classes")


if __name__ == "__main__":
    main()
