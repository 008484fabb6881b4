from types import SimpleNamespace

import pytest

from fsvit_edge.live import statistics
from fsvit_edge.live.statistics import RunStatistics


def test_a_run_without_frames_has_statistics() -> None:
    statistics = RunStatistics()
    assert (statistics.frames, statistics.fps, statistics.recent_fps) == (0, 0.0, 0.0)
    assert (statistics.age_ms, statistics.latency_ms) == (None, {})


def test_percentiles_cover_the_frames_so_far() -> None:
    statistics = RunStatistics()
    for ms in range(1, 101):
        statistics.add({"encode": float(ms)}, age_ms=2.0 * ms)
    encode, age = statistics.latency_ms["encode"], statistics.age_ms
    assert age is not None
    assert (encode.p50, encode.p95, encode.p99) == pytest.approx((50.5, 95.05, 99.01))
    assert (age.p50, age.p95, age.p99) == pytest.approx((101.0, 190.1, 198.02))


def test_only_the_latest_ten_thousand_frames_count() -> None:
    statistics = RunStatistics()
    for frame in range(25_000):
        statistics.add({"encode": 900.0 if frame < 15_000 else 7.0}, age_ms=1.0)
    assert statistics.latency_ms["encode"].p99 == 7.0
    assert statistics.frames == 25_000


def test_the_recent_rate_covers_the_latest_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(statistics, "time", SimpleNamespace(monotonic=lambda: now_s))
    run = RunStatistics()
    for _ in range(10):
        run.add({}, 1.0)
    now_s = 2.0
    assert run.recent_fps == 5.0
    now_s = 100.0  # time has passed without a frame
    assert run.recent_fps == 0
