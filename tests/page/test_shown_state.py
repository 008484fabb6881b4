"""The state of the page is made once for all who ask, and again after every change."""

import threading
from typing import Any

import pytest
from served_page import Served, enroll, health, picture, show

from fsvit_edge.page import schemas, shown_state


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The thread of every state that was made."""
    counted: list[str] = []
    make = shown_state._state

    def counting(seen: Any) -> schemas.State:
        counted.append(threading.current_thread().name)
        return make(seen)

    monkeypatch.setattr(shown_state, "_state", counting)
    return counted


def state(served: Served) -> dict[str, Any]:
    answer = served.client.get("/api/state")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    return dict(answer.json())


def test_it_is_made_once_while_nothing_changes(served: Served, made: list[str]) -> None:
    first = state(served)
    assert state(served) == state(served) == first
    assert len(made) == 1
    schemas.State.model_validate(first)


def test_every_change_is_shown(served: Served, made: list[str]) -> None:
    zone = {"name": "left", "corners": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}
    changes = {
        "frame": lambda: show(served, picture(), index=6),
        "health": lambda: served.page.report(health("lost")),
        "classes": lambda: enroll(served, box_xyxy=[40, 30, 90, 70]).raise_for_status(),
        "zones": lambda: served.client.post("/api/zones", json=zone).raise_for_status(),
        "bank": lambda: served.client.post("/api/bank/save").raise_for_status(),
    }
    before = state(served)
    for count, (what, change) in enumerate(changes.items(), start=2):
        change()
        after = state(served)
        assert after[what] != before[what], what
        assert len(made) == count
        before = after


def test_a_new_verdict_and_a_checked_scene_are_shown(served: Served, made: list[str]) -> None:
    page = served.page._state
    assert state(served)["scene_check"] is None
    page.scene_check = schemas.SceneCheck(number=1, pictures=3)
    assert state(served)["scene_check"] == {"number": 1, "pictures": 3}
    page.scene_check = schemas.SceneCheck(number=2, pictures=3)
    assert state(served)["scene_check"] == {"number": 2, "pictures": 3}
    assert len(made) == 3


def test_it_is_not_made_in_the_servers_thread(served: Served, made: list[str]) -> None:
    state(served)
    assert "page" in {thread.name for thread in threading.enumerate()}  # the server's
    assert made != ["page"]
