import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from onnx_bytes import field as proto
from onnx_bytes import onnx_model

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.bundle import (
    CPU_GRAPH_NAMES,
    DEFAULT_BUNDLE,
    GRAPH_NAMES,
    INT8_ENCODER,
    MANIFEST_NAME,
    OBJECTNESS,
    Bundle,
    is_crop_factor,
    read_graph,
    read_manifest,
    sealed,
)
from fsvit_edge.runtime.engines import open_graphs
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.onnx_file import keeps_data_elsewhere

Spoil = Callable[[Path], object]
FILES = [f"{name}.onnx" for name in (*GRAPH_NAMES, OBJECTNESS)]
SHIPPED: dict[str, Any] = json.loads((DEFAULT_BUNDLE / MANIFEST_NAME).read_text())
GRAPHS = {name: onnx_model(described) for name, described in {**SHIPPED["graphs"], **SHIPPED["cpu_graphs"]}.items()}


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change `bundle.json` of the bundle at `path` and make its sum right again, as somebody who forges it would."""
    values = json.loads((path / MANIFEST_NAME).read_text())
    change(values)
    (path / MANIFEST_NAME).write_text(json.dumps(sealed(values)))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose graphs are a few bytes: enough for everything that happens before they are parsed."""
    path = tmp_path / "bundle"
    path.mkdir()
    (path / MANIFEST_NAME).write_text(json.dumps(SHIPPED))
    for name in (*GRAPH_NAMES, *CPU_GRAPH_NAMES):
        (path / f"{name}.onnx").write_bytes(GRAPHS[name])

    def set_sums(values: dict[str, Any]) -> None:
        for kind, names in (("graphs", GRAPH_NAMES), ("cpu_graphs", CPU_GRAPH_NAMES)):
            for name in names:
                values[kind][name]["sha256"] = hashlib.sha256(GRAPHS[name]).hexdigest()

    edit(path, set_sums)
    return path


def test_an_intact_bundle_is_read(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    assert loaded.path == bundle
    assert loaded.graphs == {name: GRAPHS[name] for name in GRAPH_NAMES}
    assert loaded.cpu_graphs == {name: GRAPHS[name] for name in CPU_GRAPH_NAMES}
    assert loaded.manifest.name == SHIPPED["name"]


def test_the_manifest_loses_nothing_when_written_and_read() -> None:
    values = json.loads(read_manifest(DEFAULT_BUNDLE).to_json())
    assert values == sealed({"head": "cst", "presence_level": 0.5, "support_crop": 0.0, "int8_encoder": None} | SHIPPED)


@pytest.mark.parametrize(
    ("field", "older", "given", "wrong"),
    [
        ("head", "cst", "prototype", {"'linear'": "linear", "1": 1}),
        ("presence_level", 0.5, 0.62, {"0": 0, "1": 1, "-0.5": -0.5, "1.5": 1.5, "'high'": "high"}),
        ("support_crop", 0.0, 2.0, {"0.5": 0.5, "-1": -1, "'2'": "2"}),
        ("most_tokens", 0, 144, {"-1": -1, "1.5": 1.5, "145": 145, "1000000000000": 10**12}),
    ],
)
def test_a_field_that_older_bundles_lack_has_a_default_and_limits(
    bundle: Path, field: str, older: object, given: object, wrong: dict[str, object]
) -> None:
    edit(bundle, lambda values: values.pop(field, None))
    assert getattr(read_manifest(bundle), field) == older
    edit(bundle, lambda values: values.update({field: given}))
    assert getattr(read_manifest(bundle), field) == given
    for shown, value in wrong.items():
        edit(bundle, lambda values, value=value: values.update({field: value}))
        with pytest.raises(ArtifactError, match=f"wrong values: {field} is {shown}"):
            read_manifest(bundle)


USED = [
    *(("graphs", name, kind) for name in GRAPH_NAMES for kind in ("inputs", "outputs")),
    *(("cpu_graphs", name, kind) for name in CPU_GRAPH_NAMES for kind in ("inputs", "outputs")),
    *((INT8_ENCODER, None, kind) for kind in ("inputs", "outputs")),
]


@pytest.mark.parametrize(("place", "name", "kind"), USED)
@pytest.mark.parametrize("change", [list.clear, lambda specs: specs[0].update(shape=[])], ids=["none", "no axes"])
def test_graphs_without_the_tensors_that_the_code_names_are_refused(
    bundle: Path, place: str, name: str | None, kind: str, change: Callable[[list[Any]], object]
) -> None:
    read_manifest(bundle)
    edit(bundle, lambda values: change((values[place] if name is None else values[place][name])[kind]))
    with pytest.raises(ArtifactError, match=f"the graph '{name or place}' must have an {kind[:-1]} '.*' with . axes;"):
        read_manifest(bundle)


def test_a_bundle_without_the_head_for_cpus_is_an_older_one(bundle: Path) -> None:
    edit(bundle, lambda values: values.pop("cpu_graphs"))
    assert Bundle.load(bundle).cpu_graphs == {}


def test_an_int8_encoder_is_optional_and_read_only_when_it_is_wanted(bundle: Path) -> None:
    info = read_manifest(bundle).int8_encoder
    assert info is not None
    assert read_manifest(bundle).all_graphs.keys() == {*GRAPH_NAMES, *CPU_GRAPH_NAMES, INT8_ENCODER}
    assert Bundle.load(bundle).graphs.keys() == set(GRAPH_NAMES)  # its file does not exist here
    with pytest.raises(ArtifactError, match=r"int8_encoder\.onnx cannot be read: No such file"):
        read_graph(bundle, info)
    (bundle / info.file).write_bytes(b"another graph")
    with pytest.raises(ArtifactError, match=r"int8_encoder\.onnx was altered or damaged: sha256"):
        read_graph(bundle, info)
    assert read_graph(DEFAULT_BUNDLE, info) == (DEFAULT_BUNDLE / info.file).read_bytes()
    edit(bundle, lambda values: values["int8_encoder"].update(file="../int8_encoder.onnx"))
    with pytest.raises(ArtifactError, match="the int8_encoder graph's file must be in the bundle"):
        read_manifest(bundle)
    edit(bundle, lambda values: values.pop("int8_encoder"))
    older = read_manifest(bundle)
    assert (older.int8_encoder, older.all_graphs) == (None, {**older.graphs, **older.cpu_graphs})


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(
    "values", [[0.5, 0.5], [0.5, 0.5, -0.5], [0.5, 0.5, 10**400], [0.5, 0.5, 256], [True] * 3, "0.5", None]
)
def test_constants_of_the_preprocessing_that_cannot_be_are_refused(bundle: Path, name: str, values: object) -> None:
    edit(bundle, lambda manifest: manifest["preprocessing"].update({name: values}))
    with pytest.raises(ArtifactError, match=rf"preprocessing\.{name} is .*, not three (positive )?numbers"):
        read_manifest(bundle)


def test_a_color_may_have_a_mean_of_0_and_no_deviation_of_0(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["preprocessing"].update(mean=[0, 0, 0], std=[255, 1, 1e-3]))
    assert read_manifest(bundle).preprocessing["mean"] == [0, 0, 0]
    edit(bundle, lambda manifest: manifest["preprocessing"].update(std=[0, 0, 0]))
    with pytest.raises(ArtifactError, match=r"preprocessing\.std is \[0, 0, 0\], not three positive numbers to 255"):
        read_manifest(bundle)


def test_a_crop_factor_is_0_or_at_least_1_and_finite() -> None:
    # A number of JSON can be too large for a float.
    assert [is_crop_factor(json.loads(text)) for text in ("0", "1", "1e9", "1e999", "0.99")] == [1, 1, 1, 0, 0]


def write(text: bytes) -> Spoil:
    return lambda path: (path / MANIFEST_NAME).write_bytes(text)


def forge(change: Callable[[dict[str, Any]], object]) -> Spoil:
    return lambda path: edit(path, change)


def field(name: str, value: object) -> Spoil:
    return forge(lambda values: values.update({name: value}))


def graph(key: str, value: object, name: str = "enroll") -> Spoil:
    return forge(lambda values: values["graphs"][name].update({key: value}))


def flip(name: str) -> Spoil:
    def flip_a_bit(path: Path) -> None:
        data = bytearray((path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (path / name).write_bytes(data)

    return flip_a_bit


SPOILED: list[tuple[Spoil, str]] = [
    (shutil.rmtree, "does not exist or is not a folder"),
    (lambda path: shutil.move(path, path.parent / "away") and path.touch(), "does not exist or is not a folder"),
    (lambda path: (path / MANIFEST_NAME).unlink(), "is not a bundle: it has no bundle.json"),
    (write(b"{'single': 1}"), "is not readable JSON"),
    (write(b"[1, 2]"), "has format version None, this fsvit-edge reads 2"),
    (forge(lambda values: values.pop("format_version")), "has format version None"),
    (field("format_version", 1), "has format version 1, this fsvit-edge reads 2; export the bundle again"),
    (forge(lambda values: values.pop("image_size")), "is incomplete, has unknown fields or wrong values: 'image_size'"),
    (
        forge(lambda values: values["cpu_graphs"].pop("outline")),
        "cpu_graphs are compare, int8_outline, not compare, outline, int8_outline",
    ),
    (forge(lambda values: values["graphs"].update(values["cpu_graphs"])), "names a graph 'compare' that"),
    (field("color", "red"), "unknown field 'color'"),
    (field("image_size", "128"), "image_size is '128'"),
    (field("graphs", []), "is incomplete"),
    (field("graphs", {}), "is incomplete: it has no graph 'encoder'"),
    (field("presence_level", 10**400), "too large to convert to float"),
    (field("presence_level", 1), "not between 0 and 1; export the bundle again"),
    (forge(lambda values: values["graphs"]["enroll"].pop("sha256")), "'graphs.enroll.sha256' is missing"),
    (forge(lambda values: values["graphs"]["enroll"].pop("file")), "'graphs.enroll.file' is missing"),
    (graph("inputs", [{"name": "mask"}]), "'graphs.enroll.inputs[0].shape' is missing"),
    (graph("file", "../enroll.onnx"), "must be in the bundle, got '../enroll.onnx'"),
    (graph("file", "/etc/passwd"), "must be in the bundle, got '/etc/passwd'"),
    (graph("file", "a/../b.onnx"), "must be in the bundle"),
    (graph("file", "enroll\0.onnx"), "must be in the bundle"),
    (graph("file", ".."), "cannot be read: Is a directory"),
    (graph("file", ""), "cannot be read: Is a directory"),
    (graph("file", "../objectness.onnx", OBJECTNESS), "the objectness graph's file must be in the bundle"),
    (graph("sha256", "0" * 64), "expected 000000000000..."),
    (
        forge(lambda values: values["graphs"].update(depth=values["graphs"].pop(OBJECTNESS))),
        "names a graph 'depth' that this fsvit-edge does not know; update it.",
    ),
    *((lambda path, name=name: (path / name).unlink(), f"{name} cannot be read: No such file") for name in FILES),
    *((flip(name), f"{name} was altered or damaged: sha256") for name in FILES),
]


@pytest.mark.parametrize(("spoil", "reason"), SPOILED, ids=[reason for _, reason in SPOILED])
def test_a_damaged_bundle_is_refused_in_one_sentence(bundle: Path, spoil: Spoil, reason: str) -> None:
    tell_objectness(bundle)
    Bundle.load(bundle)
    spoil(bundle)
    with pytest.raises(ArtifactError) as refused:
        Bundle.load(bundle)
    assert reason in str(refused.value)
    assert str(bundle) in str(refused.value)
    assert "\n" not in str(refused.value)


def tell_objectness(path: Path) -> None:
    """Add a graph of a few bytes that tells objectness, as `export --objectness` does."""
    tensors = {
        "inputs": SHIPPED["graphs"]["encoder"]["inputs"],
        "outputs": [{"name": OBJECTNESS, "shape": ["batch", 64, 64], "dtype": "float32"}],
    }
    (path / "objectness.onnx").write_bytes(onnx_model(tensors))
    digest = hashlib.sha256(onnx_model(tensors)).hexdigest()
    info = {"file": "objectness.onnx", "sha256": digest, **tensors}
    edit(path, lambda values: values["graphs"].update({OBJECTNESS: info}))


def rewrite(bundle: Path, name: str, *others: bytes) -> None:
    """Write a graph as `bundle.json` describes it, with what else is given, and its sum."""

    def write(values: dict[str, Any]) -> None:
        info = next(graphs[name] for graphs in (values["graphs"], values["cpu_graphs"]) if name in graphs)
        data = onnx_model(info, *others)
        (bundle / info["file"]).write_bytes(data)
        info["sha256"] = hashlib.sha256(data).hexdigest()

    edit(bundle, write)


def test_a_bundle_may_have_a_graph_for_objectness(bundle: Path) -> None:
    def forget_what_the_encoder_tells(values: dict[str, Any]) -> None:
        outputs = values["graphs"]["encoder"]["outputs"]
        values["graphs"]["encoder"]["outputs"] = [one for one in outputs if one["name"] != OBJECTNESS]

    edit(bundle, forget_what_the_encoder_tells)
    rewrite(bundle, "encoder")
    assert not read_manifest(bundle).has_objectness
    tell_objectness(bundle)
    loaded = Bundle.load(bundle)
    assert loaded.manifest.has_objectness
    assert loaded.graphs.keys() == {*GRAPH_NAMES, OBJECTNESS}


def test_the_sums_are_checked_before_any_graph_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(DEFAULT_BUNDLE, path)
    session = onnxruntime.InferenceSession
    parsed = []

    def remember(graph: bytes, *arguments: Any, **options: Any) -> onnxruntime.InferenceSession:
        parsed.append(graph)
        return session(graph, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", remember)
    monkeypatch.setattr(open_graphs, "OnnxRuntimeEngine", OnnxRuntimeEngine)  # the tests' own opens each graph once
    FewShotModel.load(path, threads=1).close()
    assert len(parsed) == len(("encoder", "enroll", "compare", "compare on all threads", "outline"))
    parsed.clear()
    flip("outline.onnx")(path)  # the last to be read: the others must not be parsed before it
    with pytest.raises(ArtifactError, match=r"outline\.onnx was altered or damaged"):
        FewShotModel.load(path, threads=1)
    assert parsed == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda values: values["graphs"]["enroll"]["inputs"][1].update(name="vectors"),
            "The inputs or outputs of .*enroll.onnx differ from bundle.json",
        ),
        (
            lambda values: values["cpu_graphs"]["compare"]["inputs"][0].update(dtype="uint8"),
            "The inputs or outputs of .*compare.onnx differ from bundle.json",
        ),
        (lambda values: values.update(image_size=SHIPPED["image_size"] + 8), "its graphs have"),
        (lambda values: values.update(mask_size=SHIPPED["mask_size"] + 2), "its graphs have"),
        (lambda values: values.update(num_layers=10**9), "num_layers x num_heads = 1000000000, its graphs have 6;"),
        (lambda values: values.update(num_heads=2), "num_layers x num_heads = 12, its graphs have 6;"),
        (lambda values: values.update(patch_size=10**9), "patch_size.*= 0, its graphs have 256;"),
        (lambda values: values.update(patch_size=0), "patch_size.*= 65536, its graphs have 256;"),
        (lambda values: values.update(support_grid=11), "support_grid.*= 122, its graphs have 145;"),
    ],
)
def test_a_manifest_that_does_not_match_its_graphs_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    for name in (*GRAPH_NAMES, *CPU_GRAPH_NAMES):
        (tmp_path / f"{name}.onnx").symlink_to(DEFAULT_BUNDLE / f"{name}.onnx")
    shutil.copy(DEFAULT_BUNDLE / MANIFEST_NAME, tmp_path)
    FewShotModel.load(tmp_path, threads=1).close()
    edit(tmp_path, change)
    with pytest.raises(ArtifactError, match=reason):
        FewShotModel.load(tmp_path, threads=1)


def test_a_graph_that_no_engine_can_load_is_named(tmp_path: Path) -> None:
    shutil.copytree(DEFAULT_BUNDLE, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path, "outline", proto(1, proto(4, "NoSuchOperator")))
    with pytest.raises(ArtifactError, match=r"outline\.onnx is damaged: The graph cannot be loaded by ONNX Runtime: "):
        FewShotModel.load(tmp_path, threads=1)
    digest = hashlib.sha256(b"\xff" * 9).hexdigest()
    (tmp_path / "outline.onnx").write_bytes(b"\xff" * 9)
    edit(tmp_path, lambda values: values["cpu_graphs"]["outline"].update(sha256=digest))
    with pytest.raises(ArtifactError, match=r"outline\.onnx is damaged or not an ONNX graph: it is truncated"):
        Bundle.load(tmp_path)


ELSEWHERE = proto(8, "weight") + proto(14, 1) + proto(13, proto(1, "location") + proto(2, "notes.txt"))
CONSTANT = proto(5, proto(1, "value") + proto(5, ELSEWHERE))


@pytest.mark.parametrize(
    "part",
    [
        proto(5, ELSEWHERE),  # a weight
        proto(5, proto(13, proto(1, "location"))),  # whatever it says of the place
        proto(1, proto(4, "Constant") + CONSTANT),
        proto(1, proto(4, "If") + proto(5, proto(6, proto(1, CONSTANT)))),  # in a graph within the graph
        proto(15, proto(1, ELSEWHERE)),  # a sparse tensor
    ],
)
def test_a_graph_whose_values_are_in_another_file_is_refused(bundle: Path, part: bytes) -> None:
    """Engines would take them from the working folder, and no sum covers them."""
    Bundle.load(bundle)  # the control
    rewrite(bundle, "head", part)
    with pytest.raises(
        ArtifactError, match=r"head\.onnx keeps values in another file, which its sha256 does not cover"
    ):
        Bundle.load(bundle)


def test_a_graph_of_which_a_part_stands_twice_is_read_as_a_whole() -> None:
    """As engines do, which merge the parts."""
    data = onnx_model(SHIPPED["graphs"]["head"]) + proto(7, proto(5, ELSEWHERE))
    assert keeps_data_elsewhere(data)
    assert not keeps_data_elsewhere(data[: -len(proto(7, proto(5, ELSEWHERE)))])
    assert keeps_data_elsewhere(proto(7, proto(5, ELSEWHERE)) + onnx_model(SHIPPED["graphs"]["head"]))


def test_a_graph_that_is_nested_without_end_is_refused_in_a_sentence(bundle: Path) -> None:
    part = b""
    for _ in range(3000):
        part = proto(1, proto(5, proto(6, part)))
    rewrite(bundle, "head", part)
    with pytest.raises(ArtifactError, match=r"head\.onnx is damaged or not an ONNX graph"):
        Bundle.load(bundle)


@pytest.mark.parametrize(
    ("change", "is_refused"),
    [
        ({"shape": ["batch", 9, 9, 3]}, True),
        ({"dtype": "float32"}, True),
        ({"shape": [1, 256, 256]}, True),
        ({"shape": ["n", 256, 256, 3]}, False),  # its own name for a size that is left open
    ],
)
def test_a_graph_that_is_not_as_described_is_refused_before_an_engine_opens_it(
    bundle: Path, change: dict[str, Any], is_refused: bool
) -> None:
    """Also where none would, because another encoder takes its place."""
    edit(bundle, lambda values: values["graphs"]["encoder"]["inputs"][0].update(change))
    if is_refused:
        with pytest.raises(ArtifactError, match=r"encoder\.onnx differ from bundle\.json|must have an input 'image'"):
            Bundle.load(bundle)
    else:
        Bundle.load(bundle)


def test_a_manifest_that_was_changed_without_its_sum_is_refused(bundle: Path) -> None:
    whole = (bundle / MANIFEST_NAME).read_text()
    for old, new in (('"opset": 20', '"opset": 21'), ('"sha256"', '"sha257"'), ("cst-nano", "cst-naNo")):
        assert old in whole
        (bundle / MANIFEST_NAME).write_text(whole.replace(old, new, 1))
        with pytest.raises(ArtifactError, match=r"was altered or damaged|has unknown fields"):
            read_manifest(bundle)
    values = json.loads(whole)
    del values["sha256"]
    (bundle / MANIFEST_NAME).write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match="do not match its sha256"):
        read_manifest(bundle)
    (bundle / MANIFEST_NAME).write_text(json.dumps(json.loads(whole), indent=7))  # only looks another way
    assert read_manifest(bundle).name == "cst-nano"


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(40 * 10**9)


@pytest.mark.parametrize(
    ("put", "reason"),
    [
        (os.mkfifo, "it is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is not a regular file"),
        (huge, r"it has 40000 MB, more than the \d+ MB that are read"),
    ],
    ids=["FIFO", "device", "40 GB"],
)
@pytest.mark.parametrize("name", ["bundle.json", "encoder.onnx"])
def test_what_would_block_or_never_end_is_refused(
    bundle: Path, name: str, put: Callable[[Path], object], reason: str
) -> None:
    Bundle.load(bundle)
    (bundle / name).unlink()
    put(bundle / name)
    with pytest.raises(ArtifactError, match=reason):
        Bundle.load(bundle)
