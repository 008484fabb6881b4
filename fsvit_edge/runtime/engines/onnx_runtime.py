"""ONNX Runtime: the engine that is always installed."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fsvit_edge.runtime.engines.base import Array, Engine, ResidentTensor, TensorSpec, check_feed, on_host
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError, first_line
from fsvit_edge.runtime.limits import usable_threads

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Short names of ONNX Runtime's execution providers. Its TensorRT providers are not used: TensorRT runs without it."""
ENGINE_PROVIDERS = {"onnxruntime": "cpu", "onnxruntime-cuda": "cuda"}
"""The provider of each engine name that stands for ONNX Runtime."""

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
        self.shape: tuple[int, ...] = tuple(value.shape())

    def numpy(self) -> Array:
        """Return the values on the host; with the CPU provider, a view."""
        return np.asarray(self.value.numpy())


class OnnxRuntimeEngine(Engine):
    """One ONNX graph in one ONNX Runtime session; a run is done when it returns.

    The graph is a file, or its bytes if they were read and checked before. `provider` is a name of `PROVIDERS`;
    `threads` work within an operator, None for one per core.
    """

    def __init__(self, graph: Path | bytes, provider: str = "cpu", threads: int | None = None) -> None:
        self._ort = ort = import_onnxruntime()
        if provider not in installed_providers():
            raise EnvironmentLacksError(
                f"--engine onnxruntime-{provider} needs ONNX Runtime's {PROVIDERS[provider]}, which is not installed; "
                "try: pip install onnxruntime-gpu (on a Jetson: NVIDIA's own wheel)."
            )
        self._device = provider
        options = ort.SessionOptions()
        options.log_severity_level = 4
        # Encoder and head each have a thread pool; spinning idle threads cost 2/3 of the frame rate on two cores.
        # Spinning within a run stays: it saves a wake-up at each of some 200 operators.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # A memory plan for each combination of shapes costs 100 MB (372 MB instead of 267 MB with four classes) and
        # saves no time (ratio 1.00 over 60 interleaved frames, three times).
        options.enable_mem_pattern = False
        self.threads = usable_threads(threads)
        options.intra_op_num_threads = self.threads
        expected = PROVIDERS[provider]
        try:
            self._session = ort.InferenceSession(
                graph if isinstance(graph, bytes) else _named_or_read(graph),
                options,
                providers=list(dict.fromkeys((expected, PROVIDERS["cpu"]))),
            )
        except Exception as error:  # ONNX Runtime raises a dozen classes whose only common base is Exception
            name = "The graph" if isinstance(graph, bytes) else str(graph)
            raise ArtifactError(f"{name} cannot be loaded by ONNX Runtime: {first_line(error)}.") from error
        # It keeps the bytes for a change of providers, which never comes: 25 MB for the bundled model. No public way.
        self._session._model_bytes = None
        if expected not in self._session.get_providers():
            raise EnvironmentLacksError(
                f"ONNX Runtime has {expected}, but it found no device to run on; use --engine onnxruntime."
            )
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
        self.limits = {}

    def upload(self, array: Array) -> OrtTensor:
        """Copy an array to the provider's memory; on the CPU the array itself is used, so it must not be changed."""
        return OrtTensor(self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, 0))

    def run(self, feed: Mapping[str, Array | ResidentTensor]) -> dict[str, ResidentTensor]:
        """Compute all outputs as new tensors; inputs of ONNX Runtime's own kind are used without a copy."""
        if self._session is None:
            raise FsvitEdgeError("The engine is closed.")
        check_feed(feed, self.inputs)
        binding = self._session.io_binding()
        # Kept until the run is over: a binding does not promise to keep the host's copies alive.
        bound = {
            name: value if isinstance(value, OrtTensor) else self.upload(on_host(value)) for name, value in feed.items()
        }
        for name, tensor in bound.items():
            binding.bind_ortvalue_input(name, tensor.value)
        for spec in self.outputs:
            binding.bind_output(spec.name, self._device, 0)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # the common base of its errors, as in __init__
            raise FsvitEdgeError(f"ONNX Runtime failed to run the graph: {first_line(error)}.") from error
        return {spec.name: OrtTensor(value) for spec, value in zip(self.outputs, binding.get_outputs(), strict=True)}

    def close(self) -> None:
        """Free the session; a second call does nothing."""
        self._session = None


def import_onnxruntime() -> Any:
    """Import ONNX Runtime without what it sends to its maker; who sets the variable to 0 gets it.

    From 1.29 on it looks up a server, from any session, and writes a number of the device below the user's cache; its
    own `disable_telemetry_events` comes too late for that number.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def refuse_fp16_on_cpu(precision: str) -> None:
    """Raise InputError for FP16 on a CPU."""
    if precision == "fp16":
        raise InputError("On a CPU, ONNX Runtime emulates FP16 in FP32, which is slower; use --precision fp32 or int8.")


def installed_providers() -> tuple[str, ...]:
    """Return the names in `PROVIDERS` that the installed ONNX Runtime has."""
    ort = import_onnxruntime()
    return tuple(name for name, theirs in PROVIDERS.items() if theirs in ort.get_available_providers())


def _named_or_read(path: Path) -> str | bytes:
    """What ONNX Runtime opens a file by: its name, or its bytes if the name is not UTF-8."""
    try:
        return str(path).encode().decode()
    except UnicodeEncodeError:
        return path.read_bytes()


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size) for size in node.shape)
    return TensorSpec(node.name, shape, _DTYPES.get(node.type, node.type))
