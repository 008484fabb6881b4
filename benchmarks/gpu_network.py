"""Part of `gpu.py`: the network in PyTorch (eager, compiled, as a CUDA graph) against lower bounds for any engine."""

import copy
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from gpu_table import NEEDS_A_GPU, Row, Scale, guarded, median
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fsvit_edge.model import graphs
from fsvit_edge.model.config import POOLED_GRID, ModelConfig
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.gpu import Gpu
from fsvit_edge.runtime.preprocess import IMAGENET_MEAN, IMAGENET_STD


def network_rows(scale: Scale, gpu: Gpu | None) -> Iterator[Row]:
    """Measure encoder and head in PyTorch: eager, compiled and as a graph, against the lower bounds."""
    place = torch.device("cpu" if gpu is None else "cuda")
    network = FewShotNetwork(ModelConfig("random", scale.backbone, scale.image_size)).eval()
    specs = graphs.build_graphs(network)
    image = torch.randint(0, 256, (1, scale.image_size, scale.image_size, 3), dtype=torch.uint8)
    for dtype in scale.dtypes:
        bandwidth, rate = roofs(scale, place, dtype)
        name = str(dtype).removeprefix("torch.")
        yield Row("", f"{name}: bandwidth, rate", f"{bandwidth / 1e9:.0f} GB/s", f"{rate / 1e12:.2f} TFLOP/s")
        cases = [("encoder", specs["encoder"].module, [image])]
        cases += [(f"head, {ways} ways", specs["head"].module, head_inputs(network, ways)) for ways in scale.ways]
        for what, module, inputs in cases:
            with constants_on(place, dtype):
                rows = list(module_rows(f"{what}, {name}", module, inputs, dtype, place, scale, (bandwidth, rate)))
            yield from rows


@contextmanager
def constants_on(place: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Create the network's constants on the device, because a copy from the host cannot be part of a graph."""
    mean, std = (torch.tensor(values, device=place, dtype=dtype) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def normalize(image: Tensor) -> Tensor:
        return ((image.to(dtype) / 255 - mean) / std).permute(0, 3, 1, 2)

    with patch.object(graphs, "normalize", normalize):
        yield


def head_inputs(network: FewShotNetwork, ways: int) -> list[Tensor]:
    """Return inputs of the head: one support per class, with a third of its tokens kept."""
    encoder = network.encoder
    channels, dim = encoder.num_channels, encoder.slice_dim
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
    """Yield the lower bound of a module, and its time in each mode; a mode that fails gives a row with the reason."""
    module = copy.deepcopy(module).to(place, dtype)
    inputs = [tensor.to(place, dtype if tensor.is_floating_point() else tensor.dtype) for tensor in inputs]
    torch.compiler.reset()  # otherwise the second size would be compiled as a dynamic size
    compiled = torch.compile(module, backend=scale.compiler, dynamic=False)
    with FlopCounterMode(display=False) as counter:
        outputs = module(*inputs)
    tensors = [*module.parameters(), *module.buffers(), *inputs, *outputs]
    bytes_ms = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / roof[0] * 1e3
    flops_ms = counter.get_total_flops() / roof[1] * 1e3
    floor = max(bytes_ms, flops_ms)
    yield Row("", f"{what}: lower bound", f"{floor:.3f} ms", f"bytes {bytes_ms:.3f} ms, operations {flops_ms:.3f} ms")
    modes: list[tuple[str, Callable[[], Callable[[], Any]]]] = [
        ("eager", lambda: lambda: module(*inputs)),
        (f"compiled ({scale.compiler})", lambda: lambda: compiled(*inputs)),
        ("eager as a graph", lambda: torch_graph(lambda: module(*inputs), place)),
        (f"compiled ({scale.compiler}) as a graph", lambda: torch_graph(lambda: compiled(*inputs), place)),
    ]
    for mode, prepare in modes:
        yield from guarded(timed(f"{what}: {mode}", prepare, place, scale, floor))


def timed(
    what: str, prepare: Callable[[], Callable[[], Any]], place: torch.device, scale: Scale, floor: float
) -> Iterator[Row]:
    """Yield the time of one mode against the lower bound."""
    milliseconds = torch_median(prepare(), place, scale.repeats)
    yield Row("", what, f"{milliseconds:.3f} ms", f"{milliseconds / floor:.1f} x the lower bound")


def torch_graph(work: Callable[[], Any], place: torch.device) -> Callable[[], Any]:
    """Capture `work` as a CUDA graph of PyTorch."""
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

    def replay(_: Any = kept) -> None:  # the output must live as long as the graph
        graph.replay()

    return replay


def roofs(scale: Scale, place: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Return bytes per second of a copy on the device, and operations per second of a large matrix product."""
    source = torch.empty(scale.move_bytes, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    bandwidth = 2 * scale.move_bytes / torch_median(lambda: target.copy_(source), place, scale.repeats) * 1e3
    left, right = (torch.randn(scale.product, scale.product, device=place).to(dtype) for _ in range(2))
    rate = 2 * scale.product**3 / torch_median(lambda: left @ right, place, scale.repeats) * 1e3
    return bandwidth, rate


def torch_median(work: Callable[[], Any], place: torch.device, repeats: int) -> float:
    """Return the median milliseconds of a run, by events on a GPU; warm-up and compiling are not measured."""
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
