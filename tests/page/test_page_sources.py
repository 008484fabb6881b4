"""The page of a run of several sources: each has its own picture, answers and button, and they share the classes."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect
from served_page import Served, health, serve, shooting, streamed
from test_zones_in_browser import opened

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.events import EventDetector
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health, SourceHealth, SourceStatus
from fsvit_edge.live.sink_worker import SinkWorker
from fsvit_edge.live.sinks.base import Sink
from fsvit_edge.page.sink import PageSink

SHADES = {"door": 60, "hall": 200}


def both(hall: SourceStatus = SourceStatus("live", 0.0, 5, 3)) -> Health:  # noqa: B008 - frozen
    sources = (
        SourceHealth("door", SourceStatus("live", 0.0, 9, 1), False, 8, 4.0, None),
        SourceHealth("hall", hall, False, 2, 1.0, None),
    )
    return replace(health(), source="door, hall", sources=sources, sinks=())


def shoot(page: PageSink, index: int) -> None:
    """A frame of each source: the hall looks a little like a cup."""
    for name, shade in SHADES.items():
        image = np.full((48, 64, 3), shade + index % 2, np.uint8)
        score = np.array([0.4 if name == "hall" else 0.1], np.float32)
        labels = np.zeros((48, 64), np.uint8)
        frame = Frame(image, index, name, 0.0, time.monotonic(), 1.0, camera=name)
        level, steady = np.array([0.5], np.float32), np.array([False])
        page.write(frame, Prediction(("cup",), score, level, labels, None, {}, steady_present=steady))


@pytest.fixture
def two(loaded: FewShotModel, tmp_path: Path) -> Iterator[Served]:
    with serve(loaded, tmp_path / "bank.safetensors") as served:
        served.model.update(lambda model: model.enroll("cup", [np.full((48, 64, 3), 9, np.uint8)]))
        served.page.report(both())
        shoot(served.page, 0)
        with shooting(lambda index: shoot(served.page, index), 0.05):
            yield served


def shade_of(jpeg: bytes) -> int:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return int(image[2, 60])


def frozen(client: httpx.Client, query: str) -> int:
    made = client.post(f"/api/frames{query}")
    assert made.status_code == 201
    return shade_of(client.get(f"/api/frames/{made.json()['id']}.jpg").content)


@pytest.mark.parametrize(
    ("query", "name", "score", "dropped"),
    [("", "door", 0.1, 1), ("?source=door", "door", 0.1, 1), ("?source=hall", "hall", 0.4, 3)],
)
def test_each_source_has_its_own_state_and_picture(
    two: Served, query: str, name: str, score: float, dropped: int
) -> None:
    state = two.client.get(f"/api/state{query}").json()
    assert (state["source"], state["health"]["source"], state["classes"][0]["score"]) == (name, name, score)
    assert state["health"]["source_status"]["dropped"] == dropped
    assert [(one["name"], one["state"]) for one in state["sources"]] == [("door", "live"), ("hall", "live")]
    assert abs(frozen(two.client, query) - SHADES[name]) <= 3
    assert abs(shade_of(streamed(two.client, query)) - SHADES[name]) <= 3


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/state"), ("GET", "/api/stream.mjpg"), ("POST", "/api/frames"), ("POST", "/api/scene")],
)
def test_a_source_that_does_not_exist_is_refused(two: Served, method: str, path: str) -> None:
    answer = two.client.request(method, f"{path}?source=yard")
    assert (answer.status_code, answer.json()["error"][:29]) == (400, "There is no source 'yard'; GE")


@pytest.mark.usefixtures("briefly")
def test_the_empty_scene_is_learned_from_the_source_that_is_asked_for(two: Served) -> None:
    assert two.client.post("/api/scene?source=hall").status_code == 201
    learned = two.model.read(lambda model: list(model.bank.scene))
    shades = [shade_of(one) for one in learned]
    assert shades
    assert all(abs(shade - SHADES["hall"]) <= 4 for shade in shades)


def test_metrics_have_a_label_for_each_source_and_none_for_one(two: Served, served: Served) -> None:
    text = two.client.get("/metrics").text
    assert 'fsvit_edge_dropped_frames_total{source="door"} 1.0' in text
    assert 'fsvit_edge_dropped_frames_total{source="hall"} 3.0' in text
    assert "fsvit_edge_dropped_frames_total 2.0" in served.client.get("/metrics").text


def test_health_names_the_source_that_is_lost(two: Served) -> None:
    assert two.client.get("/health").status_code == 200
    lost = SourceStatus("lost", 0.0, 5, 3, message="hall stopped delivering frames.")
    two.page.report(replace(both(lost), source_status=lost, not_live=("hall",)))
    answer = two.client.get("/health")
    assert (answer.status_code, answer.json()["not_live"]) == (503, ["hall"])
    messages = {one["name"]: one["status"]["message"] for one in answer.json()["sources"]}
    assert messages == {"door": "", "hall": "hall stopped delivering frames."}


def test_one_source_has_no_list(served: Served) -> None:
    state = served.client.get("/api/state").json()
    assert (state["source"], state["sources"]) == ("", [])


def test_a_slow_page_gets_frames_of_every_source() -> None:
    # A queue for one frame would always keep that of the source that comes last.
    class Slow(Sink):
        def write(self, frame: Frame, prediction: Prediction) -> None:  # noqa: ARG002 - the contract
            turns.acquire()
            taken.append(frame.camera)

        def _finish(self) -> None:
            pass

    taken: list[str] = []
    turns = threading.Semaphore(0)
    worker = SinkWorker(Slow(), "slow", True, lambda *_: None)
    none = np.zeros(0, np.float32)
    answer = Prediction((), none, none, np.zeros((4, 4), np.uint8), None, {})
    for index in range(10):
        for name in SHADES:
            worker.put(Frame(np.zeros((4, 4, 3), np.uint8), index, name, 0.0, 0.0, 0.0, camera=name), answer)
        turns.release()  # it takes one of two frames
        while len(taken) <= index:
            time.sleep(0.001)
    turns.release(len(SHADES))
    worker.finish()
    assert min(taken.count(name) for name in SHADES) >= 3


@pytest.mark.main_way
def test_a_person_chooses_the_source_that_is_shown(two: Served, chromium: Browser) -> None:
    with opened(chromium, two.page.address) as page:
        door, hall = (page.get_by_role("button", name=name, exact=True) for name in SHADES)
        expect(door).to_have_attribute("aria-pressed", "true")
        expect(page.locator(".class .score")).to_have_text("0.10")
        assert "source=" not in str(page.locator("#live").get_attribute("src"))
        hall.click()
        expect(hall).to_have_attribute("aria-pressed", "true")
        expect(door).to_have_attribute("aria-pressed", "false")
        expect(page.locator(".class .score")).to_have_text("0.40")
        expect(page.locator("#dropped")).to_have_text("3")
        assert "source=hall" in str(page.locator("#live").get_attribute("src"))
        assert abs(_shade_seen(page) - SHADES["hall"]) <= 4

        with page.expect_request("**/api/frames?source=hall"):
            page.get_by_role("button", name="Add a class").click()
        page.keyboard.press("Escape")

        two.page.report(both(SourceStatus("lost", 0.0, 5, 3, message="The camera is gone.")))
        expect(hall).to_have_attribute("title", "hall: lost")
        expect(page.locator("#banner")).to_have_text("The camera is gone.")
        door.click()
        expect(page.locator("#banner")).to_be_hidden()


def test_visits_of_two_sources_are_listed_apart_with_their_source(two: Served, chromium: Browser) -> None:
    one = np.array([0.9], np.float32)
    for name in SHADES:
        frame = Frame(np.zeros((48, 64, 3), np.uint8), 0, name, time.time(), 0.0, 1.0, camera=name)
        labels, steady = np.zeros((48, 64), np.uint8), np.array([True])
        prediction = Prediction(("cup",), one, one - 0.4, labels, None, {}, steady_present=steady)
        for event in EventDetector().update(frame, prediction, 0.0):
            two.page.tell(event)
    events = two.client.get("/api/events").json()
    assert [event["source"] for event in events] == ["hall", "door"]
    with opened(chromium, two.page.address) as page:
        shown = page.locator("#visits .best")
        expect(shown).to_have_text(["hall · best score 0.90", "door · best score 0.90"])
        expect(page.locator("#visits .when.here")).to_have_count(2)


def _shade_seen(page: Page) -> int:
    script = """(image) => { const canvas = document.createElement("canvas"); canvas.width = canvas.height = 8;
      const pen = canvas.getContext("2d"); pen.drawImage(image, 0, 0, 8, 8);
      return pen.getImageData(6, 1, 1, 1).data[0]; }"""
    for _ in range(100):
        seen = int(page.locator("#live").evaluate(script))
        if abs(seen - SHADES["hall"]) <= 4:
            break
        page.wait_for_timeout(100)
    return seen
