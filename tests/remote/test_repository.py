"""`fsvit-edge triton`: what the server reads of it, and what is left alone."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from box_answers import HERE, NAME

from fsvit_edge.cli.main import main
from fsvit_edge.remote.box import FORMAT_VERSION, Settings
from fsvit_edge.remote.repository import model_name, write_model
from fsvit_edge.remote.wire import INPUTS, OUTPUTS
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.errors import ArtifactError, InputError

SETTINGS = Settings(FORMAT_VERSION, None, "/banks", instances=3, threads=2, **HERE)


def parsed(config: Path) -> Any:
    """A configuration as the server reads it."""
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient")
    from google.protobuf import text_format

    return text_format.Parse(config.read_text(), messages.ModelConfig())


def test_the_server_understands_the_configuration(tmp_path: Path) -> None:
    folder = write_model(tmp_path, NAME, SETTINGS)
    config = parsed(folder / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == (folder.name, "python", 0)
    assert [group.count for group in config.instance_group] == [3]
    assert [one.name for one in config.input if not one.optional] == ["bank"]
    for found, expected in ((config.input, INPUTS), (config.output, OUTPUTS)):
        kinds = {one.name: (one.DESCRIPTOR.fields_by_name["data_type"].enum_type, one) for one in found}
        described = {
            name: (kind.values_by_number[one.data_type].name, tuple(one.dims)) for name, (kind, one) in kinds.items()
        }
        assert described == expected


def test_settings_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    assert Settings.load(write_model(tmp_path, NAME, SETTINGS)) == SETTINGS


def test_a_model_of_ours_is_replaced_and_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo" / "config.pbtxt").write_text("theirs")
    for instances in (1, 2):
        write_model(tmp_path, NAME, Settings(FORMAT_VERSION, None, "/banks", instances=instances))
    assert parsed(tmp_path / NAME / "config.pbtxt").instance_group[0].count == 2
    with pytest.raises(InputError, match=r"contains other files and no fsvit-edge\.json"):
        write_model(tmp_path, "yolo", SETTINGS)
    assert (tmp_path / "yolo" / "config.pbtxt").read_text() == "theirs"


@pytest.mark.parametrize(
    ("name", "expected"), [("cst-nano", "cst-nano"), ("ViT S/8: mine", "ViT-S-8-mine"), ("../猫", "fsvit-edge")]
)
def test_a_model_has_a_name_that_a_path_and_an_address_may_have(name: str, expected: str) -> None:
    manifest = Bundle.load(DEFAULT_BUNDLE).manifest
    assert model_name(type(manifest)(**{**vars(manifest), "name": name})) == expected


Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    def call(line: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["fsvit-edge", "triton", *shlex.split(line)])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Typer sets its own
        with pytest.raises(SystemExit) as end:
            main()
        return (int(end.value.code or 0), *capfd.readouterr())

    return call


def test_the_command_says_which_banks_fit_and_how_to_go_on(run: Run, banks: Path, tmp_path: Path) -> None:
    code, out, errors = run("--banks banks --output repository --instances 2 --engine onnxruntime")
    assert (code, out) == (0, "Wrote repository/cst-nano; banks: two\n")
    notes = [line for line in errors.splitlines() if line.startswith("Note: ")]
    assert len(notes) == 2
    assert "cut.safetensors is damaged" in notes[0]
    assert "foreign.safetensors was made by another encoder (cst-nano), so the box will refuse it." in notes[1]
    assert "tritonserver --model-repository repository" in errors
    assert "--engine triton://HOST:8001/cst-nano" in errors
    settings = json.loads((tmp_path / "repository" / NAME / "fsvit-edge.json").read_text())
    assert (settings["bundle"], settings["banks"], settings["instances"]) == (None, str(banks), 2)


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        ("--banks none --output repository", 2, "The folder of banks none does not exist"),
        ("--banks banks --output repository --engine steam", 2, "Engine 'steam' is unknown"),
        ("--banks banks --output repository --engine triton://h/m", 2, "choose an engine here"),
        ("nothing --banks banks --output repository", 4, "Bundle nothing does not exist"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_written(
    run: Run, tmp_path: Path, line: str, code: int, sentence: str
) -> None:
    (tmp_path / "banks").mkdir()
    got, out, errors = run(line)
    assert (got, out, errors.count("\n")) == (code, "", 1)
    assert sentence in errors
    assert not (tmp_path / "repository").exists()


def test_settings_of_another_version_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, NAME, Settings(99, None, "/banks"))
    with pytest.raises(ArtifactError, match="has format version 99, this fsvit-edge reads 1"):
        Settings.load(folder)
