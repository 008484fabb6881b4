"""The page in a browser, whose errors fail the test."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import ConsoleMessage, Page, expect


@contextmanager
def watched(page: Page, address: str, provoked: str | None = None) -> Iterator[Page]:
    """Open the page at an address and wait for its picture; an error of a script, or in the console, fails the test.

    Args:
        page: An empty page of the browser.
        address: Of ours.
        provoked: A pattern of the addresses whose requests a test lets fail, which the browser always logs; "" for all.
    """
    errors: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and (provoked is None or not re.search(provoked, message.location["url"])):
            errors.append(f"{message.text} {message.location}")

    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    expect(page.locator("#waiting")).to_be_hidden()
    yield page
    assert errors == []
