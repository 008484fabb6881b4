"""Add the encoder in INT8 to a bundle, so that it is fast on x86 processors with VNNI without a build step."""

import hashlib
from dataclasses import replace
from pathlib import Path

from fsvit_edge.calib.calibration import CALIBRATION_NAME, Calibration
from fsvit_edge.calib.convert import make_graph
from fsvit_edge.calib.convert_cpu import IntegerForm
from fsvit_edge.runtime.bundle import INT8_ENCODER, MANIFEST_NAME, Bundle, GraphInfo, Manifest
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.storage import atomic_write

VNNI = IntegerForm(signed=False, largest_weight=127)


def add_int8_encoder(path: Path) -> Manifest:
    """Make a bundle's INT8 encoder by the calibration in it, and name it in its manifest, which is returned.

    Raises:
        ArtifactError: The bundle is damaged, or has no calibration that fits.
    """
    bundle = Bundle.load(path)
    calibration = Calibration.load(path / CALIBRATION_NAME)
    calibration.check_fits(bundle)
    model = make_graph(bundle.graphs["encoder"], "encoder", "int8", "onnxruntime", calibration, form=VNNI)
    data = model.SerializeToString(deterministic=True)
    with OnnxRuntimeEngine(data, "cpu") as engine:
        digest = hashlib.sha256(data).hexdigest()
        info = GraphInfo(f"{INT8_ENCODER}.onnx", digest, engine.inputs, engine.outputs)
    manifest = replace(bundle.manifest, int8_encoder=info)
    atomic_write(path / info.file, data)
    atomic_write(path / MANIFEST_NAME, manifest.to_json().encode())
    return manifest
