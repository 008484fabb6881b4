"""OpenVINO on the CPU: an ONNX graph in FP32, or in BF16 on a processor that multiplies BF16 itself."""

import ctypes
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from fsvit_edge.runtime.bundle import GraphInfo
from fsvit_edge.runtime.engines.base import (
    Array,
    Engine,
    ResidentTensor,
    TensorSpec,
    check_feed,
    on_host,
    variable_sizes,
)
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.limits import usable_threads

OPENVINO = "openvino"
"""The engine's name and that of its package and our extra."""
OPENVINO_PRECISIONS = ("fp32", "bf16")

_HINTS = {"fp32": "f32", "bf16": "bf16"}
_TELEMETRY = "openvino_telemetry"
_REFUSED = {
    # cst-nano's encoder, interleaved on an EPYC with VNNI: Q/DQ INT8 31.5 ms, ONNX Runtime's INT8 32.2, BF16 21.6.
    "int8": (
        "--engine openvino has no INT8: it cannot read the INT8 graphs for ONNX Runtime, and in its own form INT8 "
        "measured no faster than theirs; use --precision bf16, or --engine onnxruntime --precision int8."
    ),
    "fp16": "--engine openvino computes in FP32 or BF16 on a CPU, not in FP16; use --precision fp32 or bf16.",
}


class OpenVinoTensor:
    """A tensor that OpenVINO reads or has written."""

    def __init__(self, value: Any, is_output: bool) -> None:
        self.value = value
        self.is_output = is_output
        self.is_stale = False  # an output whose memory a later run uses
        self.shape: tuple[int, ...] = tuple(value.shape)

    def numpy(self) -> Array:
        """Return the values on the host: the uploaded ones themselves, but of an output a copy."""
        assert not self.is_stale, "an output was read after a later run of its engine"
        values: Array = self.value.data
        return values.copy() if self.is_output else values


class OpenVinoEngine(Engine):
    """One ONNX graph in OpenVINO; a run is done when it returns.

    The bytes are those of a file whose sum was checked; `stated` names their variable sizes, which OpenVINO forgets.
    Sizes stay variable: the first run with new ones takes about twice as long as the next. `threads` work within an
    operator, None for one per core; OpenVINO starts no more than the machine has cores.

    Raises:
        InputError: OpenVINO does not compute in this precision.
        EnvironmentLacksError: OpenVINO is not installed, or this processor lacks the precision.
        ArtifactError: OpenVINO cannot read the graph, or its inputs or outputs are not the stated ones.
    """

    def __init__(self, graph: bytes, stated: GraphInfo, precision: str = "fp32", threads: int | None = None) -> None:
        check_precision(precision)
        self._openvino = import_openvino()
        core = _open_core()
        if precision == "bf16":
            _refuse_without_bf16(core)
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],  # the default is BF16 where the processor has it
            "EXECUTION_MODE_HINT": "ACCURACY",  # no other shortcut than the one that is named
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": usable_threads(threads),
            "ENABLE_HYPER_THREADING": True,  # or the number above is halved without a word
            "ENABLE_CPU_PINNING": False,  # two programs would be pinned to the same cores
        }
        try:
            with _own_signal_stack():
                compiled = core.compile_model(core.read_model(graph), "CPU", settings)
                self._request = compiled.create_infer_request()
        except RuntimeError as error:
            raise ArtifactError(f"The graph cannot be loaded by OpenVINO: {_reason(error)}.") from error
        _check_tensors(compiled, stated)
        self._latest: list[OpenVinoTensor] = []
        self.inputs, self.outputs, self.limits = stated.inputs, stated.outputs, {}

    def upload(self, array: Array) -> OpenVinoTensor:
        """Give OpenVINO an array to read; it is used itself, so it must not be changed, unless it is read-only."""
        # OpenVINO shares no memory that it could not write to.
        shared = np.require(array, requirements=("C_CONTIGUOUS", "WRITEABLE"))
        return OpenVinoTensor(self._openvino.Tensor(shared, shared_memory=True), is_output=False)

    def run(self, feed: Mapping[str, Array | ResidentTensor]) -> dict[str, ResidentTensor]:
        """Compute all outputs; the next run reuses their memory. Tensors of OpenVINO's are used without a copy."""
        if self._request is None:
            raise FsvitEdgeError("The engine is closed.")
        check_feed(feed, self.inputs)
        variable_sizes(feed, self.inputs)  # where they differ, OpenVINO reads beyond an input and says nothing
        for spec in self.inputs:
            value = feed[spec.name]
            tensor = value if isinstance(value, OpenVinoTensor) else self.upload(on_host(value))
            assert not tensor.is_stale, "an output was fed after a later run of its engine"
            self._request.set_tensor(spec.name, tensor.value)
        for one in self._latest:
            one.is_stale = True
        try:
            self._request.infer()
        except RuntimeError as error:
            raise FsvitEdgeError(f"OpenVINO failed to run the graph: {_reason(error)}.") from error
        outputs = {spec.name: OpenVinoTensor(self._request.get_tensor(spec.name), True) for spec in self.outputs}
        self._latest = list(outputs.values())
        return dict(outputs)

    def close(self) -> None:
        """Free the graph; a second call does nothing."""
        self._request = None
        self._latest = []


class _SignalStack(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Leave this thread the stack on which it handles signals.

    OpenVINO gives it another, and frees that with the model: if a garbage collection does so in another thread, the
    next signal, such as Ctrl-C, ends the process with a segmentation fault (OpenVINO 2026.4).
    """
    library, before = ctypes.CDLL(None), _SignalStack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)


def check_precision(precision: str) -> None:
    """Raise InputError for a precision that OpenVINO does not compute in here."""
    if precision not in OPENVINO_PRECISIONS:
        known = f"--engine openvino has no {precision!r}; use one of: {', '.join(OPENVINO_PRECISIONS)}."
        raise InputError(_REFUSED.get(precision, known))


def import_openvino() -> Any:
    """Return the module; an EnvironmentLacksError if it is not installed or cannot be loaded, for whatever reason.

    OpenVINO tells Google Analytics of every import, unless its telemetry package is missing. So it is, for a moment.
    """
    is_blocked = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
    if is_blocked:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # an import of it fails
    try:
        import openvino
    except Exception as error:  # a module that fails can raise anything
        raise _lacks(error) from error
    finally:
        if is_blocked:
            sys.modules.pop(_TELEMETRY, None)
    return openvino


def _open_core() -> Any:
    try:
        with _own_signal_stack():
            core = import_openvino().Core()  # what is left of another version has none
            core.get_property("CPU", "FULL_DEVICE_NAME")
    except EnvironmentLacksError:
        raise
    except Exception as error:
        raise _lacks(error) from error
    return core


def _lacks(error: Exception) -> EnvironmentLacksError:
    is_missing = isinstance(error, ModuleNotFoundError) and error.name == OPENVINO
    reason = "is not installed" if is_missing else f"cannot be loaded ({_reason(error)})"
    return EnvironmentLacksError(
        f"--engine openvino needs the package openvino, which {reason}; try: pip install --upgrade "
        f'"fsvit-edge[{OPENVINO}]".'
    )


def openvino_version() -> str | None:
    """Return the version of OpenVINO, which is not imported; None if it is not installed."""
    try:
        return version(OPENVINO)
    except PackageNotFoundError:
        return None


def usable_precisions() -> tuple[str, ...]:
    """Return the precisions that OpenVINO computes in on this processor."""
    return OPENVINO_PRECISIONS if _has_bf16(_open_core()) else ("fp32",)


def _has_bf16(core: Any) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _refuse_without_bf16(core: Any) -> None:
    if not _has_bf16(core):
        raise EnvironmentLacksError(
            f"--precision bf16 needs a processor that multiplies BF16 (AVX512_BF16 or AMX), which OpenVINO does not "
            f"find in this {core.get_property('CPU', 'FULL_DEVICE_NAME')}; use --precision fp32."
        )


def _check_tensors(compiled: Any, stated: GraphInfo) -> None:
    for ports, specs in ((compiled.inputs, stated.inputs), (compiled.outputs, stated.outputs)):
        found = {name: port for port in ports for name in port.get_names()}
        for spec in specs:
            port = found.get(spec.name)
            if port is None or not _is_stated(port, spec) or len(ports) != len(specs):
                raise ArtifactError(f"The graph that OpenVINO read has not the stated {spec.name!r} {spec.shape}.")


def _is_stated(port: Any, spec: TensorSpec) -> bool:
    sizes = tuple("?" if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
    stated = tuple("?" if isinstance(size, str) else size for size in spec.shape)
    return port.get_element_type().to_dtype() == np.dtype(spec.dtype) and sizes == stated


def _reason(error: Exception) -> str:
    """The last line of an error, after the places in OpenVINO's source that it went through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].rstrip(".")
