"""Which NVIDIA GPU is here, asked of the driver alone.

TensorRT's runtime can crash the process where there is no driver, so everything that would load it asks here first.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

_LIBRARY = "libcuda.so.1"
_ATTRIBUTES = {"multiprocessors": 16, "major": 75, "minor": 76}
_REASONS = {
    3: "the NVIDIA driver cannot be initialized; is its kernel module loaded?",
    34: f"{_LIBRARY} is a stub for compiling, not a driver",
    46: "every GPU is in use by another program that asked for it alone",
    100: "the NVIDIA driver finds no GPU",
    802: "the GPU is not ready yet; its fabric is still starting",
    803: "the NVIDIA driver's library and kernel module are of different versions; restart the machine",
    804: "the CUDA compatibility package does not support this GPU",
}
"""What cuInit's commonest answers mean."""


@dataclass(frozen=True)
class Gpu:
    """The first GPU that the driver shows, on which everything here computes.

    Attributes:
        name: As the driver says it.
        compute_capability: Major and minor.
        sm_count: Streaming multiprocessors.
        memory_bytes: Of the whole GPU; on a Jetson it is shared with the CPU.
        driver: The highest CUDA that the driver supports, "13.0".
    """

    name: str
    compute_capability: tuple[int, int]
    sm_count: int
    memory_bytes: int
    driver: str

    @property
    def architecture(self) -> str:
        """NVIDIA's name of the kind of GPU: "sm89" for compute capability 8.9."""
        return "sm{}{}".format(*self.compute_capability)


def find_gpu() -> Gpu | None:
    """Return the first GPU, or None where there is no driver or no GPU; then `gpu_missing_reason` says why."""
    found = _probe(_load_driver())
    return found if isinstance(found, Gpu) else None


def gpu_missing_reason() -> str:
    """Return in a clause why there is no GPU; empty where there is one."""
    found = _probe(_load_driver())
    return "" if isinstance(found, Gpu) else found


def _load_driver() -> Any:
    """The driver's library, or why it cannot be loaded."""
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        if "No such file" in str(error) or "cannot open shared object" in str(error):
            return f"no NVIDIA driver ({_LIBRARY}) is installed"
        return f"{_LIBRARY} cannot be loaded: {error}"


def _probe(driver: Any) -> Gpu | str:
    if isinstance(driver, str):
        return driver
    try:
        return _describe(driver)
    except AttributeError as error:
        return f"{_LIBRARY} is not a driver that this program knows: {error}"
    except _DriverError as error:
        return str(error)


class _DriverError(Exception):
    """The driver refused a call."""


def _describe(driver: Any) -> Gpu:
    def ask(function: str, *arguments: Any) -> None:
        status = getattr(driver, function)(*arguments)
        if status != 0:
            raise _DriverError(_REASONS.get(status, f"the NVIDIA driver answers {function} with error {status}"))

    ask("cuInit", 0)
    version, count, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    ask("cuDriverGetVersion", ctypes.byref(version))
    ask("cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise _DriverError(_REASONS[100])
    ask("cuDeviceGet", ctypes.byref(device), 0)
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    ask("cuDeviceGetName", name, len(name), device)
    ask("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    values = {}
    for attribute, number in _ATTRIBUTES.items():
        value = ctypes.c_int()
        ask("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        values[attribute] = value.value
    return Gpu(
        name.value.decode(errors="replace"),
        (values["major"], values["minor"]),
        values["multiprocessors"],
        memory.value,
        f"{version.value // 1000}.{version.value % 1000 // 10}",
    )
