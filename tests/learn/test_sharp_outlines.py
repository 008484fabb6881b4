"""Training uses objectness as the runtime does."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import save_noise
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fsvit_edge.fewshot import outlines, support_masks
from fsvit_edge.learn.episode_module import EpisodeModule
from fsvit_edge.learn.folder import FolderFewShot
from fsvit_edge.learn.options import TrainOptions
from fsvit_edge.learn.sharp_outlines import sharpened, thing_of_name, weight_of_support
from fsvit_edge.learn.tokens import TokenCache
from fsvit_edge.learn.training import new_head
from fsvit_edge.learn.training_episodes import EpisodeBatch, Episodes, choose_split
from fsvit_edge.model.network import FewShotNetwork, normalize
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.preprocess import resize_image


def logits(shift: float = 0.0) -> np.ndarray:
    """Objectness (16, 16) of an object on the right."""
    rng = np.random.default_rng(0)
    return np.float32(np.where(np.arange(16) > 9, 4.0, -5.0) + rng.normal(0, 1, (16, 16)) + shift)


def block(left: int, right: int) -> np.ndarray:
    mask = np.zeros((64, 64), np.bool_)
    mask[20:50, left:right] = True
    return mask


@pytest.mark.parametrize("mask", [block(44, 60), block(30, 60), block(0, 30), block(0, 0)])
def test_a_support_weighs_objectness_as_at_run_time(mask: np.ndarray) -> None:
    expected = outlines.objectness_weight(logits(), mask)
    (weight,) = weight_of_support(torch.from_numpy(logits())[None], torch.from_numpy(mask)[None].to(torch.uint8))
    assert float(weight) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("guess", [block(34, 64), block(0, 30)])
def test_a_mask_is_guessed_from_a_name_as_at_run_time(guess: np.ndarray) -> None:
    expected = support_masks.thing_of_name(logits(), guess)
    (thing,) = thing_of_name(torch.from_numpy(logits())[None], torch.from_numpy(guess)[None].to(torch.uint8))
    assert thing.dtype == torch.uint8
    assert np.array_equal(thing.numpy() != 0, expected)


def test_outlines_are_sharpened_as_at_run_time() -> None:
    rng = np.random.default_rng(1)
    foreground = np.float32(rng.normal(0, 2, (8, 8)))
    runtime = outlines.sharpen(1 / (1 + np.exp(-foreground[None])), logits(9.0), np.float32([0.7]))[0]
    mask = F.interpolate(
        torch.stack([torch.zeros(8, 8), torch.from_numpy(foreground)])[None],
        size=(64, 64),
        mode="bilinear",
        align_corners=True,
    )
    sharp = sharpened(mask, torch.from_numpy(logits(9.0))[None], torch.tensor([0.7])).softmax(dim=1)[0, 1]
    # The runtime adds on 16 x 16 corners, here on 64 x 64 pixels: only the steepest edges differ.
    at_corners = F.interpolate(sharp[None, None], size=(16, 16), mode="bilinear", align_corners=True)[0, 0].numpy()
    assert np.abs(at_corners - runtime).mean() < 0.02


@pytest.fixture
def data(tmp_path: Path) -> FolderFewShot:
    return FolderFewShot(save_noise(tmp_path / "data", ("cup", "key"), 4))


@pytest.fixture
def telling(hybrid_network: FewShotNetwork) -> FewShotNetwork:
    """The hybrid network, which predicts objectness, with a head to train."""
    network = copy.deepcopy(hybrid_network)
    new_head(network, 0)
    return network


def test_the_cache_returns_objectness(data: FolderFewShot, telling: FewShotNetwork, tmp_path: Path) -> None:
    cache = TokenCache(telling, tmp_path / "cache", views=2)
    assert cache.fill(data) == 8
    image = torch.from_numpy(resize_image(data.read_image(2), 64))[None]
    assert telling.encoder.stem is not None
    assert telling.objectness is not None
    with torch.inference_mode():
        (expected,) = telling.objectness(telling.encoder.stem.maps(normalize(image)))
    told = torch.from_numpy(cache.read_objectness(data.examples[2].image)).float()
    assert (told - expected).abs().max() < 2e-3 * expected.abs().max()
    assert not np.array_equal(told, cache.read_objectness(data.examples[2].image, view=1))

    other = copy.deepcopy(telling)
    with torch.no_grad():
        other.objectness.out.bias.add_(1.0)
    again = TokenCache(other, tmp_path / "cache", views=2)
    assert again.folder == cache.folder
    with pytest.raises(ArtifactError, match="was not cached"):
        again.read_objectness(data.examples[2].image)
    assert again.fill(data) == 0
    moved = torch.from_numpy(again.read_objectness(data.examples[2].image)).float()
    assert (moved - told - 1).abs().max() < 0.05


def module_and_batch(
    data: FolderFewShot, network: FewShotNetwork, cache: TokenCache, ways: int
) -> tuple[EpisodeModule, EpisodeBatch]:
    """A module to train, and the first four episodes."""
    options = TrainOptions(batch=4, micro_batch=4, ways=ways, validation_fraction=0.25)
    cache.fill(data)
    episodes = Episodes(data, cache, options, choose_split(data, options), 0)
    (batch,) = DataLoader(torch.utils.data.Subset(episodes, range(4)), 4)
    return EpisodeModule(network, options, {}, None, 2), batch


@pytest.mark.parametrize("ways", [1, 3])
def test_the_head_learns_only_what_objectness_does_not_find(
    data: FolderFewShot, telling: FewShotNetwork, tmp_path: Path, ways: int
) -> None:
    """The loss is lower if objectness is sure of the mask, and higher if it is sure of the rest."""
    module, batch = module_and_batch(data, telling, TokenCache(telling, tmp_path / "cache"), ways)
    module.log = lambda *_args, **_kwargs: None
    batch = batch._replace(present=torch.tensor([True] * 4), support_mask=torch.ones_like(batch.support_mask))
    target = F.interpolate(batch.query_mask[:, None].float(), size=(16, 16))[:, 0]
    losses = []
    for sign in (8.0, 0.0, -8.0):  # right, unknown, wrong
        asked = batch._replace(
            query_objectness=(sign * (2 * target - 1)).half(), support_objectness=torch.full((4, 16, 16), 8.0).half()
        )
        torch.manual_seed(0)
        losses.append(float(module.training_step(asked, 0).detach()))
    assert losses[0] < losses[1] - 0.05
    assert losses[1] < losses[2] - 0.05


def test_sharp_outlines_leave_out_absent_classes(data: FolderFewShot, telling: FewShotNetwork, tmp_path: Path) -> None:
    module, batch = module_and_batch(data, telling, TokenCache(telling, tmp_path / "cache"), 1)
    batch = batch._replace(query_objectness=torch.full((4, 16, 16), 8.0).half())
    with torch.inference_mode():
        answer, asked = module(batch)
        asked = asked._replace(weight=torch.ones(4))
        for presence, marked in (((0.0, 1.0), True), ((1.0, 0.0), False)):
            found = module.outlined(answer._replace(presence=torch.tensor([presence] * 4)), asked).argmax(dim=1)
            assert found.any(dim=(1, 2)).tolist() == [marked] * 4
