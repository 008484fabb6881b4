"""The page of a run whose bank is followed: it shows everything and changes nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from served_page import Served, client_of, freeze, health, picture, serve, show
from test_page_pictures import photo
from test_pictures_in_browser import file

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.review_items import ReviewItem
from fsvit_edge.fewshot.scene import encode_frame
from fsvit_edge.fewshot.zones import parse_zone
from fsvit_edge.live.health import BankStatus
from fsvit_edge.page.sink import PageSink

ORIGIN = "https://host/bank.safetensors"
REFUSED = (
    f"The classes come from {ORIGIN}, so they cannot be changed here; change that bank, and this run takes it over."
)


@pytest.fixture
def followed(loaded: FewShotModel, tmp_path: Path) -> Iterator[Served]:
    """A page whose classes come from elsewhere: a cup, and a zone."""
    with serve(loaded, tmp_path / "none.safetensors") as (_, model, _, _):
        model.update(lambda model: model.enroll("cup", [picture()]))
        bank = model.read(lambda model: model.bank.copy())
        bank.zones = (parse_zone("door=0,0,1,0,1,1"),)
        jpeg = encode_frame(picture(), loaded.manifest.image_size)
        bank.review = (ReviewItem(0, "cup", 0.9, 0.5, 1.0, jpeg, "yes"),)
        model.bank_origin = ORIGIN
        path = tmp_path / "bank.safetensors"
        with PageSink("http://127.0.0.1:0", model, path) as page, client_of(page.address) as client:
            model.replace_bank(bank)
            served = Served(page, model, client, path)
            show(served, picture())
            yield served
        assert page.trouble == ""  # a bank that was swapped is nothing that a person lost
        assert not path.exists()


def test_nothing_on_the_page_changes_a_bank_that_comes_from_elsewhere(followed: Served) -> None:
    frame, ask = freeze(followed), followed.client.request
    revision = followed.model.revision
    corners = [[0, 0], [1, 0], [1, 1]]
    for method, path, body in (
        ("POST", "/api/classes", {"name": "pen", "frame_id": frame}),
        ("PATCH", "/api/classes", {"name": "cup", "new_name": "mug"}),
        ("DELETE", "/api/classes?name=cup", None),
        ("DELETE", "/api/supports?name=cup&index=0", None),
        ("POST", "/api/negatives", {"name": "cup", "frame_id": frame}),
        ("POST", "/api/scene", None),
        ("DELETE", "/api/scene", None),
        ("POST", "/api/zones", {"name": "hall", "corners": corners}),
        ("DELETE", "/api/zones?name=door", None),
        ("POST", "/api/bank/save", None),
        ("POST", "/api/bank/save?overwrite=true", None),
        ("PUT", "/api/review/0", {"verdict": "yes"}),
    ):
        answer = ask(method, path, json=body) if body else ask(method, path)
        assert (answer.status_code, answer.json()) == (400, {"error": REFUSED}), (method, path)
    data = followed.client.get("/api/bank").content
    assert ask("PUT", "/api/bank", content=data).json() == {"error": REFUSED}
    assert (followed.model.classes, followed.model.revision) == (("cup",), revision)
    state = followed.client.get("/api/state").json()
    assert state["bank"] == {"file": ORIGIN, "is_there": False, "is_saved": True, "is_followed": True}


def test_a_page_that_may_change_its_bank_is_the_control(served: Served) -> None:
    assert not served.client.get("/api/state").json()["bank"]["is_followed"]
    body = {"name": "pen", "frame_id": freeze(served)}
    assert served.client.post("/api/classes", json=body).status_code == 201


def test_metrics_name_the_bank_that_answers(followed: Served) -> None:
    bank = BankStatus(ORIGIN, "ab" * 32, trouble="The server answers 503.")
    followed.page.report(replace(health(), bank=bank))
    text = followed.client.get("/metrics").text
    assert f'fsvit_edge_bank_info{{sha256="{"ab" * 32}"}} 1.0' in text
    assert "fsvit_edge_bank_troubled 1.0" in text
    followed.page.report(health())
    assert "fsvit_edge_bank" not in followed.client.get("/metrics").text


@pytest.mark.main_way
def test_a_person_sees_where_the_classes_come_from_and_no_button_that_would_be_refused(
    followed: Served, chromium: Browser
) -> None:
    followed.page.report(replace(health(), sinks=()))  # no message, which could be closed
    context = chromium.new_context()
    page = context.new_page()
    page.goto(followed.page.address)
    expect(page.locator("#bank-file")).to_have_text(ORIGIN)
    expect(page.locator("#bank-saved")).to_have_text("The classes come from there and cannot be changed here.")
    expect(page.locator("#classes .name")).to_have_text("cup")
    page.locator(".supports button").first.click()

    def shown() -> list[str]:
        return [
            text for one in page.get_by_role("button").all() if one.is_visible() and (text := one.inner_text().strip())
        ]

    assert shown() == ["Download picture", "Download mask"]
    expect(page.locator("#scene-known")).to_have_text("The bank has none.")
    bank = BankStatus(ORIGIN, "ab" * 32, trouble="The server answers 503.")
    followed.page.report(replace(health(), sinks=(), bank=bank))
    expect(page.locator("#banner")).to_have_text(f"Bank {ORIGIN}: The server answers 503.")
    page.locator("#banner-close").click()
    expect(page.get_by_text("Open a picture…")).to_be_visible()
    page.locator("#picture-file").set_input_files(file(photo(picture(), orientation=1)))
    expect(page.locator("#judged")).to_have_text(" in photo.jpg")
    expect(page.locator("#found-told")).to_contain_text("Found: cup")
    assert shown()[-3:] == ["Back to live", "Download picture", "Download mask"]  # and two to zoom
    for hidden in ("#drawing", "#name", "#hint", ".modes", "#known-name"):
        expect(page.locator(hidden)).to_be_hidden()
    page.get_by_role("button", name="Back to live").click()
    expect(page.locator("#judged")).to_be_empty()
    expect(page.locator("#picture-file")).to_be_focused()
    context.close()
