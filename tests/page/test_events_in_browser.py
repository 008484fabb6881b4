"""A person at the page who sees what appeared and left: a real browser, beside a run that tells what a test says."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, ViewportSize, expect
from served_page import Served, enroll, serve
from test_page_in_browser import SEEN_WITHIN_S, WINDOW, intercept, pictures_are_loaded, started
from told_events import event, show_frame, visit
from watched_page import watched

from fsvit_edge.fewshot.predictor import FewShotModel

AT_S = 1_700_000_000.0  # another year, so that the page shows the date
PHONE: ViewportSize = {"width": 390, "height": 844}
TABLET: ViewportSize = {"width": 860, "height": 1100}
WIDE: ViewportSize = {"width": 1280, "height": 900}
LONG = "w" * 80


@pytest.fixture
def served(loaded: FewShotModel, tmp_path: Path) -> Iterator[Served]:
    """A page without classes, of a run whose answers are steady."""
    with serve(loaded, tmp_path / "bank.safetensors") as one:
        show_frame(one)
        yield one


@pytest.fixture(scope="module")
def context(chromium: Browser) -> Iterator[BrowserContext]:
    with chromium.new_context(viewport=WINDOW) as opened:
        yield opened


@pytest.fixture
def page(context: BrowserContext, served: Served) -> Iterator[Page]:
    """The page, open; an error in the browser's console fails the test."""
    with context.new_page() as opened, watched(opened, served.page.address) as page:
        expect(page.locator("#state")).to_have_text("live")
        yield page


def clock(at_s: float) -> str:
    """A time as the page shows it, in the time zone of this machine."""
    at = time.localtime(at_s)
    return f"{at.tm_mday} {time.strftime('%b %Y, %H:%M:%S', at)}"


def visits(page: Page) -> Locator:
    return page.locator(".visit")


def pixel(image: Locator) -> list[int]:
    """The color of the corner of a picture, once it is loaded."""
    found: list[int] = image.evaluate(
        """async (image) => {
          await image.decode();
          const pen = new OffscreenCanvas(1, 1).getContext("2d");
          pen.drawImage(image, 0, 0);
          return [...pen.getImageData(0, 0, 1, 1).data.slice(0, 3)];
        }"""
    )
    return found


def sides(shown: Locator) -> tuple[float, float, float, float]:
    """Left, top, right and bottom on the screen."""
    box = shown.bounding_box()
    assert box is not None
    return box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]


def tab_to(page: Page, wanted: Locator) -> None:
    for _ in range(40):
        if wanted.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"the keyboard does not reach {wanted}")


def test_an_empty_list_says_when_events_come_and_without_steady_answers_there_is_none(
    page: Page, served: Served
) -> None:
    events = page.locator("#events")
    expect(events).to_contain_text("Nothing yet. When one of your classes appears, it is listed here")
    show_frame(served, is_steady=False)
    expect(events).to_be_hidden()
    show_frame(served)
    expect(events).to_be_visible()


@pytest.mark.main_way
def test_a_visit_is_one_row_from_appearance_to_leaving(page: Page, served: Served) -> None:
    appeared, left = visit("cup", AT_S, 19.0, ("door", "bed"))
    served.page.tell(appeared)
    row = visits(page)
    expect(row).to_have_count(1)
    expect(page.locator("#no-events")).to_be_hidden()
    expect(row.locator(".name")).to_have_text("cup")
    expect(row.locator(".when")).to_have_text(f"Here since {clock(AT_S)}")
    expect(row.locator(".best")).to_have_text("best score 0.90")
    expect(row.locator(".where span")).to_have_text(["door"])
    assert pixel(row.locator("img")) == pytest.approx([50] * 3, abs=4)

    served.page.tell(left)
    expect(row.locator(".when")).to_have_text(f"Appeared {clock(AT_S)}, left {clock(AT_S + 19)} after 19 s")
    expect(row).to_have_count(1)
    expect(row.locator(".best")).to_have_text("best score 0.97")
    expect(row.locator(".where span")).to_have_text(["door", "bed"])
    assert pixel(row.locator("img")) == pytest.approx([150] * 3, abs=4)


def test_the_times_of_a_visit_differ_by_the_seconds_that_are_shown(page: Page, served: Served) -> None:
    when = visits(page).locator(".when").first
    # Cut to whole seconds, the ends of the first differ by 2 s, and those of the last by 1 s.
    for at_s, length, shown in ((0.0, 2.51, 3), (0.9, 2.51, 3), (0.9, 1.2, 1), (0.9, 0.49, 0)):
        for one in visit("cup", AT_S + at_s, length):
            served.page.tell(one)
        seconds = f"{shown} s" if shown else "less than 1 s"
        expect(when).to_have_text(f"Appeared {clock(AT_S)}, left {clock(AT_S + shown)} after {seconds}")


def test_a_video_that_is_faster_than_its_own_time_has_no_time_of_leaving(page: Page, served: Served) -> None:
    for one in (event(at_s=AT_S), event("left", at_s=AT_S + 3, duration_s=19.0)):
        served.page.tell(one)
    expect(visits(page).locator(".when")).to_have_text(f"Appeared {clock(AT_S)}, there for 19 s of the video")


def test_what_happened_last_is_first(page: Page, served: Served) -> None:
    cup, pen = visit("cup", AT_S, 4000.0), visit("pen", AT_S + 60, 125.0)
    for one in (cup[0], *pen, event(name="pen", at_s=AT_S + 900), event("left", "mug", AT_S + 950, duration_s=0.2)):
        served.page.tell(one)
    names, times = visits(page).locator(".name"), visits(page).locator(".when")
    expect(names).to_have_text(["mug", "pen", "pen", "cup"])
    expect(times).to_have_text(
        [
            f"Left {clock(AT_S + 950)} after less than 1 s",
            f"Here since {clock(AT_S + 900)}",
            f"Appeared {clock(AT_S + 60)}, left {clock(AT_S + 185)} after 2 min 5 s",
            f"Here since {clock(AT_S)}",
        ]
    )
    served.page.tell(cup[1])
    expect(names).to_have_text(["cup", "mug", "pen", "pen"])
    expect(times.first).to_contain_text("after 1 h 6 min")


def test_an_event_of_today_has_only_its_time(page: Page, served: Served) -> None:
    served.page.tell(event(at_s=time.time()))
    expect(visits(page).locator(".when")).to_have_text(re.compile(r"^Here since \d\d:\d\d:\d\d$"))


def test_the_row_has_the_color_of_the_class_and_outlives_it(page: Page, served: Served) -> None:
    for name in ("cup", "mug"):
        enroll(served, name)
    served.page.tell(event(name="mug", at_s=AT_S))
    swatch, row = page.locator('.class[data-name="mug"] .swatch'), visits(page)
    expect(row).to_have_count(1)
    color = "element => element.style.background"
    before = row.locator(".swatch").evaluate(color)
    assert before == swatch.evaluate(color) != page.locator('.class[data-name="cup"] .swatch').evaluate(color)

    pictures_are_loaded(page)
    served.client.patch("/api/classes", json={"name": "mug", "new_name": "<b>jug</b>"})
    served.page.tell(event("left", "mug", AT_S + 5))
    served.page.tell(event(name="<b>jug</b>", at_s=AT_S + 6))
    expect(row.locator(".name")).to_have_text(["<b>jug</b>", "mug"])
    expect(page.locator('.class[data-name="<b>jug</b>"]')).to_be_visible()
    pictures_are_loaded(page)
    served.client.delete("/api/classes", params={"name": "<b>jug</b>"})
    served.page.tell(event("left", "<b>jug</b>", AT_S + 11))
    expect(row.locator(".when").first).to_have_text(re.compile("left"))
    assert [one.evaluate(color) for one in row.locator(".swatch").all()] == [before, before]
    expect(page.locator("#banner")).to_be_hidden()


def test_a_picture_opens_large_and_closes_with_the_keyboard_alone(page: Page, served: Served) -> None:
    for name in ("cup", "pen"):
        served.page.tell(event(name=name, at_s=AT_S, zones=("door",)))
    expect(visits(page)).to_have_count(2)
    opener = page.get_by_role("button", name=f"Show the picture of cup: Here since {clock(AT_S)}")
    dialog = page.get_by_role("dialog", name="cup")
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Add a class").click()  # Escape must not end this
    expect(page.locator("#enroll")).to_be_visible()

    tab_to(page, opener)
    page.keyboard.press("Enter")
    expect(dialog).to_be_visible()
    expect(dialog).to_contain_text(f"Here since {clock(AT_S)} · best score 0.90 · in door")
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    small, large = visits(page).last.locator("img"), dialog.locator("img")
    assert large.evaluate("image => image.decode().then(() => image.naturalWidth)") == 320
    assert sides(large)[2] - sides(large)[0] > 3 * (sides(small)[2] - sides(small)[0])
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(opener).to_be_focused()
    expect(page.locator("#enroll")).to_be_visible()

    page.keyboard.press("Escape")  # control: now it does
    expect(page.locator("#enroll")).to_be_hidden()
    opener.click()
    page.mouse.click(5, 5)  # beside the dialog
    expect(dialog).to_be_hidden()


def test_a_row_that_moves_keeps_the_focus(page: Page, served: Served) -> None:
    for name in ("cup", "pen"):
        served.page.tell(event(name=name, at_s=AT_S))
    expect(visits(page)).to_have_count(2)
    visits(page).last.get_by_role("button").focus()
    served.page.tell(event("left", "cup", AT_S + 9))
    expect(visits(page).locator(".name")).to_have_text(["cup", "pen"])
    expect(visits(page).first.get_by_role("button")).to_be_focused()


def test_a_row_keeps_the_focus_when_its_appearance_is_no_longer_kept(page: Page, served: Served) -> None:
    for one in visit("cup", AT_S):
        served.page.tell(one)
    for number in range(48):
        served.page.tell(event("left", f"class {number}", AT_S + 100 + number))
    page.get_by_role("button", name="Show all 49").click()
    cup = visits(page).last
    expect(cup.locator(".when")).to_contain_text("Appeared")
    cup.get_by_role("button").focus()
    cup.locator("img").evaluate("image => image.decode()")  # it comes only now, and must before its event is gone

    served.page.tell(event("left", "the 51st", AT_S + 200))
    expect(cup.locator(".when")).to_have_text(f"Left {clock(AT_S + 20)} after 19 s")
    expect(cup.get_by_role("button")).to_be_focused()
    served.page.tell(event("left", "the 52nd", AT_S + 201))
    expect(cup.locator(".name")).to_have_text("class 0")  # the control: now its row is gone
    expect(page.locator(":focus")).to_have_count(0)
    expect(visits(page)).to_have_count(50)


def test_a_long_list_is_short_until_asked_and_ends_after_fifty_events(page: Page, served: Served) -> None:
    # On a busy machine the open page asked for pictures of events that were dropped before it came to them.
    page.goto("about:blank")
    for number in range(60):
        served.page.tell(event("left", f"class {number}", AT_S + number))
    page.goto(served.page.address)
    expect(visits(page).first.locator(".name")).to_have_text("class 59")
    expect(visits(page)).to_have_count(50)
    expect(visits(page).filter(visible=True)).to_have_count(6)
    page.get_by_role("button", name="Show all 50").click()
    expect(visits(page).filter(visible=True)).to_have_count(50)
    fewer = page.get_by_role("button", name="Show fewer")
    expect(fewer).to_have_attribute("aria-expanded", "true")
    fewer.click()
    expect(visits(page).filter(visible=True)).to_have_count(6)


def test_events_of_another_run_replace_those_that_are_shown(page: Page, served: Served) -> None:
    served.page.tell(event(at_s=AT_S))
    page.reload()
    image = visits(page).locator("img")
    expect(image).to_have_attribute("src", re.compile(r"^/api/events/1\.jpg\?run=\w+$"))
    own = image.get_attribute("src")

    def answer_as_another_run(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "run_id": "another"})

    intercept(page, "**/api/state", answer_as_another_run)
    expect(image).to_have_attribute("src", "/api/events/1.jpg?run=another")
    assert own != "/api/events/1.jpg?run=another"
    expect(page.locator("#told")).to_be_empty()  # neither was news


def test_a_screen_reader_is_told_the_news_and_not_more_often_than_every_ten_seconds(page: Page, served: Served) -> None:
    page.clock.install()  # jumps over the ten seconds
    served.page.tell(event(name="cup"))
    told = page.get_by_role("status").and_(page.locator("#told"))
    expect(told).to_have_text("cup appeared.")
    served.page.tell(event("left", "cup", 1_700_000_005.0))
    expect(visits(page).locator(".when")).to_contain_text("left")
    served.page.tell(event(name="pen"))
    expect(visits(page)).to_have_count(2)
    expect(told).to_have_text("cup appeared.")
    page.clock.fast_forward(10_000)
    expect(told).to_have_text("cup left, pen appeared.")


def test_on_a_wide_screen_the_list_is_below_the_picture_and_on_a_phone_below_the_classes(
    page: Page, served: Served
) -> None:
    enroll(served, "cup")
    served.page.tell(event(at_s=AT_S))
    expect(visits(page)).to_have_count(1)
    events, scene, item = page.locator("#events"), page.locator("#scene"), page.locator(".class")
    last_of_class, opener = item.get_by_role("button").last, visits(page).get_by_role("button")
    for size in (WIDE, PHONE, WIDE):
        page.set_viewport_size(size)
        expect(page.locator("#side + #events" if size is WIDE else "#classes + #events")).to_be_attached()
        last_of_class.focus()
        page.keyboard.press("Tab")
        expect(page.locator("#learn") if size is WIDE else opener).to_be_focused()
        left, top, right, bottom = sides(events)
        if size is WIDE:
            assert sides(page.locator("#stage"))[3] < top < sides(page.locator("#stage"))[3] + 40
            assert right < sides(item)[0]
        else:
            assert sides(item)[3] < top < bottom < sides(scene)[1]
            assert (left, right) == (sides(item)[0], sides(item)[2])
            page.keyboard.press("Tab")
            expect(page.locator("#learn")).to_be_focused()


def test_the_list_fits_every_screen_whatever_the_names(page: Page, served: Served) -> None:
    for one in visit(LONG, AT_S, 19.0, (LONG, "door", "bed")):
        served.page.tell(one)
    expect(visits(page).locator(".where span")).to_have_count(3)
    width = "document.documentElement.scrollWidth"
    for size in (WIDE, TABLET, PHONE):
        page.set_viewport_size(size)
        assert page.evaluate(width) <= size["width"]
        assert page.locator("#events").evaluate("element => element.scrollWidth <= element.clientWidth")
    opener = visits(page).get_by_role("button")
    left, top, right, bottom = sides(opener)
    assert min(right - left, bottom - top) >= 44  # large enough for a thumb
    opener.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    left, top, right, bottom = sides(dialog)
    assert 0 <= left < right <= PHONE["width"]
    assert 0 <= top < bottom <= PHONE["height"]
    assert dialog.evaluate("element => element.scrollWidth <= element.clientWidth")
    page.keyboard.press("Escape")
    page.locator("#events").evaluate("element => { element.style.overflowWrap = 'normal'; }")
    assert page.evaluate(width) > PHONE["width"]  # control


def test_a_real_run_lists_the_visits_of_the_demo(context: BrowserContext, tmp_path: Path) -> None:
    with started(tmp_path) as address, context.new_page() as page:
        page.goto(address)
        gone = visits(page).filter(has_text=re.compile(r"Appeared \d\d:\d\d:\d\d, left \d\d:\d\d:\d\d after \d+ s"))
        expect(gone.nth(1)).to_be_visible(timeout=1000 * SEEN_WITHIN_S)
        for image in gone.locator("img").filter(visible=True).all():
            assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
        told = context.request.get(urljoin(address, "/api/events")).json()
        assert {one["event"] for one in told} == {"appeared", "left"}
        classes = {
            one["name"]: one["color"] for one in context.request.get(urljoin(address, "/api/state")).json()["classes"]
        }
        assert all(classes[one["name"]] == one["color"] for one in told)
