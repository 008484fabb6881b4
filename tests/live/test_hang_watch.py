from fsvit_edge.live.hang_watch import HangWatch


def looks_until_it_hangs(watch: HangWatch, processing: int, is_first: bool = False) -> int:
    for count in range(1, 100_000):
        if watch.check(processing, is_first):
            return count
    raise AssertionError("never")


def judge(watch: HangWatch, frames: int, looks_each: int) -> None:
    for frame in range(frames):
        assert not any(watch.check(frame, frame == 0) for _ in range(looks_each))


def test_ten_seconds_are_too_many_for_a_fast_model() -> None:
    watch = HangWatch(0.1)
    judge(watch, 5, 1)
    assert 100 <= looks_until_it_hangs(watch, 5) <= 103


def test_a_slow_model_has_ten_times_its_longest_frame() -> None:
    watch = HangWatch(0.1)
    judge(watch, 3, 80)
    assert 780 <= looks_until_it_hangs(watch, 3) <= 805


def test_the_first_frame_may_take_minutes() -> None:
    watch = HangWatch(0.1)
    assert not any(watch.check(0, True) for _ in range(2000))
    assert 100 <= looks_until_it_hangs(watch, 1) <= 103  # and says nothing of the next
    assert 3000 <= looks_until_it_hangs(watch, 2, is_first=True) <= 3003


def test_waiting_for_frames_is_no_hanging() -> None:
    watch = HangWatch(0.1)
    judge(watch, 2, 1)
    assert not any(watch.check(None, False) for _ in range(10_000))


def test_frames_between_two_looks_begin_the_count_again() -> None:
    watch = HangWatch(0.1)
    judge(watch, 2, 1)
    assert not any(watch.check(2 + look // 50, False) for look in range(10_000))
