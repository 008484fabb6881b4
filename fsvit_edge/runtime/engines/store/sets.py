"""The engines that were built of a bundle: found, and put together into sets of encoder and head."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from fsvit_edge.runtime.bundle import Manifest
from fsvit_edge.runtime.engines.store.files import ENGINE_GRAPHS, SIDECAR_SUFFIX, EngineRecord, read_record
from fsvit_edge.runtime.engines.store.incompatibilities import BACKEND_TITLES, build_command, incompatibilities
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.machine import Machine
from fsvit_edge.runtime.storage import TEMPORARY_PREFIX

BuiltEngine = tuple[Path, EngineRecord]
"""An engine's path with what its sidecar says."""


@dataclass(frozen=True)
class EngineSet:
    """Encoder and head of one backend and precision.

    Attributes:
        encoder: The newest that fits.
        head: The newest that fits.
    """

    encoder: BuiltEngine
    head: BuiltEngine

    @property
    def record(self) -> EngineRecord:
        """Of the encoder, which stands for the set."""
        return self.encoder[1]

    @property
    def latency_ms(self) -> float | None:
        """Encoder and head together, as measured at the build; None where they were not."""
        return _sum(self.encoder[1].latency_ms, self.head[1].latency_ms)

    @property
    def fp32_latency_ms(self) -> float | None:
        """The same of the FP32 graphs in the same run."""
        return _sum(self.encoder[1].fp32_latency_ms, self.head[1].fp32_latency_ms)

    @property
    def description(self) -> str:
        """For people: INT8 in ONNX Runtime 1.32.0, built 2026-11-25."""
        record = self.record
        return (
            f"{record.precision.upper()} in {BACKEND_TITLES[record.backend]} {record.backend_version}, "
            f"built {record.built_at[:10]}"
        )


@dataclass(frozen=True)
class Fitting:
    """What of the built engines serves here.

    Attributes:
        sets: Whole sets that fit.
        reasons: By backend and precision, a sentence on why they have no set.
    """

    sets: tuple[EngineSet, ...]
    reasons: dict[tuple[str, str], str]


def find_engines(folder: Path) -> tuple[list[BuiltEngine], list[str]]:
    """Read the sidecars of a folder; the engines themselves are not touched.

    Returns:
        The engines, newest first, and a sentence for each sidecar that cannot be used.
    """
    built, problems = [], []
    for sidecar in sorted(_sidecars(folder)):
        try:
            record = read_record(sidecar)
        except ArtifactError as error:  # noqa: PERF203 - the others are of use without it
            problems.append(str(error))
        else:
            built.append((sidecar.with_suffix(""), record))
    return sorted(built, key=lambda one: one[1].built_at, reverse=True), problems


def fitting_sets(
    built: Collection[BuiltEngine], manifest: Manifest, machine: Machine, bundle: Path | None = None
) -> Fitting:
    """Put together encoder and head of each backend and precision that fit the bundle and this machine.

    Args:
        built: The engines, newest first.
        manifest: Of the bundle.
        machine: Where they are to run.
        bundle: The bundle's folder, for the commands; None for the model shipped.
    """
    sets = []
    reasons: dict[tuple[str, str], str] = {}
    for kind in dict.fromkeys((record.backend, record.precision) for _, record in built):
        chosen: dict[str, BuiltEngine] = {}
        refusals: dict[str, str] = {}
        for path, record in built:
            if (record.backend, record.precision) == kind and record.graph not in chosen:
                refused = incompatibilities(record, manifest, machine, bundle)
                if refused:
                    refusals.setdefault(record.graph, refused[0])
                else:
                    chosen[record.graph] = (path, record)
        missing = [graph for graph in ENGINE_GRAPHS if graph not in chosen]
        if not missing:
            sets.append(EngineSet(chosen["encoder"], chosen["head"]))
        else:
            backend, precision = kind
            incomplete = (
                f"The {precision.upper()} engines of {BACKEND_TITLES[backend]} have no {missing[0]}; build it with: "
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
