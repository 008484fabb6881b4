import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from fsvit_edge.calib import ranges as module
from fsvit_edge.calib.calibration import METHODS, Calibration
from fsvit_edge.calib.convert_int8 import linear_layers
from fsvit_edge.calib.onnx_graph import Graph
from fsvit_edge.calib.ranges import collect_ranges, layer_kinds
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.preprocess import resize_image

SIDE = 8
Rgb = npt.NDArray[np.uint8]


def plain_bundle(operators: tuple[str, ...] = ("Identity",), with_layer: bool = True) -> Bundle:
    """A bundle whose encoder feeds a linear layer with the picture's own values, after some operators."""
    weight = numpy_helper.from_array(np.eye(3, 2, dtype=np.float32), "encoder.block.fc9.weight")
    shape = numpy_helper.from_array(np.array([1, -1, 3]), "shape")
    last = [f"x{len(operators)}"]
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Reshape", ["cast", "shape"], ["x0"]),
        *(helper.make_node(name, [f"x{place}"], [f"x{place + 1}"]) for place, name in enumerate(operators)),
        helper.make_node(*(("MatMul", [*last, weight.name]) if with_layer else ("Identity", last)), ["tokens"]),
    ]
    image = helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [1, SIDE, SIDE, 3])
    tokens = helper.make_tensor_value_info("tokens", onnx.TensorProto.FLOAT, [1, SIDE**2, 2 if with_layer else 3])
    graph = helper.make_graph(nodes, "encoder", [image], [tokens], [weight, shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    shipped = Bundle.load(DEFAULT_BUNDLE)
    info = replace(shipped.manifest.graphs["encoder"], sha256=hashlib.sha256(data).hexdigest())
    manifest = replace(shipped.manifest, name="plain", image_size=SIDE, graphs={"encoder": info})
    return Bundle(Path("plain"), manifest, {"encoder": data})


def layer_inputs(graph: bytes) -> list[str]:
    """The tensors that enter the linear layers, each once."""
    return list(dict.fromkeys(layer.activation for layer in linear_layers(Graph(graph))))


def noise(seed: int, highest: int = 10) -> Rgb:
    return np.random.default_rng(seed).integers(0, highest + 1, (SIDE, SIDE, 3), dtype=np.uint8)


def only_range(calibration: Calibration) -> tuple[float, float]:
    (found,) = calibration.ranges["encoder"].values()
    return found


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Bundle:
    return Bundle.load(tiny_bundle)


@pytest.fixture(scope="module")
def photographs() -> list[Rgb]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + 3 * index, 50, 3), dtype=np.uint8) for index in range(5)]


@pytest.fixture(scope="module")
def plainly(tiny: Bundle, photographs: list[Rgb]) -> dict[str, npt.NDArray[np.float32]]:
    """Tensor -> its values (N, C) over all photographs, by a plain session on a graph that has them as outputs."""
    model = onnx.load_from_string(tiny.graphs["encoder"])
    names = layer_inputs(tiny.graphs["encoder"])
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    size = tiny.manifest.image_size
    runs = [session.run(names, {"image": resize_image(picture, size)[None]}) for picture in photographs]
    return {
        name: np.concatenate([values.reshape(-1, values.shape[-1]) for values in found])
        for name, found in zip(names, zip(*runs, strict=True), strict=True)
    }


def test_the_inputs_of_every_linear_layer_of_the_bundles_graph_are_found(tiny: Bundle) -> None:
    model = onnx.load_from_string(tiny.graphs["encoder"])
    names = layer_inputs(tiny.graphs["encoder"])
    assert len(names) == len(set(names)) == 4 * 6  # qkv, proj, fc1, fc2 of each block
    assert set(names) <= {output for node in model.graph.node for output in node.output}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[0] in names]
    constants = {tensor.name for tensor in model.graph.initializer}
    assert all(node.input[1] in constants for node in products)
    assert layer_inputs(tiny.graphs["head"]) == []


def test_an_input_that_two_layers_share_is_collected_once() -> None:
    bundle = plain_bundle()
    model = onnx.load_from_string(bundle.graphs["encoder"])
    model.graph.node.append(helper.make_node("MatMul", ["x1", "encoder.block.fc9.weight"], ["again"]))
    model.graph.output.append(helper.make_tensor_value_info("again", onnx.TensorProto.FLOAT, None))
    shared = replace(bundle, graphs={"encoder": model.SerializeToString()})
    assert collect_ranges(shared, [noise(0)], "minmax").ranges["encoder"].keys() == {"x1"}


def test_minmax_is_the_extremes_and_channels_their_largest_absolute_values(
    tiny: Bundle, photographs: list[Rgb], plainly: dict[str, npt.NDArray[np.float32]]
) -> None:
    found = collect_ranges(tiny, iter(photographs), "minmax", seed=5)
    found.check_fits(tiny)
    assert (found.method, found.pictures, found.seed, found.banked) == ("minmax", len(photographs), 5, 0)
    assert found.ranges["encoder"].keys() == found.channel_max["encoder"].keys() == plainly.keys()
    for name, values in plainly.items():
        scale = np.abs(values).max()
        low, high = found.ranges["encoder"][name]
        np.testing.assert_allclose([low, high], [values.min(), values.max()], atol=1e-5 * scale)
        channels = found.channel_max["encoder"][name]
        np.testing.assert_allclose(
            channels, np.abs(values).max(axis=0), rtol=6e-5, atol=1e-5 * scale
        )  # five digits are kept


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=pytest.mark.slow(reason="its calibrator takes 6 s") if method == "entropy" else ())
        for method in METHODS
    ],
)
def test_the_ranges_are_those_of_onnx_runtimes_own_calibrator(
    tiny: Bundle,
    photographs: list[Rgb],
    plainly: dict[str, npt.NDArray[np.float32]],
    method: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Theirs is given all pictures at once and as many bins; ours differs by the place of the bins' edges."""
    from onnxruntime.quantization import calibrate

    bins = 384  # entropy takes a time that grows with their square
    monkeypatch.setattr(module, "PERCENTILE", 99.9)
    monkeypatch.setattr(module, "_BINS", bins)
    data = onnx.load_from_string(tiny.graphs["encoder"])
    onnx.save(data, tmp_path / "encoder.onnx")
    options = {"symmetric": False, "num_bins": bins, "num_quantized_bins": 128, "percentile": 99.9}
    kind = {name.lower(): kind for name, kind in calibrate.CalibrationMethod.__members__.items()}[method]
    theirs = calibrate.create_calibrator(
        tmp_path / "encoder.onnx", ["MatMul", "Gemm"], str(tmp_path / "augmented.onnx"), kind, extra_options=options
    )
    size = tiny.manifest.image_size
    feeds = iter([{"image": resize_image(picture, size)[None]} for picture in photographs])

    class Reader(calibrate.CalibrationDataReader):
        def get_next(self) -> dict[str, Rgb] | None:
            return next(feeds, None)

    theirs.collect_data(Reader())
    expected = theirs.compute_data()
    found = collect_ranges(tiny, photographs, method).ranges["encoder"]
    for name, values in plainly.items():
        scale = float(np.abs(values).max())
        near = {"minmax": 1e-5, "percentile": 4 / bins, "entropy": 0.35}[method]
        np.testing.assert_allclose(found[name], np.ravel(expected[name].range_value), atol=near * scale)


def test_percentile_ignores_a_planted_outlier_and_minmax_does_not() -> None:
    pictures = [noise(seed) for seed in range(250)]
    pictures[30][4, 4, 1] = 255
    bundle = plain_bundle()
    extremes = only_range(collect_ranges(bundle, pictures, "minmax"))
    assert extremes == (0, 255)
    low, high = only_range(collect_ranges(bundle, pictures, "percentile"))
    assert low == 0
    assert 9.9 < high < 11
    assert only_range(collect_ranges(bundle, pictures, "entropy"))[1] < 100
    calibration = collect_ranges(bundle, pictures, "percentile")
    assert calibration.channel_max["encoder"]["x1"] == [10, 255, 10]  # what was seen, not what is kept


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_pictures_does_not_matter(method: str) -> None:
    pictures = [noise(seed, highest) for seed, highest in enumerate([1, 2, 5, 10, 60, 255])]
    bundle = plain_bundle()
    first = collect_ranges(bundle, pictures, method)
    assert collect_ranges(bundle, pictures, method) == first
    assert collect_ranges(bundle, pictures[::-1], method) == first  # so a histogram that widens loses nothing
    assert collect_ranges(bundle, pictures[1:], method) != first


def test_the_sha256_of_the_data_depends_on_pixels_and_shapes() -> None:
    bundle = plain_bundle()
    pictures = [noise(seed) for seed in range(3)]
    first = collect_ranges(bundle, pictures, "minmax").data_sha256
    altered = pictures[1].copy()
    altered[3, 3, 0] += 1
    assert collect_ranges(bundle, [pictures[2], pictures[0], pictures[1]], "minmax").data_sha256 == first
    assert collect_ranges(bundle, [pictures[0], altered, pictures[2]], "minmax").data_sha256 != first
    flat = pictures[1].reshape(SIDE // 2, SIDE * 2, 3)
    assert collect_ranges(bundle, [pictures[0], flat, pictures[2]], "minmax").data_sha256 != first


def test_pictures_from_a_bank_are_counted() -> None:
    bundle = plain_bundle()
    alone = collect_ranges(bundle, [noise(0)], "minmax")
    both = collect_ranges(bundle, [noise(0)], "minmax", banked=[noise(1, 200), noise(2)])
    assert (alone.pictures, alone.banked) == (1, 0)
    assert (both.pictures, both.banked) == (3, 2)
    assert only_range(both)[1] > only_range(alone)[1]


def test_a_calibration_that_is_not_possible_is_refused() -> None:
    bundle = plain_bundle()
    with pytest.raises(InputError, match="Unknown method 'max'; choose one of: minmax, entropy, percentile"):
        collect_ranges(bundle, [noise(0)], "max")
    with pytest.raises(InputError, match="There is no picture to calibrate with"):
        collect_ranges(bundle, [])
    with pytest.raises(ArtifactError, match="has no linear layer to quantize"):
        collect_ranges(plain_bundle(with_layer=False), [noise(0)])
    garbage = replace(bundle, graphs={"encoder": b"garbage"})
    with pytest.raises(ArtifactError, match="not an ONNX file"):
        collect_ranges(garbage, [noise(0)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "operators", [("Neg", "Sqrt"), ("Log",), ("Exp", "Exp")], ids=["nan", "minus infinity", "infinity"]
)
def test_values_that_are_not_finite_are_refused(operators: tuple[str, ...], method: str) -> None:
    harmless = np.ones((SIDE, SIDE, 3), np.uint8) if "Neg" not in operators else np.zeros((SIDE, SIDE, 3), np.uint8)
    bundle = plain_bundle(operators)
    assert collect_ranges(bundle, [harmless], method).ranges["encoder"].keys() == {f"x{len(operators)}"}
    with pytest.raises(ArtifactError, match="computes NaN or infinity in tensor"):
        collect_ranges(bundle, [harmless, noise(0)], method)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_is_always_zero_has_a_range(method: str) -> None:
    black = collect_ranges(plain_bundle(), [np.zeros((SIDE, SIDE, 3), np.uint8)], method)
    assert only_range(black) == (0, 0)


def test_nothing_is_printed_and_steps_are_reported(capfd: pytest.CaptureFixture[str]) -> None:
    steps: list[str] = []
    for method in METHODS:
        collect_ranges(plain_bundle(), [noise(seed) for seed in range(20)], method, progress=steps.append)
    assert capfd.readouterr() == ("", "")
    assert steps == ["picture 1", "picture 17", "choose ranges"] * 3


def test_pictures_are_read_one_at_a_time() -> None:
    """A picture is released before the next but one is read, so a source of any length fits into memory."""
    import weakref

    alive: list[weakref.ref[Rgb]] = []

    def endless() -> Iterator[Rgb]:
        for seed in range(20):
            picture = noise(seed)
            alive.append(weakref.ref(picture))
            yield picture
            assert sum(reference() is not None for reference in alive) <= 2

    assert collect_ranges(plain_bundle(), endless()).pictures == 20


PEAK = r"""
import re, sys
from pathlib import Path
import numpy as np
from fsvit_edge.calib import ranges
from fsvit_edge.runtime.bundle import Bundle
bundle, num, keeps = Bundle.load(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3] == "keep"
if keeps:
    add, kept = ranges._Statistics.add, []
    def keep(self, *arrays):
        kept.append([array.copy() for array in arrays if array is not None])
        add(self, *arrays)
    ranges._Statistics.add = keep
rng = np.random.default_rng(0)
ranges.collect_ranges(bundle, (rng.integers(0, 256, (99, 99, 3), dtype=np.uint8) for _ in range(num)), "percentile")
print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def peak_mib(bundle: Path, num: int, how: str) -> int:
    command = [sys.executable, "-W", "error", "-c", PEAK, str(bundle), str(num), how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow(reason="calibrates in three processes, 7 s")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_set(tiny_bundle: Path) -> None:
    few, many, kept = (peak_mib(tiny_bundle, *how) for how in [(16, "drop"), (128, "drop"), (128, "keep")])
    assert many - few < 20
    assert kept - few > 100, "the measurement would not notice tensors that are kept"


def test_layers_are_summarized_by_their_names(tiny: Bundle, photographs: list[Rgb]) -> None:
    calibration = collect_ranges(tiny, photographs, "minmax")
    kinds = layer_kinds(tiny, calibration)
    assert [(kind.name, kind.tensors) for kind in kinds] == [("qkv", 6), ("proj", 6), ("fc1", 6), ("fc2", 6)]
    everything = calibration.ranges["encoder"].values()
    assert min(kind.low for kind in kinds) == min(low for low, _ in everything)
    assert max(kind.high for kind in kinds) == max(high for _, high in everything)
    assert all(1 <= kind.outlier_ratio < 100 for kind in kinds)


def test_the_outlier_ratio_is_the_largest_channel_against_the_median() -> None:
    picture = np.full((SIDE, SIDE, 3), (2, 100, 4), np.uint8)
    bundle = plain_bundle()
    (kind,) = layer_kinds(bundle, collect_ranges(bundle, [picture], "minmax"))
    assert (kind.name, kind.tensors, kind.low, kind.high, kind.outlier_ratio) == ("fc9", 1, 2, 100, 25)
