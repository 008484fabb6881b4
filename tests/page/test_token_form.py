"""Who comes without the token is asked for it: people by a form, programs by JSON."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, expect
from served_page import Served, client_of, enroll
from test_page import PATHS, TOKEN

from fsvit_edge.page import access
from fsvit_edge.page.sink import PageSink

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
WRONG = "wrong-token"


@pytest.fixture
def guarded(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A second page on the same model that requires a token."""
    monkeypatch.setattr(access, "WRONG_TOKEN_DELAY_S", 0.0)
    enroll(served, "secret prototype")
    with (
        PageSink("http://127.0.0.1:0", served.model, tmp_path / "other.safetensors", TOKEN) as page,
        client_of(page.address.partition("?")[0]) as client,
    ):
        yield client


def test_a_browser_gets_the_same_form_everywhere_and_nothing_of_the_run(guarded: httpx.Client) -> None:
    answers = [guarded.get(path, headers=BROWSER) for path in PATHS]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.headers["content-type"] for answer in answers} == {"text/html; charset=utf-8"}
    (form,) = {answer.text for answer in answers}
    assert '<form action="/">' in form
    for told in ("secret prototype", "fsvit", "script", "src=", "http", TOKEN):
        assert told not in form
    assert "secret prototype" in guarded.get("/api/state", params={"token": TOKEN}).text  # the control
    for answer in answers:
        assert (answer.headers["cache-control"], "set-cookie" in answer.headers) == ("no-store", False)
        assert "form-action 'self'" in answer.headers["content-security-policy"]


def test_a_wrong_token_is_called_wrong_and_is_not_repeated(guarded: httpx.Client) -> None:
    def answer(token: str | None) -> httpx.Response:
        params = {} if token is None else {"token": token}
        return guarded.get("/docs", params=params, headers=BROWSER, follow_redirects=True)

    asked, wrong = answer(None), answer("<b>guess")
    assert ("Access token required" in asked.text, "This is not the access token" in wrong.text) == (True, True)
    assert (asked.status_code, wrong.status_code) == (401, 401)
    assert "guess" not in wrong.text
    assert str(wrong.url) == f"{guarded.base_url}?token="  # nor in the address bar
    assert answer(TOKEN).status_code == 200  # the control


def test_the_style_of_the_form_is_the_one_that_is_allowed(guarded: httpx.Client, chromium: Browser) -> None:
    refused: list[str] = []
    with chromium.new_page() as page:
        page.on("console", lambda message: refused.append(message.text))
        page.goto(str(guarded.base_url))
        expect(page.get_by_role("button")).to_have_css("background-color", "rgb(29, 95, 209)")
        assert not any("Content Security Policy" in one for one in refused)
        style = "Object.assign(document.createElement('style'), { textContent: 'a{}' })"
        with page.expect_console_message(lambda message: "Content Security Policy" in message.text):  # the control
            page.evaluate(f"document.head.append({style})")


@pytest.mark.parametrize(
    ("method", "headers"),
    [("GET", {}), ("GET", {"Accept": "*/*"}), ("GET", {"Accept": "image/avif,*/*"}), ("POST", BROWSER)],
)
def test_programs_still_get_json(guarded: httpx.Client, method: str, headers: dict[str, str]) -> None:
    answer = guarded.request(method, "/", headers=headers)
    error = "Access token required; open the address that the run printed."
    assert (answer.status_code, answer.json()) == (401, {"error": error})


def test_guesses_at_the_form_take_as_long_as_any(guarded: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    slept_s: list[float] = []

    async def sleep(seconds: float) -> None:
        slept_s.append(seconds)

    monkeypatch.setattr(access, "WRONG_TOKEN_DELAY_S", 0.4)
    monkeypatch.setattr(access, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    guarded.get("/", headers=BROWSER, params={"token": WRONG})
    assert slept_s == [0.4]
    guarded.get("/", headers=BROWSER, params={"token": TOKEN})
    assert slept_s == [0.4]  # the control


@pytest.mark.main_way
def test_a_person_enters_the_token_and_is_on_the_page(guarded: httpx.Client, chromium: Browser) -> None:
    address = str(guarded.base_url)
    with chromium.new_page() as page:
        page.goto(f"{address}docs")
        field = page.get_by_label("Access token required")
        expect(field).to_be_focused()
        field.fill(WRONG)
        page.keyboard.press("Enter")
        expect(page.get_by_label("This is not the access token")).to_be_focused()
        assert WRONG not in page.url
        page.keyboard.type(f"{TOKEN} ")
        page.get_by_role("button", name="Open").click()
        expect(page.locator('.class[data-name="secret prototype"]')).to_be_visible()
        assert (urlsplit(page.url).path, urlsplit(page.url).query) == ("/", "")
