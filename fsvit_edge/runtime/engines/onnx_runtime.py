"""ONNX Runtime: the engine that is always there."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fsvit_edge.runtime.engines.base import Array, ResidentTensor, TensorSpec, check_feed
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Our short names of ONNX Runtime's execution providers; TensorRT is used directly, with engines that were built."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
    "tensor(int64)": "int64",
}


class OrtTensor:
    """A tensor in ONNX Runtime's own memory."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""
        return tuple(self.value.shape())

    def numpy(self) -> Array:
        """Return the values on the host; on the CPU provider this is a view."""
        return np.asarray(self.value.numpy())


class OnnxRuntimeEngine:
    """One ONNX graph in one ONNX Runtime session.

    Args:
        graph: The ONNX file, or its bytes where they have already been read and checked.
        provider: A name of `PROVIDERS` or "auto": CUDA where it is installed, else the CPU.
        threads: Threads within an operator; None lets ONNX Runtime use every core.

    Raises:
        EnvironmentLacksError: The provider is not installed or finds no device.
        ArtifactError: The file is not a graph that ONNX Runtime can run.
    """

    def __init__(self, graph: Path | bytes, provider: str = "auto", threads: int | None = None) -> None:
        import onnxruntime as ort

        self._ort = ort
        self.provider = choose_provider(provider)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        # Encoder and head each have a pool of threads; idle ones that spin took 2/3 of the frame rate on two cores.
        # Spinning within a run stays: it saves a wake-up at each of some 200 operators.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # A plan of the memory for each combination of shapes, beside the arena, takes 100 MB (372 MB for 267 MB with
        # four classes) and saves no time (ratio 1.00 of 60 interleaved frames, three times).
        options.enable_mem_pattern = False
        options.intra_op_num_threads = threads or usable_cores()
        wanted = PROVIDERS[self.provider]
        try:
            self._session = ort.InferenceSession(
                graph if isinstance(graph, bytes) else str(graph),
                options,
                providers=[wanted] if self.provider == "cpu" else [wanted, PROVIDERS["cpu"]],
            )
        except Exception as error:  # ONNX Runtime raises a dozen classes that share no base but Exception
            name = "The graph" if isinstance(graph, bytes) else str(graph)
            raise ArtifactError(f"{name} cannot be loaded by ONNX Runtime: {_first_line(error)}.") from error
        if wanted not in self._session.get_providers():
            raise EnvironmentLacksError(
                f"ONNX Runtime has the {self.provider} provider but it found no device to run on; use --engine cpu."
            )
        self._device = "cpu" if self.provider == "cpu" else "cuda"
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
        self.limits: Mapping[str, int] = {}

    def upload(self, array: Array) -> OrtTensor:
        """Put an array where the provider computes; on the CPU the array itself is used and must not be changed."""
        return OrtTensor(self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, 0))

    def run(self, feed: Mapping[str, Array | ResidentTensor]) -> dict[str, ResidentTensor]:
        """Compute all outputs, fresh tensors each time; tensors of this engine's kind are bound without a copy."""
        if self._session is None:
            raise FsvitEdgeError("The engine is closed.")
        check_feed(feed, self.inputs)
        binding = self._session.io_binding()
        # Held until the run is over: a binding does not promise to keep the host's copies alive.
        bound = {
            name: value if isinstance(value, OrtTensor) else self.upload(_host(value)) for name, value in feed.items()
        }
        for name, tensor in bound.items():
            binding.bind_ortvalue_input(name, tensor.value)
        for spec in self.outputs:
            binding.bind_output(spec.name, self._device, 0)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # see above
            raise FsvitEdgeError(f"ONNX Runtime failed to run the graph: {_first_line(error)}.") from error
        return {spec.name: OrtTensor(value) for spec, value in zip(self.outputs, binding.get_outputs(), strict=True)}

    def wait(self) -> None:
        """Do nothing: a run is over when it returns."""

    def close(self) -> None:
        """Free the session; a second call does nothing."""
        self._session = None

    def __enter__(self) -> "OnnxRuntimeEngine":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def usable_cores() -> int:
    """Return how many cores this process may run on, which in a container is fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def installed_providers() -> tuple[str, ...]:
    """Return our names of the providers that the installed ONNX Runtime has, fastest to start first."""
    import onnxruntime as ort

    return tuple(name for name, theirs in PROVIDERS.items() if theirs in ort.get_available_providers())


def choose_provider(name: str) -> str:
    """Resolve "auto" and check that the provider is installed.

    Raises:
        InputError: There is no provider of that name.
        EnvironmentLacksError: The installed ONNX Runtime lacks it.
    """
    if name != "auto" and name not in PROVIDERS:
        raise InputError(f"Engine {name!r} is unknown; choose one of: auto, {', '.join(PROVIDERS)}.")
    installed = installed_providers()
    if name == "auto":
        return "cuda" if "cuda" in installed else "cpu"
    if name not in installed:
        raise EnvironmentLacksError(
            f"Engine {name!r} needs ONNX Runtime's {PROVIDERS[name]}, which is not installed here (installed: "
            f"{', '.join(installed)}); try: pip install onnxruntime-gpu (on a Jetson: NVIDIA's own wheel)."
        )
    return name


def _host(value: Array | ResidentTensor) -> Array:
    return value if isinstance(value, np.ndarray) else value.numpy()


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size) for size in node.shape)
    return TensorSpec(node.name, shape, _DTYPES.get(node.type, node.type))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
