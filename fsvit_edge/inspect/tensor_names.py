"""How tensors are named in checkpoints: one rule for what loads them and for what only lists them."""

import re
from collections.abc import Collection
from pathlib import Path

BACKBONE_PREFIX = "backbone."
HEAD_PREFIX = "learner."
OBJECTNESS_PREFIX = "objectness."
ANCHOR = "patch_embed.proj.weight"
"""Every ViT has it."""

_ANCHORS = (ANCHOR, "patch_embed.proj.fine.0.weight")  # the latter in our convolutional stem
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # what torch.compile and others add
_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")


def is_shard(path: Path) -> bool:
    """Whether a file is a part of a checkpoint in several files, by its name."""
    return _SHARD.search(path.stem) is not None


def plain_name(name: str) -> str:
    """Take the names of wrappers off: anywhere, as a part of a network can be wrapped; "module" only in front."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts) or name


def backbone_prefix(names: Collection[str]) -> str | None:
    """What stands before all plain names of a backbone, as in "encoder.cls_token"; None if that is not one text."""
    if any(name.startswith(BACKBONE_PREFIX) for name in names):
        return BACKBONE_PREFIX
    prefixes = {name.removesuffix(end) for end in _ANCHORS for name in names if name.endswith(end)}
    return prefixes.pop() if len(prefixes) == 1 else None
