"""The health of a run, its source and its sinks: one record that sinks, the page, files and the terminal share."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fsvit_edge.remote.status import HEALTHY_BOX, BoxCondition, BoxStatus

SourceState = Literal["connecting", "live", "lost"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Condition(NamedTuple):
    """The part of a source's status that people are told about when it changes; see `SourceStatus`."""

    state: SourceState
    is_frozen: bool
    message: str


HEALTHY = Condition("live", is_frozen=False, message="")
"""The condition of a source that has no problem; a file is always in it."""
ALL_WELL = (HEALTHY, HEALTHY_BOX)
"""The condition of a run that has no problem."""


@dataclass(frozen=True)
class SourceStatus:
    """The state of a source."""

    state: SourceState  # "connecting" until the first frame; "lost" while a live source is restarted; a file is "live"
    since_s: float  # when this state began, monotonic
    captured: int = 0  # frames delivered by the source, including dropped ones
    dropped: int = 0  # frames replaced by a newer one before they were read
    reconnects: int = 0  # how often a live source was restarted
    is_frozen: bool = False  # the same pixels have been repeated for so long that the camera must hang
    message: str = ""  # what is wrong, in one sentence that is safe to print; empty if nothing is
    declared_frames: int | None = None  # that a video file says it has; None if it does not say
    left_out: int = 0  # pictures of a folder that cannot be read

    @property
    def condition(self) -> Condition:
        """What people are told about when it changes."""
        return Condition(self.state, self.is_frozen, self.message)


@dataclass(frozen=True)
class SinkStatus:
    """The state of a sink."""

    name: str  # its URI, safe to print
    written: int = 0  # frames that it has taken and delivered
    dropped: int = 0  # frames replaced by a newer one before it took them, or that it could not deliver
    failure: str = ""  # why it has stopped, in one sentence; empty while it works
    trouble: str = ""  # what is wrong for now, in one sentence; empty if nothing is


@dataclass(frozen=True)
class BankStatus:
    """The state of a bank that is followed, see `BankFollower`; times are seconds since 1970 (UTC)."""

    origin: str  # Where it comes from, safe to print.
    sha256: str = ""  # Of the file that answers, in hexadecimal.
    since_s: float = 0.0  # When it began to answer in this run.
    is_copy: bool = False  # Whether it is a copy from before, because the origin's own could not be had or was refused.
    asked_s: float | None = None  # When the origin last answered; null before.
    trouble: str = ""  # Why no newer one can be taken over now, in one sentence; empty if nothing is wrong.
    trouble_since_s: float | None = None  # When a trouble of this kind began; null if nothing is wrong.
    last_refusal: str = ""  # Why a bank or its signature was refused last, in one sentence; empty if none was.
    last_refusal_s: float | None = None  # When; null if none was.

    def news(self, before: "BankStatus | None") -> list[str]:
        """What to tell people who know the state before, None at the start, line by line.

        A trouble is told when it begins, and not again when its text changes: each poll may fail in another way.
        """
        told = []
        if before is not None and self.sha256 != before.sha256:
            told.append(f"{self.sha256:.12} answers now.")
        known_s = None if before is None else before.trouble_since_s
        if self.trouble_since_s != known_s and (self.trouble or not told):
            told.append(self.trouble or "It is working again.")
        return [f"Bank {self.origin}: {line}" for line in told]


@dataclass(frozen=True)
class Percentiles:
    """The 50th, 95th and 99th percentile of a measurement over the latest frames."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class SourceHealth:
    """The health of one source of a run."""

    name: str  # its name, safe to print
    status: SourceStatus
    has_ended: bool = False  # whether the run goes on without it; its state stays what it was
    frames: int = 0  # frames processed
    fps: float = 0.0  # frames processed per second, over the latest 5 seconds
    age_ms: Percentiles | None = None  # milliseconds from the capture of a frame to its result; None before the first

    def __str__(self) -> str:
        """Its part of a line of statistics for people."""
        frozen, age = " (frozen)" if self.status.is_frozen else "", self.age_ms
        parts = [
            f"{self.name}: {'ended' if self.has_ended else self.status.state}{frozen}",
            f"{self.frames} frames",
            f"{self.fps:.1f} frames/s",
            f"{self.status.dropped} dropped",
        ]
        if age is not None:
            parts.append(f"age p50/p95/p99 {age.p50:.0f}/{age.p95:.0f}/{age.p99:.0f} ms")
        return ", ".join(parts)


@dataclass(frozen=True)
class Health:
    """The health of a run at one moment."""

    wall_time_s: float  # Seconds since 1970 (UTC); jumps when the clock is set.
    monotonic_s: float  # Seconds since the machine started; never jumps.
    boot_id: str  # Identifies that boot of the machine; empty if unknown.
    uptime_s: float  # Seconds since the run began.
    source: str  # Name of the source, or of all.
    source_status: SourceStatus  # State of the source; of several, the worst state, and the sums of their numbers.
    model: str  # Name of the network.
    engine: str  # Engine that runs it.
    precision: str  # Precision of the engine.
    classes: tuple[str, ...] = ()  # Names of the enrolled classes.
    frames: int = 0  # Frames processed.
    fps: float = 0.0  # Frames processed per second, over the latest 5 seconds.
    age_ms: Percentiles | None = None  # Milliseconds from the capture of a frame to its result; None before the first.
    latency_ms: dict[str, Percentiles] = field(default_factory=dict)  # Milliseconds of each stage, by name.
    memory_mb: float = 0.0  # Resident memory of this process and its capture process in 10^6 bytes.
    sinks: tuple[SinkStatus, ...] = ()  # State of each sink.
    scene_frames: int = 0  # Pictures of the empty scene that the bank has.
    false_alarm_bound: float = 1.0  # Share of frames like these, at most, with a false alarm, in 95 of 100 cases.
    sources: tuple[SourceHealth, ...] = ()  # The health of each source.
    not_live: tuple[str, ...] = ()  # Names of the sources that are connecting or lost, and the box's while it is lost.
    bank: BankStatus | None = None  # State of the bank that is followed; None if none is.
    box: BoxStatus | None = None  # State of the box that answers; None if the model is here.

    @property
    def condition(self) -> tuple[Condition, BoxCondition]:
        """What people are told about when it changes: of the source, and of the box."""
        return self.source_status.condition, HEALTHY_BOX if self.box is None else self.box.condition

    def by_source(self) -> "tuple[Health, ...]":
        """The health of a run of each source alone; the times of the stages and the memory are those of all."""
        if len(self.sources) < 2:
            return (self,)
        return tuple(
            replace(
                self,
                source=one.name,
                source_status=one.status,
                frames=one.frames,
                fps=one.fps,
                age_ms=one.age_ms,
                sources=(one,),
                not_live=names_not_live((one,), self.box),
            )
            for one in self.sources
        )

    def of(self, source: str | None) -> "Health":
        """The health of a run of one source alone; of all if it is None."""
        return next((one for one in self.by_source() if one.source == source), self)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON, with numbers rounded to 3 decimals."""
        rounded: dict[str, Any] = _rounded(asdict(self))
        return rounded

    def __str__(self) -> str:
        """One line of statistics for people."""
        whole = SourceHealth(self.source, self.source_status, False, self.frames, self.fps, self.age_ms)
        parts = [str(whole)]
        parts += [f"{stage} {times.p50:.1f}" for stage, times in self.latency_ms.items()]
        parts.append(f"{self.memory_mb:.0f} MB")
        if self.box is not None and self.box.trouble:
            parts.append("box lost" if self.box.state == "lost" else "box in trouble")
        failed = [sink.name for sink in self.sinks if sink.failure]
        if failed:
            parts.append(f"failed: {', '.join(failed)}")
        return ", ".join(parts)


def names_not_live(sources: Iterable[SourceHealth], box: BoxStatus | None) -> tuple[str, ...]:
    """Return the names for `Health.not_live`."""
    lost = () if box is None or box.state == "live" else (box.address,)
    return (*(one.name for one in sources if one.status.state != "live"), *lost)


def read_boot_id() -> str:
    """Identify the current boot of the machine; empty if unknown."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
