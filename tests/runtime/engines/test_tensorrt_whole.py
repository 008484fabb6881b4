"""Everything together on a pretended GPU: built engines, their choice, the predictor, the commands, and faults."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from engine_records import write_engine
from fake_memory import FakeMemory
from fake_tensorrt import FakeTensorRT, api_of, make_plan

from fsvit_edge.runtime import gpu as gpu_module
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, read_manifest
from fsvit_edge.runtime.engines import choose, fitting, tensorrt
from fsvit_edge.runtime.engines.files import engine_folder
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError
from fsvit_edge.runtime.gpu import Gpu
from fsvit_edge.runtime.machine import Machine
from fsvit_edge.runtime.predictor import FewShotModel

GPU = Gpu("Orin", (8, 7), 14, 8 * 2**30, "12.6")
MANIFEST = read_manifest(DEFAULT_BUNDLE)
FRAME = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


class Installed:
    """A machine with a GPU and TensorRT, on which engines of the shipped model were built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.patch = monkeypatch
        self.memory = FakeMemory()
        self.trt = FakeTensorRT(self.memory)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        self.put_gpu(GPU)
        monkeypatch.setattr(choose, "open_tensorrt", lambda backend: api_of(self.trt, backend))
        monkeypatch.setattr(choose, "open_device_memory", lambda: self.memory)
        version: Callable[[str], str | None] = lambda backend: None if backend == "onnxruntime" else "10.3.0"  # noqa: E731
        for module in (fitting, choose):
            monkeypatch.setattr(module, "installed_version", version)

    def put_gpu(self, gpu: Gpu | None) -> None:
        reason = "" if gpu else "the NVIDIA driver finds no GPU"
        found = {"find_gpu": lambda: gpu, "gpu_missing_reason": lambda: reason}
        machine = sys.modules[Machine.__module__]
        for module in (gpu_module, tensorrt, choose, fitting, machine):
            for name, function in found.items():
                if hasattr(module, name):
                    self.patch.setattr(module, name, function)

    def build(self, precision: str = "fp16", **limits: int) -> list[Path]:
        folder = engine_folder(DEFAULT_BUNDLE, MANIFEST)
        paths = []
        for graph in ("encoder", "head"):
            chosen = {"ways": 10, "supports": 50, "kept_tokens": 145, **limits} if graph == "head" else {}
            plan, record = make_plan(DEFAULT_BUNDLE, graph, precision, chosen)
            record = replace(record, machine=Machine.here())
            paths.append(write_engine(folder, record, plan))
        return paths


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Installed:
    return Installed(monkeypatch, tmp_path)


@pytest.mark.parametrize("engine", ["auto", "tensorrt"])
def test_built_engines_run_and_agree_with_the_bundle(installed: Installed, engine: str) -> None:
    installed.build("fp32")
    with (
        FewShotModel.load(engine=engine, threads=1) as ours,
        FewShotModel.load(engine="onnxruntime", threads=1) as theirs,
    ):
        assert ours.choice.engine == "tensorrt"
        for model in (ours, theirs):
            model.enroll("a", [FRAME[::-1]])
        for _ in range(4):
            got, wanted = ours.predict(FRAME), theirs.predict(FRAME)
            assert np.array_equal(got.scores, wanted.scores)
            assert np.array_equal(got.label_map, wanted.label_map)
    assert installed.memory.launches > 0
    assert installed.memory.allocated_bytes == 0


def test_the_commands_run_on_built_engines(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from fsvit_edge.cli.main import main

    installed.build()
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
    assert installed.memory.launches > 0
    rows = [line.split()[0] for line in output.out.partition("Growth")[2].splitlines() if "." in line]
    assert rows == ["1", "2", "5", "10"], "it measures what the engine takes"


def sentence_of(wrong: type[FsvitEdgeError], attempt: Callable[[], Any], exit_code: int) -> str:
    with pytest.raises(wrong) as refused:
        attempt()
    assert refused.value.exit_code == exit_code
    assert "\n" not in str(refused.value)
    return str(refused.value)


def load() -> FewShotModel:
    return FewShotModel.load(engine="tensorrt", threads=1)


def test_a_missing_gpu_is_reported_and_the_cpu_still_works(installed: Installed) -> None:
    installed.build()
    installed.put_gpu(None)
    said = sentence_of(EnvironmentLacksError, load, 3)
    assert "the NVIDIA driver finds no GPU" in said
    assert "--engine onnxruntime" in said
    with FewShotModel.load(threads=1) as model:
        assert model.choice.engine == "onnxruntime"
        model.predict(FRAME)
    assert installed.trt.calls == [], "nothing of TensorRT was touched"


def test_twenty_classes_on_engines_for_ten_are_refused(installed: Installed, tmp_path: Path) -> None:
    installed.build(ways=20)
    with load() as model:
        for way in range(20):
            model.enroll(f"class {way}", [FRAME])
        model.save_bank(tmp_path / "bank.safetensors")
    installed.build(ways=10)
    with load() as model:
        said = sentence_of(ArtifactError, lambda: model.load_bank(tmp_path / "bank.safetensors"), 4)
        assert said.startswith("The head engine was built for at most 10 classes, the bank has 20; rebuild it with: ")
        assert model.classes == ()


@pytest.mark.parametrize("damage", ["altered", "cut short"])
def test_a_damaged_plan_never_reaches_tensorrt(installed: Installed, damage: str) -> None:
    encoder, _ = installed.build()
    data = encoder.read_bytes()
    encoder.write_bytes(data[:-1] + b"?" if damage == "altered" else data[:-7])
    said = sentence_of(ArtifactError, load, 4)
    assert "altered" in said
    assert "build-engine" in said
    assert "deserialize_cuda_engine" not in installed.trt.calls


def test_a_full_gpu_is_reported_and_auto_uses_the_cpu(installed: Installed) -> None:
    installed.build()
    installed.trt.fail["create_execution_context"] = None
    installed.trt.log = "Error Code 1: Cuda Runtime (out of memory)"
    said = sentence_of(FsvitEdgeError, load, 1)
    assert "out of memory" in said
    assert "close other programs" in said
    with FewShotModel.load(threads=1) as model:
        assert model.choice.engine == "onnxruntime"
        assert any("out of memory" in note for note in model.choice.notes)


def test_a_gpu_lost_during_a_run_is_one_sentence(installed: Installed) -> None:
    installed.build()
    with load() as model:
        model.enroll("a", [FRAME])
        model.predict(FRAME)

        installed.memory.lost = "unspecified launch failure"
        said = sentence_of(FsvitEdgeError, lambda: model.predict(FRAME), 1)
        assert said == "The GPU failed during cudaStreamSynchronize: unspecified launch failure; restart the program."
        model.close()
