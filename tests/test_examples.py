"""The notebook runs as written, and every script under examples/ says what it does."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fsvit_edge import FewShotModel
from fsvit_edge.live.sources.demo import demo_supports
from fsvit_edge.runtime.pictures import read_image, write_image

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOK = EXAMPLES / "first_steps.ipynb"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    script = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "motorcycle  score" in done.stdout
    assert (tmp_path / "first-steps.safetensors").is_file()


def test_supervision_draws_and_counts_what_is_found(tmp_path: Path) -> None:
    pytest.importorskip("supervision")
    support = demo_supports()[0]
    with FewShotModel.load(threads=1) as model:
        model.enroll(support.name, [support.image], [support.mask])
        model.save_bank(tmp_path / "bank.safetensors")
    write_image(tmp_path / "photo.png", support.image)
    names = ("photo.png", "bank.safetensors", "drawn.png")
    command = [sys.executable, str(EXAMPLES / "supervision_annotators.py"), *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    left, right = done.stdout.splitlines()
    assert left.startswith("left half: ")
    assert right.endswith(" of 1 instances")
    assert (read_image(tmp_path / "drawn.png") != support.image).any()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_begins_with_what_it_does_and_how_to_call_it(script: Path) -> None:
    docstring = ast.get_docstring(ast.parse(script.read_text()))
    assert docstring is not None
    assert f"python examples/{script.name}" in docstring


@pytest.mark.parametrize("script", ["label_sequences.py", "make_webp.py", "supervision_annotators.py"])
def test_a_script_without_its_arguments_says_how_to_call_it(script: str) -> None:
    done = subprocess.run([sys.executable, str(EXAMPLES / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"python examples/{script}" in done.stderr
    assert "Traceback" not in done.stderr


def test_sequences_are_labeled_and_opened_by_other_tools(tmp_path: Path) -> None:
    pytest.importorskip("supervision")
    pytest.importorskip("pycocotools")
    pictures = {one.name: (one.image, one.mask) for one in demo_supports() if one.mask is not None}
    names = list(pictures)[:2]
    for name in names:
        image, mask = pictures[name]
        white = np.repeat(np.asarray(mask, np.uint8)[..., None] * np.uint8(255), 3, axis=2)
        for number in range(2):
            write_image(tmp_path / "data" / name / "images" / f"{number}.png", image)
            write_image(tmp_path / "data" / name / "masks" / f"{number}.png", white)
    script, data, output = EXAMPLES / "label_sequences.py", tmp_path / "data", tmp_path / "out"
    command = [sys.executable, str(script), str(data), *names, str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Labeled 4 pictures" in done.stdout
    for name in names:
        row = next(line.split() for line in done.stdout.splitlines() if line.startswith(f"{name} "))
        assert row[1:] == ["2", *("2" if other == name else "0" for other in names)]
        (found,) = (line for line in done.stdout.splitlines() if line.startswith(f"{name}: mean IoU "))
        assert float(found.split()[3]) > 0.7
    assert read_image(tmp_path / "out" / "sheet.jpg").shape == (180, 1280, 3)
