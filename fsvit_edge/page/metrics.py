"""The health of a run as metrics for Prometheus."""

from collections.abc import Iterable
from typing import get_args

from prometheus_client import Metric
from prometheus_client.registry import Collector

from fsvit_edge.live.health import Health, Percentiles, SourceState

_BOUND = "Share of frames like the empty scene, at most, in which a class is falsely found."


class HealthMetrics(Collector):
    """The health of a run, in seconds and bytes."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> list[Metric]:
        """See `Collector.collect`."""
        health, status, sinks = self._health, self._health.source_status, self._health.sinks
        stages = [one for stage, times in health.latency_ms.items() for one in _quantiles(times, stage=stage)]
        several = [(one.name, one.status) for one in health.sources] if len(health.sources) > 1 else []
        of_each = [({"source": name}, one) for name, one in several] or [({}, status)]
        states = [
            ({**labels, "state": state}, float(state == one.state))
            for labels, one in of_each
            for state in get_args(SourceState)
        ]
        ages = [({"source": one.name}, one.age_ms) for one in health.sources] if several else [({}, health.age_ms)]
        age = [one for labels, times in ages if times is not None for one in _quantiles(times, **labels)]
        return [
            _metric("gauge", "uptime_seconds", "Time since the run started.", health.uptime_s),
            _metric("gauge", "frames_per_second", "Frames processed per second, over the latest 5 s.", health.fps),
            _metric("gauge", "resident_memory_bytes", "Memory of the run.", health.memory_mb * 1e6),
            _metric("gauge", "classes", "Enrolled classes.", len(health.classes)),
            _metric("gauge", "scene_frames", "Pictures of the empty scene.", health.scene_frames),
            _metric("gauge", "false_alarm_bound", _BOUND, health.false_alarm_bound),
            *self._of_bank(),
            _metric(
                "gauge",
                "source_frozen",
                "1 if the camera repeats the same picture.",
                [(labels, float(one.is_frozen)) for labels, one in of_each],
            ),
            _metric("gauge", "source_state", "1 for the current state of the source.", states),
            _metric("counter", "frames", "Frames processed.", health.frames),
            _metric(
                "counter",
                "captured_frames",
                "Frames captured.",
                [(labels, float(one.captured)) for labels, one in of_each],
            ),
            _metric(
                "counter",
                "dropped_frames",
                "Frames replaced by a newer one before processing.",
                [(labels, float(one.dropped)) for labels, one in of_each],
            ),
            _metric(
                "counter",
                "reconnects",
                "Restarts of the source.",
                [(labels, float(one.reconnects)) for labels, one in of_each],
            ),
            _metric("gauge", "frame_age_seconds", "Time from capture to result.", age),
            _metric("gauge", "stage_seconds", "Time per stage.", stages),
            *(
                _metric(kind, f"sink_{name}", text, [({"sink": one.name}, float(value(one))) for one in sinks])
                for kind, name, text, value in (
                    ("counter", "written_frames", "Frames written by a sink.", lambda one: one.written),
                    ("counter", "dropped_frames", "Frames that a sink was too slow for.", lambda one: one.dropped),
                    ("gauge", "failed", "1 if a sink has stopped.", lambda one: bool(one.failure)),
                    ("gauge", "troubled", "1 if a sink has a problem for now.", lambda one: bool(one.trouble)),
                )
            ),
        ]

    def _of_bank(self) -> list[Metric]:
        bank = self._health.bank
        if bank is None:
            return []
        return [
            _metric("gauge", "bank_info", "The sum of the bank that answers.", [({"sha256": bank.sha256}, 1.0)]),
            _metric("gauge", "bank_troubled", "1 if no newer bank can be taken over now.", float(bool(bank.trouble))),
        ]


def _metric(kind: str, name: str, text: str, samples: float | Iterable[tuple[dict[str, str], float]]) -> Metric:
    metric = Metric(f"fsvit_edge_{name}", text, kind)
    for labels, value in [({}, samples)] if isinstance(samples, (int, float)) else samples:
        metric.add_sample(metric.name + ("_total" if kind == "counter" else ""), labels, float(value))
    return metric


def _quantiles(ms: Percentiles, **labels: str) -> list[tuple[dict[str, str], float]]:
    return [
        ({**labels, "quantile": name}, one / 1e3) for name, one in (("0.5", ms.p50), ("0.95", ms.p95), ("0.99", ms.p99))
    ]
