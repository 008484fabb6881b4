"""The GPU's benchmark runs everywhere: on the CPU as a labeled stand-in, each part whatever happens to the others."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fsvit_edge.runtime.engines import cuda_packages
from fsvit_edge.runtime.gpu import Gpu

GPU = Gpu("Orin", (8, 7), 14, 8 * 2**30, "12.6")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    folder = str(Path(__file__).parent.parent / "benchmarks")
    sys.path.insert(0, folder)  # as Python does where it runs a script of that folder
    module = importlib.import_module("gpu")
    sys.path.remove(folder)
    return module


@pytest.mark.slow(reason="runs every part of the benchmark, 5 s")
def test_without_a_gpu_every_part_runs_as_a_stand_in_and_says_so(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "find_gpu", lambda: None)
    monkeypatch.setattr(benchmark, "gpu_missing_reason", lambda: "the NVIDIA driver finds no GPU")
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    benchmark.main()
    label, *lines = capsys.readouterr().out.splitlines()
    assert label == (
        "STAND-IN ON THE CPU (the NVIDIA driver finds no GPU): it only shows that this script runs; no number below "
        "is from a GPU."
    )
    assert list(dict.fromkeys(line.split()[0] for line in lines)) == list(benchmark.PARTS)
    failed = [line for line in lines if "failed" in line and "graph" not in line and not line.startswith("rtx")]
    assert failed == []
    table = "\n".join(lines)
    assert "results equal" in table
    assert "DIFFER" not in table
    assert "WRONG" not in table
    for what in ("encoder, float32: lower bound", "head, 1 ways, float32: eager", "head, 5 ways, float32: compiled"):
        assert what in table
    assert table.count("x the lower bound") == 6


def test_it_can_be_asked_for_the_stand_in(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "find_gpu", lambda: GPU)
    monkeypatch.setattr(benchmark, "PARTS", {"one": lambda scale, gpu: [benchmark.Row("", scale.backbone, str(gpu))]})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--stand-in"])
    benchmark.main()
    label, line = capsys.readouterr().out.splitlines()
    assert label.startswith("STAND-IN ON THE CPU (requested)")
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
    monkeypatch.setattr(cuda_packages, "find_gpu", lambda: GPU)
    for name in ("pycuda", "pycuda.driver", "cuda", "cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    rows = list(benchmark.memory_rows(benchmark.STAND_IN, GPU))
    assert [(row.what, row.figure) for row in rows] == [("cuda-bindings", "not available"), ("pycuda", "not available")]
    assert all("is not installed; try" in row.note for row in rows)


def test_a_command_is_told_by_its_exit_status_and_last_line(benchmark: ModuleType) -> None:
    code = "import os, sys; print('first'); print(os.environ['WORD']); sys.exit(int(sys.argv[1]))"
    for status, figure in ((0, "done"), (3, "exit 3")):
        command = [sys.executable, "-c", code, str(status)]
        assert benchmark.last_line(command, {"WORD": "last"}) == (figure, "last")


def test_constants_made_on_the_device_change_nothing_but_where_they_are_made(benchmark: ModuleType) -> None:
    parts: Any = sys.modules["gpu_network"]
    assert benchmark.network_rows is parts.network_rows
    torch, network = parts.torch, parts.FewShotNetwork(parts.ModelConfig("random", "vit_nano_patch8_64", 48)).eval()
    specs = parts.graphs.build_graphs(network)
    image = torch.randint(0, 256, (1, 48, 48, 3), dtype=torch.uint8)
    heads = parts.head_inputs(network, 2)
    with torch.inference_mode():
        wanted = [*specs["encoder"].module(image), *specs["head"].module(*heads)]
        with parts.constants_on(torch.device("cpu"), torch.float32):
            got = [*specs["encoder"].module(image), *specs["head"].module(*heads)]
    assert len(got) == 7
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_graph_that_does_nothing_is_noticed(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from fake_memory import FakeMemory

    class Idle(FakeMemory):
        def capture(self, work: Any) -> Any:
            graph = super().capture(work)
            assert graph is not None
            graph.free()
            return graph

    monkeypatch.setattr(benchmark, "FakeMemory", Idle)
    (row,) = benchmark.capture_rows(benchmark.STAND_IN, None)
    assert "results DIFFER" in row.note
