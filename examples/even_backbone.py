"""Even the directions of a hybrid backbone's tokens, so that cosines between them tell what they know.

    python examples/even_backbone.py --checkpoint NETWORK.safetensors --photos DIR DIR ... --output EVENED.safetensors

The tokens of all blocks on photographs are centered, and turned to their principal components, each divided by the
eighth root of its variance: the largest outweigh the rest less, and the smallest, which are noise, stay small. No label
is read. What was trained on the tokens of before (a head) does not fit those of after, and objectness, which
reads the stem alone, does.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

from fsvit_edge.model.checkpoint import load_network, save_network
from fsvit_edge.model.encoder import Encoder, EvenedNorm
from fsvit_edge.model.network import normalise
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
    save_network(network, options.output)
    print(f"Wrote {options.output}, evened on {len(photos)} photographs.")


@torch.inference_mode()
def tokens_of(encoder: Encoder, photos: list[Path]) -> np.ndarray:
    """Give (n, D) image tokens of all blocks, some of each photograph."""
    rng = np.random.default_rng(0)
    found = []
    for start in range(0, len(photos), _BATCH):
        pictures = [
            resize_image(cv2.imread(str(path))[..., ::-1], encoder.image_size)
            for path in photos[start : start + _BATCH]
        ]
        tokens = encoder(normalise(torch.from_numpy(np.stack(pictures)))).tokens[:, :, 1:]
        drawn = rng.permutation(tokens.shape[2])[:TOKENS_A_PICTURE]
        found.append(tokens[:, :, drawn].flatten(0, 2).numpy())
    return np.concatenate(found)


@torch.no_grad()
def even(encoder: Encoder, tokens: np.ndarray) -> None:
    """Set the backbone's final projection by what the tokens (n, D) are like under the present one."""
    norm = encoder.vit.norm
    if not isinstance(norm, EvenedNorm):
        raise InputError("Only the hybrid backbone has a projection behind its final norm.")
    mean = tokens.mean(axis=0)
    variance, directions = np.linalg.eigh(np.cov((tokens - mean).T))
    strength = np.maximum(variance, LEAST_VARIANCE * variance.max()) ** -0.125
    turn = (directions * strength)[:, ::-1]  # the largest first, so that the first attention head has them
    turn = torch.from_numpy(turn / ((tokens - mean) @ turn).std())
    weight, bias = norm.project.weight.double(), norm.project.bias.double()
    # In half precision, so that a head is trained on what will be shipped.
    norm.project.weight.copy_((turn.T @ weight).half())
    norm.project.bias.copy_((turn.T @ (bias - torch.from_numpy(mean))).half())


if __name__ == "__main__":
    main()
