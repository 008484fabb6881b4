"""A person at the page who is told a false alarm: a real browser, beside a camera that sees what a test wants."""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from playwright.sync_api import Browser, Locator, Page, Route, expect
from served_page import Served, health, serve, shooting
from test_page_in_browser import WINDOW, drag, enroll, hold, intercept, item
from watched_page import watched

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.frame import Frame

CAT = skimage.data.chelsea()
CAT_LIKE = np.repeat(CAT.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)  # gray: another cat
NOTHING = skimage.data.coffee()
PRESENT, ABSENT = re.compile(r"\bpresent\b"), re.compile(r"^class$")
PHONE = {"width": 390, "height": 844}


class Camera:
    """What the camera sees, until a test says otherwise."""

    def __init__(self, served: Served) -> None:
        self.sees = CAT
        self.served = served

    def shoot(self, index: int) -> None:
        image = self.sees
        prediction = self.served.model.read(lambda model: model.predict(image))
        self.served.page.write(Frame(image, index, "cam", 0.0, time.monotonic(), 1.0), prediction)
        self.served.page.report(replace(health(), sinks=()))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with FewShotModel.load(threads=1) as model, serve(model, tmp_path / "bank.safetensors") as one:
        yield one


@pytest.fixture
def camera(served: Served) -> Iterator[Camera]:
    filming = Camera(served)
    with shooting(filming.shoot, 0.05):
        yield filming


@pytest.fixture
def page(camera: Camera, chromium: Browser) -> Iterator[Page]:
    """The page, open; an error in the browser's console fails the test, but for refused requests to reject."""
    address = camera.served.page.address
    with chromium.new_page(viewport=WINDOW) as opened, watched(opened, address, provoked="/api/negatives$") as page:
        yield page


def see(page: Page, camera: Camera, image: np.ndarray) -> None:
    """Wait until the page shows an answer for what the camera sees now."""
    camera.sees = image
    wait_for_frames(page, 2)
    for _ in range(3):  # the page's own poll that began since, and one more: then it is shown
        page.wait_for_event("response", lambda answer: answer.url.endswith("/api/state"))


def wait_for_frames(page: Page, count: int) -> None:
    """Wait for more frames; `wait_for_function` takes the promise of an async function for its answer."""
    page.evaluate(
        """async (count) => {
          const sequence = async () => (await (await fetch("/api/state")).json()).frame.sequence;
          const least = await sequence() + count;
          while (await sequence() < least) await new Promise((resolve) => setTimeout(resolve, 20));
        }""",
        count,
    )


def not_it(shown: Locator) -> Locator:
    return shown.get_by_role("button", name="Not it: what is found now is not cat")


def has_focus(shown: Locator) -> bool:
    return bool(shown.evaluate("element => element === document.activeElement"))


def tab_to(page: Page, wanted: Locator) -> None:
    """Press Tab until something has the focus."""
    for _ in range(40):
        if has_focus(wanted):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"the keyboard does not reach {wanted}")


@pytest.mark.main_way
def test_a_false_alarm_is_rejected_stays_off_and_can_be_undone(page: Page, camera: Camera) -> None:
    enroll(page, "cat", "Name only")
    cat = item(page, "cat")
    expect(cat).to_have_class(PRESENT)
    see(page, camera, CAT_LIKE)
    expect(cat).to_have_class(PRESENT)  # the false alarm
    see(page, camera, NOTHING)
    expect(cat).to_have_class(ABSENT)
    expect(not_it(cat)).to_be_hidden()

    see(page, camera, CAT_LIKE)
    not_it(cat).click()
    rejected = cat.locator(".rejected")
    rejected.get_by_role("button", name="Undo").hover()  # it stays, however slow the machine is
    expect(rejected).to_contain_text("Learned that this is not cat; in this picture, its score is now below its level.")
    expect(cat).to_have_class(ABSENT)
    expect(not_it(cat)).to_be_hidden()
    negatives = cat.locator(".negatives li")
    expect(negatives).to_have_count(1)
    expect(negatives).to_contain_text("Not it")
    assert negatives.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 10
    see(page, camera, CAT)
    expect(cat).to_have_class(PRESENT)
    see(page, camera, CAT_LIKE)
    expect(cat).to_have_class(ABSENT)

    rejected.get_by_role("button", name="Undo").click()
    expect(negatives).to_have_count(0)
    expect(rejected).to_be_empty()
    expect(cat).to_have_class(PRESENT)

    not_it(cat).click()
    expect(negatives).to_have_count(1)
    negatives.get_by_role("button", name="Remove").click()
    expect(negatives).to_have_count(1)
    negatives.get_by_role("button", name="Really remove?").click()
    expect(negatives).to_have_count(0)
    expect(rejected).to_be_empty()  # nothing is left to undo
    expect(cat).to_have_class(PRESENT)
    expect(page.locator("#banner")).to_be_hidden()


def test_the_undo_goes_by_itself_and_the_class_stays_in_its_place(page: Page, camera: Camera) -> None:
    page.clock.install()  # jumps over the ten seconds
    for name in ("first", "cat"):
        enroll(page, name, "Name only")
        expect(item(page, name)).to_be_visible()
    see(page, camera, CAT_LIKE)
    cat = item(page, "cat")
    not_it(cat).click()
    undo = cat.get_by_role("button", name="Undo")
    expect(undo).to_be_visible()
    expect(cat.locator(".negatives li")).to_have_count(1)
    expect(page.locator(".class .name")).to_have_text(["first", "cat"])
    page.mouse.move(0, 0)
    page.clock.fast_forward(10_000)
    expect(undo).to_have_count(0)
    expect(cat.locator(".negatives li")).to_have_count(1)


def test_a_class_that_left_since_is_not_rejected_and_the_page_says_why(page: Page, camera: Camera) -> None:
    enroll(page, "cat", "Name only")
    cat = item(page, "cat")
    expect(not_it(cat)).to_be_visible()

    held = hold(page, "**/api/frames")
    not_it(cat).click()
    expect(not_it(cat)).to_be_disabled()
    see(page, camera, NOTHING)
    expect(not_it(cat)).to_be_visible()  # still, because it was pressed
    held().continue_()
    expect(page.locator("#banner")).to_contain_text(
        "'cat' is not found in this frame, its score is not above its level"
    )
    expect(not_it(cat)).to_be_hidden()
    expect(cat.locator(".negatives li")).to_have_count(0)


def test_the_empty_scene_is_learned_with_a_countdown_and_forgotten(page: Page, camera: Camera) -> None:
    expect(page.locator("#scene-known")).to_contain_text("Not learned.")
    enroll(page, "cat", "Name only")
    see(page, camera, CAT_LIKE)
    cat = item(page, "cat")
    expect(cat).to_have_class(PRESENT)
    learn, told = page.locator("#learn"), page.locator("#scene-report")

    page.clock.install(time=0)
    page.clock.pause_at(60_000)  # or a busy machine would come too late to cancel
    learn.click()
    expect(told).to_have_text("Step out of view: 3")
    learn.click()  # Cancel
    expect(told).to_be_empty()
    expect(learn).to_have_text("Learn the empty scene")
    page.clock.run_for(5000)
    page.clock.resume()
    expect(told).to_be_empty()
    assert camera.served.model.enrolled.scene_frames == 0

    # Noted by the page itself: one second is too short to look at each in time on a busy machine.
    told.evaluate(
        """(told) => {
          window.said = [];
          new MutationObserver(() => window.said.push(told.textContent)).observe(told, { childList: true });
        }"""
    )
    learn.click()
    expect(told).to_contain_text("Taking pictures. Stay out of view.")
    assert [one for one in page.evaluate("said") if one][:3] == [f"Step out of view: {left}" for left in (3, 2, 1)]
    wait_for_frames(page, 1)  # the stream goes on
    expect(told).to_have_text(re.compile(r"^(Taking pictures\. Stay out of view\.|Checking \d+ of \d+: you can .*)$"))
    expect(told).to_contain_text("The empty scene is learned from")
    expect(told).to_contain_text(
        re.compile(r"cat: the empty scene scores [01]\.\d+, so it may be missed; press Not it")
    )
    expect(told).to_contain_text("If one of your objects was in view, press Forget and learn it again without them.")
    expect(told).to_contain_text(re.compile(r"falsely found in at most \d+ %"))
    expect(page.locator("#scene-known")).to_contain_text(re.compile(r"^\d+ pictures\. On frames like these"))
    expect(cat).to_have_class(ABSENT)
    expect(cat.locator(".raised")).to_have_text("Level raised by the empty scene.")

    page.get_by_role("button", name="Forget").click()
    page.get_by_role("button", name="Really forget?").click()
    expect(told).to_have_text("The empty scene is forgotten.")
    expect(page.locator("#forget")).to_be_hidden()
    expect(cat).to_have_class(PRESENT)
    expect(cat.locator(".raised")).to_be_hidden()


@pytest.mark.usefixtures("briefly")
def test_all_of_it_works_with_the_keyboard_alone(page: Page, camera: Camera) -> None:
    page.clock.install()  # jumps over the ten seconds of an undo
    enroll(page, "cat", "Name only")
    see(page, camera, CAT_LIKE)
    cat = item(page, "cat")
    tab_to(page, not_it(cat))
    page.keyboard.press("Enter")
    undo = cat.get_by_role("button", name="Undo")
    expect(undo).to_be_focused()
    expect(cat).to_have_class(ABSENT)
    page.clock.fast_forward(10_000)
    see(page, camera, CAT_LIKE)
    expect(undo).to_be_focused()  # it does not go while it has the focus
    page.keyboard.press("Enter")
    expect(cat).to_have_class(PRESENT)
    expect(cat.get_by_role("button", name="Add picture")).to_be_focused()

    page.keyboard.press("Shift+Tab")
    tab_to(page, not_it(cat))
    page.keyboard.press("Enter")
    expect(undo).to_be_focused()
    remove = cat.locator(".negatives").get_by_role("button", name=re.compile("remove", re.IGNORECASE))
    tab_to(page, remove)
    page.keyboard.press("Enter")
    expect(remove).to_have_text("Really remove?")
    expect(remove).to_be_focused()
    page.keyboard.press("Enter")
    expect(cat.locator(".negatives li")).to_have_count(0)
    expect(cat.get_by_role("button", name="Add picture")).to_be_focused()

    tab_to(page, page.locator("#learn"))
    page.keyboard.press("Enter")
    expect(page.locator("#scene-report")).to_have_text(re.compile("^Step out of view: [1-3]$"))
    expect(page.locator("#scene-report")).to_have_attribute("aria-live", "polite")
    expect(page.locator("#scene-report")).to_contain_text("is learned from")
    expect(page.locator("#learn")).to_be_focused()
    expect(page.locator("#forget")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator("#forget")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#forget")).to_have_text("Really forget?")
    page.keyboard.press("Enter")
    expect(page.locator("#scene-report")).to_have_text("The empty scene is forgotten.")
    expect(page.locator("#learn")).to_be_focused()


@pytest.mark.usefixtures("briefly")
def test_it_fits_a_phone(page: Page, camera: Camera) -> None:
    page.set_viewport_size(PHONE)
    name = "the cat of the neighbors, with a long name" + "e" * 30
    enroll(page, name, "Name only")
    see(page, camera, CAT_LIKE)
    shown = item(page, name)
    reject = shown.locator(".reject")
    reject.click()
    expect(shown.locator(".negatives li")).to_have_count(1)
    page.locator("#learn").click()
    expect(page.locator("#scene-report")).to_contain_text("is learned from")
    page.get_by_role("button", name="Forget").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    # All at once, because "Undo" goes after ten seconds.
    areas = page.locator("#side button:visible").evaluate_all(
        "buttons => buttons.map((one) => one.getBoundingClientRect().toJSON())"
    )
    assert len(areas) > 6
    for area in areas:
        assert area["height"] >= 36  # large enough for a thumb
        assert 0 <= area["left"] <= area["right"] <= PHONE["width"]


def test_a_painted_part_of_a_frame_is_rejected(page: Page, camera: Camera) -> None:
    enroll(page, "cat", "Name only")
    marked = page.locator("#reject-marked")
    page.get_by_role("button", name="Add a class").click()
    page.locator("#name").fill("dog")
    expect(marked).to_be_hidden()  # the control: there is no such class
    page.locator("#name").fill("cat")
    expect(marked).to_be_visible()
    page.get_by_role("radio", name="Paint").check()
    page.locator("#size").fill("80")
    drag(page, (0.2, 0.3, 0.4, 0.6))
    marked.click()
    expect(item(page, "cat").locator(".negatives li")).to_have_count(1)
    expect(page.locator("#enroll")).to_be_hidden()
    (negative,) = camera.served.model.enrolled.negatives["cat"]
    assert 0 < negative.thumbnail_mask.mean() < 0.3
    assert not negative.thumbnail_mask[:, negative.thumbnail_mask.shape[1] * 2 // 3 :].any()

    rejected = item(page, "cat").locator(".rejected")
    expect(rejected).to_contain_text("Learned that this is not cat; in")  # the control

    rejected.get_by_role("button", name="Undo").click()
    expect(item(page, "cat").locator(".negatives li")).to_have_count(0)

    def answer_as_for_a_speck(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "is_mask_too_small": True})

    intercept(page, "**/api/negatives", answer_as_for_a_speck)
    not_it(item(page, "cat")).click()
    expect(rejected).to_contain_text("this is not cat, all of the picture because that part is too small for the")
