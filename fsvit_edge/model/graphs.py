"""The graphs of a bundle, as modules that torch can trace, with the names of their inputs and outputs.

image -> encoder -> tokens, norms, class_token, class_query, image_keys, and objectness if the network has a decoder
these five + mask -> enroll -> one cached support
tokens + cached supports -> head -> P(present), P(foreground) of each class
image -> objectness, an optional separate graph for an encoder without it

In shapes: B pictures of S x S pixels, C channels (one per layer and slice of a token) of d values, N = grid ** 2
image tokens.
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
from fsvit_edge.model.pseudo_mask import pseudo_mask
from fsvit_edge.runtime.bundle import CPU_GRAPH_NAMES, FORMAT_VERSION, GraphInfo, Manifest
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.preprocess import DESCRIPTION, IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class GraphSpec:
    """A module, and what the tracer needs to know about it."""

    module: nn.Module
    example: dict[str, Tensor]  # name -> example of each input, in order
    outputs: tuple[str, ...]  # names, in order
    dynamic: dict[str, dict[int, str]]  # input -> axis -> name of the dynamic size

    def dynamic_shapes(self) -> tuple[dict[int, Dim], ...]:
        """Return the dynamic axes in torch.export's form, one table per input."""
        names = {name for axes in self.dynamic.values() for name in axes.values()}
        dims = {name: Dim(name, min=1, max=4096) for name in sorted(names)}
        return tuple({axis: dims[name] for axis, name in self.dynamic.get(key, {}).items()} for key in self.example)


class EncoderGraph(nn.Module):
    """uint8 pictures -> the inputs of enrollment and head; normalization is inside, so no caller can get it wrong."""

    position: Tensor

    def __init__(self, network: FewShotNetwork) -> None:
        super().__init__()
        self.encoder = network.encoder
        self.objectness = network.objectness
        self.register_buffer("position", network.encoder.position().detach().clone())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Encode (B, S, S, 3) uint8 RGB.

        Returns:
            tokens (B, C, N, d), L2-normalized image tokens; norms (B, C, N, 1), their norms before; class_token
            (B, C, 1, d), not normalized; class_query (B, heads, D / heads); image_keys (B, heads, N, D / heads); and,
            if the network has an objectness decoder, objectness (B, S / 4, S / 4), logits.
        """
        pixels = normalize(image)
        objectness: tuple[Tensor, ...] = ()
        maps = None
        if self.objectness is not None:
            assert self.encoder.stem is not None
            maps = self.encoder.stem.maps(pixels)
            objectness = (self.objectness(maps),)
        output = self.encoder(pixels, self.position, maps)
        vectors = channel_vectors(output.tokens, self.encoder.num_slices)  # (B, C, 1 + N, d), class token first
        norms = vectors[:, :, 1:].norm(dim=-1, keepdim=True).clamp_min(1e-12)
        tokens = vectors[:, :, 1:] / norms
        return tokens, norms, vectors[:, :, :1], output.class_query, output.image_keys, *objectness


class ObjectnessGraph(nn.Module):
    """uint8 pictures -> objectness, for a bundle whose encoder has no objectness decoder.

    The picture is resized to the side that the decoder's network was trained with, because objects have another size at
    another side.
    """

    def __init__(self, network: FewShotNetwork) -> None:
        super().__init__()
        if network.objectness is None or network.encoder.stem is None:
            raise InputError(
                f"{network.config.name} has no objectness decoder, so there is none to add; "
                "export without --objectness."
            )
        self.stem = network.encoder.stem
        self.decoder = network.objectness
        self.size = (network.config.image_size, network.config.image_size)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Return logits (B, size / 4, size / 4) for (B, S, S, 3) uint8 RGB."""
        # (B, 3, S, S) -> (B, 3, size, size)
        pixels = F.interpolate(normalize(image), size=self.size, mode="bilinear", align_corners=False)
        return (self.decoder(self.stem.maps(pixels)),)


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
        """Cache one support, from the five outputs of `EncoderGraph` for one picture.

        Args:
            tokens: (1, C, N, d).
            norms: (1, C, N, 1).
            class_token: (1, C, 1, d).
            class_query: (1, heads, D / heads).
            image_keys: (1, heads, N, D / heads).
            mask: (1, S, S) uint8 of 0 and 1.
            has_mask: (1,) bool; False replaces the mask by the pseudo-mask.

        Returns:
            support (1, C, 1 + support_grid ** 2, d) and kept_mask (1, 1 + support_grid ** 2), 1 for the tokens that the
            runtime keeps; pooled (1, C, 9, d); pooled_mask (1, 9); used_mask (1, S, S) uint8.
        """
        guessed = pseudo_mask(class_query, image_keys, self.grid, self.size)
        used = torch.where(has_mask[:, None, None], mask.to(guessed.dtype), guessed)
        # (1, C, N, d) -> (C, N, d) -> (C, d, N) -> (C, d, grid, grid)
        maps = (tokens * norms)[0].permute(0, 2, 1).reshape(tokens.shape[1], -1, self.grid, self.grid)
        side = (self.support_grid, self.support_grid)
        maps = F.interpolate(maps, size=side, mode="bilinear", align_corners=True)
        # (C, d, support_grid, support_grid) -> (C, d, M) -> (C, M, d) -> (1, C, M, d), M = support_grid ** 2
        image = maps.flatten(2).permute(0, 2, 1)[None]
        support = F.normalize(torch.cat([class_token, image], dim=2), dim=-1)
        cache_as_head = cache_supports if self.prototype_head is None else self.prototype_head.cache_supports
        cache = cache_as_head(support, used, self.support_grid)
        return cache.kept, cache.kept_mask, cache.pooled, cache.pooled_mask, used.to(torch.uint8)


class HeadGraph(nn.Module):
    """A frame's tokens and cached supports -> probabilities of each class, averaged over its shots."""

    def __init__(self, network: FewShotNetwork) -> None:
        super().__init__()
        self.prototype_head = network.prototype_head
        self.head = None if self.prototype_head is not None else FastCorrelationHead(network.head)

    def forward(
        self, tokens: Tensor, kept: Tensor, kept_mask: Tensor, pooled: Tensor, pooled_mask: Tensor, averaging: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Answer for one frame: which classes are present, and where. K supports of W classes.

        Args:
            tokens: (1, C, N, d), the frame's image tokens from `EncoderGraph`.
            kept: (K, C, T, d); this and the next three are `Supports`.
            kept_mask: (K, T).
            pooled: (K, C, 9, d).
            pooled_mask: (K, 9).
            averaging: (W, K), 1 / shots for the supports of each class, else 0. Supports can be split over several runs
                and the results added, because averaging is linear.

        Returns:
            presence (W,) and foreground (W, 2 * grid, 2 * grid), probabilities.
        """
        supports = Supports(kept, kept_mask, pooled, pooled_mask)
        if self.head is None:
            assert self.prototype_head is not None
            presence, foreground = self.prototype_head(tokens[0], supports, averaging)
            return presence, foreground
        logits = self.head(tokens[0], supports)
        presence = averaging @ logits.presence.softmax(dim=1)[:, 1:]  # (W, K) @ (K, 1)
        foreground = logits.mask.softmax(dim=1)[:, 1]  # (K, 2 * grid, 2 * grid)
        # (W, K) @ (K, pixels) -> (W, pixels) -> (W, 2 * grid, 2 * grid)
        return presence[:, 0], (averaging @ foreground.flatten(1)).reshape(-1, *foreground.shape[1:])


def build_graphs(network: FewShotNetwork, objectness_from: FewShotNetwork | None = None) -> dict[str, GraphSpec]:
    """Wrap a network for the tracer: encoder, enroll, head, and objectness if it is a separate graph.

    Args:
        network: The network.
        objectness_from: A network whose objectness decoder becomes the separate graph; None: no such graph.

    Raises:
        InputError: `network` already has an objectness decoder, or `objectness_from` has none.
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
            HeadGraph(network),
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
    if objectness_from is not None:
        if network.objectness is not None:
            raise InputError(f"{network.config.name} already has an objectness decoder; export without --objectness.")
        module = ObjectnessGraph(objectness_from)
        graphs["objectness"] = GraphSpec(module, image, ("objectness",), {"image": {0: "batch"}})
    return graphs


def make_manifest(
    network: FewShotNetwork, graphs: dict[str, GraphInfo], opset: int, parity: dict[str, float]
) -> Manifest:
    """Describe a network for the runtime.

    Args:
        network: The network.
        graphs: Graph -> its file, inputs and outputs; with or without the head's graphs for CPUs.
        opset: ONNX opset of the graphs; 0 without ONNX.
        parity: graph.output -> largest difference between torch and ONNX Runtime.
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
        graphs={name: info for name, info in graphs.items() if name not in CPU_GRAPH_NAMES},
        parity=parity,
        created_by=f"fsvit-edge {__version__}",
        head=config.head,
        presence_level=config.presence_level,
        support_crop=config.support_crop,
        most_tokens=config.most_tokens,
        cpu_graphs={name: graphs[name] for name in CPU_GRAPH_NAMES if name in graphs},
    )
