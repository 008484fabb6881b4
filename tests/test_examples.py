"""The notebook runs as written, and every script under examples/ says what it does."""

import ast
import json
import subprocess
import sys
from pathlib import Path

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
