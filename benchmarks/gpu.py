"""Everything that needs a GPU, in one call and one table; without a GPU a small stand-in on the CPU, labelled as such.

    python benchmarks/gpu.py [--stand-in]

Each part stands alone: what fails says why in the table, and the others go on. Networks have random weights: as fast as
any. A network's time is held against two floors: weights, inputs and outputs at the measured bandwidth, and operations
at the measured rate of a large matrix product; the larger of the two cannot be beaten, however good the engine.
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fsvit_edge.export.graphs import EncoderGraph, build_graphs
from fsvit_edge.model.config import POOLED_GRID, ModelConfig
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.engines.device_memory import BACKENDS, DeviceMemory, open_device_memory
from fsvit_edge.runtime.engines.fake_memory import FakeMemory
from fsvit_edge.runtime.engines.rtx_runtime import diagnosis
from fsvit_edge.runtime.engines.tensorrt_api import TensorRT, installed_backends, open_tensorrt
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.gpu import Gpu, find_gpu, gpu_missing_reason

ROOT = Path(__file__).parent.parent
HALVES = (torch.float16, torch.bfloat16)
MIB = 2**20
NEEDS_A_GPU = "needs a GPU"


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        backbone: Of the network.
        image_size: Side in pixels.
        copy_bytes: Of the copies between host and device.
        product: Side of the matrix product that gives the peak.
        move_bytes: Of the copy on the device that gives the bandwidth.
        repeats: Of each measurement.
        compiler: Of torch.compile.
        dtypes: Of the network.
        ways: Of the head.
    """

    backbone: str
    image_size: int
    copy_bytes: int
    product: int
    move_bytes: int
    repeats: int
    compiler: str
    dtypes: tuple[torch.dtype, ...]
    ways: tuple[int, ...]


FULL = Scale("vit_small_patch8_224.dino", 400, 64 * MIB, 8192, 1024 * MIB, 30, "inductor", HALVES, (1, 5, 20))
STAND_IN = Scale("vit_nano_patch8_64", 48, MIB, 256, 16 * MIB, 1, "eager", (torch.float32,), (1, 5))


@dataclass(frozen=True)
class Row:
    """A line of the table: the part it belongs to, what was measured, the figure, and what it means."""

    part: str
    what: str
    figure: str
    note: str = ""


Part = Callable[[Scale, Gpu | None], Iterable[Row]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stand-in", action="store_true", help="small sizes on the CPU even where there is a GPU")
    is_stand_in = parser.parse_args().stand_in
    gpu = None if is_stand_in else find_gpu()
    if gpu is None:
        reason = "asked for" if is_stand_in else gpu_missing_reason()
        print(f"STAND-IN ON THE CPU ({reason}): it shows that this script runs; no figure below is a GPU's.")
    print_table(measure(FULL if gpu else STAND_IN, gpu))


def measure(scale: Scale, gpu: Gpu | None) -> list[Row]:
    """Run every part; what one of them raises becomes a line."""
    torch.manual_seed(0)
    return [replace(row, part=name) for name, part in PARTS.items() for row in guarded(part(scale, gpu))]


def guarded(rows: Iterable[Row]) -> Iterator[Row]:
    """Pass rows on until one fails, then say why."""
    try:
        yield from rows
    except Exception as error:  # whatever a driver, a compiler or a backend raises must not end the other parts
        yield Row("", "failed", type(error).__name__, first_line(error))


def print_table(rows: list[Row]) -> None:
    """Print rows under each other, each column as wide as its widest entry."""
    widths = [max(len(getattr(row, field)) for row in rows) for field in ("part", "what", "figure")]
    for row in rows:
        cells = (row.part.ljust(widths[0]), row.what.ljust(widths[1]), row.figure.rjust(widths[2]), row.note)
        print("  ".join(cells).rstrip())


def machine_rows(scale: Scale, gpu: Gpu | None) -> Iterator[Row]:
    """What all figures belong to."""
    if gpu is not None:
        major, minor = gpu.compute_capability
        yield Row("", gpu.name, f"sm{major}{minor}", f"{gpu.sm_count} SMs, {gpu.memory_bytes // MIB} MiB")
        yield Row("", "driver", gpu.driver, "the highest CUDA that it supports")
    yield Row("", "torch", version("torch"), f"CUDA {torch.version.cuda}; {scale.backbone} at {scale.image_size} px")
    for backend in installed_backends():
        yield Row("", backend, open_tensorrt(backend).version)


def rtx_rows(_: Scale, gpu: Gpu | None) -> Iterator[Row]:
    """Whether TensorRT-RTX would run its engines here: the default one, and one for each kind of GPU."""
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
        note = "; ".join(names if gpu is None else [f"{name}: {diagnosis(name, api, gpu)}" for name in names])
        if not note and validity == api.trt.EngineValidity.INVALID:
            note = log.last_error()
        yield Row("", what, validity.name, note)


def tiny_plan(api: TensorRT, target: str | None) -> bytes | None:
    """A plan of one operator, which every kind of GPU can have."""
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


def memories(gpu: Gpu | None) -> Iterator[tuple[str, DeviceMemory | FsvitEdgeError]]:
    """Each backend of the GPU's memory, or why it cannot be had; the fake one without a GPU."""
    if gpu is None:
        yield "fake", FakeMemory()
        return
    for name in reversed(BACKENDS):  # cuda.bindings first: its hold on the primary context outlasts pycuda's
        yield name, opened(name)


def opened(name: str) -> DeviceMemory | FsvitEdgeError:
    """A backend, or why there is none."""
    try:
        return open_device_memory(name)
    except FsvitEdgeError as error:
        return error


def memory_rows(scale: Scale, gpu: Gpu | None) -> Iterator[Row]:
    """Copies through the interface: large ones, and those of a frame."""
    frame, answer = 3 * 400 * 400, 4 * 5 * (1 + 100 * 100)
    for name, memory in memories(gpu):
        if isinstance(memory, FsvitEdgeError):
            yield Row("", name, "not here", str(memory))
            continue
        large = np.random.default_rng(0).integers(0, 256, scale.copy_bytes, dtype=np.uint8)
        buffer = memory.alloc(large.nbytes)
        for what, nbytes in ((f"{scale.copy_bytes // MIB} MiB", large.nbytes), ("a frame", frame), ("five", answer)):
            piece = large[:nbytes]

            def up(piece: Any = piece, memory: DeviceMemory = memory, buffer: Any = buffer) -> None:
                memory.upload(piece, buffer)
                memory.synchronize()

            def down(piece: Any = piece, memory: DeviceMemory = memory, buffer: Any = buffer) -> None:
                memory.download(buffer, piece.shape, piece.dtype)

            for direction, work in (("up", up), ("down", down)):
                seconds = median(work, scale.repeats)
                label = what if what != "five" else "the answer for 5 classes"
                yield Row(
                    "", f"{name}: {label} {direction}", f"{seconds * 1e3:.3f} ms", f"{nbytes / seconds / 1e9:.1f} GB/s"
                )
        if not np.array_equal(memory.download(buffer, (answer,), np.uint8), large[:answer]):
            yield Row("", name, "WRONG", "what came down is not what went up")
        memory.close()


def suite_rows(_: Scale, gpu: Gpu | None) -> Iterator[Row]:
    """The suite of the memory interface on the real GPU."""
    if gpu is None:
        yield Row("", "pytest -m requires_cuda", "not run", NEEDS_A_GPU)
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "requires_cuda", str(ROOT / "tests" / "runtime")]
    yield Row("", "pytest -m requires_cuda", *last_line(command, {}))


def plan_rows(_: Scale, gpu: Gpu | None) -> Iterator[Row]:
    """The shipped model's plans: built, verified and timed by the commands that a user types."""
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
    """Run a command; its exit status, and the last line that it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    lines = (done.stdout + done.stderr).strip().splitlines()
    return ("done" if done.returncode == 0 else f"exit {done.returncode}"), (lines or [""])[-1].strip()


def capture_rows(scale: Scale, gpu: Gpu | None) -> Iterator[Row]:
    """A chain of small products: put on the stream one by one, and as a graph captured through the interface."""
    links = 100
    for name, memory in memories(gpu):
        if isinstance(memory, FsvitEdgeError):
            yield Row("", name, "not here", str(memory))
            continue
        work, result = fake_chain(memory, links) if isinstance(memory, FakeMemory) else torch_chain(memory, links)
        work()
        wanted = result()
        one_by_one = statistics.median(memory.elapsed_ms(work) for _ in range(scale.repeats))
        graph = memory.capture(work)
        if graph is None:
            yield Row("", f"{name}: {links} kernels", f"{one_by_one:.3f} ms", "no graph could be captured")
            continue
        graph.launch()
        is_right = np.array_equal(result(), wanted)
        captured = statistics.median(memory.elapsed_ms(graph.launch) for _ in range(scale.repeats))
        note = f"{one_by_one:.3f} ms one by one; results {'equal' if is_right else 'DIFFER'}"
        yield Row("", f"{name}: {links} kernels as a graph", f"{captured:.3f} ms", note)
        graph.free()
        memory.close()


def torch_chain(memory: DeviceMemory, links: int) -> tuple[Callable[[], None], Callable[[], Any]]:
    """Products of torch on the interface's stream, into memory that is there already."""
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
        return out.cpu().numpy()

    return work, result


def fake_chain(memory: FakeMemory, links: int) -> tuple[Callable[[], None], Callable[[], Any]]:
    """The same of numpy."""
    left, right = np.random.default_rng(0).random((2, 16, 16))
    out = np.empty((16, 16))

    def work() -> None:
        for _ in range(links):
            memory.submit(lambda: np.matmul(left, right, out=out))

    return work, out.copy


def network_rows(scale: Scale, gpu: Gpu | None) -> Iterator[Row]:
    """Encoder and head in torch: eager, compiled and as a graph, against the floors."""
    place = torch.device("cpu" if gpu is None else "cuda")
    network = FewShotNetwork(ModelConfig("random", scale.backbone, scale.image_size)).eval()
    specs = build_graphs(network)
    image = torch.randint(0, 256, (1, scale.image_size, scale.image_size, 3), dtype=torch.uint8)
    for dtype in scale.dtypes:
        bandwidth, rate = roofs(scale, place, dtype)
        name = str(dtype).removeprefix("torch.")
        yield Row("", f"{name}: bandwidth, rate", f"{bandwidth / 1e9:.0f} GB/s", f"{rate / 1e12:.2f} TFLOP/s")
        cases = [("encoder", specs["encoder"].module, [image])]
        cases += [(f"head, {ways} ways", specs["head"].module, head_inputs(network, ways)) for ways in scale.ways]
        for what, module, inputs in cases:
            yield from module_rows(f"{what}, {name}", module, inputs, dtype, place, scale, (bandwidth, rate))


def head_inputs(network: FewShotNetwork, ways: int) -> list[Tensor]:
    """One support a way, of which a third of the tokens are kept."""
    encoder = network.encoder
    channels, dim = encoder.num_channels, encoder.head_dim
    kept, pooled = 1 + network.config.support_grid**2 // 3, POOLED_GRID**2
    return [
        torch.rand(1, channels, encoder.grid**2, dim),
        torch.rand(ways, channels, kept, dim),
        torch.ones(ways, kept),
        torch.rand(ways, channels, pooled, dim),
        torch.ones(ways, pooled),
        torch.eye(ways),
    ]


@torch.inference_mode()
def module_rows(
    what: str,
    module: nn.Module,
    inputs: list[Tensor],
    dtype: torch.dtype,
    place: torch.device,
    scale: Scale,
    roof: tuple[float, float],
) -> Iterator[Row]:
    """The floor of a module, and its time in each way; a way that fails says why."""
    module = copy.deepcopy(module).to(place, dtype)
    inputs = [tensor.to(place, dtype if tensor.is_floating_point() else tensor.dtype) for tensor in inputs]
    if isinstance(module, EncoderGraph):  # it makes FP32 of the image itself
        module.encoder.register_forward_pre_hook(lambda _, given: (given[0].to(dtype), *given[1:]))
    torch.compiler.reset()  # or the second size of a module would be compiled for any size
    compiled = torch.compile(module, backend=scale.compiler, dynamic=False)
    with FlopCounterMode(display=False) as counter:
        outputs = module(*inputs)
    tensors = [*module.parameters(), *module.buffers(), *inputs, *outputs]
    bytes_ms = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / roof[0] * 1e3
    flops_ms = counter.get_total_flops() / roof[1] * 1e3
    floor = max(bytes_ms, flops_ms)
    yield Row("", f"{what}: floor", f"{floor:.3f} ms", f"bytes {bytes_ms:.3f} ms, operations {flops_ms:.3f} ms")
    ways: list[tuple[str, Callable[[], Callable[[], Any]]]] = [
        ("eager", lambda: lambda: module(*inputs)),
        (f"compiled ({scale.compiler})", lambda: lambda: compiled(*inputs)),
        ("eager as a graph", lambda: torch_graph(lambda: module(*inputs), place)),
        (f"compiled ({scale.compiler}) as a graph", lambda: torch_graph(lambda: compiled(*inputs), place)),
    ]
    for way, prepare in ways:
        yield from guarded(timed(f"{what}: {way}", prepare, place, scale, floor))


def timed(
    what: str, prepare: Callable[[], Callable[[], Any]], place: torch.device, scale: Scale, floor: float
) -> Iterator[Row]:
    """One way's time against the floor."""
    milliseconds = torch_median(prepare(), place, scale.repeats)
    yield Row("", what, f"{milliseconds:.3f} ms", f"{milliseconds / floor:.1f} x the floor")


def torch_graph(work: Callable[[], Any], place: torch.device) -> Callable[[], Any]:
    """Capture by torch itself."""
    if place.type != "cuda":
        raise RuntimeError(f"{NEEDS_A_GPU} for a graph")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = work()

    def replay(_: Any = kept) -> None:  # what it returns must live as long as the graph
        graph.replay()

    return replay


def roofs(scale: Scale, place: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes a second of a copy on the device, and operations a second of a large product."""
    source = torch.empty(scale.move_bytes, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    bandwidth = 2 * scale.move_bytes / torch_median(lambda: target.copy_(source), place, scale.repeats) * 1e3
    left, right = (torch.randn(scale.product, scale.product, device=place).to(dtype) for _ in range(2))
    rate = 2 * scale.product**3 / torch_median(lambda: left @ right, place, scale.repeats) * 1e3
    return bandwidth, rate


def torch_median(work: Callable[[], Any], place: torch.device, repeats: int) -> float:
    """Milliseconds of a run, by events on a GPU; the first runs, which compile and warm up, do not count."""
    for _ in range(1 if place.type == "cpu" else 5):
        work()
    if place.type == "cpu":
        return median(work, repeats) * 1e3
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def first_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def median(work: Callable[[], Any], repeats: int) -> float:
    """Seconds of a run on the host's clock."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


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
