"""Train the backbone of cst-nano: transformer blocks after the frozen stem learn to imitate the whole trunk.

    python examples/distil_backbone.py teach --images IMAGES.npy --output TARGETS
    python examples/distil_backbone.py learn --targets TARGETS --output BACKBONE.safetensors
    python examples/distil_backbone.py masks --targets TARGETS --labels LABELS.npy --output FOLDER

IMAGES.npy contains (n, 64, 64, 3) uint8 RGB; no labels are needed. The teacher is EfficientNet-Lite2 with its published
weights, which are also the backbone's stem.

`teach` runs the teacher on all images, and the stem on mosaics of four. It stores the stem's tokens, the teacher's last
two stages in 192 dimensions, and the teacher's class activation map (how much each place contributes to its answer).

`learn` trains the blocks. Targets: for the image tokens, the teacher's features of the whole image, also if the image
is a quarter of a mosaic; for the class token, the mean of the foreground; for the cosine between its query and the
keys, from which CST makes pseudo-masks, the activation map. If interrupted, run it again to continue from its last
checkpoint.

`masks` makes a data set for `fsvit-edge train` from the images' classes, as single images and in mosaics, with the
thresholded activation maps as masks. It has ten times the classes of a small segmentation data set, so a head that
starts with it learns to compare before it learns to outline.
"""

import argparse
import io
import math
import time
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.model.convolutional_stem import TRUNK, ConvolutionalStem, joined, renormalize, trunk_stages
from fsvit_edge.model.encoder import HYBRID_BACKBONE, Encoder, EncoderOutput
from fsvit_edge.model.network import normalize
from fsvit_edge.runtime.pictures import write_image
from fsvit_edge.runtime.storage import atomic_write

PREFIX = "backbone."
SIZE = 256
GRID = 16
"""Side of the student's token grid."""
COARSE = 8
"""Side of the teacher's grid (stride 32); the grids of the four images of a mosaic together have side GRID."""
FOREGROUND_ACTIVATION = 0.3
"""Threshold, relative to the largest activation in the picture."""
PSEUDO_MASK_COSINE = -0.2
"""Threshold of CST's pseudo-mask: (cosine + 1) / 2 > 0.4."""
STEM_WIDTHS, TEACHER_WIDTHS = (120, 208), (208, 352)
"""Channels of the stages that the student reads, and of those that it learns from."""
_STATISTICS_OF = 1536
_TEACH_BATCH = 32


class Teacher(nn.Module):
    """EfficientNet-Lite2, cut at the end of the student's stem; without a file of weights, they are downloaded."""

    def __init__(self, weights: Path | None, dim: int) -> None:
        super().__init__()
        trunk = timm.create_model(TRUNK, pretrained=weights is None)
        if weights is not None:
            read = load_file if weights.suffix == ".safetensors" else lambda path: torch.load(path, weights_only=True)
            # The published file has the same tensors in the same order, with other names.
            trunk.load_state_dict(dict(zip(trunk.state_dict(), read(weights).values(), strict=True)))
        self.stem = ConvolutionalStem(dim)
        fine, coarse, late = trunk_stages(trunk)
        parts = (self.stem.fine, self.stem.coarse, *self.stem.late)
        for part, published in zip(parts, (fine, coarse, *late), strict=True):
            part.load_state_dict(published.state_dict())
        self.last = nn.Sequential(trunk.get_submodule("conv_head"), trunk.get_submodule("bn2"))
        classifier = trunk.get_submodule("classifier")
        assert isinstance(classifier, nn.Linear)
        self.classifier = classifier
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the teacher on (B, 256, 256, 3) uint8 RGB.

        Returns:
            (B, 328, 16, 16) input of the stem's projection; (B, 560, 8, 8) the last two stages; (B, 8, 8) the class
            activation map, scaled to a maximum of 1 per image.
        """
        fine = self.stem.fine(renormalize(normalize(images)))
        coarse = self.stem.coarse(fine)
        stages = self.stem.late_maps([coarse])
        features = self.last(stages[-1]).float()
        answer = self.classifier(features.mean(dim=(2, 3))).float().softmax(dim=1)
        activation = torch.einsum("bchw,bc->bhw", features, (answer @ self.classifier.weight).float())
        largest = activation.amax(dim=(1, 2), keepdim=True).clamp_min(1e-3)
        return joined(fine, coarse).float(), torch.cat(stages, dim=1).float(), activation / largest


def half_whitened(features: Tensor, widths: tuple[int, ...], dim: int) -> tuple[Tensor, Tensor]:
    """Return the (channels, dim) projection of features onto their `dim` strongest directions, and its (dim,) bias.

    Stages are first scaled to the same deviation. Directions are divided by the root of their deviation, so that the
    first one does not dominate the cosines, and rotated randomly, so that each of the student's heads gets a share.
    `features` are (n, channels), `widths` the channels of each stage.
    """
    scale = torch.cat([(1 / stage.std()).expand(stage.shape[1]) for stage in features.split(widths, dim=1)])
    centered = (features * scale).double()
    mean = centered.mean(dim=0)
    centered -= mean
    variance, directions = torch.linalg.eigh(centered.T @ centered / len(features))
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0), dtype=torch.double))[0]
    projection = directions[:, -dim:] / variance[-dim:] ** 0.25 @ rotation
    return (projection * scale[:, None]).float(), (-mean @ projection).float()


def enlarged(images: Tensor, size: int) -> Tensor:
    """Resize (B, h, w, 3) uint8 -> (B, size, size, 3) uint8."""
    pixels = F.interpolate(images.permute(0, 3, 1, 2).float(), size=size, mode="bicubic", align_corners=False)
    return pixels.clamp(0, 255).round().byte().permute(0, 2, 3, 1)


def mosaic(images: Tensor) -> Tensor:
    """Combine each four of (B, h, w, ...) into a mosaic: (B / 4, 2 h, 2 w, ...)."""
    quarter, (height, width), rest = len(images) // 4, images.shape[1:3], images.shape[3:]
    laid = images.reshape(quarter, 2, 2, height, width, *rest).transpose(2, 3)  # B / 4, 2, h, 2, w, ...
    return laid.reshape(quarter, 2 * height, 2 * width, *rest)


def teach(images: Path, weights: Path | None, count: int | None, output: Path) -> None:
    """Store the outputs of the stem and the teacher for every image."""
    pictures = np.load(images, mmap_mode="r")[:count]
    pictures = pictures[: len(pictures) // 4 * 4]
    output.mkdir(parents=True, exist_ok=True)
    encoder = untrained()
    teacher = Teacher(weights, encoder.embed_dim)
    tokens = (GRID, GRID, encoder.embed_dim)
    shapes: dict[str, tuple[int, ...]] = {
        "tokens": (len(pictures), *tokens),
        "mosaics": (len(pictures) // 4, *tokens),
        "features": (len(pictures), COARSE, COARSE, encoder.embed_dim),
        "activation": (len(pictures), COARSE, COARSE),
    }
    files = {
        name: np.lib.format.open_memmap(output / f"{name}.npy", "w+", np.float16, shape)
        for name, shape in shapes.items()
    }
    started = time.perf_counter()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        projection, shift = fit_projections(teacher, pictures)
        for start in range(0, len(pictures), _TEACH_BATCH):
            batch = torch.tensor(pictures[start : start + _TEACH_BATCH])
            seen, features, activation = teacher(enlarged(batch, SIZE))
            quarters = teacher.stem(normalize(mosaic(enlarged(batch, SIZE // 2))))
            found = {
                "tokens": teacher.stem.project(seen).permute(0, 2, 3, 1),
                "features": features.float().permute(0, 2, 3, 1) @ projection + shift,
                "activation": activation,
            }
            for name, value in found.items():
                files[name][start : start + _TEACH_BATCH] = value.half().numpy()
            files["mosaics"][start // 4 : (start + _TEACH_BATCH) // 4] = quarters.permute(0, 2, 3, 1).half().numpy()
            if start % (50 * _TEACH_BATCH) == 0:
                print(f"{start} of {len(pictures)}, {time.perf_counter() - started:.0f} s", flush=True)
    np.save(output / "images.npy", pictures)
    encoder.vit.patch_embed.proj.load_state_dict(teacher.stem.state_dict())
    save_backbone(encoder, output / "untrained.safetensors")


def fit_projections(teacher: Teacher, pictures: np.ndarray) -> tuple[Tensor, Tensor]:
    """Set the stem's projection; return the projection of the teacher's features and its bias."""
    batches = [
        teacher(enlarged(torch.tensor(pictures[start : start + _TEACH_BATCH]), SIZE))[:2]
        for start in range(0, min(len(pictures), _STATISTICS_OF), _TEACH_BATCH)
    ]
    seen, features = (
        torch.cat([maps.flatten(2).transpose(1, 2)[:, ::3].flatten(0, 1) for maps in side])
        for side in zip(*batches, strict=True)
    )
    project = teacher.stem.project
    projection, shift = half_whitened(seen, STEM_WIDTHS, project.out_channels)
    assert project.bias is not None
    project.weight.copy_(projection.T[..., None, None])
    project.bias.copy_(shift)
    return half_whitened(features, TEACHER_WIDTHS, project.out_channels)


def untrained() -> Encoder:
    """Build the student; its blocks at first pass the stem's tokens on unchanged."""
    torch.manual_seed(0)
    encoder = Encoder(HYBRID_BACKBONE, SIZE)
    for block in encoder.vit.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    nn.init.zeros_(encoder.vit.pos_embed)
    return encoder


class Batches:
    """Random images and mosaics with the teacher's features, from the folder written by `teach`."""

    def __init__(self, targets: Path) -> None:
        self.tokens, self.mosaics, self.features, self.activation = (
            np.load(targets / f"{name}.npy", mmap_mode="r") for name in ("tokens", "mosaics", "features", "activation")
        )
        self.turn = self._turn()

    def images(self, rng: np.random.Generator, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw (B, 16, 16, D) tokens, (B, 16, 16, D) features and (B, 16, 16) activations of single images."""
        chosen = np.sort(rng.choice(len(self.tokens), batch, replace=False))
        tokens, features, activation = (
            torch.from_numpy(array[chosen]).float() for array in (self.tokens, self.features, self.activation)
        )
        features = _larger((features @ self.turn).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return tokens, features, _larger(activation[:, None])[:, 0]

    def mosaics_of(self, rng: np.random.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """Draw (B, 16, 16, D) tokens of mosaics and (B, 16, 16, D) features of their images."""
        chosen = np.sort(rng.choice(len(self.mosaics), batch, replace=False))
        members = (4 * chosen[:, None] + np.arange(4)).flatten()
        features = mosaic(torch.from_numpy(self.features[members]).float()) @ self.turn
        return torch.from_numpy(self.mosaics[chosen]).float(), features

    def _turn(self) -> Tensor:
        """Return the rotation of the features that brings them closest to the stem's tokens (Procrustes).

        It does not change cosines, but with it the blocks refine their input instead of turning it into something
        else, so the outputs of the blocks in between are useful to CST too.
        """
        tokens, features = (torch.tensor(array[:_STATISTICS_OF]).float() for array in (self.tokens, self.features))
        tokens = F.avg_pool2d(tokens.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        left, _, right = torch.linalg.svd(features.flatten(0, 2).T @ tokens.flatten(0, 2))
        return left @ right


class FromTokens(nn.Module):
    """Replaces the stem during training: passes its stored tokens on."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 16, 16, D) -> (B, D, 16, 16)."""
        return tokens.permute(0, 3, 1, 2)


def cosine_distance(tokens: Tensor, features: Tensor, heads: int) -> Tensor:
    """Return 1 - cosine per head, because CST compares tokens per head."""
    return 1 - F.cosine_similarity(tokens.unflatten(-1, (heads, -1)), features.unflatten(-1, (heads, -1)), dim=-1)


def loss_of(output: EncoderOutput, features: Tensor, activation: Tensor | None, heads: int) -> dict[str, Tensor]:
    """Compare the student's last block with the teacher; a mosaic has no activation and no class token target."""
    last, features = output.tokens[:, -1].float(), features.flatten(1, 2)
    losses = {"tokens": cosine_distance(last[:, 1:], features, heads).mean()}
    if activation is not None:
        activation = activation.flatten(1)
        wanted = torch.sigmoid(10 * (activation - FOREGROUND_ACTIVATION))
        thing = (features * wanted[..., None]).sum(dim=1) / wanted.sum(dim=1, keepdim=True)
        losses["class token"] = 0.5 * cosine_distance(last[:, 0], thing, heads).mean()
        keys = F.normalize(output.image_keys.float(), dim=-1)
        query = F.normalize(output.class_query.float(), dim=-1)
        cosine = (keys @ query.unsqueeze(-1)).squeeze(-1).mean(dim=1)
        logit = 10 * (cosine - PSEUDO_MASK_COSINE)
        losses["pseudo-mask"] = 0.3 * F.binary_cross_entropy_with_logits(logit, wanted)
    return losses


def learn(targets: Path, output: Path, options: argparse.Namespace) -> None:
    """Train the blocks, the class token, the position embedding and the final norm."""
    student = untrained()
    state = load_file(targets / "untrained.safetensors")
    student.load_published({name.removeprefix(PREFIX): tensor for name, tensor in state.items()})
    stem, student.vit.patch_embed.proj = student.vit.patch_embed.proj, FromTokens()
    batches = Batches(targets)
    decay, rest = ([p for p in student.parameters() if (p.ndim == 2) is is_matrix] for is_matrix in (True, False))
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98))
    checkpoint = output.with_suffix(".checkpoint.pt")
    first = 0
    if checkpoint.exists():
        content = torch.load(checkpoint, weights_only=True)
        student.load_state_dict(content["student"])
        optimizer.load_state_dict(content["optimizer"])
        first = content["step"]
    started, recent = time.perf_counter(), list[dict[str, float]]()
    for step in range(first, options.steps):
        rate = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * rate
        rng = np.random.default_rng((options.seed, step))
        parts: list[tuple[Tensor, Tensor, Tensor | None]] = [
            batches.images(rng, options.batch // 2),
            (*batches.mosaics_of(rng, options.batch // 2), None),
        ]
        optimizer.zero_grad()
        losses: dict[str, float] = {}
        for kind, (tokens, features, activation) in zip(("image", "mosaic"), parts, strict=True):
            found = loss_of(student(tokens), features, activation, student.num_heads)
            torch.stack(list(found.values())).sum().backward()
            losses |= {f"{kind}'s {name}": float(value.detach()) for name, value in found.items()}
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        recent.append(losses)
        if (step + 1) % 25 == 0 or step + 1 == options.steps:
            text = ", ".join(f"{name} {np.mean([line[name] for line in recent]):.3f}" for name in losses)
            print(f"step {step + 1}, {time.perf_counter() - started:.0f} s: {text}", flush=True)
            recent.clear()
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            data = io.BytesIO()
            content = {"student": student.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(content, data)
            atomic_write(checkpoint, data.getvalue())
    student.vit.patch_embed.proj = stem
    save_backbone(student, output)


def save_backbone(encoder: Encoder, path: Path) -> None:
    """Write a file for `--weights`, in half precision, so that a head is trained on the weights to be distributed."""
    save_file(
        {f"{PREFIX}{name}": tensor.half().contiguous() for name, tensor in encoder.vit.state_dict().items()}, path
    )


def write_masks(targets: Path, labels: Path, output: Path, options: argparse.Namespace) -> None:
    """Write images and thresholded activation maps as <class>/{images,masks}/<number>.png.

    Three of four groups of four images become a mosaic, which is an example of each of its classes.
    """
    pictures = np.load(targets / "images.npy", mmap_mode="r")
    activation = np.load(targets / "activation.npy", mmap_mode="r")
    classes = np.load(labels)[: len(pictures)]
    wanted = sorted(set(classes.tolist()) - set(options.exclude))
    written = dict.fromkeys(wanted, 0)

    def write(number: str, label: int, picture: np.ndarray, mask: np.ndarray) -> None:
        folder = output / f"{label:03}"
        write_image(folder / "images" / f"{number}.png", picture)
        write_image(folder / "masks" / f"{number}.png", np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255)
        written[label] += 1

    for start in range(0, len(pictures), 4):
        group, four = torch.tensor(pictures[start : start + 4]), classes[start : start + 4].tolist()
        maps = torch.from_numpy(activation[start : start + 4].astype(np.float32))[:, None]
        masks = F.interpolate(maps, size=64, mode="bilinear")[:, 0] > FOREGROUND_ACTIVATION
        usable = [
            place
            for place, (label, mask) in enumerate(zip(four, masks.numpy(), strict=True))
            if 0.05 < mask.mean() < 0.8 and label in written and written[label] < options.each
        ]
        is_mosaic = start % 16 > 0 and len(set(four)) == 4
        for place in usable:
            if is_mosaic:
                alone = torch.zeros_like(masks)
                alone[place] = masks[place]
                write(f"{start}", four[place], mosaic(group)[0].numpy(), mosaic(alone)[0].numpy())
            else:
                write(f"{start + place}", four[place], group[place].numpy(), masks[place].numpy())


def _larger(maps: Tensor) -> Tensor:
    return F.interpolate(maps, size=(GRID, GRID), mode="bilinear", align_corners=False)


def main() -> None:
    """Read the options and run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("teach", help="run the teacher")
    first.add_argument("--images", type=Path, required=True, help="(n, 64, 64, 3) uint8 RGB, .npy")
    first.add_argument("--weights", type=Path, help="weights of EfficientNet-Lite2; default: from timm's hub")
    first.add_argument("--count", type=int, help="use only the first COUNT images")
    first.add_argument("--output", type=Path, required=True, help="folder")
    second = commands.add_parser("learn", help="train the blocks")
    second.add_argument("--targets", type=Path, required=True, help="folder written by `teach`")
    second.add_argument("--output", type=Path, required=True, help=".safetensors")
    second.add_argument("--steps", type=int, default=300)
    second.add_argument("--batch", type=int, default=32)
    second.add_argument("--learning-rate", type=float, default=1e-3)
    second.add_argument("--seed", type=int, default=0)
    third = commands.add_parser("masks", help="make a data set with activation maps as masks")
    third.add_argument("--targets", type=Path, required=True, help="folder written by `teach`")
    third.add_argument("--labels", type=Path, required=True, help="(n,) class numbers, .npy")
    third.add_argument("--output", type=Path, required=True, help="folder of the data set")
    third.add_argument("--each", type=int, default=40, help="maximum number of examples per class")
    third.add_argument("--exclude", type=int, nargs="+", default=[], help="class numbers to leave out")
    options = parser.parse_args()
    if options.command == "teach":
        teach(options.images, options.weights, options.count, options.output)
    elif options.command == "masks":
        write_masks(options.targets, options.labels, options.output, options)
    else:
        learn(options.targets, options.output, options)


if __name__ == "__main__":
    main()
