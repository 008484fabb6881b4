"""Open the GPU's memory with the package that is installed: pycuda or cuda-bindings."""

from typing import Any

from fsvit_edge.runtime.engines.memory.base import DeviceMemory
from fsvit_edge.runtime.errors import EnvironmentLacksError, InputError
from fsvit_edge.runtime.gpu import find_gpu, gpu_missing_reason

BACKENDS = ("pycuda", "cuda-bindings")
"""In the order in which they are tried."""


def open_device_memory(prefer: str | None = None) -> DeviceMemory:
    """Open the first GPU by pycuda where it can be imported, else by cuda.bindings.

    Args:
        prefer: One of `BACKENDS`, and no other; None for the first that is installed.

    Raises:
        InputError: There is no such backend.
        EnvironmentLacksError: There is no GPU, no backend, or the driver is too old.
        FsvitEdgeError: The GPU fails.
    """
    if prefer is not None and prefer not in BACKENDS:
        raise InputError(f"Device memory {prefer!r} is unknown; choose one of: {', '.join(BACKENDS)}.")
    if find_gpu() is None:
        raise EnvironmentLacksError(f"The GPU cannot be used: {gpu_missing_reason()}; use --engine onnxruntime.")
    for backend in BACKENDS if prefer is None else (prefer,):
        opened = _open(backend)
        if opened is not None:
            return opened
    wanted = " or ".join(BACKENDS if prefer is None else (prefer,))
    raise EnvironmentLacksError(
        f"TensorRT needs {wanted} to manage the GPU's memory, which is not installed here; "
        f"try: {_install_command()}, or: pip install pycuda, or use --engine onnxruntime."
    )


def _open(backend: str) -> DeviceMemory | None:
    try:
        if backend == "pycuda":
            from fsvit_edge.runtime.engines.memory.pycuda import PycudaMemory

            return PycudaMemory()
        from fsvit_edge.runtime.engines.memory.cuda import CudaMemory

        return CudaMemory()
    except ImportError:
        return None


def _install_command() -> str:
    """cuda-bindings of the driver's own major version: an older driver refuses a newer one."""
    gpu: Any = find_gpu()
    major = int(gpu.driver.partition(".")[0])
    return f'pip install "cuda-bindings<{major + 1}"'
