"""What is drawn on a frozen frame, when answers come late and keys are pressed meanwhile; a real browser."""

from io import BytesIO

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, expect
from served_page import Served
from test_page_in_browser import drag, enroll, hold, place_of
from test_page_pictures import photo
from test_pictures_in_browser import file
from test_zones_in_browser import DOOR, at, begin, item, opened


def test_a_class_whose_answer_comes_late_does_not_end_what_was_begun_since(chromium: Browser, served: Served) -> None:
    with opened(chromium, served.page.address) as page:
        held = hold(page, "**/api/classes")
        for begun, drawing in (("Draw a zone", "#zone-drawing"), ("Add a class", "#drawing"), ("", "#freeze")):
            enroll(page, "cup", "Name only")
            expect(page.locator("#submit")).to_be_disabled()
            if begun:
                page.keyboard.press("Escape")
                page.get_by_role("button", name=begun).click()
                expect(page.locator(drawing)).to_be_visible()
            held().continue_()
            expect(page.locator("#report")).to_be_visible()
            expect(page.locator("#submit")).to_be_enabled()
            for shown in ("#frozen", drawing) if begun else (drawing,):
                expect(page.locator(shown)).to_be_visible()
            expect(page.locator("#freeze")).to_be_visible(visible=not begun)  # the control: without, the form ends
            page.keyboard.press("Escape")
            expect(page.locator("#freeze")).to_be_visible()


def test_a_box_on_a_picture_that_is_not_as_wide_as_the_page_is_where_it_is_dragged(
    chromium: Browser, served: Served
) -> None:
    tall = np.full((800, 400, 3), 90, np.uint8)
    with opened(chromium, served.page.address) as page:
        page.locator("#picture-file").set_input_files(file(photo(tall, orientation=1)))
        expect(page.locator("#found")).to_be_visible()
        drag(page, (0.45, 0.4, 0.55, 0.6))

        def has_line(x: float, y: float) -> bool:
            """Whether a line of the box is near a point of the canvas, given by its shares."""
            area = place_of(page, "#drawing")
            left, top = area["x"] + x * area["width"] - 8, area["y"] + y * area["height"] - 8
            shot = page.screenshot(clip={"x": left, "y": top, "width": 16, "height": 16})
            with Image.open(BytesIO(shot)) as image:
                return bool((np.array(image.convert("RGB")).max(axis=(0, 1)) > 200).any())

        assert (has_line(0.45, 0.5), has_line(0.55, 0.5)) == (True, True)
        page.locator("#drawing").evaluate("canvas => { canvas.style.objectFit = 'fill'; }")
        assert not has_line(0.45, 0.5)  # the control


def test_on_a_laptop_all_that_a_frozen_frame_asks_for_is_in_view(chromium: Browser, served: Served) -> None:
    with opened(chromium, served.page.address, {"width": 1366, "height": 625}) as page:
        page.get_by_role("button", name="Add a class").click()
        for way in ("Box", "Paint", "Name only"):
            page.get_by_label(way, exact=True).check()
            assert page.evaluate("scrollY") == 0
            expect(page.locator("#submit")).to_be_in_viewport(ratio=1)
        page.keyboard.press("Escape")
        begin(page)
        expect(page.locator("#zone-done")).to_be_in_viewport(ratio=1)
        assert page.evaluate("scrollY") == 0
        # The control: as tall as the live picture.
        page.locator("#picture img").evaluate_all("all => all.forEach((one) => { one.style.maxHeight = '74vh'; })")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Add a class").click()
        expect(page.locator("#submit")).not_to_be_in_viewport()


def test_a_zone_whose_answer_comes_late_does_not_end_a_newer_drawing(chromium: Browser, served: Served) -> None:
    with opened(chromium, served.page.address) as page:
        held = hold(page, "**/api/zones")
        for name, is_begun_again in (("first", True), ("second", False)):
            begin(page)
            for corner in DOOR:
                page.mouse.click(*at(page, corner))
            page.get_by_role("button", name="Done").click()
            page.get_by_label("Zone name").fill(name)
            page.keyboard.press("Enter")
            expect(page.locator("#zone-save")).to_be_disabled()
            if is_begun_again:
                page.keyboard.press("Escape")
                begin(page)
                page.mouse.click(*at(page, DOOR[0]))
            held().continue_()
            expect(item(page, name)).to_be_visible()
            expect(page.locator("#zone-save")).to_be_enabled()
            expect(page.locator("#zone-drawing")).to_be_visible(visible=is_begun_again)
            if is_begun_again:
                expect(page.locator("#zone-hint")).to_have_text("At least 2 more corners.")
                page.keyboard.press("Escape")


def test_a_corner_that_is_removed_while_it_is_held_is_gone(chromium: Browser, served: Served) -> None:
    with opened(chromium, served.page.address) as page:  # which fails on an error in the console
        begin(page)
        hint = page.locator("#zone-hint")
        for corner in DOOR[:2]:
            page.mouse.click(*at(page, corner))
        page.mouse.move(*at(page, DOOR[2]))
        page.mouse.down()
        expect(hint).to_have_text("Add corners, or close the zone: press its first corner or Done.")
        page.keyboard.press("Backspace")
        page.mouse.move(*at(page, (0.5, 0.9)), steps=3)
        page.mouse.up()
        expect(hint).to_have_text("At least 1 more corner.")
        page.mouse.click(*at(page, DOOR[2]))  # the control: corners are still set
        page.keyboard.press("Enter")
        expect(page.get_by_label("Zone name")).to_be_focused()


def test_the_focus_goes_to_the_drawing_when_the_last_corner_is_undone(chromium: Browser, served: Served) -> None:
    with opened(chromium, served.page.address) as page:
        begin(page)
        for corner in DOOR[:2]:
            page.mouse.click(*at(page, corner))
        undo = page.get_by_role("button", name="Undo corner")
        undo.focus()
        page.keyboard.press("Enter")
        expect(undo).to_be_focused()  # the control: one corner is left
        page.keyboard.press("Enter")
        expect(undo).to_be_disabled()
        expect(page.locator("#zone-drawing")).to_be_focused()
