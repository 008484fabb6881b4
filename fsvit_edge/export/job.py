"""One build, planned: what of what by what, where to, and for whom."""

from dataclasses import dataclass
from pathlib import Path

from fsvit_edge.export.backend import Backend
from fsvit_edge.export.build_result import BuildOptions
from fsvit_edge.export.plan_builder import Range
from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.engines.store.files import engine_name
from fsvit_edge.runtime.machine import Machine


@dataclass(frozen=True)
class Job:
    """What is known before anything is built.

    Attributes:
        bundle: Of what.
        folder: Where the engines go.
        options: What was asked for.
        backend: What builds.
        precision: One of `PRECISIONS`.
        targets: See `PlanOptions`.
        machine: This one.
        sizes: What the sizes that vary may be in a plan.
    """

    bundle: Bundle
    folder: Path
    options: BuildOptions
    backend: Backend
    precision: str
    targets: tuple[str, ...]
    machine: Machine
    sizes: dict[str, Range]

    @property
    def runs_here(self) -> bool:
        """Whether what is built can run on this machine."""
        if self.backend.api is None:
            return True
        gpu = self.machine.gpu
        if gpu is None:
            return False
        return not self.targets or gpu.architecture in self.targets

    @property
    def limits(self) -> dict[str, int]:
        """Largest sizes that the head's plan takes."""
        return {} if self.backend.api is None else {name: top for name, (_, _, top) in self.sizes.items() if top > 1}

    def usual(self) -> dict[str, int]:
        """Return the sizes to time with."""
        return {name: usual for name, (_, usual, _) in self.sizes.items()}

    def file_name(self, graph: str) -> str:
        """Return a graph's file name, to which the digits of its sum are added."""
        if self.backend.name == "tensorrt":
            assert self.machine.gpu is not None
            return engine_name(graph, "tensorrt", self.backend.version, self.precision, self.machine.gpu)
        made_for = self.targets if self.backend.name == "tensorrt-rtx" else self.machine.arch
        return engine_name(graph, self.backend.name, self.backend.version, self.precision, made_for)
