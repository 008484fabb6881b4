"""Files of weights as people have them, named as `export` takes them."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fsvit_edge.inspect.inspection import inspect_file

BACKBONE = ("cls_token", "patch_embed.proj.weight", "norm.bias")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod.", "encoder.", "backbone."])
def test_a_backbone_alone_is_shown_as_export_takes_it(tmp_path: Path, name: str, prefix: str) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch = pytest.importorskip("torch")
        state = {prefix + one: torch.zeros(3) for one in BACKBONE}
        torch.save({"epoch": 3, "args": "resnet18", "teacher": None, "student": state}, path)
        path.with_suffix(".json").write_text("{}")  # of something else
    else:
        save_file({prefix + one: np.zeros(3, np.float32) for one in BACKBONE}, path)
    facts = inspect_file(path).facts
    assert facts["contains"] == "3 tensors of a backbone alone"
    assert facts["to export it"] == f"fsvit-edge export --head prototype --weights {path}"


def test_a_teacher_and_its_student_count_once_and_a_head_alone_needs_a_backbone(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "dino.pth"
    teacher = {f"backbone.{name}": torch.zeros(3) for name in BACKBONE}
    torch.save({"teacher": teacher, "student": {f"module.{name}": one for name, one in teacher.items()}}, path)
    assert inspect_file(path).facts["contains"] == "3 tensors of a backbone alone"
    torch.save({"learner.proj.weight": torch.zeros(2)}, path)
    assert inspect_file(path).facts["to export it"].endswith("dino.pth --backbone NAME --weights FILE")
    save_file({"learner.proj.weight": np.zeros(2)}, tmp_path / "head.safetensors")
    assert "to export it" not in inspect_file(tmp_path / "head.safetensors").facts  # its configuration is missing


def test_a_part_of_a_checkpoint_in_several_files_is_shown_as_such(tmp_path: Path) -> None:
    shard, listing = tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model.safetensors.index.json"
    save_file({"cls_token": np.zeros(3)}, shard)
    listing.write_text('{"weight_map": {"cls_token": "model-00001-of-00002.safetensors"}}')
    for path, what in ((shard, "1 tensors"), (listing, "the list")):
        found = inspect_file(path)
        assert found.kind == "checkpoint"
        expected = f"{what} of a checkpoint in several files; export takes one file with all of them"
        assert found.facts["contains"] == expected
