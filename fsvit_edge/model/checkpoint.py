"""Load and save weights; no code in a file is ever executed."""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fsvit_edge.inspect.tensor_names import (
    ANCHOR,
    BACKBONE_PREFIX,
    HEAD_PREFIX,
    OBJECTNESS_PREFIX,
    backbone_prefix,
    is_shard,
    plain_name,
)
from fsvit_edge.model.config import ModelConfig
from fsvit_edge.model.encoder import HYBRID_BACKBONE, OUR_BACKBONES, SUPPORTED_BACKBONES, load_strictly
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.bundle import TRAINED_HEAD
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.presence_level import DEFAULT_LEVEL
from fsvit_edge.runtime.storage import atomic_write

PUBLISHED_IMAGE_SIZE = 400

_WEIGHTS_KEYS = ("state_dict", "model_state_dict", "teacher", "model", "student")  # DINO's teacher is the better one


def load_network(
    checkpoint: Path,
    backbone: str | None = None,
    weights: Path | None = None,
    pretrained: bool = False,
    image_size: int | None = None,
    head: str | None = None,
) -> FewShotNetwork:
    """Build the network of a checkpoint and load its weights.

    Args:
        checkpoint: A published Lightning file (.ckpt, .pth, .pt) with `backbone.*` and `learner.*`, or a file written
            by `save_network` (.safetensors, with a .json next to it). Either may contain only the head or, for a head
            without weights, only the backbone.
        backbone: Name of the backbone; None takes it from the configuration, or from the shapes in the checkpoint.
        weights: File with weights of the backbone, used instead of those in the checkpoint.
        pretrained: Load the backbone's weights from timm's hub; also done if no file contains them.
        image_size: Side of the input in pixels; None takes it from the configuration, or the published 400.
        head: "cst" or "prototype"; None takes it from the configuration, or "cst".

    Raises:
        ArtifactError: A file is missing, unreadable, unsafe, or does not fit the network.
        InputError: The options contradict each other.
        EnvironmentLacksError: The published weights cannot be downloaded.
    """
    if weights is not None and pretrained:
        raise InputError("Give the backbone's weights once: either --weights FILE or --pretrained.")
    state = read_state(checkpoint)
    head_state = _strip(state, HEAD_PREFIX)
    backbone_state = _strip(state, BACKBONE_PREFIX) if head_state else _backbone_of(state)
    if not head_state and (head or _stored_head(checkpoint)) == TRAINED_HEAD:
        raise ArtifactError(
            f"{checkpoint} contains no head: expected tensors named {HEAD_PREFIX}*, "
            f"got {', '.join(sorted(state)[:3]) or 'nothing'}; a backbone alone goes with --head prototype."
        )
    config = _configuration(checkpoint, backbone, image_size, head, backbone_state, bool(head_state))
    if weights is not None:
        backbone_state = _backbone_of(read_state(weights))
    if not backbone_state and config.backbone in OUR_BACKBONES:
        raise ArtifactError(f"{checkpoint} contains no backbone weights; give them with --weights FILE.")
    network = FewShotNetwork(config, pretrained=pretrained or not backbone_state)
    if backbone_state and not pretrained:
        network.encoder.load_published(backbone_state)
    if config.head == TRAINED_HEAD:
        load_strictly(network.head, head_state, "head")
    if network.objectness is not None:
        load_strictly(network.objectness, _strip(state, OBJECTNESS_PREFIX), "objectness decoder")
    return network


def build_network(
    backbone: str | None,
    weights: Path | None,
    pretrained: bool,
    image_size: int | None,
    name: str,
    head: str = TRAINED_HEAD,
) -> FewShotNetwork:
    """Build a network from a backbone; a trained head starts with random weights. The errors are `load_network`'s.

    Args:
        backbone: Name of the backbone; None infers it from the shapes in `weights`.
        weights: File with the backbone's weights; None downloads them from timm's hub.
        pretrained: Must be True if and only if `weights` is None.
        image_size: None takes the largest multiple of the patch size up to the published 400.
        name: Name of the network.
        head: "cst" or "prototype".
    """
    if (weights is None) != pretrained:
        raise InputError("Give the backbone's weights once: either --weights FILE or --pretrained.")
    state = {} if weights is None else _backbone_of(read_state(weights))
    if backbone is None:
        if weights is None:
            raise InputError("Give the name of the backbone to download with --backbone.")
        backbone = infer_backbone(state)
    network = FewShotNetwork(ModelConfig(name, backbone, image_size or _usual_size(backbone), head=head), pretrained)
    if weights is not None:
        network.encoder.load_published(state)
    return network


def save_network(network: FewShotNetwork, path: Path) -> None:
    """Write a network in FP32 as `path`, which must end in .safetensors, and its configuration next to it (.json)."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path} must end in .safetensors.")
    parts: dict[str, nn.Module] = {BACKBONE_PREFIX: network.encoder.vit}
    if network.prototype_head is None:
        parts[HEAD_PREFIX] = network.head
    if network.objectness is not None:
        parts[OBJECTNESS_PREFIX] = network.objectness
    state = {
        prefix + name: tensor.detach().to(torch.float32).contiguous()
        for prefix, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    atomic_write(path.with_suffix(".json"), network.config.to_json().encode())
    atomic_write(path, save(state))


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors, .ckpt, .pth or .pt file.

    Lightning's `state_dict`, DINO's `teacher` and the like are unpacked, and so is the only dict that has tensors. What
    `torch.compile` and wrappers for several GPUs add to the names is taken off. An ArtifactError says that the file is
    missing, is damaged, is only a part of a checkpoint, or contains Python objects that are unsafe to load.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist or is not a file; give a .safetensors, .ckpt or .pth file.")
    if path.suffix == ".json" or is_shard(path):
        raise ArtifactError(f"{path} belongs to a checkpoint in several files; give one file with all shards.")
    if path.suffix == ".safetensors":
        try:
            return _unwrapped(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path} is not a readable safetensors file: {error}.") from error
    try:
        # Lightning stores the argparse result of the training script; a Namespace only contains values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, for files that are not checkpoints
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise ArtifactError(f"{path} is not a readable PyTorch file: {reason}.") from error
    except Exception as error:  # torch's unpickler raises many kinds of errors for damaged files
        if isinstance(error, pickle.UnpicklingError) and "Unsupported operand" not in str(error):
            raise ArtifactError(
                f"{path} contains Python objects besides tensors; loading them could run code, so it was refused. "
                "If you trust the file, load it yourself and save only its tensors: "
                'torch.save({"state_dict": checkpoint["state_dict"]}, "clean.ckpt").'
            ) from error
        raise ArtifactError(f"{path} is damaged or not a PyTorch file; download or copy it again.") from error
    while isinstance(content, dict) and (inner := _inner(content)):
        content = inner
    tensors = _tensors(content)
    if not tensors:
        keys = ", ".join(f"{key!s:.40}" for key in list(content)[:5]) if isinstance(content, dict) else ""
        found = f": its keys are {keys}; save only its weights" if keys else ""
        raise ArtifactError(f"{path} contains no state_dict (a dict of tensors){found}.")
    return _unwrapped(tensors)


def _inner(content: dict[Any, Any]) -> dict[Any, Any] | None:
    """The dict with the weights in what a training has saved; None if they are in none, or in which is not known."""
    known = [one for key in _WEIGHTS_KEYS if isinstance(one := content.get(key), dict) and one]
    if known or _tensors(content):
        return known[0] if known else None
    having = [one for one in content.values() if _tensors(one)]
    return having[0] if len(having) == 1 else None


def _tensors(content: Any) -> dict[str, Tensor]:
    items = content.items() if isinstance(content, dict) else ()
    return {str(key): tensor for key, tensor in items if isinstance(tensor, Tensor)}


def infer_backbone(state: Mapping[str, Tensor]) -> str:
    """Return the supported backbone that fits the stem, or the patch size, width and registers, of `state`."""
    if any(name.startswith("patch_embed.proj.fine.") for name in state):
        return HYBRID_BACKBONE
    patch = state.get(ANCHOR)
    if patch is not None:
        family = "dinov2" if any(".ls1." in name for name in state) else "dino"
        registers = "reg4_" if any(name in state for name in ("reg_token", "register_tokens")) else ""
        width = {384: "small", 768: "base"}.get(patch.shape[0], "?")
        for name in SUPPORTED_BACKBONES:
            if name.startswith(f"vit_{width}_patch{patch.shape[-1]}_{registers}") and f"{family}." in f"{name}.":
                return name
    if patch is None:
        raise ArtifactError(
            f"The checkpoint contains no backbone of a known kind: its first tensors are "
            f"{', '.join(list(state)[:3]) or 'none'}, expected names such as {ANCHOR}."
        )
    raise ArtifactError("The backbone of the checkpoint was not recognized; give its name with --backbone.")


def _configuration(
    checkpoint: Path,
    backbone: str | None,
    image_size: int | None,
    head: str | None,
    state: Mapping[str, Tensor],
    has_head: bool,
) -> ModelConfig:
    """Return the stored configuration with the options, or the published one of a backbone (or of its weights)."""
    if _has_configuration(checkpoint) or (checkpoint.suffix == ".safetensors" and has_head):
        stored = ModelConfig.from_json(checkpoint.with_suffix(".json"))
        is_other_head = head not in (None, stored.head)
        return replace(
            stored,
            name=f"{stored.name}-{head}" if is_other_head else stored.name,
            backbone=backbone or stored.backbone,
            image_size=image_size or stored.image_size,
            head=head or stored.head,
            presence_level=DEFAULT_LEVEL if is_other_head else stored.presence_level,
        )
    if backbone is None and not state:
        raise InputError(f"{checkpoint} contains only the head; give the name of its backbone with --backbone.")
    known = backbone or infer_backbone(state)
    return ModelConfig(checkpoint.stem, known, image_size or _usual_size(known), head=head or TRAINED_HEAD)


def _usual_size(backbone: str) -> int:
    """The largest multiple of the patch size up to the published size."""
    patch = re.search(r"_patch(\d+)_", backbone)  # the encoder refuses a name without one
    return PUBLISHED_IMAGE_SIZE - PUBLISHED_IMAGE_SIZE % (int(patch[1]) if patch else 1)


def _has_configuration(checkpoint: Path) -> bool:
    return checkpoint.suffix == ".safetensors" and checkpoint.with_suffix(".json").is_file()


def _stored_head(checkpoint: Path) -> str:
    """Return the head in the configuration next to a checkpoint; the trained one if there is no configuration."""
    is_ours = _has_configuration(checkpoint)
    return ModelConfig.from_json(checkpoint.with_suffix(".json")).head if is_ours else TRAINED_HEAD


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {plain_name(name): tensor for name, tensor in state.items()}


def _backbone_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a backbone, whatever stands before all their names; all if that is unknown, for the error."""
    return _strip(state, backbone_prefix(state.keys()) or "")


def _strip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
