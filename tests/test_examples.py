"""The commands on the pages under examples/ are ours as they stand: each exists and takes the options given to it."""

import re
import shlex
from pathlib import Path

import pytest
from test_readme import help_of, options

PAGES = sorted((Path(__file__).parent.parent / "examples").glob("*.md"))


def commands(page: Path) -> list[str]:
    """The `fsvit-edge ...` lines of a page's sh and ini blocks."""
    blocks = re.findall(r"^```(?:sh|ini)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.search(r"(?:^|/)(fsvit-edge .*)", re.sub(r"\s+#.*", "", line).strip()) for line in lines]
    return [match[1] for match in found if match]


LINES = [(page.name, command) for page in PAGES for command in commands(page)]


def test_the_pages_have_commands() -> None:
    assert {name for name, _ in LINES} == {"jetson.md"}
    assert len(LINES) > 12


@pytest.mark.parametrize("command", dict.fromkeys(command for _, command in LINES))
def test_a_command_exists_and_takes_its_options(command: str) -> None:
    known = options(help_of(command))
    assert "--help" in known
    assert options(command) <= known
    assert shlex.split(command)[0] == "fsvit-edge"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_the_text_exist(page: Path) -> None:
    every = {
        option
        for name in ("build-engine", "run", "enroll", "bench", "calib")
        for option in options(help_of(f"fsvit-edge {name}"))
    }
    quoted = re.findall(r"`(--[^`]*)`", page.read_text())
    assert quoted
    ours = {option for text in quoted for option in options(text)}
    assert ours - every == {"--system-site-packages"}
