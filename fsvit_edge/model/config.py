"""The configuration of a network: a few values, stored as JSON next to its weights."""

import json
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fsvit_edge.runtime.bundle import HEADS, TRAINED_HEAD, is_crop_factor
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.json_records import MAX_JSON_BYTES
from fsvit_edge.runtime.presence_level import DEFAULT_LEVEL
from fsvit_edge.runtime.storage import read_file

POOLED_GRID = 3
"""Side of the support grid after the first block; the second block pools it to 1 x 1."""


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a network; everything else follows from the backbone's architecture."""

    name: str  # name of the network
    backbone: str  # one of `fsvit_edge.model.encoder.SUPPORTED_BACKBONES`
    image_size: int  # side S of the square input in pixels, a multiple of the backbone's patch size
    support_grid: int = 12  # side of the grid to which image tokens of supports are resized, a multiple of 3
    head: str = TRAINED_HEAD  # "cst", which is trained, or "prototype", which has no weights
    objectness: bool = False  # whether an objectness decoder reads the backbone's convolutional stem
    presence_level: float = DEFAULT_LEVEL  # score above which a class with one support is present, in (0, 1)
    support_crop: float = 0.0  # 0 or at least 1, see `Manifest`
    most_tokens: int = 0  # at most those of the support grid, see `Manifest`

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise ArtifactError(f"The head must be one of {', '.join(HEADS)}; got {self.head!r}.")
        if self.support_grid < POOLED_GRID or self.support_grid % POOLED_GRID:
            raise ArtifactError(f"The support grid must be a positive multiple of 3, got {self.support_grid}.")
        if not 0 < self.presence_level < 1:
            raise ArtifactError(f"The presence level must be between 0 and 1, got {self.presence_level:g}.")
        if not is_crop_factor(self.support_crop):
            raise ArtifactError(f"The support crop must be 0 or at least 1, got {self.support_crop}.")
        if not 0 <= self.most_tokens <= self.support_grid**2:
            raise ArtifactError(
                f"The most tokens of a support must be 0 to {self.support_grid**2}, the image tokens of a support, got "
                f"{self.most_tokens}."
            )

    def to_json(self) -> str:
        """Return the configuration as indented JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> "ModelConfig":
        """Read a configuration; an ArtifactError if the file is missing, is not JSON, or has other fields."""
        try:
            values: Any = json.loads(read_file(path, MAX_JSON_BYTES))
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{path} is missing; a .safetensors checkpoint needs its configuration in this file."
            ) from error
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} is not a readable JSON file: {error}.") from error
        known = {field.name: field.type for field in fields(cls)}
        required = {field.name for field in fields(cls) if field.default is MISSING}
        if not isinstance(values, dict) or not required <= values.keys() <= known.keys():
            got = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ArtifactError(f"{path} must have the fields {', '.join(known)}; got {got}.")
        for name, kind in known.items():
            if kind is float and type(values.get(name)) is int:
                with suppress(OverflowError):
                    values[name] = float(values[name])
            if name in values and type(values[name]) is not kind:
                kind_name = getattr(kind, "__name__", kind)
                raise ArtifactError(f"{path}: {name} must be {kind_name}, got {values[name]!r}.")
        return cls(**values)
