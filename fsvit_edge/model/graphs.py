"""The graphs of a bundle, as modules that torch can trace, with the names of their inputs and outputs.

image -> encoder -> tokens, norms, class_token, class_query, image_keys, and objectness where the stem tells it
(those) + mask   -> enroll -> one cached support
tokens + cached supports -> head -> P(present), P(foreground) of each class
image -> objectness, a graph of its own where the encoder has none and one is wanted
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from fsvit_edge import __version__
from fsvit_edge.model.config import POOLED_GRID
from fsvit_edge.model.fast_head import FastCorrelationHead, Supports, cache_supports
from fsvit_edge.model.head import channel_vectors
from fsvit_edge.model.network import FewShotNetwork, normalize
from fsvit_edge.model.objectness import ObjectnessNetwork
from fsvit_edge.model.prototype_head import PrototypeHead
from fsvit_edge.model.pseudo_mask import pseudo_mask
from fsvit_edge.runtime.bundle import FORMAT_VERSION, GraphInfo, Manifest
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.preprocess import DESCRIPTION, IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class GraphSpec:
    """A module with what the tracer needs to know.

    Attributes:
        module: What to trace.
        example: Inputs by name, in order.
        outputs: Names in order.
        dynamic: Input name -> axis -> name of the size that varies.
    """

    module: nn.Module
    example: dict[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]]

    def dynamic_shapes(self) -> tuple[dict[int, Dim], ...]:
        """The varying axes as torch.export wants them, one table per input."""
        names = {name for axes in self.dynamic.values() for name in axes.values()}
        dims = {name: Dim(name, min=1, max=4096) for name in sorted(names)}
        return tuple({axis: dims[name] for axis, name in self.dynamic.get(key, {}).items()} for key in self.example)


class EncoderGraph(nn.Module):
    """uint8 pictures -> what enrollment and head need; normalization is inside, so no caller can get it wrong."""

    position: Tensor

    def __init__(self, network: FewShotNetwork) -> None:
        super().__init__()
        self.encoder = network.encoder
        self.objectness = network.objectness
        self.register_buffer("position", network.encoder.position().detach().clone())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Encode (B, S, S, 3) uint8 RGB.

        Returns:
            tokens (B, C, N, d) L2-normalized image tokens, norms (B, C, N, 1) what they were divided by,
            class_token (B, C, 1, d) as it is, class_query (B, heads, D / heads), image_keys (B, heads, N, D / heads);
            and, where the network has a decoder for it, objectness (B, S / 4, S / 4), logits.
        """
        pixels = normalize(image)
        objectness: tuple[Tensor, ...] = ()
        maps = None
        if self.objectness is not None:
            assert self.encoder.stem is not None
            maps = self.encoder.stem.maps(pixels)
            objectness = (self.objectness(maps),)
        output = self.encoder(pixels, self.position, maps)
        vectors = channel_vectors(output.tokens, self.encoder.num_slices)
        norms = vectors[:, :, 1:].norm(dim=-1, keepdim=True).clamp_min(1e-12)
        tokens = vectors[:, :, 1:] / norms
        return tokens, norms, vectors[:, :, :1], output.class_query, output.image_keys, *objectness


class ObjectnessGraph(nn.Module):
    """uint8 pictures -> objectness, beside an encoder that does not tell it.

    The picture is brought to the side for which the network was trained: at another, things have another size in it.

    Args:
        network: Stem and decoder.
        size: That side in pixels.
    """

    def __init__(self, network: ObjectnessNetwork, size: int) -> None:
        super().__init__()
        self.network = network
        self.size = (size, size)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Give logits (B, size / 4, size / 4) of (B, S, S, 3) uint8 RGB."""
        pixels = F.interpolate(normalize(image), size=self.size, mode="bilinear", align_corners=False)
        return (self.network(pixels),)


class EnrollGraph(nn.Module):
    """The encoder's outputs and a mask -> one cached support."""

    def __init__(self, network: FewShotNetwork) -> None:
        super().__init__()
        self.grid = network.encoder.grid
        self.size = network.config.image_size
        self.support_grid = network.config.support_grid
        self.prototype_head = network.prototype_head

    def forward(
        self,
        tokens: Tensor,
        norms: Tensor,
        class_token: Tensor,
        class_query: Tensor,
        image_keys: Tensor,
        mask: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, ...]:
        """Cache one support.

        Args:
            tokens: Of `EncoderGraph`, B = 1; so are the four that follow.
            norms: See there.
            class_token: See there.
            class_query: See there.
            image_keys: See there.
            mask: (1, S, S) uint8 of 0 and 1.
            has_mask: (1,) bool; False puts the pseudo-mask in the mask's place.

        Returns:
            support (1, C, 1 + support_grid ** 2, d) and kept_mask (1, 1 + support_grid ** 2), of which the runtime
            keeps the tokens where it is 1; pooled (1, C, 9, d), pooled_mask (1, 9), used_mask (1, S, S) uint8.
        """
        guessed = pseudo_mask(class_query, image_keys, self.grid, self.size)
        used = torch.where(has_mask[:, None, None], mask.to(guessed.dtype), guessed)
        maps = (tokens * norms)[0].permute(0, 2, 1).reshape(tokens.shape[1], -1, self.grid, self.grid)
        side = (self.support_grid, self.support_grid)
        maps = F.interpolate(maps, size=side, mode="bilinear", align_corners=True)
        image = maps.flatten(2).permute(0, 2, 1)[None]
        support = F.normalize(torch.cat([class_token, image], dim=2), dim=-1)
        cache_as_head = cache_supports if self.prototype_head is None else self.prototype_head.cache_supports
        cache = cache_as_head(support, used, self.support_grid)
        return cache.kept, cache.kept_mask, cache.pooled, cache.pooled_mask, used.to(torch.uint8)


class HeadGraph(nn.Module):
    """A frame's tokens and cached supports -> probabilities of each class, averaged over its shots."""

    def __init__(self, network: FewShotNetwork) -> None:
        super().__init__()
        self.head = FastCorrelationHead(network.head)

    def forward(
        self, tokens: Tensor, kept: Tensor, kept_mask: Tensor, pooled: Tensor, pooled_mask: Tensor, averaging: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Judge a frame.

        Args:
            tokens: (1, C, N, d) of `EncoderGraph`.
            kept: (S, C, T, d), see `Supports`; so are the three that follow.
            kept_mask: (S, T).
            pooled: (S, C, 9, d).
            pooled_mask: (S, 9).
            averaging: (W, S), 1 / shots where the support is the way's. Supports may be split over several runs and
                the results added, because averaging is linear.

        Returns:
            presence (W,) and foreground (W, 2 * grid, 2 * grid), probabilities.
        """
        logits = self.head(tokens[0], Supports(kept, kept_mask, pooled, pooled_mask))
        presence = averaging @ logits.presence.softmax(dim=1)[:, 1:]
        foreground = logits.mask.softmax(dim=1)[:, 1]
        return presence[:, 0], (averaging @ foreground.flatten(1)).reshape(-1, *foreground.shape[1:])


class PrototypeGraph(nn.Module):
    """What `HeadGraph` is, for the head without weights."""

    def __init__(self, head: PrototypeHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, tokens: Tensor, kept: Tensor, kept_mask: Tensor, pooled: Tensor, pooled_mask: Tensor, averaging: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Judge a frame; inputs and outputs are those of `HeadGraph`, the pooled tokens are background prototypes."""
        presence, foreground = self.head(tokens[0], Supports(kept, kept_mask, pooled, pooled_mask), averaging)
        return presence, foreground


def build_graphs(network: FewShotNetwork, beside: FewShotNetwork | None = None) -> dict[str, GraphSpec]:
    """Wrap a network for the tracer: encoder, enroll, head.

    Args:
        network: The network.
        beside: A network with an objectness decoder, which becomes a graph of its own: objectness.

    Raises:
        InputError: Both or neither of the two tell objectness.
    """
    encoder = network.encoder
    size, grid = network.config.image_size, network.config.support_grid
    channels, dim, num_query = encoder.num_channels, encoder.slice_dim, encoder.grid**2
    heads = encoder.num_heads
    encoded = {
        "tokens": torch.rand(1, channels, num_query, dim),
        "norms": torch.rand(1, channels, num_query, 1),
        "class_token": torch.rand(1, channels, 1, dim),
        "class_query": torch.rand(1, heads, encoder.head_dim),
        "image_keys": torch.rand(1, heads, num_query, encoder.head_dim),
    }
    image = {"image": torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)}
    own = () if network.objectness is None else ("objectness",)
    graphs = {
        "encoder": GraphSpec(EncoderGraph(network), image, (*encoded, *own), {"image": {0: "batch"}}),
        "enroll": GraphSpec(
            EnrollGraph(network),
            {**encoded, "mask": torch.ones(1, size, size, dtype=torch.uint8), "has_mask": torch.tensor([True])},
            ("support", "kept_mask", "pooled", "pooled_mask", "used_mask"),
            {},
        ),
        "head": GraphSpec(
            HeadGraph(network) if network.prototype_head is None else PrototypeGraph(network.prototype_head),
            {
                "tokens": encoded["tokens"],
                "kept": torch.rand(3, channels, grid, dim),
                "kept_mask": torch.ones(3, grid),
                "pooled": torch.rand(3, channels, POOLED_GRID**2, dim),
                "pooled_mask": torch.ones(3, POOLED_GRID**2),
                "averaging": torch.eye(2, 3),
            },
            ("presence", "foreground"),
            {
                "kept": {0: "supports", 2: "kept_tokens"},
                "kept_mask": {0: "supports", 1: "kept_tokens"},
                "pooled": {0: "supports"},
                "pooled_mask": {0: "supports"},
                "averaging": {0: "ways", 1: "supports"},
            },
        ),
    }
    if beside is not None:
        if network.objectness is not None:
            raise InputError(f"{network.config.name} tells objectness by its own stem; export it without --objectness.")
        if beside.objectness is None or beside.encoder.stem is None:
            raise InputError(
                f"{beside.config.name} has no objectness decoder, so there is none to add; export without --objectness."
            )
        module = ObjectnessNetwork(beside.encoder.stem, beside.objectness)
        graph = ObjectnessGraph(module, beside.config.image_size)
        graphs["objectness"] = GraphSpec(graph, image, ("objectness",), {"image": {0: "batch"}})
    return graphs


def make_manifest(
    network: FewShotNetwork, graphs: dict[str, GraphInfo], opset: int, parity: dict[str, float]
) -> Manifest:
    """Describe a network for the runtime.

    Args:
        network: The network.
        graphs: What computes it, by name: encoder, enroll, head.
        opset: Of ONNX; 0 where there is none.
        parity: See `Manifest`.
    """
    encoder, config = network.encoder, network.config
    return Manifest(
        format_version=FORMAT_VERSION,
        name=config.name,
        backbone=config.backbone,
        image_size=config.image_size,
        patch_size=encoder.patch_size,
        num_layers=encoder.num_layers,
        num_heads=encoder.num_slices,
        support_grid=config.support_grid,
        mask_size=2 * encoder.grid,
        preprocessing={"resize": DESCRIPTION, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
        opset=opset,
        precision="fp32",
        graphs=graphs,
        parity=parity,
        created_by=f"fsvit-edge {__version__}",
        head=config.head,
        presence_level=config.presence_level,
        support_crop=config.support_crop,
    )
