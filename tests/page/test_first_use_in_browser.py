"""What somebody meets who uses the page for the first time: long names, a phone, the keyboard; a real browser."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect
from served_page import Served, enroll, health, picture, shooting, show
from test_page_in_browser import drag, item, pictures_are_loaded, place_of
from test_zones_in_browser import PHONE, WIDE, opened

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import SourceHealth

LONG = "/media/" + "recordings_of_the_north_gate_" * 8 + ".mp4"
BOX = {"box_xyxy": [40, 30, 90, 70]}
SHADES = 200


@pytest.fixture
def page(served: Served, chromium: Browser) -> Iterator[Page]:
    """The page of a class "cup" with two pictures, and a live camera."""
    assert enroll(served, "cup", **BOX).status_code == 201
    assert enroll(served, "cup").status_code == 201
    with filmed(served), opened(chromium, served.page.address) as page:
        expect(item(page, "cup").locator(".supports img")).to_have_count(2)
        pictures_are_loaded(page)
        yield page


@contextmanager
def filmed(served: Served, source: str = "cam") -> Iterator[None]:
    """A camera whose frames tell their number by their brightness; "cup" is present in all of them."""
    labels = np.zeros(picture().shape[:2], np.uint8)
    labels[30:70, 40:90] = 1
    found = Prediction(("cup",), np.array([0.9], np.float32), np.array([0.5], np.float32), labels, None, {})

    def shoot(index: int) -> None:
        image = np.full_like(picture(), index % SHADES)
        served.page.write(Frame(image, index, source, 0.0, time.monotonic(), 1.0), found)
        served.page.report(replace(health(), source=source, sinks=()))

    with shooting(shoot, 0.05):
        yield


def choose(page: Page, number: int) -> Locator:
    """Choose a picture of the class by the keyboard; return the row in which it can be removed."""
    item(page, "cup").locator(".supports button").nth(number - 1).focus()
    page.keyboard.press("Enter")
    return item(page, "cup").locator(".one-picture")


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_long_names_make_no_page_wider_than_the_screen(
    chromium: Browser, served: Served, viewport: ViewportSize
) -> None:
    wide = "document.documentElement.scrollWidth"
    several = tuple(SourceHealth(f"{LONG}{number}", health().source_status, False, 1, 1.0, None) for number in (1, 2))
    assert enroll(served, "w" * 80).status_code == 201
    one = replace(health(), source=LONG)
    served.page.report(one)
    with opened(chromium, served.page.address, viewport) as page:
        expect(page.locator("#model")).to_contain_text(LONG)
        served.page.report(replace(one, sources=several))
        expect(page.locator("#sources button")).to_have_count(2)
        assert page.evaluate(wide) == viewport["width"]
        served.page.report(one)
        expect(page.locator("#sources")).to_be_hidden()
        page.get_by_role("button", name="Add a class").click()
        page.get_by_label("Class name").fill("w" * 80)
        expect(page.locator("#known-name")).to_contain_text("is enrolled already")
        assert page.evaluate(wide) == viewport["width"]
        page.goto(f"{served.page.address}docs")
        expect(page.locator("tbody tr")).not_to_have_count(0)
        assert page.evaluate(wide) == viewport["width"]
        page.locator("main").evaluate("main => { main.style.minWidth = '2000px'; }")
        assert page.evaluate(wide) > viewport["width"]  # the control


def test_a_picture_of_a_class_is_removed_and_the_keyboard_keeps_its_place(page: Page, served: Served) -> None:
    kept = served.model.enrolled.supports["cup"][1].thumbnail_key
    row = choose(page, 2)
    expect(row).to_contain_text("Picture 2 of 2")
    row = choose(page, 1)
    expect(row).to_contain_text("Picture 1 of 2")
    expect(item(page, "cup").locator('.supports [aria-pressed="true"]')).to_have_count(1)
    pictures_are_loaded(page)
    row.get_by_role("button", name="Remove picture").click()
    assert len(served.model.enrolled.supports["cup"]) == 2  # the first click only asks
    row.get_by_role("button", name="Really remove?").click()
    expect(item(page, "cup").locator(".supports img")).to_have_count(1)
    assert [one.thumbnail_key for one in served.model.enrolled.supports["cup"]] == [kept]
    expect(item(page, "cup").locator(".more")).to_be_focused()
    row = choose(page, 1)
    pictures_are_loaded(page)
    row.get_by_role("button", name="Remove picture").click()
    row.get_by_role("button", name="Really remove the class?").click()
    expect(item(page, "cup")).to_have_count(0)
    expect(page.locator("#freeze")).to_be_focused()


def test_a_picture_that_is_another_one_by_now_is_not_removed(served: Served) -> None:
    for _ in range(2):
        enroll(served, "cup", **BOX)
    show(served, picture()[::-1].copy())
    enroll(served, "cup", **BOX)
    keys = [one.thumbnail_key for one in served.model.enrolled.supports["cup"]]
    asked = {"name": "cup", "index": 2, "key": keys[2]}
    served.client.delete("/api/supports", params={"name": "cup", "index": 0})
    served.client.delete("/api/supports", params={"name": "cup", "index": 0})
    for index in (0, 2):
        refused = served.client.delete("/api/supports", params={**asked, "index": index, "key": keys[0]})
        assert refused.json() == {"error": "The pictures of 'cup' have changed; look at them again."}
    assert served.client.delete("/api/supports", params={**asked, "index": 0}).status_code == 204  # the control


def box_drawn(page: Page, shares: tuple[float, float, float, float]) -> np.ndarray:
    """Drag a box, by shares of the picture on the screen; return it in pixels of the frame, as the page asks for it."""
    area = place_of(page, "#picture")
    points = [(area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in (shares[:2], shares[2:])]
    with page.expect_request("**/mask") as asked:
        page.mouse.move(*points[0])
        page.mouse.down()
        page.mouse.move(*points[1], steps=3)
        page.mouse.up()
    return np.array(asked.value.post_data_json["box_xyxy"])


def test_a_small_object_is_drawn_on_a_zoomed_picture(page: Page) -> None:
    page.get_by_role("button", name="Add a class").click()
    drawing = page.locator("#drawing")
    expect(drawing).to_be_focused()
    middle = (0.25, 0.25, 0.75, 0.75)
    whole = box_drawn(page, middle)
    drawing.hover()
    for _ in range(6):
        page.mouse.wheel(0, -100)
    expect(page.locator("#zoom-out")).to_have_attribute("aria-disabled", "false")
    zoomed = box_drawn(page, middle)
    assert np.abs((whole[2:] - whole[:2]) / 1.2**6 - (zoomed[2:] - zoomed[:2])).max() <= 2
    assert np.abs((whole[2:] + whole[:2]) - (zoomed[2:] + zoomed[:2])).max() <= 4  # about the same middle
    for _ in range(9):
        page.mouse.wheel(0, 100)
    expect(page.locator("#zoom-out")).to_have_attribute("aria-disabled", "true")
    assert np.abs(box_drawn(page, middle) - whole).max() <= 1  # the control
    for name, is_whole in (("Zoom in", "false"), ("Zoom out", "true")):
        page.get_by_role("button", name=name).click()
        expect(page.locator("#zoom-out")).to_have_attribute("aria-disabled", is_whole)
    drawing.focus()
    page.keyboard.press("+")
    expect(page.locator("#frozen")).to_have_css("transform", re.compile(r"matrix\(1[.]5, 0, 0, 1[.]5"))
    page.keyboard.press("Escape")
    expect(page.locator("#frozen")).to_have_css("transform", "none")


def test_two_fingers_zoom_and_draw_nothing(chromium: Browser, served: Served) -> None:
    with opened(chromium, served.page.address, PHONE, has_touch=True) as page:
        page.get_by_role("button", name="Add a class").click()
        page.locator("label", has_text="Paint").click()
        area = place_of(page, "#drawing")
        x, y = area["x"] + area["width"] / 2, area["y"] + area["height"] / 2
        fingers = page.context.new_cdp_session(page)
        is_painted = "() => document.getElementById('drawing').toDataURL() !== window.empty"
        is_empty = "() => document.getElementById('drawing').toDataURL() === window.empty"
        page.evaluate("window.empty = document.getElementById('drawing').toDataURL()")

        def touch(kind: str, *places: float) -> None:
            points = [{"x": x + place, "y": y, "id": number} for number, place in enumerate(places)]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", -20)
        touch("touchMove", -30)
        assert page.evaluate(is_painted)  # the control: one finger paints
        touch("touchStart", -30, 30)
        assert page.evaluate(is_empty)
        for place in (40, 50, 60):
            touch("touchMove", -place, place)
        touch("touchEnd")
        expect(page.locator("#frozen")).to_have_css("transform", re.compile(r"matrix\((1[.]9|2)"))
        assert page.evaluate(is_empty)


def test_frames_before_the_frozen_one_can_be_chosen(page: Page, served: Served) -> None:
    page.wait_for_function("() => document.getElementById('live').naturalWidth > 0")
    while served.client.post("/api/frames").json()["earlier"] < 2:
        page.wait_for_timeout(20)
    with page.expect_response("**/api/frames*") as answered:
        page.get_by_role("button", name="Add a class").click()
    newest = answered.value.json()
    place = page.locator("#frame-place")
    count = newest["earlier"] + 1
    assert count > 2
    expect(place).to_have_text(f"Frame {count} of {count}")
    later = page.get_by_role("button", name="Later")
    expect(later).to_have_attribute("aria-disabled", "true")
    later.click(force=True)  # nothing happens
    with page.expect_response("**/api/frames?*") as answered:
        page.get_by_role("button", name="Earlier").click()
    frozen = answered.value.json()
    expect(place).to_have_text(f"Frame {count - 1} of {count}")
    expect(page.locator("#frozen")).to_have_attribute("src", f"/api/frames/{frozen['id']}.jpg")
    images = [served.page._hub.frozen(one["id"]) for one in (newest, frozen)]
    assert int(images[0].mean()) == (int(images[1].mean()) + 1) % SHADES  # the frame right before it
    later.click()
    expect(place).to_have_text(f"Frame {count} of {count}")


@pytest.mark.main_way
def test_a_name_that_is_enrolled_says_that_a_picture_is_added(page: Page) -> None:
    told, submit = page.locator("#known-name"), page.locator("#submit")
    page.get_by_role("button", name="Add a class").click()
    for name in ("mug", "constructor"):
        page.get_by_label("Class name").fill(name)
        expect(told).to_have_text("")
        expect(submit).to_have_text("Enroll")  # the control
    page.get_by_label("Class name").fill("cup")
    expect(told).to_have_text("cup is enrolled already, from 2 pictures; this one is added.")
    expect(submit).to_have_text("Add picture")


@pytest.mark.main_way
def test_the_verdict_tells_how_the_outline_fits_and_how_many_pictures_there_are(page: Page, served: Served) -> None:
    page.get_by_role("button", name="Add a class").click()
    expect(page.locator("#drawing")).to_be_visible()
    drag(page, (0.3, 0.3, 0.7, 0.7))
    page.get_by_label("Class name").fill("cup")
    with page.expect_response("**/api/classes") as answered:
        page.keyboard.press("Enter")
    report = answered.value.json()
    verdict = page.locator("#report .verdict")
    expect(verdict).to_contain_text("cup is enrolled, now from 3 pictures")
    expect(verdict).to_contain_text(
        f"the outline is {report['area_ratio']:.1f} x the mask from your box (IoU {report['iou']:.2f})"
    )
    assert len(served.model.enrolled.supports["cup"]) == 3


def test_no_message_moves_the_picture_and_drawing_clears_it(page: Page) -> None:
    page.get_by_role("button", name="Add a class").click()
    page.get_by_label("Class name").fill("cup")
    banner, hint = page.locator("#banner"), page.locator("#hint")
    expect(page.locator("#drawing")).to_be_visible()
    before = page.locator("#drawing").bounding_box()
    page.evaluate("import('/common.js').then(({ showMessage }) => showMessage('No. '.repeat(40)))")
    expect(banner).to_be_visible()
    assert page.locator("#drawing").bounding_box() == before
    page.locator(".banner").evaluate("box => { box.style.position = 'static'; }")
    assert page.locator("#drawing").bounding_box() != before  # the control
    page.locator(".banner").evaluate("box => { box.style.position = ''; }")
    page.keyboard.press("Enter")
    expect(hint).to_have_text("Drag a box around the object first, or choose Name only.")
    assert page.locator("#drawing").bounding_box() == before
    drag(page, (0.3, 0.3, 0.7, 0.7))
    expect(hint).to_have_text("Drag a box around the object.")
    expect(banner).to_be_hidden()


def test_a_phone_shows_the_scores_beside_the_picture(page: Page) -> None:
    glance = page.locator("#glance")
    expect(glance).to_be_hidden()  # the control: beside the list there is no need
    page.set_viewport_size(PHONE)
    expect(glance).to_be_in_viewport(ratio=1)
    expect(glance).to_have_text("cup0.90")
    page.get_by_role("button", name="Add a class").click()
    expect(glance).to_be_hidden()
    page.keyboard.press("Escape")
    expect(glance).to_be_visible()


def test_the_keyboard_keeps_its_place_after_renaming_and_removing(page: Page) -> None:
    for key, name in (("Escape", "cup"), ("Enter", "mug")):
        item(page, "cup").get_by_role("button", name="Rename").click()
        page.keyboard.type("mug")
        page.keyboard.press(key)
        expect(item(page, name)).to_be_visible()
        if key == "Escape":
            expect(item(page, name).locator(".rename")).to_be_focused()
    pictures_are_loaded(page)
    shown = item(page, "mug")
    shown.get_by_role("button", name="Remove", exact=True).focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(shown).to_have_count(0)
    expect(page.locator("#freeze")).to_be_focused()
