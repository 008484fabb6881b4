"""torch -> bundle, in named steps: wrap, trace, simplify, check, verify, write."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fsvit_edge.export.cpu_head import cpu_head_models
from fsvit_edge.export.parity import ParityRow, raise_on_failure, verify
from fsvit_edge.export.trace import check, simplify, trace
from fsvit_edge.model.cpu_head import cpu_head_specs
from fsvit_edge.model.graphs import build_graphs, make_manifest
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.bundle import MANIFEST_NAME, GraphInfo, Manifest
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import InputError
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
        models |= _cpu_head(network, options, progress)
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


def _cpu_head(network: FewShotNetwork, options: ExportOptions, progress: Progress) -> dict[str, bytes]:
    """Make the head's graphs for CPUs; none for the prototype head, which is fast as it is."""
    if network.prototype_head is not None:
        return {}
    progress("trace the head for CPUs")
    encoder = network.encoder
    sizes = (encoder.num_channels, encoder.slice_dim, encoder.grid**2, network.config.support_grid)
    models = cpu_head_models(cpu_head_specs(network.head, *sizes), options.opset, options.simplify)
    return {name: model.SerializeToString() for name, model in models.items()}


def describe(network: FewShotNetwork, models: dict[str, bytes], opset: int, parity: tuple[ParityRow, ...]) -> Manifest:
    """Return the manifest, which becomes `bundle.json`."""
    graphs = {}
    for name, data in models.items():
        with OnnxRuntimeEngine(data, "cpu") as engine:
            digest = hashlib.sha256(data).hexdigest()
            graphs[name] = GraphInfo(f"{name}.onnx", digest, engine.inputs, engine.outputs)
    return make_manifest(network, graphs, opset, {row.output: row.max_error for row in parity})
