"""The commands and Python of README.md and docs/ are run as written, each page in its own order and its own folder.

Commands that need a camera, a network, a browser or a network's weights are not run, but their options must exist.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from doc_pages import (
    PAGES,
    ROOT,
    Step,
    command_name,
    commands,
    environment,
    help_of,
    make_inputs,
    name_of,
    options,
    steps,
)

from fsvit_edge.cli.main import main

README = ROOT / "README.md"
LINES = sorted({(name_of(page), step.text) for page in PAGES for step in steps(page) if step.language != "python"})
LONG = ("train", "export", "build-engine")
ALL = (
    "train",
    "eval",
    "export",
    "calib",
    "build-engine",
    "enroll",
    "run",
    "label",
    "triton",
    "bench",
    "inspect",
    "doctor",
    "bank list",
    "bank scene",
    "bank remove",
    "bank key",
    "bank sign",
)

FIRST_PAGES = (README, ROOT / "docs" / "get-started.md")
OTHER_PAGE = pytest.mark.slow(reason="runs every command of a page, 1 to 20 s")


Run = Callable[[str], tuple[int, str]]


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, in the page's folder; return its exit code and what it wrote to stderr."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Typer sets its own

    def run(command: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capfd.readouterr().err

    return run


def run_as_typed(step: Step, folder: Path) -> tuple[int, str]:
    words = [sys.executable, "-W", "error"] if step.language == "python" else ["bash", "-o", "pipefail"]
    done = subprocess.run(
        [*words, "-c", step.text],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def needs_shell(command: str) -> bool:
    """Whether a command has what only a shell understands: a pipe, a pattern, a variable."""
    return any(sign in command for sign in "|&;<>*?$`~{")


def test_a_command_in_this_process_ends_as_one_that_is_typed(tmp_path: Path, run_here: Run) -> None:
    command = "fsvit-edge enroll cup none.jpg"
    code, errors = run_here(command)
    assert (code, errors) == run_as_typed(Step("sh", command, is_run=True), tmp_path)
    assert code == 2
    assert errors.startswith("Error: ")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=() if page in FIRST_PAGES else OTHER_PAGE, id=name_of(page))
        for page in PAGES
        if any(step.is_run for step in steps(page))
    ],
)
def test_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, run_here: Run) -> None:
    make_inputs(page, tmp_path)
    for step in filter(lambda step: step.is_run, steps(page)):
        is_python = step.language == "python"
        # The commands of README.md run as they are typed; the others in this process, which saves a second each.
        is_typed = is_python or page == README or needs_shell(step.text)
        code, errors = run_as_typed(step, tmp_path) if is_typed else run_here(step.text)
        assert code == 0, f"{step.text}\n{errors}"
        assert "Traceback" not in errors, f"{step.text}\n{errors}"
        if is_python:
            assert errors == ""
            continue
        for written in re.findall(r"(?:--sink|--output|-o|--bank|--preview) +(\S+)", step.text):
            of_each = list(tmp_path.glob(written.replace("{source}", "*"))) if "{source}" in written else []
            is_there = written == "-" or of_each or (tmp_path / written.removeprefix("masks:")).exists()
            assert is_there, f"{step.text} did not write {written}"


@pytest.mark.parametrize(("page", "command"), LINES)
def test_every_option_of_a_command_exists(page: str, command: str) -> None:
    known = options(help_of(command_name(command)))
    assert "--help" in known
    assert options(command) <= known, page


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_that_the_text_names_exists(page: Path) -> None:
    quoted = re.findall(r"`((?:--|fsvit-edge )[^`\n]*)`", page.read_text())
    known = {option for name in ALL for option in options(help_of(name))}
    assert options("\n".join(quoted)) <= known | {"--version", "--system-site-packages"}


def test_no_page_repeats_a_long_command_of_another() -> None:
    long = [command for page in PAGES for command in commands(page) if command_name(command) in LONG]
    assert sorted(set(long)) == sorted(long)


def test_the_readme_is_short_and_runs_commands_and_python() -> None:
    assert len(README.read_text().split()) < 900
    assert len(commands(README)) >= 5
    assert [step.is_run for step in steps(README) if step.language == "python"] == [True]


def test_pictures_are_read_upright_in_all_python() -> None:
    scripts = [step.text for page in PAGES for step in steps(page) if step.language == "python"]
    scripts += [notebook.read_text() for notebook in ROOT.glob("examples/*.ipynb")]
    assert sum("read_image" in script for script in scripts) >= 5
    for other in ("Image.open(", "imread("):  # which leave a photo of a phone on its side
        assert [script for script in scripts if other in script] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_table_of_extras_has_all_that_a_person_may_want() -> None:
    packages = (
        (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    )
    extras = set(re.findall(r"^([a-z-]+) = \[", packages, re.MULTILINE))
    table = (ROOT / "docs" / "get-started.md").read_text().partition("| extra |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`([a-z-]+)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:])))
    assert named == extras - {"dev", "docs"}  # for those who change fsvit-edge


def test_pages_outside_the_site_mention_only_files_that_exist() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    paths = re.findall(r"`((?:fsvit_edge|tests|tools|examples|benchmarks|docs)/[\w/.-]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
