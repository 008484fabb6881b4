"""The GPU's benchmark runs everywhere: on the CPU as a labelled stand-in, each part whatever happens to the others."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fsvit_edge.runtime.engines import device_memory
from fsvit_edge.runtime.gpu import Gpu

GPU = Gpu("Orin", (8, 7), 14, 8 * 2**30, "12.6")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_benchmark"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_every_part_runs_as_a_stand_in_and_says_so(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "find_gpu", lambda: None)
    monkeypatch.setattr(benchmark, "gpu_missing_reason", lambda: "the NVIDIA driver finds no GPU")
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    benchmark.main()
    label, *lines = capsys.readouterr().out.splitlines()
    assert label == (
        "STAND-IN ON THE CPU (the NVIDIA driver finds no GPU): it shows that this script runs; no figure below is a "
        "GPU's."
    )
    assert list(dict.fromkeys(line.split()[0] for line in lines)) == list(benchmark.PARTS)
    failed = [line for line in lines if "failed" in line and "graph" not in line and not line.startswith("rtx")]
    assert failed == []
    table = "\n".join(lines)
    assert "results equal" in table
    assert "DIFFER" not in table
    assert "WRONG" not in table
    for what in ("encoder, float32: floor", "head, 1 ways, float32: eager", "head, 5 ways, float32: compiled"):
        assert what in table
    assert table.count("x the floor") == 6


def test_it_can_be_asked_for_the_stand_in(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "find_gpu", lambda: GPU)
    monkeypatch.setattr(benchmark, "PARTS", {"one": lambda scale, gpu: [benchmark.Row("", scale.backbone, str(gpu))]})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--stand-in"])
    benchmark.main()
    label, line = capsys.readouterr().out.splitlines()
    assert label.startswith("STAND-IN ON THE CPU (asked for)")
    assert line == "one  vit_nano_patch8_64  None"
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    benchmark.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("one  vit_small_patch8_224.dino  Gpu(name='Orin'")


def test_a_part_that_fails_says_why_and_the_others_go_on(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = benchmark.Row

    def breaks(*_: Any) -> Iterator[Any]:
        yield row("", "before", "1 ms")
        raise ValueError("out of luck\nand more")

    monkeypatch.setattr(benchmark, "PARTS", {"bad": breaks, "good": lambda *_: [row("", "after", "2 ms")]})
    assert benchmark.measure(benchmark.STAND_IN, None) == [
        row("bad", "before", "1 ms"),
        row("bad", "failed", "ValueError", "out of luck"),
        row("good", "after", "2 ms"),
    ]


def test_a_backend_that_is_not_here_is_a_line_with_its_reason(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_memory, "find_gpu", lambda: GPU)
    for name in ("pycuda", "pycuda.driver", "cuda", "cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    rows = list(benchmark.memory_rows(benchmark.STAND_IN, GPU))
    assert [(row.what, row.figure) for row in rows] == [("cuda-bindings", "not here"), ("pycuda", "not here")]
    assert all("is not installed here" in row.note for row in rows)


def test_a_command_is_told_by_its_exit_status_and_last_line(benchmark: ModuleType) -> None:
    code = "import os, sys; print('first'); print(os.environ['WORD']); sys.exit(int(sys.argv[1]))"
    for status, figure in ((0, "done"), (3, "exit 3")):
        command = [sys.executable, "-c", code, str(status)]
        assert benchmark.last_line(command, {"WORD": "last"}) == (figure, "last")
