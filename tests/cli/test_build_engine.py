"""`fsvit-edge build-engine`, as typed."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line import COMMAND, Cli, contents, is_one_error
from sample_files import colors

from fsvit_edge.export import build as build_module
from fsvit_edge.export.measure import demo_pictures
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines.files import find_engines
from fsvit_edge.runtime.pictures import write_image


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fsvit_edge.export.measure.TIMED_S", 0.05)
    monkeypatch.setattr(build_module, "demo_pictures", lambda: demo_pictures(4))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.mark.slow(reason="builds INT8 engines of the bundled model, 7 s")
def test_int8_of_the_bundled_model_needs_no_other_option(cli: Cli, tmp_path: Path) -> None:
    result = cli("build-engine --int8")
    assert result.code == 0, result.err
    manifest = Bundle.load(DEFAULT_BUNDLE).manifest
    (folder,) = (tmp_path / "cache" / "fsvit-edge" / "engines").iterdir()
    built = {record.graph: (path, record) for path, record in find_engines(folder)[0]}
    path, record = built["encoder"]
    blocks = manifest.num_layers - 2  # the first two layers are the stem's
    assert record.int8_gemms == 5 * blocks  # a block's four, and the one that evens its tokens
    assert record.targets == ("sm86", "sm89", "sm120")
    assert "builds for GPUs elsewhere; here no" in result.err
    assert f"{record.int8_gemms} of {record.gemms}" in result.out
    assert "so overflow in FP16 cannot show" in result.out
    assert f"Wrote {path}" in result.out
    assert "for this one, use --engine onnxruntime" in result.err
    assert result.err.endswith(f"Next: fsvit-edge inspect {path}\n")


def test_an_engine_that_runs_here_is_timed_and_the_next_command_is_bench(cli: Cli, bundle: Path) -> None:
    first = cli("build-engine", str(bundle), "--engine", "onnxruntime", "--precision", "fp32")
    assert first.code == 0, first.err
    assert " ms" in first.out
    assert " x" in first.out
    assert "0 of 12 answers change; 100.00 % of the pixels keep their label." in first.out
    assert first.err.endswith(f"Next: fsvit-edge bench --bundle {bundle}\n")
    second = cli("build-engine", str(bundle), "--engine", "onnxruntime", "--precision", "fp32")
    assert second.code == 0
    assert "up to date" in second.out
    assert second.out.count("Up to date: ") == 2
    assert "rebuild with: fsvit-edge build-engine --force" in second.err


@pytest.mark.slow(reason="builds three times, 3 s")
def test_an_engine_that_outdates_the_bank_here_is_noted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fast(_: object, candidate: dict[str, object], *__: object) -> dict[str, dict[str, float]]:
        return {"int8": dict.fromkeys(candidate, 1.0), "fp32": dict.fromkeys(candidate, 2.0)}

    monkeypatch.setattr("fsvit_edge.export.build.time_beside_others", fast)
    write_image(Path("cup.png"), colors(0))
    build = "build-engine --engine onnxruntime --no-verify"
    assert cli("enroll cup cup.png --precision fp32").code == 0
    assert "bank.safetensors" not in cli(f"{build} --precision fp32").err
    note = (
        "Note: bank.safetensors was enrolled with fp32, so only with another bank run now uses int8; for this one, "
        "enroll its classes again.\n"
    )
    assert note in cli(f"{build} --int8").err
    assert cli("run cup.png").code == 0
    assert cli("run cup.png --precision int8").code == 4
    Path("bank.safetensors").unlink()
    assert cli("enroll cup cup.png").code == 0
    assert "bank.safetensors" not in cli(f"{build} --int8").err


def test_json_is_the_only_output_on_stdout(cli: Cli, bundle: Path) -> None:
    result = cli("build-engine", str(bundle), "--target", "sm86,sm89", "--target", "sm120", "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert (document["engine"], document["precision"], document["up_to_date"]) == ("tensorrt-rtx", "fp16", False)
    encoder = document["engines"]["encoder"]
    assert encoder["record"]["targets"] == ["sm86", "sm89", "sm120"]
    assert Path(encoder["path"]).is_file()
    assert encoder["layers"]["fp32_gemms"] == 0
    assert document["advice"]


def test_int8_without_a_calibration_is_refused(cli: Cli, bundle: Path) -> None:
    before = contents(bundle)
    is_one_error(cli("build-engine bundle --int8"), 2, "INT8 needs a calibration and bundle")
    assert contents(bundle) == before


def test_ctrl_c_leaves_no_engine_behind(bundle: Path) -> None:
    command = [*COMMAND, "build-engine", str(bundle)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "build the" in line:
            break
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert find_engines(bundle) == ([], [])
