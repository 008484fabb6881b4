"""`fsvit-edge bench`, `doctor` and `inspect`: a table or JSON, and the exit code."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import Cli, contents, json_lines

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE


def test_the_benchmark_prints_a_table_or_json(here: Path, cli: Cli) -> None:
    table = cli("bench --ways 2 --frames 3 --no-growth --threads 1")
    assert (table.code, table.err) == (0, "")
    assert "2 ways x 1 shots, 1280 x 720 frames: " in table.out
    assert "Growth" not in table.out
    for stage in ("preprocess", "encoder", "head", "postprocess", "total"):
        assert f"\n {stage} " in table.out
    result = cli("bench --ways 1 --shots 2 --frames 2 --no-growth --json")
    assert (result.code, result.err) == (0, "")
    (measured,) = json_lines(result.out)
    assert (measured["ways"], measured["shots"], measured["frames"], measured["growth"]) == (1, 2, 2, [])
    assert measured["fps"] == pytest.approx(1000 / measured["latency_ms"]["total"]["p50"])
    assert contents(here) == {}


@pytest.mark.slow(reason="measures with one and with three classes, twice, 3 s")
def test_the_benchmark_measures_growth(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsvit_edge.inspect.benchmark.GROWTH_WAYS", (1, 3))
    result = cli("bench --ways 1 --frames 1 --json")
    (measured,) = json_lines(result.out)
    assert [(m["ways"], m["frames"]) for m in measured["growth"]] == [(1, 5), (3, 5)]
    assert "Growth" in cli("bench --ways 1 --frames 1").out


def test_the_doctor_finds_no_problem_on_this_machine(here: Path, cli: Cli) -> None:
    result = cli("doctor")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert all(line.startswith(("ok       ", "missing  ")) for line in lines)
    assert any(line.split()[:2] == ["ok", "bundle"] for line in lines)
    listed = json.loads(cli("doctor --json").out)
    assert listed["usable"] is True
    assert len(listed["findings"]) == len(lines)
    assert contents(here) == {}


@pytest.mark.usefixtures("folder")
def test_the_doctor_finds_a_damaged_bundle(cli: Cli) -> None:
    result = cli("doctor --bundle altered")
    assert result.code == 4
    assert "head.onnx was altered or damaged" in result.out
    assert json.loads(cli("doctor --bundle altered --json").out)["usable"] is False


@pytest.fixture
def bundle(here: Path) -> Path:
    return Path(shutil.copytree(DEFAULT_BUNDLE, here / "bundle"))


@pytest.mark.usefixtures("bundle")
def test_the_output_shows_what_a_file_is_and_whether_it_runs(cli: Cli) -> None:
    done = cli("inspect bundle")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "bundle: bundle"
    facts = dict(line.split(maxsplit=1) for line in lines[1:-1] if line)
    assert facts["network"] == "cst-nano, vit_nano_patch16_hybrid_256, cst head, 256 px"
    assert lines[-1] == "It runs here."
    assert cli("inspect bundle/calibration.json").out.startswith("bundle/calibration.json: calibration\n")
    assert "runs here" not in cli("inspect bundle/cst-nano.safetensors").out


@pytest.mark.usefixtures("bundle")
def test_the_output_can_be_json(cli: Cli) -> None:
    done = cli("inspect bundle/head.onnx --json")
    found = json.loads(done.out)
    assert (found["kind"], found["runs_here"], found["problems"], found["exit_code"]) == ("ONNX graph", True, [], 0)
    assert found["facts"]["precision"] == "fp32"


def test_a_file_that_does_not_run_is_shown_on_stdout_with_exit_code_4(cli: Cli, bundle: Path) -> None:
    (bundle / "head.onnx").write_bytes(b"")
    bundle.with_name("x.engine").write_bytes(b"ftrt")
    for named in ("bundle", "bundle/head.onnx", "x.engine"):
        done = cli("inspect", named)
        assert (done.code, done.err) == (4, "")
        assert "\nIt does not run here:\n- " in done.out
        found = json.loads(cli("inspect", named, "--json").out)
        assert (found["runs_here"], found["exit_code"], len(found["problems"])) == (False, 4, 1)
