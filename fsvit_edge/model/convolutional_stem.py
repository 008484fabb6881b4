"""A convolutional network in the place of a ViT's patch embedding, as in timm's hybrid ViTs.

What a small ViT cannot learn on a desk, a small published network already knows: it looks at the picture in its full
resolution and hands the transformer one token for each 16 x 16 pixels.
"""

from collections.abc import Sequence
from typing import TypeVar

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.runtime.preprocess import IMAGENET_MEAN, IMAGENET_STD

TRUNK = "tf_efficientnet_lite2"
TRUNK_MEAN, TRUNK_STD = 127 / 255, 128 / 255
"""What its authors normalized pixels in [0, 1] with."""
FINE_STAGES = 5
"""Of the trunk's stages, as many end at stride 16."""
COARSE_BLOCKS = 4
"""Of the next stage, at stride 32, whose map the tokens begin with. What comes after knows the class best and outlines
worst, so it does not go through the blocks but stands beside them."""

_Projection = TypeVar("_Projection", nn.Linear, nn.Conv2d)


class ConvolutionalStem(nn.Module):
    """Features at strides 16 and 32 of a convolutional trunk, side by side, projected to the width of the tokens.

    The trunk's batch norms are folded into its convolutions, so it has nothing but weights and biases.

    Args:
        dim: Width of the tokens.

    Attributes:
        late: The trunk's parts behind that, at stride 32 too.
        project_late: From the map of each to the width of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        trunk = timm.create_model(TRUNK, pretrained=False, num_classes=0).eval()
        self.fine, self.coarse, late = trunk_stages(trunk)
        self.project = nn.Conv2d(sum(_width(part) for part in (self.fine, self.coarse)), dim, 1)
        self.late = nn.ModuleList(late)
        self.project_late = nn.ModuleList([passing_on(nn.Conv2d, _width(part), dim, 1) for part in late])

    def forward(self, image: Tensor) -> Tensor:
        """Give (B, dim, S / 16, S / 16) of (B, 3, S, S) pictures, normalized with the ImageNet mean and deviation."""
        return self.patches(self.maps(image))

    def maps(self, image: Tensor) -> list[Tensor]:
        """Give the trunk's last map at each of the strides 4, 8, 16 and 32, of such pictures."""
        x = renormalize(image)
        last: dict[int, Tensor] = {}
        for stage in self.fine:
            x = stage(x)
            last[x.shape[-1]] = x
        return [*[*last.values()][-3:], self.coarse(x)]

    def patches(self, maps: Sequence[Tensor]) -> Tensor:
        """Give what `forward` gives, of the trunk's maps."""
        return torch.as_tensor(self.project(joined(*maps[-2:])))

    def late_maps(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Give what each late part says, (B, channels, S / 32, S / 32), of the trunk's maps."""
        x, found = maps[-1], []
        for part in self.late:
            x = part(x)
            found.append(x)
        return found

    def late_tokens(self, maps: Sequence[Tensor]) -> Tensor:
        """Give the tokens (B, late, 1 + N, dim) of the late parts, of the trunk's maps; the first is the map's mean."""
        grid = maps[-2].shape[-2:]
        layers = []
        for late, project in zip(self.late_maps(maps), self.project_late, strict=True):
            told = project(late)
            image = F.interpolate(told, size=grid, mode="bilinear", align_corners=False)
            layers.append(torch.cat([told.mean(dim=(2, 3))[..., None], image.flatten(2)], dim=2))
        return torch.stack(layers, dim=1).transpose(2, 3)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each of `maps`."""
        with torch.no_grad():
            return tuple(level.shape[1] for level in self.maps(torch.zeros(1, 3, 64, 64)))


class ConvolutionalPatches(nn.Module):
    """What timm's VisionTransformer asks for as `embed_layer`, around the stem.

    Args:
        img_size: Side of the picture for which the position embedding is made.
        patch_size: Pixels a token a side: 16.
        embed_dim: Width of the tokens.
        others: What else timm hands over, of no meaning here.
    """

    def __init__(self, img_size: int, patch_size: int, embed_dim: int, **others: object) -> None:
        super().__init__()
        del others
        self.patch_size = (patch_size, patch_size)
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = ConvolutionalStem(embed_dim)

    def forward(self, image: Tensor) -> Tensor:
        """Give the tokens (B, N, embed_dim) of (B, 3, S, S) pictures."""
        return torch.as_tensor(self.proj(image).flatten(2).transpose(1, 2))


def joined(fine: Tensor, coarse: Tensor) -> Tensor:
    """Put the maps of both strides side by side, the coarse one enlarged."""
    return torch.cat([fine, F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)], dim=1)


def renormalize(image: Tensor) -> Tensor:
    """From the ImageNet mean and deviation, (B, 3, S, S), to the trunk's.

    Not folded into the first convolution: that pads with zeros, which are the trunk's gray and not ImageNet's.
    """
    std = torch.tensor(IMAGENET_STD, dtype=image.dtype, device=image.device)
    mean = torch.tensor(IMAGENET_MEAN, dtype=image.dtype, device=image.device)
    scale, shift = std / TRUNK_STD, (mean - TRUNK_MEAN) / TRUNK_STD
    return image * scale[:, None, None] + shift[:, None, None]


def trunk_stages(trunk: nn.Module) -> tuple[nn.Sequential, nn.Sequential, list[nn.Sequential]]:
    """Cut timm's EfficientNet into the parts up to strides 16 and 32 and the late ones; it is used up.

    Batch norms are folded. Of the late parts the first ends the stage that is cut, the second is the last stage.
    """
    fold_batch_norms(trunk)
    stages = list(trunk.get_submodule("blocks").children())
    first = [trunk.get_submodule(name) for name in ("conv_stem", "bn1")]
    cut = list(stages[FINE_STAGES].children())
    late = [
        nn.Sequential(*cut[COARSE_BLOCKS:]),
        *(nn.Sequential(*stage.children()) for stage in stages[FINE_STAGES + 1 :]),
    ]
    return nn.Sequential(*first, *stages[:FINE_STAGES]), nn.Sequential(*cut[:COARSE_BLOCKS]), late


def fold_batch_norms(module: nn.Module) -> None:
    """Put each batch norm of timm's into the convolution before it; its activation stays in its place."""
    convolution: nn.Conv2d | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            convolution = child
        elif isinstance(child, nn.BatchNorm2d):
            # timm's have no bias of their own.
            assert convolution is not None
            assert child.running_mean is not None
            assert child.running_var is not None
            scale = (child.weight / (child.running_var + child.eps).sqrt()).detach()
            convolution.weight = nn.Parameter(convolution.weight.detach() * scale[:, None, None, None])
            convolution.bias = nn.Parameter(child.bias.detach() - child.running_mean * scale)
            setattr(module, name, child.get_submodule("act"))
        else:
            fold_batch_norms(child)


def passing_on(kind: type[_Projection], *shape: int) -> _Projection:
    """Make a linear layer or a 1 x 1 convolution that passes on its first channels, until a backbone is evened."""
    # The layer alone draws random numbers for weights that are set below, and all that is made after it, from the same
    # seed, would be other networks.
    project: _Projection = nn.utils.skip_init(kind, *shape)  # type: ignore[no-untyped-call]  # torch gives no types
    nn.init.eye_(project.weight.flatten(1))
    assert project.bias is not None
    nn.init.zeros_(project.bias)
    return project


def _width(part: nn.Sequential) -> int:
    """Channels that come out of a part: those of its last convolution."""
    convolutions: Sequence[nn.Conv2d] = [module for module in part.modules() if isinstance(module, nn.Conv2d)]
    return convolutions[-1].out_channels
