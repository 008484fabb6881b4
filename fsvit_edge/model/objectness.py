"""Objectness: how likely each pixel belongs to an object, of whatever class.

CST finds the object on a grid of tokens, but not its exact outline, because a token covers 16 x 16 pixels. The
convolutional stem computes maps at strides 4 and 8 before the tokens; from these, a light decoder separates objects
from background. It is trained to imitate a saliency network, see `examples/train_objectness.py`.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 4
"""Input pixels per output value, in each direction."""
WIDTHS = (32, 64, 96, 128)
"""Channels of the decoder at strides 4, 8, 16 and 32."""
DEPTHS = (1, 1, 2, 3)
"""Number of depthwise blocks at strides 4, 8, 16 and 32."""


class ObjectnessDecoder(nn.Module):
    """Works from coarse to fine: enlarge the features so far, add the stem's map, apply a few depthwise blocks.

    Args:
        channels: Channels of the stem's maps at strides 4, 8, 16 and 32.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(have, width, 1) for have, width in zip(channels, WIDTHS, strict=True)])
        self.narrow = nn.ModuleList([nn.Conv2d(coarse, fine, 1) for fine, coarse in itertools.pairwise(WIDTHS)])
        self.everywhere = nn.Conv2d(WIDTHS[-1], WIDTHS[-1], 1)
        blocks = [[_DepthwiseBlock(width) for _ in range(depth)] for width, depth in zip(WIDTHS, DEPTHS, strict=True)]
        self.mix = nn.ModuleList([nn.Sequential(*of_level) for of_level in blocks])
        self.out = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, S / 4, S / 4) for `ConvolutionalStem.maps`, (B, channels, S / stride, S / stride) each."""
        x = self.lateral[-1](maps[-1])  # B, 128, S / 32, S / 32
        x = x + self.everywhere(x.mean(dim=(2, 3), keepdim=True))  # add what the whole picture shows to every place
        x = self.mix[-1](x)
        for level in reversed(range(len(WIDTHS) - 1)):
            fine = self.lateral[level](maps[level])  # B, width, S / stride, S / stride
            coarse = self.narrow[level](x)
            x = fine + F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
            x = self.mix[level](x)
        return torch.as_tensor(self.out(x))[:, 0]


class _DepthwiseBlock(nn.Module):
    """A 5 x 5 depthwise convolution, then two 1 x 1 convolutions through twice the width, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.widen = nn.Conv2d(width, 2 * width, 1)
        self.project = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, width, h, w)."""
        return torch.as_tensor(x + self.project(F.relu(self.widen(self.depthwise(x)))))
