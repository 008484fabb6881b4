"""What TensorRT-RTX does in addition to TensorRT when a plan is opened: it checks the plan and compiles its kernels.

The compiled kernels are kept in the user's cache, one file per engine and GPU, so only the first start compiles.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsvit_edge.runtime.engines.files import EngineRecord
from fsvit_edge.runtime.engines.tensorrt_api import LogCollector, TensorRT
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError
from fsvit_edge.runtime.gpu import Gpu
from fsvit_edge.runtime.storage import atomic_write, locked, user_cache

_MACHINE_LACKS = ("OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "INSUFFICIENT_GPU_MEMORY", "CUDA_ERROR")
"""Diagnostics that another build of the engine would not change."""


def check_validity(plan: bytes, record: EngineRecord, api: TensorRT, log: LogCollector, gpu: Gpu) -> None:
    """Raise why a plan cannot run here, found from its header alone before it is deserialized.

    An ArtifactError if another build of the engine would run, else an EnvironmentLacksError.
    """
    runtime = api.trt.Runtime(log.logger)
    validity, bits = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    if validity != api.trt.EngineValidity.INVALID:
        return
    names = api.trt.EngineInvalidityDiagnostics.__members__
    found = [name for name, bit in names.items() if bits & int(bit)]
    reasons = [explain_diagnostic(name, api, gpu) for name in found] or [
        f"{api.title} gives no diagnostic: {log.last_error()}"
    ]
    sentence = f"{record.file} cannot run on this machine: {'; '.join(reasons)}"
    if found and all(name in _MACHINE_LACKS for name in found):
        raise EnvironmentLacksError(f"{sentence}; or use --engine onnxruntime.")
    raise ArtifactError(f"{sentence}; build it here with: fsvit-edge build-engine --engine {api.backend} --force")


def explain_diagnostic(name: str, api: TensorRT, gpu: Gpu) -> str:
    """Return what one of TensorRT-RTX's `EngineInvalidityDiagnostics` means, as a clause."""
    major, minor = gpu.compute_capability
    clauses = {
        "VERSION_MISMATCH": f"it was built by a different version than the installed {api.title}",
        "UNSUPPORTED_CC": f"it was not built for the {gpu.name} (compute capability "
        f"{major}.{minor}), or {api.title} does not support that GPU",
        "OLD_CUDA_DRIVER": f"the NVIDIA driver (CUDA {gpu.driver}) is too old; update it",
        "OLD_CUDA_RUNTIME": "the CUDA runtime is too old; update it with: pip install --upgrade tensorrt-rtx-cu13",
        "INSUFFICIENT_GPU_MEMORY": f"the GPU has too little memory ({gpu.memory_bytes // 2**20} MiB)",
        "MALFORMED_ENGINE": f"it is damaged or not a plan of {api.title}",
        "CUDA_ERROR": "the NVIDIA driver or the CUDA runtime is not installed correctly",
    }
    return clauses.get(name, f"{api.title} reports {name}")


class KernelCache:
    """The kernels that TensorRT-RTX compiled for one engine on this GPU: its `IRuntimeCache`, and a file.

    Without a path, or if the file cannot be read or written, kernels are compiled at every start; nothing else changes.
    """

    def __init__(self, cache: Any, path: Path | None) -> None:
        self.cache = cache
        self._path = path
        self._stored = b""

    @contextmanager
    def filled(self) -> Iterator[None]:
        """Load the stored kernels, let the caller compile the rest, and store all; other processes wait meanwhile."""
        with self._locked():
            with suppress(OSError):
                if self._path is not None:
                    self._stored = self._path.read_bytes()
            if self._stored and not self.cache.deserialize(self._stored):
                self._stored = b""  # made by another driver, GPU or version
            yield
            self._store()

    def store(self) -> None:
        """Store kernels that were compiled since, for example for a new number of supports."""
        with self._locked():
            self._store()

    def _store(self) -> None:
        data = bytes(self.cache.serialize() or b"")
        if self._path is None or not data or data == self._stored:
            return
        with suppress(FsvitEdgeError):
            atomic_write(self._path, data)
            self._stored = data

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._path is None:
            yield
            return
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._path.with_suffix(".lock"), required=False):
            yield


def open_context(engine: Any, record: EngineRecord, api: TensorRT, gpu: Gpu) -> tuple[Any, KernelCache]:
    """Create an execution context, or None if TensorRT-RTX failed, and compile its kernels.

    The context records its own CUDA graphs if it can, else it runs without. The caller provides its memory, as for
    TensorRT, and stores the cache again when the engine is closed.
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
