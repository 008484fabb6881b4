"""Parity with the published network: `shared/parity` has its numbers, pictures and weights, all seeded."""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.nn import functional as F

from fsvit_edge.model.config import ModelConfig
from fsvit_edge.model.encoder import EncoderOutput, load_strictly
from fsvit_edge.model.fast_head import FastCorrelationHead, cache_supports
from fsvit_edge.model.head import HeadLogits
from fsvit_edge.model.network import FewShotNetwork, normalize, predict_published
from fsvit_edge.model.pseudo_mask import pseudo_mask

SIZE = 400
TOLERANCE = 1e-4
PLAIN = "mask.1way1shot"
# Not "mask.2way1shot": it has the masks of the first two and the ways of the last.
EPISODES = {PLAIN: (1, 1), "mask.3way2shot": (3, 2), "pseudo.2way1shot": (2, 1)}


@dataclass(frozen=True)
class Parity:
    """The published numbers, and our network with the published weights."""

    golden: dict[str, np.ndarray]
    seeded: ModuleType  # makes weights and pictures
    network: FewShotNetwork

    def pictures(self, name: str, count: int) -> Tensor:
        return torch.from_numpy(self.seeded.seeded_images(name, count, 0))


@dataclass(frozen=True)
class Episode:
    """The input of both orders of the head, encoded once."""

    query: EncoderOutput
    supports: list[EncoderOutput]
    masks: Tensor  # (S, 400, 400), given or guessed
    ways: int
    shots: int


@pytest.fixture(scope="module")
def parity(shared_folder: Path) -> Parity:
    folder = shared_folder / "parity"
    spec = importlib.util.spec_from_file_location("seeded_weights", folder / "seeded_weights.py")
    assert spec is not None
    assert spec.loader is not None
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    network = FewShotNetwork(ModelConfig("published", "vit_small_patch8_224.dino", SIZE)).eval()
    shapes = json.loads((folder / "shapes.json").read_text())

    def weights(part: str) -> dict[str, Tensor]:
        arrays = seeded.seeded_state_dict({name: tuple(shape) for name, shape in shapes[part].items()}, 0)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    network.encoder.load_published(weights("backbone"))
    load_strictly(network.head, weights("head"), "head")
    return Parity(dict(np.load(folder / "golden_seed0.npz")), seeded, network)


@pytest.fixture(scope="module")
@torch.inference_mode()
def encoded(parity: Parity) -> EncoderOutput:
    return parity.network.encoder(normalize(parity.pictures("image", 1)))


LARGE = pytest.mark.slow(reason="7 pictures of 2501 tokens; the two other episodes have masks and 2 ways as well")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=LARGE if name == "mask.3way2shot" else ()) for name in EPISODES],
)
@torch.inference_mode()
def named_episode(request: pytest.FixtureRequest, parity: Parity) -> tuple[str, Episode]:
    name, (ways, shots) = request.param, EPISODES[request.param]
    network, count = parity.network, ways * shots
    query = network.encoder(normalize(parity.pictures(f"{name}.query", 1)))
    pictures = parity.pictures(f"{name}.support", count)
    supports = [network.encoder(normalize(picture[None])) for picture in pictures]
    if name.startswith("pseudo."):
        masks = torch.cat([network.pseudo_mask(support) for support in supports])
    else:
        masks = torch.from_numpy(parity.seeded.seeded_masks(f"{name}.mask", count, 0)).float()
    return name, Episode(query, supports, masks, ways, shots)


def largest_error(ours: Tensor, golden: np.ndarray) -> float:
    assert tuple(ours.shape) == golden.shape
    return float(np.abs(ours.numpy().astype(np.float64) - golden).max())


def fast_logits(network: FewShotNetwork, episode: Episode) -> HeadLogits:
    support = torch.cat([network.support_vectors(output) for output in episode.supports])
    cache = cache_supports(support, episode.masks, network.config.support_grid)
    return FastCorrelationHead(network.head)(network.query_vectors(episode.query)[0], cache)


def upsampled(maps: Tensor) -> Tensor:
    return F.interpolate(maps, size=(SIZE, SIZE), mode="bilinear", align_corners=True)


def predictions(logits: HeadLogits, episode: Episode) -> tuple[Tensor, Tensor]:
    """P(present) (ways,) and P(foreground) (ways, 400, 400): upsampled, softmax, then averaged over the shots."""
    present, thing = logits.presence.softmax(dim=1)[:, 1], upsampled(logits.mask).softmax(dim=1)[:, 1]
    each = (episode.ways, episode.shots)
    return present.reshape(each).mean(dim=1), thing.reshape(*each, SIZE, SIZE).mean(dim=1)


def assert_published(parity: Parity, name: str, presence: Tensor, foreground: Tensor) -> None:
    assert largest_error(presence, parity.golden[f"{name}.cls_prob"]) <= TOLERANCE
    assert largest_error(foreground[:, ::6, ::6], parity.golden[f"{name}.fg_prob_sub"]) <= TOLERANCE


@contextmanager
def one_wrong(weight: Tensor) -> Iterator[None]:
    first = weight.view(-1)[:1]
    before = first.clone()
    first += 1
    try:
        yield
    finally:
        first.copy_(before)


@pytest.mark.parametrize(
    ("name", "golden"),
    [("tokens", "backbone.tokens"), ("class_query", "backbone.last_q_cls"), ("image_keys", "backbone.last_k")],
)
def test_the_backbone_gives_the_published_numbers(
    parity: Parity, encoded: EncoderOutput, name: str, golden: str
) -> None:
    index = parity.golden["backbone.token_index"]
    ours = getattr(encoded, name)[0]
    wanted = parity.golden[golden]
    if name == "tokens":
        ours = ours[:, index]
    if name == "image_keys":
        ours, wanted = ours[:, index[index > 0] - 1], wanted[:, index > 0]
    assert largest_error(ours, wanted) <= TOLERANCE * np.abs(wanted).max()


def test_the_tokens_of_every_layer_have_the_published_mean_and_deviation(
    parity: Parity, encoded: EncoderOutput
) -> None:
    tokens = encoded.tokens[0].flatten(1)
    assert largest_error(tokens.mean(dim=1), parity.golden["backbone.tokens_mean"]) <= TOLERANCE
    assert largest_error(tokens.std(dim=1), parity.golden["backbone.tokens_std"]) <= TOLERANCE


@torch.inference_mode()
def test_the_fast_head_gives_the_published_predictions(parity: Parity, named_episode: tuple[str, Episode]) -> None:
    name, episode = named_episode
    logits = fast_logits(parity.network, episode)
    first_shot = slice(None, None, episode.shots)
    for ours, golden in (
        (logits.presence[first_shot], "first_shot_cls_logits"),
        (upsampled(logits.mask[first_shot])[..., ::12, ::12], "first_shot_mask_logits_sub"),
    ):
        wanted = parity.golden[f"{name}.{golden}"]
        assert largest_error(ours, wanted) <= TOLERANCE * np.abs(wanted).max()

    presence, foreground = predictions(logits, episode)
    assert_published(parity, name, presence, foreground)

    # Labels may differ only where the two highest of (0.5 for background, each way) are almost equal.
    candidates = torch.cat([torch.full((1, SIZE, SIZE), 0.5), foreground])
    highest = candidates.topk(2, dim=0).values
    clear = (highest[0] - highest[1] >= TOLERANCE).numpy()
    labels = candidates.argmax(dim=0).numpy()
    wanted = parity.golden[f"{name}.label_map"]
    assert clear.mean() > 0.99
    assert len(np.unique(wanted)) > 1
    assert np.array_equal(labels[clear], wanted[clear])


@torch.inference_mode()
def test_the_published_procedure_gives_the_published_predictions(parity: Parity) -> None:
    query, support = (parity.pictures(f"{PLAIN}.{role}", 1) for role in ("query", "support"))
    masks = torch.from_numpy(parity.seeded.seeded_masks(f"{PLAIN}.mask", 1, 0))
    ours = predict_published(parity.network, query[0], support, masks, ways=1)
    assert_published(parity, PLAIN, ours.presence, ours.foreground)
    clear = (ours.foreground[0] - 0.5).abs().numpy() >= TOLERANCE
    assert np.array_equal(ours.label_map.numpy()[clear], parity.golden[f"{PLAIN}.label_map"][clear])


@pytest.mark.parametrize("named_episode", ["pseudo.2way1shot"], indirect=True)
@torch.inference_mode()
def test_the_pseudo_masks_equal_the_published_ones(parity: Parity, named_episode: tuple[str, Episode]) -> None:
    # The seeded weights make full masks on both sides; test_pseudo_mask.py has masks with holes.
    name, episode = named_episode
    keys = episode.query.image_keys
    of_query = torch.cat([pseudo_mask(support.class_query, keys, 50, SIZE) for support in episode.supports])
    for ours, role in ((episode.masks, "support"), (of_query, "query")):
        shape = parity.golden[f"{name}.{role}_pseudo_shape"]
        wanted = np.unpackbits(parity.golden[f"{name}.{role}_pseudo_mask"])[: shape.prod()].reshape(shape)
        assert np.array_equal(ours.numpy(), wanted)


@pytest.mark.parametrize(
    "weight",
    [
        "corrtransformer.0.attn.qkv.weight",
        "corrtransformer.1.ff.ff.0.weight",
        "linear.1.weight",
        "decoder2_cls.2.bias",
        "decoder2_seg.2.weight",
    ],
)
@pytest.mark.parametrize("named_episode", [PLAIN], indirect=True)
@torch.inference_mode()
def test_one_wrong_weight_of_the_head_exceeds_the_tolerance(
    parity: Parity, named_episode: tuple[str, Episode], weight: str
) -> None:
    name, episode = named_episode
    with one_wrong(parity.network.head.get_parameter(weight)):
        answer = predictions(fast_logits(parity.network, episode), episode)
    with pytest.raises(AssertionError):
        assert_published(parity, name, *answer)


@torch.inference_mode()
def test_timms_position_embedding_or_one_wrong_weight_of_the_backbone_exceeds_the_tolerance(parity: Parity) -> None:
    encoder, wanted = parity.network.encoder, parity.golden["backbone.tokens"]
    image = normalize(parity.pictures("image", 1))

    def error(position: Tensor) -> float:
        return largest_error(encoder(image, position).tokens[0][:, parity.golden["backbone.token_index"]], wanted)

    limit = TOLERANCE * np.abs(wanted).max()
    assert error(resample_abs_pos_embed(encoder.vit.pos_embed, [50, 50])) > limit
    with one_wrong(encoder.vit.blocks[3].attn.qkv.weight):
        assert error(encoder.position()) > limit
