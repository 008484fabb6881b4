"""A person at the page who judges doubtful frames: a real browser, by keys, by taps and on a phone."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from served_page import Served, serve
from test_false_alarms_in_browser import PHONE, has_focus, tab_to
from test_page_in_browser import WINDOW, hold, intercept
from test_page_review import show_doubtful
from watched_page import watched

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.presence_level import distinct_texts, score_text


@pytest.fixture
def served(loaded: FewShotModel, tmp_path: Path) -> Iterator[Served]:
    """A page whose class "cat" is doubtful in three frames: 0 a gray cat, 1 coffee, 2 the cat, mirrored."""
    with serve(loaded, tmp_path / "bank.safetensors") as one:
        show_doubtful(one)
        assert one.client.post("/api/bank/save").status_code == 200
        yield one


@pytest.fixture
def page(served: Served, chromium: Browser) -> Iterator[Page]:
    """The page, open; an error in the browser's console fails the test, but for those that a test provokes."""
    provoked = "/keep$|/api/review-trials$|[.]jpg"
    with chromium.new_page(viewport=WINDOW) as opened, watched(opened, served.page.address, provoked) as page:
        expect(page.locator("#review-title")).to_have_text(re.compile("^Review: . doubtful frames"))
        yield page


def verdicts(served: Served) -> list[str | None]:
    return [one.verdict for one in served.model.review]


def in_file(served: Served) -> list[str | None]:
    return [one.verdict for one in SupportBank.load(served.bank).review]


def cat(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = served.client.get("/api/state").json()["classes"][0]
    return found


def choice(page: Page, name: str) -> Locator:
    return page.locator("#review-choices").get_by_role("button", name=re.compile(f"^{name}"))


def begin(page: Page) -> Locator:
    """Open the review, and return what is asked."""
    page.locator("#review-open").click()
    asked = page.locator("#review-question")
    expect(asked).to_have_text("cat?")
    return asked


def has_panel(page: Page, kind: str) -> None:
    dialog = page.locator("#review-dialog")
    expect(dialog).to_have_attribute("data-panel", kind)
    if kind != "checking":  # a key that is pressed before the page is done with the last one is not taken
        expect(dialog).not_to_have_attribute("aria-busy", "true")


def test_the_page_writes_scores_as_the_commands_do(page: Page) -> None:
    # All that the API can give, but for 0.125 and 0.625, which lie in the middle: there Python takes the even digit.
    scores = [number / 10_000 for number in range(10_001) if number not in (1250, 6250)]
    write = "async (scores) => { const { scoreText } = await import('/common.js'); return scores.map(scoreText); }"
    assert page.evaluate(write, scores) == [score_text(score) for score in scores]
    pairs = [(0.3, 0.5), (0.978, 0.982), (0.99991, 0.99994), (0.999_999_91, 0.999_999_95), (0.5, 0.5)]
    write = """async (pairs) => {
      const { distinctTexts } = await import("/common.js");
      return pairs.map((pair) => distinctTexts(...pair));
    }"""
    assert page.evaluate(write, pairs) == [list(distinct_texts(*pair)) for pair in pairs]
    two_decimals = page.evaluate("scores => scores.map(score => score.toFixed(2))", scores)
    assert two_decimals != [score_text(score) for score in scores]  # the control


@pytest.mark.main_way
def test_verdicts_by_key_are_in_the_file_when_the_page_says_so(page: Page, served: Served) -> None:
    asked = begin(page)
    text, told = page.locator("#review-text"), page.locator("#review-told")
    expect(page.locator("#review-known")).to_have_text(re.compile(r"before it is kept\.$"))  # no "0 verdicts"
    expect(page.locator("#review-place")).to_have_text("Frame 1 of 3")
    expect(page.locator("#review-left")).to_have_text("3 left")
    expect(text).to_have_text(re.compile(r"^The run says present, [01]\.\d+ \(level 0\.\d+\)\.$"))
    page.wait_for_function("() => document.getElementById('review-picture').naturalWidth > 100")
    for key in ("x", "Control+y", "ArrowLeft"):  # none of these says anything
        page.keyboard.press(key)
    page.keyboard.press("y")
    expect(told).to_have_text("cat: Yes; saved.")
    assert in_file(served) == ["yes", None, None]
    expect(page.locator("#review-place")).to_have_text("Frame 2 of 3")
    expect(text).to_contain_text("The run says absent")
    page.keyboard.press("s")
    expect(page.locator("#review-place")).to_have_text("Frame 3 of 3")
    expect(told).to_be_empty()  # it was about the first frame
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#review-place")).to_have_text("Frame 2 of 3")
    page.keyboard.press("N")
    expect(told).to_have_text("cat: Not it; saved.")
    expect(page.locator("#review-left")).to_have_text("1 left")
    page.keyboard.press("ArrowRight")
    expect(asked).to_have_text("2 judged, 1 skipped.")
    assert in_file(served) == ["yes", "no", None]
    page.keyboard.press("Enter")
    expect(page.locator("#review-dialog")).to_be_hidden()
    expect(page.locator("#review-title")).to_have_text("Review: 1 doubtful frame")
    expect(page.locator("#review-known")).to_contain_text("2 verdicts so far.")
    expect(page.locator("#bank-saved")).to_have_text("Saved.")


def test_a_verdict_is_changed_and_taken_back_by_tap(page: Page, served: Served) -> None:
    begin(page)
    choice(page, "Yes").click()
    expect(page.locator("#review-place")).to_have_text("Frame 2 of 3")
    choice(page, "Back").click()
    yes = choice(page, "Yes")
    expect(yes).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#review-text")).to_contain_text("You said Yes; press it again to take it back.")
    yes.click()
    expect(page.locator("#review-told")).to_have_text("Taken back; saved.")
    expect(yes).to_have_attribute("aria-pressed", "false")
    assert verdicts(served) == in_file(served) == [None] * 3


def test_what_is_not_in_the_file_yet_is_said(page: Page, served: Served) -> None:
    served.bank.unlink()
    begin(page)
    page.keyboard.press("y")
    expect(page.locator("#review-told")).to_have_text("cat: Yes; not saved yet, press Save on the page.")
    expect(page.locator("#bank-saved")).to_have_text("Not saved yet.")


def test_a_contradiction_is_tried_and_kept_or_discarded(page: Page, served: Served) -> None:
    asked = begin(page)
    page.keyboard.press("n")
    has_panel(page, "offer")
    expect(asked).to_have_text("The run still finds cat here.")
    assert in_file(served) == ["no", None, None]  # whatever is learned from it
    page.keyboard.press("l")
    has_panel(page, "trial")
    expect(asked).to_have_text("Answers that change: 1 of 1; that contradict their verdict: 0.")
    expect(page.locator("#review-text")).to_contain_text(
        re.compile(r"cat was present, .*would be absent, .*as you said")
    )
    assert cat(served)["negatives"] == []
    choice(page, "Discard").click()
    expect(page.locator("#review-told")).to_have_text("Discarded; nothing was changed.")
    assert cat(served)["negatives"] == []
    expect(page.locator("#bank-saved")).to_have_text("Saved.")

    choice(page, "Back").click()
    choice(page, "Not it").click()  # takes it back
    expect(page.locator("#review-told")).to_have_text("Taken back; saved.")
    choice(page, "Not it").click()
    choice(page, "Learn from it").click()
    has_panel(page, "trial")
    choice(page, "Keep").click()
    expect(page.locator("#review-told")).to_contain_text("Learned; press Save")
    assert len(cat(served)["negatives"]) == 1
    expect(page.locator("#bank-saved")).to_have_text("Not saved yet.")
    expect(page.locator(".negatives li")).to_have_count(1)


def test_what_a_change_would_break_is_shown_and_not_recommended(page: Page, served: Served) -> None:
    served.client.put("/api/review/2", json={"verdict": "yes"})
    served.client.put("/api/review/0", json={"verdict": "yes"})
    begin(page)  # 1, the coffee: as a second picture of the cat, it lowers the scores of the others
    page.keyboard.press("y")
    has_panel(page, "offer")
    expect(page.locator("#review-text")).to_contain_text("It is added by the name alone")
    page.keyboard.press("l")
    has_panel(page, "trial")
    changed = page.locator(".changes li")
    expect(changed).to_have_text([re.compile("cat: present → absent.*you said Yes")] * 2)
    expect(page.locator("#review-question")).to_have_text(re.compile(r"^Answers that change: 2 of 3; that"))
    assert changed.locator("img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    assert has_focus(choice(page, "Discard"))
    page.keyboard.press("Escape")
    expect(page.locator("#review-dialog")).to_be_hidden()
    assert len(cat(served)["supports"]) == 1


def test_a_change_that_came_too_late_is_refused_in_the_dialog(page: Page, served: Served) -> None:
    begin(page)
    page.keyboard.press("n")
    has_panel(page, "offer")
    page.keyboard.press("l")
    has_panel(page, "trial")
    served.client.patch("/api/classes", json={"name": "cat", "new_name": "tom"})
    page.keyboard.press("k")
    expect(page.locator("#review-told")).to_have_text("The classes changed; try again.")
    has_panel(page, "offer")  # again
    assert served.client.get("/api/state").json()["classes"][0]["negatives"] == []
    page.keyboard.press("l")
    has_panel(page, "trial")
    page.keyboard.press("k")
    expect(page.locator("#review-told")).to_contain_text("Learned")
    assert len(cat(served)["negatives"]) == 1


def test_a_trial_that_fails_is_offered_again(page: Page) -> None:
    intercept(page, "**/api/review-trials", lambda route: route.fulfill(status=503, json={"error": "try again"}))
    begin(page)
    page.keyboard.press("n")
    has_panel(page, "offer")
    page.keyboard.press("l")
    expect(page.locator("#review-told")).to_have_text("try again")
    has_panel(page, "offer")
    expect(choice(page, "Learn from it")).to_be_focused()
    page.unroute("**/api/review-trials")
    page.keyboard.press("l")
    has_panel(page, "trial")  # the control


def test_two_clicks_open_the_review_once(page: Page) -> None:
    held = hold(page, "**/api/review")
    for _ in range(2):
        page.locator("#review-open").click()
    first, second = held(), held()  # the control: both ask
    first.continue_()
    expect(page.locator("#review-question")).to_have_text("cat?")
    page.keyboard.press("s")
    expect(page.locator("#review-place")).to_have_text("Frame 2 of 3")
    with page.expect_response("**/api/review"):
        second.continue_()
    page.wait_for_timeout(200)
    expect(page.locator("#review-place")).to_have_text("Frame 2 of 3")


def test_a_picture_that_is_missing_is_told_with_its_reason(page: Page, served: Served) -> None:
    told = page.locator("#review-told")
    intercept(page, "**/api/review/*.jpg*", lambda route: route.abort())
    begin(page)
    expect(told).to_have_text("The run does not answer, so there is no picture.")
    page.unroute("**/api/review/*.jpg*")
    page.keyboard.press("Escape")
    begin(page)
    expect(told).to_be_empty()  # the control
    served.client.delete("/api/classes", params={"name": "cat"})
    page.evaluate("document.getElementById('review-picture').src += '&again'")
    expect(told).to_have_text("There is no doubtful frame 0; it made room for a newer one, or its class was removed.")


def test_closing_the_dialog_discards_a_change_that_is_still_checked(page: Page, served: Served) -> None:
    held = hold(page, "**/api/review-trials")
    begin(page)
    page.keyboard.press("n")
    has_panel(page, "offer")
    page.keyboard.press("l")
    has_panel(page, "checking")
    page.keyboard.press("Escape")
    expect(page.locator("#review-dialog")).to_be_hidden()
    begin(page)  # the others, while the answer is still awaited
    expect(page.locator("#review-place")).to_have_text("Frame 2 of 3")
    with page.expect_request(lambda request: request.method == "DELETE"):
        held().continue_()
    expect(page.locator("#review-question")).to_have_text("cat?")
    page.keyboard.press("n")
    expect(page.locator("#review-place")).to_have_text("Frame 3 of 3")
    assert verdicts(served) == ["no", "no", None]
    assert cat(served)["negatives"] == []


def test_all_of_it_works_with_the_keyboard_alone(page: Page, served: Served) -> None:
    tab_to(page, page.locator("#review-open"))
    page.keyboard.press("Enter")
    expect(page.locator("#review-question")).to_be_focused()
    page.keyboard.press("Tab")
    expect(choice(page, "Yes")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # Not it
    has_panel(page, "offer")
    expect(choice(page, "Learn from it")).to_be_focused()
    page.keyboard.press("Enter")
    has_panel(page, "trial")
    expect(choice(page, "Keep")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#review-question")).to_be_focused()
    expect(page.locator("#review-place")).to_have_text("Frame 2 of 3")
    assert len(cat(served)["negatives"]) == 1
    page.keyboard.press("n")
    expect(page.locator("#review-place")).to_have_text("Frame 3 of 3")
    page.keyboard.press("Escape")
    expect(page.locator("#review-dialog")).to_be_hidden()
    expect(page.locator("#review-open")).to_be_focused()
    assert verdicts(served) == ["no", "no", None]


def test_it_fits_a_phone(page: Page, served: Served) -> None:
    page.set_viewport_size(PHONE)
    served.client.patch("/api/classes", json={"name": "cat", "new_name": "cat" + "e" * 70})
    page.locator("#review-open").click()
    expect(page.locator("#review-question")).to_contain_text("cateee")
    fits(page)
    tap(page, choice(page, "Not it"))
    has_panel(page, "offer")
    fits(page)
    tap(page, choice(page, "Learn from it"))
    has_panel(page, "trial")
    fits(page)
    tap(page, choice(page, "Discard"))
    expect(page.locator("#review-place")).to_have_text("Frame 2 of 3")
    tap(page, choice(page, "Yes"))
    has_panel(page, "offer")
    assert verdicts(served) == ["no", "yes", None]
    tap(page, page.locator("#review-close"))
    expect(page.locator("#review-dialog")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def tap(page: Page, wanted: Locator) -> None:
    """Touch the middle of something, as a finger does."""
    area = wanted.bounding_box()
    assert area is not None
    touch = page.context.new_cdp_session(page)
    touch.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    point = {"x": area["x"] + area["width"] / 2, "y": area["y"] + area["height"] / 2}
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def fits(page: Page) -> None:
    dialog = page.locator("#review-dialog")
    assert dialog.evaluate("shown => [shown.scrollWidth, shown.scrollHeight]") == [PHONE["width"], PHONE["height"]]
    for button in dialog.locator("button:visible").all():
        area = button.bounding_box()
        assert area is not None
        assert area["height"] >= 44  # large enough for a thumb
        assert 0 <= area["x"] <= area["x"] + area["width"] <= PHONE["width"]
        assert 0 <= area["y"] <= area["y"] + area["height"] <= PHONE["height"]
