"""The site builds without a warning, and what comes from code is on its pages."""

import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doc_pages import ROOT

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.events import Event, Sighting, event_record
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import BankStatus, Health, SourceStatus
from fsvit_edge.live.sinks.json_lines import bank_record, frame_record, state_record

Read = Callable[[str], str]
BUILT = pytest.mark.slow(reason="builds the site, 6 s")


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Returns a page of the built site as text."""
    site = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    def text(page: str) -> str:
        return html.unescape(re.sub(r"<[^!>][^>]*>", "", (site / page).read_text()))  # not comments, as markers are

    return text


def test_every_place_that_is_filled_in_says_where_to_look_without_the_site() -> None:
    said = re.compile(r"^\*`make docs` fills this in; without it, see .+\.\*\n\n<!-- generated: ", re.MULTILINE)
    texts = {page.name: page.read_text() for page in (ROOT / "docs").rglob("*.md")}
    assert [name for name, text in texts.items() if text.count("<!-- generated: ") != len(said.findall(text))] == []


@BUILT
def test_nothing_on_the_site_is_left_to_generate(read: Read) -> None:
    pages = [page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 20
    left = ("generated:", "fills this in")  # also of a marker without the line for those who read the repository
    assert [page for page in pages if any(text in read(str(page)) for text in left)] == []


@BUILT
@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("reference/cli.html", ["bank rename", "build-engine", "--max-frames", "Options that several commands share"]),
        ("reference/python.html", ["FewShotModel", "predict", "label_map", "EnvironmentLacksError"]),
        ("reference/http.html", ["/api/classes", "/metrics"]),
        ("reference/files.html", ["presence_level", "loo_score", "channel_max", "image_size"]),
        ("reference/exit-codes.html", ["AccuracyGateError", "130"]),
        ("reference/json-lines.html", ["uptime_s"]),
        ("development/architecture.html", ["runtime", "lines"]),
        ("development/changelog.html", ["0.1.0"]),
        ("measured/cst-nano.html", ["EfficientNet-Lite2"]),
    ],
)
def test_a_page_has_what_comes_from_code(read: Read, page: str, words: list[str]) -> None:
    text = read(page)
    assert [word for word in words if word not in text] == []


def _fields(heading: str, until: str) -> set[str]:
    page = (ROOT / "docs" / "reference" / "json-lines.md").read_text()
    part = page.partition(heading)[2].partition(until)[0]
    first_columns = re.findall(r"^\| (`.*?) \|", part, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", " ".join(first_columns)))


def _one_result() -> tuple[Frame, Prediction]:
    frame = Frame(np.zeros((4, 6, 3), np.uint8), 0, "demo", 0.0, 0.0, 1.0)
    one = np.array([0.5], np.float32)
    return frame, Prediction(("cup",), one, one, np.zeros((4, 6), np.uint8), None, {})


def test_the_page_on_json_lines_names_every_field_of_a_frame() -> None:
    line: dict[str, Any] = json.loads(json.dumps(frame_record(*_one_result())))
    assert _fields('"event": "frame"`', "Each entry") == line.keys()
    assert _fields("Each entry", "## ") == line["classes"][0].keys()


def test_the_page_on_json_lines_names_every_field_of_an_event() -> None:
    best = Sighting(0.9, None, 0, np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.bool_))
    left = Event("left", "cup", "demo", 0.0, 0.0, 1.0, best)
    assert _fields('"event": "appeared"`', "## ") == event_record(left).keys()


def test_the_page_on_json_lines_names_every_field_of_a_state() -> None:
    health = Health(0.0, 0.0, "", 0.0, "demo", SourceStatus("live", 0.0), "cst-nano", "onnxruntime", "fp32")
    assert _fields('"event": "state"`', "## ") == state_record(health).keys()


def test_the_page_on_json_lines_names_every_field_of_a_bank() -> None:
    assert _fields('"event": "bank"`', "## ") == bank_record(BankStatus("https://host/bank.safetensors")).keys()


def test_the_architecture_tool_finds_circles(tmp_path: Path) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        folder = tmp_path / "fsvit_edge" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(f'"""Room {name}."""\nimport fsvit_edge.{other}.thing\n')
    done = subprocess.run(
        [sys.executable, "tools/architecture.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "circle: ['one', 'two']" in done.stderr
