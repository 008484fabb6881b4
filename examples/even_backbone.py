"""Partly whiten the tokens of a hybrid backbone, so that their cosines use all of their information.

    python examples/even_backbone.py --checkpoint NETWORK.safetensors --photos DIR DIR ... --output EVENED.safetensors

The tokens of all blocks on photographs are centered and rotated to their principal components, each divided by the
eighth root of its variance: the largest ones dominate less, and the smallest ones, which are noise, stay small. The
maps of the stem's late parts are treated alike; only their strongest directions are kept. No labels are needed. A head
that was trained on the old tokens does not fit the new ones; the objectness decoder, which reads only the stem, still
does.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fsvit_edge.model.checkpoint import load_network, save_network
from fsvit_edge.model.convolutional_stem import ConvolutionalStem
from fsvit_edge.model.encoder import Encoder, EvenedNorm
from fsvit_edge.model.network import normalize
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.preprocess import resize_image

TOKENS_PER_PICTURE = 32
LEAST_VARIANCE = 1e-3
"""Relative to the largest variance; directions with less variance are not amplified more."""
_BATCH = 16


def main() -> None:
    """Read the options, whiten the backbone, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="network with the hybrid backbone")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of photographs")
    parser.add_argument("--output", type=Path, required=True, help=".safetensors")
    options = parser.parse_args()
    network = load_network(options.checkpoint)
    photos = sorted(path for folder in options.photos for path in folder.rglob("*.jpg"))
    if not photos:
        raise InputError(f"No .jpg files in {', '.join(map(str, options.photos))}.")
    even(network.encoder, tokens_of(network.encoder, photos))
    even_late(network.encoder, late_maps_of(network.encoder, photos))
    save_network(network, options.output)
    print(f"Wrote {options.output}, whitened on {len(photos)} photographs.")


@torch.inference_mode()
def tokens_of(encoder: Encoder, photos: list[Path]) -> np.ndarray:
    """Return (n, D) image tokens of all blocks, a random sample from each photograph."""
    rng = np.random.default_rng(0)
    found = []
    for pictures in batches_of(encoder, photos):
        tokens = encoder(pictures).tokens[:, -len(encoder.vit.blocks) :, 1:]
        drawn = rng.permutation(tokens.shape[2])[:TOKENS_PER_PICTURE]
        found.append(tokens[:, :, drawn].flatten(0, 2).numpy())
    return np.concatenate(found)


@torch.inference_mode()
def late_maps_of(encoder: Encoder, photos: list[Path]) -> list[np.ndarray]:
    """Return (n, channels) for each late part of the stem: the values of its maps at all places of all photographs."""
    stem = stem_of(encoder)
    found: list[list[np.ndarray]] = [[] for _ in stem.late]
    for pictures in batches_of(encoder, photos):
        for late, maps in zip(stem.late_maps(stem.maps(pictures)), found, strict=True):
            maps.append(late.flatten(2).transpose(1, 2).flatten(0, 1).numpy())
    return [np.concatenate(maps) for maps in found]


def batches_of(encoder: Encoder, photos: list[Path]) -> Iterator[torch.Tensor]:
    """Yield batches (B, 3, S, S) of the photographs, normalized for the encoder."""
    for start in range(0, len(photos), _BATCH):
        pictures = [resize_image(_read(path), encoder.image_size) for path in photos[start : start + _BATCH]]
        yield normalize(torch.from_numpy(np.stack(pictures)))


def _read(path: Path) -> npt.NDArray[np.uint8]:
    bgr = cv2.imread(str(path))
    if bgr is None:
        raise InputError(f"{path} is not a readable picture.")
    return bgr[..., ::-1].astype(np.uint8)


def stem_of(encoder: Encoder) -> ConvolutionalStem:
    """Return the stem of the hybrid backbone."""
    if encoder.stem is None:
        raise InputError("Only the hybrid backbone has a projection after its final norm.")
    return encoder.stem


@torch.no_grad()
def even(encoder: Encoder, tokens: np.ndarray) -> None:
    """Set the projection after the final norm from tokens (n, D) made with the current projection."""
    stem_of(encoder)
    norm = encoder.vit.norm
    assert isinstance(norm, EvenedNorm)
    mean, turn = evened(tokens, encoder.embed_dim)
    weight, bias = norm.project.weight.double(), norm.project.bias.double()
    # Rounded to half precision, so that a head is trained on the weights that will be distributed.
    norm.project.weight.copy_((turn.T @ weight).half())
    norm.project.bias.copy_((turn.T @ (bias - mean)).half())


@torch.no_grad()
def even_late(encoder: Encoder, maps: list[np.ndarray]) -> None:
    """Set the projections of the stem's late parts from the values (n, channels) of their maps."""
    for project, channels in zip(stem_of(encoder).project_late, maps, strict=True):
        assert isinstance(project, nn.Conv2d)
        assert project.bias is not None
        mean, turn = evened(channels, encoder.embed_dim)
        project.weight.copy_(turn.T[..., None, None].half())
        project.bias.copy_((-turn.T @ mean).half())


def evened(vectors: np.ndarray, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of vectors (n, channels), and the (channels, dim) matrix that whitens the centered vectors."""
    mean = vectors.mean(axis=0)
    variance, directions = np.linalg.eigh(np.cov((vectors - mean).T))
    strength = np.maximum(variance, LEAST_VARIANCE * variance.max()) ** -0.125
    turn = (directions * strength)[:, : -dim - 1 : -1]  # the largest first
    return torch.from_numpy(mean).double(), torch.from_numpy(turn / ((vectors - mean) @ turn).std())


if __name__ == "__main__":
    main()
