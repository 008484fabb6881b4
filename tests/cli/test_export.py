"""`fsvit-edge export`, from a checkpoint to a bundle that runs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Cli, Result, contents, fill_disk, is_one_error, json_lines, spawn
from safetensors.numpy import load_file, save_file
from sample_files import rectangle

from fsvit_edge import FewShotModel
from fsvit_edge.inspect.diagnosis import connected_cameras
from fsvit_edge.runtime.bundle import CPU_GRAPH_NAMES, DEFAULT_BUNDLE, GRAPH_NAMES, Bundle
from fsvit_edge.runtime.pictures import read_image

exports = pytest.mark.slow(reason="traces the bundled model in a process of its own, 25 s")


@pytest.fixture(scope="module")
def bare_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """`fsvit-edge export` without options in an empty folder."""
    folder = tmp_path_factory.mktemp("bare")
    return folder, spawn("export", cwd=folder)


@exports
def test_an_export_without_options_writes_a_bundle_and_prints_the_next_step(bare_export: tuple[Path, Result]) -> None:
    folder, result = bare_export
    assert result.code == 0, result.err
    assert contents(folder).keys() == {
        *("bundle", "bundle/bundle.json"),
        *(f"bundle/{name}.onnx" for name in (*GRAPH_NAMES, *CPU_GRAPH_NAMES)),
    }
    assert result.out.startswith("torch compared with ONNX Runtime\n")
    assert "\nWrote bundle: " in result.out
    log = result.err.splitlines()
    assert log[-1] == "Next: fsvit-edge enroll NAME IMAGE --bundle bundle"
    assert all(" s] Export: " in line for line in log[:-1])
    for step in ("load torch", "trace encoder", "simplify head", "check enroll", "compare torch with", "write"):
        assert f"Export: {step}" in result.err


@exports
def test_an_exported_bundle_predicts_like_the_bundled_one(bare_export: tuple[Path, Result], samples: Path) -> None:
    predictions = []
    for bundle in (None, bare_export[0] / "bundle"):
        with FewShotModel.load(bundle, threads=1) as model:
            model.enroll("cat", [read_image(samples / "cat1.jpg")], [rectangle(120, 160)[..., 0]])
            model.enroll("thing", [read_image(samples / "cat2.png")])
            predictions.append(model.predict(read_image(samples / "photo.jpg"), probabilities=True))
    bundled, exported = predictions
    assert bundled.foreground is not None
    np.testing.assert_allclose(exported.scores, bundled.scores, atol=1e-3)
    np.testing.assert_allclose(exported.foreground, bundled.foreground, atol=1e-2)


@exports
def test_a_bundle_is_used_from_enrollment_to_a_run(bare_export: tuple[Path, Result], folder: Path, cli: Cli) -> None:
    bundle = str(bare_export[0] / "bundle")
    (folder / "bank.safetensors").unlink()
    enrolled = cli("enroll cat cat1.jpg --bundle", bundle)
    assert enrolled.code == 0
    source = "--camera" if connected_cameras() else "photo.jpg"
    assert enrolled.err.endswith(f"Next: fsvit-edge run {source} --bank bank.safetensors --bundle {bundle}\n")
    result = cli("run photo.jpg --bundle", bundle, "--sink", "-")
    assert [one["name"] for one in json_lines(result.out)[0]["classes"]] == ["cat"]
    assert cli("doctor --bundle", bundle).code == 0


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the bundled graphs, because tracing takes half a minute."""
    import onnx

    from fsvit_edge.export import pipeline

    names = {"tokens": "encoder", "support": "enroll", "presence": "head"}
    monkeypatch.setattr(pipeline, "trace", lambda spec, _: onnx.load(DEFAULT_BUNDLE / f"{names[spec.outputs[0]]}.onnx"))
    monkeypatch.setattr(pipeline, "_cpu_head", lambda *_: Bundle.load(DEFAULT_BUNDLE).cpu_graphs)


@pytest.mark.slow(reason="exports, 3 s")
@pytest.mark.usefixtures("traced")
def test_an_export_that_misses_its_tolerance_writes_nothing(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsvit_edge.export import parity

    with monkeypatch.context() as patch:
        patch.setattr(parity, "SCALE_TOLERANCE", 0.0)
        is_one_error(cli("export"), 5, "ONNX Runtime differs from torch in encoder.tokens by ", "Export")
    assert contents(here) == {}
    assert cli("export --no-simplify").code == 0  # with the real tolerance, the same export succeeds
    assert Bundle.load(here / "bundle").manifest.parity


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ("--output cat1.jpg", 2, "cat1.jpg is a file; give the name of a folder"),
        ("--output album", 2, "album contains other files and no bundle.json; choose an empty or a new folder"),
        ("--output notes.txt/bundle", 2, "notes.txt is a file, not a folder"),
        ("--opset 12", 2, "The opset must be from 20 to 22, got 12"),
        ("--checkpoint none.ckpt", 4, "none.ckpt does not exist"),
        ("--checkpoint notes.txt", 4, "notes.txt "),
        ("--checkpoint bank.safetensors", 4, "contains no head: expected tensors named learner.*"),
        ("--checkpoint broken.safetensors", 4, "is not a readable safetensors file"),
    ],
)
def test_an_export_that_fails_changes_no_file(folder: Path, cli: Cli, options: str, code: int, text: str) -> None:
    before = contents(folder)
    is_one_error(cli(f"export --no-verify {options}"), code, text, "Export")
    assert contents(folder) == before


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("part", ["backbone", "learner"])
def test_weights_with_nan_are_refused(here: Path, cli: Cli, part: str) -> None:
    state = load_file(DEFAULT_BUNDLE / "cst-nano.safetensors")
    name = min(name for name in state if name.startswith(part))
    state[name] = state[name].copy()
    state[name].flat[0] = np.nan
    save_file(state, here / "nan.safetensors")
    shutil.copy(DEFAULT_BUNDLE / "cst-nano.json", here / "nan.json")
    before = contents(here)
    result = cli("export --checkpoint nan.safetensors --no-verify")
    text = f"tensor {name.partition('.')[2]!r} contains NaN or infinite values; the file is damaged"
    is_one_error(result, 4, text, "Export")
    assert contents(here) == before


@pytest.mark.usefixtures("traced")
def test_a_full_disk_keeps_the_old_bundle(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("export --no-verify").code == 0
    (here / "bundle" / "note").write_text("of the old bundle")
    before = contents(here)
    fill_disk(monkeypatch)
    text = "bundle cannot be written: No space left on device; nothing was changed"
    is_one_error(cli("export --no-verify"), 1, text, "Export")
    assert contents(here) == before
