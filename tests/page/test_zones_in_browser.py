"""A person at the page who draws zones: with a mouse, with a finger, with the keyboard alone; a real browser."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect
from served_page import Served, health, picture, serve, shooting
from test_page_in_browser import place_of
from watched_page import watched

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.zones import Zone
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.page.sink import PageSink

WIDE: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
Points = list[tuple[float, float]]
DOOR: Points = [(0.2, 0.2), (0.6, 0.25), (0.55, 0.8)]


@pytest.fixture
def served(loaded: FewShotModel, tmp_path: Path) -> Iterator[Served]:
    """A page whose camera shows a cup in two parts, one in each half of the frame."""
    with serve(loaded, tmp_path / "bank.safetensors") as one, filmed(one.model, one.page):
        one.model.update(lambda model: model.enroll("cup", [picture()]))
        yield one


@contextmanager
def filmed(model: LiveModel, page: PageSink) -> Iterator[None]:
    image = picture()
    labels = np.zeros(image.shape[:2], np.uint8)
    labels[20:60, 10:60] = labels[20:60, 80:110] = 1
    scores, levels = np.array([0.9], np.float32), np.array([0.5], np.float32)

    def shoot(index: int) -> None:
        zones = model.zones_of_run or model.enrolled.zones
        names = model.classes[:1] or ("cup",)
        page.write(
            Frame(image, index, "cam", 0.0, time.monotonic(), 1.0),
            Prediction(names, scores, levels, labels, None, {}, zones=zones),
        )
        page.report(replace(health(), sinks=()))

    with shooting(shoot, 0.05):
        yield


@contextmanager
def opened(chromium: Browser, address: str, viewport: ViewportSize = WIDE, has_touch: bool = False) -> Iterator[Page]:
    """The page, open; an error in the browser's console fails the test, but for refused zones."""
    with (
        chromium.new_page(viewport=viewport, has_touch=has_touch, is_mobile=has_touch) as empty,
        watched(empty, address, provoked="/api/zones$") as page,
    ):
        yield page


def at(page: Page, share_xy: tuple[float, float]) -> tuple[float, float]:
    """A point of the frame, in pixels of the window; the picture is fitted into the canvas."""
    area = place_of(page, "#zone-drawing")
    width, height = page.locator("#frozen").evaluate("image => [image.naturalWidth, image.naturalHeight]")
    scale = min(area["width"] / width, area["height"] / height)
    left = area["x"] + (area["width"] - width * scale) / 2
    top = area["y"] + (area["height"] - height * scale) / 2
    return left + share_xy[0] * width * scale, top + share_xy[1] * height * scale


def begin(page: Page) -> None:
    page.get_by_role("button", name="Draw a zone").click()
    expect(page.locator("#zone-drawing")).to_be_focused()


def save(page: Page, name: str) -> None:
    page.get_by_label("Zone name").fill(name)
    page.get_by_role("button", name="Save zone").click()
    expect(page.locator("#zone-drawing")).to_be_hidden()


def item(page: Page, name: str) -> Locator:
    return page.locator(f'#zones li[data-name="{name}"]')


def is_near(zone: Zone, corners: Points) -> None:
    assert np.array(zone.corners) == pytest.approx(np.array(corners), abs=0.012)


def is_drawn(page: Page, xs: tuple[float, float], y: float) -> bool:
    """Whether something is drawn on the canvas between two points of a row of the frame."""
    (left, top), (right, _) = at(page, (xs[0], y)), at(page, (xs[1], y))
    found = page.locator("#zone-drawing").evaluate(
        """(canvas, [left, right, top]) => {
          const area = canvas.getBoundingClientRect(), scale = canvas.width / area.width;
          const row = [left - area.left, top - area.top, right - left].map((value) => Math.round(value * scale));
          return canvas.getContext("2d").getImageData(...row, 1).data.some((value) => value > 0);
        }""",
        [left, right, top],
    )
    return bool(found)


@pytest.mark.main_way
def test_a_zone_is_drawn_with_the_mouse(chromium: Browser, served: Served) -> None:
    with opened(chromium, served.page.address) as page:
        expect(page.locator("#zones-known")).to_contain_text("A zone is a named part of the picture.")
        expect(page.locator(".class .parts")).to_have_text("2 parts")
        begin(page)
        expect(page.locator("#live")).to_be_hidden()
        done, undo = page.get_by_role("button", name="Done"), page.get_by_role("button", name="Undo corner")
        expect(done).to_be_disabled()
        expect(undo).to_be_disabled()
        for corner in [*DOOR, (0.9, 0.9)]:
            page.mouse.click(*at(page, corner))
        page.locator("#zone-drawing").press("Backspace")
        expect(page.locator("#zone-hint")).to_have_text(
            "Add corners, or close the zone: press its first corner or Done."
        )
        undo.click()
        expect(page.locator("#zone-hint")).to_have_text("At least 1 more corner.")
        page.mouse.click(*at(page, DOOR[2]))
        assert is_drawn(page, (0.4, 0.41), 0.4)  # it is filled
        assert not is_drawn(page, (0, 0.2), 0.9)

        page.mouse.click(*at(page, DOOR[0]))  # closes it
        expect(page.get_by_label("Zone name")).to_be_focused()
        page.mouse.move(*at(page, DOOR[2]))
        page.mouse.down()
        page.mouse.move(*at(page, (0.5, 0.9)), steps=4)
        page.mouse.up()
        page.mouse.click(*at(page, (0.05, 0.9)))  # sets no corner: it is closed
        save(page, "the door")
        expect(page.locator("#live")).to_be_visible()
        expect(item(page, "the door")).to_contain_text("cup")
        expect(page.locator("#bank-saved")).to_have_text("Not saved yet.")
        (door,) = served.model.enrolled.zones
        is_near(door, [*DOOR[:2], (0.5, 0.9)])

        begin(page)
        assert is_drawn(page, (0.2, 0.35), 0.4)  # the edge of the first zone
        assert not is_drawn(page, (0.35, 0.5), 0.4)
        for corner in [(0.002, 0.003), (0.3, 0.01), (0.01, 0.15)]:
            page.mouse.click(*at(page, corner))
        done.click()
        save(page, "corner")
        expect(item(page, "corner")).to_contain_text("nothing")
        assert served.model.enrolled.zones[1].corners[0] == (0, 0)  # near the edge is on it


def test_a_small_zone_is_drawn_on_a_zoomed_picture(chromium: Browser, served: Served) -> None:
    small: Points = [(0.5, 0.5), (0.51, 0.5), (0.51, 0.52)]  # nearer than a corner that is taken hold of
    with opened(chromium, served.page.address) as page:
        begin(page)
        page.mouse.move(*at(page, small[1]))
        for _ in range(9):
            page.mouse.wheel(0, -100)
        expect(page.locator("#zone-zoom-out")).to_have_attribute("aria-disabled", "false")
        for corner in small:
            page.mouse.click(*at(page, corner))
        assert is_drawn(page, (0.506, 0.507), 0.503)
        page.get_by_role("button", name="Done").click()
        save(page, "switch")
        (switch,) = served.model.enrolled.zones
        assert np.array(switch.corners) == pytest.approx(np.array(small), abs=0.002)
        expect(page.locator("#frozen")).to_have_css("transform", "none")
        begin(page)
        page.keyboard.press("+")
        expect(page.locator("#zone-drawing")).to_have_css("transform", re.compile(r"matrix\(1[.]5, 0, 0, 1[.]5"))
        page.get_by_role("button", name="Zoom out").click()
        expect(page.locator("#zone-drawing")).to_have_css("transform", "none")


def test_two_fingers_zoom_and_set_no_corner(chromium: Browser, served: Served) -> None:
    with opened(chromium, served.page.address, PHONE, has_touch=True) as page:
        begin(page)
        x, y = at(page, (0.5, 0.5))
        fingers = page.context.new_cdp_session(page)
        hint = page.locator("#zone-hint")

        def touch(kind: str, *places: float) -> None:
            points = [{"x": x + place, "y": y, "id": number} for number, place in enumerate(places)]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", -30)
        expect(hint).to_have_text("At least 2 more corners.")  # the control: one finger sets one
        touch("touchStart", -30, 30)
        expect(hint).to_have_text("Click or tap the corners of the zone, in order around it.")
        for place in (40, 50, 60):
            touch("touchMove", -place, place)
        touch("touchEnd")
        expect(page.locator("#frozen")).to_have_css("transform", re.compile(r"matrix\((1[.]9|2)"))
        expect(hint).to_have_text("Click or tap the corners of the zone, in order around it.")


def test_drawing_is_cancelled_and_gives_way_to_adding_a_class(chromium: Browser, served: Served) -> None:
    with opened(chromium, served.page.address) as page:
        for cancel in (
            lambda: page.keyboard.press("Escape"),
            lambda: page.get_by_role("button", name="Cancel").click(),
        ):
            begin(page)
            page.mouse.click(*at(page, DOOR[0]))
            cancel()
            expect(page.locator("#zone-drawing")).to_be_hidden()
            expect(page.locator("#live")).to_be_visible()
            expect(page.get_by_role("button", name="Draw a zone")).to_be_focused()
        begin(page)
        page.get_by_role("button", name="Add picture").click()
        expect(page.locator("#drawing")).to_be_visible()
        expect(page.locator("#zone-drawing")).to_be_hidden()
        expect(page.locator("#zone-form")).to_be_hidden()
        page.get_by_role("button", name="Draw a zone").click()
        expect(page.locator("#zone-drawing")).to_be_visible()
        expect(page.locator("#drawing")).to_be_hidden()
        expect(page.locator("#enroll")).to_be_hidden()
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name="Add a class")).to_be_visible()
    assert served.model.enrolled.zones == ()


def test_a_refused_zone_is_explained_and_can_be_saved_under_another_name(chromium: Browser, served: Served) -> None:
    served.client.post("/api/zones", json={"name": "door", "corners": DOOR})
    with opened(chromium, served.page.address) as page:
        begin(page)
        for corner in DOOR:
            page.mouse.click(*at(page, corner))
        page.locator("#zone-drawing").press("Enter")
        page.get_by_label("Zone name").fill("door")
        page.keyboard.press("Enter")
        expect(page.locator("#banner")).to_have_text("Two zones are named 'door'; give each its own name.")
        save(page, "other door")
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.locator("#zones li")).to_have_count(2)


def test_a_zone_is_drawn_with_the_keyboard_alone_and_removed(chromium: Browser, served: Served) -> None:
    with opened(chromium, served.page.address) as page:
        page.get_by_role("button", name="Draw a zone").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#zone-drawing")).to_be_focused()
        hint = page.locator("#zone-hint")

        def press(*keys: str) -> None:
            for key in keys:
                page.keyboard.press(key)

        press(*["ArrowLeft"] * 5, "Shift+ArrowUp", " ")
        expect(hint).to_have_text("Corner 1 is set. At least 2 more corners.")
        press(*["ArrowRight"] * 30)  # stops at the edge
        expect(hint).to_have_text("100 % from the left, 50 % from the top. At least 2 more corners.")
        press(" ", "Enter")  # too early
        expect(hint).to_contain_text("At least 1 more corner.")
        press(*["ArrowDown"] * 10, " ", "ArrowLeft", " ", "Backspace", "Enter")
        expect(page.get_by_label("Zone name")).to_be_focused()
        page.keyboard.type("yard")
        page.keyboard.press("Enter")
        expect(page.locator("#zone-drawing")).to_be_hidden()
        expect(page.get_by_role("button", name="Draw a zone")).to_be_focused()
        expect(item(page, "yard")).to_be_visible()
        (yard,) = served.model.enrolled.zones
        assert yard.corners == ((0.4, 0.496), (1, 0.496), (1, 0.696))

        page.keyboard.press("Shift+Tab")
        remove = item(page, "yard").get_by_role("button")
        expect(remove).to_be_focused()
        page.keyboard.press("Enter")
        expect(remove).to_have_text("Really remove?")
        assert len(served.model.enrolled.zones) == 1
        page.keyboard.press("Enter")
        expect(page.locator("#zones li")).to_have_count(0)
        expect(page.get_by_role("button", name="Draw a zone")).to_be_focused()
    assert served.model.enrolled.zones == ()


def test_a_zone_is_drawn_with_a_finger_on_a_phone(chromium: Browser, served: Served) -> None:
    name = "the door to the yard, with a long name" + "e" * 26
    with opened(chromium, served.page.address, PHONE, has_touch=True) as page:

        def fits() -> None:
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
            for button in page.locator("#zone-form button:visible, #zones-card button:visible").all():
                area = button.bounding_box()
                assert area is not None
                assert area["height"] >= 36  # large enough for a thumb
                assert 0 <= area["x"] <= area["x"] + area["width"] <= PHONE["width"]

        page.get_by_role("button", name="Draw a zone").tap()
        expect(page.locator("#zone-drawing")).to_be_in_viewport(ratio=1)
        expect(page.locator("#zone-keys")).to_be_hidden()
        for corner in [*DOOR, (0.3, 0.9)]:
            page.touchscreen.tap(*at(page, corner))
        fits()
        page.get_by_role("button", name="Undo corner").tap()
        x, y = at(page, DOOR[0])
        page.touchscreen.tap(x + 8, y - 8)  # a finger is not exact
        fits()
        page.get_by_label("Zone name").fill(name)
        page.get_by_role("button", name="Save zone").tap()
        expect(item(page, name)).to_be_visible()
        fits()
        (door,) = served.model.enrolled.zones
        is_near(door, DOOR)
        item(page, name).get_by_role("button", name="Remove").tap()
        fits()
        item(page, name).get_by_role("button", name="Really remove?").tap()
        expect(page.locator("#zones li")).to_have_count(0)


def test_zones_survive_save_and_a_restart(chromium: Browser, served: Served, loaded: FewShotModel) -> None:
    with opened(chromium, served.page.address) as page:
        begin(page)
        for corner in DOOR:
            page.mouse.click(*at(page, corner))
        page.get_by_role("button", name="Done").click()
        save(page, "door")
        expect(item(page, "door")).to_be_visible()
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page.locator("#bank-saved")).to_have_text("Saved.")
    saved = SupportBank.load(served.bank)
    is_near(saved.zones[0], DOOR)

    loaded.bank.zones = ()
    with serve(loaded, served.bank) as other, filmed(other.model, other.page):
        other.model.update(lambda model: model.load_bank(other.bank))
        with opened(chromium, other.page.address) as page:
            expect(item(page, "door")).to_contain_text("cup")


def test_zones_of_the_command_line_are_listed_but_not_drawn(
    chromium: Browser, served: Served, loaded: FewShotModel, tmp_path: Path
) -> None:
    model = LiveModel(loaded, (Zone("line", tuple(DOOR)),))
    with (
        PageSink("http://127.0.0.1:0", model, tmp_path / "other.safetensors") as sink,
        filmed(model, sink),
        opened(chromium, sink.address) as page,
    ):
        expect(page.locator("#zones-known")).to_have_text("The zones of this run come from the command line (--zone).")
        expect(item(page, "line")).to_contain_text("cup")
        expect(item(page, "line").get_by_role("button")).to_have_count(0)
        expect(page.get_by_role("button", name="Draw a zone")).to_have_count(0)
    assert served.client.get("/api/state").json()["zones"] == []
