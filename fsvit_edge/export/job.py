"""A build, planned: options -> backend, precision, targets, sizes and folder, checked before any work begins.

At the end, the memory that a graph needs, which is known once it is converted.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.engines.base import BACKENDS, refuse_old_name
from fsvit_edge.runtime.engines.files import PRECISIONS, engine_folder, folder_problem
from fsvit_edge.runtime.engines.onnx_runtime import import_onnxruntime, refuse_fp16_on_cpu
from fsvit_edge.runtime.engines.tensorrt_api import TensorRT, installed_backends, open_tensorrt
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.gpu import Gpu, gpu_missing_reason
from fsvit_edge.runtime.limits import free_memory
from fsvit_edge.runtime.machine import Machine
from fsvit_edge.runtime.messages import Say

DEFAULT_MAX_WAYS, DEFAULT_MAX_SHOTS = 10, 5
DEFAULT_TARGETS = ("sm86", "sm89", "sm120")
"""GPUs that TensorRT-RTX builds for on a machine without a GPU: the RTX 30, 40 and 50 series."""

Range = tuple[int, int, int]
"""Smallest, usual and largest value of a size."""

_USUAL_SUPPORTS = 5
_USUAL_MASK_COVER = 0.3
"""Share of a picture that a mask usually covers; plans are tuned for it."""
_BYTES: dict[int, int] = {
    **dict.fromkeys((TensorProto.FLOAT, TensorProto.INT32), 4),
    **dict.fromkeys((TensorProto.INT64, TensorProto.DOUBLE), 8),
    **dict.fromkeys((TensorProto.FLOAT16, TensorProto.BFLOAT16), 2),
}
_BUILDER_BYTES = 400 * 2**20
"""TensorRT's libraries and tables: 180 MB were measured with RTX 1.7 and a small graph, without a GPU's context."""
_COPIES_OF_WEIGHTS = 4
"""Copies during a build: the graph, the parsed network, its optimized copy, and the plan."""


@dataclass(frozen=True)
class BuildOptions:
    """What to build, and how."""

    engine: str = "auto"  # or one of `BACKENDS`
    precision: str | None = None  # one of `PRECISIONS`; None: FP16 with TensorRT, INT8 with ONNX Runtime
    calib: str | None = None  # a calibration (.json) or a source of pictures to calibrate on; None: the bundle's own
    keep_fp32: tuple[str, ...] = ()  # shell-style patterns of nodes that compute in FP32
    quantize: tuple[str, ...] = ()  # patterns of the linear layers to quantize; empty for all
    workspace_mib: int | None = None
    """Most memory in MiB that a layer may use in addition to its tensors; None: TensorRT's default."""
    timing_cache: Path | None = None  # file for TensorRT's kernel timings; None: one in the user's cache
    targets: tuple[str, ...] = ()
    """GPUs that TensorRT-RTX builds for ("sm86"); empty: this machine's GPU, or `DEFAULT_TARGETS`."""
    max_ways: int | None = None  # most classes that the head's plan processes at once; None: `DEFAULT_MAX_WAYS`
    max_shots: int | None = None  # most supports per class; None: `DEFAULT_MAX_SHOTS`
    verify: bool = True  # compare with the FP32 graphs before anything is written
    data: Path | None = None  # folder of a data set to compare exact ratio and mIoU on
    max_drop: float | None = None  # most percentage points that either may lose on `data`; None: any
    force: bool = False  # build even if the engines are up to date


@dataclass(frozen=True)
class Backend:
    """What builds the engines."""

    tensorrt: TensorRT | None  # None: ONNX Runtime builds
    reason: str  # why it was chosen, a clause

    @property
    def name(self) -> str:
        """One of `BACKENDS`."""
        return "onnxruntime" if self.tensorrt is None else self.tensorrt.backend

    @property
    def version(self) -> str:
        """The backend's own version."""
        if self.tensorrt is not None:
            return self.tensorrt.version
        return str(import_onnxruntime().__version__)

    @property
    def title(self) -> str:
        """Name and version, for display."""
        return f"ONNX Runtime {self.version}" if self.tensorrt is None else self.tensorrt.title

    @property
    def default_precision(self) -> str:
        """The precision if none is given; a CPU emulates FP16 in FP32, which is slower, so it gets INT8."""
        return "int8" if self.tensorrt is None else "fp16"


@dataclass(frozen=True)
class BuildJob:
    """Everything that is known before the work begins."""

    bundle: Bundle
    folder: Path  # where the engines are written
    options: BuildOptions
    backend: Backend
    precision: str
    targets: tuple[str, ...]  # GPUs that TensorRT-RTX builds for; empty for other backends
    machine: Machine
    sizes: dict[str, Range]  # of each dynamic size in a plan

    @property
    def runs_here(self) -> bool:
        """Whether the engines can run on this machine."""
        if self.backend.tensorrt is None:
            return True
        gpu = self.machine.gpu
        return gpu is not None and (not self.targets or gpu.architecture in self.targets)

    @property
    def limits(self) -> dict[str, int]:
        """The largest sizes that the head's plan accepts; empty for ONNX Runtime, which has no limits."""
        if self.backend.tensorrt is None:
            return {}
        return {name: top for name, (_, _, top) in self.sizes.items() if top > 1}

    @property
    def usual_sizes(self) -> dict[str, int]:
        """The sizes that engines are timed with."""
        return {name: usual for name, (_, usual, _) in self.sizes.items()}


def plan_job(path: Path, options: BuildOptions) -> BuildJob:
    """Choose what the options for a bundle leave open, and check all that can be checked before the work begins.

    Raises:
        InputError: An option is unknown, has no effect, or contradicts another.
        EnvironmentLacksError: The backend is not installed or lacks the GPU that it needs.
        ArtifactError: The bundle is missing or damaged.
        FsvitEdgeError: The engines cannot be written.
    """
    if options.precision not in (None, *PRECISIONS):
        raise InputError(f"Precision {options.precision!r} is unknown; choose one of: {', '.join(PRECISIONS)}.")
    if options.max_drop is not None and options.data is None:
        raise InputError("--max-drop limits the loss on a data set; name the data set with --data DIR.")
    machine = Machine.here()
    backend = choose_backend(options.engine, machine.gpu, bool(options.targets))
    precision = options.precision or backend.default_precision
    _refuse_options_without_effect(options, backend, precision)
    targets: tuple[str, ...] = ()
    if backend.tensorrt is None:
        refuse_fp16_on_cpu(precision)
    else:
        targets = choose_targets(backend.tensorrt, options.targets, precision, machine.gpu)
    bundle = Bundle.load(path)
    folder = engine_folder(path, bundle.manifest)
    if problem := folder_problem(folder):
        raise FsvitEdgeError(
            f"Engines cannot be written to {folder}: {problem}; copy the bundle to a folder that "
            "you own, or for the bundled model use another cache with: export XDG_CACHE_HOME=/path."
        )
    ways = options.max_ways or DEFAULT_MAX_WAYS
    supports = ways * (options.max_shots or DEFAULT_MAX_SHOTS)
    grid = bundle.manifest.support_grid**2
    sizes = {
        "batch": (1, 1, 1),
        "supports": (1, min(_USUAL_SUPPORTS, supports), supports),
        "ways": (1, min(_USUAL_SUPPORTS, ways), ways),
        "kept_tokens": (1, 1 + round(_USUAL_MASK_COVER * grid), 1 + grid),
    }
    return BuildJob(bundle, folder, options, backend, precision, targets, machine, sizes)


def choose_backend(wanted: str, gpu: Gpu | None, has_targets: bool) -> Backend:
    """Open the backend that is wanted, or the best one here.

    auto: TensorRT if it is installed and there is a GPU; else TensorRT-RTX if it is installed and can build for this
    GPU or, without a GPU, for others; else ONNX Runtime.

    Raises:
        InputError: The backend is unknown.
        EnvironmentLacksError: The backend is not installed, cannot be loaded, or lacks the GPU that it needs.
    """
    refuse_old_name(wanted)
    if wanted not in ("auto", *BACKENDS):
        raise InputError(f"--engine {wanted} is unknown; choose one of: auto, {', '.join(BACKENDS)}.")
    if wanted == "tensorrt" and gpu is None:
        open_tensorrt(wanted)
        raise EnvironmentLacksError(
            f"TensorRT builds on the GPU that will run the engine, but {gpu_missing_reason()}; build on that machine, "
            "or use --engine tensorrt-rtx (for other machines) or --engine onnxruntime."
        )
    if wanted == "onnxruntime":
        return Backend(None, "as requested")
    if wanted != "auto":
        return Backend(open_tensorrt(wanted), "as requested")
    installed = installed_backends()
    if gpu is not None and "tensorrt" in installed and not has_targets:
        return Backend(open_tensorrt("tensorrt"), f"it is installed and there is a GPU, {gpu.name}")
    if "tensorrt-rtx" in installed:
        api = open_tensorrt("tensorrt-rtx")
        if gpu is None:
            return Backend(api, f"it is installed and builds for GPUs elsewhere; here {gpu_missing_reason()}")
        if has_targets or gpu.architecture in known_targets(api):
            return Backend(api, f"it is installed and there is a GPU, {gpu.name}")
        reason = f"TensorRT-RTX does not support the {gpu.name} ({gpu.architecture}) and TensorRT is not installed"
        return Backend(None, reason)
    if "tensorrt" in installed and gpu is None:
        return Backend(None, f"TensorRT is installed, but {gpu_missing_reason()}")
    return Backend(None, "neither TensorRT nor TensorRT-RTX is installed")


def choose_targets(api: TensorRT, wanted: Sequence[str], precision: str, gpu: Gpu | None) -> tuple[str, ...]:
    """Return the GPUs that TensorRT-RTX builds for ("sm86"), oldest first; empty for TensorRT, which has no choice."""
    if not api.is_rtx:
        if wanted:
            raise InputError("TensorRT builds for the GPU that it runs on; leave out --target or use tensorrt-rtx.")
        return ()
    known = known_targets(api)
    here = None if gpu is None else gpu.architecture
    if not wanted and gpu is not None and here not in known:
        raise EnvironmentLacksError(
            f"TensorRT-RTX does not support the {gpu.name} ({here}), only {', '.join(known)}; use --engine tensorrt or "
            "onnxruntime, or name other GPUs with --target."
        )
    targets = tuple(wanted) or ((here,) if here is not None else DEFAULT_TARGETS)
    for target in targets:
        if target == "sm90":
            raise InputError(
                "TensorRT-RTX does not support Hopper (sm90: H100, H200); build on that machine with --engine tensorrt."
            )
        if target not in known:
            raise InputError(f"TensorRT-RTX does not support --target {target}; choose from: {', '.join(known)}.")
        if target == "sm75" and precision == "fp32":
            raise InputError(
                "TensorRT-RTX has no FP32 matrix products for Turing (sm75); use --precision fp16 or leave out sm75."
            )
    return tuple(sorted(set(targets), key=known.index))


def known_targets(api: TensorRT) -> tuple[str, ...]:
    """Return the GPUs that the installed TensorRT-RTX supports, oldest first."""
    members = api.trt.ComputeCapability.__members__
    return tuple(f"sm{number}" for number in sorted(int(name[2:]) for name in members if name[2:].isdigit()))


def _refuse_options_without_effect(options: BuildOptions, backend: Backend, precision: str) -> None:
    name = backend.name
    reasons = {
        "--calib": options.calib is not None and precision != "int8" and "only --int8 uses a calibration",
        "--quantize": options.quantize and precision != "int8" and "only --int8 quantizes layers",
        "--keep-fp32": options.keep_fp32 and precision == "fp32" and "everything is FP32",
        "--target": options.targets and name != "tensorrt-rtx" and f"it is for tensorrt-rtx, not for {name}",
        "--timing-cache": options.timing_cache and name != "tensorrt" and f"it is for tensorrt, not for {name}",
        "--workspace": options.workspace_mib and name == "onnxruntime" and "it is for TensorRT",
        "--max-ways": options.max_ways and name == "onnxruntime" and "ONNX Runtime has no limit",
        "--max-shots": options.max_shots and name == "onnxruntime" and "ONNX Runtime has no limit",
    }
    for option, reason in reasons.items():
        if reason:
            raise InputError(
                f"{option} has no effect here: {reason} ({backend.title}, {backend.reason}); leave it out."
            )


# ------------------------------------------------------------------------------------------------------------- memory


def check_memory(name: str, graph: bytes, sizes: Mapping[str, int], gpu_bytes: int | None, say: Say) -> None:
    """Estimate the memory that a build and its engine need, say it in one line, and refuse what cannot fit.

    Args:
        name: encoder or head.
        graph: The ONNX file.
        sizes: Value of each dynamic size.
        gpu_bytes: The GPU's total memory; None without a GPU.
        say: Called with the line.

    Raises:
        FsvitEdgeError: The host or the GPU has too little memory.
    """
    model = onnx.load_from_string(graph)
    weights = sum(_size(tensor.data_type, tensor.dims) for tensor in model.graph.initializer)
    activations, build, free = peak_bytes(model, sizes), _BUILDER_BYTES + _COPIES_OF_WEIGHTS * weights, free_memory()
    condition = f" with {sizes['supports']} supports at once" if name == "head" else ""
    of_free = "" if free is None else f" of {_mb(free)} free"
    of_gpu = "" if gpu_bytes is None else f", GPU {_mb(gpu_bytes)}"
    say(
        f"Memory of the {name}{condition}: weights {_mb(weights)}, activations up to {_mb(activations)}, "
        f"{_mb(build)} to build{of_free}{of_gpu}."
    )
    if free is not None and build > free:
        raise FsvitEdgeError(
            f"Building the {name} needs about {_mb(build)} of memory, but only {_mb(free)} are free; "
            "close other programs or add swap, then build again."
        )
    if gpu_bytes is not None and weights + activations > gpu_bytes:
        raise FsvitEdgeError(
            f"The {name} needs about {_mb(weights + activations)} on the GPU, which has "
            f"{_mb(gpu_bytes)}; export the bundle with a smaller --image-size."
        )


def peak_bytes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> int:
    """Return the most bytes of tensors alive at once, if each lives from its node to its last use; 0 if unknown.

    An upper estimate, because fused layers need fewer.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    # Shapes that were inferred with names for sizes would prevent shapes with numbers.
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = sizes.get(axis.dim_param, 1)
    try:
        graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        return 0
    bytes_of = {
        value.name: _size(
            value.type.tensor_type.elem_type, [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    last_use = {name: index for index, node in enumerate(graph.node) for name in node.input}
    ends: dict[int, list[str]] = {}
    for name, index in last_use.items():
        ends.setdefault(index, []).append(name)
    alive = peak = sum(bytes_of[value.name] for value in graph.input)
    for index, node in enumerate(graph.node):
        alive += sum(bytes_of.get(name, 0) for name in node.output)
        peak = max(peak, alive)
        alive -= sum(bytes_of.get(name, 0) for name in ends.get(index, ()))
    return peak


def _size(kind: int, dims: Iterable[int]) -> int:
    return _BYTES.get(kind, 1) * math.prod(dims)


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
