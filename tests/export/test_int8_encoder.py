"""The INT8 encoder of the bundled model: what makes it, and that it is close to FP32."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from fsvit_edge.calib.calibration import CALIBRATION_NAME, Calibration
from fsvit_edge.export.int8_encoder import add_int8_encoder
from fsvit_edge.live.sources.demo import demo_supports
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, MANIFEST_NAME, Bundle, read_graph, read_manifest
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.machine import has_vnni_here
from fsvit_edge.runtime.preprocess import resize_image


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle"))


def values(data: bytes) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(data).graph.initializer}


def test_the_bundled_int8_encoder_is_what_its_calibration_makes_of_its_encoder(bundle: Path) -> None:
    shipped = read_manifest(bundle)
    assert shipped.int8_encoder is not None
    expected = read_graph(bundle, shipped.int8_encoder)
    (bundle / shipped.int8_encoder.file).unlink()
    made = add_int8_encoder(bundle)
    assert read_manifest(bundle) == made
    assert made.int8_encoder is not None
    found = read_graph(bundle, made.int8_encoder)
    # Not the sums: other versions of numpy may round the last bit of a scale otherwise.
    ours, theirs = values(found), values(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name].astype(np.float64), value.astype(np.float64), rtol=1e-5, atol=1e-6)
    operators = [node.op_type for node in onnx.load_from_string(found).graph.node]
    assert (operators.count("QLinearConv"), operators.count("MatMulIntegerToFloat")) == (40, 48)


def test_another_calibration_makes_another_graph(bundle: Path) -> None:
    """The control of the test before."""
    before = read_manifest(bundle).int8_encoder
    path = bundle / CALIBRATION_NAME
    calibration = Calibration.load(path)
    calibration.ranges["encoder"] = {
        name: (low * 1.1, high * 1.1) for name, (low, high) in calibration.ranges["encoder"].items()
    }
    calibration.save(path)
    after = add_int8_encoder(bundle).int8_encoder
    assert before is not None
    assert after is not None
    assert after.sha256 != before.sha256


def test_a_bundle_without_a_calibration_is_refused_and_unchanged(bundle: Path) -> None:
    (bundle / CALIBRATION_NAME).unlink()
    before = (bundle / MANIFEST_NAME).read_bytes()
    with pytest.raises(ArtifactError, match=r"calibration\.json does not exist"):
        add_int8_encoder(bundle)
    assert (bundle / MANIFEST_NAME).read_bytes() == before


@pytest.mark.skipif(not has_vnni_here(), reason="The graph is exact only on x86 processors with VNNI.")
def test_it_is_close_to_fp32_for_every_output() -> None:
    bundle = Bundle.load(DEFAULT_BUNDLE)
    assert bundle.manifest.int8_encoder is not None
    int8 = read_graph(bundle.path, bundle.manifest.int8_encoder)
    batch = np.stack([resize_image(support.image, bundle.manifest.image_size) for support in demo_supports()])
    with OnnxRuntimeEngine(bundle.graphs["encoder"], "cpu", 1) as exact, OnnxRuntimeEngine(int8, "cpu", 1) as engine:
        wanted, found = exact.run({"image": batch}), engine.run({"image": batch})
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        want, got = tensor.numpy(), found[name].numpy()
        assert np.linalg.norm(got - want) < 0.07 * np.linalg.norm(want), name
