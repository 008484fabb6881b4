"""A folder of pictures, and a model of three fake engines that finds the color of a support in a frame."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine
from picture_files import save

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.learn.folder import FolderFewShot
from fsvit_edge.runtime.bundle import FORMAT_VERSION, GraphInfo, Manifest
from fsvit_edge.runtime.engines.base import Array, TensorSpec
from fsvit_edge.runtime.preprocess import resize_mask

SIDE, GRID, SUPPORT_GRID = 24, 12, 3
TOKENS = GRID**2
COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "gold": (220, 200, 20)}
PICTURES = 8


@dataclasses.dataclass
class ColorModel:
    """The model with its engines, which count their runs."""

    model: FewShotModel
    encoder: FakeEngine
    head: FakeEngine


def _encode(feed: dict[str, Array]) -> dict[str, Array]:
    step = SIDE // GRID
    image = feed["image"].astype(np.float32) / 255
    tokens = image.reshape(1, GRID, step, GRID, step, 3).mean(axis=(2, 4)).reshape(1, 1, TOKENS, 3)
    return {"tokens": tokens}


def _cache(feed: dict[str, Array]) -> dict[str, Array]:
    """One color, nine times: the mean under the mask, or in the center of the picture if there is no mask."""
    center = np.zeros((SIDE, SIDE), np.uint8)
    center[SIDE // 3 : -SIDE // 3, SIDE // 3 : -SIDE // 3] = 1
    used = feed["mask"][0] if feed["has_mask"][0] else center
    seen = resize_mask(used, GRID).ravel() == 1
    color = feed["tokens"][:, :, seen].mean(axis=2, keepdims=True) if seen.any() else np.zeros((1, 1, 1, 3))
    nine = np.ones((1, SUPPORT_GRID**2), np.float32)
    return {
        "support": np.repeat(color, 10, axis=2).astype(np.float32),
        "kept_mask": np.ones((1, 10), np.float32),
        "pooled": np.repeat(color, 9, axis=2).astype(np.float32),
        "pooled_mask": nine,
        "used_mask": used[None],
    }


def _judge(feed: dict[str, Array]) -> dict[str, Array]:
    color = feed["kept"][:, 0, :1]
    near = np.abs(color - feed["tokens"][0]).max(axis=2) < 0.2
    foreground = np.where(near, 0.9, 0.1).reshape(-1, GRID, GRID)
    presence = np.where(near.mean(axis=1) > 0.03, 0.9, 0.1)
    averaging = feed["averaging"]
    return {
        "presence": (averaging @ presence).astype(np.float32),
        "foreground": np.tensordot(averaging, foreground, axes=1).astype(np.float32),
    }


@pytest.fixture
def color_model() -> ColorModel:
    """Compares only colors, so it is nearly always right if the masks are right."""

    def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
        return TensorSpec(name, shape, dtype)

    tokens = spec("tokens", 1, 1, TOKENS, 3)
    pooled = spec("pooled", 1, 1, 9, 3)
    encoder = FakeEngine((spec("image", "batch", SIDE, SIDE, 3, dtype="uint8"),), (tokens,), _encode)
    enroll = FakeEngine(
        (tokens, spec("mask", 1, SIDE, SIDE, dtype="uint8"), spec("has_mask", 1, dtype="bool")),
        (spec("support", 1, 1, 10, 3), spec("kept_mask", 1, 10), pooled, spec("pooled_mask", 1, 9)),
        _cache,
    )
    head = FakeEngine(
        (
            tokens,
            spec("kept", "supports", 1, "kept_tokens", 3),
            spec("kept_mask", "supports", "kept_tokens"),
            spec("pooled", "supports", 1, 9, 3),
            spec("pooled_mask", "supports", 9),
            spec("averaging", "ways", "supports"),
        ),
        (spec("presence", "ways"), spec("foreground", "ways", GRID, GRID)),
        _judge,
    )
    engines = {"encoder": encoder, "enroll": enroll, "head": head}
    graphs = {name: GraphInfo(f"{name}.onnx", name * 8, one.inputs, one.outputs) for name, one in engines.items()}
    manifest = Manifest(
        FORMAT_VERSION, "colors", "none", SIDE, 2, 1, 1, SUPPORT_GRID, GRID, {}, 20, "fp32", graphs, {}, "a test"
    )
    return ColorModel(FewShotModel(manifest, engines), encoder, head)


@pytest.fixture
def model(color_model: ColorModel) -> FewShotModel:
    return color_model.model


MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write a data folder: the pictures of a class show a rectangle of its color on gray; masks mark it."""

    def make(name: str = "data", shuffle_labels: bool = False, shuffle_masks: bool = False, masks: bool = True) -> Path:
        rng = np.random.default_rng(3)
        colors = [color for color in COLORS.values() for _ in range(PICTURES)]
        if shuffle_labels:
            colors = [colors[index] for index in rng.permutation(len(colors))]
        for index, color in enumerate(colors):
            folder, stem = tmp_path / name / list(COLORS)[index // PICTURES], f"{index % PICTURES}"
            picture = rng.integers(90, 140, (36, 48, 1), dtype=np.uint8).repeat(3, axis=2)
            top, left = rng.integers(2, 10), rng.integers(2, 14)
            inside = np.s_[top : top + 22, left : left + 30]
            picture[inside] = color
            mask = np.zeros((36, 48), np.uint8)
            mask[inside] = 255
            save(folder / "images" / f"{stem}.png", picture)
            if masks:
                save(folder / "masks" / f"{stem}.png", 255 - mask if shuffle_masks else mask)
        return tmp_path / name

    return make


@pytest.fixture
def data(make_folder: MakeFolder) -> FolderFewShot:
    """Four classes of 8 pictures, for which `color_model` is nearly always right."""
    return FolderFewShot(make_folder())
