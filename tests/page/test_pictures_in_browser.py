"""A phone at the page: a picture is taken or opened and enrolled, and what is found is downloaded; a real browser."""

import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, expect
from served_page import HEIGHT, WIDTH, Served, picture, serve, show
from test_page_in_browser import drag, item
from test_page_pictures import photo
from test_zones_in_browser import PHONE, opened

from fsvit_edge.fewshot.predictor import FewShotModel


def file(content: bytes, name: str = "photo.jpg") -> FilePayload:
    return {"name": name, "mimeType": "image/jpeg", "buffer": content}


@pytest.fixture
def page(chromium: Browser, served: Served) -> Iterator[Page]:
    with opened(chromium, served.page.address, PHONE, has_touch=True) as page:
        yield page


@pytest.mark.main_way
def test_a_photo_of_the_phone_takes_the_place_of_a_frozen_frame(page: Page, served: Served) -> None:
    camera = page.locator("#photo")
    assert (camera.get_attribute("capture"), camera.get_attribute("accept")) == ("environment", "image/*")
    assert page.locator("#picture-file").get_attribute("capture") is None
    expect(page.get_by_text("Take a photo")).to_be_visible()
    camera.set_input_files(file(photo(picture())))
    expect(page.locator("#drawing")).to_be_focused()
    size = page.locator("#frozen").evaluate("one => [one.naturalWidth, one.naturalHeight]")
    assert size == [HEIGHT, WIDTH]  # it is upright
    for hidden in ("#live", "#pictures", "#freeze", "#steps"):
        expect(page.locator(hidden)).to_be_hidden()
    with page.expect_request("**/mask"):
        drag(page, (0.3, 0.35, 0.7, 0.7))
    page.get_by_label("Class name").fill("cup")
    page.locator("#submit").click()
    expect(item(page, "cup")).to_be_visible()
    support = served.model.enrolled.supports["cup"][0]
    height, width, _ = support.thumbnail.shape
    assert (support.has_mask, height > width) == (True, True)
    expect(page.locator("#found-told")).to_contain_text("Found: cup")  # the picture stays, with what is found now
    page.get_by_role("button", name="Back to live").click()
    expect(page.locator("#freeze")).to_be_visible()
    expect(page.locator("#pictures")).to_be_visible()


def test_without_a_finger_only_files_are_opened(chromium: Browser, served: Served) -> None:
    with opened(chromium, served.page.address) as page:
        expect(page.get_by_text("Take a photo")).to_be_hidden()
        expect(page.get_by_text("Open a picture…")).to_be_visible()
        page.locator("#picture-file").set_input_files(file(photo(picture(), orientation=1)))
        expect(page.locator("#drawing")).to_be_focused()


def test_without_a_camera_a_refused_file_is_told_and_the_next_is_drawn_on(
    chromium: Browser, loaded: FewShotModel, tmp_path: Path
) -> None:
    with serve(loaded, tmp_path / "bank.safetensors") as served, chromium.new_page() as page:
        page.goto(served.page.address)
        expect(page.locator("#waiting")).to_be_visible()
        opening = page.locator("#picture-file")
        opening.set_input_files(file(b"no picture", "notes.jpg"))
        expect(page.locator("#banner")).to_contain_text("notes.jpg is damaged or not a PNG, JPEG")
        expect(opening).to_be_enabled()
        opening.set_input_files(file(photo(picture())))
        expect(page.locator("#drawing")).to_be_visible()
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.locator("#waiting")).to_be_hidden()
        with page.expect_request("**/mask"):
            drag(page, (0.3, 0.35, 0.7, 0.7))


@pytest.mark.parametrize(("button", "kind"), [("Download mask", "mask.png"), ("Download picture", "found.jpg")])
def test_what_is_found_is_downloaded_of_the_newest_and_of_the_frozen_frame(
    page: Page, served: Served, button: str, kind: str
) -> None:
    at = r"20\d\d-\d\d-\d\d-\d{6}"

    def downloaded(name: str) -> np.ndarray:
        with page.expect_download() as download:
            page.get_by_role("button", name=button).click()
        assert re.fullmatch(name, download.value.suggested_filename)
        with Image.open(BytesIO(Path(download.value.path()).read_bytes())) as image:
            return np.array(image.convert("RGB"))

    page.get_by_role("button", name="Add a class").click()
    expect(page.locator("#drawing")).to_be_focused()
    show(served, np.full((40, 60, 3), 200, np.uint8))
    assert downloaded(f"cam-{at}-{kind}").shape == (HEIGHT, WIDTH, 3)
    page.keyboard.press("Escape")
    expect(page.locator("#freeze")).to_be_visible()
    assert downloaded(f"cam-{at}-{kind}").shape == (40, 60, 3)
    page.locator("#picture-file").set_input_files(file(photo(picture()), "My cup: 2 ü.v1.jpeg"))
    expect(page.locator("#drawing")).to_be_focused()
    assert downloaded(f"My-cup-2-ü.v1-{kind}").shape == (WIDTH, HEIGHT, 3)


def test_a_class_that_is_present_comes_first_in_the_row_of_scores(page: Page) -> None:
    places = page.evaluate(
        """() => {
          const row = document.getElementById("glance"), chip = '<span class="name">a class</span>';
          row.innerHTML = `<li>${chip}</li>`.repeat(12) + `<li class="present">${chip}</li>` + `<li>${chip}</li>`;
          return [...row.children].map((one) => one.getBoundingClientRect().left);
        }"""
    )
    assert places[12] == min(places) < PHONE["width"]
    assert places[0] == sorted(places)[1]  # the others stay in their order
    assert places[11] > PHONE["width"]  # the control: it would be out of sight
