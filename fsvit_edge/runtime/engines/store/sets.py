"""Find the engines that were built from a bundle, and pair them into sets of encoder and head."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fsvit_edge.runtime.bundle import Manifest
from fsvit_edge.runtime.engines.backends import BACKEND_TITLES
from fsvit_edge.runtime.engines.store.files import ENGINE_GRAPHS, SIDECAR_SUFFIX, EngineRecord, read_record
from fsvit_edge.runtime.engines.store.incompatibilities import build_command, incompatibilities
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.machine import Machine
from fsvit_edge.runtime.storage import TEMPORARY_PREFIX


class StoredEngine(NamedTuple):
    """An engine on disk.

    Attributes:
        path: The engine's file.
        record: Its sidecar.
    """

    path: Path
    record: EngineRecord


@dataclass(frozen=True)
class EngineSet:
    """Encoder and head of one backend and precision.

    Attributes:
        encoder: The newest encoder that fits.
        head: The newest head that fits.
    """

    encoder: StoredEngine
    head: StoredEngine

    @property
    def record(self) -> EngineRecord:
        """Sidecar of the encoder, whose backend, precision and machine are those of the set."""
        return self.encoder.record

    @property
    def latency_ms(self) -> float | None:
        """Time of encoder and head together, as measured at the build; None if it was not."""
        return _sum(self.encoder.record.latency_ms, self.head.record.latency_ms)

    @property
    def fp32_latency_ms(self) -> float | None:
        """Time of the FP32 graphs in the same measurement; None if it was not measured."""
        return _sum(self.encoder.record.fp32_latency_ms, self.head.record.fp32_latency_ms)

    @property
    def description(self) -> str:
        """In words, for people: INT8 in ONNX Runtime 1.32.0, built 2026-11-25."""
        record = self.record
        return (
            f"{record.precision.upper()} in {BACKEND_TITLES[record.backend]} {record.backend_version}, "
            f"built {record.built_at[:10]}"
        )


@dataclass(frozen=True)
class Fitting:
    """The built engines that can run here.

    Attributes:
        sets: Complete sets that fit.
        reasons: By backend and precision without a complete set, the sentence that explains why.
    """

    sets: tuple[EngineSet, ...]
    reasons: dict[tuple[str, str], str]


def find_engines(folder: Path) -> tuple[list[StoredEngine], list[str]]:
    """Read the sidecars in a folder; the engines themselves are not opened.

    Returns:
        The engines, newest first, and one sentence per sidecar that cannot be used.
    """
    built, problems = [], []
    for sidecar in sorted(_sidecars(folder)):
        try:
            record = read_record(sidecar)
        except ArtifactError as error:  # noqa: PERF203 - the other sidecars are still useful
            problems.append(str(error))
        else:
            built.append(StoredEngine(sidecar.with_suffix(""), record))
    return sorted(built, key=lambda engine: engine.record.built_at, reverse=True), problems


def fitting_sets(
    built: Collection[StoredEngine], manifest: Manifest, machine: Machine, bundle: Path | None = None
) -> Fitting:
    """Pair the newest encoder and head of each backend and precision that fit the bundle and the machine.

    Args:
        built: The engines, newest first.
        manifest: The bundle's manifest.
        machine: The machine that they should run on.
        bundle: Folder of the bundle, for the commands; None for the bundled model.
    """
    sets = []
    reasons: dict[tuple[str, str], str] = {}
    for kind in dict.fromkeys((record.backend, record.precision) for _, record in built):
        chosen: dict[str, StoredEngine] = {}
        refusals: dict[str, str] = {}
        for engine in built:
            record = engine.record
            if (record.backend, record.precision) == kind and record.graph not in chosen:
                refused = incompatibilities(record, manifest, machine, bundle)
                if refused:
                    refusals.setdefault(record.graph, refused[0])
                else:
                    chosen[record.graph] = engine
        missing = [graph for graph in ENGINE_GRAPHS if graph not in chosen]
        if not missing:
            sets.append(EngineSet(chosen["encoder"], chosen["head"]))
        else:
            backend, precision = kind
            incomplete = (
                f"The {precision.upper()} engines for {BACKEND_TITLES[backend]} have no {missing[0]}; build it with: "
                f"{build_command(backend, precision, bundle)}."
            )
            reasons[kind] = refusals.get(missing[0], incomplete)
    return Fitting(tuple(sets), reasons)


def _sidecars(folder: Path) -> Iterator[Path]:
    for suffix in (".engine", ".onnx"):
        found = folder.glob(f"*{suffix}{SIDECAR_SUFFIX}")
        yield from (file for file in found if not file.name.startswith(TEMPORARY_PREFIX))


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
