"""torch -> bundle, in named steps: wrap, trace, simplify, check, verify, write."""

import contextlib
import hashlib
import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from fsvit_edge.export.parity import ParityRow, raise_on_failure, verify
from fsvit_edge.model.graphs import GraphSpec, build_graphs, make_manifest
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.bundle import MANIFEST_NAME, GraphInfo, Manifest
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, InputError
from fsvit_edge.runtime.messages import Progress
from fsvit_edge.runtime.storage import atomic_folder

DEFAULT_OPSET = 20
MIN_OPSET, MAX_OPSET = 20, 22
"""Below 20 there is no Gelu; the oldest TensorRT parser that we build with reads up to 20, the newest up to 25."""


@dataclass(frozen=True)
class ExportOptions:
    """How to export."""

    opset: int = DEFAULT_OPSET
    simplify: bool = True  # run onnxsim over the graphs
    verify: bool = True  # compare torch with ONNX Runtime before anything is written
    objectness_from: FewShotNetwork | None = None  # its objectness decoder becomes a separate graph


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    path: Path  # the bundle's folder
    manifest: Manifest
    parity: tuple[ParityRow, ...]  # between torch and ONNX Runtime; empty without verification
    sizes_mb: dict[str, float]  # of each graph's file, in 10^6 bytes


def export_bundle(
    network: FewShotNetwork, output: Path, options: ExportOptions, progress: Progress = lambda _: None
) -> ExportResult:
    """Write a network's bundle: wrap, trace, simplify, check, verify, write. An old bundle is replaced as a whole.

    Args:
        network: The network in torch.
        output: The bundle's folder, new, empty, or with an old bundle.
        options: How to export.
        progress: Called with each step that begins.

    Raises:
        InputError: The opset is out of range, or `output` is not a bundle.
        AccuracyGateError: ONNX Runtime and torch differ by more than the tolerance; nothing is written.
        FsvitEdgeError: A step failed; nothing is written.
    """
    if not MIN_OPSET <= options.opset <= MAX_OPSET:
        raise InputError(f"The opset must be from {MIN_OPSET} to {MAX_OPSET}, got {options.opset}.")
    with atomic_folder(output, MANIFEST_NAME) as staging:
        graphs = build_graphs(network.eval(), options.objectness_from)
        models = {}
        for name, spec in graphs.items():
            progress(f"trace {name}")
            model = trace(spec, options.opset)
            if options.simplify:
                progress(f"simplify {name}")
                model = simplify(model, name)
            progress(f"check {name}")
            check(model, name, options.opset)
            models[name] = model.SerializeToString()
        parity: tuple[ParityRow, ...] = ()
        if options.verify:
            progress("compare torch with ONNX Runtime")
            parity = verify(network, models, options.objectness_from)
            raise_on_failure(parity)
        progress("write")
        for name, data in models.items():
            (staging / f"{name}.onnx").write_bytes(data)
        manifest = describe(network, models, options.opset, parity)
        (staging / MANIFEST_NAME).write_text(manifest.to_json())
    return ExportResult(output, manifest, parity, {name: len(data) / 1e6 for name, data in models.items()})


def trace(spec: GraphSpec, opset: int) -> onnx.ModelProto:
    """Trace a module with torch's exporter, without its messages."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            spec.module.eval(),
            tuple(spec.example.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(spec.example),
            output_names=list(spec.outputs),
            dynamic_shapes=spec.dynamic_shapes(),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def simplify(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Fold constants and remove redundant nodes, with onnxsim, which compares the results itself."""
    import onnxsim

    simplified, same = onnxsim.simplify(model)
    if not same:
        raise FsvitEdgeError(f"onnxsim changed what the {name} graph computes; export with --no-simplify.")
    return simplified  # type: ignore[no-any-return]  # onnxsim ships no types


def check(model: onnx.ModelProto, name: str, opset: int) -> None:
    """Check that a graph is valid ONNX, uses only standard operators of one opset, and has whole LayerNorms.

    A LayerNorm made of single operators overflows in FP16 (ViT-B on an Orin Nano: accuracy 85 % -> 19 %).
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"The {name} graph is not valid ONNX: {str(error).splitlines()[0]}.") from error
    versions = {entry.domain: entry.version for entry in model.opset_import}
    foreign = sorted({node.domain for node in model.graph.node} - {""})
    if versions.get("") != opset or foreign or model.functions:
        raise ArtifactError(
            f"The {name} graph must use only the standard operators of opset {opset}, got {versions} "
            f"and operators of the other domains {foreign or '(none)'}."
        )
    operators = {node.op_type for node in model.graph.node}
    if name == "encoder" and "LayerNormalization" not in operators:
        raise ArtifactError("The encoder graph has no LayerNormalization operator, so FP16 would overflow in it.")


def describe(network: FewShotNetwork, models: dict[str, bytes], opset: int, parity: tuple[ParityRow, ...]) -> Manifest:
    """Return the manifest, which becomes `bundle.json`."""
    graphs = {}
    for name, data in models.items():
        with OnnxRuntimeEngine(data, "cpu") as engine:
            digest = hashlib.sha256(data).hexdigest()
            graphs[name] = GraphInfo(f"{name}.onnx", digest, engine.inputs, engine.outputs)
    return make_manifest(network, graphs, opset, {row.output: row.max_error for row in parity})
