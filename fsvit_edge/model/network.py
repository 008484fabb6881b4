"""Encoder and head together, and the published procedure that every faster path is compared with."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsvit_edge.model.config import ModelConfig
from fsvit_edge.model.encoder import Encoder, EncoderOutput
from fsvit_edge.model.head import CorrelationHead, channel_vectors, support_tokens
from fsvit_edge.model.objectness import ObjectnessDecoder
from fsvit_edge.model.prototype_head import PrototypeHead
from fsvit_edge.model.pseudo_mask import pseudo_mask
from fsvit_edge.runtime.bundle import PROTOTYPE_HEAD
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.preprocess import IMAGENET_MEAN, IMAGENET_STD


class FewShotNetwork(nn.Module):
    """A frozen encoder with a head: the trained one, or the prototype head, and perhaps an objectness decoder.

    Args:
        config: What to build; weights are random until loaded.
        pretrained: Load the backbone's published weights from timm's hub.

    Raises:
        InputError: `config` has an objectness decoder, but the backbone has no convolutional stem.
    """

    def __init__(self, config: ModelConfig, pretrained: bool = False) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.backbone, config.image_size, pretrained).eval().requires_grad_(False)
        self.prototype_head: PrototypeHead | None = None
        if config.head == PROTOTYPE_HEAD:
            self.prototype_head = PrototypeHead(self.encoder.num_layers, self.encoder.grid).eval()
        else:
            self.head = CorrelationHead(self.encoder.num_channels, config.support_grid).eval()
        self.objectness: ObjectnessDecoder | None = None
        if config.objectness:
            self.add_objectness()

    def add_objectness(self) -> None:
        """Add an objectness decoder with random weights."""
        if self.encoder.stem is None:
            raise InputError(
                f"An objectness decoder reads a convolutional stem, but {self.config.backbone} has none; "
                "export with --objectness to add a separate network."
            )
        self.config = replace(self.config, objectness=True)
        self.objectness = ObjectnessDecoder(self.encoder.stem.widths).eval()

    @property
    def head(self) -> CorrelationHead:
        """The trained head; an InputError if the network has a prototype head."""
        head = self._modules.get("head")
        if not isinstance(head, CorrelationHead):
            raise InputError(
                f"Network {self.config.name} has a prototype head, which has no weights to train or compare; "
                "use a network with a trained head."
            )
        return head

    @head.setter
    def head(self, head: CorrelationHead) -> None:
        self._modules["head"] = head  # nn.Module does this by itself; the setter is for the type checker

    def query_vectors(self, output: EncoderOutput) -> Tensor:
        """Return the frame's side of the correlation: (B, C, N, d), L2-normalized, without the class token."""
        return F.normalize(channel_vectors(output.tokens[:, :, 1:], self.encoder.num_slices), dim=-1)

    def support_vectors(self, output: EncoderOutput) -> Tensor:
        """Return the support's side of the correlation: resized to (B, C, 1 + support_grid ** 2, d), L2-normalized."""
        tokens = support_tokens(output.tokens, self.encoder.grid, self.config.support_grid)
        return F.normalize(channel_vectors(tokens, self.encoder.num_slices), dim=-1)

    def pseudo_mask(self, output: EncoderOutput) -> Tensor:
        """Return pseudo-masks (B, S, S) for supports without a mask (CST, section 3.4)."""
        return pseudo_mask(output.class_query, output.image_keys, self.encoder.grid, self.config.image_size)


class EpisodePrediction(NamedTuple):
    """The published answer for one frame."""

    presence: Tensor  # (ways,) P(present)
    foreground: Tensor  # (ways, S, S) P(foreground)
    label_map: Tensor  # (S, S) int64: 0 is background, i + 1 is way i


def normalize(image: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 RGB -> (B, 3, S, S) float32, ImageNet mean and standard deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=image.device)
    std = torch.tensor(IMAGENET_STD, device=image.device)
    return ((image.float() / 255 - mean) / std).permute(0, 3, 1, 2)


@torch.inference_mode()
def predict_published(
    network: FewShotNetwork, query: Tensor, supports: Tensor, masks: Tensor | None, ways: int
) -> EpisodePrediction:
    """Predict as the published code does: encode the query again for every support, and use the head in plain order.

    Args:
        network: The network.
        query: (S, S, 3) uint8 RGB frame.
        supports: (ways * shots, S, S, 3) uint8 RGB, the shots of a way in a row.
        masks: (ways * shots, S, S) foreground, 0 or 1; None uses the supports' pseudo-masks.
        ways: Number of classes.
    """
    size = network.config.image_size
    presence, foreground = [], []
    for index in range(len(supports)):
        frame = network.query_vectors(network.encoder(normalize(query[None])))
        output = network.encoder(normalize(supports[index : index + 1]))
        mask = network.pseudo_mask(output) if masks is None else masks[index : index + 1].float()
        logits = network.head(frame, network.support_vectors(output), mask)
        presence.append(logits.presence.softmax(dim=1)[0, 1])
        full = F.interpolate(logits.mask, size=(size, size), mode="bilinear", align_corners=True)
        foreground.append(full.softmax(dim=1)[0, 1])
    presence_of_way = torch.stack(presence).reshape(ways, -1).mean(dim=1)
    foreground_of_way = torch.stack(foreground).reshape(ways, -1, size, size).mean(dim=1)
    best, label = foreground_of_way.max(dim=0)
    return EpisodePrediction(presence_of_way, foreground_of_way, torch.where(best < 0.5, 0, label + 1))
