"""A build, planned: options -> backend, precision, targets, sizes and folder, checked before any work begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fsvit_edge.export.tensorrt import Range
from fsvit_edge.runtime.bundle import Bundle, Manifest
from fsvit_edge.runtime.engines.base import BACKENDS, refuse_old_name
from fsvit_edge.runtime.engines.files import PRECISIONS, engine_folder, folder_problem
from fsvit_edge.runtime.engines.onnx_runtime import refuse_fp16_on_cpu
from fsvit_edge.runtime.engines.tensorrt_api import TensorRT, installed_backends, open_tensorrt
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.gpu import Gpu, gpu_missing_reason
from fsvit_edge.runtime.machine import Machine

DEFAULT_MAX_WAYS, DEFAULT_MAX_SHOTS = 10, 5
DEFAULT_TARGETS = ("sm86", "sm89", "sm120")
"""GPUs that TensorRT-RTX builds for on a machine without a GPU: the RTX 30, 40 and 50 series."""

_USUAL_SUPPORTS = 5
_USUAL_MASK_COVER = 0.3
"""Share of a picture that a mask usually covers; plans are tuned for it."""


@dataclass(frozen=True)
class BuildOptions:
    """What to build, and how.

    Attributes:
        engine: "auto" or one of `BACKENDS`.
        precision: One of `PRECISIONS`; None: FP16 with TensorRT, INT8 with ONNX Runtime.
        calib: A calibration file (.json), or a source of pictures to calibrate on; None: the bundle's own calibration.
        keep_fp32: Shell-style patterns of nodes that compute in FP32.
        quantize: Patterns of the linear layers to quantize; empty for all.
        workspace_mib: Most memory in MiB that a layer may use in addition to its tensors; None: TensorRT's default.
        timing_cache: File for TensorRT's kernel timings; None: one in the user's cache.
        targets: GPUs that TensorRT-RTX builds for ("sm86"); empty: this machine's GPU, or `DEFAULT_TARGETS`.
        max_ways: Most classes that the head's plan processes at once; None: 10.
        max_shots: Most supports per class; None: 5.
        verify: Compare with the FP32 graphs before anything is written.
        data: Folder of a data set to compare exact ratio and mIoU on.
        max_drop: Most percentage points that exact ratio or mIoU may lose on `data`; None: any.
        force: Build even if the engines are up to date.
    """

    engine: str = "auto"
    precision: str | None = None
    calib: str | None = None
    keep_fp32: tuple[str, ...] = ()
    quantize: tuple[str, ...] = ()
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    targets: tuple[str, ...] = ()
    max_ways: int | None = None
    max_shots: int | None = None
    verify: bool = True
    data: Path | None = None
    max_drop: float | None = None
    force: bool = False


@dataclass(frozen=True)
class Backend:
    """What builds the engines.

    Attributes:
        name: One of `BACKENDS`.
        version: The backend's own version.
        api: TensorRT; None for ONNX Runtime.
        reason: Why it was chosen, a clause.
    """

    name: str
    version: str
    api: TensorRT | None
    reason: str

    @property
    def title(self) -> str:
        """Name and version, for display."""
        return f"ONNX Runtime {self.version}" if self.api is None else self.api.title

    @property
    def default_precision(self) -> str:
        """The precision if none is given; a CPU emulates FP16 in FP32, which is slower, so it gets INT8."""
        return "int8" if self.api is None else "fp16"


@dataclass(frozen=True)
class BuildJob:
    """Everything that is known before the work begins.

    Attributes:
        bundle: The bundle.
        folder: Where the engines are written.
        options: The user's options.
        backend: What builds the engines.
        precision: One of `PRECISIONS`.
        targets: GPUs that TensorRT-RTX builds for; empty for other backends.
        machine: This machine.
        sizes: Name of each dynamic size -> its range in a plan.
    """

    bundle: Bundle
    folder: Path
    options: BuildOptions
    backend: Backend
    precision: str
    targets: tuple[str, ...]
    machine: Machine
    sizes: dict[str, Range]

    @property
    def runs_here(self) -> bool:
        """Whether the engines can run on this machine."""
        if self.backend.api is None:
            return True
        gpu = self.machine.gpu
        return gpu is not None and (not self.targets or gpu.architecture in self.targets)

    @property
    def limits(self) -> dict[str, int]:
        """The largest sizes that the head's plan accepts; empty for ONNX Runtime, which has no limits."""
        return {} if self.backend.api is None else {name: top for name, (_, _, top) in self.sizes.items() if top > 1}

    @property
    def usual_sizes(self) -> dict[str, int]:
        """The sizes that engines are timed with."""
        return {name: usual for name, (_, usual, _) in self.sizes.items()}


def plan_job(path: Path, options: BuildOptions) -> BuildJob:
    """Choose what the options leave open, and check everything that can be checked before the work begins.

    Args:
        path: The bundle's folder.
        options: The user's options.

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
    if backend.name == "onnxruntime":
        refuse_fp16_on_cpu(precision)
    targets = () if backend.api is None else choose_targets(backend.api, options.targets, precision, machine.gpu)
    bundle = Bundle.load(path)
    folder = engine_folder(path, bundle.manifest)
    _check_writable(folder)
    sizes = _size_ranges(bundle.manifest, options)
    return BuildJob(bundle, folder, options, backend, precision, targets, machine, sizes)


def choose_backend(wanted: str, gpu: Gpu | None, has_targets: bool) -> Backend:
    """Open the backend that is wanted, or the best one here.

    auto: TensorRT if it is installed and there is a GPU; else TensorRT-RTX if it is installed and can build for this
    GPU or, without a GPU, for others; else ONNX Runtime.

    Args:
        wanted: "auto" or one of `BACKENDS`.
        gpu: This machine's GPU.
        has_targets: Whether the user named GPUs to build for.

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
        return _onnxruntime("as requested")
    if wanted != "auto":
        return _tensorrt(open_tensorrt(wanted), "as requested")
    installed = installed_backends()
    if gpu is not None and "tensorrt" in installed and not has_targets:
        return _tensorrt(open_tensorrt("tensorrt"), f"it is installed and there is a GPU, {gpu.name}")
    if "tensorrt-rtx" in installed:
        api = open_tensorrt("tensorrt-rtx")
        if gpu is None:
            return _tensorrt(api, f"it is installed and builds for GPUs elsewhere; here {gpu_missing_reason()}")
        if has_targets or gpu.architecture in known_targets(api):
            return _tensorrt(api, f"it is installed and there is a GPU, {gpu.name}")
        return _onnxruntime(
            f"TensorRT-RTX does not support the {gpu.name} ({gpu.architecture}) and TensorRT is not installed"
        )
    if "tensorrt" in installed and gpu is None:
        return _onnxruntime(f"TensorRT is installed, but {gpu_missing_reason()}")
    return _onnxruntime("neither TensorRT nor TensorRT-RTX is installed")


def choose_targets(api: TensorRT, wanted: Sequence[str], precision: str, gpu: Gpu | None) -> tuple[str, ...]:
    """Return the GPUs that TensorRT-RTX builds for ("sm86"), oldest first; empty for TensorRT, which has no choice.

    Raises:
        InputError: A target is unknown, or does not support the precision.
        EnvironmentLacksError: No target is given and TensorRT-RTX does not support this machine's GPU.
    """
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


def _tensorrt(api: TensorRT, reason: str) -> Backend:
    return Backend(api.backend, api.version, api, reason)


def _onnxruntime(reason: str) -> Backend:
    import onnxruntime

    return Backend("onnxruntime", str(onnxruntime.__version__), None, reason)


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


def _check_writable(folder: Path) -> None:
    if problem := folder_problem(folder):
        raise FsvitEdgeError(
            f"Engines cannot be written to {folder}: {problem}; copy the bundle to a folder that "
            "you own, or for the bundled model use another cache with: export XDG_CACHE_HOME=/path."
        )


def _size_ranges(manifest: Manifest, options: BuildOptions) -> dict[str, Range]:
    """Name of each dynamic size -> smallest, usual and largest value."""
    ways = options.max_ways or DEFAULT_MAX_WAYS
    supports = ways * (options.max_shots or DEFAULT_MAX_SHOTS)
    grid = manifest.support_grid**2
    return {
        "batch": (1, 1, 1),
        "supports": (1, min(_USUAL_SUPPORTS, supports), supports),
        "ways": (1, min(_USUAL_SUPPORTS, ways), ways),
        "kept_tokens": (1, 1 + round(_USUAL_MASK_COVER * grid), 1 + grid),
    }
