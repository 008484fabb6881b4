"""`--engine` and `--precision` of the commands, with built engines."""

import json
import shutil
from pathlib import Path

import onnxruntime
import pytest
from command_line import Cli, is_one_error
from engine_records import MACHINE, copy_bundle, edit, write_set
from sample_files import colors, write_data

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE
from fsvit_edge.runtime.engines.files import sidecar_of
from fsvit_edge.runtime.machine import Machine
from fsvit_edge.runtime.pictures import write_image


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with INT8 engines that are faster on this processor."""
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: MACHINE))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.chdir(tmp_path)
    write_set(copy_bundle(tmp_path / "net"))
    write_image(tmp_path / "cup.jpg", colors(0))
    write_data(tmp_path / "data", "cup", "key")
    return tmp_path


def test_every_command_names_the_engine_it_uses(cli: Cli) -> None:
    int8 = f"INT8 in ONNX Runtime {onnxruntime.__version__}, built 2026-11-25"
    fp32 = f"FP32 in ONNX Runtime {onnxruntime.__version__} on the CPU"
    assert cli("enroll cup cup.jpg --bundle net").code == 0
    for option, precision, description in (("", "int8", int8), ("--precision fp32", "fp32", fp32)):
        bench = f"bench --bundle net {option} --ways 1 --frames 1 --no-growth --threads 1"
        assert f"cst-nano at 256 px, {description}, 1 ways" in cli(bench).out
        found = json.loads(cli(f"{bench} --json").out)
        assert (found["engine"], found["precision"], found["computed_by"]) == ("onnxruntime", precision, description)
        done = cli(f"eval --data data --bundle net {option} --episodes 2 --threads 1 --json")
        found = json.loads(done.out)
        assert (found["engine"], found["precision"], found["computed_by"]) == ("onnxruntime", precision, description)
        assert found["model"]["precision"] == precision
        assert "Note" not in done.err
    printed = cli("run cup.jpg --bundle net").out
    assert "cup.jpg with cst-nano: 1 frame in" in printed
    assert int8 in printed
    found = json.loads(cli("run cup.jpg --bundle net --json").out)
    assert (found["engine"], found["precision"]) == ("onnxruntime", "int8")


def test_a_bank_runs_in_the_precision_it_was_made_in_and_in_no_other(cli: Cli, folder: Path) -> None:
    done = cli("enroll cup cup.jpg --bundle net --precision fp32 --bank fp32.safetensors")
    assert done.err.splitlines()[-1].endswith("--bank fp32.safetensors --bundle net --precision fp32")
    before = (folder / "fp32.safetensors").read_bytes()
    lines = [f"{command} --bundle net --bank fp32.safetensors" for command in ("run cup.jpg", "enroll key cup.jpg")]
    for line in lines:
        text = "made in fp32, but the engines here compute in int8; use it with --engine auto --precision fp32"
        is_one_error(cli(f"{line} --precision int8"), 4, text)
    assert (folder / "fp32.safetensors").read_bytes() == before
    for line in lines:
        for option in ("", "--precision fp32"):
            assert cli(f"{line} {option}").code == 0


def test_an_engine_passed_over_is_a_note_on_stderr_and_a_named_one_is_refused(cli: Cli, folder: Path) -> None:
    for sidecar in (folder / "net").glob("*.onnx.json"):
        edit(sidecar, backend_version="1.0")
    enroll = "enroll cup cup.jpg --box 4,4,40,40 --bundle net"
    done = cli(enroll)
    assert done.code == 0
    note = next(line for line in done.err.splitlines() if line.startswith("Note: "))
    assert "was built by ONNX Runtime 1.0" in note
    assert note.endswith("rebuild it here with: fsvit-edge build-engine net --engine onnxruntime --precision int8.")
    assert "Note" not in done.out
    refused = cli(f"{enroll} --precision int8")
    assert refused.code == 4
    assert "was built by ONNX Runtime 1.0" in refused.err
    shutil.rmtree(folder / "net")
    shutil.copytree(DEFAULT_BUNDLE, folder / "net")
    assert "Note" not in cli(enroll.replace("cup", "mug", 1)).err  # a second picture alike would be noted


def test_a_damaged_engine_is_a_note_and_does_not_stop_a_run(cli: Cli, folder: Path) -> None:
    path = next((folder / "net").glob("encoder.*.onnx"))
    assert sidecar_of(path).exists()
    path.write_bytes(b"")
    done = cli("enroll cup cup.jpg --bundle net")
    assert done.code == 0
    assert "is truncated or altered: 0 bytes" in done.err
    assert cli("run cup.jpg --bundle net --sink -").code == 0
