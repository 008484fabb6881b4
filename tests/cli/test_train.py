"""`fsvit-edge train` as a user types it."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Cli
from safetensors.numpy import load_file
from sample_files import write_data

from fsvit_edge.learn import training_episodes
from fsvit_edge.model.checkpoint import load_network, save_network
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tiny_network: FewShotNetwork, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small data set and a small network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_episodes, "VALIDATION_EPISODES", 4)
    write_data(tmp_path / "data", "cup", "key")
    save_network(tiny_network, tmp_path / "start.safetensors")
    return tmp_path


SHORT = "train --data data --checkpoint start.safetensors --cache cache --batch 3"


def test_a_trained_network_can_be_evaluated_and_exported(cli: Cli, folder: Path) -> None:
    done = cli(f"{SHORT} --new-head --epochs 2 --output mine.safetensors")
    assert done.code == 0, done.err
    assert "Validation before and after 2 epochs" in done.out
    (row,) = (line.split() for line in done.out.splitlines() if "exact_ratio" in line)
    assert len(row) == 3
    for epoch in ("epoch 1 of 2", "epoch 2 of 2"):
        (told,) = (line for line in done.err.splitlines() if f"{epoch}: " in line)
        figures = dict(text.rsplit(" ", 1) for text in told.partition(f"{epoch}: ")[2].split(", "))
        assert {"loss", "val loss", "val exact ratio", "val miou"} <= figures.keys()
    assert "fsvit-edge export --checkpoint mine.safetensors" in done.err
    start, mine = load_file(folder / "start.safetensors"), load_file(folder / "mine.safetensors")
    changed = {name for name in start if not np.array_equal(start[name], mine[name])}
    assert changed
    assert all(name.startswith("learner.") for name in changed)
    load_network(folder / "mine.safetensors")
    log = (folder / "mine.training" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [0, 1]
    checked = cli("eval --checkpoint mine.safetensors --data data --episodes 4 --json")
    assert checked.code == 0, checked.err
    assert json.loads(checked.out)["episodes"] == 4


def test_a_second_training_resumes_the_first_only_with_resume(cli: Cli) -> None:
    line = f"{SHORT} --no-decay --output mine.safetensors"
    assert cli(f"{line} --epochs 1").code == 0
    again = cli(f"{line} --epochs 2")
    assert again.code == 2
    assert "continue it with --resume" in again.err
    assert cli(f"{line} --epochs 2 --resume").code == 0


def test_image_supervision_needs_no_masks(cli: Cli, folder: Path) -> None:
    for mask in folder.glob("data/*/masks/*"):
        mask.unlink()
    assert cli(f"{SHORT} --epochs 1 --output mine.safetensors --supervision image").code == 0
    refused = cli(f"{SHORT} --epochs 1 --output other.safetensors")
    assert refused.code == 2
    assert "has no mask for 3 of its 3 pictures" in refused.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--output mine.ckpt", "mine.ckpt must end in .safetensors"),
        ("--output x.safetensors --supervision boxes", "must be one of mask, image, mixed; got 'boxes'"),
        ("--output x.safetensors --fold 7", "Fold 7 does not exist"),
        ("--output x.safetensors --benchmark pascal", "give their folder with --splits"),
        ("--output x.safetensors --supervision mixed --mask-list no.txt", "no.txt cannot be read"),
    ],
)
def test_an_error_is_one_sentence(options: str, sentence: str, cli: Cli, folder: Path) -> None:
    done = cli(f"{SHORT} {options}")
    assert done.code == 2
    assert sentence in done.err
    assert not list(folder.glob("*.training"))


def test_a_backbone_needs_its_weights(cli: Cli) -> None:
    done = cli("train --data data --output x.safetensors --backbone vit_small_patch16_224.dino")
    assert done.code == 2
    assert "--weights FILE or --pretrained" in done.err


def test_without_a_checkpoint_training_starts_from_the_bundled_model(cli: Cli, folder: Path) -> None:
    done = cli("train --data data --cache cache --epochs 1 --output mine.safetensors")
    assert done.code == 0, done.err
    shipped, mine = load_file(DEFAULT_BUNDLE / "cst-nano.safetensors"), load_file(folder / "mine.safetensors")
    backbone = [name for name in shipped if name.startswith("backbone.")]
    assert all(np.array_equal(shipped[name].astype(np.float32), mine[name]) for name in backbone)
