"""How a run fares, as Prometheus reads it."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fsvit_edge.live.health import Health, Percentiles

_STATES = ("connecting", "live", "lost")


def metrics_text(health: Health) -> bytes:
    """Write a run's health in Prometheus' text format, version 0.0.4; times are in seconds, sizes in bytes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(health))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        health, status = self._health, self._health.source_status
        yield _gauge("uptime_seconds", "Time since the run began.", health.uptime_s)
        yield _gauge("frames_per_second", "Frames judged per second over the latest 5 seconds.", health.fps)
        yield _gauge("resident_memory_bytes", "Memory of the run and its capture process.", health.memory_mb * 1e6)
        yield _gauge("classes", "Enrolled classes.", len(health.classes))
        yield _gauge("source_frozen", "1 where the camera repeats the same pixels.", float(status.is_frozen))
        state = GaugeMetricFamily("fsvit_edge_source_state", "1 for the state of the source.", labels=["state"])
        for name in _STATES:
            state.add_metric([name], float(name == status.state))
        yield state
        yield _counter("frames", "Frames judged.", health.frames)
        yield _counter("captured_frames", "Frames that the source delivered.", status.captured)
        yield _counter("dropped_frames", "Frames that a newer one replaced before they were judged.", status.dropped)
        yield _counter("reconnects", "Restarts of the source.", status.reconnects)
        if health.age_ms is not None:
            age = GaugeMetricFamily("fsvit_edge_frame_age_seconds", "From capture to result.", labels=["quantile"])
            _add_quantiles(age, [], health.age_ms)
            yield age
        latency = GaugeMetricFamily("fsvit_edge_stage_seconds", "Time of a stage.", labels=["stage", "quantile"])
        for stage, percentiles in health.latency_ms.items():
            _add_quantiles(latency, [stage], percentiles)
        yield latency
        for name, text in (("written", "Frames that a sink took."), ("dropped", "Frames that a sink had no time for.")):
            frames = CounterMetricFamily(f"fsvit_edge_sink_{name}_frames", text, labels=["sink"])
            for sink in health.sinks:
                frames.add_metric([sink.name], float(getattr(sink, name)))
            yield frames
        for name, field, text in (
            ("failed", "failure", "1 where a sink has stopped."),
            ("troubled", "trouble", "1 where something keeps a sink from its work for now."),
        ):
            ailing = GaugeMetricFamily(f"fsvit_edge_sink_{name}", text, labels=["sink"])
            for sink in health.sinks:
                ailing.add_metric([sink.name], float(bool(getattr(sink, field))))
            yield ailing


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"fsvit_edge_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"fsvit_edge_{name}", text, value=value)


def _add_quantiles(family: GaugeMetricFamily, labels: list[str], percentiles: Percentiles) -> None:
    for quantile, ms in (("0.5", percentiles.p50), ("0.95", percentiles.p95), ("0.99", percentiles.p99)):
        family.add_metric([*labels, quantile], ms / 1e3)
