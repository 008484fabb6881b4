"""What is drawn on a frozen frame, when answers come late and keys are pressed meanwhile; a real browser."""

import pytest
from playwright.sync_api import Browser, Route, expect
from served_page import Served
from test_page_in_browser import enroll
from test_zones_in_browser import DOOR, at, begin, item, opened


@pytest.mark.slow(reason="enrolls three times in a real browser, 6 s")
def test_a_class_whose_answer_comes_late_does_not_end_what_was_begun_since(chromium: Browser, served: Served) -> None:
    with opened(chromium, served.page.address) as page:
        held: list[Route] = []
        page.route("**/api/classes", lambda route: held.append(route))
        for begun, drawing in (("Draw a zone", "#zone-drawing"), ("Add a class", "#drawing"), ("", "#freeze")):
            enroll(page, "cup", "Name only")
            expect(page.locator("#submit")).to_be_disabled()
            if begun:
                page.keyboard.press("Escape")
                page.get_by_role("button", name=begun).click()
                expect(page.locator(drawing)).to_be_visible()
            held.pop().continue_()
            expect(page.locator("#report")).to_be_visible()
            expect(page.locator("#submit")).to_be_enabled()
            for shown in ("#frozen", drawing) if begun else (drawing,):
                expect(page.locator(shown)).to_be_visible()
            expect(page.locator("#freeze")).to_be_visible(visible=not begun)  # the control: without, the form ends
            page.keyboard.press("Escape")
            expect(page.locator("#freeze")).to_be_visible()


def test_a_zone_whose_answer_comes_late_does_not_end_a_newer_drawing(chromium: Browser, served: Served) -> None:
    with opened(chromium, served.page.address) as page:
        held: list[Route] = []
        page.route("**/api/zones", lambda route: held.append(route))
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
            held.pop().continue_()
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
