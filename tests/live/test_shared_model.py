import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.zones import parse_zone
from fsvit_edge.live import shared_model
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, InputError

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def loaded() -> Iterator[FewShotModel]:
    with FewShotModel.load(threads=1) as model:
        yield model


@pytest.fixture
def live(loaded: FewShotModel) -> LiveModel:
    for name in loaded.classes:
        loaded.remove(name)
    return LiveModel(loaded)


@contextmanager
def serving(model: LiveModel) -> Iterator[None]:
    """A loop that runs the requests, in its own thread."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(0.001):
            model.run_requests()

    thread = threading.Thread(target=loop)
    thread.start()
    yield
    stop.set()
    thread.join()


def test_a_change_is_visible_when_its_answer_arrives(live: LiveModel) -> None:
    with serving(live):
        live.update(lambda model: model.enroll("cup", [PICTURE]))
        assert (live.classes, live.revision) == (("cup",), 1)
        assert [support.has_mask for support in live.enrolled.supports["cup"]] == [False]
        assert live.read(lambda model: model.classes) == ("cup",)
        assert live.revision == 1  # reading changes nothing


def test_an_error_goes_to_the_thread_that_asked_and_not_to_the_loop(live: LiveModel) -> None:
    with serving(live):
        with pytest.raises(InputError, match="'cup' is not enrolled"):
            live.update(lambda model: model.remove("cup"))
        assert live.read(lambda model: model.classes) == ()


def test_a_request_that_times_out_never_runs(live: LiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_model, "_TIMEOUT_S", 0.05)
    done = []
    with pytest.raises(FsvitEdgeError, match=r"The model was busy for 0\.05 s; try again"):
        live.read(lambda _: done.append(1))
    live.run_requests()
    assert done == []


def test_a_request_that_has_begun_may_finish_after_its_time(live: LiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_model, "_TIMEOUT_S", 1.0)
    may_end = threading.Event()

    def slow(model: FewShotModel) -> None:
        model.enroll("cup", [PICTURE])
        may_end.wait(60)

    with serving(live):
        with pytest.raises(FsvitEdgeError, match=r"has not finished this within 1 s, but still may"):
            live.update(slow)
        assert (live.classes, live.revision) == ((), 0)
        may_end.set()
        wait_until(lambda: live.revision == 1)
        assert live.classes == ("cup",)


def test_a_change_that_fails_half_way_changes_nothing(live: LiveModel, loaded: FewShotModel) -> None:
    def fail(model: FewShotModel) -> None:
        model.enroll("cup", [PICTURE])
        raise FsvitEdgeError("The disk is full.")

    with serving(live):
        with pytest.raises(FsvitEdgeError, match="The disk is full"):
            live.update(fail)
        assert (loaded.classes, live.classes, live.revision) == ((), (), 0)
        with pytest.raises(FsvitEdgeError):
            live.read(fail)  # the control
        assert (loaded.classes, live.classes) == (("cup",), ())


def test_a_change_may_replace_the_bank(live: LiveModel, loaded: FewShotModel, tmp_path: Path) -> None:
    loaded.enroll("cup", [PICTURE])
    loaded.save_bank(tmp_path / "cups.safetensors")
    loaded.remove("cup")
    with serving(live):
        live.update(lambda model: model.load_bank(tmp_path / "cups.safetensors"))
    assert live.classes == loaded.classes == ("cup",)


@pytest.fixture
def scene(loaded: FewShotModel) -> Iterator[list[np.ndarray]]:
    """Pictures of the empty scene that the model has learned."""
    pictures = [np.random.default_rng(seed).integers(0, 256, PICTURE.shape, dtype=np.uint8) for seed in range(1, 4)]
    loaded.learn_scene(pictures)
    yield pictures
    loaded.forget_scene()


@pytest.mark.usefixtures("scene")
def test_frames_come_between_the_pictures_of_the_scene_that_a_changed_class_is_scored_on(
    live: LiveModel, loaded: FewShotModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded.scores_later = False
    at_once = loaded.bank_after(lambda model: model.enroll("cup", [PICTURE]))
    loaded.scores_later = True
    turns: list[str] = []
    run = loaded.network.encoder.run
    monkeypatch.setattr(loaded.network.encoder, "run", lambda feed: (turns.append("e"), run(feed))[1])

    with ThreadPoolExecutor(1) as threads:
        change = threads.submit(live.update, lambda model: model.enroll("cup", [PICTURE]))
        wait_until(lambda: live._waiting.qsize() == 1)
        live.run_requests()
        change.result(60)
        assert (turns, live.revision, live.enrolled.level_sources["cup"]) == (["e"], 1, "default")
        waiting = threads.submit(live.wait_for_scores)
        for count in (1, 2, 3):
            turns.clear()
            assert live.revision == 1
            live.run_requests()
            assert turns == ["e"], count
        assert live.revision == 2
        wait_until(lambda: bool(live._waiting.qsize() or waiting.done()))
        live.run_requests()
        waiting.result(60)
    assert turns == ["e"]  # nothing is left
    assert live.enrolled.level_sources["cup"] == at_once.level_source("cup") == "empty scene"
    assert loaded.bank.scene_scores("cup") == at_once.scene_scores("cup")


def test_a_picture_of_the_scene_that_cannot_be_read_fails_the_change_and_not_the_run(
    live: LiveModel, loaded: FewShotModel
) -> None:
    loaded.bank.set_scene([b"no picture"])
    with serving(live), pytest.raises(ArtifactError, match="cannot be read"):
        live.update(lambda model: model.enroll("cup", [PICTURE]))
    assert loaded.classes == ()
    live.run_requests()
    loaded.forget_scene()
    with serving(live):
        live.update(lambda model: model.enroll("cup", [PICTURE]))  # the control


def test_too_many_requests_are_refused_at_once(live: LiveModel) -> None:
    def ask() -> None:
        with pytest.raises(FsvitEdgeError, match="The run has ended"):
            live.read(lambda _: None)

    waiting = [threading.Thread(target=ask) for _ in range(8)]
    for thread in waiting:
        thread.start()
    wait_until(lambda: live._waiting.full())
    with pytest.raises(FsvitEdgeError, match="Too many requests are waiting"):
        live.read(lambda _: None)
    live.close()  # refuses the waiting ones
    for thread in waiting:
        thread.join()
    with pytest.raises(FsvitEdgeError, match="The run has ended"):
        live.read(lambda _: None)


def test_the_end_of_the_run_answers_those_that_wait_behind_one_that_timed_out(
    live: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shared_model, "_TIMEOUT_S", 0.05)
        with pytest.raises(FsvitEdgeError, match="The model was busy"):
            live.read(lambda _: None)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(live.read, lambda _: None)
        wait_until(lambda: live._waiting.qsize() == 2)
        live.close()
        with pytest.raises(FsvitEdgeError, match="The run has ended"):
            waiting.result(60)


def test_the_zones_of_the_run_replace_those_of_the_bank_in_every_answer(
    loaded: FewShotModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_bank, of_run = parse_zone("left=0,0,0.5,0,0.5,1"), parse_zone("right=0.5,0,1,0,1,1")
    monkeypatch.setattr(loaded.bank, "_zones", (of_bank,))
    assert LiveModel(loaded, (of_run,)).predict(PICTURE).zones == (of_run,)
    assert LiveModel(loaded).predict(PICTURE).zones == (of_bank,)


def test_the_first_frame_after_a_change_is_known(live: LiveModel) -> None:
    assert live.processing is None
    assert live.is_first_frame
    live.predict(PICTURE)
    assert not live.is_first_frame
    with serving(live):
        live.update(lambda model: model.enroll("cup", [PICTURE]))
    assert live.is_first_frame


def test_the_frame_being_processed_is_known(
    live: LiveModel, loaded: FewShotModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int | None] = []
    monkeypatch.setattr(loaded, "predict", lambda *_, **__: seen.append(live.processing))
    live.predict(PICTURE)
    live.predict(PICTURE)
    assert (seen, live.processing) == ([0, 1], None)


def test_each_support_of_a_frame_is_a_step(live: LiveModel, loaded: FewShotModel) -> None:
    for count in range(3):
        before = live.steps
        live.predict(PICTURE)
        assert live.steps - before >= count + 1
        loaded.enroll(f"class {count}", [PICTURE])


def test_requests_that_come_while_others_run_wait_for_the_next_frame(live: LiveModel) -> None:
    """Or a thread with many short requests would hold up the camera."""
    ran: list[str] = []

    def ask(name: str, request: Callable[[FewShotModel], None]) -> threading.Thread:
        thread = threading.Thread(target=lambda: (live.read(request), ran.append(name)))
        thread.start()
        return thread

    def ask_again(_: FewShotModel) -> None:
        threads.append(ask("second", lambda _: None))
        wait_until(lambda: live._waiting.qsize() == 1)

    threads = [ask("first", ask_again)]
    wait_until(lambda: live._waiting.qsize() == 1)
    live.run_requests()
    threads[0].join()
    assert ran == ["first"]
    live.run_requests()
    threads[1].join()
    assert ran == ["first", "second"]  # the control


@pytest.mark.parametrize(("seconds", "at_once"), [(0.3, 1), (0.0, 4)], ids=["slow", "quick"])
def test_slow_requests_that_wait_together_let_frames_come_between(
    live: LiveModel, seconds: float, at_once: int
) -> None:
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(live.read, lambda _: time.sleep(seconds)) for _ in range(4)]
        wait_until(lambda: live._waiting.qsize() == 4)
        live.run_requests()
        assert 4 - live._waiting.qsize() == at_once
        while live._waiting.qsize():
            live.run_requests()
        for one in waiting:
            one.result(60)


@pytest.mark.parametrize(("has_frames", "lowest", "highest"), [(True, 0.07, 0.09), (False, 0.99, 1.0)])
def test_requests_without_a_pause_get_a_twelfth_of_the_time_while_frames_come(
    live: LiveModel, monkeypatch: pytest.MonkeyPatch, has_frames: bool, lowest: float, highest: float
) -> None:
    now_s = asked_s = 0.0

    def take(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    def ask(_: FewShotModel) -> None:
        nonlocal asked_s
        asked_s += 0.3
        take(0.3)

    monkeypatch.setattr(live, "_counted_s", 0.0)
    monkeypatch.setattr(shared_model, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(live._model, "predict", lambda *_, **__: take(0.05))
    while now_s < 100:
        while not live._waiting.full():
            live._waiting.put((ask, Future(), False))
        live.run_requests()
        if has_frames:
            live.predict(PICTURE)
    assert lowest <= asked_s / now_s <= highest


def test_a_request_that_comes_while_the_run_ends_is_answered_at_once(
    live: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = live._waiting.put
    monkeypatch.setattr(live._waiting, "put", lambda item, timeout: (live.close(), put(item, timeout=timeout)))
    started_s = time.monotonic()
    with pytest.raises(FsvitEdgeError, match="The run has ended"):
        live.read(lambda _: None)
    assert time.monotonic() - started_s < 10  # not the 30 s that a request may wait


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_after_a_long_request_the_next_comes_before_who_asks_gives_up(
    live: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = started_s = time.monotonic()
    monkeypatch.setattr(shared_model, "time", SimpleNamespace(monotonic=lambda: now_s))
    ran_s: list[float] = []

    def long(_: FewShotModel) -> None:
        nonlocal now_s
        now_s += 3.5
        ran_s.append(now_s)

    for _ in range(2):
        live._waiting.put((long, Future(), False))
    while len(ran_s) < 2 and now_s < started_s + 100:
        live._frame_s = now_s
        live.run_requests()
        now_s += 0.1  # a frame
    assert shared_model._IDLE_S < ran_s[1] - 3.5 - ran_s[0] < shared_model._TIMEOUT_S


def test_a_thread_that_no_person_waits_for_waits_for_room_and_for_its_turn(
    live: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_model, "_TIMEOUT_S", 0.05)
    for _ in range(shared_model._MAX_WAITING):
        live._waiting.put((lambda _: None, Future(), False))
    with ThreadPoolExecutor(1) as threads:
        patient = threads.submit(live.read, lambda _: "answer", 30.0)
        time.sleep(0.2)
        with pytest.raises(FsvitEdgeError, match="Too many requests are waiting"):
            live.read(lambda _: None)
        with serving(live):
            assert patient.result(60) == "answer"
