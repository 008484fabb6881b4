"""An ONNX graph -> a TensorRT plan, with what TensorRT says of its layers.

The types are the graph's own (strongly typed): no precision is asked for here, because TensorRT 11 has no flags for it.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsvit_edge.export.build_thread import Watch, run_watched
from fsvit_edge.export.layers import LayerReport, report_layers
from fsvit_edge.export.timing_cache import Timings, default_timing_cache, keep_timings
from fsvit_edge.runtime.engines.base import TensorSpec
from fsvit_edge.runtime.engines.tensorrt_api import LogCollector, TensorRT
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.gpu import Gpu

DEFAULT_TARGETS = ("sm86", "sm89", "sm120")
"""Where TensorRT-RTX builds without a GPU: the RTX 30, 40 and 50 series."""

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
_RESIZE = "RUNTIME_ACTIVATION_RESIZE_10_10"
"""A preview feature of TensorRT from 10.10 on."""

Range = tuple[int, int, int]
"""Smallest, usual and largest value of a size."""


@dataclass(frozen=True)
class PlanOptions:
    """How to build.

    Attributes:
        targets: For TensorRT-RTX the compute capabilities to build for, "sm86"; empty for TensorRT, which builds for
            the GPU that is here.
        workspace_mib: Limit of what a layer may use beside its tensors; None: TensorRT's own.
        timing_cache: File of the timings; None: one of ours, by version and GPU.
    """

    targets: tuple[str, ...] = ()
    workspace_mib: int | None = None
    timing_cache: Path | None = None


@dataclass(frozen=True)
class BuiltGraph:
    """What was built.

    Attributes:
        data: The plan, or for a CPU the graph.
        inputs: As it takes them.
        outputs: As it gives them.
        profile: Input -> smallest, usual and largest shape, of those that vary.
        layers: What became of the graph.
        build_s: How long it took.
    """

    data: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: dict[str, dict[str, list[int]]]
    layers: LayerReport
    build_s: float


def choose_targets(api: TensorRT, wanted: Sequence[str], precision: str, gpu: Gpu | None) -> tuple[str, ...]:
    """Return the compute capabilities that TensorRT-RTX shall build for; none for TensorRT, which has no choice.

    Raises:
        InputError: A target is unknown, or cannot hold the precision.
        EnvironmentLacksError: None was named and TensorRT-RTX does not know the GPU that is here.
    """
    if not api.is_rtx:
        if wanted:
            raise InputError("TensorRT builds for the GPU that it runs on; leave out --target or take tensorrt-rtx.")
        return ()
    known = known_targets(api)
    here = None if gpu is None else gpu.architecture
    if not wanted and gpu is not None and here not in known:
        raise EnvironmentLacksError(
            f"TensorRT-RTX does not support the {gpu.name} ({here}); it builds for {', '.join(known)}: take "
            "--engine tensorrt or onnxruntime here, or name other GPUs with --target."
        )
    targets = tuple(wanted) or ((here,) if here is not None else DEFAULT_TARGETS)
    for target in targets:
        if target == "sm90":
            raise InputError(
                "TensorRT-RTX does not support Hopper (sm90: H100, H200); build on that machine with --engine tensorrt."
            )
        if target not in known:
            raise InputError(f"--target {target} is not one of TensorRT-RTX's: {', '.join(known)}.")
        if target == "sm75" and precision == "fp32":
            raise InputError(
                "TensorRT-RTX has no FP32 matrix products for Turing (sm75); build with --fp16 or without that target."
            )
    return tuple(sorted(set(targets), key=known.index))


def known_targets(api: TensorRT) -> tuple[str, ...]:
    """Return what the installed TensorRT-RTX builds for, oldest first."""
    members = api.trt.ComputeCapability.__members__
    return tuple(f"sm{number}" for number in sorted(int(name[2:]) for name in members if name[2:].isdigit()))


def build_plan(
    api: TensorRT,
    graph: bytes,
    name: str,
    sizes: Mapping[str, Range],
    names: Mapping[str, Sequence[int | str]],
    options: PlanOptions,
    gpu: Gpu | None,
    progress: Callable[[str], None],
) -> BuiltGraph:
    """Build the plan of a graph.

    Args:
        api: Which TensorRT.
        graph: ONNX.
        name: What the graph is called: encoder, head.
        sizes: What the sizes that vary may be, by name; one of a single value is fixed.
        names: The shape of every input and output, with names for the sizes that vary.
        options: See there.
        gpu: The GPU that is here; TensorRT needs one, TensorRT-RTX does not.
        progress: Is told the phase.

    Raises:
        ArtifactError: TensorRT cannot read the graph.
        FsvitEdgeError: It cannot build it.
    """
    with contextlib.ExitStack() as stack:
        timings = None
        if not api.is_rtx:
            assert gpu is not None, "TensorRT builds on a GPU"
            path = options.timing_cache or default_timing_cache(api, gpu)
            timings = stack.enter_context(keep_timings(path, options.timing_cache is not None, progress))
        return run_watched(
            lambda watch: _build(api, graph, name, sizes, names, options, timings, gpu is not None, watch),
            name,
            progress,
        )


def _build(
    api: TensorRT,
    graph: bytes,
    name: str,
    sizes: Mapping[str, Range],
    names: Mapping[str, Sequence[int | str]],
    options: PlanOptions,
    timings: Timings | None,
    has_gpu: bool,
    watch: Watch,
) -> BuiltGraph:
    """All that TensorRT does, from the graph to the plan."""
    started = time.monotonic()
    log = api.log(verbose=True)
    builder = api.builder(log)
    network = api.network(builder, log)
    # The parser owns the weights: it lives until the plan is there.
    parser = api.parse(network, graph, log, name)
    config = builder.create_builder_config()
    # Has each layer's name and types in the log; the plan itself is as fast.
    config.profiling_verbosity = api.trt.ProfilingVerbosity.DETAILED
    if hasattr(api.trt, "IProgressMonitor"):
        config.progress_monitor = watch.monitor(api.trt)
    if hasattr(api.trt, "PreviewFeature") and hasattr(api.trt.PreviewFeature, _RESIZE):
        # Or newer releases would ask for the memory of the profile's largest shapes, whatever the shapes at hand.
        config.set_preview_feature(getattr(api.trt.PreviewFeature, _RESIZE), True)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(api.trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
    if options.targets:
        config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            config.set_compute_capability(getattr(api.trt.ComputeCapability, target.upper()), index)
    profile = _add_profile(builder, network, config, sizes, names, log, f"{api.title}: the {name}")
    if timings is not None:
        timings.load(config, watch.said.append)
    data = api.serialized(builder, network, config, log, name)
    if timings is not None:
        timings.save(config)
    inputs, outputs = (
        tuple(_spec(get(index), names) for index in range(count))
        for get, count in ((network.get_input, network.num_inputs), (network.get_output, network.num_outputs))
    )
    del parser
    text = "\n".join(text for texts in log.messages.values() for text in texts if "LayerType" in text)
    if not text and has_gpu:
        text = _inspect(api, data, name)
    return BuiltGraph(data, inputs, outputs, profile, report_layers(text), time.monotonic() - started)


def _add_profile(
    builder: Any,
    network: Any,
    config: Any,
    sizes: Mapping[str, Range],
    names: Mapping[str, Sequence[int | str]],
    log: LogCollector,
    title: str,
) -> dict[str, dict[str, list[int]]]:
    """Fix the shapes that have one value alone, and give the range of the others; returns the latter."""
    profile = builder.create_optimization_profile()
    ranges: dict[str, dict[str, list[int]]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        columns = [
            (size,) * 3 if isinstance(size, int) else _range(size, sizes, tensor.name) for size in names[tensor.name]
        ]
        smallest, usual, largest = ([column[which] for column in columns] for which in range(3))
        if smallest == largest:
            tensor.shape = tuple(smallest)
        else:
            profile.set_shape(tensor.name, tuple(smallest), tuple(usual), tuple(largest))
            ranges[tensor.name] = {"min": smallest, "opt": usual, "max": largest}
    if ranges and config.add_optimization_profile(profile) < 0:
        raise FsvitEdgeError(f"{title} has no valid range of shapes {ranges}: {log.last_error()}.")
    return ranges


def _range(size: str, sizes: Mapping[str, Range], tensor: str) -> Range:
    if size not in sizes:
        raise InputError(
            f"Input {tensor!r} varies in {size!r}, for which there is no range (known: {', '.join(sizes)}); "
            "export the bundle again with: fsvit-edge export."
        )
    return sizes[size]


def _spec(tensor: Any, names: Mapping[str, Sequence[int | str]]) -> TensorSpec:
    shape = tuple(
        int(size) if size >= 0 else name for size, name in zip(tuple(tensor.shape), names[tensor.name], strict=True)
    )
    return TensorSpec(tensor.name, shape, _DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower()))


def _inspect(api: TensorRT, data: bytes, name: str) -> str:
    """The layers of a plan, as the engine that is made of it lists them."""
    try:
        engine = api.engine(data, api.log(), name)
        inspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(api.trt.LayerInformationFormat.ONELINE))
    except EnvironmentLacksError:
        return ""
