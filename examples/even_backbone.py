"""Even the directions of a hybrid backbone's tokens, so that cosines between them tell what they know.

    python examples/even_backbone.py --checkpoint NETWORK.safetensors --photos DIR DIR ... --output EVENED.safetensors

The tokens of all blocks on photographs are centered, and turned to their principal components, each divided by the
eighth root of its variance: the largest outweigh the rest less, and the smallest, which are noise, stay small. So are
the maps of the stem's late parts, of which the strongest directions are kept. No label is read. What was trained on the
tokens of before (a head) does not fit those of after, and objectness, which reads the stem alone, does.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from fsvit_edge.model.checkpoint import load_network, save_network
from fsvit_edge.model.convolutional_stem import ConvolutionalStem
from fsvit_edge.model.encoder import Encoder, EvenedNorm
from fsvit_edge.model.network import normalize
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.preprocess import resize_image

TOKENS_A_PICTURE = 32
LEAST_VARIANCE = 1e-3
"""Of the largest; what varies less is not made stronger than that."""
_BATCH = 16


def main() -> None:
    """Read the options, even the backbone, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="network with the hybrid backbone")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of photographs")
    parser.add_argument("--output", type=Path, required=True, help=".safetensors")
    options = parser.parse_args()
    network = load_network(options.checkpoint)
    photos = sorted(path for folder in options.photos for path in folder.rglob("*.jpg"))
    if not photos:
        raise InputError(f"There is no .jpg in {', '.join(map(str, options.photos))}.")
    even(network.encoder, tokens_of(network.encoder, photos))
    even_late(network.encoder, late_maps_of(network.encoder, photos))
    save_network(network, options.output)
    print(f"Wrote {options.output}, evened on {len(photos)} photographs.")


@torch.inference_mode()
def tokens_of(encoder: Encoder, photos: list[Path]) -> np.ndarray:
    """Give (n, D) image tokens of all blocks, some of each photograph."""
    rng = np.random.default_rng(0)
    found = []
    for pictures in batches_of(encoder, photos):
        tokens = encoder(pictures).tokens[:, -len(encoder.vit.blocks) :, 1:]
        drawn = rng.permutation(tokens.shape[2])[:TOKENS_A_PICTURE]
        found.append(tokens[:, :, drawn].flatten(0, 2).numpy())
    return np.concatenate(found)


@torch.inference_mode()
def late_maps_of(encoder: Encoder, photos: list[Path]) -> list[np.ndarray]:
    """Give (n, channels) of the map of each late part of the stem, all places of each photograph."""
    stem = stem_of(encoder)
    found: list[list[np.ndarray]] = [[] for _ in stem.late]
    for pictures in batches_of(encoder, photos):
        for late, maps in zip(stem.late_maps(stem.maps(pictures)), found, strict=True):
            maps.append(late.flatten(2).transpose(1, 2).flatten(0, 1).numpy())
    return [np.concatenate(maps) for maps in found]


def batches_of(encoder: Encoder, photos: list[Path]) -> Iterator[torch.Tensor]:
    """Give (B, 3, S, S) of the photographs, as the encoder takes them."""
    for start in range(0, len(photos), _BATCH):
        pictures = [
            resize_image(cv2.imread(str(path))[..., ::-1], encoder.image_size)
            for path in photos[start : start + _BATCH]
        ]
        yield normalize(torch.from_numpy(np.stack(pictures)))


def stem_of(encoder: Encoder) -> ConvolutionalStem:
    """Give the hybrid's stem."""
    if encoder.stem is None:
        raise InputError("Only the hybrid backbone has a projection behind its final norm.")
    return encoder.stem


@torch.no_grad()
def even(encoder: Encoder, tokens: np.ndarray) -> None:
    """Set the backbone's final projection by what the tokens (n, D) are like under the present one."""
    stem_of(encoder)
    norm = encoder.vit.norm
    assert isinstance(norm, EvenedNorm)
    mean, turn = evened(tokens, encoder.embed_dim)
    weight, bias = norm.project.weight.double(), norm.project.bias.double()
    # In half precision, so that a head is trained on what will be shipped.
    norm.project.weight.copy_((turn.T @ weight).half())
    norm.project.bias.copy_((turn.T @ (bias - mean)).half())


@torch.no_grad()
def even_late(encoder: Encoder, maps: list[np.ndarray]) -> None:
    """Set the projections of the stem's late parts by what their maps (n, channels) are like."""
    for project, channels in zip(stem_of(encoder).project_late, maps, strict=True):
        assert isinstance(project, nn.Conv2d)
        assert project.bias is not None
        mean, turn = evened(channels, encoder.embed_dim)
        project.weight.copy_(turn.T[..., None, None].half())
        project.bias.copy_((-turn.T @ mean).half())


def evened(vectors: np.ndarray, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the mean of vectors (n, channels), and (channels, dim) to multiply with what is left."""
    mean = vectors.mean(axis=0)
    variance, directions = np.linalg.eigh(np.cov((vectors - mean).T))
    strength = np.maximum(variance, LEAST_VARIANCE * variance.max()) ** -0.125
    turn = (directions * strength)[:, : -dim - 1 : -1]  # the largest first
    return torch.from_numpy(mean).double(), torch.from_numpy(turn / ((vectors - mean) @ turn).std())


if __name__ == "__main__":
    main()
