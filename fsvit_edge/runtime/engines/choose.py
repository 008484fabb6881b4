"""Choose and open the engines that run a bundle here: those that `build-engine` made if they fit, else the CPU's."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.engines.base import (
    BACKEND_TITLES,
    TENSORRT_BACKENDS,
    Engines,
    refuse_old_name,
)
from fsvit_edge.runtime.engines.files import (
    StoredEngine,
    engine_folder,
    find_engines,
)
from fsvit_edge.runtime.engines.fitting import EngineSet, build_command, fitting_sets, installed_version
from fsvit_edge.runtime.engines.onnx_runtime import (
    ENGINE_PROVIDERS,
    installed_providers,
    refuse_fp16_on_cpu,
)
from fsvit_edge.runtime.engines.open_graphs import open_graphs, open_in_openvino
from fsvit_edge.runtime.engines.openvino import OPENVINO, check_precision, openvino_version
from fsvit_edge.runtime.engines.tensorrt_api import open_tensorrt
from fsvit_edge.runtime.engines.trial import find_trial
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.gpu import find_gpu, gpu_missing_reason
from fsvit_edge.runtime.machine import Machine, has_vnni_here
from fsvit_edge.runtime.messages import Say

ENGINES = ("auto", *ENGINE_PROVIDERS, OPENVINO, *TENSORRT_BACKENDS)
CPU_ENGINES = ("onnxruntime", OPENVINO)
"""Engines that compile nothing at a first frame."""
PRECISION_CHOICES = ("auto", "fp32", "bf16", "fp16", "int8")
_BUILT_ONLY = ("fp16", "int8")
"""Precisions that built engines have: a bundle's own graphs are FP32, but for an INT8 encoder for x86 with VNNI."""
_UNMEASURED_ORDER = ("fp16", "fp32", "int8")
"""On a GPU, if nothing was measured: INT8 is slower than FP16 as often as it is faster, so it comes last."""

_FASTER = 0.95
"""OpenVINO must be faster than this times ONNX Runtime, which needs no second library in memory."""


@dataclass(frozen=True)
class EngineChoice:
    """Which engine was chosen, and why no other."""

    engine: str  # of `ENGINES` without "auto", or "torch"
    precision: str  # banks made in another precision are refused
    description: str  # for people
    notes: tuple[str, ...] = ()  # a sentence for each engine that was passed over
    lacks: Mapping[str, str] = field(default_factory=dict)  # why the precision of the named bank does not run here


def choose_engines(
    bundle: Bundle,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    made_in: str | None = None,
    say: Say = lambda _: None,
) -> tuple[Engines, EngineChoice]:
    """Open the engines that run a bundle best here.

    "auto" takes engines that were built for this GPU; else ONNX Runtime on CUDA if that is installed; else what is
    fastest on the CPU: OpenVINO, if it is installed and was timed so, in FP32 or BF16; or ONNX Runtime, with the built
    engines that measured fastest on this processor if they beat the bundle's own FP32 graphs, or with the bundle's own
    INT8 encoder, if it has one and the processor has VNNI, unless INT8 was measured to be slower here. Engines that do
    not fit, are damaged, slower or fail to open are passed over, and the notes say why. `say` gets a line before
    OpenVINO is timed, which is done once and takes a few seconds.

    `made_in` is the precision of a bank that will be used, which "auto" takes wherever it can; None without one.

    `threads` work within an operator of ONNX Runtime or OpenVINO; None for one per core. Enroll and objectness always
    run in FP32 in ONNX Runtime, and so does the head beside OpenVINO's encoder. BF16 is OpenVINO's alone.

    Raises:
        InputError: The engine or the precision is unknown, or they do not go together.
        EnvironmentLacksError: The engine needs a package, a provider or a device that is missing here.
        ArtifactError: No engine that fits was built for the given engine or precision.
    """
    check_options(engine, precision)
    if precision != "auto" or made_in not in PRECISION_CHOICES[1:]:
        return _choose(bundle, engine, precision, threads, made_in, say)
    try:
        check_options(engine, made_in)
        return _choose(bundle, engine, made_in, threads, made_in, say)
    except FsvitEdgeError as error:
        lacks = {made_in: str(error)}
    engines, choice = _choose(bundle, engine, precision, threads, made_in, say)
    return engines, replace(choice, lacks=lacks)


def _choose(
    bundle: Bundle, engine: str, precision: str, threads: int | None, made_in: str | None, say: Say
) -> tuple[Engines, EngineChoice]:
    search = _Search(bundle, threads, precision)
    if engine in TENSORRT_BACKENDS:
        if find_gpu() is None:
            raise EnvironmentLacksError(
                f"--engine {engine} needs a GPU, but {gpu_missing_reason()}; without a GPU, use --engine onnxruntime."
            )
        if installed_version(engine) is None:
            open_tensorrt(engine)  # its error tells what is missing and how to install it
        opened = search.open_plans((engine,))
        if opened is None:
            raise _nothing_fits(search, engine, precision)
        return opened
    if engine == OPENVINO or precision == "bf16":
        return search.open_openvino("fp32" if precision == "auto" else precision)
    is_auto = engine == "auto"
    if is_auto:
        opened = search.open_plans(TENSORRT_BACKENDS)
        if opened is not None:
            return opened
        prefers_cuda = precision not in _BUILT_ONLY and "cuda" in installed_providers()
        engine = "onnxruntime-cuda" if prefers_cuda else "onnxruntime"
    if is_auto and engine == "onnxruntime" and precision in ("auto", "fp32"):
        opened = search.open_timed(precision, made_in, say)
        if opened is not None:
            return opened
    if engine == "onnxruntime" and precision != "fp16":
        opened = search.open_on_cpu(even_if_slower=precision in _BUILT_ONLY) or search.open_int8_bundle(precision)
        if opened is not None:
            return opened
    if precision in _BUILT_ONLY:
        raise _nothing_fits(search, None if is_auto else engine, precision)
    return search.open_bundle(engine)


def check_options(engine: str, precision: str) -> None:
    """Refuse an engine or a precision that is unknown, or two that do not go together, with an InputError."""
    refuse_old_name(engine)
    if engine.lower().startswith("triton://"):
        raise InputError("A box (--engine triton://...) answers the frames of run and label; choose an engine here.")
    if engine not in ENGINES:
        raise InputError(f"Engine {engine!r} is unknown; choose one of: {', '.join(ENGINES)}.")
    if precision not in PRECISION_CHOICES:
        raise InputError(f"Precision {precision!r} is unknown; choose one of: {', '.join(PRECISION_CHOICES)}.")
    if engine == OPENVINO and precision != "auto":
        check_precision(precision)
    if precision == "bf16" and engine not in ("auto", OPENVINO):
        raise InputError(f"--engine {engine} has no BF16; use --precision bf16 with --engine openvino.")
    if engine == "onnxruntime":
        refuse_fp16_on_cpu(precision)
    if engine == "onnxruntime-cuda" and precision in _BUILT_ONLY:
        raise InputError(
            f"--engine onnxruntime-cuda runs the bundle's own FP32 graphs; for {precision.upper()} on a GPU, build an "
            f"engine with: {build_command('tensorrt', precision)}."
        )


def _nothing_fits(search: "_Search", engine: str | None, precision: str) -> FsvitEdgeError:
    """Why no built engine can be used, with the command that builds one; `engine` is None for "auto"."""
    if search.refused:
        return search.refused[0]
    if engine is None and find_gpu() is None:
        if precision == "fp16":
            return EnvironmentLacksError(
                f"--precision fp16 needs a GPU, but {gpu_missing_reason()}; use --precision fp32 or int8."
            )
        engine = "onnxruntime"
    kind = "engine" if precision == "auto" else f"{precision.upper()} engine"
    backend = f" for {BACKEND_TITLES[engine]}" if engine else ""
    command = build_command(engine, None if precision == "auto" else precision, search.bundle.path)
    return ArtifactError(
        f"No {kind}{backend} has been built from {search.bundle.manifest.name}; build one with: {command}."
    )


class _Search:
    """The search for engines that can run a bundle, among those that were built in the wanted precision."""

    def __init__(self, bundle: Bundle, threads: int | None, precision: str) -> None:
        self.bundle = bundle
        self.refused: list[FsvitEdgeError] = []  # why engines that were looked at cannot be used
        self._threads = threads
        self._built: list[StoredEngine] = []  # newest first
        self._is_int8_slower = False  # measured here, by engines that were built
        try:
            built, problems = find_engines(engine_folder(bundle.path, bundle.manifest))
        except EnvironmentLacksError:  # without a home folder there is no cache to search
            return
        self._built = [one for one in built if precision in ("auto", one.record.precision)]
        self.refused += map(ArtifactError, problems)

    def open_plans(self, backends: Sequence[str]) -> tuple[Engines, EngineChoice] | None:
        """Open the fastest plans that fit; None if there are none."""
        built = [one for one in self._built if one.record.backend in backends]
        if not built:
            return None
        machine = Machine.here()
        if machine.gpu is None:
            return None  # `doctor` says so, not every command
        fitting = fitting_sets(built, self.bundle.manifest, machine, self.bundle.path)
        return self._open_first(sorted(fitting.sets, key=_plan_order), fitting.reasons.values())

    def open_on_cpu(self, even_if_slower: bool) -> tuple[Engines, EngineChoice] | None:
        """Open the CPU engines that measured fastest on this processor; None if there are none."""
        built = [one for one in self._built if one.record.backend == "onnxruntime"]
        if not built:
            return None
        machine = Machine.here()
        fitting = fitting_sets(built, self.bundle.manifest, machine, self.bundle.path)
        sets = sorted(fitting.sets, key=lambda one: _ratio_to_fp32(one, machine))
        slower = [_not_faster(one, machine, self.bundle.path) for one in sets if _ratio_to_fp32(one, machine) >= 1]
        self._is_int8_slower = any(
            one.record.precision == "int8" and 1 <= _ratio_to_fp32(one, machine) < math.inf for one in sets
        )
        if even_if_slower:
            self.refused += map(ArtifactError, slower)
            return self._open_first(sets, fitting.reasons.values())
        faster = [one for one in sets if _ratio_to_fp32(one, machine) < 1]
        return self._open_first(faster, [*slower, *fitting.reasons.values()])

    def open_int8_bundle(self, precision: str) -> tuple[Engines, EngineChoice] | None:
        """Open the bundle's own graphs with its INT8 encoder; None if it has none, or none for this processor."""
        info = self.bundle.manifest.int8_encoder
        is_wanted = precision == "int8" or (precision == "auto" and not self._is_int8_slower)
        if info is None or not is_wanted or not has_vnni_here():
            return None
        try:
            opened = open_graphs(self.bundle, None, "cpu", self._threads, info)
        except FsvitEdgeError as error:
            self.refused.append(error)
            return None
        description = f"INT8 encoder in ONNX Runtime {installed_version('onnxruntime')} on the CPU"
        return self._result(opened, "onnxruntime", "int8", description)

    def open_bundle(self, engine: str) -> tuple[Engines, EngineChoice]:
        """Open the bundle's own graphs in ONNX Runtime."""
        provider, precision = ENGINE_PROVIDERS[engine], self.bundle.manifest.precision
        opened = open_graphs(self.bundle, None, provider, self._threads)
        place = "CUDA" if provider == "cuda" else "the CPU"
        description = f"{precision.upper()} in ONNX Runtime {installed_version('onnxruntime')} on {place}"
        return self._result(opened, engine, precision, description)

    def open_timed(self, precision: str, made_in: str | None, say: Say) -> tuple[Engines, EngineChoice] | None:
        """Open OpenVINO's encoder in the precision that was timed fastest, if ONNX Runtime's encoders are slower."""
        # With a bank in FP32, the notes say if BF16 would be faster.
        precisions = ("fp32",) if precision == "fp32" and made_in is None else ("fp32", "bf16")
        trial = find_trial(self.bundle, self._threads, say)
        if trial is None:
            return None
        limit = self._ratio_to_beat()
        if precision == "auto" and made_in is None and trial.int8_ms is not None:
            limit = min(limit, _FASTER * trial.int8_ms / trial.onnxruntime_ms)
        fast = [name for name in sorted(precisions, key=trial.ratio) if trial.ratio(name) < limit]
        usable = [name for name in fast if made_in in (None, name) and precision in ("auto", name)]
        notes = list(dict.fromkeys(trial.refused[name] for name in precisions if name in trial.refused))
        if not fast and not notes:
            notes = [f"OpenVINO is installed but not used, because its encoder is no faster here: {trial}."]
        elif fast and fast[0] not in usable:
            notes.append(
                f"OpenVINO would be faster in {fast[0].upper()} ({trial}), but the bank was made in {made_in}; enroll "
                f"its classes again with --precision {fast[0]} to use it."
            )
        self.refused += map(ArtifactError, notes)
        if not usable:
            return None
        try:
            return self.open_openvino(usable[0])
        except FsvitEdgeError as error:
            self.refused.append(error)
            return None

    def _ratio_to_beat(self) -> float:
        """The time of ONNX Runtime's fastest encoder over that of the bundle's in FP32, less a margin for noise."""
        built = [one for one in self._built if one.record.backend == "onnxruntime"]
        ratios = [1.0]
        if built:
            machine = Machine.here()
            for one in fitting_sets(built, self.bundle.manifest, machine, self.bundle.path).sets:
                record = one.encoder.record
                if _ratio_to_fp32(one, machine) < 1 and record.latency_ms and record.fp32_latency_ms:
                    ratios.append(record.latency_ms / record.fp32_latency_ms)
        return _FASTER * min(ratios)

    def open_openvino(self, precision: str) -> tuple[Engines, EngineChoice]:
        """Open the bundle's own encoder in OpenVINO, and its other graphs in FP32 in ONNX Runtime."""
        opened = open_in_openvino(self.bundle, precision, self._threads)
        description = (
            f"{precision.upper()} encoder in OpenVINO {openvino_version()}, FP32 head in ONNX Runtime "
            f"{installed_version('onnxruntime')}, on the CPU"
        )
        return self._result(opened, OPENVINO, precision, description)

    def _open_first(self, sets: Sequence[EngineSet], reasons: Iterable[str]) -> tuple[Engines, EngineChoice] | None:
        """Open the first set that opens; if none does, `reasons` say why the other engines cannot be used."""
        for one in sets:
            try:
                opened = open_graphs(self.bundle, one, "cpu", self._threads)
            except FsvitEdgeError as error:  # noqa: PERF203 - the next set may open
                self.refused.append(error)
            else:
                return self._result(opened, one.record.backend, one.record.precision, one.description)
        self.refused += map(ArtifactError, reasons)
        return None

    def _result(self, opened: Engines, engine: str, precision: str, description: str) -> tuple[Engines, EngineChoice]:
        return opened, EngineChoice(engine, precision, description, tuple(map(str, self.refused)))


def _plan_order(one: EngineSet) -> tuple[bool, float, int]:
    """Sort key: measured plans first, the fastest of them first."""
    latency = one.latency_ms
    return latency is None, latency or 0.0, _UNMEASURED_ORDER.index(one.record.precision)


def _ratio_to_fp32(one: EngineSet, machine: Machine) -> float:
    """A set's latency over that of the FP32 graphs in the same run; infinite if not measured on this processor."""
    if one.record.machine.cpu != machine.cpu or one.latency_ms is None or not one.fp32_latency_ms:
        return math.inf
    return one.latency_ms / one.fp32_latency_ms


def _not_faster(one: EngineSet, machine: Machine, bundle: Path) -> str:
    precision = one.record.precision
    engines = f"The {precision.upper()} engines for ONNX Runtime"
    if _ratio_to_fp32(one, machine) < math.inf:
        return (
            f"{engines} are no faster here than the FP32 graphs ({one.latency_ms:.1f} ms against "
            f"{one.fp32_latency_ms:.1f} ms when they were built), so they run only with --precision {precision}."
        )
    return (
        f"{engines} were not measured on this processor, so they run only with --precision {precision}; measure them "
        f"with: {build_command('onnxruntime', precision, bundle)} --force."
    )
