"""What TensorRT-RTX does beside TensorRT where a plan runs: it judges the plan, and compiles its kernels here.

The compiled kernels are kept in the user's cache, one file for each engine and GPU, so that only the first start takes
the seconds of a compiler.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsvit_edge.runtime.engines.store.files import EngineRecord
from fsvit_edge.runtime.engines.tensorrt_api import LogCollector, TensorRT
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError
from fsvit_edge.runtime.gpu import Gpu
from fsvit_edge.runtime.storage import atomic_write, locked, user_cache

_MACHINE_LACKS = ("OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "INSUFFICIENT_GPU_MEMORY", "CUDA_ERROR")
"""Diagnostics that building the engine again would not help against."""


def check_validity(plan: bytes, record: EngineRecord, api: TensorRT, log: LogCollector, gpu: Gpu) -> None:
    """Ask TensorRT-RTX whether a plan can run here, by its header alone, before it is deserialized.

    Raises:
        ArtifactError: It is damaged, or made for another version or GPU.
        EnvironmentLacksError: The driver, the CUDA runtime or the GPU's memory do not suffice.
    """
    runtime = api.trt.Runtime(log.logger)
    validity, bits = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    if validity != api.trt.EngineValidity.INVALID:
        return
    names = api.trt.EngineInvalidityDiagnostics.__members__
    found = [name for name, bit in names.items() if bits & int(bit)]
    reasons = [diagnosis(name, api, gpu) for name in found] or [f"{api.title} does not say why: {log.last_error()}"]
    sentence = f"{record.file} cannot run on this machine: {'; '.join(reasons)}"
    if found and all(name in _MACHINE_LACKS for name in found):
        raise EnvironmentLacksError(f"{sentence}; or use --engine onnxruntime.")
    raise ArtifactError(f"{sentence}; build it here with: fsvit-edge build-engine --engine {api.backend} --force")


def diagnosis(name: str, api: TensorRT, gpu: Gpu) -> str:
    """Return what one of TensorRT-RTX's `EngineInvalidityDiagnostics` means here, as a clause."""
    major, minor = gpu.compute_capability
    clauses = {
        "VERSION_MISMATCH": f"it was built by another version than the {api.title} that is installed",
        "UNSUPPORTED_CC": f"it was not built for, or {api.title} does not support, the {gpu.name} "
        f"of compute capability {major}.{minor}",
        "OLD_CUDA_DRIVER": f"the NVIDIA driver, for CUDA {gpu.driver}, is too old; update it",
        "OLD_CUDA_RUNTIME": "the CUDA runtime is too old; update it with: pip install --upgrade tensorrt-rtx-cu13",
        "INSUFFICIENT_GPU_MEMORY": f"the GPU has too little memory, {gpu.memory_bytes // 2**20} MiB in all",
        "MALFORMED_ENGINE": f"it is damaged or no plan of {api.title}",
        "CUDA_ERROR": "the NVIDIA driver or the CUDA runtime is not installed correctly",
    }
    return clauses.get(name, f"{api.title} answers {name}")


class KernelCache:
    """The kernels that TensorRT-RTX compiled for one engine on this GPU, in memory and on disk.

    What is on disk is a help and no more: where it cannot be read or written, kernels are compiled at every start.

    Args:
        cache: TensorRT-RTX's `IRuntimeCache`.
        path: The file; None where there is no home folder.
    """

    def __init__(self, cache: Any, path: Path | None) -> None:
        self.cache = cache
        self.path = path
        self._stored = b""

    @contextmanager
    def filled(self) -> Iterator[None]:
        """Load what is stored, let the caller compile the rest, and store it; another process waits meanwhile."""
        with self._locked():
            with suppress(OSError):
                if self.path is not None:
                    self._stored = self.path.read_bytes()
            if self._stored and not self.cache.deserialize(self._stored):
                self._stored = b""  # of another driver, GPU or version: compiled anew
            yield
            self._store()

    def store(self) -> None:
        """Store what has been compiled since: kernels for a new number of supports, say."""
        with self._locked():
            self._store()

    def _store(self) -> None:
        data = bytes(self.cache.serialize() or b"")
        if self.path is None or not data or data == self._stored:
            return
        with suppress(FsvitEdgeError):
            atomic_write(self.path, data)
            self._stored = data

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self.path is None:
            yield
            return
        with suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self.path.with_suffix(".lock"), required=False):
            yield


def open_context(engine: Any, record: EngineRecord, api: TensorRT, gpu: Gpu) -> tuple[Any, KernelCache]:
    """Make an execution context that captures its own CUDA graphs, and compile its kernels.

    Its memory is the caller's to provide, as for TensorRT. Where a context with graphs cannot be had it is one without.

    Returns:
        The context, None where TensorRT-RTX made none; the cache, to `store` again when the engine is closed.
    """
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(api.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    cache = KernelCache(config.create_runtime_cache(), _cache_file(record, api, gpu))
    with cache.filled():
        config.set_runtime_cache(cache.cache)
        config.cuda_graph_strategy = api.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(config)
        if context is None:
            config.cuda_graph_strategy = api.trt.CudaGraphStrategy.DISABLED
            context = engine.create_execution_context(config)
    return context, cache


def _cache_file(record: EngineRecord, api: TensorRT, gpu: Gpu) -> Path | None:
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu.name).strip("-")
    try:
        return user_cache("kernels") / f"{record.graph}.{record.sha256[:16]}.{name}.rtx{api.version}.cache"
    except EnvironmentLacksError:
        return None
