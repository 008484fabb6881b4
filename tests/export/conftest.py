"""Fixtures of the export tests: engines that are measured in a moment, a faked TensorRT, and a ViT-S/8 at 400 px."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from fake_builder import FakeTensorRT, install

from fsvit_edge.runtime.engines import tensorrt_api
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.pictures import write_image

if TYPE_CHECKING:
    from fsvit_edge.calib.calibration import Calibration
    from fsvit_edge.model.graphs import GraphSpec
    from fsvit_edge.model.network import FewShotNetwork

BuildOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds measure for a moment, on few pictures."""
    from fsvit_edge.export.measure import demo_pictures

    monkeypatch.setattr("fsvit_edge.export.measure.TIMED_S", 0.02)
    monkeypatch.setattr("fsvit_edge.export.build.demo_pictures", lambda: demo_pictures(4))


@pytest.fixture(params=["10.3.0", "11.4.1"])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRT]:
    """TensorRT in two versions."""
    yield install(monkeypatch, request.param)
    tensorrt_api._shared_logger.cache_clear()


@pytest.fixture(scope="session")
def altered() -> Callable[..., type[OnnxRuntimeEngine]]:
    """Make a class of engines that change one output."""

    def make(output: str, change: Callable[[np.ndarray], np.ndarray]) -> type[OnnxRuntimeEngine]:
        class Altered(OnnxRuntimeEngine):
            def run(self, feed: Any) -> Any:
                outputs = super().run(feed)
                return (
                    {**outputs, output: self.upload(change(outputs[output].numpy()))} if output in outputs else outputs
                )

        return Altered

    return make


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of two classes, three pictures each, with masks."""
    for number, (name, stem) in enumerate((name, stem) for name in ("cup", "key") for stem in "abc"):
        image = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = image.repeat(20, axis=0).repeat(20, axis=1)
        mask = np.zeros_like(image)
        mask[20 + number : 60, 30:70] = 255
        image[mask > 0] = 200 if name == "cup" else 40
        write_image(tmp_path / "data" / name / "images" / f"{stem}.png", image)
        write_image(tmp_path / "data" / name / "masks" / f"{stem}.png", mask)
    return tmp_path / "data"


@pytest.fixture(scope="session")
def vits8_encoder(build_once: BuildOnce) -> bytes:
    """The encoder graph of a ViT-S/8 at 400 px, 2501 tokens, with random weights."""
    from fsvit_edge.export.pipeline import DEFAULT_OPSET
    from fsvit_edge.export.trace import simplify, trace
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
    from fsvit_edge.export.trace import simplify
    from fsvit_edge.runtime.bundle import Bundle

    names = {"tokens": "encoder", "support": "enroll", "presence": "head"}
    trace = pipeline.trace

    def take_or_trace(spec: GraphSpec, opset: int) -> onnx.ModelProto:
        """Trace the objectness alone; a trace of the other graphs, which `tiny_bundle` has, takes 15 s."""
        if spec.outputs[0] in names:
            return onnx.load(tiny_bundle / f"{names[spec.outputs[0]]}.onnx")
        return simplify(trace(spec, opset), "objectness")

    def write(path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trace", take_or_trace)
            patch.setattr(pipeline, "_cpu_head", lambda *_: Bundle.load(tiny_bundle).cpu_graphs)
            options = pipeline.ExportOptions(simplify=False, verify=False, objectness_from=hybrid_network)
            pipeline.export_bundle(tiny_network, path, options)

    return build_once("beside", write)


@pytest.fixture(scope="session")
def calibrate() -> Callable[[bytes], Calibration]:
    """Make a calibration of an encoder with the range -4 to 4 for every tensor."""
    from fsvit_edge.calib.calibration import FORMAT_VERSION, Calibration
    from fsvit_edge.calib.convert_int8 import linear_layers
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
