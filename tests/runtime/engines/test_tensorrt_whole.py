"""Everything together on a pretended GPU: built engines, their choice, the predictor, and the commands."""

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from engine_records import MACHINE, MANIFEST, write_engine
from fake_memory import FakeMemory
from fake_tensorrt import FakeTensorRT, api_of, make_plan
from padded_model import padded_model

from fsvit_edge.cli.main import main
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime import machine
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE
from fsvit_edge.runtime.engines import choose, fitting, open_graphs, tensorrt
from fsvit_edge.runtime.engines.files import engine_folder
from fsvit_edge.runtime.machine import Machine

FRAME = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> FakeMemory:
    """The memory of a machine with a GPU and TensorRT."""
    memory = FakeMemory()
    trt = FakeTensorRT(memory)
    monkeypatch.setattr(open_graphs, "open_tensorrt", lambda backend: api_of(trt, backend))
    monkeypatch.setattr(open_graphs, "open_device_memory", lambda: memory)
    for module in (choose, fitting):
        monkeypatch.setattr(module, "installed_version", {"tensorrt": "10.3.0"}.get)
    for module in (choose, machine, tensorrt):
        monkeypatch.setattr(module, "find_gpu", lambda: MACHINE.gpu)
    return memory


def build(precision: str) -> None:
    """Build engines of the bundled model on this machine."""
    for graph in ("encoder", "head"):
        plan, record = make_plan(graph, precision)
        write_engine(engine_folder(DEFAULT_BUNDLE, MANIFEST), replace(record, machine=Machine.here()), plan)


@pytest.mark.parametrize("engine", ["auto", "tensorrt"])
def test_built_engines_run_and_agree_with_the_bundle(memory: FakeMemory, engine: str) -> None:
    build("fp32")
    with (
        FewShotModel.load(engine=engine, threads=1) as ours,
        padded_model() as theirs,
    ):
        assert ours.choice.engine == "tensorrt"
        for model in (ours, theirs):
            model.enroll("a", [FRAME[::-1]])
        for _ in range(4):
            got, wanted = ours.predict(FRAME), theirs.predict(FRAME)
            assert np.array_equal(got.scores, wanted.scores)
            assert np.array_equal(got.label_map, wanted.label_map)
    assert memory.launches > 0
    assert memory.allocated_bytes == 0


def test_the_commands_run_on_built_engines(
    memory: FakeMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    build("fp16")
    for name in ("support.png", "frame.png"):
        assert cv2.imwrite(str(tmp_path / name), FRAME)
    bank = str(tmp_path / "bank.safetensors")
    for arguments in (
        ["enroll", "cup", str(tmp_path / "support.png"), "--bank", bank, "--engine", "tensorrt"],
        ["run", str(tmp_path / "frame.png"), "--bank", bank, "--engine", "tensorrt", "--sink", f"{tmp_path}/out/"],
        ["bench", "--engine", "tensorrt", "--precision", "fp16", "--frames", "3"],
    ):
        monkeypatch.setattr(sys, "argv", ["fsvit-edge", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        output = capfd.readouterr()
        assert not end.value.code, (arguments, output.err)
    assert memory.launches > 0
    rows = [line.split()[0] for line in output.out.partition("Growth")[2].splitlines() if "." in line]
    assert rows == ["1", "2", "5", "10"], "it measures what the engine takes"
