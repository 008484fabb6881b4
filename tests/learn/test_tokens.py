from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from picture_files import save, save_noise

from fsvit_edge.learn.folder import FolderFewShot
from fsvit_edge.learn.tokens import TokenCache, default_cache_folder
from fsvit_edge.learn.views import LEAST_AREA, View, draw_view
from fsvit_edge.model.network import FewShotNetwork, normalize
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError
from fsvit_edge.runtime.preprocess import resize_image, resize_mask


@pytest.fixture
def data(tmp_path: Path) -> FolderFewShot:
    return FolderFewShot(save_noise(tmp_path / "data", ("cup", "key"), 2, masks=False), needs_masks=False)


@pytest.fixture
def cache(tiny_network: FewShotNetwork, tmp_path: Path) -> TokenCache:
    return TokenCache(tiny_network, tmp_path / "cache")


def test_the_cache_returns_the_output_of_the_encoder(
    cache: TokenCache, data: FolderFewShot, tiny_network: FewShotNetwork
) -> None:
    assert cache.fill(data) == 4
    image = torch.from_numpy(resize_image(data.read_image(2), 48))[None]
    with torch.inference_mode():
        expected = tiny_network.encoder(normalize(image))
    found = cache.read(data.examples[2].image)
    for got, wanted in zip(found, expected, strict=True):
        assert got.shape == wanted.shape
        assert (got - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_a_copy_of_a_picture_is_not_encoded_again_but_a_changed_picture_is(
    cache: TokenCache, data: FolderFewShot, tiny_network: FewShotNetwork, tmp_path: Path
) -> None:
    shutil.copy(data.examples[0].image, tmp_path / "data" / "key" / "images" / "copy.png")
    assert cache.fill(FolderFewShot(tmp_path / "data", needs_masks=False)) == 4
    assert TokenCache(tiny_network, tmp_path / "cache").fill(data) == 0
    save(data.examples[0].image, np.zeros((30, 30, 3)))
    assert TokenCache(tiny_network, tmp_path / "cache").fill(data) == 1


def test_other_weights_and_views_have_another_folder_but_a_new_head_keeps_it(
    cache: TokenCache, tiny_network: FewShotNetwork, tmp_path: Path
) -> None:
    other, new_head = copy.deepcopy(tiny_network), copy.deepcopy(tiny_network)
    with torch.no_grad():
        other.encoder.vit.cls_token += 1e-3
        new_head.head.linear[0].weight += 1
    folders = [TokenCache(one, tmp_path / "cache", views).folder for one, views in ((tiny_network, 2), (other, 1))]
    assert len({cache.folder, *folders}) == 3
    assert TokenCache(new_head, tmp_path / "cache").folder == cache.folder


def test_a_missing_or_damaged_file_is_named(cache: TokenCache, data: FolderFewShot, tmp_path: Path) -> None:
    image = data.examples[0].image
    with pytest.raises(ArtifactError, match=r"is missing: .*0\.png was not cached"):
        cache.read(image)
    cache.fill(data)
    file = cache.folder / f"{cache.digest(image)}.npy"
    np.save(tmp_path / "other.npy", np.zeros((1, 2, 3), np.float16))
    for content in (file.read_bytes()[:5000], b"no tokens", (tmp_path / "other.npy").read_bytes()):
        file.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"delete it and run again"):
            cache.read(image)


def test_a_full_disk_is_an_error_before_encoding(
    cache: TokenCache, data: FolderFewShot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(FsvitEdgeError, match="choose another folder with --cache"):
        cache.fill(data)
    assert not list(cache.folder.glob("*.npy"))


def test_the_default_folder_is_in_the_users_cache(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_cache_folder() == own_cache / "fsvit-edge" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / ".cache" / "fsvit-edge" / "tokens"


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
