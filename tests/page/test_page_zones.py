"""Zones through the page's API: added, listed with what is in them, removed, saved; and the parts of an outline."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from served_page import HEIGHT, WIDTH, Served, client_of, picture, show, streamed

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.names import MAX_NAME_LENGTH
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.zones import MAX_ZONES, parse_zone
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.page.sink import PageSink

LEFT = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]
RIGHT = [[0.5, 0], [1, 0], [1, 1], [0.5, 1]]


def add(client: httpx.Client, name: Any, corners: Any) -> httpx.Response:
    return client.post("/api/zones", json={"name": name, "corners": corners})


def state(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/api/state").json()
    return found


def enroll_cup(served: Served) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[30:70, 40:90] = True
    served.model.update(lambda model: model.enroll("cup", [picture()], [mask]))


def put_answer(served: Served, labels: np.ndarray, score: float = 0.9) -> None:
    """Show a frame in which the cup has these pixels, with the zones that the bank has now."""
    scores, levels = np.array([score], np.float32), np.array([0.5], np.float32)
    answer = Prediction(("cup",), scores, levels, labels, None, {}, zones=served.model.enrolled.zones)
    served.page.write(Frame(picture(), 6, "cam", 0.0, time.monotonic(), 1.0), answer)


def test_a_zone_is_added_used_saved_and_removed(served: Served) -> None:
    before = state(served.client)
    assert (before["zones"], before["zones_are_fixed"]) == ([], False)
    added = add(served.client, "left half", LEFT)
    assert (added.status_code, added.json()) == (201, {"name": "left half", "corners": LEFT})
    assert add(served.client, "right", RIGHT).status_code == 201
    after = state(served.client)
    assert [(one["name"], one["corners"], one["classes"]) for one in after["zones"]] == [
        ("left half", LEFT, []),
        ("right", RIGHT, []),
    ]
    assert after["revision"] != before["revision"]
    assert after["bank"]["is_saved"] is False
    answer = served.model.read(lambda model: model.predict(picture()))
    assert [zone.name for zone in answer.zones] == ["left half", "right"]  # what a run's records name

    assert served.client.post("/api/bank/save").status_code == 200
    assert [zone.name for zone in SupportBank.load(served.bank).zones] == ["left half", "right"]
    assert served.client.delete("/api/zones?name=left half").status_code == 204
    assert [one["name"] for one in state(served.client)["zones"]] == ["right"]
    assert state(served.client)["bank"]["is_saved"] is False
    assert served.client.put("/api/bank", content=served.bank.read_bytes()).status_code == 200
    assert [one["name"] for one in state(served.client)["zones"]] == ["left half", "right"]


def test_the_state_says_which_classes_are_in_a_zone_and_the_parts_of_each(served: Served) -> None:
    enroll_cup(served)
    add(served.client, "left", LEFT)
    add(served.client, "right", RIGHT)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[10:50, 4:44] = 1
    put_answer(served, labels)
    one = state(served.client)
    assert [zone["classes"] for zone in one["zones"]] == [["cup"], []]
    assert one["classes"][0]["instances"] == [{"box_xyxy": [4, 10, 44, 50], "area": round(1600 / labels.size, 4)}]

    labels[60:90, 100:120] = 1
    labels[0, 0] = 1  # a crumb
    put_answer(served, labels)
    two = state(served.client)
    assert [zone["classes"] for zone in two["zones"]] == [["cup"], ["cup"]]
    assert [part["box_xyxy"] for part in two["classes"][0]["instances"]] == [[4, 10, 44, 50], [100, 60, 120, 90]]

    put_answer(served, labels, score=0.1)
    absent = state(served.client)
    assert [zone["classes"] for zone in absent["zones"]] == [[], []]
    assert absent["classes"][0]["instances"] == []


@pytest.mark.parametrize(
    ("name", "corners", "reason"),
    [
        ("left", LEFT, "Two zones are named 'left'; give each its own name."),
        ("", LEFT, "A zone name must be 1 to 80 printable characters, got ''."),
        ("x" * 81, LEFT, "A zone name must be 1 to 80"),
        ("door", LEFT[:2], "Zone 'door' has 2 corners; expected"),
        ("door", [[0, 0], [0.5, 0.5], [1, 1]], "The corners of zone 'door' enclose no area; give them in order"),
        (
            "door",
            [LEFT[0], LEFT[2], LEFT[1], LEFT[3]],
            "The edges of zone 'door' cross; give the corners in order around",
        ),
        ("door", [[0, 0], [640, 0], [640, 360]], "Zone 'door' has 640 in a corner; expected"),
        ("door", LEFT * 26, "Zone 'door' has 104 corners; give at most 100."),
        ("door", [[0, 0, 0]] * 3, "Field corners[0]"),
        ("door", [["0", 0], [1, 0], [1, 1]], "Field corners[0][0] must be a valid number."),
        ("door", "all", "Field corners must be a valid list."),
        (5, LEFT, "Field name must be a valid string."),
    ],
)
def test_a_bad_zone_is_refused_in_one_sentence(served: Served, name: Any, corners: Any, reason: str) -> None:
    assert add(served.client, "left", LEFT).status_code == 201
    served.client.post("/api/bank/save")
    refused = add(served.client, name, corners)
    assert refused.status_code == 400
    assert refused.json()["error"].startswith(reason)
    assert [one["name"] for one in state(served.client)["zones"]] == ["left"]
    assert state(served.client)["bank"]["is_saved"] is True


def test_the_longest_name_can_be_typed_and_is_taken(served: Served) -> None:
    page = served.client.get("/").text
    assert re.findall(r'id="(?:name|zone-name)".* maxlength="(\d+)"', page) == [str(MAX_NAME_LENGTH)] * 2
    told = served.client.get("/openapi.json").json()["components"]["schemas"]
    for one in ("Zone", "EnrollRequest"):
        assert told[one]["properties"]["name"]["description"] == f"1 to {MAX_NAME_LENGTH} printable characters."
    assert add(served.client, "x" * MAX_NAME_LENGTH, LEFT).status_code == 201


def test_there_is_an_end_to_zones(served: Served) -> None:
    for number in range(MAX_ZONES):
        assert add(served.client, str(number), LEFT).status_code == 201
    assert (
        add(served.client, "more", LEFT).json()["error"] == "There can be at most 16 zones, got 17; remove one first."
    )
    missing = served.client.delete("/api/zones?name=more")
    assert (missing.status_code, missing.json()["error"][:32]) == (400, "There is no zone 'more'; zones: ")


@pytest.fixture
def fixed(loaded: FewShotModel, served: Served, tmp_path: Path) -> Iterator[httpx.Client]:
    """The page of a run with --zone, on the same model, whose bank has another zone."""
    add(served.client, "of the bank", LEFT)
    model = LiveModel(loaded, (parse_zone("of the run=0.5,0,1,0,1,1,0.5,1"),))
    with (
        PageSink("http://127.0.0.1:0", model, tmp_path / "other.safetensors") as page,
        client_of(page.address) as client,
    ):
        yield client


def test_zones_of_the_command_line_are_shown_and_cannot_be_changed(fixed: httpx.Client, served: Served) -> None:
    found = state(fixed)
    assert [one["name"] for one in found["zones"]] == ["of the run"]
    assert found["zones_are_fixed"] is True
    for refused in (add(fixed, "left", LEFT), fixed.delete("/api/zones?name=of the run")):
        assert refused.status_code == 400
        assert refused.json()["error"].startswith("The zones of this run come from the command line; start it without")
    assert [zone.name for zone in served.model.enrolled.zones] == ["of the bank"]


def test_the_live_picture_shows_the_zones(served: Served) -> None:
    def newest() -> np.ndarray:
        decoded = cv2.imdecode(np.frombuffer(streamed(served.client), np.uint8), cv2.IMREAD_GRAYSCALE)
        assert decoded is not None
        return decoded

    show(served, picture())
    without = newest()
    add(served.client, "right", RIGHT)
    show(served, picture())
    differs = np.abs(newest().astype(int) - without) > 60
    assert differs[:, WIDTH // 2 - 2 : WIDTH // 2 + 3].any(axis=1).mean() > 0.9  # the zone's left edge
    assert not differs[:, : WIDTH // 2 - 8].any()
