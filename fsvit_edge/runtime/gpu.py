"""Find the NVIDIA GPU by asking the driver alone.

TensorRT's runtime can crash the process if there is no driver, so everything that would load it asks here first.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

_LIBRARY = "libcuda.so.1"
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # attributes of a device
_REASONS = {
    3: "the NVIDIA driver cannot be initialized; is its kernel module loaded?",
    34: f"{_LIBRARY} is a stub for compiling, not a driver",
    46: "every GPU is in exclusive use by another program",
    100: "the NVIDIA driver finds no GPU",
    802: "the GPU is not ready yet; its fabric is still starting",
    803: "the NVIDIA driver's library and kernel module are of different versions; restart the machine",
    804: "the CUDA compatibility package does not support this GPU",
}
"""What cuInit's most common error codes mean."""


@dataclass(frozen=True)
class Gpu:
    """The first GPU that the driver lists, which is the one used."""

    name: str
    compute_capability: tuple[int, int]  # major, minor
    sm_count: int  # streaming multiprocessors
    memory_bytes: int  # on a Jetson shared with the CPU
    driver: str  # the highest CUDA version that the driver supports, "13.0"

    @property
    def architecture(self) -> str:
        """NVIDIA's name of the kind of GPU: "sm89" for compute capability 8.9."""
        return "sm{}{}".format(*self.compute_capability)


def find_gpu() -> Gpu | None:
    """Return the first GPU, or None if there is no driver or no GPU; `gpu_missing_reason` says which."""
    found = _probe()
    return found if isinstance(found, Gpu) else None


def gpu_missing_reason() -> str:
    """Return why there is no GPU, as a clause; empty if there is one."""
    found = _probe()
    return "" if isinstance(found, Gpu) else found


class _DriverError(Exception):
    """A call to the driver failed."""


def _probe() -> Gpu | str:
    """Return the GPU, or a clause why there is none."""
    try:
        return _describe(ctypes.CDLL(_LIBRARY))
    except OSError as error:
        if "No such file" in str(error) or "cannot open shared object" in str(error):
            return f"no NVIDIA driver ({_LIBRARY}) is installed"
        return f"{_LIBRARY} cannot be loaded: {error}"
    except AttributeError as error:
        return f"{_LIBRARY} is not a usable CUDA driver: {error}"
    except _DriverError as error:
        return str(error)


def _describe(driver: Any) -> Gpu:
    def ask(function: str, *arguments: Any) -> None:
        status = getattr(driver, function)(*arguments)
        if status != 0:
            raise _DriverError(_REASONS.get(status, f"the NVIDIA driver returned error {status} from {function}"))

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

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        ask("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    return Gpu(
        name.value.decode(errors="replace"),
        (attribute(_MAJOR), attribute(_MINOR)),
        attribute(_MULTIPROCESSORS),
        memory.value,
        f"{version.value // 1000}.{version.value % 1000 // 10}",
    )
