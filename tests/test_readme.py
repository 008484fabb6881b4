"""The README's commands and Python are run as they stand, in the order in which they stand, in one folder.

Every `fsvit-edge ...` line of the fenced `sh` blocks is run by a shell, then the `python` block. Pictures, masks,
videos and folders that they read are made first, by their names: *_mask.png is a mask, the rest are pictures, and a
folder after --data has classes. Lines that need a camera, a network, a browser or a published checkpoint are not run,
but their options must exist.
"""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from fsvit_edge.runtime.pictures import write_image

README = Path(__file__).parent.parent / "README.md"
NOT_HERE = ("--camera", "rtsp://", "http://", "mqtt://", "/dev/", "--checkpoint", "--pretrained", "--weights", "<")
HEIGHT, WIDTH = 120, 160


def readme() -> str:
    assert README.is_file(), "README.md is missing; its commands are what these tests run"
    return README.read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", readme(), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The `fsvit-edge ...` lines of the sh blocks, continued lines joined, comments taken off."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    lines = [re.sub(r"\s+#.*", "", line).strip().removeprefix("$ ") for line in lines]
    return [line for line in lines if line.startswith("fsvit-edge")]


def runnable(command: str) -> bool:
    return not any(mark in command for mark in NOT_HERE)


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def help_of(command: str) -> str:
    """What --help says of the command that a line calls."""
    words = [word for word in shlex.split(command)[1:3] if re.fullmatch("[a-z-]+", word) and word[0] != "-"]
    if words[:1] != ["bank"]:
        words = words[:1]
    done = subprocess.run(
        [sys.executable, "-m", "fsvit_edge.cli.main", *words, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


def picture(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return small.repeat(HEIGHT // 4, axis=0).repeat(WIDTH // 5, axis=1)


def make_input(path: Path) -> None:
    """Make what a command reads, by the name that the README gives it."""
    seed = sum(path.name.encode())
    if path.suffix == ".mp4":
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (WIDTH, HEIGHT))
        for frame in range(4):
            writer.write(picture(seed + frame))
        writer.release()
    elif path.suffix in (".jpg", ".jpeg", ".png"):
        mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        mask[HEIGHT // 4 : -HEIGHT // 4, WIDTH // 4 : -WIDTH // 4] = 255
        write_image(path, mask if "mask" in path.stem else picture(seed))
    else:
        for name in ("1.jpg", "2.jpg"):
            make_input(path / name)


def make_data(root: Path) -> None:
    """Make a data set: two classes, three pictures with masks each."""
    for number, (name, stem) in enumerate(itertools.product(("cup", "key"), "abc")):
        image = picture(number)
        mask = np.zeros_like(image)
        top = 10 * (number % 3)
        mask[top : top + 60, 40:100] = 255
        image[mask > 0] = 200 if name == "cup" else 40
        write_image(root / name / "images" / f"{stem}.png", image)
        write_image(root / name / "masks" / f"{stem}.png", mask)


def data_sets() -> set[str]:
    return set(re.findall(r"--data +(\S+)", "\n".join(filter(runnable, commands()))))


def inputs() -> set[str]:
    """The names of the files and folders that the commands and the Python read."""
    names = set(re.findall(r"""open\(["']([^"']+)["']\)""", "".join(blocks("python"))))
    for command in filter(runnable, commands()):
        words = shlex.split(command)
        for before, word in itertools.pairwise(words):
            is_made_else = before in ("--sink", "--output", "-o", "--data", "--pictures", "--preview")
            if not is_made_else and re.search(r"\.(jpe?g|png|mp4)$|/$", word):
                names.add(word)
    return names


def test_the_readme_has_commands_and_python() -> None:
    assert len([command for command in commands() if runnable(command)]) >= 5
    assert len(blocks("python")) == 1


def test_commands_and_python_run_as_they_stand(tmp_path: Path) -> None:
    for name in inputs():
        make_input(tmp_path / name)
    for name in data_sets():
        make_data(tmp_path / name)
    for command in filter(runnable, commands()):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"
        for written in re.findall(r"(?:--sink|--output|-o|--bank|--preview) +(\S+)", command):
            assert written == "-" or (tmp_path / written).exists(), f"{command} wrote no {written}"
    (script,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stderr}"
    assert done.stderr == ""


@pytest.mark.parametrize("command", commands() if README.is_file() else [])
def test_every_option_of_a_command_exists(command: str) -> None:
    known = options(help_of(command))
    assert "--help" in known
    assert options(command) <= known


def test_every_option_that_the_text_names_exists() -> None:
    lines = [line for line in readme().splitlines() if not re.search(r"\b(pip|git|make) ", line)]
    every = {
        option
        for name in (
            *("train", "eval", "export", "calib", "build-engine", "enroll", "run", "bench", "inspect", "doctor"),
            "bank list",
        )
        for option in options(help_of(f"fsvit-edge {name}"))
    }
    assert options("\n".join(lines)) <= every | {"--version"}


def test_every_file_that_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", readme())
    missing = [link for link in links if "://" not in link and not (README.parent / link).exists()]
    assert missing == []
