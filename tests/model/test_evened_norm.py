"""The hybrid's final norm: it passes tokens on until it is whitened, and then their cosines spread."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from fsvit_edge.model.encoder import EvenedNorm
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.pictures import write_image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def even_backbone() -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("even_backbone")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / "photos" / f"{number}.jpg" for number in range(12)]
    for path in paths:
        write_image(path, rng.integers(0, 256, (6, 8, 3)).astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1))
    return paths


def test_the_norm_passes_tokens_on_unchanged_until_it_is_whitened(hybrid_network: FewShotNetwork) -> None:
    norm = hybrid_network.encoder.vit.norm
    assert isinstance(norm, EvenedNorm)
    x = torch.randn(2, 5, 192)
    assert torch.equal(norm(x), norm.norm(x))


def test_whitened_tokens_are_centered_and_vary_more_evenly(
    hybrid_network: FewShotNetwork, even_backbone: ModuleType, photos: list[Path]
) -> None:
    network = copy.deepcopy(hybrid_network)
    before = even_backbone.tokens_of(network.encoder, photos)
    assert np.array_equal(before, even_backbone.tokens_of(network.encoder, photos))
    even_backbone.even(network.encoder, before)
    after = even_backbone.tokens_of(network.encoder, photos)

    assert after.shape == before.shape
    assert np.abs(after.mean(axis=0)).max() < 0.05
    assert after.std() == pytest.approx(1.0, abs=0.05)
    found = np.sort(after.var(axis=0))[::-1]
    had = np.linalg.eigvalsh(np.cov(before.T))[::-1]
    had = np.maximum(had, even_backbone.LEAST_VARIANCE * had[0])
    # Dividing by the eighth root of the variance leaves three quarters of its logarithm.
    assert np.log(found[0] / found[40]) == pytest.approx(0.75 * np.log(had[0] / had[40]), abs=0.1)
    assert (np.diff(after.var(axis=0)[:40]) < 1e-3).all()

    even_backbone.even(network.encoder, after)  # whitening again starts from the current tokens
    assert np.abs(even_backbone.tokens_of(network.encoder, photos).mean(axis=0)).max() < 0.05


def test_whitened_late_tokens_are_centered_and_keep_the_strongest_directions(
    hybrid_network: FewShotNetwork, even_backbone: ModuleType, photos: list[Path]
) -> None:
    network = copy.deepcopy(hybrid_network)
    maps = even_backbone.late_maps_of(network.encoder, photos)
    even_backbone.even_late(network.encoder, maps)
    stem = network.encoder.stem
    assert stem is not None
    with torch.inference_mode():
        for had, project in zip(maps, stem.project_late, strict=True):
            found = project(torch.from_numpy(had).T[None, ..., None])[0, ..., 0].T.numpy()
            assert np.abs(found.mean(axis=0)).max() < 0.05
            assert found.std() == pytest.approx(1.0, abs=0.05)
            assert (np.diff(found.var(axis=0)[:40]) < 1e-3).all()
            strongest = np.linalg.eigvalsh(np.cov(had.T))[::-1]
            ratio = np.log(found[:, 0].var() / found[:, 20].var()) / np.log(strongest[0] / strongest[20])
            assert ratio == pytest.approx(0.75, abs=0.1)


def test_a_plain_backbone_is_refused(tiny_network: FewShotNetwork, even_backbone: ModuleType) -> None:
    with pytest.raises(InputError, match="Only the hybrid backbone"):
        even_backbone.even(tiny_network.encoder, np.zeros((4, 8), np.float32))
