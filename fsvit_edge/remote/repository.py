"""Writes a model repository for Triton: a folder with the settings of a box, and what tells the server to run it."""

import re
from pathlib import Path

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.remote.box import BANK_SUFFIX, SETTINGS_NAME, Settings
from fsvit_edge.remote.wire import BANK, INPUTS, OUTPUTS
from fsvit_edge.runtime.bundle import Manifest
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.messages import Say
from fsvit_edge.runtime.storage import atomic_folder

_MODEL_FILE = '''"""Made by fsvit-edge triton. The server's Python must have fsvit-edge."""

from fsvit_edge.remote.model import TritonPythonModel  # noqa: F401
'''
_CONFIG = """# Made by fsvit-edge triton; what it answers by is in {settings}.
name: "{name}"
backend: "python"
# No batches: a frame is answered by itself, and the instances work side by side.
max_batch_size: 0
instance_group [ {{ count: {instances} }} ]
{tensors}
"""


def model_name(manifest: Manifest) -> str:
    """Return the name of a bundle's model on a server: that of the network, with what a path may not have as "-"."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", manifest.name).strip(".-") or "fsvit-edge"


def write_model(repository: Path, name: str, settings: Settings) -> Path:
    """Write a model into a repository, whole or not at all, in place of an earlier one of ours; return its folder.

    Raises:
        InputError: Another model has that name.
        FsvitEdgeError: The disk is full or the folder is not writable.
    """
    tensors = "\n".join(
        f'{kind} {{ name: "{tensor}" data_type: {data_type} dims: {list(shape)}{optional} }}'
        for kind, described in (("input", INPUTS), ("output", OUTPUTS))
        for tensor, (data_type, shape) in described.items()
        for optional in [" optional: true" if kind == "input" and tensor != BANK else ""]
    )
    folder = repository / name
    with atomic_folder(folder, SETTINGS_NAME) as made:
        (made / "1").mkdir()
        (made / "1" / "model.py").write_text(_MODEL_FILE)
        config = _CONFIG.format(settings=SETTINGS_NAME, name=name, instances=settings.instances, tensors=tensors)
        (made / "config.pbtxt").write_text(config)
        (made / SETTINGS_NAME).write_bytes(settings.to_json())
    return folder


def check_banks(folder: Path, manifest: Manifest, say: Say) -> list[str]:
    """Return the names of the banks in a folder that the bundle can use; `say` gets why not the others.

    Raises:
        InputError: It is no folder.
    """
    if not folder.is_dir():
        raise InputError(f"The folder of banks {folder} does not exist; make it, and put banks into it.")
    usable = []
    for path in sorted(folder.glob(f"*{BANK_SUFFIX}")):
        try:
            made_by = SupportBank.load(path).identity
        except FsvitEdgeError as error:
            say(f"Note: {error}")
            continue
        if made_by.encoder_sha256 == manifest.graphs["encoder"].sha256:
            usable.append(path.stem)
        else:
            say(f"Note: Bank {path} was made by another encoder ({made_by.name}), so the box will refuse it.")
    return usable
