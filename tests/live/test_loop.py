import numpy as np
from blank import film

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.loop import run_loop
from fsvit_edge.live.sources.files import FileSource
from fsvit_edge.live.statistics import RunStatistics


def predict(frame: Frame) -> Prediction:
    rgb = frame.image
    scores = np.array([rgb.mean() / 255], np.float32)
    return Prediction(
        ("cat",), scores, np.full_like(scores, 0.5), np.zeros(rgb.shape[:2], np.uint8), None, {"encode": 3.0}
    )


class Collect:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, frame: Frame, prediction: Prediction) -> None:
        assert prediction.scores[0] == np.float32(frame.image.mean() / 255)
        self.seen.append(frame.index)


def test_every_frame_is_delivered_in_order_with_its_own_prediction() -> None:
    collect, statistics = Collect(), RunStatistics()
    run_loop(film(5), predict, collect, statistics)
    assert collect.seen == [0, 1, 2, 3, 4]
    assert statistics.frames == 5


def test_no_frame_beyond_the_limit_is_read() -> None:
    frames = film(5)
    run_loop(frames, predict, Collect(), RunStatistics(), max_frames=3)
    assert next(frames).index == 3


def test_a_stop_request_ends_the_loop_between_two_frames() -> None:
    collect = Collect()
    run_loop(film(9), predict, collect, RunStatistics(), should_stop=lambda: len(collect.seen) == 4)
    assert collect.seen == [0, 1, 2, 3]


def test_other_threads_get_a_turn_before_each_frame_and_while_none_arrives() -> None:
    turns = []
    run_loop(film(3), predict, Collect(), RunStatistics(), between_frames=lambda: turns.append(1))
    assert len(turns) == 4  # the last one before the end

    class Silent(FileSource):
        def read(self, timeout_s: float) -> Frame | None:
            assert timeout_s <= 0.2
            return None

    silent = Silent(iter(()), name="silent")  # type: ignore[arg-type]
    turns.clear()
    run_loop(silent, predict, Collect(), RunStatistics(), lambda: len(turns) == 5, lambda: turns.append(1))
    assert len(turns) == 5


def test_all_stages_are_timed_in_order() -> None:
    statistics = RunStatistics()
    run_loop(film(3), predict, Collect(), statistics)
    assert list(statistics.latency_ms) == ["decode", "encode", "sinks"]
    assert vars(statistics.latency_ms["encode"]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0}
    assert 0 <= statistics.latency_ms["sinks"].p50 < 100
    assert statistics.age_ms is not None
    assert 0 <= statistics.age_ms.p99 < 1000
    assert statistics.fps == statistics.frames / statistics.elapsed_s


def test_a_frame_that_nobody_answers_is_tried_again_in_its_place() -> None:
    asked: list[int] = []

    def answers_late(frame: Frame) -> Prediction | None:
        asked.append(frame.index)
        return None if len(asked) in (2, 3) else predict(frame)

    collect, statistics = Collect(), RunStatistics()
    run_loop(film(4), answers_late, collect, statistics)
    assert asked == [0, 1, 1, 1, 2, 3]
    assert collect.seen == [0, 1, 2, 3]
    assert statistics.frames == 4


def test_a_live_source_gives_a_newer_frame_when_nobody_answers() -> None:
    asked: list[int] = []

    def answers_late(frame: Frame) -> Prediction | None:
        asked.append(frame.index)
        return None if frame.index in (1, 2) else predict(frame)

    source, collect = film(4), Collect()
    source.is_live = True
    run_loop(source, answers_late, collect, RunStatistics())
    assert asked == [0, 1, 2, 3]
    assert collect.seen == [0, 3]


def test_a_run_stops_although_nobody_answers() -> None:
    asked: list[int] = []
    run_loop(film(4), asked.append, Collect(), RunStatistics(), lambda: len(asked) == 5)  # type: ignore[arg-type]
    assert len(asked) == 5
