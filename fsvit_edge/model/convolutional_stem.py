"""A convolutional network in place of a ViT's patch embedding, as in timm's hybrid ViTs.

A small ViT cannot be trained well on one computer, but a small published convolutional network is already trained: it
reads the picture at full resolution and passes one token per 16 x 16 pixels to the transformer.
"""

from collections.abc import Sequence
from typing import TypeVar

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fsvit_edge.runtime.preprocess import IMAGENET_MEAN, IMAGENET_STD

TRUNK = "tf_efficientnet_lite2"
TRUNK_MEAN, TRUNK_STD = 127 / 255, 128 / 255
"""Normalization of pixels in [0, 1] that the trunk was trained with."""
FINE_STAGES = 5
"""Number of the trunk's stages up to stride 16."""
COARSE_BLOCKS = 4
"""Number of blocks of the next stage, at stride 32, whose map is part of the tokens. The later parts of the trunk know
the class best and outlines worst, so their maps skip the transformer blocks and become layers of their own."""

_Projection = TypeVar("_Projection", nn.Linear, nn.Conv2d)


class ConvolutionalStem(nn.Module):
    """The maps of a convolutional trunk at strides 16 and 32, concatenated and projected to the width of the tokens.

    The trunk's batch norms are folded into its convolutions, so it has only weights and biases.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        trunk = timm.create_model(TRUNK, pretrained=False, num_classes=0).eval()
        self.fine, self.coarse, late = trunk_stages(trunk)
        self.project = nn.Conv2d(sum(_width(part) for part in (self.fine, self.coarse)), dim, 1)
        self.late = nn.ModuleList(late)  # the last parts of the trunk, also at stride 32
        self.project_late = nn.ModuleList([passing_on(nn.Conv2d, _width(part), dim, 1) for part in late])

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, dim, S / 16, S / 16) for (B, 3, S, S) pictures, normalized with ImageNet mean and deviation."""
        return self.patches(self.maps(image))

    def maps(self, image: Tensor) -> list[Tensor]:
        """Return the trunk's last map at each of the strides 4, 8, 16 and 32, for such pictures."""
        x = renormalize(image)
        last: dict[int, Tensor] = {}  # by side
        for stage in self.fine:
            x = stage(x)
            last[x.shape[-1]] = x
        return [*[*last.values()][-3:], self.coarse(x)]

    def patches(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the result of `forward`, from the result of `maps`."""
        return torch.as_tensor(self.project(joined(*maps[-2:])))

    def late_maps(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the map of each late part, (B, channels, S / 32, S / 32), from the result of `maps`."""
        x, found = maps[-1], []
        for part in self.late:
            x = part(x)
            found.append(x)
        return found

    def late_tokens(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the tokens (B, late, 1 + N, dim) of the late parts, from the result of `maps`; token 0 is the mean."""
        grid = maps[-2].shape[-2:]
        layers = []
        for late, project in zip(self.late_maps(maps), self.project_late, strict=True):
            projected = project(late)  # B, dim, S / 32, S / 32
            image = F.interpolate(projected, size=grid, mode="bilinear", align_corners=False)  # B, dim, S / 16, S / 16
            layers.append(torch.cat([projected.mean(dim=(2, 3))[..., None], image.flatten(2)], dim=2))  # B, dim, 1 + N
        return torch.stack(layers, dim=1).transpose(2, 3)  # B, late, 1 + N, dim

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of channels of each of `maps`."""
        with torch.no_grad():
            return tuple(level.shape[1] for level in self.maps(torch.zeros(1, 3, 64, 64)))


class ConvolutionalPatches(nn.Module):
    """The stem as an `embed_layer` of timm's VisionTransformer, which passes more arguments than it needs."""

    def __init__(self, img_size: int, patch_size: int, embed_dim: int, **_others: object) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = ConvolutionalStem(embed_dim)

    def forward(self, image: Tensor) -> Tensor:
        """Return the tokens (B, N, embed_dim) of (B, 3, S, S) pictures."""
        return torch.as_tensor(self.proj(image).flatten(2).transpose(1, 2))


def joined(fine: Tensor, coarse: Tensor) -> Tensor:
    """Concatenate the channels of a fine map and of a coarse one, which is resized to the fine one."""
    return torch.cat([fine, F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)], dim=1)


def renormalize(image: Tensor) -> Tensor:
    """Convert pictures (B, 3, S, S) from the ImageNet normalization to that of the trunk.

    This cannot be folded into the first convolution, whose zero padding must stay 0 in the normalization of the trunk.
    """
    std = torch.tensor(IMAGENET_STD, dtype=image.dtype, device=image.device)
    mean = torch.tensor(IMAGENET_MEAN, dtype=image.dtype, device=image.device)
    scale, shift = std / TRUNK_STD, (mean - TRUNK_MEAN) / TRUNK_STD
    return image * scale[:, None, None] + shift[:, None, None]


def trunk_stages(trunk: nn.Module) -> tuple[nn.Sequential, nn.Sequential, list[nn.Sequential]]:
    """Cut timm's EfficientNet into the part up to stride 16, the part at stride 32, and two late parts.

    Batch norms are folded in place, so `trunk` must not be used afterwards. The first late part is the rest of the
    stage that is cut, the second is the last stage.
    """
    fold_batch_norms(trunk.eval())
    stages = list(trunk.get_submodule("blocks").children())
    first = [trunk.get_submodule(name) for name in ("conv_stem", "bn1")]
    cut, *rest = (list(stage.children()) for stage in stages[FINE_STAGES:])
    late = [nn.Sequential(*blocks) for blocks in (cut[COARSE_BLOCKS:], *rest)]
    return nn.Sequential(*first, *stages[:FINE_STAGES]), nn.Sequential(*cut[:COARSE_BLOCKS]), late


def fold_batch_norms(module: nn.Module) -> None:
    """Fold each batch norm of timm's into the convolution before it; the activation of the batch norm stays."""
    convolution = ""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            convolution = name
        elif isinstance(child, nn.BatchNorm2d):
            setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), child))
            setattr(module, name, child.get_submodule("act"))
        else:
            fold_batch_norms(child)


def passing_on(kind: type[_Projection], *shape: int) -> _Projection:
    """Make a linear layer or 1 x 1 convolution that passes its first channels on, until a backbone is whitened."""
    # Without skip_init, the layer would draw random numbers for weights that are overwritten below, and every layer
    # made after it from the same seed would have other weights.
    project: _Projection = nn.utils.skip_init(kind, *shape)  # type: ignore[no-untyped-call]  # torch gives no types
    nn.init.eye_(project.weight.flatten(1))
    assert project.bias is not None
    nn.init.zeros_(project.bias)
    return project


def _width(part: nn.Sequential) -> int:
    """Return the number of output channels of a part: that of its last convolution."""
    return [module for module in part.modules() if isinstance(module, nn.Conv2d)][-1].out_channels
