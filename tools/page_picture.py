"""Take the picture of the page in the documentation: python tools/page_picture.py docs/pictures/page.jpg.

It runs the demo with its page, two of its classes and a zone, until several visits are listed and the camera shows the
motorcycle again. Needs Debian's Chromium and the extra `dev`.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urljoin

from playwright.sync_api import Page, sync_playwright

REMOVED = ("astronaut", "rocket")  # so that there is room for the cards below the classes
SHOWN = "motorcycle"
VISITS = 5
ZONE = {"name": "floor", "corners": [(0, 0.62), (1, 0.62), (1, 1), (0, 1)]}
SIZE = {"width": 1280, "height": 990}
TIMEOUT_MS = 180_000


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
                _use_it(page, address)
                page.screenshot(path=output, type="jpeg", quality=85)
                browser.close()
        finally:
            run.send_signal(signal.SIGTERM)
    print(f"Wrote {output}")


def _use_it(page: Page, address: str) -> None:
    for name in REMOVED:
        page.request.delete(urljoin(address, "/api/classes"), params={"name": name})
    page.request.post(urljoin(address, "/api/zones"), data=ZONE)
    page.request.post(urljoin(address, "/api/bank/save"))
    page.locator(".visit").nth(VISITS - 1).wait_for(timeout=TIMEOUT_MS)
    present = page.locator(f'.class.present[data-name="{SHOWN}"]')
    present.wait_for(state="detached", timeout=TIMEOUT_MS)
    present.wait_for(timeout=TIMEOUT_MS)
    page.wait_for_timeout(1000)  # until its visit is listed, with its picture


if __name__ == "__main__":
    main(Path(sys.argv[1]))
