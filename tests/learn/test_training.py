from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import save

from fsvit_edge.learn import training_episodes
from fsvit_edge.learn.folder import FolderFewShot
from fsvit_edge.learn.options import TrainOptions
from fsvit_edge.learn.tokens import TokenCache
from fsvit_edge.learn.training import TrainResult, new_head, train
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.errors import InputError

COLORS = {"blue": (40, 60, 230), "green": (40, 220, 60), "red": (230, 50, 40), "white": (240, 240, 240)}


@pytest.fixture(autouse=True)
def _short_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_episodes, "VALIDATION_EPISODES", 24)


def write_squares(root: Path, classes: list[str], pictures: int, seed: int = 0) -> Path:
    """Classes of colored squares on dark noise."""
    rng = np.random.default_rng(seed)
    for name in classes:
        for number in range(pictures):
            image = rng.integers(0, 60, (48, 48, 3))
            mask = np.zeros((48, 48))
            top, left = rng.integers(0, 3, 2) * 8
            mask[top : top + 24, left : left + 24] = 255
            image[mask > 0] = COLORS[name]
            save(root / name / "images" / f"{number}.png", image)
            save(root / name / "masks" / f"{number}.png", mask)
    return root


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    return write_squares(tmp_path / "squares", ["blue", "red"], 6)


@pytest.fixture
def learner(tiny_network: FewShotNetwork) -> FewShotNetwork:
    network = copy.deepcopy(tiny_network)
    new_head(network, 0)
    return network


Run = Callable[..., TrainResult]


@pytest.fixture
def run(tmp_path: Path, learner: FewShotNetwork) -> Run:
    def start(
        data: FolderFewShot, workspace: str = "workspace", resume: bool = False, **options: object
    ) -> TrainResult:
        chosen = TrainOptions(**{"batch": 4, "micro_batch": 4, "epochs": 1, **options})
        cache = TokenCache(learner, tmp_path / "cache", chosen.views)
        return train(learner, data, chosen, cache, tmp_path / workspace, resume)

    return start


def head_of(network: FewShotNetwork) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.head.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow(reason="70 epochs, 9 s")
def test_four_pictures_can_be_overfitted(tmp_path: Path, run: Run) -> None:
    data = FolderFewShot(write_squares(tmp_path / "four", ["blue", "red"], 2))
    result = run(data, epochs=70, batch=2, micro_batch=2, class_weight=0.5, learning_rate=2e-3)
    assert result.validation["miou"] > 90
    assert result.validation["exact_ratio"] > 90


@pytest.mark.slow(reason="two whole trainings, 11 s")
def test_shuffled_labels_are_at_chance_and_true_ones_are_not(tmp_path: Path, run: Run) -> None:
    root = write_squares(tmp_path / "true", list(COLORS), 10)
    options = {"epochs": 6, "class_weight": 1.0, "validation_fraction": 0.3, "learning_rate": 2e-3}
    true = run(FolderFewShot(root), "true-labels", **options)

    pairs = [(name, number) for name in COLORS for number in range(10)]
    order = np.random.default_rng(1).permutation(len(pairs))
    shuffled = tmp_path / "shuffled"
    shutil.copytree(root, shuffled)
    for (name, number), (source, other) in zip(pairs, [pairs[place] for place in order], strict=True):
        for folder in ("images", "masks"):
            shutil.copy(root / source / folder / f"{other}.png", shuffled / name / folder / f"{number}.png")
    chance = run(FolderFewShot(shuffled), "shuffled-labels", **options)

    assert true.validation["exact_ratio"] > 80
    assert chance.validation["exact_ratio"] < 72


def test_mask_supervision_names_the_picture_without_a_mask(squares: Path, run: Run) -> None:
    (squares / "red" / "masks" / "3.png").unlink()
    with pytest.raises(InputError, match=r"red/images/3\.png has no mask"):
        run(FolderFewShot(squares, needs_masks=False))


@pytest.mark.slow(reason="trains the enhancer too, 4 s")
def test_mixed_supervision_opens_only_the_listed_masks(tmp_path: Path, run: Run) -> None:
    root = write_squares(tmp_path / "mixed", ["blue", "red"], 10)
    listed = tuple(f"{name}/{number}" for name in ("blue", "red") for number in range(5))
    for mask in root.glob("*/masks/*"):
        if f"{mask.parents[1].name}/{mask.stem}" not in listed:
            mask.unlink()
    result = run(FolderFewShot(root, needs_masks=False), supervision="mixed", mask_list=listed)
    assert result.enhancer is not None
    assert 0 <= result.enhancer.iou_before <= 1


def test_a_listed_picture_that_does_not_exist_is_named(squares: Path, run: Run) -> None:
    with pytest.raises(InputError, match="'red/77', which is not in the data"):
        run(FolderFewShot(squares), supervision="mixed", mask_list=("red/77",))


def test_the_encoder_runs_once_for_each_picture_and_never_again(
    squares: Path, run: Run, learner: FewShotNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = FolderFewShot(squares)
    assert run(data, "first", epochs=2).encoded == 12

    def refuse(*_: object) -> None:
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(learner.encoder, "forward", refuse)
    assert run(data, "second", epochs=2).encoded == 0


@pytest.mark.parametrize("ways", [1, 3])
def test_only_the_head_learns_and_the_environment_is_unchanged(
    squares: Path, run: Run, learner: FewShotNetwork, ways: int
) -> None:
    before, head, environment = copy.deepcopy(learner.encoder.state_dict()), head_of(learner), dict(os.environ)
    assert run(FolderFewShot(squares), ways=ways).validation["loss"] > 0
    assert dict(os.environ) == environment
    assert same(before, learner.encoder.state_dict())
    for name in ("decoder1_cls.0.weight", "decoder1_seg.0.weight"):
        assert not torch.equal(head[name], head_of(learner)[name])


def test_the_same_seed_gives_the_same_head_and_another_seed_a_different_one(
    squares: Path, run: Run, learner: FewShotNetwork
) -> None:
    heads = []
    for number, seed in enumerate((1, 1, 2)):
        new_head(learner, seed)
        run(FolderFewShot(squares), f"run{number}", seed=seed)
        heads.append(head_of(learner))
    assert same(heads[0], heads[1])
    assert not same(heads[0], heads[2])


def test_micro_batches_change_nothing(squares: Path, run: Run, learner: FewShotNetwork) -> None:
    heads = []
    for micro_batch in (4, 2):
        new_head(learner, 0)
        run(FolderFewShot(squares), f"micro{micro_batch}", micro_batch=micro_batch)
        heads.append(head_of(learner))
    # Adam divides by the root of the squared gradient, so rounding errors of tiny gradients grow to some of its step.
    for name, tensor in heads[0].items():
        assert (tensor - heads[1][name]).abs().mean() < 2e-4, name


EPOCHS = 4


def train_in(root: Path, name: str) -> dict[str, torch.Tensor]:
    """Train, or resume training, the network of `root` / start.safetensors; return its head."""
    from fsvit_edge.model.checkpoint import load_network

    network = load_network(root / "start.safetensors")
    options = TrainOptions(epochs=EPOCHS, batch=4, micro_batch=4, views=2, same_picture=0.3)
    cache = TokenCache(network, root / "cache", 2)
    train(network, FolderFewShot(root / "squares"), options, cache, root / name, resume=True)
    return network.head.state_dict()


# The process to kill uses as many threads as this one, so its numbers are exactly the same.
TO_KILL = """
import sys
from pathlib import Path
import torch
from fsvit_edge.learn import training_episodes
from test_training import train_in

torch.set_num_threads(int(sys.argv[2]))
training_episodes.VALIDATION_EPISODES = int(sys.argv[3])
train_in(Path(sys.argv[1]), "broken")
"""


@pytest.mark.slow(reason="three trainings in processes of their own, 10 s")
def test_a_killed_training_resumes_to_the_same_weights(
    tmp_path: Path, squares: Path, learner: FewShotNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsvit_edge.model.checkpoint import save_network

    assert squares.is_dir()
    save_network(learner, tmp_path / "start.safetensors")
    monkeypatch.setattr(training_episodes, "VALIDATION_EPISODES", 8)
    whole = train_in(tmp_path, "whole")
    command = [sys.executable, "-c", TO_KILL, str(tmp_path), str(torch.get_num_threads()), "8"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    broken = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "broken" / "log.jsonl"
    deadline = time.monotonic() + 120
    while broken.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    broken.send_signal(signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL
    reached = len(log.read_text().splitlines())
    resumed = train_in(tmp_path, "broken")

    epochs = [json.loads(line)["epoch"] for line in log.read_text().splitlines()]
    assert 2 <= reached < EPOCHS
    assert epochs[-1] == EPOCHS - 1
    assert len(epochs) <= EPOCHS + 1  # at most the epoch that was killed is trained twice
    assert same(whole, resumed)


def test_an_unfinished_training_is_neither_overwritten_nor_resumed_with_other_options(squares: Path, run: Run) -> None:
    data = FolderFewShot(squares)
    run(data)
    with pytest.raises(InputError, match="continue it with --resume"):
        run(data)
    with pytest.raises(InputError, match=r"a training run with learning_rate 0\.001, but now it is 0\.5"):
        run(data, resume=True, learning_rate=0.5)


def test_a_training_of_version_0_1_can_be_resumed(tmp_path: Path, squares: Path, run: Run) -> None:
    run(FolderFewShot(squares))
    last = tmp_path / "workspace" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    identity = checkpoint["identity"]
    identity["nameless"], identity["precision"] = identity.pop("mask_dropout"), identity.pop("trainer_precision")
    torch.save(checkpoint, last)
    assert run(FolderFewShot(squares), resume=True).epochs == 1


def test_early_stopping_keeps_the_best_head_and_every_epoch_is_checkpointed(
    tmp_path: Path, squares: Path, run: Run
) -> None:
    # A learning rate of 0 never improves, so the second epoch without an improvement is the last.
    assert run(FolderFewShot(squares), epochs=9, patience=1, learning_rate=0.0).epochs == 2
    for name, epoch in (("best", 0), ("last", 1)):
        path = tmp_path / "workspace" / f"{name}.ckpt"
        assert torch.load(path, map_location="cpu", weights_only=True)["epoch"] == epoch


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch": 12, "micro_batch": 5}, r"must be a multiple of the micro-batch \(5\)"),
        ({"supervision": "boxes"}, "must be one of mask, image, mixed; got 'boxes'"),
        ({"mask_fraction": 1.5}, "mask_fraction must be between 0 and 1"),
        ({"mask_dropout": -0.1}, "mask_dropout must be from 0 to 1"),
        ({"same_picture": 0.5}, "set views to 2 or more"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        TrainOptions(**options)


def test_a_network_without_a_head_gets_a_new_one_that_is_saved(tiny_network: FewShotNetwork, tmp_path: Path) -> None:
    from fsvit_edge.model.checkpoint import load_network, save_network

    network = FewShotNetwork(replace(tiny_network.config, head="prototype"))
    new_head(network, 0)
    save_network(network, tmp_path / "new.safetensors")
    assert same(head_of(network), head_of(load_network(tmp_path / "new.safetensors")))
