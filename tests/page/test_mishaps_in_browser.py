"""What the page does when something is refused, is about to be lost or is gone; a real browser."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect
from served_page import Served, enroll, filming, picture, serve, show
from test_page_in_browser import WINDOW, intercept, item
from test_page_review import keep_doubtful
from watched_page import watched

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.page import false_alarms
from fsvit_edge.page.sink import PageSink

LOW: ViewportSize = {"width": 390, "height": 500}
BOX = {"box_xyxy": [40, 30, 90, 70]}


@pytest.fixture
def served(loaded: FewShotModel, tmp_path: Path) -> Iterator[Served]:
    with serve(loaded, tmp_path / "Küche 2.safetensors") as one:
        show(one, picture())
        yield one


@pytest.fixture
def page(served: Served, chromium: Browser) -> Iterator[Page]:
    """The page of two classes, cup and mug, that are not saved; the bank's name is not the usual one.

    An error of a script fails the test, refused requests do not.
    """
    for name in ("cup", "mug"):
        assert enroll(served, name, **BOX).status_code == 201
    with chromium.new_page(viewport=WINDOW) as opened, watched(opened, served.page.address, provoked="") as page:
        expect(item(page, "mug")).to_be_visible()
        yield page


def test_a_refused_name_is_told_in_sight_and_stays_in_its_field(page: Page) -> None:
    page.set_viewport_size(LOW)
    item(page, "mug").get_by_role("button", name="Rename").click()
    field = page.get_by_label("New name of mug")
    field.fill("cup")
    page.keyboard.press("Enter")
    banner = page.locator("#banner")
    expect(banner).to_contain_text("'cup'")
    expect(banner).to_be_in_viewport(ratio=1)
    expect(field).to_have_value("cup")
    expect(field).to_be_focused()
    page.locator(".banner").evaluate("box => { box.style.position = 'static'; }")
    expect(banner).not_to_be_in_viewport()  # the control

    item(page, "mug").get_by_role("button", name="Rename").click()  # it is open already
    expect(field).to_have_value("cup")
    expect(field).to_be_focused()  # the click tried the name once more, which was refused again
    field.fill("beaker")
    page.keyboard.press("Enter")
    expect(item(page, "beaker")).to_be_visible()
    expect(banner).not_to_contain_text("'cup'")


def test_a_message_can_be_closed_and_shows_again_when_it_comes_again(page: Page) -> None:
    banner = page.locator("#banner")
    expect(banner).to_have_text("b\\c: full")  # a sink that failed
    page.evaluate("import('/common.js').then(({ showMessage }) => showMessage('No.'))")
    expect(banner).to_have_text("No.")
    close = page.get_by_role("button", name="Close the message")
    close.click()
    expect(banner).to_have_text("b\\c: full")  # the control: only the message is closed
    close.click()
    expect(banner).to_be_hidden()
    page.wait_for_timeout(600)  # the state is shown again meanwhile
    expect(banner).to_be_hidden()
    intercept(page, "**/api/state", lambda route: route.abort())
    expect(banner).to_have_text("Cannot reach the run; retrying.")
    page.unroute("**/api/state")
    expect(banner).to_have_text("b\\c: full")


def test_load_asks_before_it_replaces_what_is_not_saved(page: Page, served: Served, tmp_path: Path) -> None:
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == served.bank.name
    file = tmp_path / "others.safetensors"
    file.write_bytes(served.client.get("/api/bank").content)
    served.client.patch("/api/classes", json={"name": "mug", "new_name": "beaker"})
    expect(item(page, "beaker")).to_be_visible()
    question = page.locator("#replace")
    page.locator("#upload").set_input_files(file)
    expect(question).to_contain_text("The classes are not saved. Replace them by those of others.safetensors?")
    expect(page.locator("#replace-no")).to_be_focused()
    page.locator("#replace-no").click()
    expect(question).to_be_hidden()
    assert served.model.classes == ("cup", "beaker")

    page.locator("#upload").set_input_files(file)
    page.locator("#replace-yes").click()
    expect(item(page, "mug")).to_be_visible()
    expect(question).to_be_hidden()

    page.get_by_role("button", name="Save").click()
    expect(page.locator("#bank-saved")).to_have_text("Saved.")
    file.write_bytes(b"damaged")
    page.locator("#upload").set_input_files(file)  # the control: nothing can be lost, so nothing is asked
    expect(page.locator("#banner")).to_contain_text("Bank others.safetensors is damaged")
    expect(question).to_be_hidden()


def test_the_review_offers_frames_that_came_meanwhile(page: Page, served: Served) -> None:
    add_doubtful(served, picture())
    open_review(page)
    page.keyboard.press("s")
    asked = page.locator("#review-question")
    expect(asked).to_have_text("0 judged, 1 skipped.")  # the control: nothing has come
    page.keyboard.press("ArrowLeft")
    expect(asked).to_have_text("cup?")
    add_doubtful(served, picture()[::-1].copy())
    page.keyboard.press("s")
    expect(asked).to_have_text("One more doubtful frame has come.")
    page.keyboard.press("Enter")
    expect(page.locator("#review-place")).to_have_text("Frame 2 of 2")
    page.keyboard.press("s")
    expect(asked).to_have_text("0 judged, 2 skipped.")


def test_back_goes_from_the_frames_to_judge_to_the_judged_ones(page: Page, served: Served) -> None:
    add_doubtful(served, picture(), picture()[::-1].copy())
    served.client.put("/api/review/1", json={"verdict": "no"})
    open_review(page)
    expect(page.locator("#review-place")).to_have_text("Frame 2 of 2")
    expect(page.locator("#review-text")).not_to_contain_text("You said")  # the control
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#review-text")).to_contain_text("You said Not it")
    page.keyboard.press("n")
    expect(page.locator("#review-told")).to_contain_text("Taken back")


def test_keys_work_where_the_review_offers_to_learn(page: Page, served: Served) -> None:
    add_doubtful(served, picture(), picture()[::-1].copy())
    dialog, told = page.locator("#review-dialog"), page.locator("#review-told")
    is_found = served.client.put("/api/review/0", json={"verdict": "no"}).json()["contradicts"]
    wrong, right = ("n", "y") if is_found else ("y", "n")
    served.client.put("/api/review/0", json={"verdict": None})
    open_review(page)
    page.keyboard.press(wrong)
    expect(dialog).to_have_attribute("data-panel", "offer")
    page.keyboard.press("ArrowLeft")
    expect(dialog).to_have_attribute("data-panel", "question")
    expect(page.locator("#review-text")).to_contain_text("You said")
    page.keyboard.press(wrong)
    expect(told).to_contain_text("Taken back")
    page.keyboard.press(wrong)
    expect(dialog).to_have_attribute("data-panel", "offer")
    page.keyboard.press(wrong)
    expect(told).to_contain_text("Taken back")
    page.keyboard.press(wrong)
    expect(dialog).to_have_attribute("data-panel", "offer")
    page.keyboard.press(right)
    expect(page.locator("#review-place")).to_have_text("Frame 2 of 2")
    assert [one.verdict for one in served.model.review] == ["yes" if right == "y" else "no", None]


def add_doubtful(served: Served, *images: np.ndarray) -> None:
    served.client.delete("/api/classes", params={"name": "mug"})  # one class, one doubtful frame for each picture
    served.model.read(lambda model: keep_doubtful(model, *images))


def open_review(page: Page) -> None:
    expect(page.locator("#review-title")).to_contain_text("doubtful")
    page.locator("#review-open").click()
    expect(page.locator("#review-question")).to_have_text("cup?")


def enroll_by_name(page: Page, name: str) -> Locator:
    """Enroll with the keyboard, and return the report."""
    page.get_by_role("button", name="Add a class").click()
    page.get_by_role("radio", name="Name only").check()
    page.get_by_label("Class name").fill(name)
    page.keyboard.press("Enter")
    report = page.locator("#report")
    expect(report).to_contain_text(f"{name} is enrolled")
    expect(report).to_be_focused()
    expect(item(page, name)).to_be_visible()
    return report


def test_the_report_goes_with_its_picture(page: Page, served: Served) -> None:
    report = enroll_by_name(page, "cup")
    expect(item(page, "cup").locator(".supports img")).to_have_count(2)
    served.client.delete("/api/classes", params={"name": "mug"})
    expect(item(page, "mug")).to_have_count(0)
    expect(report).to_be_visible()  # the control
    served.client.delete("/api/supports", params={"name": "cup", "index": 1})
    expect(report).to_be_hidden()
    expect(page.get_by_role("button", name="Add a class")).to_be_focused()

    report = enroll_by_name(page, "jug")
    served.client.delete("/api/classes", params={"name": "jug"})
    expect(report).to_be_hidden()


def test_the_report_goes_where_its_picture_was_never_listed(page: Page, served: Served) -> None:
    page.get_by_role("button", name="Add a class").click()
    page.get_by_role("radio", name="Name only").check()
    page.get_by_label("Class name").fill("jug")
    intercept(page, "**/api/state", lambda route: route.abort())
    page.keyboard.press("Enter")
    report = page.locator("#report")
    expect(report).to_contain_text("jug is enrolled")
    served.client.delete("/api/classes", params={"name": "jug"})
    expect(report).to_be_visible()  # the control
    page.unroute("**/api/state")
    expect(report).to_be_hidden()


def test_the_keys_of_the_box_are_shown_and_space_does_not_scroll(page: Page) -> None:
    page.set_viewport_size(LOW)
    keys = page.get_by_text("arrow keys move the box")
    expect(keys).to_be_hidden()
    page.get_by_role("button", name="Add a class").click()
    expect(keys).to_be_visible()
    expect(page.locator("#drawing")).to_be_focused()
    before = page.evaluate("scrollY")
    page.keyboard.press("Space")
    page.wait_for_timeout(400)
    assert page.evaluate("scrollY") == before
    page.get_by_role("radio", name="Name only").check()
    expect(keys).to_be_hidden()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")  # the control
    page.wait_for_function("(before) => scrollY > before", arg=before)


def test_what_is_old_is_dimmed_while_the_run_does_not_answer(page: Page) -> None:
    shown = [page.locator("#live"), item(page, "cup").locator(".bar")]
    for one in shown:
        expect(one).to_have_css("opacity", "1")  # the control
    intercept(page, "**/api/state", lambda route: route.abort())
    for one in shown:
        expect(one).to_have_css("opacity", "0.35")
    page.unroute("**/api/state")
    for one in shown:
        expect(one).to_have_css("opacity", "1")


def test_who_stays_out_of_view_is_told_when_the_pictures_are_taken(
    page: Page, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_frame, released = false_alarms._learn_frame, threading.Event()

    def learn_later(model: FewShotModel, image: np.ndarray) -> false_alarms.SceneAnswer:
        released.wait(60)
        return learn_frame(model, image)

    monkeypatch.setattr(false_alarms, "SCENE_FRAMES", 2)
    monkeypatch.setattr(false_alarms, "SCENE_S", 0.0)
    monkeypatch.setattr(false_alarms, "_learn_frame", learn_later)
    told = page.locator("#scene-report")
    with page.expect_request("**/api/scene"):
        page.locator("#learn").click()
    page.wait_for_timeout(600)  # the state is shown again meanwhile
    expect(told).to_have_text("Taking pictures. Stay out of view.")  # the control: no frame has come
    with filming(served, picture()):
        try:
            expect(told).to_have_text("Checking 1 of 2: you can come back.")
        finally:
            released.set()
        expect(told).to_contain_text("The empty scene is learned from 2 pictures")
    assert served.client.get("/api/state").json()["scene_check"] is None


@pytest.mark.main_way
def test_save_overwrites_what_another_program_wrote_only_at_a_second_click(page: Page, served: Served) -> None:
    served.bank.write_bytes(b"notes of a person")
    save = page.locator("#save")
    save.click()
    expect(page.locator("#banner")).to_contain_text("is no bank that can be read")
    expect(save).to_have_text("Overwrite it?")
    assert served.bank.read_bytes() == b"notes of a person"
    save.click()
    expect(page.locator("#bank-saved")).to_have_text("Saved.")
    expect(save).to_have_text("Save")
    save.click()  # the control: the file is ours now
    expect(save).to_have_text("Save")
    expect(page.locator("#banner")).not_to_contain_text("is no bank")


def test_a_link_with_the_token_works_on_another_site(served: Served, chromium: Browser, tmp_path: Path) -> None:
    token = "a-token-for-tests"
    with (
        PageSink("http://127.0.0.1:0", served.model, tmp_path / "other.safetensors", token) as guarded,
        chromium.new_page() as opened,
    ):
        link = f"<a href='{guarded.address}'>the camera</a>"
        opened.route("http://elsewhere.example/", lambda route: route.fulfill(body=link, content_type="text/html"))
        opened.goto("http://elsewhere.example/")
        opened.get_by_role("link").click()
        expect(opened.locator("#classes")).to_be_attached()
        opened.wait_for_load_state()  # or the server ends with files half sent
        assert opened.url == guarded.address.partition("?")[0]
