"""Measure everything that needs a GPU in one call; without a GPU, run a small stand-in on the CPU, labeled as such.

    python benchmarks/gpu.py [--stand-in]

The parts are independent: if one fails, its row in the table gives the reason and the others go on. Networks have
random weights, which does not change their speed. A network's time is compared with two lower bounds: weights, inputs
and outputs at the measured bandwidth, and operations at the measured rate of a large matrix product. No engine can be
faster than the larger of the two.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fake_memory import FakeMemory
from gpu_network import network_rows
from gpu_table import MIB, NEEDS_A_GPU, Row, Scale, guarded, median, print_table

from fsvit_edge.runtime.engines.cuda_packages import MEMORY_PACKAGES, open_device_memory
from fsvit_edge.runtime.engines.gpu_memory import DeviceMemory
from fsvit_edge.runtime.engines.rtx import explain_diagnostic
from fsvit_edge.runtime.engines.tensorrt_api import TensorRT, installed_backends, open_tensorrt
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.gpu import Gpu, find_gpu, gpu_missing_reason

ROOT = Path(__file__).parent.parent
HALVES = (torch.float16, torch.bfloat16)


FULL = Scale("vit_small_patch8_224.dino", 400, 64 * MIB, 8192, 1024 * MIB, 30, "inductor", HALVES, (1, 5, 20))
STAND_IN = Scale("vit_nano_patch8_64", 48, MIB, 256, 16 * MIB, 1, "eager", (torch.float32,), (1, 5))


Part = Callable[[Scale, Gpu | None], Iterable[Row]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stand-in", action="store_true", help="run small sizes on the CPU even if there is a GPU")
    is_stand_in = parser.parse_args().stand_in
    gpu = None if is_stand_in else find_gpu()
    if gpu is None:
        reason = "requested" if is_stand_in else gpu_missing_reason()
        print(f"STAND-IN ON THE CPU ({reason}): it only shows that this script runs; no number below is from a GPU.")
    print_table(measure(FULL if gpu else STAND_IN, gpu))


def measure(scale: Scale, gpu: Gpu | None) -> list[Row]:
    """Run every part; an error becomes a row."""
    torch.manual_seed(0)
    return [replace(row, part=name) for name, part in PARTS.items() for row in guarded(part(scale, gpu))]


def machine_rows(scale: Scale, gpu: Gpu | None) -> Iterator[Row]:
    """Describe the machine and the software."""
    if gpu is not None:
        yield Row("", gpu.name, gpu.architecture, f"{gpu.sm_count} SMs, {gpu.memory_bytes // MIB} MiB")
        yield Row("", "driver", gpu.driver, "highest supported CUDA version")
    yield Row("", "torch", version("torch"), f"CUDA {torch.version.cuda}; {scale.backbone} at {scale.image_size} px")
    for backend in installed_backends():
        yield Row("", backend, open_tensorrt(backend).version)


def rtx_rows(_: Scale, gpu: Gpu | None) -> Iterator[Row]:
    """Check whether TensorRT-RTX could run its engines here: the default one, and one per kind of GPU."""
    api = open_tensorrt("tensorrt-rtx")
    log = api.log()
    runtime = api.trt.Runtime(log.logger)
    targets = [name for name in api.trt.ComputeCapability.__members__ if name.startswith("SM")]
    for target in [None, *(targets if gpu else targets[-1:])]:
        what = f"engine for {target or 'every GPU (default)'}"
        plan = tiny_plan(api, target)
        if plan is None:
            yield Row("", what, "not built", log.last_error())
            continue
        validity, bits = runtime.get_engine_validity(plan[: runtime.engine_header_size])
        names = [name for name, bit in api.trt.EngineInvalidityDiagnostics.__members__.items() if bits & int(bit)]
        note = "; ".join(names if gpu is None else [f"{name}: {explain_diagnostic(name, api, gpu)}" for name in names])
        if not note and validity == api.trt.EngineValidity.INVALID:
            note = log.last_error()
        yield Row("", what, validity.name, note)


def tiny_plan(api: TensorRT, target: str | None) -> bytes | None:
    """Build a plan of one operator, which every kind of GPU supports."""
    log = api.log()
    builder = api.builder(log)
    network = api.network(builder, log)
    source = network.add_input("source", api.trt.float16, (4, 8))
    network.mark_output(network.add_activation(source, api.trt.ActivationType.RELU).get_output(0))
    config = builder.create_builder_config()
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(api.trt.ComputeCapability, target), 0)
    plan = builder.build_serialized_network(network, config)
    return None if plan is None else bytes(plan)


def of_each_memory(gpu: Gpu | None, rows: Callable[[str, DeviceMemory], Iterator[Row]]) -> Iterator[Row]:
    """Yield the rows of each backend for GPU memory, or why it is not available; without a GPU, of the fake one."""
    if gpu is None:
        yield from rows("fake", FakeMemory())
        return
    for name in reversed(MEMORY_PACKAGES):  # cuda.bindings first: its hold on the primary context outlasts pycuda's
        try:
            memory = open_device_memory(name)
        except FsvitEdgeError as error:
            yield Row("", name, "not available", str(error))
            continue
        yield from rows(name, memory)
        memory.close()


def memory_rows(scale: Scale, gpu: Gpu | None) -> Iterator[Row]:
    """Measure copies between host and device: large ones, and those of a frame."""
    answer = 4 * 5 * (1 + 100 * 100)
    sizes = {f"{scale.copy_bytes // MIB} MiB": scale.copy_bytes, "a frame": 3 * 400 * 400}
    large = np.random.default_rng(0).integers(0, 256, scale.copy_bytes, dtype=np.uint8)

    def rows(name: str, memory: DeviceMemory) -> Iterator[Row]:
        buffer = memory.alloc(large.nbytes)
        for what, nbytes in {**sizes, "the answer for 5 classes": answer}.items():
            piece = large[:nbytes]

            def up(piece: Any = piece) -> None:
                memory.upload(piece, buffer)
                memory.synchronize()

            def down(piece: Any = piece) -> None:
                memory.download(buffer, piece.shape, piece.dtype)

            for direction, work in (("up", up), ("down", down)):
                seconds = median(work, scale.repeats)
                rate = f"{nbytes / seconds / 1e9:.1f} GB/s"
                yield Row("", f"{name}: {what} {direction}", f"{seconds * 1e3:.3f} ms", rate)
        if not np.array_equal(memory.download(buffer, (answer,), np.uint8), large[:answer]):
            yield Row("", name, "WRONG", "the downloaded data differ from the uploaded data")

    return of_each_memory(gpu, rows)


def suite_rows(_: Scale, gpu: Gpu | None) -> Iterator[Row]:
    """Run the tests that need a GPU."""
    if gpu is None:
        yield Row("", "pytest -m requires_cuda", "not run", NEEDS_A_GPU)
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "requires_cuda", str(ROOT / "tests" / "runtime")]
    yield Row("", "pytest -m requires_cuda", *last_line(command, {}))


def plan_rows(_: Scale, gpu: Gpu | None) -> Iterator[Row]:
    """Build, verify and time the engines of the bundled model with the commands that a user types."""
    if gpu is None:
        yield Row("", "build-engine, bench", "not run", NEEDS_A_GPU)
        return
    command = [sys.executable, "-c", "from fsvit_edge.cli.main import main; main()"]
    with tempfile.TemporaryDirectory() as cache:
        for backend in installed_backends():
            for precision in ("fp16", "int8"):
                options = ["--engine", backend, "--precision", precision]
                for verb in ("build-engine", "bench"):
                    figure, note = last_line([*command, verb, *options], {"XDG_CACHE_HOME": cache})
                    yield Row("", f"{verb} {' '.join(options)}", figure, note)


def last_line(command: list[str], environment: dict[str, str]) -> tuple[str, str]:
    """Run a command; return its exit status and the last line that it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    lines = (done.stdout + done.stderr).strip().splitlines()
    return ("done" if done.returncode == 0 else f"exit {done.returncode}"), (lines or [""])[-1].strip()


def capture_rows(scale: Scale, gpu: Gpu | None) -> Iterator[Row]:
    """Measure a chain of small products: launched one by one, and as a captured graph."""
    links = 100

    def rows(name: str, memory: DeviceMemory) -> Iterator[Row]:
        work, result = fake_chain(memory, links) if isinstance(memory, FakeMemory) else torch_chain(memory, links)
        work()
        wanted = result()
        one_by_one = finished_ms(memory, work, scale.repeats)
        result()
        graph = memory.capture(work)
        if graph is None:
            yield Row("", f"{name}: {links} kernels", f"{one_by_one:.3f} ms", "no graph could be captured")
            return
        graph.launch()
        is_right = np.array_equal(result(), wanted)
        captured = finished_ms(memory, graph.launch, scale.repeats)
        note = f"{one_by_one:.3f} ms one by one; results {'equal' if is_right else 'DIFFER'}"
        yield Row("", f"{name}: {links} kernels as a graph", f"{captured:.3f} ms", note)
        graph.free()

    return of_each_memory(gpu, rows)


def finished_ms(memory: DeviceMemory, work: Callable[[], None], repeats: int) -> float:
    """Median time in ms from the start of the work until the stream is done."""

    def finish() -> None:
        work()
        memory.synchronize()

    return median(finish, repeats) * 1e3


def torch_chain(memory: DeviceMemory, links: int) -> tuple[Callable[[], None], Callable[[], Any]]:
    """Return a chain of PyTorch products on the stream of `memory`, and a function that returns its result."""
    stream = torch.cuda.ExternalStream(memory.stream)
    left, right = (torch.randn(128, 128, device="cuda", dtype=torch.float16) for _ in range(2))
    out = torch.empty_like(left)
    torch.cuda.synchronize()

    def work() -> None:
        with torch.cuda.stream(stream):
            for _ in range(links):
                torch.mm(left, right, out=out)

    def result() -> Any:
        memory.synchronize()
        values = out.cpu().numpy()
        out.zero_()  # otherwise a graph that does nothing would pass
        torch.cuda.synchronize()
        return values

    return work, result


def fake_chain(memory: FakeMemory, links: int) -> tuple[Callable[[], None], Callable[[], Any]]:
    """Return the same chain in numpy."""
    left, right = np.random.default_rng(0).random((2, 16, 16))
    out = np.empty((16, 16))

    def multiply() -> None:
        np.matmul(left, right, out=out)

    def work() -> None:
        for _ in range(links):
            memory.submit(multiply)

    def result() -> Any:
        values = out.copy()
        out.fill(0)
        return values

    return work, result


PARTS: dict[str, Part] = {
    "machine": machine_rows,
    "rtx": rtx_rows,
    "memory": memory_rows,
    "tests": suite_rows,
    "capture": capture_rows,
    "plans": plan_rows,
    "network": network_rows,
}


if __name__ == "__main__":
    main()
