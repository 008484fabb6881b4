import asyncio
import gc
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn.server
from playwright.sync_api import Browser, expect, sync_playwright
from served_page import Served, picture, serve, show

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.page import false_alarms, server

expect.set_options(timeout=60_000)  # not the 5 s of the default: on a busy machine an answer can take longer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Of the tests in a browser, of 1 to 20 s each, `make check` runs the main way through each part of the page."""
    if "chromium" in getattr(item, "fixturenames", ()) and item.get_closest_marker("main_way") is None:
        item.add_marker(pytest.mark.slow(reason="a real browser, 3 s"))


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, headless; each test opens a context of its own in it, which shares nothing with others.

    Started once: a start takes a second, a context a fiftieth of that.
    """
    if CHROMIUM is None:
        pytest.skip("needs Chromium: sudo apt install chromium")
    playwright = sync_playwright().start()
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield browser
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # playwright leaves its loop's sockets to the collector
        browser.close()
        playwright.stop()
        gc.collect()


@pytest.fixture(scope="session", autouse=True)
def soon() -> Iterator[None]:
    """A server ends after 15 ms instead of 150: uvicorn sleeps before it looks whether to stop, and once more."""
    quick = SimpleNamespace(**vars(asyncio))
    quick.sleep = lambda seconds: asyncio.sleep(seconds / 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", quick)
        patch.setattr(server, "_STOP_TIMEOUT_S", 60.0)  # a busy machine may need more than the 1 s of a run
        yield


@pytest.fixture(scope="module")
def loaded() -> Iterator[FewShotModel]:
    with FewShotModel.load(threads=1) as model:
        yield model


@pytest.fixture
def served(loaded: FewShotModel, tmp_path: Path) -> Iterator[Served]:
    """A page without classes, and one frame."""
    with serve(loaded, tmp_path / "bank.safetensors") as one:
        show(one, picture())
        yield one


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four frames of the scene at once, instead of 16 over 4 s."""
    monkeypatch.setattr(false_alarms, "SCENE_FRAMES", 4)
    monkeypatch.setattr(false_alarms, "SCENE_S", 0.0)
