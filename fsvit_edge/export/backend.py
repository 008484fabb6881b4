"""Which backend builds, and for what."""

from dataclasses import dataclass

from fsvit_edge.export.plan_builder import known_targets
from fsvit_edge.runtime.engines.store.files import BACKENDS
from fsvit_edge.runtime.engines.tensorrt_api import TensorRT, installed_backends, open_tensorrt
from fsvit_edge.runtime.errors import EnvironmentLacksError, InputError
from fsvit_edge.runtime.gpu import Gpu, gpu_missing_reason


@dataclass(frozen=True)
class Backend:
    """What builds.

    Attributes:
        name: One of `BACKENDS`.
        version: As it says itself.
        api: TensorRT; None for ONNX Runtime.
        reason: Why it was chosen, a clause.
    """

    name: str
    version: str
    api: TensorRT | None
    reason: str

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"ONNX Runtime {self.version}" if self.api is None else self.api.title

    @property
    def default_precision(self) -> str:
        """What is built where no precision is asked for: a CPU computes FP16 by way of FP32, only slower."""
        return "int8" if self.api is None else "fp16"


def choose_backend(wanted: str, gpu: Gpu | None, has_targets: bool) -> Backend:
    """Resolve "auto" and open what builds.

    auto: TensorRT where it is installed and there is a GPU, else TensorRT-RTX where that is installed and can build for
    the GPU here or for GPUs elsewhere, else ONNX Runtime.

    Args:
        wanted: "auto" or one of `BACKENDS`.
        gpu: The GPU here.
        has_targets: The user has named GPUs to build for.

    Raises:
        InputError: There is no such backend.
        EnvironmentLacksError: It is not installed, cannot be loaded, or lacks the GPU that it needs.
    """
    if wanted not in ("auto", *BACKENDS):
        raise InputError(f"--engine {wanted} is unknown; choose one of: auto, {', '.join(BACKENDS)}.")
    if wanted == "tensorrt" and gpu is None:
        open_tensorrt(wanted)
        raise EnvironmentLacksError(
            f"TensorRT builds on the GPU that shall run the engine, and {gpu_missing_reason()}; build there, or take "
            "--engine tensorrt-rtx (for other machines) or --engine onnxruntime."
        )
    if wanted == "onnxruntime":
        return _onnxruntime("asked for")
    if wanted != "auto":
        return _tensorrt(open_tensorrt(wanted), "asked for")
    installed = installed_backends()
    if gpu is not None and "tensorrt" in installed and not has_targets:
        return _tensorrt(open_tensorrt("tensorrt"), f"it is installed and there is a GPU, {gpu.name}")
    if "tensorrt-rtx" in installed:
        api = open_tensorrt("tensorrt-rtx")
        if gpu is None:
            return _tensorrt(api, f"it is installed and builds for GPUs elsewhere; here {gpu_missing_reason()}")
        target = gpu.architecture
        if has_targets or target in known_targets(api):
            return _tensorrt(api, f"it is installed and there is a GPU, {gpu.name}")
        return _onnxruntime(f"TensorRT-RTX does not support the {gpu.name} ({target}) and TensorRT is not installed")
    if "tensorrt" in installed and gpu is None:
        return _onnxruntime(f"TensorRT is installed, but {gpu_missing_reason()}")
    return _onnxruntime("neither TensorRT nor TensorRT-RTX is installed")


def _tensorrt(api: TensorRT, reason: str) -> Backend:
    return Backend(api.backend, api.version, api, reason)


def _onnxruntime(reason: str) -> Backend:
    import onnxruntime

    return Backend("onnxruntime", str(onnxruntime.__version__), None, reason)
