"""Fixtures of the export tests: a ViT-S/8 at 400 px, whose export takes seconds, and a calibration for any encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from fsvit_edge.calib.calibration import Calibration
    from fsvit_edge.model.network import FewShotNetwork


@pytest.fixture(scope="session")
def vits8_encoder() -> bytes:
    """The encoder graph of a ViT-S/8 at 400 px, 2501 tokens, with random weights."""
    from fsvit_edge.export.pipeline import DEFAULT_OPSET, simplify, trace
    from fsvit_edge.model.config import ModelConfig
    from fsvit_edge.model.graphs import build_graphs
    from fsvit_edge.model.network import FewShotNetwork

    network = FewShotNetwork(ModelConfig("vits8", "vit_small_patch8_224.dino", image_size=400)).eval()
    return simplify(trace(build_graphs(network)["encoder"], DEFAULT_OPSET), "encoder").SerializeToString()


@pytest.fixture(scope="session")
def hybrid_bundle(hybrid_network: FewShotNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `hybrid_network`, whose encoder computes objectness, not verified; copy it before you change it."""
    from fsvit_edge.export.pipeline import ExportOptions, export_bundle

    path = tmp_path_factory.mktemp("hybrid") / "bundle"
    export_bundle(hybrid_network, path, ExportOptions(verify=False))
    return path


@pytest.fixture(scope="session")
def bundle_beside(
    tiny_network: FewShotNetwork, hybrid_network: FewShotNetwork, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The bundle of `tiny_network` with the objectness of `hybrid_network` as a separate graph, not verified."""
    from fsvit_edge.export.pipeline import ExportOptions, export_bundle

    path = tmp_path_factory.mktemp("beside") / "bundle"
    export_bundle(tiny_network, path, ExportOptions(verify=False, objectness_from=hybrid_network))
    return path


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
