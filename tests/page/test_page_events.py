"""The events of a run in the page's HTTP API; test_events_in_browser.py has the list that a person sees."""

import threading
import weakref
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from served_page import Served, enroll, serve
from told_events import event, show_frame, visit

from fsvit_edge.fewshot.overlay import PALETTE
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.events import Event, event_record
from fsvit_edge.live.sink_worker import SinkWorker
from fsvit_edge.live.sinks.snapshots import SnapshotSink
from fsvit_edge.page import event_log
from fsvit_edge.page.event_log import EventLog
from fsvit_edge.runtime.pictures import read_image

KEPT = 50
CORNER, IN_THE_CLASS = (5, 5), (112, 130)


def listed(served: Served) -> list[dict[str, Any]]:
    answer = served.client.get("/api/events")
    assert answer.status_code == 200
    found: list[dict[str, Any]] = answer.json()
    return found


def picture_of(served: Served, number: int) -> np.ndarray:
    answer = served.client.get(f"/api/events/{number}.jpg")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    return cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)


def hex_of(way: int) -> str:
    return "#" + bytes(PALETTE[way]).hex()


def state(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = served.client.get("/api/state").json()
    return found


def test_events_are_listed_newest_first_with_the_fields_that_other_sinks_write(served: Served) -> None:
    assert listed(served) == []
    told = visit("cup", 1_700_000_000.0, 4.0, ("door", "bed"))
    for one in told:
        served.page.tell(one)
    left, appeared = listed(served)
    assert (left["number"], appeared["number"]) == (2, 1)
    for shown, one in ((appeared, told[0]), (left, told[1])):
        assert {**shown, **event_record(one)} == shown
    assert (appeared["duration_s"], left["duration_s"]) == (None, 4.0)
    assert (appeared["zones"], left["zones"]) == (["door"], ["door", "bed"])


def test_the_state_says_whether_there_is_news(served: Served) -> None:
    before = state(served)
    served.page.tell(event())
    after = state(served)
    assert (before["events"]["newest"], after["events"]["newest"]) == (0, 1)
    assert before["run_id"] == after["run_id"]


def test_the_state_says_whether_events_are_told(served: Served) -> None:
    for is_steady in (True, False):
        show_frame(served, is_steady)
        assert state(served)["events"]["are_told"] == is_steady


def test_before_the_first_frame_no_events_are_promised(loaded: FewShotModel, tmp_path: Path) -> None:
    with serve(loaded, tmp_path / "bank.safetensors") as fresh:
        assert state(fresh)["events"] == {"are_told": False, "newest": 0}


def test_the_picture_is_the_one_that_a_snapshot_shows(served: Served, tmp_path: Path) -> None:
    served.page.tell(event(gray=80))
    with SnapshotSink(tmp_path, 1) as sink:
        sink.tell(event(gray=80))
    (path,) = tmp_path.iterdir()
    shown, snapshot = picture_of(served, 1), read_image(path).astype(int)
    assert shown.shape == snapshot.shape == (180, 320, 3)
    assert np.abs(shown - snapshot).mean() < 1
    assert np.abs(shown - 80).mean() > 3  # the class and its name are drawn in


def test_the_class_is_drawn_in_its_color_on_the_page(served: Served) -> None:
    for name in ("cup", "mug"):
        enroll(served, name)
    for name in ("cup", "mug"):
        served.page.tell(event(name=name))
    assert [one["color"] for one in listed(served)] == [hex_of(1), hex_of(0)]
    pictures = [picture_of(served, number) for number in (1, 2)]
    for way, shown in enumerate(pictures):
        assert np.abs(shown[CORNER] - 50).max() < 5
        tinted = 0.55 * 50 + 0.45 * np.array(PALETTE[way])
        assert np.abs(shown[IN_THE_CLASS] - tinted).max() < 12


def test_a_removed_class_leaves_in_the_color_in_which_it_came(served: Served) -> None:
    for name in ("cup", "mug"):
        enroll(served, name)
    served.page.tell(event(name="mug"))
    served.client.delete("/api/classes", params={"name": "mug"})
    served.page.tell(event("left", name="mug"))
    assert [(one["event"], one["color"]) for one in listed(served)] == [("left", hex_of(1)), ("appeared", hex_of(1))]


def test_the_latest_fifty_are_kept(served: Served) -> None:
    for number in range(KEPT + 3):
        served.page.tell(event(gray=number))
    numbers = [one["number"] for one in listed(served)]
    assert numbers == list(range(KEPT + 3, 3, -1))
    assert picture_of(served, KEPT + 3)[CORNER] == pytest.approx(KEPT + 2, abs=3)
    gone = served.client.get("/api/events/3.jpg")
    error = "Event 3 is not one of the latest 50; GET /api/events lists them."
    assert (gone.status_code, gone.json()) == (400, {"error": error})
    refused = served.client.get("/api/events/first.jpg")
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("Parameter number must be a valid integer")


def raw_pictures_alive(told: list[Event], log: EventLog) -> int:
    """How many of the raw pictures are still in memory after they were told; empties the list."""
    pictures = [weakref.ref(one.best.picture) for one in told]
    while told:
        log.add(told.pop(0), ["cup"])
    return sum(picture() is not None for picture in pictures)


def bytes_kept(count: int) -> int:
    log = EventLog()
    for _ in range(count):
        log.add(event(), ["cup"])
    return sum(len(kept.jpeg) for kept in log.newest_first())


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog()
    assert raw_pictures_alive([event() for _ in range(3)], log) == 0
    assert bytes_kept(200) == bytes_kept(KEPT)

    held = [event() for _ in range(3)]
    assert raw_pictures_alive([*held], log) == len(held)  # control: someone else holds them
    monkeypatch.setattr(event_log, "MAX_EVENTS", 1000)
    assert bytes_kept(200) == 4 * bytes_kept(KEPT)  # control: without the bound


def test_pictures_are_encoded_in_the_thread_of_the_sink(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def note(_: object) -> bytes:
        threads.append(threading.current_thread().name)
        return b"jpeg"

    monkeypatch.setattr(event_log, "encode_jpeg", note)
    served.page.tell(event())  # control: from this thread
    worker = SinkWorker(served.page, "the page", is_live=True, on_end=lambda *_: None)
    worker.tell(event())
    assert worker.finish()
    assert threads == [threading.current_thread().name, "sink the page"]
