"""README.md and the pages under docs/ as the tests see them: their commands and Python, and what these read."""

import functools
import itertools
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from sample_files import colors, rectangle, write_data, write_video
from typer.testing import CliRunner

from fsvit_edge.cli.main import app
from fsvit_edge.runtime.pictures import write_image

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

NOT_HERE = (
    *("--camera", "rtsp://", "http://", "https://", "mqtt://", "triton://", "csi://", "/dev/"),
    *("--checkpoint", "--pretrained", "--weights", "cst-pascal"),
)
"""A command with one of these needs a camera, a network, a browser, or a network's weights."""
WRITTEN = ("--sink", "--output", "-o", "--preview")
HEIGHT, WIDTH = 120, 160


@dataclass(frozen=True)
class Step:
    """A command or a script of a page."""

    language: str  # "sh", "ini" or "python"
    text: str  # one `fsvit-edge ...` command without what comes before it, or a whole script
    is_run: bool  # not if it needs what a test machine lacks, or comes after `<!-- not run: reason -->`


def name_of(page: Path) -> str:
    """A page's path from the root of the repository."""
    return page.relative_to(ROOT).as_posix()


def steps(page: Path) -> list[Step]:
    """What a page tells the reader to run, in its order."""
    found: list[Step] = []
    blocks = r"^(<!-- not run: .+ -->\n)?```(sh|ini|python)\n(.*?)^```"
    for reason, language, text in re.findall(blocks, page.read_text(), re.MULTILINE | re.DOTALL):
        if language == "python":
            found.append(Step(language, text, not reason))
            continue
        for line in text.replace("\\\n", " ").splitlines():
            command = re.search(r"(?:^|/)(fsvit-edge .*)", re.sub(r"\s+#.*", "", line).strip().removeprefix("$ "))
            if command:
                needs = any(mark in command[1] for mark in NOT_HERE)
                found.append(Step(language, command[1], language == "sh" and not reason and not needs))
    return found


def commands(page: Path) -> list[str]:
    """The commands of a page that are run."""
    return [step.text for step in steps(page) if step.is_run and step.language == "sh"]


@functools.cache
def help_of(name: str) -> str:
    """Text of --help, of "run" or "bank list" for example."""
    done = CliRunner().invoke(app, [*name.split(), "--help"], prog_name="fsvit-edge")
    assert done.exit_code == 0, f"{name}: {done.output}"
    return done.output


def command_name(command: str) -> str:
    """The command that a line calls: "run", "bank list"."""
    words = shlex.split(command)[1:3]
    return " ".join(words) if words[0] == "bank" else words[0]


def options(text: str) -> set[str]:
    """Long options in a text."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


def environment(folder: Path) -> dict[str, str]:
    """Environment of a page's commands: this Python's, and a cache that no other page fills."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(folder / ".cache")}


def make_inputs(page: Path, folder: Path) -> None:
    """Make what a page's commands and scripts read, by the names that the page gives them."""
    scripts = "\n".join(step.text for step in steps(page) if step.language == "python")
    names = set(re.findall(r"""read_image\(Path\(["']([^"']+)["']\)""", scripts))
    for command in commands(page):
        for before, word in itertools.pairwise(shlex.split(command)):
            if before not in (*WRITTEN, "--data") and re.search(r"\.(jpe?g|png|mp4)$|/$", word):
                names.add(word)
    for name in names:
        _make_input(folder / name)
    for name in re.findall(r"--data +(\S+)", "\n".join(commands(page))):
        write_data(folder / name, "cup", "key")


def _make_input(path: Path) -> None:
    """A mask for *_mask.png, a video for *.mp4, pictures else; a folder has two pictures."""
    seed = sum(path.name.encode())
    if path.suffix == ".mp4":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, [colors(seed + frame, HEIGHT, WIDTH) for frame in range(4)], 10.0)
    elif path.suffix in (".jpg", ".jpeg", ".png"):
        write_image(path, rectangle(HEIGHT, WIDTH) if "mask" in path.stem else colors(seed, HEIGHT, WIDTH))
    else:
        for name in ("1.jpg", "2.jpg"):
            _make_input(path / name)
