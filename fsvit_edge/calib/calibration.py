"""The calibration file: the ranges of the activations that enter a bundle's linear layers, as one small JSON file.

It is made on any machine and read where an engine is built, which may be a device, so reading it needs no ONNX.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.json_records import read_json_object, record_from_json
from fsvit_edge.runtime.storage import atomic_write

FORMAT_VERSION = 1
METHODS = ("minmax", "entropy", "percentile")
FEWEST_PICTURES = 32
CALIBRATION_NAME = "calibration.json"
"""The calibration in a bundle, used if none is named; the bundled model has one."""


@dataclass(frozen=True)
class Calibration:
    """Ranges of the tensors that can be quantized, and where they come from.

    Attributes:
        format_version: Version of the file format.
        model_name: The bundle's name.
        image_size: Side of the encoder's input in pixels.
        graphs: Graph -> sha256 of the FP32 ONNX file whose tensors are named here.
        preprocessing: As in `bundle.json`.
        method: How ranges were chosen from the values seen, one of `METHODS`.
        pictures: Number of pictures, including those from a bank.
        seed: Random seed of the sampling.
        data_sha256: sha256 of the pictures' pixels, independent of their order.
        banked: Number of pictures from a bank of enrolled classes.
        ranges: Graph -> tensor -> lowest and highest value to represent.
        channel_max: Graph -> tensor -> largest absolute value seen in each channel (the axis that the weight sums
            over), never clipped; one number for a tensor of a convolutional stem.
        created_by: Name and version of the program.
        channel_mean: Graph -> tensor of a convolutional stem -> mean of each channel; missing in older files, whose
            stem stays in floating point.
    """

    format_version: int
    model_name: str
    image_size: int
    graphs: dict[str, str]
    preprocessing: dict[str, Any]
    method: str
    pictures: int
    seed: int
    data_sha256: str
    banked: int
    ranges: dict[str, dict[str, tuple[float, float]]]
    channel_max: dict[str, dict[str, list[float]]]
    created_by: str
    channel_mean: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Read a calibration.

        Raises:
            ArtifactError: The file is missing, damaged, incomplete, of another version, or has impossible values.
        """
        try:
            values = read_json_object(path, FORMAT_VERSION, "make it again with: fsvit-edge calib SOURCE")
        except FileNotFoundError as error:
            raise ArtifactError(
                f"The calibration {path} does not exist; make one with: fsvit-edge calib SOURCE --output {path}."
            ) from error
        calibration = record_from_json(cls, path, values)
        if flaw := _flaw(calibration):
            raise ArtifactError(f"{path} is damaged: {flaw}; make it again with: fsvit-edge calib SOURCE.")
        return calibration

    def save(self, path: Path) -> None:
        """Write the file, completely or not at all."""
        assert not _flaw(self), _flaw(self)
        atomic_write(path, self._json)

    @property
    def sha256(self) -> str:
        """The sha256 of the file that `save` writes."""
        return hashlib.sha256(self._json).hexdigest()

    def check_fits(self, bundle: Bundle) -> None:
        """Refuse a calibration that was made for other image sizes, preprocessing or graphs than the bundle's."""
        manifest = bundle.manifest
        sums = {name: info.sha256 for name, info in manifest.graphs.items()}
        if self.image_size != manifest.image_size:
            difference = f"it is for images of {self.image_size} px, the bundle has {manifest.image_size} px"
        elif differing := sorted(_differences(self.preprocessing, manifest.preprocessing)):
            key = differing[0]
            ours, theirs = self.preprocessing.get(key), manifest.preprocessing.get(key)
            difference = f"its preprocessing has {key} {ours!r:.80}, the bundle's {theirs!r:.80}"
        elif others := [name for name, sha256 in self.graphs.items() if sha256 != sums.get(name)]:
            name = others[0]
            difference = (
                f"its {name} has sha256 {self.graphs[name]:.12}... ({self.model_name}), the bundle's "
                f"{sums.get(name, 'none'):.12}... ({manifest.name})"
            )
        else:
            return
        raise ArtifactError(
            f"The calibration does not fit bundle {bundle.path}: {difference}; make one for it with: "
            f"fsvit-edge calib SOURCE --bundle {bundle.path} --output calibration.json."
        )

    def warnings(self) -> list[str]:
        """Return reasons not to trust the ranges, one sentence each."""
        if self.pictures >= FEWEST_PICTURES:
            return []
        seen = "1 picture" if self.pictures == 1 else f"{self.pictures} pictures"
        return [f"The calibration used only {seen}; use at least {FEWEST_PICTURES} for reliable ranges."]

    @cached_property
    def _json(self) -> bytes:
        return json.dumps(asdict(self), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> set[str]:
    """Keys whose values differ; compared as JSON, because a new bundle has tuples where a file has lists."""
    ours, theirs = json.loads(json.dumps([ours, theirs]))
    return {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}


def _flaw(calibration: Calibration) -> str | None:
    """A clause that names the first impossible value; None if there is none."""
    if calibration.method not in METHODS:
        return f"its method is {calibration.method!r:.40}, expected one of {', '.join(METHODS)}"
    if calibration.pictures < 1 or not 0 <= calibration.banked <= calibration.pictures:
        return f"it used {calibration.pictures} pictures, {calibration.banked} of them from a bank"
    if not calibration.graphs.keys() == calibration.ranges.keys() == calibration.channel_max.keys():
        return "its sha256 sums, ranges and channels belong to different graphs"
    for graph, ranges in calibration.ranges.items():
        channels = calibration.channel_max[graph]
        if not ranges or ranges.keys() != channels.keys():
            return f"its ranges and channels of graph {graph!r:.40} belong to different tensors, or are empty"
        for name, (low, high) in ranges.items():
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                return f"the range of tensor {name!r:.40} is {low} to {high}"
            if not channels[name] or not all(math.isfinite(value) and value >= 0 for value in channels[name]):
                return f"the channels of tensor {name!r:.40} are empty, not finite, or negative"
        for name, means in calibration.channel_mean.get(graph, {}).items():
            if name not in ranges or not means or not all(map(math.isfinite, means)):
                return f"the means of tensor {name!r:.40} are empty or not finite, or it has no range"
    return None
