"""The list of classes in a real browser: what somebody is about to press stays while other things change."""

import numpy as np
from playwright.sync_api import Browser, Page, expect
from served_page import Served, enroll, picture
from test_zones_in_browser import item as zone_item
from test_zones_in_browser import opened

DOOR = [[0.2, 0.2], [0.6, 0.25], [0.55, 0.8]]


def keys(served: Served) -> dict[str, list[str]]:
    """By class, the keys of its pictures, and of those that it is not."""
    classes = served.client.get("/api/state").json()["classes"]
    return {one["name"]: [picture["key"] for picture in one["supports"] + one["negatives"]] for one in classes}


def reject(served: Served, name: str, image: np.ndarray) -> None:
    mask = np.ones(image.shape[:2], np.bool_)
    served.model.update(lambda model: model.reject(name, image, mask))


def pictures_are_loaded(page: Page, count: int) -> None:
    loaded = "[...document.images].filter((one) => one.src.includes('.png') && one.naturalWidth > 0).length"
    page.wait_for_function(f"(count) => {loaded} === count", arg=count)


def test_the_pictures_have_keys_that_only_another_picture_changes(served: Served) -> None:
    box = {"box_xyxy": [40, 30, 90, 70]}
    for name in ("cup", "mug"):
        assert enroll(served, name, **box).status_code == 201
    before = keys(served)
    served.model.update(lambda model: model.learn_scene([picture()]))
    served.client.post("/api/zones", json={"name": "door", "corners": DOOR})
    assert keys(served) == before

    assert enroll(served, "cup", box_xyxy=[30, 20, 60, 60]).status_code == 201
    reject(served, "mug", picture()[::-1].copy())
    after = keys(served)
    assert after["cup"][:1] == before["cup"]
    assert after["mug"][:1] == before["mug"]
    assert len({*after["cup"], *after["mug"]}) == 3  # the first of each class is the same picture


def test_other_changes_take_no_focus_and_fetch_no_pictures(chromium: Browser, served: Served) -> None:
    for name in ("cup", "mug"):
        assert enroll(served, name).status_code == 201
    reject(served, "cup", picture())
    with opened(chromium, served.page.address) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url) if ".png" in request.url else None)
        remove = page.locator('.class[data-name="cup"] .negatives').get_by_role("button", name="Remove")
        expect(remove).to_be_visible()
        pictures_are_loaded(page, 3)
        asked.clear()
        remove.focus()
        remove.evaluate("button => { window.pressed = button; }")

        served.model.update(lambda model: model.learn_scene([picture()]))
        expect(page.locator("#scene-known")).to_contain_text("1 picture")
        served.client.post("/api/zones", json={"name": "door", "corners": DOOR})
        expect(zone_item(page, "door")).to_be_visible()
        assert enroll(served, "mug").status_code == 201
        pictures_are_loaded(page, 4)
        assert page.evaluate("document.activeElement === window.pressed")
        assert asked  # the control: of the class that has a new picture
        assert all("name=mug" in url for url in asked)

        assert enroll(served, "cup").status_code == 201
        expect(page.locator('.class[data-name="cup"] .supports img')).to_have_count(2)
        assert not page.evaluate("window.pressed.isConnected")  # the control: its own list is made again
