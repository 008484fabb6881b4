"""Train the objectness decoder of cst-nano to imitate a saliency network on photographs.

    python examples/train_objectness.py teach --saliency u2netp.onnx --photos FOLDER ... --output TARGETS
    python examples/train_objectness.py learn --targets TARGETS --checkpoint NETWORK.safetensors --output OUT

`teach` runs the saliency network (the teacher) on every picture in the folders and on a random part of it. `learn`
runs the frozen stem on mirrored, recolored and cropped views of these, keeps the maps in memory, and trains the
decoder on them; OUT is the network with its objectness decoder. No labels are needed, but the teacher itself was
trained with pixel masks.
"""

import argparse
import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from make_instances import Saliency
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fsvit_edge.model.checkpoint import load_network, save_network
from fsvit_edge.model.network import FewShotNetwork, normalize
from fsvit_edge.model.objectness import ObjectnessDecoder
from fsvit_edge.runtime.pictures import PICTURE_SUFFIXES, read_image

SIZE = 256
TARGET = 128
"""Side of the stored maps of the teacher."""
OUTPUT = 64
HELD_OUT = 200
"""Number of pictures that are only for measuring the agreement with the teacher."""
EDGE_WEIGHT = 3.0
"""Weight of cells within two of the outline, where most errors are; other cells have weight 1."""


def teach(options: argparse.Namespace) -> None:
    """Store every picture, and a random part of it, at the student's size, with the teacher's maps."""
    rng = np.random.default_rng(options.seed)
    teacher = Saliency(options.saliency)
    paths = sorted(
        path for folder in options.photos for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES
    )
    options.output.mkdir(parents=True, exist_ok=True)
    images = np.zeros((len(paths), 2, SIZE, SIZE, 3), np.uint8)
    maps = np.zeros((len(paths), 2, TARGET, TARGET), np.float16)
    for number, path in enumerate(paths):
        rgb = read_image(path)
        for view, picture in enumerate((rgb, random_part(rng, rgb))):
            images[number, view] = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            maps[number, view] = cv2.resize(teacher(picture), (TARGET, TARGET), interpolation=cv2.INTER_AREA)
        if number % 200 == 0:
            print(f"{number} of {len(paths)}", flush=True)
    np.save(options.output / "images.npy", images)
    np.save(options.output / "maps.npy", maps)


def random_part(rng: np.random.Generator, rgb: np.ndarray) -> np.ndarray:
    """Return a random crop with a quarter to four fifths of the picture's area."""
    area, aspect = rng.uniform(0.25, 0.8), math.exp(rng.uniform(-0.3, 0.3))
    sides = [
        max(8, int(min(1.0, share) * side))
        for share, side in zip(((area / aspect) ** 0.5, (area * aspect) ** 0.5), rgb.shape[:2], strict=True)
    ]
    top, left = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(rgb.shape[:2], sides, strict=True))
    return np.ascontiguousarray(rgb[top : top + sides[0], left : left + sides[1]])


def views(rng: np.random.Generator, images: np.ndarray, maps: np.ndarray, changed: bool) -> tuple[Tensor, Tensor]:
    """Return pictures (n, 256, 256, 3) uint8 and targets (n, 64, 64); `changed` mirrors, recolors and crops them."""
    shown, targets = [], []
    for image, wanted in zip(images, maps.astype(np.float32), strict=True):
        if changed:
            image, wanted = change(rng, image, wanted)
        shown.append(image)
        targets.append(cv2.resize(wanted, (OUTPUT, OUTPUT), interpolation=cv2.INTER_AREA))
    return torch.from_numpy(np.stack(shown)), torch.from_numpy(np.stack(targets))


def change(rng: np.random.Generator, image: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Augment a picture and its target."""
    if rng.random() < 0.5:
        image, wanted = image[:, ::-1], wanted[:, ::-1]
    if rng.random() < 0.6:  # a crop, or the whole made smaller with its mirror image as a border
        scale = math.exp(rng.uniform(math.log(0.6), math.log(1.35)))
        shift = rng.uniform(-0.5, 0.5, 2) * abs(1 - scale) * SIZE
        for_image, for_map = (
            np.array(
                [
                    [1 / scale, 0, side / 2 * (1 - 1 / scale) + dx * side / SIZE],
                    [0, 1 / scale, side / 2 * (1 - 1 / scale) + dy * side / SIZE],
                ]
            )
            for side, (dx, dy) in ((SIZE, shift), (TARGET, shift))
        )
        image = cv2.warpAffine(image, for_image, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        wanted = cv2.warpAffine(
            wanted, for_map, (TARGET, TARGET), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
    pixels = image.astype(np.float32)
    gray = pixels.mean(axis=2, keepdims=True)
    pixels = gray + (pixels - gray) * (0.0 if rng.random() < 0.15 else rng.uniform(0.5, 1.5))
    pixels = pixels.mean() + (pixels - pixels.mean()) * rng.uniform(0.6, 1.4)
    pixels *= rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)
    image = np.clip(pixels, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        small = int(rng.integers(64, 200))
        image = cv2.resize(cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA), (SIZE, SIZE))
    return np.ascontiguousarray(image), np.ascontiguousarray(wanted)


@torch.inference_mode()
def encoded(network: FewShotNetwork, images: Tensor) -> list[Tensor]:
    """Return the frozen stem's maps of all pictures, float16."""
    stem = network.encoder.stem
    assert stem is not None
    parts = []
    for start in range(0, len(images), 16):
        with torch.autocast("cpu", torch.bfloat16):
            batch = normalize(images[start : start + 16]).to(memory_format=torch.channels_last)
            parts.append([level.half() for level in stem.maps(batch)])
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def with_norms(decoder: ObjectnessDecoder) -> None:
    """Add a batch norm after each convolution except the last; `fold` removes them again."""
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child is not decoder.out:
                parent.register_module(name, nn.Sequential(child, nn.BatchNorm2d(child.out_channels)))


def fold(decoder: ObjectnessDecoder) -> None:
    """Fold the batch norms into the convolutions."""
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Sequential) and len(child) == 2:
                convolution, norm = child
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    parent.register_module(name, fuse_conv_bn_eval(convolution.eval(), norm.eval()))


def loss_of(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return cross-entropy, with more weight near outlines, + Dice loss."""
    thing = (wanted > 0.5).float()[:, None]
    near = F.max_pool2d(thing, 5, 1, 2) - (1 - F.max_pool2d(1 - thing, 5, 1, 2))
    weight = 1 + (EDGE_WEIGHT - 1) * near[:, 0]
    each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    p = logits.sigmoid()
    dice = (2 * (p * wanted).sum((1, 2)) + 1) / ((p + wanted).sum((1, 2)) + 1)
    return (weight * each).sum() / weight.sum() + 1 - dice.mean()


@torch.no_grad()
def agreement(decoder: ObjectnessDecoder, maps: list[Tensor], wanted: Tensor) -> float:
    """Return the mean IoU with the teacher, both thresholded at 0.5; it is 1 if both are empty."""
    ious = []
    for start in range(0, len(wanted), 50):
        found = decoder([level[start : start + 50].float() for level in maps]) > 0
        thing = wanted[start : start + 50] > 0.5
        union = (found | thing).sum((1, 2))
        ious.append(torch.where(union > 0, (found & thing).sum((1, 2)) / union.clamp_min(1), 1.0))
    return float(torch.cat(ious).mean())


def learn(options: argparse.Namespace) -> None:
    """Train the decoder."""
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    network = load_network(options.checkpoint)
    network.add_objectness()
    decoder = network.objectness
    assert decoder is not None
    images, maps = (np.load(options.targets / f"{name}.npy", mmap_mode="r") for name in ("images", "maps"))
    order = np.random.default_rng(0).permutation(len(images))
    held, trained = np.sort(order[:HELD_OUT]), np.sort(order[HELD_OUT:])
    shown, held_wanted = views(rng, images[held, 0], maps[held, 0], changed=False)
    held_maps = encoded(network, shown)
    with_norms(decoder)
    decoder.train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=options.learning_rate, weight_decay=0.02)
    steps, step, started = options.steps, 0, time.monotonic()
    while step < steps:
        # Views are made anew from time to time, because the maps of all views do not fit into memory.
        pool_images, pool_wanted = zip(
            *(views(rng, images[trained, view], maps[trained, view], changed=True) for view in (0, 1)), strict=True
        )
        pool, wanted = encoded(network, torch.cat(pool_images)), torch.cat(pool_wanted)
        print(f"step {step}: {len(wanted)} new views, {time.monotonic() - started:.0f} s", flush=True)
        for _ in range(min(options.steps_per_pool, steps - step)):
            rate = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * rate
            pick = torch.randint(len(wanted), (options.batch,))
            with torch.autocast("cpu", torch.bfloat16):
                logits = decoder([level[pick].to(torch.bfloat16) for level in pool])
            loss = loss_of(logits.float(), wanted[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 200 == 0 or step == steps:
                decoder.eval()
                iou = agreement(decoder, held_maps, held_wanted)
                decoder.train()
                seconds = time.monotonic() - started
                print(
                    f"step {step}: loss {float(loss):.3f}, IoU with the teacher {iou:.3f}, {seconds:.0f} s", flush=True
                )
    decoder.eval()
    fold(decoder)
    print(f"folded: IoU with the teacher {agreement(decoder, held_maps, held_wanted):.3f}")
    save_network(network, options.output)


def main() -> None:
    """Read the options and run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("teach", help="run the teacher")
    first.add_argument("--saliency", type=Path, required=True, help="U2-Net as ONNX")
    first.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of pictures")
    first.add_argument("--output", type=Path, required=True, help="folder")
    first.add_argument("--seed", type=int, default=0)
    second = commands.add_parser("learn", help="train the decoder")
    second.add_argument("--targets", type=Path, required=True, help="folder written by `teach`")
    second.add_argument("--checkpoint", type=Path, required=True, help="network with the convolutional stem")
    second.add_argument("--output", type=Path, required=True, help=".safetensors")
    second.add_argument("--steps", type=int, default=4000)
    second.add_argument("--steps-per-pool", type=int, default=1000)
    second.add_argument("--batch", type=int, default=16)
    second.add_argument("--learning-rate", type=float, default=2e-3)
    second.add_argument("--seed", type=int, default=0)
    second.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.command == "teach":
        teach(options)
    else:
        torch.set_num_threads(options.threads)
        learn(options)


if __name__ == "__main__":
    main()
