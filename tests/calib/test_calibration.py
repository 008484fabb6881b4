import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from fsvit_edge.calib.calibration import CALIBRATION_NAME, FEWEST_PICTURES, Calibration
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.errors import ArtifactError


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(DEFAULT_BUNDLE)


@pytest.fixture
def calibration(bundle: Bundle) -> Calibration:
    return Calibration(
        format_version=1,
        model_name="small",
        image_size=bundle.manifest.image_size,
        graphs={"encoder": bundle.manifest.graphs["encoder"].sha256},
        preprocessing=bundle.manifest.preprocessing,
        method="minmax",
        pictures=40,
        seed=3,
        data_sha256="ab" * 32,
        banked=2,
        ranges={"encoder": {"x": (-1.5, 0.1), "y": (0.0, 0.0)}},
        channel_max={"encoder": {"x": [1.5, 0.25], "y": [0.0]}},
        created_by="a test",
    )


def test_a_saved_calibration_loads_and_its_sha256_is_the_files(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "made" / "calibration.json"
    calibration.save(path)
    loaded = Calibration.load(path)
    assert loaded == calibration
    assert loaded.sha256 == calibration.sha256 == sha256(path.read_bytes()).hexdigest()
    assert replace(loaded, seed=4).sha256 != loaded.sha256


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"image_size": 400}, "it is for images of 400 px, the bundle has 256 px"),
        (
            {"preprocessing": {"resize": "nearest", "mean": [0.5, 0.5, 0.5]}},
            r"its preprocessing has mean \[0.5, 0.5, 0.5\], the bundle's \[0.485, 0.456, 0.406\]",
        ),
        ({"preprocessing": {}}, "its preprocessing has mean None, the bundle's"),
        (
            {"graphs": {"encoder": "0123456789abcdef"}},
            r"its encoder has sha256 0123456789ab\.\.\. \(small\), the bundle",
        ),
        ({"graphs": {"decoder": "0123456789abcdef"}}, r"its decoder has sha256 0123456789ab\.\.\. .* none\.\.\. "),
    ],
)
def test_a_calibration_of_another_model_is_refused_with_the_reason(
    calibration: Calibration, bundle: Bundle, change: dict[str, Any], text: str
) -> None:
    replace(calibration, model_name="another name").check_fits(bundle)
    with pytest.raises(ArtifactError, match=text) as error:
        replace(calibration, **change).check_fits(bundle)
    assert f"fsvit-edge calib SOURCE --bundle {bundle.path} --output" in str(error.value)


def test_a_bundle_in_memory_may_have_tuples_where_the_file_has_lists(calibration: Calibration, bundle: Bundle) -> None:
    constants = {**bundle.manifest.preprocessing, "mean": tuple(bundle.manifest.preprocessing["mean"])}
    calibration.check_fits(replace(bundle, manifest=replace(bundle.manifest, preprocessing=constants)))


def test_too_few_pictures_cause_a_warning(calibration: Calibration) -> None:
    assert replace(calibration, pictures=FEWEST_PICTURES).warnings() == []
    assert "used only 31 pictures;" in replace(calibration, pictures=31).warnings()[0]
    assert "used only 1 picture;" in replace(calibration, pictures=1, banked=0).warnings()[0]


def set_to(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (set_to("format_version", value=2), "format version 2, this fsvit-edge reads 1; make it again with"),
        (lambda values: values.pop("ranges"), "'ranges' is missing"),
        (set_to("pictures", value=0), "it used 0 pictures"),
        (set_to("banked", value=41), "it used 40 pictures, 41 of them from a bank"),
        (set_to("method", value="guess"), "its method is 'guess', expected one of minmax, entropy, percentile"),
        (set_to("graphs", value={}), "belong to different graphs"),
        (set_to("ranges", "encoder", value={}), "belong to different tensors, or are empty"),
        (set_to("ranges", "encoder", "z", value=[0, 1]), "belong to different tensors, or are empty"),
        (set_to("ranges", "encoder", "x", value=[1, -1]), "the range of tensor 'x' is 1.0 to -1.0"),
        (set_to("ranges", "encoder", "x", value=[0, None]), "None"),
        (set_to("channel_max", "encoder", "x", value=[]), "the channels of tensor 'x' are empty"),
        (set_to("channel_max", "encoder", "x", value=[-1.0]), "not finite, or negative"),
    ],
)
def test_impossible_values_are_refused(
    calibration: Calibration, tmp_path: Path, change: Callable[[dict[str, Any]], None], text: str
) -> None:
    path = tmp_path / "calibration.json"
    calibration.save(path)
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values))
    assert Calibration.load(path) == calibration
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=text) as error:
        Calibration.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_ranges_that_are_not_finite_are_refused(calibration: Calibration, tmp_path: Path, number: str) -> None:
    path = tmp_path / "calibration.json"
    calibration.save(path)
    path.write_text(path.read_text().replace("0.1", number, 1))
    with pytest.raises(ArtifactError):
        Calibration.load(path)


def test_a_calibration_cut_short_anywhere_is_refused(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration.save(path)
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # but for the line's end
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError):
            Calibration.load(path)


def test_a_missing_file_is_reported_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"does not exist; make one with: fsvit-edge calib SOURCE --output .*none\."
    ):
        Calibration.load(tmp_path / "none.json")
    with pytest.raises(ArtifactError, match="not readable"):
        Calibration.load(tmp_path)


def test_loading_needs_neither_onnx_nor_an_engine() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['onnx', 'onnxruntime', 'torch', 'typer', 'cv2']))\n"
        "from fsvit_edge.calib.calibration import *\n"
        "from fsvit_edge.runtime.bundle import Bundle, DEFAULT_BUNDLE\n"
        "Calibration.load(DEFAULT_BUNDLE / CALIBRATION_NAME).check_fits(Bundle.load(DEFAULT_BUNDLE))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_bundled_calibration_fits_the_bundled_model_and_contains_only_numbers(bundle: Bundle) -> None:
    from fsvit_edge.calib.convert_cpu_stem import stem_tensors
    from fsvit_edge.calib.convert_int8 import linear_layers
    from fsvit_edge.calib.onnx_graph import Graph

    file = DEFAULT_BUNDLE / CALIBRATION_NAME
    shipped = Calibration.load(file)
    shipped.check_fits(bundle)
    assert shipped.warnings() == []
    graph = Graph(bundle.graphs["encoder"])
    layers = {layer.activation for layer in linear_layers(graph)}
    assert shipped.ranges["encoder"].keys() == layers | stem_tensors(graph).keys()
    assert shipped.channel_mean["encoder"].keys() == stem_tensors(graph).keys()
    text = file.read_text()
    assert len(text) < 200_000
    assert not any(word in text for word in ("/", "\\", ".jpg", ".mp4"))
