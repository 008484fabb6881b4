"""Take the picture of the page in the documentation: python tools/page_picture.py docs/pictures/page.jpg.

It runs the demo with its page, waits until the camera shows the cup of coffee, and begins to enroll it. Needs Debian's
Chromium and the extra `dev`.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urljoin

from playwright.sync_api import Page, sync_playwright

from fsvit_edge.live.sources.demo import demo_length

COFFEE_FRAMES = range(112, 128)
BOX_XYXY = (0.2, 0.08, 0.78, 0.95)  # shares of the frame's width and height
SIZE = {"width": 1280, "height": 860}


def main(output: Path) -> None:
    """Write the picture as a JPEG."""
    command = [sys.executable, "-m", "fsvit_edge.cli.main", "run", "demo", "--sink", "http://127.0.0.1:0"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as run,
    ):
        assert run.stderr is not None
        address = next(line.split()[-1] for line in run.stderr if line.startswith("The page is at "))
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                page = browser.new_page(viewport=SIZE)
                page.goto(address)
                _begin_to_enroll(page, address)
                page.screenshot(path=output, type="jpeg", quality=85)
                browser.close()
        finally:
            run.send_signal(signal.SIGTERM)
    print(f"Wrote {output}")


def _begin_to_enroll(page: Page, address: str) -> None:
    while True:
        frame = page.request.get(urljoin(address, "/api/state")).json()["frame"]
        if frame is not None and frame["sequence"] % demo_length() in COFFEE_FRAMES:
            break
        time.sleep(0.05)
    page.get_by_role("button", name="Add a class").click()
    area = page.locator("#drawing").bounding_box()
    assert area is not None
    left, top, right, bottom = BOX_XYXY
    page.mouse.move(area["x"] + left * area["width"], area["y"] + top * area["height"])
    page.mouse.down()
    page.mouse.move(area["x"] + right * area["width"], area["y"] + bottom * area["height"], steps=6)
    page.mouse.up()
    page.locator("#name").fill("coffee")
    page.wait_for_timeout(1500)  # the box becomes a mask


if __name__ == "__main__":
    main(Path(sys.argv[1]))
