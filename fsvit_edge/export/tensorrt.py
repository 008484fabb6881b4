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

from fsvit_edge.export.built_graph import BuiltGraph, LayerReport
from fsvit_edge.export.job import Range
from fsvit_edge.runtime.engines.base import TensorSpec
from fsvit_edge.runtime.engines.tensorrt_api import DTYPES, TensorRT
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.gpu import Gpu
from fsvit_edge.runtime.messages import Progress, Say
from fsvit_edge.runtime.storage import atomic_write, locked, read_file, user_cache

REPORT_EVERY_S = 1.0
"""Shortest time between two reports of what TensorRT is doing."""

_MAX_TIMINGS_BYTES = 10**9  # a few MB are usual
_RESIZE = "RUNTIME_ACTIVATION_RESIZE_10_10"
"""A preview feature of TensorRT from 10.10 on."""
_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\](?:, |$)(?P<rest>.*)$")
_DTYPE = re.compile(r"Datatype: (\w+)")
_MATRIX_KINDS = ("gemm", "MatrixMultiply", "matrix_multiply")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class PlanRequest:
    """Which plan to build, and how."""

    name: str  # encoder or head, for messages
    sizes: Mapping[str, Range]  # of each dynamic size; one whose range has one value becomes fixed
    shapes: Mapping[str, Sequence[int | str]]  # of each input and output, with names for the dynamic sizes
    gpu: Gpu | None  # this machine's; TensorRT needs one, TensorRT-RTX does not
    targets: tuple[str, ...] = ()  # GPUs that TensorRT-RTX builds for ("sm86"); empty for TensorRT
    workspace_mib: int | None = None  # as in `BuildOptions`
    timing_cache: Path | None = None  # None: one in the user's cache per TensorRT version and GPU


def build_plan(api: TensorRT, graph: bytes, request: PlanRequest, progress: Progress, say: Say) -> BuiltGraph:
    """Build an ONNX graph's plan; `progress` is called with what TensorRT is doing, `say` with notes on its timings.

    Raises:
        ArtifactError: TensorRT cannot read the graph.
        InputError: A dynamic size has no range, or the timing cache that the user named cannot be used.
        FsvitEdgeError: TensorRT cannot build the graph.
    """
    with contextlib.ExitStack() as stack:
        timings = None
        if not api.is_rtx:
            assert request.gpu is not None, "TensorRT builds on a GPU"
            path = request.timing_cache or default_timing_cache(api, request.gpu)
            timings = stack.enter_context(keep_timings(path, request.timing_cache is not None, progress, say))
        return _run_in_thread(
            lambda running: _build(api, graph, request, timings, running), request.name, progress, say
        )


def _build(
    api: TensorRT, graph: bytes, request: PlanRequest, timings: "Timings | None", running: "_RunningBuild"
) -> BuiltGraph:
    """Parse, configure, build, and report the layers."""
    started = time.monotonic()
    log = api.log(verbose=True)
    builder = api.builder(log)
    network = api.network(builder, log)
    parser = api.parse(network, graph, log, request.name)
    config = builder.create_builder_config()
    # Puts each layer's name and types into the log; the plan is as fast without it.
    config.profiling_verbosity = api.trt.ProfilingVerbosity.DETAILED
    if hasattr(api.trt, "IProgressMonitor"):
        config.progress_monitor = running.monitor(api.trt)
    if hasattr(api.trt, "PreviewFeature") and hasattr(api.trt.PreviewFeature, _RESIZE):
        # Without it, newer releases reserve memory for the profile's largest shapes, whatever the actual shapes are.
        config.set_preview_feature(getattr(api.trt.PreviewFeature, _RESIZE), True)
    if request.workspace_mib is not None:
        config.set_memory_pool_limit(api.trt.MemoryPoolType.WORKSPACE, request.workspace_mib * 2**20)
    if request.targets:
        config.num_compute_capabilities = len(request.targets)
        for index, target in enumerate(request.targets):
            config.set_compute_capability(getattr(api.trt.ComputeCapability, target.upper()), index)
    profile, ranges = builder.create_optimization_profile(), _fix_shapes(network, request)
    for name, shapes in ranges.items():
        profile.set_shape(name, *(tuple(shapes[key]) for key in ("min", "opt", "max")))
    if ranges and config.add_optimization_profile(profile) < 0:
        raise FsvitEdgeError(
            f"{api.title}: the {request.name} has no valid range of shapes {ranges}: {log.last_error()}."
        )
    if timings is not None:
        timings.load(config, running.notes.append)
    data = api.serialized(builder, network, config, log, request.name)
    if timings is not None:
        timings.save(config)
    inputs, outputs = (
        tuple(_spec(get(index), request.shapes) for index in range(count))
        for get, count in ((network.get_input, network.num_inputs), (network.get_output, network.num_outputs))
    )
    del parser  # it owns the weights, so it must live until the plan exists
    layers = "\n".join(text for texts in log.messages.values() for text in texts if "LayerType" in text)
    if not layers and request.gpu is not None:
        layers = _inspect(api, data, request.name)
    return BuiltGraph(data, inputs, outputs, ranges, report_layers(layers), time.monotonic() - started)


def _fix_shapes(network: Any, request: PlanRequest) -> dict[str, dict[str, list[int]]]:
    """Fix the inputs' shapes that have a single value; of the others, returns input -> "min", "opt", "max" shape."""
    ranges: dict[str, dict[str, list[int]]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        columns: list[Range] = []
        for size in request.shapes[tensor.name]:
            if isinstance(size, str) and size not in request.sizes:
                raise InputError(
                    f"Input {tensor.name!r} has the dynamic size {size!r}, which has no range (known: "
                    f"{', '.join(request.sizes)}); export the bundle again with: fsvit-edge export."
                )
            columns.append((size,) * 3 if isinstance(size, int) else request.sizes[size])
        smallest, usual, largest = ([column[which] for column in columns] for which in range(3))
        if smallest == largest:
            tensor.shape = tuple(smallest)
        else:
            ranges[tensor.name] = {"min": smallest, "opt": usual, "max": largest}
    return ranges


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


def report_layers(text: str) -> LayerReport:
    """Count the layers in TensorRT's text: one line per layer, from a verbose build's log or the engine inspector."""
    counts = {"Int8": 0, "Half": 0, "BFloat16": 0, "Float": 0}
    layers = attention = 0
    for line in text.splitlines():
        match = _LAYER.match(line.strip())
        if match is None or match["kind"] in ("wait", "signal"):
            continue
        layers += 1
        name, kind = match["name"], match["kind"]
        if "mha" in name.lower():
            attention += 1
        elif kind in _MATRIX_KINDS or (kind == "runtime_fusion" and "Fc" in name):
            dtype = _DTYPE.search(match["inputs"]) or _DTYPE.search(match["rest"])
            if dtype is not None and dtype[1] in counts:
                counts[dtype[1]] += 1
    return LayerReport(layers, attention, counts["Int8"], counts["Half"] + counts["BFloat16"], counts["Float"])


# ------------------------------------------------------------------------------------------------------ timing cache


@dataclass
class Timings:
    """Kernel timings, which make a second build of a network much faster; valid for one TensorRT version on one GPU."""

    known: bytes  # the file's contents before the build; empty without a file
    learned: bytes | None = None  # those and the timings that the build added; None before the build

    def load(self, config: Any, say: Say) -> None:
        """Give the known timings to a build's `IBuilderConfig`."""
        if not config.set_timing_cache(config.create_timing_cache(self.known), False):
            say("Note: the timing cache was made by another TensorRT or GPU; this build starts with an empty one.")
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def save(self, config: Any) -> None:
        """Take the timings from a build that has ended."""
        cache = config.get_timing_cache()
        self.learned = None if cache is None else bytes(cache.serialize())


def default_timing_cache(api: TensorRT, gpu: Gpu) -> Path:
    """The user's timing cache for this TensorRT and GPU."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    return user_cache("timings") / f"{name}.{gpu.architecture}.trt{api.version}.cache"


@contextlib.contextmanager
def keep_timings(path: Path, is_given: bool, progress: Progress, say: Say) -> Iterator[Timings | None]:
    """Lock a timing cache, yield its timings, and write what the build learned; None if it cannot be used.

    The lock lasts for the whole build: two builds that time kernels on one GPU at once would disturb each other. A file
    that the user named (`is_given`) must be usable; the default file is optional.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.parent / f"{path.name}.lock"
            stack.enter_context(locked(lock, on_wait=lambda: progress("waiting for another build on this GPU")))
            timings = Timings(read_file(path, _MAX_TIMINGS_BYTES) if path.exists() else b"")
        except OSError as error:
            problem = f"timing cache {path} cannot be used: {error.strerror or error}"
            if is_given:
                raise InputError(f"The {problem}; name another file with --timing-cache.") from error
            say(f"Note: the {problem}; this build does without it.")
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
            say(f"Note: the timings are not saved: {error}")


# ------------------------------------------------------------------------------------------------- thread of the build


class _RunningBuild:
    """What the building thread and the waiting thread share."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()  # set when the build should end
        self.phases: list[str] = []  # names of the phases that are running, the innermost last
        self.notes: list[str] = []  # for the waiting thread to say

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


def _run_in_thread(work: Callable[[_RunningBuild], _Result], name: str, progress: Progress, say: Say) -> _Result:
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
                while running.notes:
                    say(running.notes.pop(0))
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
