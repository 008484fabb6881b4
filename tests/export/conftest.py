"""Fixtures of the export tests: a ViT-S/8 at 400 px, whose export takes seconds, and a calibration for any encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

if TYPE_CHECKING:
    from fsvit_edge.calib.calibration import Calibration
    from fsvit_edge.model.graphs import GraphSpec
    from fsvit_edge.model.network import FewShotNetwork


BuildOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def vits8_encoder(build_once: BuildOnce) -> bytes:
    """The encoder graph of a ViT-S/8 at 400 px, 2501 tokens, with random weights."""
    from fsvit_edge.export.pipeline import DEFAULT_OPSET, simplify, trace
    from fsvit_edge.model.config import ModelConfig
    from fsvit_edge.model.graphs import build_graphs
    from fsvit_edge.model.network import FewShotNetwork

    def write(path: Path) -> None:
        network = FewShotNetwork(ModelConfig("vits8", "vit_small_patch8_224.dino", image_size=400)).eval()
        graph = simplify(trace(build_graphs(network)["encoder"], DEFAULT_OPSET), "encoder")
        path.write_bytes(graph.SerializeToString())

    return build_once("vits8.onnx", write).read_bytes()


@pytest.fixture(scope="session")
def bundle_beside(
    tiny_network: FewShotNetwork, hybrid_network: FewShotNetwork, tiny_bundle: Path, build_once: BuildOnce
) -> Path:
    """The bundle of `tiny_network` with the objectness of `hybrid_network` as a separate graph, not verified."""
    from fsvit_edge.export import pipeline

    names = {"tokens": "encoder", "support": "enroll", "presence": "head"}
    trace = pipeline.trace

    def take_or_trace(spec: GraphSpec, opset: int) -> onnx.ModelProto:
        """Trace the objectness alone; a trace of the other graphs, which `tiny_bundle` has, takes 15 s."""
        if spec.outputs[0] in names:
            return onnx.load(tiny_bundle / f"{names[spec.outputs[0]]}.onnx")
        return pipeline.simplify(trace(spec, opset), "objectness")

    def write(path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trace", take_or_trace)
            options = pipeline.ExportOptions(simplify=False, verify=False, beside=hybrid_network)
            pipeline.export_bundle(tiny_network, path, options)

    return build_once("beside", write)


@pytest.fixture(scope="session")
def calibrate() -> Callable[[bytes], Calibration]:
    """Make a calibration of an encoder with the range -4 to 4 for every tensor."""
    from fsvit_edge.calib.calibration import FORMAT_VERSION, Calibration
    from fsvit_edge.calib.int8 import linear_layers
    from fsvit_edge.calib.onnx_graph import Graph

    def make(encoder: bytes) -> Calibration:
        tensors = dict.fromkeys(layer.activation for layer in linear_layers(Graph(encoder)))
        return Calibration(
            format_version=FORMAT_VERSION,
            model_name="any",
            image_size=400,
            graphs={"encoder": hashlib.sha256(encoder).hexdigest()},
            preprocessing={},
            method="minmax",
            pictures=32,
            seed=0,
            data_sha256="0" * 64,
            banked=0,
            ranges={"encoder": dict.fromkeys(tensors, (-4.0, 4.0))},
            channel_max={"encoder": {name: [4.0] for name in tensors}},
            created_by="the tests",
        )

    return make
