"""The command `fsvit-edge inspect`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_output_shows_what_a_file_is_and_whether_it_runs(cli: Cli) -> None:
    done = cli("inspect", "bundle")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "bundle: bundle"
    facts = dict(line.split(maxsplit=1) for line in lines[1:-1] if line)
    assert facts["network"] == "cst-nano, vit_nano_patch16_hybrid_256, cst head, 256 px"
    assert lines[-1] == "It runs here."
    assert cli("inspect", "bundle/calibration.json").out.startswith("bundle/calibration.json: calibration\n")
    assert "runs here" not in cli("inspect", "bundle/cst-nano.safetensors").out


def test_the_output_can_be_json(cli: Cli) -> None:
    done = cli("inspect", "bundle/head.onnx", "--json")
    found = json.loads(done.out)
    assert (found["kind"], found["runs_here"], found["problems"], found["exit_code"]) == ("ONNX graph", True, [], 0)
    assert found["facts"]["precision"] == "fp32"


def test_a_file_that_does_not_run_is_shown_on_stdout_with_exit_code_4(cli: Cli, folder: Path) -> None:
    (folder / "bundle" / "head.onnx").write_bytes(b"")
    (folder / "x.engine").write_bytes(b"ftrt")
    for named in ("bundle", "bundle/head.onnx", "x.engine"):
        done = cli("inspect", named)
        assert (done.code, done.err) == (4, "")
        assert "\nIt does not run here:\n- " in done.out
        found = json.loads(cli("inspect", named, "--json").out)
        assert (found["runs_here"], found["exit_code"], len(found["problems"])) == (False, 4, 1)


@pytest.mark.parametrize(
    ("name", "content", "code", "text"),
    [
        ("none", None, 2, "none does not exist; give an engine"),
        ("photo.jpg", b"\xff\xd8", 2, "is a file of an unknown kind"),
        ("x.json", b"{", 2, "is not readable JSON"),
        ("c.json", b'{"ranges": {}, "method": "minmax", "graphs": {}}', 4, "has format version None"),
    ],
)
def test_an_error_is_one_sentence(
    cli: Cli, folder: Path, name: str, content: bytes | None, code: int, text: str
) -> None:
    if content is not None:
        (folder / name).write_bytes(content)
    done = cli("inspect", name)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1
    assert text in done.err
