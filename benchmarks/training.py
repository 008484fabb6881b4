"""Measure how much time cached tokens save in training, and the peak memory: ViT-S/8 at 400 px, 12 episodes per step.

    python benchmarks/training.py

It alternates a training step from the cache with the encoder runs that the cache saves, in one process. The weights are
random, which does not change the speed. An episode has two pictures, which training without a cache encodes every time.
"""

import platform
import resource
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from fsvit_edge.learn.episode_module import EpisodeModule
from fsvit_edge.learn.folder import FolderFewShot
from fsvit_edge.learn.options import TrainOptions
from fsvit_edge.learn.tokens import TokenCache
from fsvit_edge.learn.training_episodes import Episodes, choose_split
from fsvit_edge.model.config import ModelConfig
from fsvit_edge.model.network import FewShotNetwork, normalize
from fsvit_edge.runtime.pictures import write_image
from fsvit_edge.runtime.preprocess import resize_image

THREADS = 2
SIZE = 400
BATCH = 12
REPEATS = 5
COVER = 0.3


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    network = FewShotNetwork(ModelConfig("vit-s8-random", "vit_small_patch8_224.dino", SIZE))
    options = TrainOptions(validation_fraction=0.01)
    with tempfile.TemporaryDirectory() as folder:
        data = _pictures(Path(folder) / "data")
        cache = TokenCache(network, Path(folder) / "cache")
        cache.fill(data)
        before_mb = _peak_mb()
        model = EpisodeModule(network, options, {}, None, 2)
        optimizer = torch.optim.Adam(model.head.parameters(), lr=options.learning_rate)
        episodes = Episodes(data, cache, options, choose_split(data, options), epoch=0)
        episodes.count = BATCH
        encoding, stepping = [], []
        for _ in range(REPEATS):
            started = time.perf_counter()
            batch = next(iter(DataLoader(episodes, BATCH)))
            logits, asked = model(batch)
            optimizer.zero_grad()
            torch.autograd.backward(model.loss_of(logits, asked, batch.present))
            optimizer.step()
            stepping.append(time.perf_counter() - started)
            del batch, logits, asked
            encoding.append(_encode(network, data.read_image(0)))
    step, encoder = statistics.median(stepping), 2 * BATCH * statistics.median(encoding)
    print(f"{platform.machine()}, {THREADS} threads, torch {version('torch')}, medians of {REPEATS}")
    print(f"step of {BATCH} episodes from cached tokens: {step:.1f} s ({min(stepping):.1f} to {max(stepping):.1f})")
    print(f"encoder runs saved by the cache: {encoder:.1f} s")
    print(f"an epoch with cached tokens is {(encoder + step) / step:.1f} x as fast as without")
    print(f"peak memory: {_peak_mb() / 1e3:.1f} GB ({before_mb / 1e3:.1f} GB before the first step)")


def _pictures(root: Path) -> FolderFewShot:
    rng = np.random.default_rng(0)
    side = round(SIZE * COVER**0.5)
    for name in ("cup", "key"):
        for number in range(2):
            mask = np.zeros((SIZE, SIZE, 3), np.uint8)
            mask[:side, :side] = 255
            write_image(root / name / "images" / f"{number}.png", rng.integers(0, 256, mask.shape, dtype=np.uint8))
            write_image(root / name / "masks" / f"{number}.png", mask)
    return FolderFewShot(root)


def _encode(network: FewShotNetwork, picture: npt.NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        network.encoder(normalize(torch.from_numpy(resize_image(picture, SIZE))[None]))
    return time.perf_counter() - started


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
