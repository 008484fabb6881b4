import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.predictor import FewShotModel

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


def serve(model: LiveModel, requests: int) -> threading.Thread:
    """A loop that does so many requests, in a thread of its own."""

    def loop() -> None:
        before = len(done)
        while len(done) - before < requests:
            model.run_requests()
            time.sleep(0.001)

    done: list[int] = []
    original = model.run_requests

    def counted() -> None:
        if not model._waiting.empty():
            done.append(1)
        original()

    model.run_requests = counted  # type: ignore[method-assign]
    thread = threading.Thread(target=loop)
    thread.start()
    return thread


def test_a_change_is_known_when_its_answer_is(live: LiveModel) -> None:
    serving = serve(live, 2)
    live.update(lambda model: model.enroll("cup", [PICTURE]))
    assert (live.classes, live.revision) == (("cup",), 1)
    assert [support.has_mask for support in live.supports["cup"]] == [False]
    assert live.read(lambda model: model.classes) == ("cup",)
    assert live.revision == 1  # a look changes nothing
    serving.join()


def test_an_error_goes_to_who_asked_and_not_to_the_loop(live: LiveModel) -> None:
    serving = serve(live, 1)
    with pytest.raises(InputError, match="'cup' is not enrolled"):
        live.update(lambda model: model.remove("cup"))
    serving.join()


def test_a_request_that_nobody_does_in_time_is_never_done(live: LiveModel) -> None:
    done = []
    with pytest.raises(FsvitEdgeError, match=r"did not get to it within 0\.05 s; try again"):
        live.read(lambda _: done.append(1), timeout_s=0.05)
    live.run_requests()
    assert done == []


def test_too_many_requests_are_refused_at_once(live: LiveModel) -> None:
    def ask() -> None:
        with pytest.raises(FsvitEdgeError, match="The run has ended"):
            live.read(lambda _: None, timeout_s=10)

    waiting = [threading.Thread(target=ask) for _ in range(8)]
    for thread in waiting:
        thread.start()
    while live._waiting.qsize() < 8:
        time.sleep(0.001)
    with pytest.raises(FsvitEdgeError, match="Too many requests wait"):
        live.read(lambda _: None)
    live.close()  # refuses those that wait
    for thread in waiting:
        thread.join()
    with pytest.raises(FsvitEdgeError, match="The run has ended"):
        live.read(lambda _: None)


def test_the_first_frame_after_a_change_is_told_from_the_next(live: LiveModel) -> None:
    assert live.processing is None
    assert live.is_first_frame
    live.predict(PICTURE)
    assert not live.is_first_frame
    serving = serve(live, 1)
    live.update(lambda model: model.enroll("cup", [PICTURE]))
    serving.join()
    assert live.is_first_frame


def test_a_frame_is_known_while_it_is_judged(live: LiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int | None] = []
    monkeypatch.setattr(live._model, "predict", lambda _: seen.append(live.processing))
    live.predict(PICTURE)
    live.predict(PICTURE)
    assert (seen, live.processing) == ([0, 1], None)
