import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from fsvit_edge.runtime.bundle import (
    DEFAULT_BUNDLE,
    GRAPH_NAMES,
    MANIFEST_NAME,
    OBJECTNESS,
    Bundle,
    is_crop_factor,
    read_manifest,
    sealed,
)
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.predictor import FewShotModel

SHIPPED: dict[str, Any] = json.loads((DEFAULT_BUNDLE / MANIFEST_NAME).read_text())


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
    for name in GRAPH_NAMES:
        (path / f"{name}.onnx").write_bytes(name.encode())

    def set_sums(values: dict[str, Any]) -> None:
        for name in GRAPH_NAMES:
            values["graphs"][name]["sha256"] = hashlib.sha256(name.encode()).hexdigest()

    edit(path, set_sums)
    return path


def test_an_intact_bundle_is_read(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    assert loaded.path == bundle
    assert loaded.graphs == {name: name.encode() for name in GRAPH_NAMES}
    assert loaded.manifest.name == SHIPPED["name"]


def test_the_manifest_loses_nothing_when_written_and_read() -> None:
    values = json.loads(read_manifest(DEFAULT_BUNDLE).to_json())
    assert values == sealed({"head": "cst", "presence_level": 0.5, "support_crop": 0.0} | SHIPPED)


def test_a_bundle_without_a_crop_factor_never_crops(bundle: Path) -> None:
    edit(bundle, lambda values: values.pop("support_crop", None))
    assert read_manifest(bundle).support_crop == 0
    edit(bundle, lambda values: values.update(support_crop=2))
    assert read_manifest(bundle).support_crop == 2
    for wrong in (0.5, -1, "2"):
        edit(bundle, lambda values, wrong=wrong: values.update(support_crop=wrong))
        with pytest.raises(ArtifactError, match=r"wrong values: support_crop is"):
            read_manifest(bundle)
    # A number of JSON can be too large for a float.
    assert [is_crop_factor(json.loads(text)) for text in ("0", "1", "1e9", "1e999", "0.99")] == [1, 1, 1, 0, 0]


def test_a_bundle_without_a_head_kind_has_the_trained_head(bundle: Path) -> None:
    edit(bundle, lambda values: values.pop("head", None))
    assert read_manifest(bundle).head == "cst"
    edit(bundle, lambda values: values.update(head="prototype"))
    assert read_manifest(bundle).head == "prototype"
    for wrong in ("linear", 1):
        edit(bundle, lambda values, wrong=wrong: values.update(head=wrong))
        with pytest.raises(ArtifactError, match=f"wrong values: head is {wrong!r}"):
            read_manifest(bundle)


def test_a_bundle_without_a_level_has_the_published_level(bundle: Path) -> None:
    edit(bundle, lambda values: values.pop("presence_level", None))
    assert read_manifest(bundle).presence_level == 0.5
    edit(bundle, lambda values: values.update(presence_level=0.62))
    assert read_manifest(bundle).presence_level == 0.62
    for wrong in (0, 1, -0.5, 1.5):
        edit(bundle, lambda values, wrong=wrong: values.update(presence_level=wrong))
        with pytest.raises(
            ArtifactError, match=f"presence_level is {wrong}, not between 0 and 1; export the bundle again"
        ):
            read_manifest(bundle)
    edit(bundle, lambda values: values.update(presence_level="high"))
    with pytest.raises(ArtifactError, match="presence_level is 'high'"):
        read_manifest(bundle)


def test_the_bundled_model_is_intact() -> None:
    assert Bundle.load(DEFAULT_BUNDLE).graphs.keys() == set(GRAPH_NAMES)


def forget_folder(path: Path) -> None:
    shutil.rmtree(path)


def make_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


def forget(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def write(text: bytes) -> Callable[[Path], None]:
    return lambda path: (path / MANIFEST_NAME).write_bytes(text) and None


def field(name: str, value: object) -> Callable[[Path], None]:
    return lambda path: edit(path, lambda values: values.update({name: value}))


def without(name: str) -> Callable[[Path], None]:
    return lambda path: edit(path, lambda values: values.pop(name))


def graph(key: str, value: object) -> Callable[[Path], None]:
    return lambda path: edit(path, lambda values: values["graphs"]["enroll"].update({key: value}))


def graph_without(key: str) -> Callable[[Path], None]:
    return lambda path: edit(path, lambda values: values["graphs"]["enroll"].pop(key))


def flip(name: str) -> Callable[[Path], None]:
    def flip_a_bit(path: Path) -> None:
        data = bytearray((path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (path / name).write_bytes(data)

    return flip_a_bit


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(forget_folder, "does not exist or is not a folder", id="no folder"),
        pytest.param(make_a_file, "does not exist or is not a folder", id="a file"),
        pytest.param(forget(MANIFEST_NAME), "is not a bundle: it has no bundle.json", id="no manifest"),
        pytest.param(write(b""), "is not readable JSON", id="empty manifest"),
        pytest.param(write(b"{'single': 1}"), "is not readable JSON", id="not JSON"),
        pytest.param(write(b"\xff\xfe"), "is not readable JSON", id="not text"),
        pytest.param(write(b"[" * 100_000), "is not readable JSON", id="endless nesting"),
        pytest.param(write(b"[1, 2]"), "has format version None, this fsvit-edge reads 2", id="a list"),
        pytest.param(without("format_version"), "has format version None", id="no version"),
        pytest.param(
            field("format_version", 1), "has format version 1, this fsvit-edge reads 2", id="an earlier version"
        ),
        pytest.param(without("image_size"), "is incomplete, has unknown fields or wrong values", id="field missing"),
        pytest.param(field("color", "red"), "unknown field 'color'", id="field unknown"),
        pytest.param(field("image_size", "128"), "image_size is '128'", id="a number as text"),
        pytest.param(field("name", 5), "name is 5", id="text as a number"),
        pytest.param(field("graphs", []), "is incomplete", id="no table of graphs"),
        pytest.param(field("graphs", {}), "is incomplete: it has no graph 'encoder'", id="no graph"),
        pytest.param(graph_without("sha256"), "'graphs.enroll.sha256' is missing", id="graph without sum"),
        pytest.param(graph_without("file"), "'graphs.enroll.file' is missing", id="graph without file"),
        pytest.param(graph("inputs", None), "graphs.enroll.inputs is None", id="graph without inputs"),
        pytest.param(graph("inputs", [{"name": "mask"}]), "'graphs.enroll.inputs[0].shape' is missing", id="no shape"),
        pytest.param(graph("file", 7), "graphs.enroll.file is 7", id="file is a number"),
        pytest.param(field("parity", {"a": True}), "parity.a is True", id="a truth as a number"),
        pytest.param(write(b'{"format_version": NaN}'), "NaN is not a JSON number", id="no number"),
        pytest.param(write(b'{"format_version": true}'), "has format version True", id="a truth as the version"),
        pytest.param(graph("file", "../enroll.onnx"), "must be in the bundle, got '../enroll.onnx'", id="parent"),
        pytest.param(graph("file", "/etc/passwd"), "must be in the bundle, got '/etc/passwd'", id="absolute"),
        pytest.param(graph("file", "a/../b.onnx"), "must be in the bundle", id="detour"),
        pytest.param(graph("file", "enroll\0.onnx"), "must be in the bundle", id="NUL"),
        pytest.param(graph("file", ".."), "cannot be read: Is a directory", id="parent folder"),
        pytest.param(graph("file", ""), "cannot be read: Is a directory", id="nameless"),
        pytest.param(forget("head.onnx"), "head.onnx cannot be read: No such file", id="graph missing"),
        pytest.param(flip("encoder.onnx"), "encoder.onnx was altered or damaged: sha256", id="a bit of the encoder"),
        pytest.param(flip("enroll.onnx"), "enroll.onnx was altered or damaged: sha256", id="a bit of enrollment"),
        pytest.param(flip("head.onnx"), "head.onnx was altered or damaged: sha256", id="a bit of the head"),
        pytest.param(graph("sha256", "0" * 64), "expected 000000000000...", id="another sum"),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_sentence(bundle: Path, spoil: Callable[[Path], None], reason: str) -> None:
    Bundle.load(bundle)
    spoil(bundle)
    with pytest.raises(ArtifactError) as refused:
        Bundle.load(bundle)
    assert reason in str(refused.value)
    assert str(bundle) in str(refused.value)
    assert "\n" not in str(refused.value)


def tell_objectness(path: Path) -> None:
    """Add a graph of a few bytes that tells objectness, as `export --objectness` does."""
    (path / "objectness.onnx").write_bytes(b"objectness")
    info = {
        "file": "objectness.onnx",
        "sha256": hashlib.sha256(b"objectness").hexdigest(),
        "inputs": SHIPPED["graphs"]["encoder"]["inputs"],
        "outputs": [{"name": OBJECTNESS, "shape": ["batch", 64, 64], "dtype": "float32"}],
    }
    edit(path, lambda values: values["graphs"].update({OBJECTNESS: info}))


def test_a_bundle_may_have_a_graph_for_objectness(bundle: Path) -> None:
    def forget_what_the_encoder_tells(values: dict[str, Any]) -> None:
        outputs = values["graphs"]["encoder"]["outputs"]
        values["graphs"]["encoder"]["outputs"] = [one for one in outputs if one["name"] != OBJECTNESS]

    edit(bundle, forget_what_the_encoder_tells)
    assert not read_manifest(bundle).has_objectness
    tell_objectness(bundle)
    loaded = Bundle.load(bundle)
    assert loaded.manifest.has_objectness
    assert loaded.graphs.keys() == {*GRAPH_NAMES, OBJECTNESS}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(forget("objectness.onnx"), "objectness.onnx cannot be read: No such file", id="missing"),
        pytest.param(flip("objectness.onnx"), "objectness.onnx was altered or damaged: sha256", id="a bit"),
        pytest.param(
            lambda path: edit(path, lambda values: values["graphs"].update(depth=values["graphs"].pop(OBJECTNESS))),
            "names a graph 'depth' that this fsvit-edge does not know; update it.",
            id="another name",
        ),
        pytest.param(
            lambda path: edit(path, lambda values: values["graphs"][OBJECTNESS].update(file="../objectness.onnx")),
            "the objectness graph's file must be in the bundle",
            id="elsewhere",
        ),
    ],
)
def test_a_damaged_graph_for_objectness_is_refused(bundle: Path, spoil: Callable[[Path], object], reason: str) -> None:
    tell_objectness(bundle)
    Bundle.load(bundle)
    spoil(bundle)
    with pytest.raises(ArtifactError) as refused:
        Bundle.load(bundle)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_sums_are_checked_before_any_graph_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(DEFAULT_BUNDLE, path)
    session = onnxruntime.InferenceSession
    parsed = []

    def remember(graph: bytes, *arguments: Any, **options: Any) -> onnxruntime.InferenceSession:
        parsed.append(graph)
        return session(graph, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", remember)
    FewShotModel.load(path, threads=1).close()
    assert len(parsed) == len(GRAPH_NAMES)
    parsed.clear()
    flip("head.onnx")(path)  # the last to be read: the others must not be parsed before it
    with pytest.raises(ArtifactError, match=r"head\.onnx was altered or damaged"):
        FewShotModel.load(path, threads=1)
    assert parsed == []


def rename_input(values: dict[str, Any]) -> None:
    values["graphs"]["head"]["inputs"][0]["name"] = "vectors"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(rename_input, "The inputs or outputs of .*head.onnx differ from bundle.json", id="input"),
        pytest.param(
            lambda values: values.update(image_size=SHIPPED["image_size"] + 8), "its graphs have", id="image size"
        ),
        pytest.param(lambda values: values.update(mask_size=SHIPPED["mask_size"] + 2), "its graphs have", id="masks"),
    ],
)
def test_a_manifest_that_does_not_match_its_graphs_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    for name in GRAPH_NAMES:
        (tmp_path / f"{name}.onnx").symlink_to(DEFAULT_BUNDLE / f"{name}.onnx")
    shutil.copy(DEFAULT_BUNDLE / MANIFEST_NAME, tmp_path)
    FewShotModel.load(tmp_path, threads=1).close()
    edit(tmp_path, change)
    with pytest.raises(ArtifactError, match=reason):
        FewShotModel.load(tmp_path, threads=1)


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
