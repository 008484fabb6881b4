"""`--engine` and `--precision` of the commands, with built engines."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from engine_records import MACHINE, copy_bundle, edit, write_set

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE
from fsvit_edge.runtime.engines.files import sidecar_of
from fsvit_edge.runtime.machine import Machine
from fsvit_edge.runtime.pictures import write_image

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with INT8 engines that are faster on this processor."""
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: MACHINE))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.chdir(tmp_path)
    write_set(copy_bundle(tmp_path / "net"))
    rng = np.random.default_rng(0)
    for index in range(3):
        picture = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        write_image(tmp_path / "cup.jpg", picture)
        for name in ("cup", "key"):
            write_image(tmp_path / "data" / name / "images" / f"{index}.png", picture)
            write_image(tmp_path / "data" / name / "masks" / f"{index}.png", np.full((48, 64, 3), 255, np.uint8))
    return tmp_path


def test_every_command_names_the_engine_it_uses(cli: Cli) -> None:
    int8 = f"INT8 in ONNX Runtime {onnxruntime.__version__}, built 2026-11-25"
    fp32 = f"FP32 in ONNX Runtime {onnxruntime.__version__} on the CPU"
    net = ("--bundle", "net")
    assert cli("enroll", "cup", "cup.jpg", *net).code == 0
    for options, precision, description in (((), "int8", int8), (("--precision", "fp32"), "fp32", fp32)):
        bench = ("bench", *net, *options, "--ways", "1", "--frames", "1", "--no-growth", "--threads", "1")
        assert f"cst-nano at 256 px, {description}, 1 ways" in cli(*bench).out
        found = json.loads(cli(*bench, "--json").out)
        assert (found["engine"], found["precision"], found["computed_by"]) == ("onnxruntime", precision, description)
        done = cli("eval", "--data", "data", *net, *options, "--episodes", "2", "--threads", "1", "--json")
        found = json.loads(done.out)
        assert (found["engine"], found["precision"], found["computed_by"]) == ("onnxruntime", precision, description)
        assert found["model"]["precision"] == precision
        assert "Note" not in done.err
    run = ("run", "cup.jpg", *net, "--bank", "bank.safetensors")
    assert "cup.jpg with cst-nano: 1 frames" in cli(*run).out
    assert int8 in cli(*run).out
    found = json.loads(cli(*run, "--json").out)
    assert (found["engine"], found["precision"]) == ("onnxruntime", "int8")


def test_a_bank_needs_the_precision_it_was_made_in(cli: Cli, folder: Path) -> None:
    net = ("--bundle", "net")
    done = cli("enroll", "cup", "cup.jpg", *net, "--precision", "fp32", "--bank", "fp32.safetensors")
    assert done.err.splitlines()[-1].endswith("--bank fp32.safetensors --bundle net --precision fp32")
    before = (folder / "fp32.safetensors").read_bytes()
    for command in (("run", "cup.jpg"), ("enroll", "key", "cup.jpg")):
        refused = cli(*command, *net, "--bank", "fp32.safetensors")
        assert (refused.code, refused.err.count("\n")) == (4, 1)
        assert "made in fp32, but the engines here compute in int8; use it with --precision fp32" in refused.err
    assert (folder / "fp32.safetensors").read_bytes() == before
    for command in (("run", "cup.jpg"), ("enroll", "key", "cup.jpg")):
        assert cli(*command, *net, "--bank", "fp32.safetensors", "--precision", "fp32").code == 0


def test_an_engine_passed_over_is_a_note_on_stderr_and_a_named_one_is_refused(cli: Cli, folder: Path) -> None:
    for sidecar in (folder / "net").glob("*.onnx.json"):
        edit(sidecar, backend_version="1.0")
    enroll = ("enroll", "cup", "cup.jpg", "--bundle", "net")
    done = cli(*enroll)
    assert done.code == 0
    note = next(line for line in done.err.splitlines() if line.startswith("Note: "))
    assert "was built by ONNX Runtime 1.0" in note
    assert note.endswith("rebuild it here with: fsvit-edge build-engine net --engine onnxruntime --precision int8.")
    assert "Note" not in done.out
    refused = cli(*enroll, "--precision", "int8")
    assert refused.code == 4
    assert "was built by ONNX Runtime 1.0" in refused.err
    shutil.rmtree(folder / "net")
    shutil.copytree(DEFAULT_BUNDLE, folder / "net")
    assert "Note" not in cli(*enroll).err


def test_a_damaged_engine_is_a_note_and_does_not_stop_a_run(cli: Cli, folder: Path) -> None:
    path = next((folder / "net").glob("encoder.*.onnx"))
    assert sidecar_of(path).exists()
    path.write_bytes(b"")
    done = cli("enroll", "cup", "cup.jpg", "--bundle", "net")
    assert done.code == 0
    assert "is truncated or altered: 0 bytes" in done.err
    assert cli("run", "cup.jpg", "--bundle", "net", "--sink", "-").code == 0
