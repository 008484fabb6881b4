import ctypes
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from fsvit_edge.runtime.gpu import Gpu, find_gpu, gpu_missing_reason


class FakeDriver:
    """libcuda with one GPU; `statuses` are answers other than 0, by function."""

    def __init__(self, count: int = 1, **statuses: int) -> None:
        self.statuses = statuses
        self.calls: list[str] = []
        # What each function writes to its first argument, and the others that it expects.
        self.answers: dict[str, tuple[Any, ...]] = {
            "cuDriverGetVersion": (12060,),
            "cuDeviceGetCount": (count,),
            "cuDeviceGet": (7, 0),
            "cuDeviceGetName": (b"Orin (nvgpu)", 256, 7),
            "cuDeviceTotalMem_v2": (30 * 2**30, 7),
            **{f"cuDeviceGetAttribute {number}": (value, number, 7) for number, value in ((16, 14), (75, 8), (76, 7))},
        }

    def __getattr__(self, function: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.calls.append(function)
            status = self.statuses.get(function, 0)
            if status == 0 and function == "cuInit":
                assert arguments == (0,)
            elif status == 0:
                key = f"{function} {arguments[1]}" if function == "cuDeviceGetAttribute" else function
                value, *others = self.answers[key]
                assert [getattr(one, "value", one) for one in arguments[1:]] == others
                getattr(arguments[0], "_obj", arguments[0]).value = value
            return status

        return call


def install(monkeypatch: pytest.MonkeyPatch, driver: object) -> None:
    """Put a driver, or the error of loading it, where ctypes loads libraries."""

    def load(name: str) -> object:
        assert name == "libcuda.so.1"
        if isinstance(driver, OSError):
            raise driver
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)


def test_a_gpu_is_described_as_the_driver_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeDriver())
    found = find_gpu()
    assert found == Gpu("Orin (nvgpu)", (8, 7), 14, 30 * 2**30, "12.6")
    assert found.architecture == "sm87"
    assert gpu_missing_reason() == ""


MISMATCH = "the NVIDIA driver's library and kernel module are of different versions; restart the machine"


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (FakeDriver(cuInit=100), "the NVIDIA driver finds no GPU"),
        (FakeDriver(count=0), "the NVIDIA driver finds no GPU"),
        (FakeDriver(cuInit=3), "the NVIDIA driver cannot be initialized; is its kernel module loaded?"),
        (FakeDriver(cuInit=34), "libcuda.so.1 is a stub for compiling, not a driver"),
        (FakeDriver(cuInit=803), MISMATCH),
        (FakeDriver(cuInit=999), "the NVIDIA driver returned error 999 from cuInit"),
        (FakeDriver(cuDeviceTotalMem_v2=201), "the NVIDIA driver returned error 201 from cuDeviceTotalMem_v2"),
        (object(), "libcuda.so.1 is not a usable CUDA driver: 'object' object has no attribute 'cuInit'"),
        (OSError("cannot open shared object file: No such file"), "no NVIDIA driver (libcuda.so.1) is installed"),
        (OSError("wrong ELF class"), "libcuda.so.1 cannot be loaded: wrong ELF class"),
    ],
)
def test_the_reason_for_no_gpu_is_one_clause(driver: object, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, driver)
    assert find_gpu() is None
    assert gpu_missing_reason() == reason


def test_a_driver_that_fails_to_initialize_gets_no_further_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(cuInit=100)
    install(monkeypatch, driver)
    find_gpu()
    assert driver.calls == ["cuInit"]


def test_finding_a_gpu_loads_only_the_driver() -> None:
    code = """
import sys
from fsvit_edge.runtime.gpu import find_gpu, gpu_missing_reason
assert (find_gpu() is None) == bool(gpu_missing_reason())
heavy = {"numpy", "torch", "tensorrt", "tensorrt_rtx", "cuda", "pycuda", "onnxruntime"}
print(sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
