import copy
import hashlib
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnxsim
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import fsvit_edge
from fsvit_edge.export import parity, pipeline
from fsvit_edge.export.parity import ParityRow, raise_on_failure, verify
from fsvit_edge.export.pipeline import ExportOptions, export_bundle
from fsvit_edge.export.trace import check, simplify, trace
from fsvit_edge.model.fast_head import cache_supports
from fsvit_edge.model.graphs import build_graphs
from fsvit_edge.model.network import FewShotNetwork, normalize
from fsvit_edge.runtime.bundle import CPU_GRAPH_NAMES, GRAPH_NAMES, INT8_OUTLINE, MANIFEST_NAME, Bundle
from fsvit_edge.runtime.engines.base import TensorSpec
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import AccuracyGateError, ArtifactError, FsvitEdgeError, InputError
from fsvit_edge.runtime.machine import has_vnni_here
from fsvit_edge.runtime.preprocess import IMAGENET_MEAN, IMAGENET_STD

SIZE, GRID, CHANNELS, DIM = 48, 6, 18, 64
HEADS = ("head", "compare", "outline")
FILES = [MANIFEST_NAME, *(f"{name}.onnx" for name in (*GRAPH_NAMES, *CPU_GRAPH_NAMES))]
Models = dict[str, bytes]
Randomize = Callable[[nn.Module, int], None]


@pytest.fixture
def models(tiny_bundle: Path) -> Models:
    bundle = Bundle.load(tiny_bundle)
    return {**bundle.graphs, **bundle.cpu_graphs}


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch, models: Models) -> Models:
    """Graphs that `trace` returns instead of ten seconds of tracing; change one to break the export."""
    names = iter(GRAPH_NAMES)
    monkeypatch.setattr(pipeline, "trace", lambda *_: onnx.load_from_string(models[next(names)]))
    monkeypatch.setattr(pipeline, "_cpu_head", lambda *_: {name: models[name] for name in CPU_GRAPH_NAMES})
    return models


def pictures(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 6, 6, 3), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


def masks(count: int) -> Tensor:
    """From empty, where only the class token remains, to full."""
    made = torch.zeros(count, SIZE, SIZE, dtype=torch.uint8)
    for index in range(count):
        made[index, :, : round(SIZE * index / max(count - 1, 1))] = 1
    return made


@lru_cache(maxsize=4)
def opened(graph: bytes) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(graph, "cpu")


def assert_near(ours: np.ndarray, theirs: Tensor, tolerance: float = 1e-4) -> None:
    wanted = theirs.numpy()
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance * max(1.0, np.abs(wanted).max()))


def run(graph: bytes, **feed: Tensor) -> dict[str, np.ndarray]:
    outputs = opened(graph).run({name: tensor.numpy() for name, tensor in feed.items()})
    return {name: np.array(tensor.numpy()) for name, tensor in outputs.items()}


# ---- what a bundle contains


def test_a_bundle_contains_three_graphs_and_a_manifest(tiny_bundle: Path, tiny_network: FewShotNetwork) -> None:
    assert sorted(path.name for path in tiny_bundle.iterdir()) == sorted(FILES)
    manifest = Bundle.load(tiny_bundle).manifest
    described = {name: getattr(manifest, name) for name in manifest.__dataclass_fields__ if "graphs" not in name}
    preprocessing = described.pop("preprocessing")
    assert described == {
        "format_version": 2,
        "name": "tiny",
        "backbone": "vit_nano_patch8_64",
        "image_size": SIZE,
        "patch_size": 8,
        "num_layers": 6,
        "num_heads": 3,
        "support_grid": 12,
        "mask_size": 2 * GRID,
        "opset": 20,
        "precision": "fp32",
        "parity": {},
        "created_by": f"fsvit-edge {fsvit_edge.__version__}",
        "head": "cst",
        "presence_level": 0.5,
        "support_crop": 0.0,
        "most_tokens": 0,
        "int8_encoder": None,
    }
    assert (preprocessing["mean"], preprocessing["std"]) == (list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert manifest.cpu_graphs.keys() == set(CPU_GRAPH_NAMES)
    for name, info in {**manifest.graphs, **manifest.cpu_graphs}.items():
        assert info.file == f"{name}.onnx"
        assert info.sha256 == hashlib.sha256((tiny_bundle / info.file).read_bytes()).hexdigest()
    assert tiny_network.config.name == manifest.name


def test_the_manifest_describes_the_inputs_and_outputs_of_the_graphs(tiny_bundle: Path) -> None:
    graphs = Bundle.load(tiny_bundle).manifest.graphs
    tokens = TensorSpec("tokens", (1, CHANNELS, GRID**2, DIM), "float32")
    encoded = (
        tokens,
        TensorSpec("norms", (1, CHANNELS, GRID**2, 1), "float32"),
        TensorSpec("class_token", (1, CHANNELS, 1, DIM), "float32"),
        TensorSpec("class_query", (1, 3, DIM), "float32"),
        TensorSpec("image_keys", (1, 3, GRID**2, DIM), "float32"),
    )
    assert graphs["encoder"].inputs == (TensorSpec("image", ("batch", SIZE, SIZE, 3), "uint8"),)
    assert graphs["encoder"].outputs == tuple(
        TensorSpec(spec.name, ("batch", *spec.shape[1:]), spec.dtype) for spec in encoded
    )
    mask = TensorSpec("mask", (1, SIZE, SIZE), "uint8")
    assert graphs["enroll"].inputs == (*encoded, mask, TensorSpec("has_mask", (1,), "bool"))
    assert graphs["enroll"].outputs == (
        TensorSpec("support", (1, CHANNELS, 145, DIM), "float32"),
        TensorSpec("kept_mask", (1, 145), "float32"),
        TensorSpec("pooled", (1, CHANNELS, 9, DIM), "float32"),
        TensorSpec("pooled_mask", (1, 9), "float32"),
        TensorSpec("used_mask", (1, SIZE, SIZE), "uint8"),
    )
    assert graphs["head"].inputs == (
        tokens,
        TensorSpec("kept", ("supports", CHANNELS, "kept_tokens", DIM), "float32"),
        TensorSpec("kept_mask", ("supports", "kept_tokens"), "float32"),
        TensorSpec("pooled", ("supports", CHANNELS, 9, DIM), "float32"),
        TensorSpec("pooled_mask", ("supports", 9), "float32"),
        TensorSpec("averaging", ("ways", "supports"), "float32"),
    )
    assert graphs["head"].outputs == (
        TensorSpec("presence", ("ways",), "float32"),
        TensorSpec("foreground", ("ways", 2 * GRID, 2 * GRID), "float32"),
    )


def operators(graph: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


def test_the_position_embedding_is_a_constant_of_the_encoder(models: Models, tiny_network: FewShotNetwork) -> None:
    position = tiny_network.encoder.position().detach().numpy()
    constants = [numpy_helper.to_array(one) for one in onnx.load_from_string(models["encoder"]).graph.initializer]
    assert any(array.shape == position.shape and np.allclose(array, position) for array in constants)
    native = tuple(tiny_network.encoder.vit.pos_embed.shape)
    assert not any(array.shape == native for array in constants)
    assert "Resize" not in operators(models["encoder"])
    assert "Resize" in operators(models["enroll"])  # so a resize would have this name


def test_the_encoder_keeps_its_normalizations_and_its_gelu_whole(models: Models) -> None:
    names = operators(models["encoder"])
    # Two in each of 6 blocks, and the final norm after each block; ReduceMean would be part of a split norm.
    assert names.count("LayerNormalization") == 18
    assert names.count("Gelu") == 6
    assert "ReduceMean" not in names
    assert "Erf" not in names


# ---- ONNX against torch


@pytest.mark.parametrize("batch", [1, 3])
@torch.inference_mode()
def test_the_encoder_accepts_any_batch(models: Models, tiny_network: FewShotNetwork, batch: int) -> None:
    images = pictures(batch)
    ours = run(models["encoder"], image=images)
    output = tiny_network.encoder(normalize(images))
    vectors = output.tokens.unflatten(3, (3, DIM)).permute(0, 3, 1, 2, 4).flatten(1, 2)  # head-major channels
    assert_near(ours["tokens"], tiny_network.query_vectors(output))
    assert_near(ours["tokens"] * ours["norms"], vectors[:, :, 1:])
    assert_near(ours["class_token"], vectors[:, :, :1])
    assert_near(ours["class_query"], output.class_query)
    assert_near(ours["image_keys"], output.image_keys)


@pytest.mark.parametrize("cover", [None, 0.0, 0.3, 1.0])
@torch.inference_mode()
def test_enrollment_caches_the_same_as_torch(models: Models, tiny_network: FewShotNetwork, cover: float | None) -> None:
    image = pictures(1, seed=5)
    output = tiny_network.encoder(normalize(image))
    guessed = tiny_network.pseudo_mask(output)
    assert 0.05 < guessed.mean() < 0.95
    given = torch.ones(1, SIZE, SIZE, dtype=torch.uint8)
    if cover is not None:
        given[:, :, round(SIZE * cover) :] = 0
    wanted_mask = guessed if cover is None else given.float()
    wanted = cache_supports(tiny_network.support_vectors(output), wanted_mask, 12)

    ours = enrolled(models, image, given, cover is not None)
    assert np.array_equal(ours["used_mask"], wanted_mask.numpy())
    assert_near(ours["support"], wanted.kept)
    assert_near(ours["pooled"], wanted.pooled)
    assert np.array_equal(ours["kept_mask"], wanted.kept_mask.numpy())
    assert np.array_equal(ours["pooled_mask"], wanted.pooled_mask.numpy())


def enrolled(models: Models, image: Tensor, mask: Tensor, has_mask: bool = True) -> dict[str, np.ndarray]:
    encoded = {name: torch.from_numpy(array) for name, array in run(models["encoder"], image=image).items()}
    return run(models["enroll"], **encoded, mask=mask, has_mask=torch.tensor([has_mask]))


@torch.inference_mode()
def answered(models: Models, query: Tensor, supports: Tensor, given: Tensor, ways: int) -> dict[str, np.ndarray]:
    """Through all three graphs: only the kept tokens, padded, as on the device."""
    caches = [enrolled(models, image[None], mask[None]) for image, mask in zip(supports, given, strict=True)]
    lengths = [int(cache["kept_mask"].sum()) for cache in caches]
    kept = torch.zeros(len(caches), CHANNELS, max(lengths), DIM)
    kept_mask = torch.zeros(len(caches), max(lengths))
    for index, (cache, length) in enumerate(zip(caches, lengths, strict=True)):
        kept[index, :, :length] = torch.from_numpy(cache["support"][0][:, cache["kept_mask"][0] > 0])
        kept_mask[index, :length] = 1
    return run(
        models["head"],
        tokens=torch.from_numpy(run(models["encoder"], image=query)["tokens"]),
        kept=kept,
        kept_mask=kept_mask,
        pooled=torch.from_numpy(np.concatenate([cache["pooled"] for cache in caches])),
        pooled_mask=torch.from_numpy(np.concatenate([cache["pooled_mask"] for cache in caches])),
        averaging=torch.eye(ways).repeat_interleave(len(caches) // ways, dim=1) / (len(caches) // ways),
    )


@torch.inference_mode()
def published(
    network: FewShotNetwork, query: Tensor, supports: Tensor, given: Tensor, ways: int
) -> tuple[Tensor, Tensor]:
    logits = network.head(
        network.query_vectors(network.encoder(normalize(query))),
        network.support_vectors(network.encoder(normalize(supports))),
        given.float(),
    )
    presence, foreground = logits.presence.softmax(dim=1)[:, 1], logits.mask.softmax(dim=1)[:, 1]
    return presence.unflatten(0, (ways, -1)).mean(dim=1), foreground.unflatten(0, (ways, -1)).mean(dim=1)


@pytest.mark.parametrize(
    ("ways", "shots"), [(1, 1), (2, 3), pytest.param(20, 5, marks=pytest.mark.slow(reason="100 supports, 3 s"))]
)
def test_one_head_answers_for_any_number_of_classes_and_shots(
    models: Models, tiny_network: FewShotNetwork, ways: int, shots: int
) -> None:
    query, supports, given = pictures(1, seed=1), pictures(ways * shots, seed=2), masks(ways * shots).flip(0)
    ours = answered(models, query, supports, given, ways)
    presence, foreground = published(tiny_network, query, supports, given, ways)
    assert_near(ours["presence"], presence)
    assert_near(ours["foreground"], foreground)
    # The comparison can tell one class from the next.
    assert ways == 1 or np.abs(ours["foreground"] - foreground.roll(1, dims=0).numpy()).max() > 1e-3


@pytest.mark.parametrize(("opset", "simplified"), [(20, False), (21, True), (22, False)])
@torch.inference_mode()
def test_every_opset_with_and_without_simplification_computes_the_same(
    models: Models, tiny_network: FewShotNetwork, opset: int, simplified: bool
) -> None:
    model = trace(build_graphs(tiny_network)["enroll"], opset)
    model = simplify(model, "enroll") if simplified else model
    check(model, "enroll", opset)
    with pytest.raises(ArtifactError, match=f"only the standard operators of opset {opset - 1}"):
        check(model, "enroll", opset - 1)
    image, mask = pictures(1, seed=5), masks(3)[1:2]
    ours = enrolled({**models, "enroll": model.SerializeToString()}, image, mask)
    for name, wanted in enrolled(models, image, mask).items():
        assert_near(ours[name], torch.from_numpy(wanted), 1e-6)


@pytest.mark.slow(reason="traces all three graphs once more, 15 s")
def test_an_export_without_simplification_in_another_opset_passes_verification(
    tiny_network: FewShotNetwork, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[str] = []
    options = ExportOptions(opset=21, simplify=False)
    result = export_bundle(tiny_network, tmp_path / "bundle", options, steps.append)
    assert steps == [
        *(f"{step} {name}" for name in GRAPH_NAMES for step in ("trace", "check")),
        "trace the head for CPUs",
        "compare torch with ONNX Runtime",
        "write",
    ]
    assert all(row.passed for row in result.parity)
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.manifest == result.manifest
    assert bundle.manifest.opset == 21
    assert bundle.manifest.parity == {row.output: row.max_error for row in result.parity}
    outputs = {f"{name}.{spec.name}" for name, info in bundle.manifest.graphs.items() for spec in info.outputs}
    of_cpus = {"compare.presence", "outline.foreground"} | (
        {f"{INT8_OUTLINE}.foreground"} if has_vnni_here() else set()
    )
    assert {row.output for row in result.parity} == {*outputs, *of_cpus}
    files = {**bundle.graphs, **bundle.cpu_graphs}
    assert result.sizes_mb == {name: len(data) / 1e6 for name, data in files.items()}
    assert {opset.version for opset in onnx.load_from_string(bundle.graphs["encoder"]).opset_import} == {21}
    assert "Resize" not in operators(bundle.graphs["encoder"])
    assert capfd.readouterr() == ("", "")  # torch's exporter prints, but not to the user


# ---- the check of a graph


def model_with(
    *nodes: onnx.NodeProto,
    opset: int = 20,
    domains: tuple[str, ...] = (),
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [4], [1.0] * 4)
    graph = helper.make_graph(list(nodes), "g", [x], [y], [scale])
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)


NORM = helper.make_node("LayerNormalization", ["x", "scale"], ["y"])
IDENTITY = helper.make_node("Identity", ["x"], ["y"])
DANGLING = helper.make_node("LayerNormalization", ["missing", "scale"], ["y"])
TWICE = helper.make_node("Twice", ["x"], ["y"], domain="own")
FOREIGN = helper.make_node("FusedGelu", ["x"], ["y"], domain="com.microsoft")
FUNCTION = helper.make_function(
    "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 20)]
)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (model_with(IDENTITY), "encoder graph has no LayerNormalization"),  # a norm in pieces
        (model_with(FOREIGN, domains=("com.microsoft",)), r"the other domains \['com.microsoft'\]"),
        (model_with(NORM, opset=21), r"only the standard operators of opset 20, got \{'': 21\}"),
        (model_with(NORM, opset=19), r"only the standard operators of opset 20, got \{'': 19\}"),
        (model_with(TWICE, domains=("own",), functions=(FUNCTION,)), "standard operators"),
        (model_with(DANGLING), "encoder graph is not valid ONNX"),
        (model_with(helper.make_node("MatMul", ["x", "x"], ["y"])), "encoder graph is not valid ONNX"),
        (model_with(helper.make_node("NoSuchThing", ["x"], ["y"])), "encoder graph is not valid ONNX"),
    ],
)
def test_a_graph_that_cannot_run_everywhere_is_refused(model: onnx.ModelProto, message: str) -> None:
    check(model_with(NORM), "encoder", 20)
    check(model_with(IDENTITY), "head", 20)
    with pytest.raises(ArtifactError, match=message) as caught:
        check(model, "encoder", 20)
    assert "\n" not in str(caught.value)


def test_a_simplification_that_changes_the_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxsim, "simplify", lambda model: (model, False))
    with pytest.raises(FsvitEdgeError, match="changed what the head graph computes; export with --no-simplify"):
        simplify(model_with(IDENTITY), "head")


# ---- the accuracy gate


def with_one_weight_more(graph: bytes, index: int) -> bytes:
    """Add 1 to the first value of the matrix number `index`."""
    model = onnx.load_from_string(graph)
    matrices = [
        tensor for tensor in model.graph.initializer if len(tensor.dims) > 1 and tensor.data_type == TensorProto.FLOAT
    ]
    array = numpy_helper.to_array(matrices[index]).copy()
    array.flat[0] += 1
    matrices[index].CopyFrom(numpy_helper.from_array(array, matrices[index].name))
    return model.SerializeToString()


def with_another_resize(graph: bytes) -> bytes:
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "coordinate_transformation_mode":
                attribute.s = b"half_pixel"
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("name", "change", "misses"),
    [
        pytest.param("encoder", lambda graph: with_one_weight_more(graph, 5), {"encoder", *HEADS}, id="encoder"),
        pytest.param("enroll", with_another_resize, {"enroll", *HEADS}, id="enroll"),
        pytest.param("head", lambda graph: with_one_weight_more(graph, 0), {"head"}, id="head's first matrix"),
        pytest.param("head", lambda graph: with_one_weight_more(graph, -1), {"head"}, id="head's last matrix"),
        pytest.param("compare", lambda graph: with_one_weight_more(graph, 0), {"compare", "outline"}, id="compare"),
        pytest.param("outline", lambda graph: with_one_weight_more(graph, 0), {"outline"}, id="outline"),
        pytest.param(
            INT8_OUTLINE,
            lambda graph: with_one_weight_more(graph, 0),
            {INT8_OUTLINE},
            id="outline in INT8",
            marks=pytest.mark.skipif(not has_vnni_here(), reason="INT8 outlines are for x86 processors with VNNI."),
        ),
    ],
)
def test_verification_notices_one_wrong_weight(
    models: Models, tiny_network: FewShotNetwork, name: str, change: Callable[[bytes], bytes], misses: set[str]
) -> None:
    sound = verify(tiny_network, models)
    assert all(row.passed for row in sound)
    raise_on_failure(sound)
    rows = verify(tiny_network, {**models, name: change(models[name])})
    # Those in INT8 may differ by more, so they may pass where the exact ones do not.
    assert {row.output.partition(".")[0] for row in rows if not row.passed} in (misses, misses | {INT8_OUTLINE})
    with pytest.raises(AccuracyGateError, match=rf"differs from torch in {name}\..*no bundle was written"):
        raise_on_failure(rows)


@pytest.mark.parametrize(
    ("output", "pairs", "passed"),
    [
        ("encoder.tokens", [(0.9e-4, 1.0), (0.0, 0.5)], True),
        ("encoder.tokens", [(1.1e-4, 1.0), (0.0, 0.5)], False),
        ("encoder.tokens", [(1.1e-3, 1.0), (0.0, 20.0)], True),  # relative to the largest value of all pictures
        ("encoder.tokens", [(float("nan"), 1.0), (0.0, 1.0)], False),
        ("encoder.tokens", [(0.0, 1.0), (float("nan"), 1.0)], False),
        ("encoder.tokens", [(0.0, 1.0), (float("nan"), float("nan"))], False),
        ("encoder.tokens", [(float("inf"), 1.0)], False),
        ("head.presence", [(1.1e-4, 20.0)], False),  # probabilities are compared as they are
        ("head.presence", [(0.9e-4, 20.0)], True),
    ],
)
def test_the_worst_picture_decides_if_an_output_passes(
    output: str, pairs: list[tuple[float, float]], passed: bool
) -> None:
    assert ParityRow.over_pictures(output, pairs).passed is passed


@pytest.mark.parametrize(("pixels", "passed"), [(0, True), (2, True), (3, False)])
def test_a_few_pixels_at_the_pseudo_masks_threshold_may_differ(
    models: Models,
    tiny_network: FewShotNetwork,
    monkeypatch: pytest.MonkeyPatch,
    altered: Callable[..., type[OnnxRuntimeEngine]],
    pixels: int,
    passed: bool,
) -> None:
    def flip(mask: np.ndarray) -> np.ndarray:
        flat = mask.ravel()
        return np.concatenate([1 - flat[:pixels], flat[pixels:]]).reshape(mask.shape)

    monkeypatch.setattr(parity, "OnnxRuntimeEngine", altered("used_mask", flip))
    monkeypatch.setattr(parity, "PROBABILITY_TOLERANCE", 2.5 / SIZE**2)
    row = next(row for row in verify(tiny_network, models) if row.output == "enroll.used_mask")
    assert row.max_error == pytest.approx(pixels / SIZE**2)
    assert row.passed is passed


@pytest.mark.parametrize("culprit", ["one weight of the head", "a network with other weights"])
def test_an_export_that_fails_the_gate_writes_nothing(
    untraced: Models, tiny_network: FewShotNetwork, randomize: Randomize, tmp_path: Path, culprit: str
) -> None:
    network = tiny_network
    if culprit == "one weight of the head":
        untraced["head"] = with_one_weight_more(untraced["head"], 0)
    else:
        network = copy.deepcopy(tiny_network)
        randomize(network.head, 1)
    with pytest.raises(AccuracyGateError, match=r"head\."):
        export_bundle(network, tmp_path / "bundle", ExportOptions(simplify=False))
    assert not list(tmp_path.iterdir())


# ---- completely or not at all


QUICK = ExportOptions(simplify=False, verify=False)


@pytest.fixture
def old_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "encoder.sm87.engine").write_bytes(b"of the old bundle")
    return tmp_path / "bundle"


def test_an_old_bundle_is_replaced_completely(untraced: Models, tiny_network: FewShotNetwork, old_bundle: Path) -> None:
    export_bundle(tiny_network, old_bundle, QUICK)
    assert sorted(path.name for path in old_bundle.iterdir()) == sorted(FILES)
    assert [path.name for path in old_bundle.parent.iterdir()] == ["bundle"]
    written = Bundle.load(old_bundle)
    assert {**written.graphs, **written.cpu_graphs} == untraced


@pytest.mark.parametrize(
    ("at", "error"), [("trace encoder", MemoryError), ("check head", RuntimeError), ("write", KeyboardInterrupt)]
)
@pytest.mark.usefixtures("untraced")
def test_a_failure_leaves_the_old_bundle_and_no_temporary_files(
    tiny_network: FewShotNetwork, old_bundle: Path, at: str, error: type[BaseException]
) -> None:
    before = {path: path.read_bytes() for path in old_bundle.iterdir()}

    def progress(step: str) -> None:
        if step == at:
            raise error

    with pytest.raises(error):
        export_bundle(tiny_network, old_bundle, QUICK, progress)
    assert {path: path.read_bytes() for path in old_bundle.iterdir()} == before
    assert [path.name for path in old_bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.usefixtures("untraced")
def test_an_empty_folder_and_missing_parents_are_accepted(tiny_network: FewShotNetwork, tmp_path: Path) -> None:
    output = tmp_path / "made" / "on" / "the" / "way"
    output.mkdir(parents=True)
    export_bundle(tiny_network, output, QUICK)
    assert sorted(path.name for path in output.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("opset", [19, 23])
def test_an_opset_outside_the_range_is_refused(tiny_network: FewShotNetwork, tmp_path: Path, opset: int) -> None:
    with pytest.raises(InputError, match=f"opset must be from 20 to 22, got {opset}"):
        export_bundle(tiny_network, tmp_path / "bundle", ExportOptions(opset=opset), pytest.fail)
    assert not list(tmp_path.iterdir())
