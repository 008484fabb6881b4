"""The exported network: a folder with three or four ONNX graphs and `bundle.json`, which describes them.

The sha256 of every graph is checked before any parser sees it, and `bundle.json` contains its own.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fsvit_edge.runtime.engines.base import TensorSpec
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.json_records import read_json_object, record_from_json
from fsvit_edge.runtime.onnx_file import Declared, declared_tensors, keeps_data_elsewhere
from fsvit_edge.runtime.presence_level import DEFAULT_LEVEL
from fsvit_edge.runtime.storage import read_file

FORMAT_VERSION = 2
MANIFEST_NAME = "bundle.json"
MAX_GRAPH_BYTES = 2**31
"""Protobuf reads no larger ones."""
GRAPH_NAMES = ("encoder", "enroll", "head")
"""The graphs that every bundle has."""
INT8_OUTLINE = "int8_outline"
"""Name of the graph "outline" in INT8, which runs beside an INT8 encoder on x86 processors with VNNI."""
CPU_GRAPH_NAMES = ("compare", "outline", INT8_OUTLINE)
"""The trained head's graphs for ONNX Runtime on a CPU, which it runs in place of "head"; see `model/cpu_head.py`."""
OBJECTNESS = "objectness"
"""Name of the map that separates objects from their background: an output of the encoder or of its own graph."""
INT8_ENCODER = "int8_encoder"
"""Name of the encoder's graph in INT8, which a bundle may have in addition."""
TRAINED_HEAD, PROTOTYPE_HEAD = HEADS = ("cst", "prototype")
"""Kinds of heads: the trained correlation transformer, and prototypes, which need no training."""
EXPORT_AGAIN = "export the bundle again with: fsvit-edge export"
_MOST_OF_A_COLOR = 255
_Axes = Mapping[str, int]  # by tensor
_ENCODER: tuple[_Axes, _Axes] = ({"image": 4}, {"tokens": 4})
_OUTLINE: tuple[_Axes, _Axes] = ({"mask_tokens": 3}, {"foreground": 3})
_TENSORS: Mapping[str, tuple[_Axes, _Axes]] = {
    "encoder": _ENCODER,
    INT8_ENCODER: _ENCODER,
    "enroll": (
        {"tokens": 4, "mask": 3, "has_mask": 1},
        {"support": 4, "kept_mask": 2, "pooled": 4, "pooled_mask": 2, "used_mask": 3},
    ),
    "head": (
        {"tokens": 4, "kept": 4, "kept_mask": 2, "pooled": 4, "pooled_mask": 2, "averaging": 2},
        {"presence": 1, "foreground": 3},
    ),
    "compare": ({"tokens": 4, "support": 3, "count": 1, "pooled_mask": 1}, {"presence": 1, "mask_tokens": 3}),
    "outline": _OUTLINE,
    INT8_OUTLINE: _OUTLINE,
    OBJECTNESS: ({"image": 4}, {OBJECTNESS: 3}),
}  # the inputs and outputs of each graph that the code names; graphs may have more
DEFAULT_BUNDLE = Path(__file__).parent.parent / "assets" / "cst-nano"
"""The bundled model, a small one for demonstrations, used if no bundle is given."""


@dataclass(frozen=True)
class GraphInfo:
    """One graph of a bundle."""

    file: str  # its name in the bundle
    sha256: str  # in hexadecimal
    inputs: tuple[TensorSpec, ...]  # in the graph's order
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Manifest:
    """The contents of `bundle.json`."""

    # The reference page shows these comments. No code reads num_heads: it is for people.
    format_version: int  # Version of this format.
    name: str  # Name of the network, for display only.
    backbone: str  # Name of the encoder, in timm or in this project.
    image_size: int  # Side of the encoder's input in pixels.
    patch_size: int  # Side of a patch in pixels.
    num_layers: int  # Layers whose tokens are correlated.
    num_heads: int  # Slices per token, correlated separately: a plain ViT's heads, 1 with a convolutional stem.
    support_grid: int  # Side of the support's token grid.
    mask_size: int  # Side of the head's probability maps.
    preprocessing: dict[str, Any]  # Description of the preprocessing, with the constants that are inside the graph.
    opset: int  # ONNX opset of the graphs.
    precision: str  # Floating-point type of the graphs.
    graphs: dict[str, GraphInfo]  # By name: encoder, enroll, head, and objectness if it is a separate graph.
    parity: dict[str, float]  # Largest difference of torch and ONNX Runtime per output; empty if not measured.
    created_by: str  # Name and version of the exporter.
    head: str = TRAINED_HEAD  # The kind of head, "cst" or "prototype"; missing in older bundles.
    presence_level: float = DEFAULT_LEVEL  # Level of a class with one support, in (0, 1); missing in older bundles.
    support_crop: float = 0.0  # Window around a small object, in object sizes; 0 never crops; missing in older bundles.
    int8_encoder: GraphInfo | None = None  # The encoder in INT8 for x86 processors with VNNI; missing in older bundles.
    most_tokens: int = 0  # Image tokens of a support that the head for CPUs reads; 0: all; missing in older bundles.
    cpu_graphs: dict[str, GraphInfo] = field(default_factory=dict)  # The head for CPUs; missing in older bundles.

    @property
    def has_objectness(self) -> bool:
        """Whether the encoder or a separate graph computes objectness."""
        outputs = {spec.name for graph in self.graphs.values() for spec in graph.outputs}
        return OBJECTNESS in outputs

    @property
    def all_graphs(self) -> dict[str, GraphInfo]:
        """The graphs by name, with those for CPUs and the INT8 encoder if there are any."""
        int8 = {} if self.int8_encoder is None else {INT8_ENCODER: self.int8_encoder}
        return {**self.graphs, **self.cpu_graphs, **int8}

    def to_json(self) -> str:
        """Return indented JSON text whose last member is the sha256 of the others."""
        return json.dumps(sealed(asdict(self)), indent=2) + "\n"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been read and match their sha256."""

    path: Path
    manifest: Manifest
    graphs: dict[str, bytes]  # the ONNX files by graph
    cpu_graphs: dict[str, bytes] = field(default_factory=dict)  # the same of the head for CPUs, if it has one

    @classmethod
    def load(cls, path: Path) -> "Bundle":
        """Read a bundle; an ArtifactError if the folder or a file is missing, altered, or of another version."""
        manifest = read_manifest(path)
        graphs, cpu_graphs = (
            {name: read_graph(path, info) for name, info in described.items()}
            for described in (manifest.graphs, manifest.cpu_graphs)
        )
        return cls(path, manifest, graphs, cpu_graphs)


def bundle_sha256(path: Path) -> str:
    """Return the sum in `bundle.json`, which covers the sums of all graphs; of a bundle that was loaded."""
    return str(json.loads((path / MANIFEST_NAME).read_bytes())["sha256"])


def read_graph(bundle: Path, info: GraphInfo, remedy: str = EXPORT_AGAIN) -> bytes:
    """Read a graph of a bundle; an ArtifactError, with the remedy, if its file is missing or its sha256 is another."""
    file = bundle / info.file
    try:
        data = read_file(file, MAX_GRAPH_BYTES)
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror}; {remedy}.") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != info.sha256:
        sums = f"sha256 {digest[:12]}..., expected {info.sha256[:12]}..."
        raise ArtifactError(f"{file} was altered or damaged: {sums}; {remedy}.")
    refuse_data_elsewhere(file, data, remedy)
    for stated, declared in zip((info.inputs, info.outputs), declared_tensors(data), strict=True):
        if len(stated) != len(declared) or not all(map(_agree, stated, declared)):
            raise ArtifactError(f"The inputs or outputs of {file} differ from {MANIFEST_NAME}; {remedy}.")
    return data


def refuse_data_elsewhere(file: Path, data: bytes, remedy: str) -> None:
    """Raise an ArtifactError, with the remedy, if an ONNX file is damaged or keeps values in another file."""
    try:
        is_elsewhere = keeps_data_elsewhere(data)
    except ValueError as error:
        raise ArtifactError(f"{file} is damaged or not an ONNX graph: {error}; {remedy}.") from error
    if is_elsewhere:
        raise ArtifactError(f"{file} keeps values in another file, which its sha256 does not cover; {remedy}.")


def _agree(stated: TensorSpec, declared: Declared) -> bool:
    """Whether a description can be that of a tensor as its file declares it, where a size may be left open."""
    name, dtype, shape = declared
    return (
        stated.name == name
        and dtype in (None, stated.dtype)
        and len(shape) == len(stated.shape)
        and all(size in (None, own) for size, own in zip(shape, stated.shape, strict=True))
    )


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON object with "sha256" added: the sum of its other members as compact JSON, sorted by name."""
    others = {name: value for name, value in values.items() if name != "sha256"}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return {**others, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def read_manifest(path: Path) -> Manifest:
    """Read `bundle.json` of the bundle at `path`; an ArtifactError if it cannot be used."""
    file = path / MANIFEST_NAME
    if not path.is_dir():
        raise ArtifactError(f"Bundle {path} does not exist or is not a folder; make one with: fsvit-edge export.")
    try:
        values = read_json_object(file, FORMAT_VERSION, "export the bundle again")
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is not a bundle: it has no {MANIFEST_NAME}.") from error
    if values.get("sha256") != sealed(values)["sha256"]:
        raise ArtifactError(f"{file} was altered or damaged: its contents do not match its sha256; {EXPORT_AGAIN}.")
    del values["sha256"]
    manifest = record_from_json(Manifest, file, values)
    for name in GRAPH_NAMES:
        if name not in manifest.graphs:
            raise ArtifactError(f"{file} is incomplete: it has no graph {name!r}; export the bundle again.")
    if unknown := manifest.graphs.keys() - {*GRAPH_NAMES, OBJECTNESS}:
        raise ArtifactError(f"{file} names a graph {min(unknown)!r:.40} that this fsvit-edge does not know; update it.")
    # Bundles of before 0.2 have no outline in INT8.
    if manifest.cpu_graphs and {*manifest.cpu_graphs, INT8_OUTLINE} != set(CPU_GRAPH_NAMES):
        names = ", ".join(sorted(manifest.cpu_graphs))
        raise ArtifactError(f"{file} has wrong values: cpu_graphs are {names:.80}, not {', '.join(CPU_GRAPH_NAMES)}.")
    for name, info in manifest.all_graphs.items():
        own = info.file
        if Path(own).name != own or not own.isprintable():
            raise ArtifactError(f"{file}: the {name} graph's file must be in the bundle, got {own!r}.")
    if manifest.head not in HEADS:
        raise ArtifactError(f"{file} has wrong values: head is {manifest.head!r:.40}, not one of: {', '.join(HEADS)}.")
    if not 0 < manifest.presence_level < 1:
        raise ArtifactError(
            f"{file} has wrong values: presence_level is {manifest.presence_level:g}, not between 0 and 1; export the "
            "bundle again."
        )
    if not is_crop_factor(manifest.support_crop):
        raise ArtifactError(f"{file} has wrong values: support_crop is {manifest.support_crop}, not 0 or at least 1.")
    if not 0 <= manifest.most_tokens <= manifest.support_grid**2:
        raise ArtifactError(
            f"{file} has wrong values: most_tokens is {manifest.most_tokens}, not 0 to {manifest.support_grid**2}, the "
            "image tokens of a support."
        )
    for name, lowest in (("mean", 0.0), ("std", 1e-9)):
        found = manifest.preprocessing.get(name)
        if not _is_color(found, lowest):
            kind = "positive numbers" if lowest else "numbers from 0"
            raise ArtifactError(
                f"{file} has wrong values: preprocessing.{name} is {found!r:.80}, not three {kind} to "
                f"{_MOST_OF_A_COLOR}."
            )
    for name, info in manifest.all_graphs.items():
        for kind, axes, specs in zip(("input", "output"), _TENSORS[name], (info.inputs, info.outputs), strict=True):
            found = {spec.name: len(spec.shape) for spec in specs}
            for tensor, expected in axes.items():
                if found.get(tensor) != expected:
                    raise ArtifactError(
                        f"{file} has wrong values: the graph {name!r} must have an {kind} {tensor!r} with {expected} "
                        f"axes; {EXPORT_AGAIN}."
                    )
    return manifest


def _is_color(values: Any, lowest: float) -> bool:
    """Whether these are three numbers, one for each color; false of a NaN."""
    are_three = type(values) is list and len(values) == 3
    return are_three and all(type(one) in (int, float) and lowest <= one <= _MOST_OF_A_COLOR for one in values)


def is_crop_factor(value: float) -> bool:
    """Return whether a value can be a `support_crop`: 0, or a finite number of at least 1."""
    return value == 0 or (math.isfinite(value) and value >= 1)
