"""The page of a real run of the demo in a real browser: Debian's Chromium, headless."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urljoin, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, FloatRect, Locator, Page, Route, ViewportSize, expect

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, read_manifest

WINDOW: ViewportSize = {"width": 1280, "height": 860}
TOKEN = "browser-test-token"
BUNDLED_LEVEL = read_manifest(DEFAULT_BUNDLE).presence_level
SEEN_WITHIN_S = 100.0  # the demo shows each photograph every 20 s; a busy machine may miss some of its frames


@contextmanager
def started(folder: Path, port: int = 0, *options: str) -> Iterator[str]:
    """The address of the page of a run of the demo; fails unless the run ends cleanly."""
    command = [sys.executable, "-m", "fsvit_edge.cli.main", "run", "demo", *options]
    command += ["--sink", f"http://127.0.0.1:{port}", "--token", TOKEN, "--threads", "1"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        printed = ""
        while "The page is at " not in printed:
            line = process.stderr.readline()
            assert line, printed
            printed += line
        try:
            yield f"{line.removeprefix('The page is at ').strip()}?token={TOKEN}"
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with started(folder) as printed:
        yield printed


@pytest.fixture
def page(address: str, chromium: Browser) -> Iterator[Page]:
    """The page, open; an error in the browser's console fails the test.

    One error is allowed: the request for a picture whose class is just being removed fails, and the browser always
    logs that.
    """
    errors: list[str] = []
    refused: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error":
            url = urlsplit(message.location["url"])
            if url.path == "/api/supports.png":
                refused.append(parse_qs(url.query)["name"][0])
            else:
                errors.append(f"{message.text} {message.location}")

    with chromium.new_context(viewport=WINDOW) as context:
        opened = context.new_page()
        opened.on("console", note)
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.goto(address)
        yield opened
        state = context.request.get(urljoin(address, "/api/state")).json()
    assert errors == []
    assert not {one["name"] for one in state["classes"]}.intersection(refused)


def item(page: Page, name: str) -> Locator:
    """A class in the list."""
    return page.locator(f'.class[data-name="{name}"]')


def wait_for(page: Page, name: str) -> None:
    """Wait until a class is present."""
    expect(item(page, name)).to_have_class(re.compile("present"), timeout=1000 * SEEN_WITHIN_S)


def place_of(page: Page, drawn_on: str) -> FloatRect:
    """Where something of the picture is on the screen.

    A click on a busy machine may have scrolled it away: playwright tries again, and scrolls to another place for that.
    """
    page.locator("#picture").scroll_into_view_if_needed()
    area = page.locator(drawn_on).bounding_box()
    assert area is not None
    return area


def drag(page: Page, share_xyxy: tuple[float, float, float, float]) -> None:
    """Drag a box; its corners are shares of the width and height of the drawing."""
    area = place_of(page, "#drawing")
    left, top, right, bottom = share_xyxy
    page.mouse.move(area["x"] + left * area["width"], area["y"] + top * area["height"])
    page.mouse.down()
    page.mouse.move(area["x"] + right * area["width"], area["y"] + bottom * area["height"], steps=6)
    page.mouse.up()


def enroll(page: Page, name: str, how: str, box: tuple[float, float, float, float] | None = None) -> None:
    """Add a class by "Box", "Paint" or "Name only", after a drag over a box."""
    page.get_by_role("button", name="Add a class").click()
    expect(page.locator("#drawing")).to_be_visible()
    page.get_by_role("radio", name=how).check()
    if box is not None:
        drag(page, box)
    page.get_by_label("Class name").fill(name)
    page.locator("#submit").click()


def remove(shown: Locator) -> None:
    """Remove a class; the first click only asks for confirmation."""
    shown.get_by_role("button", name="Remove").click()
    expect(shown).to_be_visible()
    shown.get_by_role("button", name="Really remove?").click()
    expect(shown).to_have_count(0)


def pictures_are_loaded(page: Page) -> None:
    """Wait for the pictures of the classes: the request for one that is removed meanwhile would be refused."""
    # A function, as everywhere: an expression is looked at once, and then again by `eval`, which the page forbids.
    page.wait_for_function("() => [...document.querySelectorAll('.class img')].every((one) => one.complete)")


def intercept(page: Page, url: str | re.Pattern[str], answer: Callable[[Route], object]) -> None:
    """Answer the requests of the page to an address.

    As `page.route`, but it returns only when the page asks through it: on a busy machine, one in five requests that
    were made right after `page.route` passed by it.
    """
    page.route("**/icon.svg?probe", lambda route: route.fulfill(status=204))
    page.route(url, answer)
    page.evaluate("async () => { while ((await fetch('/icon.svg?probe')).status !== 204); }")


def hold(page: Page, url: str | re.Pattern[str]) -> Callable[[], Route]:
    """Hold back the requests to an address; what is returned waits for the next of them and gives it."""
    held: list[Route] = []
    # A lambda, because playwright cannot set attributes on a built-in method.
    intercept(page, url, lambda route: held.append(route))

    def first() -> Route:
        deadline = time.monotonic() + 60
        while not held:
            assert time.monotonic() < deadline
            page.wait_for_timeout(10)
        return held.pop(0)

    return first


def wait_for_movement(page: Page) -> None:
    first = page.locator("#live").screenshot()
    deadline = time.monotonic() + 60
    while page.locator("#live").screenshot() == first:
        assert time.monotonic() < deadline, "the picture does not change"


@pytest.mark.main_way
def test_the_picture_and_the_figures_are_live(page: Page) -> None:
    expect(page.locator("#state")).to_have_text("live")
    expect(page.locator("#fps")).to_have_text(re.compile(r"[0-9]+\.[0-9]"))
    expect(page.locator("#age")).to_have_text(re.compile(r"[0-9]+ ms"))
    wait_for_movement(page)


@pytest.mark.main_way
def test_the_token_leaves_the_address_bar(page: Page) -> None:
    assert TOKEN not in page.url
    page.reload()
    expect(page.locator("#state")).to_have_text("live")


@pytest.mark.main_way
def test_a_class_is_enrolled_by_a_box_found_renamed_and_removed(page: Page, folder: Path) -> None:
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    wait_for(page, "cat")
    enroll(page, "tom <b>& co</b>", "Box", (0.2, 0.05, 0.8, 0.95))
    report = page.locator("#report")
    expect(report).to_contain_text("tom <b>& co</b> is enrolled")
    expect(report).to_contain_text("score in this frame")
    wait_for(page, "tom <b>& co</b>")
    shown = item(page, "tom <b>& co</b>")
    # Waits for such a frame, a round of the tour at most: a class stays present for a second after its scene.
    expect(shown.locator(".score")).to_have_text(
        re.compile(r"^\s*(0\.(5[1-9]|[6-9])|1\.)"), timeout=1000 * SEEN_WITHIN_S
    )
    expect(shown.locator(".bar .level")).to_have_attribute("style", f"left: {100 * BUNDLED_LEVEL:g}%;")
    expect(shown.locator(".bar")).to_have_attribute("title", f"Present above {BUNDLED_LEVEL:.2f}")
    expect(shown.locator(".supports img")).to_have_count(1)
    assert shown.locator(".supports img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 10
    expect(page.locator("#bank-saved")).to_have_text("Not saved yet.")

    shown.get_by_role("button", name="Rename").click()
    page.keyboard.type("tom")
    page.keyboard.press("Enter")
    tom = item(page, "tom")
    expect(tom).to_be_visible()

    page.get_by_role("button", name="Save").click()
    expect(page.locator("#bank-saved")).to_have_text("Saved.")
    assert (folder / "bank.safetensors").is_file()

    remove(tom)


def test_a_downloaded_bank_can_be_loaded(page: Page, folder: Path) -> None:
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    saved = folder / "downloaded.safetensors"
    download.value.save_as(saved)
    rocket = item(page, "rocket")
    remove(rocket)
    page.locator("#upload").set_input_files(saved)
    page.get_by_role("button", name="Replace").click()
    expect(rocket).to_be_visible()


def test_paint_and_name_only_enroll_too_and_can_be_undone(page: Page) -> None:
    for name, how, box in (("painted", "Paint", (0.4, 0.4, 0.6, 0.6)), ("named", "Name only", None)):
        enroll(page, name, how, box)
        expect(item(page, name)).to_be_visible()
        page.get_by_role("button", name="Undo").click()
        expect(item(page, name)).to_have_count(0)


def test_a_late_picture_of_a_removed_class_is_ignored(page: Page) -> None:
    held = hold(page, re.compile("/api/supports.png.*name=brief"))
    enroll(page, "brief", "Name only")
    brief = item(page, "brief")
    expect(brief).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(brief).to_have_count(0)
    with page.expect_response(re.compile("name=brief")) as late:
        held().continue_()
    assert late.value.status == 400
    expect(page.locator("#state")).to_have_text("live")
    expect(page.locator("#banner")).to_be_hidden()


def test_a_box_can_be_drawn_with_the_keyboard_and_a_mistake_is_reported(page: Page) -> None:
    page.get_by_role("button", name="Add a class").click()
    page.get_by_label("Class name").fill("keyed")
    page.keyboard.press("Enter")
    expect(page.locator("#hint")).to_contain_text("Drag a box around the object first")
    page.locator("#drawing").focus()
    with page.expect_response(re.compile("/mask$")) as preview:
        page.keyboard.press("Shift+ArrowRight")
    assert preview.value.status == 200
    expect(page.locator("#hint")).to_have_text("Drag a box around the object.")
    page.keyboard.press("Escape")
    expect(page.locator("#live")).to_be_visible()
    expect(page.locator("#freeze")).to_be_focused()


def test_the_api_is_documented_without_the_internet(page: Page, address: str) -> None:
    page.goto(urljoin(address, "/docs"))
    row = page.get_by_role("row").filter(has_text="/api/classes").filter(has_text="POST")
    expect(row).to_contain_text("name, frame_id, box_xyxy?, mask_png?")
    expect(row).to_contain_text("Enroll a frozen frame")


@pytest.mark.main_way
def test_the_page_fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator("#state")).to_have_text("live")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    area = page.get_by_role("button", name="Add a class").bounding_box()
    assert area is not None
    assert area["height"] >= 44  # large enough for a thumb
    assert area["y"] + area["height"] <= 844


def test_an_open_page_shows_the_classes_of_a_restarted_run(chromium: Browser, tmp_path: Path) -> None:
    bank = tmp_path / "other.safetensors"
    with FewShotModel.load(threads=1) as model:
        model.enroll("kettle", [np.zeros((64, 64, 3), np.uint8)])
        model.save_bank(bank)
    with chromium.new_context(viewport=WINDOW) as context:
        page = context.new_page()
        with started(tmp_path) as first:
            page.goto(first)
            expect(item(page, "cat")).to_be_visible()
        port = urlsplit(first).port
        expect(page.locator("#state")).to_have_text("unreachable")
        with started(tmp_path, port, "--bank", str(bank), "--sink", "mqtt://127.0.0.1:1/nobody"):
            expect(page.locator("#state")).to_have_text("live")
            expect(item(page, "kettle")).to_be_visible()
            expect(page.locator(".class")).to_have_count(1)
            trouble = "mqtt://127.0.0.1:1/nobody: The broker does not respond"
            expect(page.locator("#banner")).to_contain_text(trouble)
            page.get_by_role("button", name="Save").click()
            expect(page.locator("#bank-saved")).to_have_text("Saved.")
            expect(page.locator("#banner")).to_contain_text(trouble)
            wait_for_movement(page)
