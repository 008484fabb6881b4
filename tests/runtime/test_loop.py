from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fsvit_edge.runtime.errors import FsvitEdgeError, InputError, SourceError
from fsvit_edge.runtime.frame import Frame
from fsvit_edge.runtime.loop import LoopStatistics, run_loop
from fsvit_edge.runtime.prediction import Prediction
from fsvit_edge.runtime.sinks.base import Sink, SinkClosedError
from fsvit_edge.runtime.sinks.open import open_sink
from fsvit_edge.runtime.sources.open import open_source


def frames(count: int, then: BaseException | None = None) -> Iterator[Frame]:
    for index in range(count):
        yield Frame(np.full((8, 8, 3), index, np.uint8), index, "test", 0.0, 0.0, 2.0)
    if then is not None:
        raise then


def judge(rgb: np.ndarray) -> Prediction:
    scores = np.array([rgb.mean() / 255], np.float32)
    return Prediction(("cat",), scores, scores > 0.5, np.zeros(rgb.shape[:2], np.uint8), None, {"encode": 3.0})


class Collect(Sink):
    def __init__(self, fail_at: int | None = None, error: BaseException | None = None) -> None:
        self.seen: list[int] = []
        self.fail_at = fail_at
        self.error = error

    def write(self, frame: Frame, prediction: Prediction) -> None:
        assert prediction.scores[0] == np.float32(frame.image.mean() / 255)
        if frame.index == self.fail_at and self.error is not None:
            raise self.error
        self.seen.append(frame.index)

    def _finish(self) -> None:
        pass


def test_every_frame_reaches_every_sink_in_order() -> None:
    sinks = [Collect(), Collect()]
    statistics = run_loop(frames(5), judge, sinks)
    assert [sink.seen for sink in sinks] == [[0, 1, 2, 3, 4]] * 2
    assert statistics.frames == 5
    assert not statistics.interrupted


def test_no_frame_beyond_the_limit_is_taken_from_the_source() -> None:
    source = frames(5)
    assert run_loop(source, judge, [], max_frames=3).frames == 3
    assert next(source).index == 3


@pytest.mark.parametrize("place", ["source", "predictor", "sink", "display"])
def test_ctrl_c_ends_the_run_with_the_statistics_so_far(place: str) -> None:
    def predictor(rgb: np.ndarray) -> Prediction:
        if place == "predictor" and rgb.max() == 3:
            raise KeyboardInterrupt
        return judge(rgb)

    def display(frame: Frame, _: Prediction, __: LoopStatistics) -> None:
        if place == "display" and frame.index == 2:
            raise KeyboardInterrupt

    source = frames(3, KeyboardInterrupt()) if place == "source" else frames(9)
    sink = Collect(3, KeyboardInterrupt()) if place == "sink" else Collect()
    statistics = run_loop(source, predictor, [sink], on_frame=display)
    assert statistics.interrupted
    assert statistics.frames == 3
    assert sink.seen == [0, 1, 2]
    assert statistics.latency_ms["encode"] == (3.0, 3.0)


def test_a_reader_that_has_gone_ends_the_run_quietly() -> None:
    statistics = run_loop(frames(9), judge, [Collect(4, SinkClosedError())])
    assert statistics.frames == 4
    assert not statistics.interrupted


@pytest.mark.parametrize("error", [SourceError("the camera is gone"), InputError("a bad picture")])
def test_errors_of_the_source_pass_through(error: FsvitEdgeError) -> None:
    sink = Collect()
    with pytest.raises(type(error), match=str(error)):
        run_loop(frames(2, error), judge, [sink])
    assert sink.seen == [0, 1]


def test_errors_of_a_sink_pass_through() -> None:
    with pytest.raises(FsvitEdgeError, match="disk"):
        run_loop(frames(2), judge, [Collect(1, FsvitEdgeError("the disk is full"))])


def test_the_display_sees_the_statistics_grow() -> None:
    seen = []
    run_loop(frames(3), judge, [], on_frame=lambda frame, _, so_far: seen.append((frame.index, so_far.frames)))
    assert seen == [(0, 1), (1, 2), (2, 3)]


def test_all_stages_are_timed_in_the_order_in_which_they_run() -> None:
    statistics = run_loop(frames(3), judge, [Collect()])
    assert list(statistics.latency_ms) == ["decode", "encode", "sinks"]
    assert statistics.latency_ms["decode"] == (2.0, 2.0)
    assert 0 < statistics.latency_ms["sinks"][0] < 100
    assert statistics.elapsed_s > 0
    assert statistics.fps == statistics.frames / statistics.elapsed_s


def test_a_run_without_frames_has_statistics_too() -> None:
    statistics = run_loop(frames(0), judge, [])
    assert (statistics.frames, statistics.fps, statistics.latency_ms) == (0, 0.0, {})


def test_percentiles_are_those_of_the_frames_so_far() -> None:
    statistics = LoopStatistics()
    for ms in range(1, 101):
        statistics.add({"encode": float(ms)}, elapsed_s=ms / 1000)
    assert statistics.latency_ms["encode"] == pytest.approx((50.5, 95.05))
    assert statistics.fps == pytest.approx(1000)


def test_memory_is_bounded_and_old_frames_are_forgotten() -> None:
    statistics = LoopStatistics()
    for frame in range(25_000):
        statistics.add({"encode": 900.0 if frame < 15_000 else 7.0}, elapsed_s=frame / 100 + 1)
    assert statistics.latency_ms["encode"] == (7.0, 7.0)
    assert sum(ring.nbytes for ring in statistics._stage_ms.values()) == 40_000


def test_a_folder_of_pictures_becomes_lines(tmp_path: Path) -> None:
    with open_sink(f"{tmp_path}/pictures/", 25.0) as pictures:
        run_loop(frames(3), judge, [pictures])
    with open_source(str(tmp_path / "pictures")) as source, open_sink(str(tmp_path / "out.jsonl"), 25.0) as lines:
        assert run_loop(source, judge, [lines]).frames == 3
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
