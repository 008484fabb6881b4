"""Train the correlation head on a folder of pictures with masks; the encoder stays frozen.

    python examples/train_head.py --data DIR --init CHECKPOINT.safetensors --output HEAD.safetensors

DIR holds `<class>/images/<stem>.*` and `<class>/masks/<stem>.*`. Run again with the same arguments, an interrupted
training goes on from its last checkpoint with the same views and episodes.

One step learns from one-way one-shot episodes (CST, section 3.3): a support, a query, and whether and where the query
shows what the support shows. Encoding is most of the work, so views of the pictures are encoded ahead into a pool that
many steps draw from; every step replaces a few of them.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from fsvit_edge.model.checkpoint import load_network, save_network
from fsvit_edge.model.encoder import EncoderOutput
from fsvit_edge.model.fast_head import FastCorrelationHead, Supports, cache_supports
from fsvit_edge.model.head import HeadLogits
from fsvit_edge.model.network import FewShotNetwork, normalise
from fsvit_edge.runtime.atomic import atomic_write
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.pictures import PICTURE_SUFFIXES, read_image, read_mask
from fsvit_edge.runtime.preprocess import resize_image, resize_mask

Rgb = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Random = np.random.Generator

VIEWS, EPISODES, VALIDATION = range(3)
"""What a random stream is for: (seed, purpose, number) makes each view and each step independent of all others."""
GROUP = 6
"""Episodes that share one run of the head."""
VALIDATION_EPISODES = 200


@dataclass(frozen=True)
class Recipe:
    """What decides the result, besides data and initial weights.

    Attributes:
        steps: Optimiser steps.
        batch: Episodes a step.
        seed: Of views and episodes.
        learning_rate: Of Adam, after the warm-up; decays to 0 along a cosine.
        class_weight: Weight of the presence loss beside the mask loss.
        foreground_weight: Weight of a foreground pixel in the mask loss; a background pixel has 1.
        instance_share: Share of the present episodes whose query is another view of the support's own photograph.
        nameless_share: Share of the supports whose mask is replaced by the encoder's pseudo-mask.
        pool: Photographs in the pool, two views of each.
        fresh: Photographs that a step replaces.
        min_area: Smallest share of a photograph that a view shows.
        bfloat16: Compute in bfloat16 where that is safe; faster on processors that have it.
    """

    steps: int
    batch: int
    seed: int
    learning_rate: float
    class_weight: float
    foreground_weight: float
    instance_share: float
    nameless_share: float
    pool: int
    fresh: int
    min_area: float
    bfloat16: bool


@dataclass(frozen=True)
class Photo:
    """One photograph as an example of one class.

    Attributes:
        label: Number of the class.
        digest: The same for every copy of the photograph; it may stand under several classes.
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, True on the things of the class.
    """

    label: int
    digest: str
    image: Rgb
    mask: Mask


class Episodes(NamedTuple):
    """B episodes, as places in a pool.

    Attributes:
        support: B places.
        query: B places.
        present: (B,) bool, whether the query shows the support's class.
        nameless: (B,) bool, whether the support's mask is unknown.
    """

    support: list[int]
    query: list[int]
    present: Tensor
    nameless: Tensor

    def take(self, which: list[int]) -> "Episodes":
        """Give some of the episodes."""
        return Episodes(
            [self.support[i] for i in which],
            [self.query[i] for i in which],
            self.present[which],
            self.nameless[which],
        )


def list_classes(data: Path, wanted: list[str], held_out: list[str]) -> list[str]:
    """Name the classes of a folder, those wanted (all, if none is named) without those held out."""
    there = sorted(path.name for path in data.iterdir() if (path / "masks").is_dir())
    if unknown := sorted({*wanted, *held_out} - set(there)):
        raise InputError(f"{data} has no class {', '.join(unknown)}; it has {', '.join(there)}.")
    return [name for name in wanted or there if name not in held_out]


def read_photos(data: Path, classes: list[str]) -> list[Photo]:
    """Read every picture that has a mask."""
    photos = []
    for label, name in enumerate(classes):
        masks = {path.stem: path for path in (data / name / "masks").iterdir()}
        for path in sorted((data / name / "images").iterdir()):
            if path.suffix.lower() in PICTURE_SUFFIXES and path.stem in masks:
                image = read_image(path)
                mask = read_mask(masks[path.stem], image.shape[:2])
                photos.append(Photo(label, hashlib.sha256(image.tobytes()).hexdigest(), image, mask))
    return photos


def random_view(photo: Photo, size: int, min_area: float, rng: Random) -> tuple[Rgb, npt.NDArray[np.uint8]]:
    """Crop, flip and relight a photograph so that the thing stays in view.

    Returns:
        (size, size, 3) uint8 RGB, and its mask (size, size) of 0 and 1.
    """
    height, width = photo.mask.shape
    image, mask = photo.image, photo.mask
    for _ in range(10):
        area, aspect = rng.uniform(min_area, 1.0) * height * width, math.exp(rng.uniform(-0.3, 0.3))
        h, w = min(height, round(math.sqrt(area / aspect))), min(width, round(math.sqrt(area * aspect)))
        y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
        seen = photo.mask[y : y + h, x : x + w]
        if seen.mean() > 0.01 and seen.sum() > 0.4 * photo.mask.sum():
            image, mask = photo.image[y : y + h, x : x + w], seen
            break
    flip = slice(None, None, rng.choice((-1, 1)))
    light = resize_image(np.ascontiguousarray(image), size)[:, flip].astype(np.float32)
    grey = light.mean(axis=2, keepdims=True)
    light = grey + (light - grey) * rng.uniform(0.6, 1.4)
    light = light.mean() + (light - light.mean()) * rng.uniform(0.7, 1.3)
    light = light * rng.uniform(0.75, 1.25) * rng.uniform(0.92, 1.08, 3)
    return np.clip(light, 0, 255).astype(np.uint8), np.ascontiguousarray(resize_mask(mask, size)[:, flip])


class Pool:
    """Encoded views of photographs, two of each; view 2 * i and 2 * i + 1 show the same.

    Args:
        network: Its encoder is used.
        photos: What to choose from: a class first, then a photograph of it.
        recipe: Size of the pool, seed, augmentation.
    """

    def __init__(self, network: FewShotNetwork, photos: list[Photo], recipe: Recipe) -> None:
        encoder, size = network.encoder, network.config.image_size
        self.network, self.recipe = network, recipe
        self.by_class = [[photo for photo in photos if photo.label == label] for label in {p.label for p in photos}]
        self.labels: dict[str, set[int]] = {}
        for photo in photos:
            self.labels.setdefault(photo.digest, set()).add(photo.label)
        views = 2 * recipe.pool
        self.photos = [photos[0]] * recipe.pool
        self.tokens = torch.empty(views, encoder.num_layers, 1 + encoder.grid**2, encoder.embed_dim, dtype=torch.half)
        self.masks = torch.empty(views, size, size, dtype=torch.uint8)
        self.pseudo_masks = torch.empty(views, size, size, dtype=torch.uint8)
        self.made = 0

    def make_until(self, wanted: int) -> None:
        """Make the photographs' views up to number `wanted`, of which the last `recipe.pool` are kept."""
        recipe, size = self.recipe, self.network.config.image_size
        first = max(self.made, wanted - recipe.pool)
        for start in range(first, wanted, 8):
            places, images = [], []
            for number in range(start, min(start + 8, wanted)):
                rng = np.random.default_rng((recipe.seed, VIEWS, number))
                group = self.by_class[rng.integers(len(self.by_class))]
                photo = self.photos[number % recipe.pool] = group[rng.integers(len(group))]
                for place in (2 * (number % recipe.pool), 2 * (number % recipe.pool) + 1):
                    image, mask = random_view(photo, size, recipe.min_area, rng)
                    self.masks[place] = torch.from_numpy(mask)
                    places.append(place)
                    images.append(image)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                output = self.network.encoder(normalise(torch.from_numpy(np.stack(images))))
            self.tokens[places] = output.tokens.half()
            self.pseudo_masks[places] = self.network.pseudo_mask(output).byte()
        self.made = wanted

    def draw(self, rng: Random, count: int) -> Episodes:
        """Draw episodes, half of them with the support's class present."""
        support, query = [], []
        present = np.arange(count) % 2 == 0
        for here in present:
            one = int(rng.integers(self.recipe.pool))
            photo = self.photos[one]
            alike = [i for i, o in enumerate(self.photos) if o.label == photo.label and o.digest != photo.digest]
            if not here:
                others = [i for i, o in enumerate(self.photos) if photo.label not in self.labels[o.digest]]
                other = int(rng.choice(others))
            elif alike and rng.random() >= self.recipe.instance_share:
                other = int(rng.choice(alike))
            else:
                other = one
            side = int(rng.integers(2))
            support.append(2 * one + side)
            query.append(2 * other + 1 - side)
        nameless = rng.random(count) < self.recipe.nameless_share
        return Episodes(support, query, torch.from_numpy(present), torch.from_numpy(nameless))

    def judge(self, head: FastCorrelationHead, episodes: Episodes) -> HeadLogits:
        """Run the head on episodes."""
        places = episodes.support
        mask = torch.where(episodes.nameless[:, None, None], self.pseudo_masks[places], self.masks[places]).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bfloat16):
            logits = head(self._query_vectors(episodes.query), self._supports(places, mask))
        return HeadLogits(logits.presence.float(), logits.mask.float())

    def targets(self, episodes: Episodes) -> Tensor:
        """Give the queries' masks (B, S, S), int64 of 0 and 1."""
        return (self.masks[episodes.query] * episodes.present[:, None, None]).long()

    def _query_vectors(self, places: list[int]) -> Tensor:
        return self.network.query_vectors(self._output(places))

    def _supports(self, places: list[int], mask: Tensor) -> Supports:
        support = cache_supports(
            self.network.support_vectors(self._output(places)), mask, self.network.config.support_grid
        )
        # Tokens that no support of the batch keeps only cost time.
        longest = int(support.kept_mask.sum(dim=1).max())
        kept_mask, order = support.kept_mask.sort(dim=1, descending=True, stable=True)
        index = order[:, None, :longest, None].expand(-1, support.kept.shape[1], -1, support.kept.shape[3])
        return support._replace(kept=support.kept.gather(2, index), kept_mask=kept_mask[:, :longest])

    def _output(self, places: list[int]) -> EncoderOutput:
        nothing = torch.empty(0)
        return EncoderOutput(self.tokens[places].float(), nothing, nothing)


def loss_of(logits: HeadLogits, present: Tensor, target: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Give the cross-entropies of presence and of the mask, the latter at the masks' size."""
    presence = F.cross_entropy(logits.presence, present.long())
    full = F.interpolate(logits.mask, size=target.shape[1:], mode="bilinear", align_corners=True)
    weight = torch.tensor([1.0, recipe.foreground_weight])
    # Divided by the number of pixels, not by their weights, so that an episode's loss does not depend on its batch.
    mask = F.cross_entropy(full, target, weight=weight, reduction="sum") / target.numel()
    return presence, mask


def learning_rate(recipe: Recipe, step: int) -> float:
    """Warm up over 50 steps, then decay along a cosine."""
    return recipe.learning_rate * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def learn(pool: Pool, head: FastCorrelationHead, recipe: Recipe, step: int) -> dict[str, float]:
    """Add the gradients of one step's episodes; return their mean losses and presence accuracy."""
    pool.make_until(recipe.pool + step * recipe.fresh)
    episodes = pool.draw(np.random.default_rng((recipe.seed, EPISODES, step)), recipe.batch)
    # Similar covers together: a group costs as much as its support with the most tokens.
    order = pool.masks[episodes.support].float().mean(dim=(1, 2)).argsort().tolist()
    sums = {"presence": 0.0, "mask": 0.0, "accuracy": 0.0}
    for group in (order[start : start + GROUP] for start in range(0, len(order), GROUP)):
        part = episodes.take(group)
        logits = pool.judge(head, part)
        presence, mask = loss_of(logits, part.present, pool.targets(part), recipe)
        share = len(group) / recipe.batch
        torch.autograd.backward((recipe.class_weight * presence + mask) * share)
        right = (logits.presence.argmax(dim=1) == part.present).float().mean()
        for name, value in (("presence", presence), ("mask", mask), ("accuracy", right)):
            sums[name] += float(value.detach()) * share
    return sums


@torch.inference_mode()
def validate(pool: Pool, head: FastCorrelationHead, count: int) -> dict[str, float]:
    """Measure 0/1 exact ratio and mIoU, in percent, on always the same episodes of classes not trained on."""
    pool.make_until(pool.recipe.pool)
    episodes = pool.draw(np.random.default_rng((pool.recipe.seed, VALIDATION)), count)
    labels = torch.tensor([pool.photos[place // 2].label for place in episodes.support])
    intersection, union = torch.zeros(2, int(labels.max()) + 1)
    right = 0
    for start in range(0, count, GROUP):
        group = list(range(start, min(start + GROUP, count)))
        part = episodes.take(group)
        logits, target = pool.judge(head, part), pool.targets(part) == 1
        right += int((logits.presence.argmax(dim=1) == part.present).sum())
        full = F.interpolate(logits.mask, size=target.shape[1:], mode="bilinear", align_corners=True)
        found = full[:, 1] > full[:, 0]
        intersection.index_add_(0, labels[group], (found & target).sum(dim=(1, 2)).float())
        union.index_add_(0, labels[group], (found | target).sum(dim=(1, 2)).float())
    return {"exact_ratio": 100 * right / count, "miou": 100 * float((intersection / union).nanmean())}


def train(network: FewShotNetwork, photos: list[Photo], held_out: list[Photo], recipe: Recipe, files: "Files") -> None:
    """Train `network.head` in place, keeping a checkpoint and a log."""
    head = FastCorrelationHead(network.head).train()
    optimiser = torch.optim.Adam(head.parameters(), lr=recipe.learning_rate)
    first = files.resume(head, optimiser, recipe)
    pool = Pool(network, photos, recipe)
    # Another seed, and views that show most of the photograph, as users' pictures do.
    like_users = dataclasses.replace(recipe, seed=recipe.seed + 1, min_area=0.7, instance_share=0, nameless_share=0)
    judge_pool = Pool(network, held_out or photos, dataclasses.replace(like_users, pool=min(recipe.pool, 200)))
    recent: list[dict[str, float]] = []
    started = time.perf_counter()
    for step in range(first, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimiser.zero_grad()
        recent.append(learn(pool, head, recipe, step))
        optimiser.step()
        done = step + 1
        if done % files.every == 0 or done == recipe.steps:
            line = {name: sum(sums[name] for sums in recent) / len(recent) for name in recent[0]}
            line |= validate(judge_pool, head, VALIDATION_EPISODES) if held_out else {}
            files.log({"step": done, "seconds": time.perf_counter() - started, **line})
            recent.clear()
            files.save(head, optimiser, recipe, done)


@dataclass(frozen=True)
class Files:
    """Where a training keeps what it needs to go on.

    Attributes:
        output: The finished network; checkpoint and log lie beside it.
        every: Steps between two checkpoints.
    """

    output: Path
    every: int

    def log(self, line: dict[str, float]) -> None:
        """Print a line and append it to the log."""
        text = json.dumps({name: round(value, 4) for name, value in line.items()})
        print(text, flush=True)
        with self.output.with_suffix(".log.jsonl").open("a") as log:
            log.write(text + "\n")

    def save(self, head: FastCorrelationHead, optimiser: torch.optim.Adam, recipe: Recipe, step: int) -> None:
        """Replace the checkpoint."""
        content = {"step": step, "recipe": asdict(recipe), "head": head.state_dict(), "adam": optimiser.state_dict()}
        data = io.BytesIO()
        torch.save(content, data)
        atomic_write(self.output.with_suffix(".checkpoint.pt"), data.getvalue())

    def resume(self, head: FastCorrelationHead, optimiser: torch.optim.Adam, recipe: Recipe) -> int:
        """Load the checkpoint, if there is one; return the number of steps done."""
        path = self.output.with_suffix(".checkpoint.pt")
        if not path.exists():
            return 0
        content = torch.load(path, weights_only=True)
        if content["recipe"] != asdict(recipe):
            raise InputError(
                f"{path} belongs to a training with other options; delete it or give those: {content['recipe']}."
            )
        head.load_state_dict(content["head"])
        optimiser.load_state_dict(content["adam"])
        return int(content["step"])


def main() -> None:
    """Read the options, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder <class>/{images,masks}/<stem>.*")
    parser.add_argument("--init", type=Path, required=True, help="checkpoint to start from; gives the encoder too")
    parser.add_argument("--output", type=Path, required=True, help="the trained network, .safetensors (float16)")
    parser.add_argument("--classes", nargs="+", default=[], help="train on these alone")
    parser.add_argument("--hold-out", nargs="+", default=[], help="train on all but these; they are validated on")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--class-weight", type=float, default=1.0)
    parser.add_argument("--foreground-weight", type=float, default=3.0)
    parser.add_argument("--instance-share", type=float, default=0.3)
    parser.add_argument("--nameless-share", type=float, default=0.2)
    parser.add_argument("--pool", type=int, default=800)
    parser.add_argument("--fresh", type=int, default=4)
    parser.add_argument("--min-area", type=float, default=0.3)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--checkpoint-every", type=int, default=200)
    options = vars(parser.parse_args())
    torch.set_num_threads(options["threads"])
    recipe = Recipe(**{field.name: options[field.name] for field in dataclasses.fields(Recipe)})
    output: Path = options["output"]
    try:
        classes = list_classes(options["data"], options["classes"], options["hold_out"])
        network = load_network(options["init"])
        photos = read_photos(options["data"], classes)
        held_out = read_photos(options["data"], options["hold_out"])
        # A photograph of a held-out class would otherwise be seen in training under its other class.
        unseen = {photo.digest for photo in held_out}
        photos = [photo for photo in photos if photo.digest not in unseen]
        print(f"{len(photos)} pictures of {len(classes)} classes; {len(held_out)} held out", flush=True)
        train(network, photos, held_out, recipe, Files(output, options["checkpoint_every"]))
        save_network(network, output, torch.float16)
    except FsvitEdgeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
