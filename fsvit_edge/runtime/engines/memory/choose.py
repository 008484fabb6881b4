"""Open the GPU's memory with the package that is installed: pycuda or cuda-bindings."""

from typing import Any

from fsvit_edge.runtime.engines.memory.base import DeviceMemory
from fsvit_edge.runtime.errors import EnvironmentLacksError, InputError
from fsvit_edge.runtime.gpu import find_gpu, gpu_missing_reason

MEMORY_PACKAGES = ("pycuda", "cuda-bindings")
"""In the order they are tried."""


def open_device_memory(package: str | None = None) -> DeviceMemory:
    """Open the memory of the first GPU with pycuda if it can be imported, else with cuda-bindings.

    Args:
        package: One of `MEMORY_PACKAGES`; None for the first that is installed.

    Raises:
        InputError: The package is unknown.
        EnvironmentLacksError: There is no GPU, no package is installed, or the driver is too old.
        FsvitEdgeError: The GPU fails.
    """
    if package is not None and package not in MEMORY_PACKAGES:
        raise InputError(f"GPU memory package {package!r} is unknown; choose one of: {', '.join(MEMORY_PACKAGES)}.")
    if find_gpu() is None:
        raise EnvironmentLacksError(f"The GPU cannot be used: {gpu_missing_reason()}; use --engine onnxruntime.")
    candidates = MEMORY_PACKAGES if package is None else (package,)
    for candidate in candidates:
        opened = _open(candidate)
        if opened is not None:
            return opened
    raise EnvironmentLacksError(
        f"TensorRT needs {' or '.join(candidates)} to manage the GPU's memory, which is not installed; "
        f"try: {_install_command()}, or: pip install pycuda, or use --engine onnxruntime."
    )


def _open(package: str) -> DeviceMemory | None:
    """The memory; None if the package is not installed."""
    try:
        if package == "pycuda":
            from fsvit_edge.runtime.engines.memory.pycuda import PycudaMemory

            return PycudaMemory()
        from fsvit_edge.runtime.engines.memory.cuda import CudaMemory

        return CudaMemory()
    except ImportError:
        return None


def _install_command() -> str:
    """The command for cuda-bindings of the driver's CUDA version; newer ones do not run on it."""
    gpu: Any = find_gpu()
    major = int(gpu.driver.partition(".")[0])
    return f'pip install "cuda-bindings<{major + 1}"'
