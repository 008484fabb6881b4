import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_records import MACHINE, VERSIONS, copy_bundle, edit, write_set
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_bytes import field as proto
from onnx_bytes import onnx_model
from safetensors.numpy import save_file

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.inspect import inspection
from fsvit_edge.inspect.inspection import Inspection, inspect_file
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, sealed
from fsvit_edge.runtime.engines import fitting, tensorrt_api
from fsvit_edge.runtime.engines.files import sidecar_of
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.machine import Machine

PLAN_OF_10_3 = b"ftrt" + bytes(20) + bytes([10, 3, 0, 26]) + bytes(100)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return copy_bundle(tmp_path / "bundle")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and TensorRT, which must not be imported."""
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: MACHINE))
    monkeypatch.setattr(fitting, "installed_version", VERSIONS.get)
    monkeypatch.setattr(tensorrt_api.importlib, "import_module", lambda _: pytest.fail("TensorRT was imported"))


def inspected(path: Path) -> Inspection:
    found = inspect_file(path)
    assert json.loads(json.dumps(found.to_dict())) == {**found.to_dict(), "problems": list(found.problems)}
    assert all("\n" not in text for text in (*map(str, found.facts.values()), *found.problems))
    assert found.exit_code == (4 if found.problems else 0)
    assert found.problems or found.runs_here in (None, True)
    return found


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "onnxruntime"])
def test_an_engine_that_fits_runs_here(bundle: Path, backend: str) -> None:
    path = write_set(bundle, backend, "fp16")["head"]
    runs_on = {"tensorrt": "NVIDIA L4 (sm89)", "tensorrt-rtx": "sm86, sm89"}
    expected = {
        "checksum": "correct",
        "graph": "head",
        "network": "cst-nano, vit_nano_patch16_hybrid_256, cst head, 256 px",
        "precision": "fp16",
        "runs on": runs_on.get(backend, "x86_64, measured on Fast CPU"),
        "bundle": "cst-nano, in the same folder",
        "latency": "5.00 ms, FP32 10.00 ms",
        "compared with FP32": "pictures 12, label_agreement 0.998",
        "built": "2026-11-25T00:30:00Z by fsvit-edge 0.1.0 in 1.5 s",
    }
    for named in (path, sidecar_of(path)):
        found = inspected(named)
        assert (found.kind, found.runs_here, found.path) == ("engine", True, str(path))
        assert found.facts.items() >= expected.items()
        assert found.facts["backend"].endswith(VERSIONS[backend])
        assert "[supports, 6, kept_tokens, 192]" in found.facts["inputs"]


@pytest.mark.usefixtures("on_gpu")
def test_an_engine_that_does_not_fit_has_every_reason(bundle: Path) -> None:
    path = write_set(bundle, "tensorrt", "fp16")["encoder"]
    edit(sidecar_of(path), backend_version="9.0", image_size=400)
    path.write_bytes(b"ftrt")
    found = inspected(path)
    assert (found.runs_here, found.facts["checksum"], len(found.problems)) == (False, "wrong", 3)
    version = "was built by TensorRT 9.0 and runs in no other version, but 10.13.0"
    for part in ("is truncated or altered: 4 bytes", "image size 400", version):
        assert any(part in problem for problem in found.problems)
    path.unlink()
    assert inspected(sidecar_of(path)).facts["checksum"] == "the engine is missing"


@pytest.mark.usefixtures("on_gpu")
def test_an_engine_without_its_bundle_is_checked_against_the_machine_alone(bundle: Path, tmp_path: Path) -> None:
    write_set(bundle, "tensorrt", "fp16", onnx_sha256="ab" * 32)
    path = next(bundle.glob("encoder.*.engine"))
    assert "was built from a different encoder.onnx" in inspected(path).problems[0]
    for file in (path, sidecar_of(path)):
        shutil.copy(file, tmp_path)
    found = inspected(tmp_path / path.name)
    assert found.runs_here
    assert found.facts["bundle"] == "none in the same folder, so only this machine was checked"
    (tmp_path / "bundle.json").write_text("{")
    assert inspected(tmp_path / path.name).facts["bundle"].startswith("the one in the same folder is damaged")


@pytest.mark.usefixtures("on_gpu")
def test_an_engine_of_the_bundled_model_is_recognized_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = inspection.engine_folder(DEFAULT_BUNDLE, inspection.read_manifest(DEFAULT_BUNDLE))
    path = write_set(folder, "tensorrt", "fp16")["encoder"]
    assert inspected(path).facts["bundle"] == "cst-nano, the bundled model"


@pytest.mark.parametrize(
    ("name", "content", "built_by", "problem"),
    [
        ("x.engine", PLAN_OF_10_3, "TensorRT 10.3.0.26", "has no sidecar x.engine.json"),
        ("x.anything", PLAN_OF_10_3, "TensorRT 10.3.0.26", "has no sidecar x.anything.json"),
        ("x.plan", b"vtrt" + bytes(20) + bytes([1, 7, 1, 116]), "TensorRT-RTX 1.7.1.116", "has no sidecar"),
        ("x.engine", b"ftrt", None, "has no sidecar"),
        ("x.engine", b"", None, "is damaged or not a TensorRT plan"),
        ("x.trt", b"{}", None, "is damaged or not a TensorRT plan"),
    ],
)
def test_a_plan_without_a_sidecar_is_recognized_by_its_first_bytes(
    tmp_path: Path, name: str, content: bytes, built_by: str | None, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)
    found = inspected(tmp_path / name)
    assert (found.kind, found.runs_here) == ("plan without sidecar", False)
    assert found.facts.get("built by") == built_by
    assert problem in found.problems[0]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format_version": 1}', b'{"format_version": 99}'])
def test_a_damaged_sidecar_is_a_problem(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.engine").write_bytes(PLAN_OF_10_3)
    (tmp_path / "x.engine.json").write_bytes(content)
    for name in ("x.engine", "x.engine.json"):
        found = inspected(tmp_path / name)
        assert (found.kind, found.runs_here, len(found.problems)) == ("engine", False, 1)


def test_a_graph_is_shown_with_its_checksum(bundle: Path, tmp_path: Path) -> None:
    found = inspected(bundle / "head.onnx")
    assert (found.kind, found.runs_here) == ("ONNX graph", True)
    assert (found.facts["precision"], found.facts["opset"]) == ("fp32", 20)
    assert found.facts["checksum"] == "correct, as in its bundle"
    assert "kept float32 [supports, 6, kept_tokens, 192]" in found.facts["inputs"]
    assert "presence float32 [ways]" in found.facts["outputs"]
    shutil.copy(bundle / "head.onnx", tmp_path / "alone.onnx")
    assert "checksum" not in inspected(tmp_path / "alone.onnx").facts
    data = (bundle / "head.onnx").read_bytes()
    (bundle / "head.onnx").write_bytes(data.replace(b"pytorch", b"pyturch", 1))
    altered = inspected(bundle / "head.onnx")
    assert altered.runs_here is False
    assert "head.onnx was altered or damaged: sha256" in altered.problems[0]


def test_a_graph_that_onnx_runtime_cannot_load_does_not_run(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Unheard", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "odd.onnx")
    found = inspected(tmp_path / "odd.onnx")
    assert found.facts["operators"] == "1: 1 Unheard"
    assert "cannot be loaded by ONNX Runtime" in found.problems[0]


@pytest.mark.usefixtures("on_gpu")
def test_a_bundle_is_shown_with_its_engines(bundle: Path) -> None:
    assert inspected(bundle).facts["engines"] == "none built"
    paths = write_set(bundle, "tensorrt", "fp16")
    edit(sidecar_of(paths["head"]), backend_version="9.0")
    (bundle / "broken.engine.json").write_text("{")
    for named in (bundle, bundle / "bundle.json"):
        found = inspected(named)
        assert (found.kind, found.runs_here, found.facts["checksums"]) == ("bundle", True, "correct")
        assert found.facts[f"engine {paths['encoder'].name}"] == "fits"
        assert found.facts[f"engine {paths['head'].name}"].startswith("was built by TensorRT 9.0")
        assert "broken.engine.json is not readable JSON" in found.facts["sidecar 1"]


def test_a_bundle_is_shown_with_the_source_of_objectness(bundle: Path) -> None:
    def told(change: Callable[[dict[str, Any]], object]) -> Any:
        values = json.loads((bundle / "bundle.json").read_text())
        change(values["graphs"])
        (bundle / "bundle.json").write_text(json.dumps(sealed(values)))
        return inspected(bundle).facts["objectness"]

    output = {"name": "objectness", "shape": ["batch", 64, 64], "dtype": "float32"}
    encoder = json.loads((bundle / "bundle.json").read_text())["graphs"]["encoder"]
    cst = [one for one in encoder["outputs"] if one["name"] != "objectness"]
    assert told(lambda graphs: graphs["encoder"].update(outputs=cst)) == "none, so outlines are plain"
    assert told(lambda graphs: graphs["encoder"].update(outputs=[*cst, output])).startswith("from the encoder")
    tensors = {"inputs": encoder["inputs"], "outputs": [output]}
    (bundle / "objectness.onnx").write_bytes(onnx_model(tensors))
    own = {"file": "objectness.onnx", "sha256": hashlib.sha256(onnx_model(tensors)).hexdigest(), **tensors}
    assert told(lambda graphs: graphs.update(objectness=own)).startswith("from its own graph")
    assert "objectness 0.00 MB" in inspected(bundle).facts["graphs"]


def state(bundle: Path, **values: Any) -> None:
    path = bundle / "bundle.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | values)))


def described(bundle: Path) -> dict[str, Any]:
    """The graphs in `bundle.json`."""
    graphs: dict[str, Any] = json.loads((bundle / "bundle.json").read_text())["graphs"]
    return graphs


def forge(bundle: Path, name: str, content: bytes) -> None:
    """Write another file of a graph, with its sum."""
    graphs = described(bundle)
    (bundle / graphs[name]["file"]).write_bytes(content)
    graphs[name]["sha256"] = hashlib.sha256(content).hexdigest()
    state(bundle, graphs=graphs)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [(1, proto(9, b"\0\0\0\0\0\0\xc0\x7f")), (10, proto(9, b"\0\x7e")), (1, proto(4, b"\0\0\xc0\xff"))],
)
@pytest.mark.parametrize("name", ["encoder", "head"])
def test_a_bundle_whose_weights_are_no_numbers_does_not_pass(
    bundle: Path, name: str, dtype: int, values: bytes
) -> None:
    """Its sums are right and every engine opens it: what failed was the training, or a conversion."""
    whole = (bundle / described(bundle)[name]["file"]).read_bytes()

    def found(values: bytes) -> Inspection:
        tensor = proto(1, len(values) // 4 or 1) + proto(2, dtype) + proto(8, "w\x1b[1m") + values
        forge(bundle, name, whole + proto(7, proto(5, tensor)))
        return inspected(bundle)

    infinite = found(values.replace(b"\x7e", b"\x7c").replace(b"\xc0", b"\x80"))  # as in masks
    assert (infinite.problems, infinite.runs_here) == ((), True)
    broken = found(values)
    assert not broken.runs_here
    (problem,) = broken.problems
    assert f"{name}.onnx has a NaN in the tensor 'w\\x1b[1m', so its answers are none" in problem


def exchange(bundle: Path, one: str, other: str) -> None:
    """Exchange the files of two graphs, with their sums."""
    contents = [(bundle / described(bundle)[name]["file"]).read_bytes() for name in (one, other)]
    forge(bundle, one, contents[1])
    forge(bundle, other, contents[0])


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: (path / "enroll.onnx").write_bytes(b""), "enroll.onnx was altered or damaged"),
        (lambda path: (path / "enroll.onnx").unlink(), "enroll.onnx cannot be read"),
        (lambda path: (path / "bundle.json").write_text("{}"), "has format version None"),
        # Sums that are right do not make it run.
        (lambda path: state(path, image_size=512), "states images of image_size 512, its graphs have 256"),
        (lambda path: exchange(path, "encoder", "enroll"), "encoder.onnx differ from bundle.json"),
    ],
)
def test_a_damaged_bundle_does_not_run(bundle: Path, spoil: Callable[[Path], Any], problem: str) -> None:
    spoil(bundle)
    found = inspected(bundle)
    assert (found.kind, found.runs_here) == ("bundle", False)
    assert problem in found.problems[0]


@pytest.mark.parametrize("has_vnni", [True, False])
def test_a_bundle_of_which_a_part_is_damaged_runs_without_it_and_is_not_intact(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, has_vnni: bool
) -> None:
    """As `run` passes it over."""
    monkeypatch.setattr(inspection, "has_vnni_here", lambda: has_vnni)
    int8 = (bundle / "int8_encoder.onnx").read_bytes()
    (bundle / "int8_encoder.onnx").write_bytes(b"")
    found = inspected(bundle)
    assert (found.runs_here, len(found.problems), found.exit_code) == (True, 1, 4)
    assert "int8_encoder.onnx was altered or damaged" in found.problems[0]
    (bundle / "int8_encoder.onnx").write_bytes(int8)
    assert inspected(bundle).problems == ()
    forge(bundle, "encoder", onnx_model(described(bundle)["encoder"], proto(1, proto(4, "NoSuchOperator"))))
    found = inspected(bundle)
    assert (found.runs_here, len(found.problems), found.exit_code) == (has_vnni, 1, 4)
    assert "/encoder.onnx is damaged: The graph cannot be loaded" in found.problems[0]


def test_a_bank_is_shown_with_its_classes(tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    with FewShotModel.load(threads=1) as model:
        model.enroll("cat", [np.zeros((60, 80, 3), np.uint8)] * 2)
        model.save_bank(path)
    found = inspected(path)
    assert (found.kind, found.runs_here) == ("bank", None)
    assert found.facts["classes"] == "cat (2)"
    assert found.facts["enrolled with"] == "cst-nano, 256 px, in fp32"
    assert found.facts["encoder"].endswith("that of the bundled model")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "contents do not match its sha256" in inspected(path).problems[0]


def test_a_safetensors_checkpoint_is_shown_with_its_parts(tmp_path: Path) -> None:
    found = inspected(DEFAULT_BUNDLE / "cst-nano.safetensors")
    assert (found.kind, found.runs_here) == ("checkpoint", None)
    assert found.facts["contains"].startswith("186 tensors of the backbone, 60 tensors of the head")
    assert found.facts["values"] == "6.53 million F16"
    assert "backbone vit_nano_patch16_hybrid_256" in found.facts["configuration"]
    assert "fsvit-edge export --checkpoint" in found.facts["to export it"]
    path = tmp_path / "other.safetensors"
    save_file({"x": np.zeros((1000, 50), np.float32)}, path)
    facts = inspected(path).facts
    assert (facts["contains"], facts["values"]) == ("neither a backbone nor a head", "0.05 million F32")
    assert facts["configuration"] == "other.json is missing"
    for text in ("{", "[1]", "3"):
        path.with_suffix(".json").write_text(text)
        assert inspected(path).facts["configuration"] == "other.json is damaged"


class Harmful:
    """A pickle that runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


def test_a_pickled_checkpoint_is_shown_and_never_unpickled(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = OrderedDict({"backbone.norm.weight": torch.zeros(3), "learner.proj.weight": torch.zeros(2, 2)})
    path = tmp_path / "cst.ckpt"
    torch.save({"state_dict": state}, path)
    found = inspected(path)
    assert (found.kind, found.runs_here) == ("checkpoint", None)
    assert found.facts["contains"] == "1 tensors of the backbone, 1 tensors of the head"
    assert found.facts["to export it"] == f"fsvit-edge export --checkpoint {path}"
    assert found.facts["tensors"] == "2, 0.0 MB in total"
    assert found.facts["other objects"] == "none"
    torch.save({"state_dict": state, "more": Harmful()}, path)
    with pytest.raises(pytest.fail.Exception, match="unpickled"):
        torch.load(path, weights_only=False)  # the control: it is loaded
    assert "_pytest.outcomes" in inspected(path).facts["other objects"]
    path.write_bytes(path.read_bytes()[:-30])
    assert "is damaged or not a checkpoint" in inspected(path).problems[0]
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert "old torch format" in inspected(path).facts["contains"]
    path.write_bytes(pickle.dumps(Harmful(), protocol=2))
    assert "only by unpickling" in inspected(path).facts["contains"]


def test_a_zip_file_that_is_damaged_or_not_a_checkpoint_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"

    def problems(members: dict[str, bytes]) -> str:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return "".join(inspected(path).problems)

    assert "zip file without torch's data.pkl" in problems({"notes.txt": b"hello"})
    assert "the names in it are damaged" in problems({"x/data.pkl": b"\x80\x02garbage"})
    assert problems({"x/data.pkl": pickle.dumps("backbone.a", 2), "x/data/0": b"tensor" * 100}) == ""
    data = path.read_bytes()
    path.write_bytes(data.replace(b"tensortensor", b"tensorxensor", 1))
    assert "x/data/0 in it is damaged" in inspected(path).problems[0]


def test_a_calibration_is_shown_with_whether_it_fits(tmp_path: Path) -> None:
    found = inspected(DEFAULT_BUNDLE / "calibration.json")
    assert (found.kind, found.runs_here) == ("calibration", None)
    assert (found.facts["model_name"], found.facts["fits"]) == ("cst-nano", "cst-nano: yes")
    values = json.loads((DEFAULT_BUNDLE / "calibration.json").read_text())
    for changes in ({"graphs": {"encoder": "ab" * 32}}, {"graphs": [], "method": {}}):
        (tmp_path / "c.json").write_text(json.dumps(values | changes))
        assert inspected(tmp_path / "c.json").facts["fits"] == "cst-nano: no, it was made from other graphs"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.engine", None, "does not exist; give an engine, an ONNX graph, a bundle"),
        ("pipe.safetensors", os.mkfifo, "is not a regular file; give an engine"),
        ("bundle.json", os.mkfifo, "is not a regular file; give an engine"),
        ("folder", "folder", "is a folder without bundle.json"),
        ("photo.jpg", b"\xff\xd8", "is a file of an unknown kind"),
        ("noextension", b"", "is a file of an unknown kind"),
        ("x.json", b"{", "is not readable JSON"),
        ("x.json", b"[1]", "is JSON of an unknown kind"),
        ("x.json", b'{"a": 1}', "is JSON of an unknown kind"),
    ],
)
def test_files_of_unknown_kinds_are_refused(tmp_path: Path, name: str, content: Any, reason: str) -> None:
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as refused:
        inspect_file(path)
    assert "\n" not in str(refused.value)


NAMES = ("x.engine", "x.onnx", "x.safetensors", "x.ckpt", "x.json", "x.engine.json", "x.onnx.json", "bundle.json", "x")
STARTS = (b"", b"ftrt", b"vtrt", b"PK\x03\x04", b"\x80\x02", b"\x08\x0a\x12", b"{", b'{"format_version": 1, ', bytes(8))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=300)
@given(name=st.sampled_from(NAMES), start=st.sampled_from(STARTS), rest=st.binary(max_size=300))
def test_random_bytes_are_shown_or_refused_in_a_sentence(tmp_path: Path, name: str, start: bytes, rest: bytes) -> None:
    folder = tmp_path / hashlib.sha256(name.encode() + start + rest).hexdigest()
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(start + rest)
    try:
        found = inspect_file(folder / name)
    except FsvitEdgeError as error:
        assert error.exit_code in (2, 4)  # noqa: PT017 - either way is right
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert found.exit_code == 4 or (start + rest).startswith(b"\x80\x02")  # an old pickle is not looked into
        json.dumps(found.to_dict())
