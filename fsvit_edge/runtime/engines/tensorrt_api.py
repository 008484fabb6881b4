"""One way to TensorRT, whichever is installed: `tensorrt` from 10.3 on, 11.x, or `tensorrt_rtx`.

Only what exists in all of them is used. They say what went wrong in a log and answer with None; here that becomes an
error. Nothing of this asks for a GPU; ask `find_gpu` before anything is deserialized, which can crash without one.
"""

import functools
import importlib
import importlib.util
import re
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError

TENSORRT_ENGINES = ("tensorrt", "tensorrt-rtx")
OLDEST_VERSION = (10, 3)
"""Of `tensorrt`, on JetPack 6.1; older ones build only networks whose types are not fixed."""

_MOST_MESSAGES = 100
_MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
_INSTALL = {
    "tensorrt": 'pip install "fsvit-edge[tensorrt]" (JetPack brings it: apt install python3-libnvinfer, and let the '
    "environment see it with: python3 -m venv --system-site-packages)",
    "tensorrt-rtx": 'pip install "fsvit-edge[tensorrt-rtx]"',
}


class LogCollector:
    """Keeps what TensorRT says from now on.

    TensorRT has one logger for all that lives in a process and ignores those it is given later, so ours is one as well
    and passes everything on to every collector.

    Args:
        trt: The module.
        verbose: Keep everything, which the layers of an engine are a part of; else the latest warnings and errors,
            because an engine runs for days.

    Attributes:
        logger: What TensorRT wants for its `logger`.
        messages: Texts by the severity's name, INTERNAL_ERROR, ERROR, WARNING, INFO or VERBOSE, in their order.
    """

    def __init__(self, trt: Any, verbose: bool = False) -> None:
        self.messages: dict[str, deque[str]] = {}
        self._most = None if verbose else _MOST_MESSAGES
        self._errors: deque[str] = deque(maxlen=_MOST_MESSAGES)
        self._severities = ("INTERNAL_ERROR", "ERROR", "WARNING", *(("INFO", "VERBOSE") if verbose else ()))
        self.logger, collectors = _shared_logger(trt)
        collectors.add(self)

    def keep(self, severity: str, text: str) -> None:
        """Take a message; the logger calls this."""
        if severity in self._severities:
            self.messages.setdefault(severity, deque(maxlen=self._most)).append(text)
        if severity in ("INTERNAL_ERROR", "ERROR"):
            self._errors.append(text)

    def last_error(self) -> str:
        """Return the last error on one line, without TensorRT's own file names; a clause that stands without one."""
        # Without a driver this one comes with everything that is made or freed, after the error that matters.
        telling = [text for text in self._errors if "cudaError 35" not in text] or self._errors
        if not telling:
            return "it gave no reason"
        text = " ".join(telling[-1].split())
        text = re.sub(r"^(?:\[[^\]]*\] ?|I?\w+::\w+: )+", "", text)
        text = re.sub(r"\s*In \w+ at /\S*?:\d+", "", text)
        return text.rstrip(". ") or "it gave no reason"


@functools.cache
def _shared_logger(trt: Any) -> "tuple[Any, weakref.WeakSet[LogCollector]]":
    collectors: weakref.WeakSet[LogCollector] = weakref.WeakSet()

    class Logger(trt.ILogger):  # type: ignore[misc]  # the module is only known at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind insists on this very call

        def log(self, severity: Any, text: str) -> None:
            for collector in list(collectors):
                collector.keep(severity.name, text)

    return Logger(), collectors


@dataclass(frozen=True)
class TensorRT:
    """An installed TensorRT.

    Attributes:
        backend: One of `TENSORRT_ENGINES`.
        trt: The module.
        version: As it says itself: 10.3.0, 1.7.1.116.
    """

    backend: str
    trt: Any
    version: str

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX, which builds without a GPU for others and compiles on the one that runs."""
        return self.backend == "tensorrt-rtx"

    def log(self, verbose: bool = False) -> LogCollector:
        """Return a fresh collector."""
        return LogCollector(self.trt, verbose)

    def builder(self, log: LogCollector) -> Any:
        """Return an `IBuilder`.

        Raises:
            FsvitEdgeError: There is none: the driver is too old, say.
        """
        try:
            return _some(self.trt.Builder(log.logger))
        except (TypeError, RuntimeError) as error:  # what pybind makes of a constructor that returned null
            raise FsvitEdgeError(f"{self.title} cannot start a build: {log.last_error()}.") from error

    def network(self, builder: Any, log: LogCollector) -> Any:
        """Return an empty network whose types are the graph's own.

        The flag is looked up: it is bit 1 in TensorRT 10, bit 0 in 11 and RTX, where bit 1 is something else.

        Raises:
            FsvitEdgeError: TensorRT refuses.
        """
        flags = 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)
        if network is None:
            raise FsvitEdgeError(f"{self.title} made no strongly typed network: {log.last_error()}.")
        return network

    def parse(self, network: Any, graph: bytes, log: LogCollector, name: str) -> Any:
        """Read an ONNX graph into a network.

        Args:
            network: An empty network.
            graph: The ONNX file's bytes.
            log: Of the builder.
            name: What to call the graph in an error.

        Returns:
            The parser, which must live as long as the network: it owns the weights.

        Raises:
            ArtifactError: It is no ONNX graph, or has what TensorRT does not know.
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
        """Build a plan and return its bytes.

        Raises:
            FsvitEdgeError: TensorRT failed; the sentence says why, and what helps where that is memory.
        """
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise FsvitEdgeError(f"{self.title} failed to build the {name}: {_with_advice(log.last_error())}.")
        return bytes(plan)

    def engine(self, plan: bytes, log: LogCollector, name: str) -> Any:
        """Deserialize a plan whose sum has been checked; there must be a GPU.

        The engine keeps its runtime alive. Code inside a plan is never allowed.

        Raises:
            EnvironmentLacksError: TensorRT's runtime does not start.
            ArtifactError: The plan is of another version or GPU, or damaged.
        """
        try:
            runtime = _some(self.trt.Runtime(log.logger))
        except (TypeError, RuntimeError) as error:
            raise EnvironmentLacksError(f"{self.title}'s runtime does not start: {log.last_error()}.") from error
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ArtifactError(
                f"{self.title} cannot load {name}: {_with_advice(log.last_error())}; build it here with: "
                f"fsvit-edge build-engine --engine {self.backend} --force"
            )
        return engine

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{'TensorRT-RTX' if self.is_rtx else 'TensorRT'} {self.version}"


def installed_backends() -> tuple[str, ...]:
    """Return which of `TENSORRT_ENGINES` are installed, by looking for their modules; imports nothing."""
    return tuple(backend for backend in TENSORRT_ENGINES if _module(backend) is not None)


def open_tensorrt(backend: str) -> TensorRT:
    """Import a TensorRT.

    Raises:
        InputError: There is no such backend.
        EnvironmentLacksError: It is not installed, cannot be loaded, or is too old.
    """
    if backend not in TENSORRT_ENGINES:
        raise InputError(f"TensorRT backend {backend!r} is unknown; choose one of: {', '.join(TENSORRT_ENGINES)}.")
    name = _module(backend)
    if name is None:
        raise EnvironmentLacksError(
            f"--engine {backend} needs {_MODULES[backend][0]}, which is not installed here; "
            f"try: {_INSTALL[backend]}; or use --engine onnxruntime."
        )
    try:
        module = importlib.import_module(name)
        version = str(module.__version__)
    except (ImportError, OSError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise EnvironmentLacksError(
            f"{name} is installed but cannot be loaded: {reason}; try again: {_INSTALL[backend]}."
        ) from error
    found = TensorRT(backend, module, version)
    if not found.is_rtx and _numbers(version) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise EnvironmentLacksError(
            f"TensorRT {version} is installed, {oldest} or newer is needed; on a Jetson install JetPack 6.1 or newer, "
            f'elsewhere: pip install "tensorrt>={oldest}"; or use --engine onnxruntime.'
        )
    return found


def _module(backend: str) -> str | None:
    for name in _MODULES[backend]:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:  # a folder of that name without code has no origin
            return name
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _some(value: Any) -> Any:
    if value is None:
        raise TypeError("nothing was made")
    return value


def _with_advice(reason: str) -> str:
    """Add what helps to TensorRT's reason where that is memory, a GPU, or a driver."""
    lowered = reason.lower()
    if "out of memory" in lowered or "outofmemory" in lowered or "insufficient memory" in lowered:
        return f"{reason}; close other programs on the GPU, or give --workspace fewer MiB"
    if "driver version is insufficient" in lowered or "cuda error 35" in lowered:
        return f"{reason}; update the NVIDIA driver"
    return reason
