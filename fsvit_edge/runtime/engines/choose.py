"""Which engines compute a bundle here: those that `build-engine` made and that fit, else ONNX Runtime."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from fsvit_edge.runtime.bundle import OBJECTNESS, Bundle
from fsvit_edge.runtime.engines.base import Engine
from fsvit_edge.runtime.engines.onnx_runtime import ENGINE_PROVIDERS, OnnxRuntimeEngine, installed_providers
from fsvit_edge.runtime.engines.store.files import PRECISIONS, engine_folder, load_engine
from fsvit_edge.runtime.engines.store.incompatibilities import BACKEND_TITLES, build_command, installed_version
from fsvit_edge.runtime.engines.store.sets import BuiltEngine, EngineSet, find_engines, fitting_sets
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.gpu import find_gpu, gpu_missing_reason
from fsvit_edge.runtime.json_records import record_from_json
from fsvit_edge.runtime.machine import Machine

PLAN_ENGINES = ("tensorrt", "tensorrt-rtx")
ENGINES = ("auto", *ENGINE_PROVIDERS, *PLAN_ENGINES)
_RENAMED = {"cpu": "onnxruntime", "cuda": "onnxruntime-cuda"}
PRECISION_CHOICES = ("auto", *PRECISIONS)
_BUILT_ONLY = ("fp16", "int8")
"""What no bundle has by itself."""
_UNMEASURED_ORDER = ("fp16", "fp32", "int8")
"""On a GPU; INT8 is as often slower than FP16 as faster, so it has to be measured."""


@dataclass(frozen=True)
class EngineChoice:
    """What computes, and why nothing else does.

    Attributes:
        engine: One of `ENGINES` without "auto", or "torch".
        precision: One of `PRECISIONS`; banks of another are refused.
        description: For people.
        notes: Sentences on what is built but does not compute here.
    """

    engine: str
    precision: str
    description: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenEngines:
    """The graphs, ready to run.

    Attributes:
        encoder: Runs `encoder`.
        enroll: Runs `enroll`, always in FP32 and by ONNX Runtime.
        head: Runs `head`.
        choice: What they are.
        objectness: Runs `objectness`, where the bundle has it, always in FP32 and by ONNX Runtime.
    """

    encoder: Engine
    enroll: Engine
    head: Engine
    choice: EngineChoice
    objectness: Engine | None = None


def choose_engines(
    bundle: Bundle, engine: str = "auto", precision: str = "auto", threads: int | None = None
) -> OpenEngines:
    """Open what computes a bundle best here.

    "auto" takes engines that were built for the GPU here; else ONNX Runtime: on CUDA where it is installed, else on the
    CPU, with the engines that measured fastest on this processor where they beat the bundle's own FP32 graphs. What is
    built but does not fit, is damaged or fails to open is passed over, and the notes say why.

    Args:
        bundle: The bundle.
        engine: One of `ENGINES`; tensorrt and tensorrt-rtx are engines that `build-engine` made.
        precision: One of `PRECISION_CHOICES`; any but "auto" is kept to.
        threads: Of ONNX Runtime within an operator; None for every core.

    Raises:
        InputError: There is no such engine or precision, or not together.
        EnvironmentLacksError: The engine that is named needs a package, a provider or a device that is not here.
        ArtifactError: Of the engine or precision that is named nothing is built that fits; it says what to type.
    """
    _check_options(engine, precision)
    built: list[BuiltEngine] = []
    problems: list[str] = []
    with suppress(EnvironmentLacksError):  # without a home folder there is no cache, and nothing in it
        built, problems = find_engines(engine_folder(bundle.path, bundle.manifest))
    if precision != "auto":
        built = [one for one in built if one[1].precision == precision]
    search = _Search(bundle, threads, built, [ArtifactError(problem) for problem in problems])
    if engine in PLAN_ENGINES:
        _check_plans_can_run(engine)
        opened = search.open_plans((engine,))
        if opened is None:
            raise _nothing_fits(search, engine, precision)
        return opened
    named = None if engine == "auto" else engine
    if engine == "auto":
        opened = search.open_plans(PLAN_ENGINES)
        if opened is not None:
            return opened
        prefers_cuda = precision not in _BUILT_ONLY and "cuda" in installed_providers()
        engine = "onnxruntime-cuda" if prefers_cuda else "onnxruntime"
    if engine == "onnxruntime" and precision != "fp16":
        opened = search.open_on_cpu(even_if_slower=precision in _BUILT_ONLY)
        if opened is not None:
            return opened
    if precision in _BUILT_ONLY:
        raise _nothing_fits(search, named, precision)
    return search.open_bundle(engine)


def _check_options(engine: str, precision: str) -> None:
    if engine in _RENAMED:
        raise InputError(f"Engine {engine!r} is now called {_RENAMED[engine]!r}.")
    if engine not in ENGINES:
        raise InputError(f"Engine {engine!r} is unknown; choose one of: {', '.join(ENGINES)}.")
    if precision not in PRECISION_CHOICES:
        raise InputError(f"Precision {precision!r} is unknown; choose one of: {', '.join(PRECISION_CHOICES)}.")
    if engine == "onnxruntime" and precision == "fp16":
        raise InputError("A CPU computes FP16 by way of FP32, only slower; take --precision fp32 or int8.")
    if engine == "onnxruntime-cuda" and precision in _BUILT_ONLY:
        raise InputError(
            f"--engine onnxruntime-cuda runs the bundle's own FP32 graphs; for {precision.upper()} on a GPU, build an "
            f"engine with: {build_command('tensorrt', precision)}."
        )


def _check_plans_can_run(engine: str) -> None:
    if find_gpu() is None:
        raise EnvironmentLacksError(
            f"--engine {engine} needs a GPU, but {gpu_missing_reason()}; compute without one: --engine onnxruntime."
        )
    if installed_version(engine) is None:
        from fsvit_edge.runtime.engines.tensorrt_api import open_tensorrt

        open_tensorrt(engine)  # says what is missing and how to get it


def _nothing_fits(search: "_Search", backend: str | None, precision: str) -> FsvitEdgeError:
    """The reason why what is there does not serve, or that nothing is there, with the command that builds it."""
    if search.refused:
        return search.refused[0]
    if backend is None and find_gpu() is None:
        if precision == "fp16":
            return EnvironmentLacksError(
                f"--precision fp16 needs a GPU, but {gpu_missing_reason()}; take --precision fp32 or int8."
            )
        backend = "onnxruntime"
    wanted = None if precision == "auto" else precision
    what = f"{precision.upper()} engine" if wanted else "engine"
    of = f" of {BACKEND_TITLES[backend]}" if backend else ""
    return ArtifactError(
        f"No {what}{of} is built of {search.bundle.manifest.name}; build it with: "
        f"{build_command(backend, wanted, search.bundle.path)}."
    )


@dataclass
class _Search:
    """A bundle's engines, and why those that were looked at do not serve."""

    bundle: Bundle
    threads: int | None
    built: list[BuiltEngine]
    refused: list[FsvitEdgeError]
    without_gpu: str = ""

    def open_plans(self, backends: Sequence[str]) -> OpenEngines | None:
        """The fastest plans that fit and open."""
        built = [one for one in self.built if one[1].backend in backends]
        if not built:
            return None
        machine = Machine.here()
        if machine.gpu is None:
            self.without_gpu = f"Engines of TensorRT are built but do not run here: {gpu_missing_reason()}."
            return None
        fitting = fitting_sets(built, self.bundle.manifest, machine, self.bundle.path)
        return self._open_first(sorted(fitting.sets, key=_plan_order), self._open_plan_set, fitting.reasons.values())

    def open_on_cpu(self, even_if_slower: bool) -> OpenEngines | None:
        """The engines that were measured fastest on this processor."""
        built = [one for one in self.built if one[1].backend == "onnxruntime"]
        if not built:
            return None
        machine = Machine.here()
        fitting = fitting_sets(built, self.bundle.manifest, machine, self.bundle.path)
        sets = sorted(fitting.sets, key=lambda one: _ratio(one, machine))
        slower = [_not_faster(one, machine, self.bundle.path) for one in sets if _ratio(one, machine) >= 1]
        if even_if_slower:
            self.refused += map(ArtifactError, slower)
        else:
            sets = [one for one in sets if _ratio(one, machine) < 1]
        reasons = [*(() if even_if_slower else slower), *fitting.reasons.values()]
        return self._open_first(sets, self._open_cpu_set, reasons)

    def open_bundle(self, engine: str) -> OpenEngines:
        """The bundle's own graphs, by ONNX Runtime."""
        manifest, provider = self.bundle.manifest, ENGINE_PROVIDERS[engine]
        with ExitStack() as stack:
            engines = {
                name: stack.enter_context(OnnxRuntimeEngine(self.bundle.graphs[name], provider, self.threads))
                for name in manifest.graphs
            }
            for name, opened in engines.items():
                info = manifest.graphs[name]
                if (opened.inputs, opened.outputs) != (info.inputs, info.outputs):
                    raise ArtifactError(
                        f"{self.bundle.path / info.file} has other inputs or outputs than its bundle.json says."
                    )
            stack.pop_all()
        place = "CUDA" if provider == "cuda" else "the CPU"
        description = f"{manifest.precision.upper()} in ONNX Runtime {installed_version('onnxruntime')} on {place}"
        choice = EngineChoice(engine, manifest.precision, description, self._notes())
        return OpenEngines(engines["encoder"], engines["enroll"], engines["head"], choice, engines.get(OBJECTNESS))

    def _open_first(
        self, sets: Sequence[EngineSet], open_set: Callable[[EngineSet], OpenEngines], reasons: Iterable[str]
    ) -> OpenEngines | None:
        """The first set that opens; else `reasons` say why the others do not serve."""
        for one in sets:
            try:
                return open_set(one)
            except FsvitEdgeError as error:  # noqa: PERF203 - the next one may do
                self.refused.append(error)
        self.refused += map(ArtifactError, reasons)
        return None

    def _open_plan_set(self, one: EngineSet) -> OpenEngines:
        from fsvit_edge.runtime.engines.memory.choose import open_device_memory
        from fsvit_edge.runtime.engines.tensorrt import TensorRtEngine
        from fsvit_edge.runtime.engines.tensorrt_api import open_tensorrt

        encoder_plan, head_plan = load_engine(*one.encoder), load_engine(*one.head)
        api = open_tensorrt(one.record.backend)
        with ExitStack() as stack:
            memory = open_device_memory()  # closes once no engine holds it
            encoder = stack.enter_context(TensorRtEngine(encoder_plan, one.encoder[1], api, memory))
            head = stack.enter_context(TensorRtEngine(head_plan, one.head[1], api, memory))
            enroll, objectness = self._enroll(stack), self._objectness(stack)
            stack.pop_all()
        return OpenEngines(encoder, enroll, head, self._choice(one, one.record.backend), objectness)

    def _open_cpu_set(self, one: EngineSet) -> OpenEngines:
        graphs = [(path, record, load_engine(path, record)) for path, record in (one.encoder, one.head)]
        with ExitStack() as stack:
            engines = []
            for path, record, graph in graphs:
                engine = stack.enter_context(OnnxRuntimeEngine(graph, "cpu", self.threads))
                if (engine.inputs, engine.outputs) != (record.inputs, record.outputs):
                    raise ArtifactError(f"{path} has other inputs or outputs than its sidecar says.")
                engines.append(engine)
            enroll, objectness = self._enroll(stack), self._objectness(stack)
            stack.pop_all()
        return OpenEngines(engines[0], enroll, engines[1], self._choice(one, "onnxruntime"), objectness)

    def _enroll(self, stack: ExitStack) -> OnnxRuntimeEngine:
        return stack.enter_context(OnnxRuntimeEngine(self.bundle.graphs["enroll"], "cpu", self.threads))

    def _objectness(self, stack: ExitStack) -> OnnxRuntimeEngine | None:
        graph = self.bundle.graphs.get(OBJECTNESS)
        return None if graph is None else stack.enter_context(OnnxRuntimeEngine(graph, "cpu", self.threads))

    def _choice(self, one: EngineSet, engine: str) -> EngineChoice:
        return EngineChoice(engine, one.record.precision, one.description, self._notes())

    def _notes(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.without_gpu, *map(str, self.refused))))


def _plan_order(one: EngineSet) -> tuple[bool, float, int]:
    latency = one.latency_ms
    return latency is None, latency or 0.0, _UNMEASURED_ORDER.index(one.record.precision)


def _ratio(one: EngineSet, machine: Machine) -> float:
    """A set's time against that of the FP32 graphs in the same run; infinite where this processor was not measured."""
    measured_on = record_from_json(Machine, one.encoder[0], one.record.machine).cpu
    if measured_on != machine.cpu or one.latency_ms is None or not one.fp32_latency_ms:
        return math.inf
    return one.latency_ms / one.fp32_latency_ms


def _not_faster(one: EngineSet, machine: Machine, bundle: Path) -> str:
    precision = one.record.precision
    what = f"The {precision.upper()} engines of ONNX Runtime"
    if _ratio(one, machine) < math.inf:
        return (
            f"{what} are not faster here than the FP32 graphs ({one.latency_ms:.1f} ms against "
            f"{one.fp32_latency_ms:.1f} ms when they were built); they compute only with --precision {precision}."
        )
    return (
        f"{what} were not measured on this processor and compute only with --precision {precision}; measure them with: "
        f"{build_command('onnxruntime', precision, bundle)} --force."
    )
