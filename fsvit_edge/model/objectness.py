"""Objectness: how much each pixel belongs to a thing, whatever it is.

CST says which thing, on a grid of tokens; where the thing ends it cannot say, because a token covers 16 x 16 pixels.
The convolutional stem computes maps at strides 4 and 8 on its way to the tokens, from which a light decoder tells
things from what is behind them. Its teacher is a saliency network, see `examples/train_objectness.py`.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.model.convolutional_stem import ConvolutionalStem

STRIDE = 4
"""Pixels of the input a side that share a value."""
WIDTHS = (32, 64, 96, 128)
"""Channels of the decoder at strides 4, 8, 16 and 32."""
DEPTHS = (1, 1, 2, 3)
"""Blocks there."""


class ObjectnessDecoder(nn.Module):
    """From coarse to fine: what is known so far, enlarged, plus the stem's own map, then a few depthwise blocks.

    Args:
        channels: Of the stem's maps at strides 4, 8, 16 and 32.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(have, width, 1) for have, width in zip(channels, WIDTHS, strict=True)])
        self.narrow = nn.ModuleList([nn.Conv2d(coarse, fine, 1) for fine, coarse in itertools.pairwise(WIDTHS)])
        self.everywhere = nn.Conv2d(WIDTHS[-1], WIDTHS[-1], 1)
        self.mix = nn.ModuleList(
            [
                nn.Sequential(*(_DepthwiseBlock(width) for _ in range(depth)))
                for width, depth in zip(WIDTHS, DEPTHS, strict=True)
            ]
        )
        self.out = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Give logits (B, S / 4, S / 4).

        Args:
            maps: Of `ConvolutionalStem.maps`: (B, channels, S / stride, S / stride) at strides 4, 8, 16 and 32.
        """
        x = self.lateral[-1](maps[-1])
        x = x + self.everywhere(x.mean(dim=(2, 3), keepdim=True))
        x = self.mix[-1](x)
        for level in reversed(range(len(WIDTHS) - 1)):
            fine = self.lateral[level](maps[level])
            coarse = self.narrow[level](x)
            x = fine + F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
            x = self.mix[level](x)
        return torch.as_tensor(self.out(x))[:, 0]


class ObjectnessNetwork(nn.Module):
    """Stem and decoder as a network of their own, beside a backbone that has no such stem.

    Args:
        stem: The stem.
        decoder: The decoder.
    """

    def __init__(self, stem: ConvolutionalStem, decoder: ObjectnessDecoder) -> None:
        super().__init__()
        self.stem = stem
        self.decoder = decoder

    def forward(self, image: Tensor) -> Tensor:
        """Give logits (B, S / 4, S / 4) of (B, 3, S, S) pictures, normalized with the ImageNet mean and deviation."""
        return torch.as_tensor(self.decoder(self.stem.maps(image)))


class _DepthwiseBlock(nn.Module):
    """A 5 x 5 depthwise convolution, then two 1 x 1 convolutions over twice the width; added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.widen = nn.Conv2d(width, 2 * width, 1)
        self.project = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, width, h, w)."""
        return torch.as_tensor(x + self.project(F.relu(self.widen(self.depthwise(x)))))
