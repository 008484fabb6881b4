"""An ONNX graph -> a TensorRT plan, and a report of its layers. TensorRT and TensorRT-RTX alike.

The graph's own types are used (strongly typed): TensorRT 11 has no flags to ask for a precision.
"""

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fsvit_edge.export.layers import BuiltGraph, report_layers
from fsvit_edge.runtime.engines.base import TensorSpec
from fsvit_edge.runtime.engines.tensorrt_api import DTYPES, LogCollector, TensorRT
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.gpu import Gpu
from fsvit_edge.runtime.storage import atomic_write, locked, user_cache

Range = tuple[int, int, int]
"""Smallest, usual and largest value of a size."""
REPORT_EVERY_S = 1.0
"""Shortest time between two reports of what TensorRT is doing."""

_RESIZE = "RUNTIME_ACTIVATION_RESIZE_10_10"
"""A preview feature of TensorRT from 10.10 on."""
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class PlanOptions:
    """How to build a plan.

    Attributes:
        targets: GPUs that TensorRT-RTX builds for, by compute capability ("sm86"); empty for TensorRT, which builds for
            the GPU of this machine.
        workspace_mib: Most memory in MiB that a layer may use in addition to its tensors; None: TensorRT's default.
        timing_cache: File for kernel timings; None: one in the user's cache per TensorRT version and GPU.
    """

    targets: tuple[str, ...] = ()
    workspace_mib: int | None = None
    timing_cache: Path | None = None


def build_plan(
    api: TensorRT,
    graph: bytes,
    name: str,
    sizes: Mapping[str, Range],
    shapes: Mapping[str, Sequence[int | str]],
    options: PlanOptions,
    gpu: Gpu | None,
    progress: Callable[[str], None],
) -> BuiltGraph:
    """Build a graph's plan.

    Args:
        api: The installed TensorRT or TensorRT-RTX.
        graph: The ONNX file.
        name: encoder or head, for messages.
        sizes: Name of each dynamic size -> its range; a size whose range has one value becomes fixed.
        shapes: Name of each input and output -> its shape, with names for the dynamic sizes.
        options: Targets, memory and timing cache.
        gpu: This machine's GPU; TensorRT needs one, TensorRT-RTX does not.
        progress: Called with what TensorRT is doing.

    Raises:
        ArtifactError: TensorRT cannot read the graph.
        InputError: A dynamic size has no range, or the timing cache in `options` cannot be used.
        FsvitEdgeError: TensorRT cannot build the graph.
    """
    with contextlib.ExitStack() as stack:
        timings = None
        if not api.is_rtx:
            assert gpu is not None, "TensorRT builds on a GPU"
            path = options.timing_cache or default_timing_cache(api, gpu)
            timings = stack.enter_context(keep_timings(path, options.timing_cache is not None, progress))
        return _run_in_thread(
            lambda running: _build(api, graph, name, sizes, shapes, options, timings, gpu is not None, running),
            name,
            progress,
        )


def _build(
    api: TensorRT,
    graph: bytes,
    name: str,
    sizes: Mapping[str, Range],
    shapes: Mapping[str, Sequence[int | str]],
    options: PlanOptions,
    timings: "Timings | None",
    has_gpu: bool,
    running: "_RunningBuild",
) -> BuiltGraph:
    """Parse, configure, build, and report the layers."""
    started = time.monotonic()
    log = api.log(verbose=True)
    builder = api.builder(log)
    network = api.network(builder, log)
    parser = api.parse(network, graph, log, name)
    config = builder.create_builder_config()
    # Puts each layer's name and types into the log; the plan is as fast without it.
    config.profiling_verbosity = api.trt.ProfilingVerbosity.DETAILED
    if hasattr(api.trt, "IProgressMonitor"):
        config.progress_monitor = running.monitor(api.trt)
    if hasattr(api.trt, "PreviewFeature") and hasattr(api.trt.PreviewFeature, _RESIZE):
        # Without it, newer releases reserve memory for the profile's largest shapes, whatever the actual shapes are.
        config.set_preview_feature(getattr(api.trt.PreviewFeature, _RESIZE), True)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(api.trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
    if options.targets:
        config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            config.set_compute_capability(getattr(api.trt.ComputeCapability, target.upper()), index)
    profile = _add_profile(builder, network, config, sizes, shapes, log, f"{api.title}: the {name}")
    if timings is not None:
        timings.load(config, running.messages.append)
    data = api.serialized(builder, network, config, log, name)
    if timings is not None:
        timings.save(config)
    inputs, outputs = (
        tuple(_spec(get(index), shapes) for index in range(count))
        for get, count in ((network.get_input, network.num_inputs), (network.get_output, network.num_outputs))
    )
    del parser  # it owns the weights, so it must live until the plan exists
    layers = "\n".join(text for texts in log.messages.values() for text in texts if "LayerType" in text)
    if not layers and has_gpu:
        layers = _inspect(api, data, name)
    return BuiltGraph(data, inputs, outputs, profile, report_layers(layers), time.monotonic() - started)


def _add_profile(
    builder: Any,
    network: Any,
    config: Any,
    sizes: Mapping[str, Range],
    shapes: Mapping[str, Sequence[int | str]],
    log: LogCollector,
    title: str,
) -> dict[str, dict[str, list[int]]]:
    """Fix the shapes that have a single value and give the others a range; returns input -> min, opt, max shape."""
    profile = builder.create_optimization_profile()
    ranges: dict[str, dict[str, list[int]]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        columns = [
            (size,) * 3 if isinstance(size, int) else _range(size, sizes, tensor.name) for size in shapes[tensor.name]
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
            f"Input {tensor!r} has the dynamic size {size!r}, which has no range (known: {', '.join(sizes)}); "
            "export the bundle again with: fsvit-edge export."
        )
    return sizes[size]


def _spec(tensor: Any, shapes: Mapping[str, Sequence[int | str]]) -> TensorSpec:
    shape = tuple(
        int(size) if size >= 0 else name for size, name in zip(tuple(tensor.shape), shapes[tensor.name], strict=True)
    )
    return TensorSpec(tensor.name, shape, DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower()))


def _inspect(api: TensorRT, data: bytes, name: str) -> str:
    """The plan's layers as TensorRT's engine inspector lists them; empty if the plan cannot be opened here."""
    try:
        engine = api.engine(data, api.log(), name)
        inspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(api.trt.LayerInformationFormat.ONELINE))
    except EnvironmentLacksError:
        return ""


# ------------------------------------------------------------------------------------------------------ timing cache


@dataclass
class Timings:
    """Kernel timings, which make a second build of a network much faster; valid for one TensorRT version on one GPU.

    Attributes:
        known: The file's contents before the build; empty without a file.
        learned: Those and the timings that the build added; None before the build.
    """

    known: bytes
    learned: bytes | None = None

    def load(self, config: Any, say: Callable[[str], None]) -> None:
        """Give the known timings to a build.

        Args:
            config: The build's `IBuilderConfig`.
            say: Called with a message if the timings are of another TensorRT or GPU.
        """
        if not config.set_timing_cache(config.create_timing_cache(self.known), False):
            say("the timing cache was made by another TensorRT or GPU; starting with an empty one")
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def save(self, config: Any) -> None:
        """Take the timings from a build that has ended."""
        cache = config.get_timing_cache()
        self.learned = None if cache is None else bytes(cache.serialize())


def default_timing_cache(api: TensorRT, gpu: Gpu) -> Path:
    """Return the user's timing cache for this TensorRT and GPU.

    Raises:
        EnvironmentLacksError: There is no home folder.
    """
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    return user_cache("timings") / f"{name}.{gpu.architecture}.trt{api.version}.cache"


@contextlib.contextmanager
def keep_timings(path: Path, is_given: bool, progress: Callable[[str], None]) -> Iterator[Timings | None]:
    """Lock a timing cache, yield its timings, and write what the build learned; None if it cannot be used.

    The lock lasts for the whole build: two builds that time kernels on one GPU at once would disturb each other.

    Args:
        path: The file; it need not exist.
        is_given: The user named the file, so it must be usable; the default file is optional.
        progress: Called when the build waits for another build, or runs without timings.

    Raises:
        InputError: The user's file cannot be read or written.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.parent / f"{path.name}.lock"
            stack.enter_context(locked(lock, on_wait=lambda: progress("waiting for another build on this GPU")))
            timings = Timings(path.read_bytes() if path.exists() else b"")
        except OSError as error:
            sentence = f"The timing cache {path} cannot be used: {error.strerror or error}"
            if is_given:
                raise InputError(f"{sentence}; name another file with --timing-cache.") from error
            progress(f"{sentence}; building without it")
            yield None
            return
        yield timings
        if timings.learned is None:
            return
        try:
            atomic_write(path, timings.learned)
        except FsvitEdgeError as error:
            if is_given:
                raise
            progress(f"the timings are not saved: {error}")


# ------------------------------------------------------------------------------------------------- thread of the build


class _RunningBuild:
    """What the building thread and the waiting thread share.

    Attributes:
        cancelled: Set when the build should end.
        phases: Names of the phases that are running, the innermost last.
        messages: Lines for the waiting thread to report.
    """

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.phases: list[str] = []
        self.messages: list[str] = []

    def monitor(self, trt: Any) -> Any:
        """Return an `IProgressMonitor` that records phases, and ends the build once it is canceled."""
        base: Any = trt.IProgressMonitor
        phases, cancelled = self.phases, self.cancelled

        class Monitor(base):  # type: ignore[misc]  # the module is only known at run time
            def __init__(self) -> None:
                base.__init__(self)

            def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002 - TensorRT's
                phases.append(phase)

            def step_complete(self, phase: str, step: int) -> bool:  # noqa: ARG002 - TensorRT's
                return not cancelled.is_set()

            def phase_finish(self, phase: str) -> None:
                if phase in phases:
                    phases.remove(phase)

        return Monitor()


def _run_in_thread(work: Callable[[_RunningBuild], _Result], name: str, progress: Callable[[str], None]) -> _Result:
    """Build in a thread, report its phases, and return its result or raise its error; Ctrl-C cancels the build.

    Only the main thread receives Ctrl-C, and TensorRT calls back into Python (log, progress) from the thread that
    builds. An exception there would pass through TensorRT's own frames, which ends the process.
    """
    running = _RunningBuild()
    outcome: list[_Result] = []
    failure: list[Exception] = []
    # Python 3.11 considers a thread ended if Ctrl-C interrupts `join` (bpo-45274), so the thread sets its own events.
    has_begun, has_ended = threading.Event(), threading.Event()

    def run() -> None:
        has_begun.set()
        try:
            outcome.append(work(running))
        except Exception as error:  # raised again by the waiting thread
            failure.append(error)
        finally:
            has_ended.set()

    thread = threading.Thread(target=run, name=f"build {name}", daemon=True)
    reported, reported_at = "", time.monotonic()
    with _stdout_on_stderr():
        try:
            thread.start()
            is_over = False
            while not is_over:
                is_over = has_ended.wait(0.1)
                while running.messages:
                    progress(running.messages.pop(0))
                phase = "".join(running.phases[-1:])
                if phase not in ("", reported) and time.monotonic() - reported_at > REPORT_EVERY_S:
                    reported, reported_at = phase, time.monotonic()
                    progress(f"{name}: {phase[0].lower()}{phase[1:]}")
        except BaseException:
            # A thread that is still in TensorRT when Python exits crashes the process.
            running.cancelled.set()
            if has_begun.wait(1.0):  # Ctrl-C may come before the thread has begun
                has_ended.wait()
            raise
    if failure:
        raise failure[0]
    return outcome[0]


@contextlib.contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Send what TensorRT's compiler prints on stdout to stderr, because stdout is for results."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no stdout
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
