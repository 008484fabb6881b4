"""One interface to TensorRT, whichever is installed: `tensorrt` 10.3 to 11.x, or `tensorrt_rtx`.

Only functions that exist in all of them are used. They report a failure in a log and return None; here that becomes an
error. Nothing here checks for a GPU; call `find_gpu` before `engine`, which can crash the process without one.
"""

import functools
import importlib
import importlib.util
import re
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fsvit_edge.runtime.engines.base import BACKEND_TITLES, TENSORRT_BACKENDS
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, first_line

OLDEST_VERSION = (10, 3)
"""Oldest version of `tensorrt` that is known to work: that of JetPack 6.1. Versions before 10 cannot type strongly."""

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "UINT8": "uint8",
    "INT8": "int8",
    "BOOL": "bool",
    "INT32": "int32",
    "INT64": "int64",
}
"""TensorRT's name of an element type -> NumPy's."""

_MOST_MESSAGES = 100
# What can be imported; the version is read from other modules, see `installed_version`.
_MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
_INSTALL = {
    "tensorrt": 'pip install "fsvit-edge[tensorrt]" (on JetPack: apt install python3-libnvinfer, and create the '
    "environment with: python3 -m venv --system-site-packages)",
    "tensorrt-rtx": 'pip install "fsvit-edge[tensorrt-rtx]"',
}


class LogCollector:
    """Keeps the messages that TensorRT logs from now on.

    TensorRT has one logger per process and ignores loggers that it is given later. So there is one logger of ours, too,
    which passes every message to every collector.

    If verbose, it keeps all messages, including those on an engine's layers; else only the latest warnings and errors,
    because an engine runs for days.
    """

    def __init__(self, trt: Any, verbose: bool = False) -> None:
        self.messages: dict[str, deque[str]] = {}
        """Texts in order, by severity: INTERNAL_ERROR, ERROR, WARNING, INFO or VERBOSE."""
        self._most = None if verbose else _MOST_MESSAGES
        self._errors: deque[str] = deque(maxlen=_MOST_MESSAGES)
        self._severities = ("INTERNAL_ERROR", "ERROR", "WARNING", *(("INFO", "VERBOSE") if verbose else ()))
        self.logger, collectors = _shared_logger(trt)
        collectors.add(self)

    def keep(self, severity: str, text: str) -> None:
        """Keep a message; the logger calls this."""
        if severity in self._severities:
            self.messages.setdefault(severity, deque(maxlen=self._most)).append(text)
        if severity in ("INTERNAL_ERROR", "ERROR"):
            self._errors.append(text)

    def last_error(self) -> str:
        """Return the last error on one line without TensorRT's file names, or a clause if there is none."""
        # Without a driver, this error follows every call, so it hides the one that matters.
        relevant = [text for text in self._errors if "cudaError 35" not in text] or self._errors
        if not relevant:
            return "it gave no reason"
        text = " ".join(relevant[-1].split())
        text = re.sub(r"^(?:\[[^\]]*\] ?|I?\w+::\w+: )+", "", text)
        text = re.sub(r"\s*In \w+ at /\S*?:\d+", "", text)
        return text.rstrip(". ") or "it gave no reason"


@functools.cache
def _shared_logger(trt: Any) -> "tuple[Any, weakref.WeakSet[LogCollector]]":
    collectors: weakref.WeakSet[LogCollector] = weakref.WeakSet()

    class Logger(trt.ILogger):  # type: ignore[misc]  # the module is only known at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind requires exactly this call

        def log(self, severity: Any, text: str) -> None:
            for collector in list(collectors):
                collector.keep(severity.name, text)

    return Logger(), collectors


@dataclass(frozen=True)
class TensorRT:
    """An installed TensorRT."""

    backend: str  # of `TENSORRT_BACKENDS`
    trt: Any  # the module
    version: str  # 10.3.0, 1.7.1.116

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX, which builds without a GPU and compiles the kernels on the GPU that runs."""
        return self.backend == "tensorrt-rtx"

    def log(self, verbose: bool = False) -> LogCollector:
        """Return a new collector."""
        return LogCollector(self.trt, verbose)

    def builder(self, log: LogCollector) -> Any:
        """Return an `IBuilder`; TensorRT cannot start if, for example, the driver is too old."""
        builder = _construct(self.trt.Builder, log)
        if builder is None:
            raise FsvitEdgeError(f"{self.title} cannot start a build: {log.last_error()}.")
        return builder

    def network(self, builder: Any, log: LogCollector) -> Any:
        """Return an empty, strongly typed network: every tensor keeps its type from the graph.

        The flag is looked up: it is bit 1 in TensorRT 10, but bit 0 in 11 and RTX, where bit 1 means something else.
        """
        flags = 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)
        if network is None:
            raise FsvitEdgeError(f"{self.title} cannot create a strongly typed network: {log.last_error()}.")
        return network

    def parse(self, network: Any, graph: bytes, log: LogCollector, name: str) -> Any:
        """Read the bytes of an ONNX file into an empty network; `name` is for the error.

        Returns the parser, which must live as long as the network: it owns the weights.
        """
        parser = self.trt.OnnxParser(network, log.logger)
        if not parser.parse(graph):
            reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            reason = " ".join((reasons[-1] if reasons else log.last_error()).split()).rstrip(". ")
            raise ArtifactError(
                f"{self.title} cannot read the {name} graph: {reason}; build it with --engine onnxruntime, "
                "or export the bundle again with: fsvit-edge export."
            )
        return parser

    def serialized(self, builder: Any, network: Any, config: Any, log: LogCollector, name: str) -> bytes:
        """Build a plan and return its bytes; the error gives TensorRT's reason and, for known ones, what helps."""
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise FsvitEdgeError(f"{self.title} failed to build the {name}: {_with_advice(log.last_error())}.")
        return bytes(plan)

    def engine(self, plan: bytes, log: LogCollector, name: str) -> Any:
        """Deserialize a plan whose checksum was verified before; there must be a GPU.

        The engine keeps its runtime alive. Code inside a plan is never allowed to run.
        """
        runtime = _construct(self.trt.Runtime, log)
        if runtime is None:
            raise EnvironmentLacksError(f"{self.title}'s runtime does not start: {log.last_error()}.")
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ArtifactError(
                f"{self.title} cannot load {name}: {_with_advice(log.last_error())}; build it here with: "
                f"fsvit-edge build-engine --engine {self.backend} --force"
            )
        return engine

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"{BACKEND_TITLES[self.backend]} {self.version}"


def installed_backends() -> tuple[str, ...]:
    """Return which of `TENSORRT_BACKENDS` are installed, without importing them."""
    return tuple(backend for backend in TENSORRT_BACKENDS if _module(backend) is not None)


def open_tensorrt(backend: str) -> TensorRT:
    """Import a TensorRT; an EnvironmentLacksError if it is not installed, cannot be loaded, or is too old."""
    name = _module(backend)
    if name is None:
        raise EnvironmentLacksError(
            f"--engine {backend} needs {_MODULES[backend][0]}, which is not installed; "
            f"try: {_INSTALL[backend]}; or use --engine onnxruntime."
        )
    try:
        module = importlib.import_module(name)
        version = str(module.__version__)
    except (ImportError, OSError, AttributeError) as error:
        raise EnvironmentLacksError(
            f"{name} is installed but cannot be loaded: {first_line(error)}; reinstall it with: {_INSTALL[backend]}."
        ) from error
    found = TensorRT(backend, module, version)
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not found.is_rtx and numbers < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise EnvironmentLacksError(
            f"TensorRT {version} is installed, but {oldest} or newer is needed; on a Jetson install JetPack 6.1 or "
            f'newer, elsewhere: pip install "tensorrt>={oldest}"; or use --engine onnxruntime.'
        )
    return found


def _module(backend: str) -> str | None:
    """The name of the installed module of a backend."""
    for name in _MODULES[backend]:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:  # None for a folder of that name without code
            return name
    return None


def _construct(kind: Any, log: LogCollector) -> Any:
    with suppress(TypeError, RuntimeError):  # pybind raises these if a constructor returns null
        return kind(log.logger)


def _with_advice(reason: str) -> str:
    """TensorRT's reason, with what helps against a full memory or an old driver."""
    lowered = reason.lower()
    if "out of memory" in lowered or "outofmemory" in lowered or "insufficient memory" in lowered:
        return f"{reason}; close other programs on the GPU, or give --workspace fewer MiB"
    if "driver version is insufficient" in lowered or "cuda error 35" in lowered:
        return f"{reason}; update the NVIDIA driver"
    return reason
