from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fsvit_edge.learn.folder import FolderFewShot
from fsvit_edge.learn.tokens import TokenCache, default_cache_folder
from fsvit_edge.learn.views import LEAST_AREA, View, draw_view
from fsvit_edge.model.network import FewShotNetwork, normalize
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError
from fsvit_edge.runtime.preprocess import resize_image, resize_mask


@pytest.fixture
def data(tmp_path: Path) -> FolderFewShot:
    rng = np.random.default_rng(0)
    for name in ("cup", "key"):
        (tmp_path / "data" / name / "images").mkdir(parents=True)
        for number in range(2):
            picture = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / "data" / name / "images" / f"{number}.png")
    return FolderFewShot(tmp_path / "data", needs_masks=False)


def test_the_cache_returns_the_output_of_the_encoder(
    data: FolderFewShot, tiny_network: FewShotNetwork, tmp_path: Path
) -> None:
    cache = TokenCache(tiny_network, tmp_path / "cache")
    assert cache.fill(data) == 4
    image = torch.from_numpy(resize_image(data.read_image(2), 48))[None]
    with torch.inference_mode():
        expected = tiny_network.encoder(normalize(image))
    found = cache.read(data.examples[2].image)
    for got, wanted in zip(found, expected, strict=True):
        assert got.shape == wanted.shape
        assert (got - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_a_copy_of_a_picture_is_not_encoded_again(
    data: FolderFewShot, tiny_network: FewShotNetwork, tmp_path: Path
) -> None:
    shutil.copy(data.examples[0].image, tmp_path / "data" / "key" / "images" / "copy.png")
    assert TokenCache(tiny_network, tmp_path / "cache").fill(FolderFewShot(tmp_path / "data", needs_masks=False)) == 4
    assert TokenCache(tiny_network, tmp_path / "cache").fill(data) == 0


def test_a_changed_picture_is_encoded_again(data: FolderFewShot, tiny_network: FewShotNetwork, tmp_path: Path) -> None:
    TokenCache(tiny_network, tmp_path / "cache").fill(data)
    Image.new("RGB", (30, 30)).save(data.examples[0].image)
    assert TokenCache(tiny_network, tmp_path / "cache").fill(data) == 1


def test_other_weights_and_views_have_another_folder(tiny_network: FewShotNetwork, tmp_path: Path) -> None:
    other = copy.deepcopy(tiny_network)
    with torch.no_grad():
        other.encoder.vit.cls_token += 1e-3
    folders = {
        TokenCache(network, tmp_path, views).folder
        for network, views in ((tiny_network, 1), (tiny_network, 2), (other, 1))
    }
    assert len(folders) == 3
    assert TokenCache(copy.deepcopy(tiny_network), tmp_path).folder in folders


def test_a_new_head_keeps_the_cache(tiny_network: FewShotNetwork, tmp_path: Path) -> None:
    other = copy.deepcopy(tiny_network)
    with torch.no_grad():
        other.head.linear[0].weight += 1
    assert TokenCache(other, tmp_path).folder == TokenCache(tiny_network, tmp_path).folder


@pytest.mark.parametrize("damage", ["truncate", "garbage", "other shape"])
def test_a_damaged_file_is_named(
    damage: str, data: FolderFewShot, tiny_network: FewShotNetwork, tmp_path: Path
) -> None:
    cache = TokenCache(tiny_network, tmp_path / "cache")
    cache.fill(data)
    image = data.examples[0].image
    file = cache.folder / f"{cache.digest(image)}.npy"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "garbage":
        file.write_bytes(b"no tokens")
    else:
        np.save(file, np.zeros((1, 2, 3), np.float16))
    with pytest.raises(ArtifactError, match=r"delete it and run again"):
        cache.read(image)


def test_a_picture_that_was_not_cached_is_named(
    data: FolderFewShot, tiny_network: FewShotNetwork, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"is missing: .*0\.png was not cached"):
        TokenCache(tiny_network, tmp_path / "cache").read(data.examples[0].image)


def test_a_full_disk_is_an_error_before_encoding(
    data: FolderFewShot, tiny_network: FewShotNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TokenCache(tiny_network, tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(FsvitEdgeError, match="choose another folder with --cache"):
        cache.fill(data)
    assert not list(cache.folder.glob("*.npy"))


def test_the_cache_folder_can_be_set_by_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "fsvit-edge" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_folder() == tmp_path / "home" / ".cache" / "fsvit-edge" / "tokens"


def test_the_first_view_is_the_runtimes_preprocessing() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    mask = (picture[..., 0] > 128).astype(np.uint8)
    view = draw_view("0" * 64, 0)
    assert np.array_equal(view.of_image(picture, 32), resize_image(picture, 32))
    assert np.array_equal(view.of_mask(mask, 32), resize_mask(mask == 1, 32))


def test_views_are_always_the_same_and_differ_from_each_other() -> None:
    digest = "c0ffee" * 10
    views = [draw_view(digest, number) for number in range(1, 30)]
    assert views == [draw_view(digest, number) for number in range(1, 30)]
    assert len({view.light for view in views}) == len(views)
    assert draw_view("decaf0" * 10, 1) != views[0]
    assert {view.flip for view in views} == {True, False}
    for view in views:
        area = (view.bottom - view.top) * (view.right - view.left)
        assert 0.99 * LEAST_AREA <= area <= 1
        assert 0 <= view.top < view.bottom <= 1 + 1e-9
        assert 0 <= view.left < view.right <= 1 + 1e-9


def test_picture_and_mask_are_cropped_and_mirrored_the_same_way() -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[10:30, 50:90] = 1
    picture = np.repeat(mask[..., None] * np.uint8(200), 3, axis=2)
    for number in range(1, 20):
        drawn = draw_view("ab" * 32, number)
        view = View(drawn.top, drawn.bottom, drawn.left, drawn.right, drawn.flip)
        bright = view.of_image(picture, 48)[..., 0] > 100
        assert (bright == (view.of_mask(mask, 48) == 1)).mean() > 0.97


def test_ignored_pixels_stay_ignored() -> None:
    mask = np.array([[0, 1], [255, 0]], np.uint8)
    assert np.array_equal(View().of_mask(mask, 2), mask)
    assert np.array_equal(View(flip=True).of_mask(mask, 2), mask[:, ::-1])


def test_a_view_keeps_an_object_only_if_enough_of_it_is_visible() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[:, :40] = 1
    assert View().keeps(mask)
    assert View(left=0.2).keeps(mask)
    assert not View(left=0.3).keeps(mask)
    assert not View().keeps(np.zeros((100, 100), np.uint8))
