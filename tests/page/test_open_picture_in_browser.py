"""What is shown is what is judged: a picture or a frozen frame is open while the camera sees something else."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route, expect
from served_page import serve, shooting
from test_false_alarms_in_browser import ABSENT, CAT, CAT_LIKE, NOTHING, PRESENT, Camera, not_it, see
from test_page_in_browser import WINDOW, drag, enroll, hold, intercept, item
from test_page_pictures import photo
from test_pictures_in_browser import file
from watched_page import watched

from fsvit_edge.fewshot.predictor import FewShotModel


@pytest.fixture
def camera(loaded: FewShotModel, tmp_path: Path) -> Iterator[Camera]:
    with serve(loaded, tmp_path / "bank.safetensors") as served:
        filming = Camera(served)
        with shooting(filming.shoot, 0.05):
            yield filming


@pytest.fixture
def page(camera: Camera, chromium: Browser) -> Iterator[Page]:
    """The page, open; an error of a script fails the test, refused requests do not."""
    with chromium.new_page(viewport=WINDOW) as opened, watched(opened, camera.served.page.address, provoked="") as page:
        yield page


def open_picture(page: Page, image: np.ndarray, name: str = "photo.jpg") -> None:
    page.locator("#picture-file").set_input_files(file(photo(image, orientation=1), name))
    expect(page.locator("#judged")).to_have_text(f" in {name}")


def is_live(camera: Camera) -> bool:
    """Whether the cat is present in what the camera sees, whatever the page shows."""
    (cat,) = camera.served.client.get("/api/state").json()["classes"]
    return bool(cat["present"])


def drawn_share(page: Page) -> float:
    """Share of the picture's pixels that are drawn over by what is found; both have the same place on the screen."""
    page.locator("#found").evaluate("image => image.decode()")  # what is found is told before it is drawn
    assert page.locator("#found").bounding_box() == page.locator("#frozen").bounding_box()
    return float(
        page.evaluate(
            """() => {
              const [plain, found] = ["frozen", "found"].map((id) => {
                const image = document.getElementById(id);
                const layer = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d");
                layer.drawImage(image, 0, 0);
                return layer.getImageData(0, 0, image.naturalWidth, image.naturalHeight).data;
              });
              let count = 0;
              for (let at = 0; at < plain.length; at += 4) {
                count += [0, 1, 2].some((band) => Math.abs(plain[at + band] - found[at + band]) > 24);
              }
              return 4 * count / plain.length;
            }"""
        )
    )


def test_scores_and_not_it_are_those_of_the_picture_that_is_open(page: Page, camera: Camera) -> None:
    enroll(page, "cat", "Name only")
    see(page, camera, CAT_LIKE)
    cat = item(page, "cat")
    expect(not_it(cat)).to_be_visible()
    open_picture(page, NOTHING, "coffee.jpg")
    expect(cat).to_have_class(ABSENT)
    expect(not_it(cat)).to_be_hidden()
    expect(page.locator("#found-told")).to_contain_text("Nothing is found: cat has the highest score, 0.")
    assert is_live(camera)  # the control

    see(page, camera, NOTHING)
    page.get_by_role("button", name="Back to live").click()
    open_picture(page, CAT_LIKE)
    expect(cat).to_have_class(PRESENT)
    assert not is_live(camera)
    frozen: list[str] = []
    page.on("request", lambda asked: frozen.append(asked.url) if asked.method == "POST" else None)
    not_it(cat).click()
    expect(cat.locator(".rejected")).to_contain_text("in this picture, its score is now below its level.")
    expect(cat).to_have_class(ABSENT)
    assert [url.rpartition("/")[2] for url in frozen] == ["negatives"]  # no frame of the camera was frozen
    (negative,) = camera.served.model.enrolled.negatives["cat"]
    red, green, blue = np.moveaxis(negative.thumbnail.astype(int), 2, 0)
    assert max(np.abs(red - green).mean(), np.abs(red - blue).mean()) < 6  # it is the gray picture
    assert np.abs(NOTHING[..., 0].astype(int) - NOTHING[..., 2]).mean() > 6  # the control

    page.get_by_role("button", name="Back to live").click()
    expect(page.locator("#judged")).to_be_empty()
    see(page, camera, CAT)
    expect(cat).to_have_class(PRESENT)
    expect(page.locator("#found-told")).to_be_hidden()


@pytest.mark.parametrize("button", ["Add a class", "Draw a zone"])
def test_scores_and_not_it_are_those_of_the_frame_that_is_frozen(page: Page, camera: Camera, button: str) -> None:
    enroll(page, "cat", "Name only")
    see(page, camera, CAT_LIKE)
    page.get_by_role("button", name=button).click()
    expect(page.locator("#judged")).to_have_text(" in the frozen frame")
    see(page, camera, NOTHING)
    cat = item(page, "cat")
    expect(cat).to_have_class(PRESENT)
    assert not is_live(camera)
    not_it(cat).click()  # would be refused of what the camera sees
    expect(cat.locator(".rejected")).to_contain_text("in this picture, its score is now below its level.")
    expect(cat).to_have_class(ABSENT)
    expect(page.locator("#frozen")).to_be_visible()
    page.keyboard.press("Escape")
    see(page, camera, CAT)
    expect(cat).to_have_class(PRESENT)
    expect(page.locator("#judged")).to_be_empty()


def test_what_is_found_is_drawn_on_the_picture_and_anew_after_each_change(page: Page) -> None:
    found, told = page.locator("#found"), page.locator("#found-told")
    expect(page.locator("#bank-saved")).to_have_text("There is no such file yet.")
    open_picture(page, CAT)
    expect(told).to_be_empty()  # there is no class
    expect(found).to_be_visible()
    assert drawn_share(page) < 0.01  # the control
    page.get_by_role("radio", name="Name only").check()
    page.get_by_label("Class name").fill("cat")
    page.locator("#submit").click()
    expect(page.locator("#report")).to_contain_text("cat is enrolled.The mask is a guess: the picture in the list")
    expect(page.locator("#bank-saved")).to_have_text("Not saved yet.")
    expect(told).to_contain_text("Found: cat 0.")
    assert drawn_share(page) > 0.1
    expect(page.get_by_label("Class name")).to_have_value("")  # it is not added twice by a second press
    expect(page.locator("#frozen")).to_be_visible()

    page.evaluate("scrollTo(0, 0)")
    page.get_by_role("radio", name="Paint").check()
    drag(page, (0.4, 0.4, 0.6, 0.6))
    expect(found).to_be_hidden()  # what is painted is on the plain picture
    page.get_by_role("button", name="Clear").click()
    expect(found).to_be_visible()
    page.get_by_role("radio", name="Box").check()
    drag(page, (0.1, 0.1, 0.9, 0.9))
    expect(found).to_be_hidden()
    page.locator("#drawing").click()
    expect(found).to_be_visible()  # a click takes the box away
    page.get_by_label("Class name").fill("other")
    page.locator("#submit").click()
    expect(page.locator("#hint")).to_contain_text("Drag a box around the object first")

    not_it(item(page, "cat")).click()
    expect(told).to_contain_text("Nothing is found: cat has the highest score")
    assert drawn_share(page) < 0.01
    item(page, "cat").locator(".rejected").get_by_role("button", name="Undo").click()
    expect(told).to_contain_text("Found: cat 0.")
    assert drawn_share(page) > 0.1
    page.get_by_role("button", name="Zoom in").click()
    assert drawn_share(page) > 0.1  # at the same place, too


@pytest.mark.main_way
def test_add_picture_adds_the_picture_that_is_open(page: Page, camera: Camera) -> None:
    enroll(page, "cat", "Name only")
    see(page, camera, NOTHING)
    open_picture(page, CAT_LIKE)
    drag(page, (0.1, 0.1, 0.9, 0.9))
    item(page, "cat").get_by_role("button", name="Add picture").click()
    expect(page.get_by_label("Class name")).to_have_value("cat")
    expect(page.locator("#judged")).to_have_text(" in photo.jpg")
    page.locator("#submit").click()
    expect(item(page, "cat").locator(".supports img")).to_have_count(2)
    added = camera.served.model.enrolled.supports["cat"][1].thumbnail.astype(int)
    assert np.abs(added[..., 0] - added[..., 2]).mean() < 6  # gray
    page.get_by_role("button", name="Back to live").click()
    item(page, "cat").get_by_role("button", name="Add picture").click()
    expect(page.locator("#judged")).to_have_text(" in the frozen frame")  # the control


def test_an_answer_that_comes_late_is_not_drawn_on_something_else(page: Page) -> None:
    enroll(page, "cat", "Name only")
    expect(item(page, "cat")).to_have_class(PRESENT)
    held = hold(page, "**/answer")
    told, score = page.locator("#found-told"), item(page, "cat").locator(".score")
    open_picture(page, CAT)
    expect(told).to_have_text("Looking for your classes…")
    expect(score).to_be_empty()
    expect(not_it(item(page, "cat"))).to_be_hidden()
    page.keyboard.press("Escape")
    open_picture(page, NOTHING, "coffee.jpg")
    expect(told).to_have_text("Looking for your classes…")
    late, mine = held(), held()
    with page.expect_response("**/answer"):
        late.continue_()
    page.wait_for_timeout(300)
    expect(told).to_have_text("Looking for your classes…")
    expect(page.locator("#found")).to_be_hidden()
    mine.continue_()
    expect(told).to_contain_text("Nothing is found")
    expect(page.locator("#found")).to_be_visible()
    expect(score).not_to_be_empty()


def test_a_busy_model_is_asked_again_and_a_frame_that_is_gone_is_not(page: Page) -> None:
    enroll(page, "cat", "Name only")
    expect(item(page, "cat")).to_have_class(PRESENT)
    asked: list[int] = []

    def refuse(route: Route) -> None:
        asked.append(1)
        if len(asked) == 1:
            route.fulfill(status=503, json={"error": "The model was busy."})
        else:
            route.continue_()

    intercept(page, "**/answer", refuse)
    told = page.locator("#found-told")
    open_picture(page, CAT)
    expect(told).to_contain_text("Found: cat")
    assert len(asked) == 2
    page.unroute("**/answer")
    page.keyboard.press("Escape")

    def forget(route: Route) -> None:
        asked.append(1)
        route.fulfill(status=400, json={"error": "This frame is no longer available; freeze another one."})

    intercept(page, "**/answer", forget)
    open_picture(page, CAT)
    expect(told).to_have_text("This frame is no longer available; freeze another one.")
    page.wait_for_timeout(1000)  # four polls
    assert len(asked) == 3
