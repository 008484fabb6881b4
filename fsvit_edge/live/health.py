"""How a run fares, as one record that sinks, the page, files and the terminal share."""

from dataclasses import asdict, dataclass, field
from typing import Any

from fsvit_edge.live.sources.base import SourceStatus


@dataclass(frozen=True)
class SinkStatus:
    """How a sink fares.

    Attributes:
        name: Its URI, fit to print.
        written: Frames that it has taken.
        dropped: Frames that a newer one replaced before it took them.
        failure: Why it has stopped, in one sentence; empty while it goes on.
        trouble: What keeps it from its work for now, in one sentence; empty where nothing does.
    """

    name: str
    written: int = 0
    dropped: int = 0
    failure: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class Percentiles:
    """The 50th, 95th and 99th percentile of what was measured over the latest frames.

    Attributes:
        p50: The median.
        p95: 95 % are not above it.
        p99: 99 % are not above it.
    """

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Health:
    """How a run fares at one moment.

    Attributes:
        wall_time_s: Seconds since 1970 (UTC); jumps when the clock is set.
        monotonic_s: Seconds of a clock that never jumps and counts from the start of the machine.
        boot_id: Which start of the machine that is; empty where the system does not tell.
        uptime_s: Seconds since the run began.
        source: Name of the source.
        source_status: How it fares.
        model: Name of the network.
        engine: What computes.
        precision: What it computes in.
        classes: Names of the enrolled classes.
        frames: Frames that were judged.
        fps: Frames judged per second over the latest seconds.
        age_ms: Milliseconds from the capture of a frame to its result.
        latency_ms: Milliseconds of each stage, by name.
        memory_mb: Resident memory of this process and its capture process in 10^6 bytes.
        sinks: How each sink fares.
    """

    wall_time_s: float
    monotonic_s: float
    boot_id: str
    uptime_s: float
    source: str
    source_status: SourceStatus
    model: str
    engine: str
    precision: str
    classes: tuple[str, ...] = ()
    frames: int = 0
    fps: float = 0.0
    age_ms: Percentiles | None = None
    latency_ms: dict[str, Percentiles] = field(default_factory=dict)
    memory_mb: float = 0.0
    sinks: tuple[SinkStatus, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The same in JSON's terms, numbers rounded."""
        rounded: dict[str, Any] = _rounded(asdict(self))
        return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    return value
